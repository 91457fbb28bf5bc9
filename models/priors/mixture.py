"""A prior that is a mixture of normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import NormalMixture
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.scales import raw_of_scale, scale_of_raw
from ppl_vae.networks import require_at_least_one, require_room

_EM_DRAWS = 100_000
"""The most draws that EM uses."""


@dataclass(frozen=True)
class MixturePrior(Prior):
    """p(z) = sum_k pi_k N(z; mu_k, diag(sigma_k^2)), with weights, means and scales learned.

    At the start the weights are equal, the means are draws from N(0, I / 2) and the scales are
    sqrt(1/2): the components are apart, and the mixture has the scale of a standard normal.

    Args:
        components: Number K of components.

    Raises:
        ValueError: `components` is not positive.

    Example:
        >>> prior = MixturePrior(components=5).build((3,), latent_dim=2)
        >>> {name: tuple(p.shape) for name, p in prior.named_parameters()}
        {'logits': (5,), 'loc': (5, 2), 'raw_scale': (5, 2)}
    """

    components: int = 10

    def __post_init__(self) -> None:
        require_at_least_one(self, components=self.components)

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        require_room(self, "choose fewer components", self.components, latent_dim)
        return _Mixture(latent_dim, self.components)


class _Mixture(nn.Module):
    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(components, latent_dim))
        half = torch.full((components, latent_dim), math.sqrt(0.5))
        self.raw_scale = nn.Parameter(raw_of_scale(half))

    def forward(self) -> dist.MixtureSameFamily:
        return NormalMixture(
            dist.Categorical(logits=self.logits),
            dist.Independent(dist.Normal(self.loc, scale_of_raw(self.raw_scale)), 1),
        )

    @torch.no_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Sets weights, means and scales by EM on the draws, starting from k-means."""
        from sklearn.mixture import GaussianMixture  # takes a second to import; rarely needed

        z = draws.flatten(0, 1).double().cpu()
        z = z[torch.randperm(len(z))[:_EM_DRAWS]]
        seed = int(torch.randint(2**31, ()))
        components = len(self.logits)
        em = GaussianMixture(
            components, covariance_type="diag", max_iter=500, random_state=seed % 2**32
        )
        em.fit(z.numpy())
        self.logits.copy_(torch.as_tensor(em.weights_).log())
        self.loc.copy_(torch.as_tensor(em.means_))
        self.raw_scale.copy_(raw_of_scale(torch.as_tensor(em.covariances_).sqrt()))
