"""The amortized guide with several modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.distributions import DiagonalNormalMixture
from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import positive
from ppl_vae.networks import MLP, Context, Network, require_at_least_one


class MixtureOfGaussians(Amortized[DiagonalNormalMixture]):
    """q(z | x) = sum_k w_k(x) N(loc_k(x), diag(scale_k(x)^2)), all from one encoder.

    Samples carry pathwise gradients into everything, the weights included: see
    `DiagonalNormalMixture`. The components start at different places, about two of their standard
    deviations apart, since equal ones would receive equal gradients forever. The scale is
    softplus(s) + 1e-6, as in `MeanField`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's.
        network: What the encoder is built from.
        components: Number K of components. The encoder's head has K (1 + 2 d) outputs.
        context: See `Amortized`.

    Raises:
        ValueError: `latent_dim` or `components` is not positive.

    Example:
        >>> import torch
        >>> guide = MixtureOfGaussians((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(4, 1, 8, 8))
        >>> q.mixture_distribution.probs.shape, q.rsample().shape
        (torch.Size([4, 5]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        components: int = 5,
        context: Context | None = None,
    ) -> None:
        require_at_least_one(self, components=components)
        self.components = components  # first: the head is built from it
        super().__init__(data_shape, latent_dim, network, context)

    def family(self, outputs: Tensor) -> DiagonalNormalMixture:
        """The mixture for outputs (logits of the weights, locs, s by components)."""
        size = self.components * self.latent_dim
        logits, locs, scales = outputs.split([self.components, size, size], -1)
        shape = (self.components, self.latent_dim)
        normals = dist.Normal(locs.unflatten(-1, shape), positive(scales).unflatten(-1, shape))
        return DiagonalNormalMixture(dist.Categorical(logits=logits), normals.to_event(1))

    @property
    def num_outputs(self) -> int:
        """A logit, loc and s per component."""
        return self.components * (1 + 2 * self.latent_dim)

    def start_head(self) -> None:
        """Starts with components at different places."""
        locs = self.head.bias[self.components : self.components * (1 + self.latent_dim)]
        nn.init.normal_(locs, std=1 / math.sqrt(self.latent_dim))
