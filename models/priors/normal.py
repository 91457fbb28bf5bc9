"""Priors that are a single normal distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.scales import raw_of_scale, scale_of_raw
from ppl_vae.networks import require_room

_JITTER = 1e-6
"""Added to the variances of codes, as a share of their mean: some may never vary."""


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


@dataclass(frozen=True)
class FullNormal(Prior):
    """p(z) = N(mu, L L^T), with mu and the lower triangle L learned, starting from N(0, I).

    Fitted to the aggregate posterior (see `ppl_vae.refit_prior`), it has the mean and the covariance of the
    codes, where `DiagonalNormal` has their variances alone.

    Example:
        >>> FullNormal().build((3,), latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379, grad_fn=<SubBackward0>)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        require_room(
            self, "choose a smaller latent_dim, or DiagonalNormal()", latent_dim, latent_dim
        )
        return _Full(latent_dim)


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


class _Full(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        # Below the diagonal it is L, on it what the positive numbers there are made of; above it is not used.
        self.raw_tril = nn.Parameter(raw_of_scale(torch.ones(latent_dim)).diag())

    def forward(self) -> dist.MultivariateNormal:
        tril = self.raw_tril.tril(-1) + scale_of_raw(self.raw_tril.diagonal()).diag()
        return dist.MultivariateNormal(self.loc, scale_tril=tril, validate_args=False)

    @torch.no_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Sets mean and covariance to those of the draws, which maximize E_q log p(z)."""
        z = draws.flatten(0, 1).double()
        self.loc.copy_(z.mean(0))
        covariance = torch.cov(z.T, correction=0).reshape(z.shape[1], z.shape[1])
        least = _JITTER * float(covariance.diagonal().mean()) + _JITTER**2
        tril = torch.linalg.cholesky(covariance + least * torch.eye(len(covariance)).to(z))
        self.raw_tril.copy_(tril.tril(-1) + raw_of_scale(tril.diagonal()).diag())
