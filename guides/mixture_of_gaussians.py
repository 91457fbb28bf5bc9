"""The amortised guide with several modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.distributions import DiagonalNormalMixture
from ppl_vae.networks import MLP, Network, full_precision, linear_head


class MixtureOfGaussians(nn.Module):
    """q(z | x) = sum_k w_k(x) N(loc_k(x), diag(scale_k(x)^2)), all from one encoder.

    Samples carry pathwise gradients into everything, the weights included: see
    `DiagonalNormalMixture`. The components start at places of their own, about two of their
    standard deviations apart, since equal ones would receive equal gradients for ever. The scale
    is softplus(s) + 1e-6, as in `MeanField`. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however many samples are drawn.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number d of latent dimensions, the model's.
        network: what the encoder is built from.
        components: number K of components. The encoder's head has K (1 + 2 d) outputs.

    Raises:
        ValueError: `latent_dim` or `components` is not positive.

    Example:
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
    ) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("components", components)):
            if value < 1:
                raise ValueError(f"MixtureOfGaussians.{name} must be at least 1, came {value}")
        self.latent_dim = latent_dim
        self.components = components
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, components * (1 + 2 * latent_dim))
        with torch.no_grad():
            locs = self.head.bias[components : components * (1 + latent_dim)]
            nn.init.normal_(locs, std=1 / math.sqrt(latent_dim))

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> DiagonalNormalMixture:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))

    def amortise(self, x: Tensor) -> Tensor:
        """Return the encoder's outputs for data `(*batch, *data_shape)`: `(*batch, num_outputs)`."""
        return full_precision(self.head(self.encoder(x)))

    def family(self, outputs: Tensor) -> DiagonalNormalMixture:
        """Return the q(z | x) that outputs of `amortise` (any real numbers) stand for."""
        size = self.components * self.latent_dim
        logits, locs, scales = outputs.split([self.components, size, size], -1)
        shape = (self.components, self.latent_dim)
        normals = dist.Normal(
            locs.unflatten(-1, shape), softplus(scales.unflatten(-1, shape)) + 1e-6
        )
        return DiagonalNormalMixture(dist.Categorical(logits=logits), normals.to_event(1))
