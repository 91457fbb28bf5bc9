"""Inference guides q(z | x), one variational family a file.

| guide | family |
| --- | --- |
| `MeanField` | Normal with independent dimensions |
| `FullCovariance` | Normal with any covariance |
| `Exact` | the posterior of a model that knows it |

A guide is a callable `guide(x)` that runs inside Pyro; `encode(x)` is its q(z | x).
"""

from ppl_vae.guides.exact import Exact
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.mean_field import MeanField

__all__ = ["Exact", "FullCovariance", "MeanField"]
