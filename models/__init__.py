"""Generative models p(z) p(x | z), one model per file.

| model | latents | closed forms |
| --- | --- | --- |
| `VAE` | any prior; standard normal if none is given | |
| `Autoencoder` | a code without a density, until one is fitted | evidence of linear ones |
| `ConditionalVAE` | any prior; the rows come with labels or attributes | |
| `SemiSupervisedVAE` | a class and a style; some rows have labels | |
| `VAEGAN` | any prior; a discriminator judges what is decoded | |
| `BernoulliMixture` | categorical | evidence, posterior, EM step |
| `GaussianMixture` | categorical | evidence, posterior, EM step |
| `ProbabilisticPCA` | standard normal | evidence, posterior, EM step |
| `FactorAnalysis` | standard normal | evidence, posterior, EM step |
| `MixtureOfPCA` | component (summed out), standard normal | evidence, posterior, EM step |
| `GaussianHMM`, `CategoricalHMM` | a path of states | evidence, posterior, EM step |
| `SubstitutionCipher` | the plaintext of a secret script, in a known language | evidence, posterior, EM step |
| `HierarchicalVAE` | two layers, the top standard normal | |
| `VQVAE` | a grid of codes; any prior of codes | |
| `VQVAE2` | grids of codes, each coarser than the one below | |
| `ConditionalVQVAE` | a grid of codes, whose prior sees the label or attributes of the row | |
| `ConditionalVQVAE2` | grids of codes, whose priors see the label or attributes of the row | |
| `CTC` | alignment of labels to frames | evidence, posterior |
| `Autoregressive` | none | evidence |
| `IndependentSegments`, `ScanLineSegments` | a segment per pixel of a gray picture | evidence, posterior |
| `TreeSegments` | a segment per superpixel of a gray picture | evidence, posterior |
| `PottsSegments` | a segment per pixel | evidence, posterior of narrow pictures |

A model is a callable `model(x)` that runs inside Pyro. If it has closed forms, it offers them as methods:
`log_evidence(x)`, exact log p(x) per row, and `posterior(x)`, exact p(z | x). Models with an EM step have
`initialize(x, seed)`, `expected_statistics(x)` and `maximize(statistics)`. A `Discriminator` is a part of a
model, such as `VAEGAN`.

| prior | p(z) |
| --- | --- |
| `StandardNormal` | N(0, I) |
| `DiagonalNormal` | a learned normal with independent dimensions |
| `FullNormal` | a learned normal |
| `LaplacePrior` | independent and mostly near 0: the penalty of a sparse code |
| `FlatPrior` | nothing: an autoencoder's |
| `MixturePrior` | a learned mixture of such normals |
| `VampPrior` | the mixture of the guide's posteriors at learned pseudo-inputs |
| `FlowPrior` | a normalizing flow |
| `AutoregressivePrior` | chains of correlated normals, which independent posteriors cannot match |

A prior is a description, given to a model: `VAE(..., prior=MixturePrior(components=10))`.

| prior of codes | p(z) |
| --- | --- |
| `UniformCodes` | each code costs the same |
| `IndependentCodes` | how often each code is used at each position |
| `PixelCNNPrior` | each code given those before it, by gated convolutions |
| `TransformerPrior` | each code given those before it, by causal self-attention |

They are for models of codes, `VQVAE(..., prior=PixelCNNPrior())`, and for `ppl_vae.refit_prior`, which fits
them to the codes of a trained pair.

| colors of segments | P(y given z, x) sees |
| --- | --- |
| `Palette` | the segment |
| `LatentColors` | the segment, and a latent color that it has in this picture |
| `LumaColors` | the segment, and the luma around the pixel |
| `PictureColors` | the segment, and the whole gray picture |

They are descriptions, too, for models of the colors of a gray picture:
`IndependentSegments(colors=LumaColors())`.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
