"""A prior under which most codes are near 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.priors.base import Prior
from ppl_vae.networks import require_positive


@dataclass(frozen=True)
class LaplacePrior(Prior):
    """p(z) = prod_i exp(-|z_i| / b) / (2 b): independent latents, each with the same scale b, which is fixed.

    With a guide that gives points (`DeltaEncoder`), -log p(z) is the penalty |z|_1 / b of a sparse autoencoder,
    and of sparse coding ("Emergence of simple-cell receptive field properties by learning a sparse code for
    natural images", Nature 381, 1996). The weight of the penalty grows slowly with
    `ELBO(beta=LinearWarmup(epochs=10))`, so that latents are in use before it acts.

    The penalty is cheated by small codes and large weights of the decoder: give model and guide a
    `UnitNorm` network.

    Args:
        scale: b; the penalty's weight, beside the squared error / (2 sigma^2), is 1 / b.

    Raises:
        ValueError: `scale` is not positive.

    Example:
        >>> LaplacePrior(scale=0.5).build((3,), latent_dim=2)().log_prob(torch.tensor([1.0, -3.0]))
        tensor(-8.)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, scale=self.scale)

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Laplace(latent_dim, self.scale)


class _Laplace(nn.Module):
    loc: Tensor

    def __init__(self, latent_dim: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        return dist.Independent(dist.Laplace(self.loc, self.scale), 1)
