"""Inference guides q(z | x), one variational family a file.

| guide | family |
| --- | --- |
| `MeanField` | Normal with independent dimensions |
| `FullCovariance` | Normal with any covariance |
| `LowRank` | Normal with a covariance of low rank plus a diagonal |
| `MixtureOfGaussians` | mixture of Normals with independent dimensions |
| `MaskedAutoregressive` | affine autoregressive flow, fast to score |
| `InverseAutoregressive` | affine autoregressive flow, fast to sample |
| `NeuralSpline` | autoregressive flow of splines, fast to sample |
| `SemiAmortised` | Normal with independent dimensions, improved for each row by gradient steps |
| `BottomUp`, `TopDown` | two layers of Normals with independent dimensions |
| `CategoricalEncoder` | every categorical, for the component of a mixture |
| `Recurrent` | every Markov chain, for the path of a hidden Markov model |
| `PerRow` | that of another guide, with free numbers for each row: no amortisation |
| `Exact` | the posterior of a model that knows it |
| `Enumerated` | the posterior of a model whose latents are finite |

A guide is a callable `guide(x)` that runs inside Pyro; `encode(x)` is its q(z | x).
"""

from ppl_vae.guides.categorical import CategoricalEncoder
from ppl_vae.guides.enumerated import Enumerated
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.flows import InverseAutoregressive, MaskedAutoregressive, NeuralSpline
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.hierarchical import BottomUp, TopDown
from ppl_vae.guides.low_rank import LowRank
from ppl_vae.guides.mean_field import MeanField
from ppl_vae.guides.mixture_of_gaussians import MixtureOfGaussians
from ppl_vae.guides.per_row import PerRow
from ppl_vae.guides.recurrent import Recurrent
from ppl_vae.guides.semi_amortised import SemiAmortised

__all__ = [
    "BottomUp",
    "CategoricalEncoder",
    "Enumerated",
    "Exact",
    "FullCovariance",
    "InverseAutoregressive",
    "LowRank",
    "MaskedAutoregressive",
    "MeanField",
    "MixtureOfGaussians",
    "NeuralSpline",
    "PerRow",
    "Recurrent",
    "SemiAmortised",
    "TopDown",
]
