"""Generative models p(z) p(x | z), one a file.

| model | latents | knows its |
| --- | --- | --- |
| `VAE` | any prior; standard normal if none is given | |
| `BernoulliMixture` | categorical | evidence, posterior, EM step |
| `GaussianMixture` | categorical | evidence, posterior, EM step |
| `ProbabilisticPCA` | standard normal | evidence, posterior, EM step |
| `FactorAnalysis` | standard normal | evidence, posterior, EM step |
| `MixtureOfPCA` | component (summed out), standard normal | evidence, posterior, EM step |
| `GaussianHMM`, `CategoricalHMM` | a path of states | evidence, posterior, EM step |
| `HierarchicalVAE` | two layers, the top standard normal | |
| `CTC` | alignment of labels to frames | evidence, posterior |
| `Autoregressive` | none | evidence |

A model is a callable `model(x)` that runs inside Pyro. Where it has closed forms, it says so by two
methods: `log_evidence(x)`, exact log p(x) per row, and `posterior(x)`, exact p(z | x).

| prior | p(z) |
| --- | --- |
| `StandardNormal` | N(0, I) |
| `DiagonalNormal` | independent normals, learned |
| `MixturePrior` | a mixture of those, learned |
| `VampPrior` | the mixture of the guide's posteriors at learned pseudo-inputs |
| `FlowPrior` | a normalising flow |

A prior is a description, given to a model: `VAE(..., prior=MixturePrior(components=10))`.
"""

from ppl_vae.models.autoregressive import Autoregressive
from ppl_vae.models.bernoulli_mixture import BernoulliMixture
from ppl_vae.models.categorical_hmm import CategoricalHMM
from ppl_vae.models.ctc import CTC
from ppl_vae.models.factor_analysis import FactorAnalysis
from ppl_vae.models.flow_prior import FlowPrior
from ppl_vae.models.gaussian_hmm import GaussianHMM
from ppl_vae.models.gaussian_mixture import GaussianMixture
from ppl_vae.models.hierarchical_vae import HierarchicalVAE
from ppl_vae.models.mixture_of_pca import MixtureOfPCA
from ppl_vae.models.priors import DiagonalNormal, MixturePrior, StandardNormal
from ppl_vae.models.probabilistic_pca import ProbabilisticPCA
from ppl_vae.models.vae import VAE
from ppl_vae.models.vamp_prior import VampPrior

__all__ = [
    "CTC",
    "VAE",
    "Autoregressive",
    "BernoulliMixture",
    "CategoricalHMM",
    "DiagonalNormal",
    "FactorAnalysis",
    "FlowPrior",
    "GaussianHMM",
    "GaussianMixture",
    "HierarchicalVAE",
    "MixtureOfPCA",
    "MixturePrior",
    "ProbabilisticPCA",
    "StandardNormal",
    "VampPrior",
]
