"""Inference guides q(z | x): one variational family per file.

| guide | family |
| --- | --- |
| `MeanField` | Normal with independent dimensions |
| `FullCovariance` | Normal with any covariance |
| `LowRank` | Normal with a covariance of low rank plus a diagonal |
| `MixtureOfGaussians` | mixture of Normals with independent dimensions |
| `MaskedAutoregressive` | affine autoregressive flow, fast to score |
| `InverseAutoregressive` | affine autoregressive flow, fast to sample |
| `NeuralSpline` | autoregressive flow of splines, fast to sample |
| `SemiAmortized` | Normal with independent dimensions, improved for each row by gradient steps |
| `BottomUp`, `TopDown` | two layers of Normals with independent dimensions |
| `DeltaEncoder` | a point: the code of an autoencoder, of which only the largest numbers may stay |
| `CategoricalEncoder` | any categorical, for the component of a mixture |
| `SemiSupervised` | any categorical for the class, and a guide of the style for each class |
| `SegmentationEncoder` | any categorical for each pixel, independently, for the segments of a picture |
| `WithinPicture` | Normal with independent dimensions, by EM within each picture: latent colors of segments |
| `StructuredMeanField` | lines that are Markov chains, by ascent within each picture: segments on a grid |
| `QuantizingEncoder` | all mass on the nearest code of a quantizer, or codes near it by their distance |
| `HierarchicalQuantizingEncoder` | all mass on one code, at each level given those above |
| `Recurrent` | any Markov chain, for the path of a hidden Markov model |
| `PerRow` | that of another guide, with free numbers for each row: no amortization |
| `Exact` | the posterior of a model that has it in closed form |
| `Enumerated` | the posterior of a model whose latents have finitely many values |

A guide is a callable `guide(x)` that runs inside Pyro; `encode(x)` is its q(z | x). Guides that derive from
`Amortized` take a `context`, for models that are given labels or attributes: q(z | x, c); `Exact` and
`Enumerated` run on what their model is given. To write an amortized guide with a family of your own, derive
from `Amortized`.
"""

from __future__ import annotations

import lazy_loader

from ppl_vae._moved import with_old_names

_offers, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(_offers, __name__)
