"""The amortized guide with a few directions of dependence."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import kl_low_rank_normal  # noqa: F401 (importing it registers it)
from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import positive
from ppl_vae.networks import MLP, Context, Network, require_at_least_one

STRONGEST = 100.0
"""Bound on the entries of B, beyond which I + B^T B could not be factorized in float32."""


class LowRank(Amortized[dist.LowRankMultivariateNormal]):
    """q(z | x) = N(loc(x), S (I + B B^T) S), S = diag(scale(x)), B of few columns.

    Between `MeanField` (rank 0) and `FullCovariance`: the covariance costs d (1 + rank) numbers,
    not d (d + 1) / 2. The scale is softplus(s) + 1e-6 and B = 100 tanh(b / 100) for unbounded
    outputs s and b of the encoder. At the start B is the same for all rows, random, with entries
    of about 0.1: almost independent dimensions, but not B = 0, where its gradient vanishes.

    Importing this file teaches `torch.distributions.kl_divergence` the KL from a low-rank normal
    to independent normals, so that the analytic ELBO works with a standard normal prior.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's.
        network: What the encoder is built from.
        rank: Number of columns of B. With rank = d - 1 every covariance is in reach. The encoder's
            head has d (2 + rank) outputs.
        context: See `Amortized`.

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
        context: Context | None = None,
    ) -> None:
        require_at_least_one(self, rank=rank)
        self.rank = rank  # first: the head is built from it
        super().__init__(data_shape, latent_dim, network, context)

    def family(self, outputs: Tensor) -> dist.LowRankMultivariateNormal:
        """N(loc, S (I + B B^T) S) for outputs (loc, s, b by rows)."""
        d = self.latent_dim
        loc, scale, factor = outputs.split([d, d, d * self.rank], -1)
        scale = positive(scale)
        factor = STRONGEST * torch.tanh(factor.unflatten(-1, (d, self.rank)) / STRONGEST)
        return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * factor, scale.square())

    @property
    def num_outputs(self) -> int:
        """Per latent dimension loc, s and a row of b."""
        return self.latent_dim * (2 + self.rank)

    def start_head(self) -> None:
        """Starts at the same B for all rows, with entries of about 0.1."""
        nn.init.zeros_(self.head.weight[2 * self.latent_dim :])
        nn.init.normal_(self.head.bias[2 * self.latent_dim :], std=0.1)
