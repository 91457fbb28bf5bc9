"""Generative models p(z) p(x | z), one a file.

| model | latents | knows its |
| --- | --- | --- |
| `VAE` | standard normal | |
| `ProbabilisticPCA` | standard normal | evidence, posterior |

A model is a callable `model(x)` that runs inside Pyro. Where it has closed forms, it says so by two
methods: `log_evidence(x)`, exact log p(x) per row, and `posterior(x)`, exact p(z | x).
"""

from ppl_vae.models.probabilistic_pca import ProbabilisticPCA
from ppl_vae.models.vae import VAE

__all__ = ["VAE", "ProbabilisticPCA"]
