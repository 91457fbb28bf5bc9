"""No prior: every code is as good as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ppl_vae.distributions import Flat
from ppl_vae.models.priors.base import Prior


@dataclass(frozen=True)
class FlatPrior(Prior):
    """log p(z) = 0 for every z: nothing is assumed of the codes, and none can be drawn.

    With a guide that gives points (`DeltaEncoder`), the pair is a plain autoencoder: what is minimized is the
    distortion alone. There is no log p(x), until `ppl_vae.refit_prior` fits a density to the codes.

    Example:
        >>> import torch
        >>> FlatPrior().build((3,), latent_dim=2)().log_prob(torch.ones(2))
        tensor(0.)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Flat(latent_dim)


class _Flat(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> Flat:
        return Flat(self.latent_dim)
