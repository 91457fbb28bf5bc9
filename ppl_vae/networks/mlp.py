"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ppl_vae.networks.arguments import require_activation, require_room, require_widths
from ppl_vae.networks.base import Network
from ppl_vae.networks.context import JoinedEncoder
from ppl_vae.networks.convolutional import Batched
from ppl_vae.networks.skip import Skip
from ppl_vae.runtime import require_flags

_SMALLER = "choose a smaller latent_dim, data_shape or MLP.hidden"


@dataclass(frozen=True)
class MLP(Network):
    """Fully connected layers on the flattened data.

    Args:
        hidden: Widths of the hidden layers, in the encoder's order; the decoder goes through them
            backwards. If empty, the encoder only flattens and the decoder is one linear layer, so
            that the VAE is linear.
        activation: Class of the activation, for example `torch.nn.Softplus`.
        skip: Whether every layer of the decoder reads z, not the first one alone (arXiv:1807.04863), so that
            the decoder finds it harder to ignore z.
        output: Class of an activation at the end of the decoder, such as `torch.nn.Sigmoid` for means of rows
            with values from 0 to 1; None: the last layer is linear.

    Raises:
        TypeError: A width is no whole number, the activation or `output` is no class that is made without
            arguments, or `skip` is neither True nor False.
        ValueError: A width is not positive.

    Example:
        >>> MLP(hidden=()).decoder(latent_dim=2, out_shape=(3,)).net
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """

    hidden: Sequence[int] = (256, 256)
    activation: type[nn.Module] = nn.ReLU
    skip: bool = False
    output: type[nn.Module] | None = None

    def __post_init__(self) -> None:
        # YAML and the command line give lists, which cannot be hashed and never equal a tuple.
        require_widths(self, hidden=self.hidden, allow_empty=True)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        require_activation("MLP.activation", self.activation)
        require_flags(**{"MLP.skip": self.skip})
        if self.output is not None:
            require_activation("MLP.output", self.output)

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`."""
        size = math.prod(data_shape)
        widths = (size, *self.hidden)
        return Batched(self._layers(widths), data_shape, (size,), widths[-1:])

    def encoder_of_both(self, data_shape: Sequence[int], size: int) -> nn.Module:
        """See `Network.encoder_of_both`: rows of any shape are read as vectors, with the other one appended."""
        return JoinedEncoder(self, data_shape, size, flat=True)

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        widths = (latent_dim, *reversed(self.hidden))
        size = math.prod(out_shape)
        require_room(self, _SMALLER, widths[-1], size)
        net = self._layers(widths).append(nn.Linear(widths[-1], size))
        if self.output is not None:
            net.append(self.output())
        of_z = Skip(net, latent_dim) if self.skip else net
        return Batched(of_z, (latent_dim,), (latent_dim,), out_shape)

    def _layers(self, widths: Sequence[int]) -> nn.Sequential:
        net = nn.Sequential()
        for before, after in pairwise(widths):
            require_room(self, _SMALLER, before, after)
            net.append(nn.Linear(before, after)).append(self.activation())
        return net
