"""The amortised guide with a few directions of dependence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, register_kl
from torch.nn.functional import softplus

from ppl_vae.distributions import kl_to_independent_normals
from ppl_vae.networks import MLP, Network, full_precision, linear_head

STRONGEST = 100.0
"""Bound on the entries of B, beyond which I + B^T B could not be factorised in float32."""


class LowRank(nn.Module):
    """q(z | x) = N(loc(x), S (I + B B^T) S), S = diag(scale(x)), B of few columns.

    Between `MeanField` (rank 0) and `FullCovariance`: the covariance costs d (1 + rank) numbers,
    not d (d + 1) / 2. The scale is softplus(s) + 1e-6 and B = 100 tanh(b / 100) for unbounded
    outputs s and b of the encoder. At the start B is the same for all rows, random, with entries
    of about 0.1: almost independent dimensions, but not B = 0, where its gradient vanishes. The
    site is `z`, inside `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however many
    samples are drawn.

    Importing this file teaches `torch.distributions.kl_divergence` the KL from a low-rank normal
    to independent normals, so that the analytic ELBO works with a standard normal prior.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number d of latent dimensions, the model's.
        network: what the encoder is built from.
        rank: number of columns of B. With rank = d - 1 every covariance is in reach. The encoder's
            head has d (2 + rank) outputs.

    Raises:
        ValueError: `latent_dim` or `rank` is not positive.

    Example:
        >>> guide = LowRank((1, 8, 8), latent_dim=5, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(4, 1, 8, 8)).cov_factor.shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        rank: int = 2,
    ) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("rank", rank)):
            if value < 1:
                raise ValueError(f"LowRank.{name} must be at least 1, came {value}")
        self.latent_dim = latent_dim
        self.rank = rank
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, latent_dim * (2 + rank))
        with torch.no_grad():
            nn.init.zeros_(self.head.weight[2 * latent_dim :])
            nn.init.normal_(self.head.bias[2 * latent_dim :], std=0.1)

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> dist.LowRankMultivariateNormal:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))

    def amortise(self, x: Tensor) -> Tensor:
        """Return the encoder's outputs for data `(*batch, *data_shape)`: `(*batch, num_outputs)`."""
        return full_precision(self.head(self.encoder(x)))

    def family(self, outputs: Tensor) -> dist.LowRankMultivariateNormal:
        """Return the q(z | x) that outputs of `amortise` (any real numbers) stand for."""
        d = self.latent_dim
        loc, scale, factor = outputs.split([d, d, d * self.rank], -1)
        scale = softplus(scale) + 1e-6
        factor = STRONGEST * torch.tanh(factor.unflatten(-1, (d, self.rank)) / STRONGEST)
        return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * factor, scale.square())


def _kl_low_rank_independent(p: LowRankMultivariateNormal, q: Independent[Any]) -> Tensor:
    # log det (W W^T + D) = log det D + log det (I + W^T D^-1 W). Nothing is expanded over the
    # batch: a posterior often has one covariance for all rows.
    diagonal = p._unbroadcasted_cov_diag
    capacitance = p._capacitance_tril.diagonal(dim1=-2, dim2=-1)
    half_log_det = 0.5 * diagonal.log().sum(-1) + capacitance.log().sum(-1)
    return kl_to_independent_normals(p, q, p._unbroadcasted_cov_factor, half_log_det, diagonal)


register_kl(LowRankMultivariateNormal, Independent)(_kl_low_rank_independent)
