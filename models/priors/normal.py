"""Priors that are a single normal distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.scales import raw_of_scale, scale_of_raw


@dataclass(frozen=True)
class StandardNormal(Prior):
    """p(z) = N(0, I), without parameters: the default prior of a `VAE`.

    Example:
        >>> StandardNormal().build((3,), latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Standard(latent_dim)


@dataclass(frozen=True)
class DiagonalNormal(Prior):
    """p(z) = N(mu, diag(sigma^2)), with mu and sigma learned, starting from N(0, I).

    Fitted to the aggregate posterior (see `ppl_vae.refit_prior`), it is the simplest prior from which
    samples of an autoencoder's code can be drawn.

    Example:
        >>> DiagonalNormal().build((3,), latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379, grad_fn=<SumBackward1>)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Diagonal(latent_dim)


class _Standard(nn.Module):
    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        return dist.Independent(dist.Normal(self.loc, 1.0), 1)


class _Diagonal(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(raw_of_scale(torch.ones(latent_dim)))

    def forward(self) -> dist.Independent:
        return dist.Independent(dist.Normal(self.loc, scale_of_raw(self.raw_scale)), 1)

    @torch.no_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Sets the moments to those of (1/n) sum_i q(z | x_i), which maximizes E_q log p(z)."""
        self.loc.copy_(mean.mean(0))
        total = variance.mean(0) + mean.var(0, unbiased=False)
        self.raw_scale.copy_(raw_of_scale(total.sqrt()))
