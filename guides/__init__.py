"""Inference guides q(z | x), one variational family a file.

| guide | family |
| --- | --- |
| `MeanField` | Normal with independent dimensions |
| `FullCovariance` | Normal with any covariance |
| `SemiAmortised` | Normal with independent dimensions, improved for each row by gradient steps |
| `CategoricalEncoder` | every categorical, for the component of a mixture |
| `Exact` | the posterior of a model that knows it |

A guide is a callable `guide(x)` that runs inside Pyro; `encode(x)` is its q(z | x).
"""

from ppl_vae.guides.categorical import CategoricalEncoder
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.mean_field import MeanField
from ppl_vae.guides.semi_amortised import SemiAmortised

__all__ = ["CategoricalEncoder", "Exact", "FullCovariance", "MeanField", "SemiAmortised"]
