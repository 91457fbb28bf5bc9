"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ppl_vae.networks.arguments import require_widths
from ppl_vae.networks.base import Network
from ppl_vae.networks.convolutional import Batched


@dataclass(frozen=True)
class MLP(Network):
    """Fully connected layers on the flattened data.

    Args:
        hidden: Widths of the hidden layers, in the encoder's order; the decoder goes through them
            backwards. If empty, the encoder only flattens and the decoder is one linear layer, so
            that the VAE is linear.
        activation: Class of the activation, for example `torch.nn.Softplus`.

    Raises:
        ValueError: A width is not positive.

    Example:
        >>> MLP(hidden=()).decoder(latent_dim=2, out_shape=(3,)).net
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """

    hidden: Sequence[int] = (256, 256)
    activation: type[nn.Module] = nn.ReLU

    def __post_init__(self) -> None:
        # YAML and the command line give lists, which cannot be hashed and never equal a tuple.
        require_widths(self, hidden=self.hidden, allow_empty=True)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not callable(self.activation):
            raise TypeError(
                f"MLP.activation must be a class such as torch.nn.ReLU, got {self.activation!r}"
            )

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`."""
        size = math.prod(data_shape)
        widths = (size, *self.hidden)
        return Batched(self._layers(widths), data_shape, (size,), widths[-1:])

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        widths = (latent_dim, *reversed(self.hidden))
        net = self._layers(widths).append(nn.Linear(widths[-1], math.prod(out_shape)))
        return Batched(net, (latent_dim,), (latent_dim,), out_shape)

    def _layers(self, widths: Sequence[int]) -> nn.Sequential:
        net = nn.Sequential()
        for before, after in pairwise(widths):
            net.append(nn.Linear(before, after)).append(self.activation())
        return net
