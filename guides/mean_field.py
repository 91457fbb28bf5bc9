"""The amortised guide with independent latent dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.networks import MLP, Network, full_precision, linear_head


class MeanField(nn.Module):
    """q(z | x) = N(loc(x), diag(scale(x)^2)), with loc and scale from one encoder.

    The scale is softplus(s) + 1e-6 for an unbounded output s of the encoder: it grows linearly, so
    it can not overflow, and never reaches 0 ("Auto-Encoding Variational Bayes", arXiv:1312.6114).
    The site is `z`, inside `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however
    many samples are drawn.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number of latent dimensions, the model's.
        network: what the encoder is built from.

    Raises:
        ValueError: `latent_dim` is not positive.

    Example:
        >>> import torch
        >>> guide = MeanField((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"MeanField.latent_dim must be at least 1, came {latent_dim}")
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, 2 * latent_dim)

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> dist.Independent:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))

    def amortise(self, x: Tensor) -> Tensor:
        """Return the encoder's outputs for data `(*batch, *data_shape)`: `(*batch, 2 latent_dim)`."""
        return full_precision(self.head(self.encoder(x)))

    def family(self, outputs: Tensor) -> dist.Independent:
        """Return the q(z | x) that outputs of `amortise` (any real numbers) stand for."""
        loc, scale = outputs.chunk(2, -1)
        return dist.Independent(dist.Normal(loc, softplus(scale) + 1e-6), 1)
