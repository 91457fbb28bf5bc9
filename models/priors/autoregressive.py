"""A prior whose latents follow each other slowly, which independent posteriors cannot match."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.priors.base import Prior
from ppl_vae.networks import require_at_least_one, require_numbers, require_room
from ppl_vae.pairs import elementwise


@dataclass(frozen=True)
class AutoregressivePrior(Prior):
    """p(z) = N(z_1; 0, 1) prod_t N(z_t; a z_{t-1}, 1 - a^2): no independent q(z | x) is close to it.

    Each z_t alone is N(0, 1), and neighbors have the correlation a. A posterior with independent latents, such
    as that of `MeanField`, pays for that at least

        min over q of KL(q || p) = 1/2 ((T - 2) log(1 + a^2) - log(1 - a^2))

    nats for each row, with mean 0 and the variances 1 / (p's precisions): the *committed rate* of a delta-VAE
    ("Preventing Posterior Collapse with delta-VAEs", arXiv:1901.03416). So z cannot be switched off, and the
    ELBO remains what is maximized. The rate says what is paid, not what is told: a q that is the same for all
    rows pays it, too, but a decoder that uses z gets something for it.

    It holds for every q(z | x) whose latents are independent of each other. Others may have the rate 0, so
    `fit` and `check` refuse them with this prior: `FullCovariance`, `LowRank`, mixtures, flows, `Exact`.

    Args:
        correlation: a, between -1 and 1, and not 0. It is not trained: it would go to 0.
        chains: Number of independent chains, one after the other, each of T = latent_dim / chains latents.

    Attributes:
        committed_rate: Of the module that `build` gives: the least rate of all chains, nats per row.

    Raises:
        TypeError: An argument is no number.
        ValueError: `correlation` or `chains` is out of its range; or, of `build`, `latent_dim` does not make
            so many chains of at least two latents.

    Example:
        >>> prior = AutoregressivePrior(correlation=0.9).build((3,), latent_dim=8)
        >>> round(prior.committed_rate, 3), prior().covariance_matrix[0, :3]
        (2.61, tensor([1.0000, 0.9000, 0.8100]))
    """

    correlation: float = 0.95
    chains: int = 1

    def __post_init__(self) -> None:
        require_numbers(self, correlation=self.correlation)
        require_at_least_one(self, chains=self.chains)
        if not 0 < abs(self.correlation) < 1:
            raise ValueError(
                "AutoregressivePrior.correlation must be between -1 and 1, and not 0, got "
                f"{self.correlation}: with 0 the prior is StandardNormal(), and commits to no rate"
            )

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        steps, left = divmod(latent_dim, self.chains)
        if left or steps < 2:
            raise ValueError(
                f"AutoregressivePrior(chains={self.chains}) needs a latent_dim that is a multiple of "
                f"{self.chains}, and at least {2 * self.chains}, so that each chain has two latents or more, "
                f"got latent_dim {latent_dim}"
            )
        require_room(self, "choose a smaller latent_dim", latent_dim, latent_dim)
        return _Chains(self.correlation, self.chains, steps)


class _Chains(nn.Module):
    loc: Tensor
    scale_tril: Tensor

    def __init__(self, correlation: float, chains: int, steps: int) -> None:
        super().__init__()
        square = correlation**2
        self.committed_rate = chains * ((steps - 2) * math.log1p(square) - math.log1p(-square)) / 2
        # z_t = a^(t-1) e_1 + sqrt(1 - a^2) sum_s a^(t-s) e_s of standard normal e.
        lag = torch.arange(steps).unsqueeze(1) - torch.arange(steps)
        powers = torch.tensor(correlation, dtype=torch.float64) ** lag.clamp_min(0)
        factor = torch.where(lag >= 0, powers, 0.0)
        factor[:, 1:] *= math.sqrt(1 - square)
        tril = torch.block_diag(*[factor] * chains).to(torch.get_default_dtype())
        self.register_buffer("loc", torch.zeros(chains * steps), persistent=False)
        self.register_buffer("scale_tril", tril, persistent=False)

    @property
    def least_rate(self) -> float:
        """The committed rate, nats per row."""
        return self.committed_rate

    def forward(self) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)

    def why_not_committed(self, q: dist.TorchDistribution, p: dist.TorchDistribution) -> str:
        """Why the rate of q may be below the committed one; empty if it cannot."""
        if elementwise(q) is not None:
            return ""
        return (
            "AutoregressivePrior commits to a rate for guides whose latents are independent given x, but "
            f"those of this one may depend on each other ({type(q).__name__}), and the rate may be 0: take "
            "MeanField (--guide MeanField), or another prior for this guide"
        )
