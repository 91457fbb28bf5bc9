"""Convolutional networks for pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from ppl_vae.networks.arguments import (
    require_activation,
    require_at_least,
    require_room,
    require_switches,
    require_widths,
)
from ppl_vae.networks.base import Network
from ppl_vae.networks.skip import Skip
from ppl_vae.runtime import channels_last

_SMALLER = "choose a smaller latent_dim, data_shape, Convolutional.channels or Convolutional.hidden"


@dataclass(frozen=True)
class Convolutional(Network):
    """Strided 3x3 convolutions with leaky ReLU, and batch norm, for pictures of any size.

    The encoder halves the picture (rounding up) once per entry of `channels` and ends in one
    hidden layer. The decoder mirrors it with transposed convolutions; their output padding is
    chosen so that each stage has the size that it has in the encoder, so odd and tiny pictures work.

    Shapes are `(h, w)` or `(*, h, w)`; all leading dimensions count as channels, so a decoder for
    `(num_params, channels, h, w)` ends in `num_params * channels` of them.

    In training mode batch norm makes the rows of a batch depend on each other. In
    evaluation mode (`module.eval()`) rows are independent. A discriminator is better without: with it, GANs of
    small faces made the same picture of every z in our trials.

    Args:
        channels: Output channels of each stage of the encoder; the decoder goes through them
            backwards.
        hidden: Width of the fully connected layer between the convolutions and the latents; 0 for none.
        skip: Whether every layer of the decoder reads z, not the first one alone (arXiv:1807.04863), so that
            the decoder finds it harder to ignore z.
        refine: Whether the decoder ends in one more convolution, of pictures of the full size.
        output: Class of an activation at the end of the decoder, such as `torch.nn.Sigmoid` for pictures with
            values from 0 to 1 under a Gaussian likelihood; None for none.
        batch_norm: Whether batch norm follows each convolution but the last one of the decoder.

    Raises:
        TypeError: A width is no whole number, `skip`, `refine` or `batch_norm` is neither True nor False, or
            `output` is no class that is made without arguments.
        ValueError: `channels` is empty, a width is not positive, or the data is not a picture.

    Example:
        >>> import torch
        >>> network = Convolutional(channels=(8, 16), hidden=32)
        >>> network.encoder((3, 17, 30))(torch.rand(5, 3, 17, 30)).shape
        torch.Size([5, 32])
        >>> network.decoder(latent_dim=2, out_shape=(3, 17, 30))(torch.rand(5, 2)).shape
        torch.Size([5, 3, 17, 30])
    """

    channels: Sequence[int] = (32, 64, 128)
    hidden: int = 256
    skip: bool = False
    refine: bool = False
    output: type[nn.Module] | None = None
    batch_norm: bool = True

    def __post_init__(self) -> None:
        require_widths(self, channels=self.channels, allow_empty=True)
        object.__setattr__(self, "channels", tuple(self.channels))
        require_at_least(self, 0, hidden=self.hidden)
        require_switches(self, skip=self.skip, refine=self.refine, batch_norm=self.batch_norm)
        if self.output is not None:
            require_activation("Convolutional.output", self.output)
        if not self.channels:
            raise ValueError(
                "Convolutional.channels is empty: give one entry per convolution, or use MLP"
            )

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """See `Network.encoder`."""
        picture = as_picture(data_shape)
        sizes = self._sizes(picture)
        net = nn.Sequential()
        for before, after in pairwise((picture[0], *self.channels)):
            require_room(self, _SMALLER, after, before, 3, 3)
            bias = not self.batch_norm  # which has a shift of its own
            net.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=bias))
            net.extend(self._after_convolution(after))
        net.append(nn.Flatten())
        width = self.channels[-1] * math.prod(sizes[-1])
        if self.hidden:
            require_room(self, _SMALLER, width, self.hidden)
            net.append(nn.Linear(width, self.hidden)).append(nn.LeakyReLU())
        return Batched(net, data_shape, picture, (self.hidden or width,))

    def decoder(self, latent_dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `Network.decoder`."""
        picture = as_picture(out_shape)
        sizes = self._sizes(picture)[::-1]
        lowest = self.channels[0] if self.refine else picture[0]
        channels = (*reversed(self.channels), lowest)
        smallest = (channels[0], *sizes[0])
        net = nn.Sequential()
        before = latent_dim
        if self.hidden:
            require_room(self, _SMALLER, latent_dim, self.hidden)
            net.append(nn.Linear(latent_dim, self.hidden)).append(nn.LeakyReLU())
            before = self.hidden
        require_room(self, _SMALLER, before, math.prod(smallest))
        net.append(nn.Linear(before, math.prod(smallest)))
        if self.hidden:
            net.append(nn.LeakyReLU())
        net.append(nn.Unflatten(1, smallest))
        for stage, (before, after) in enumerate(pairwise(channels)):
            require_room(self, _SMALLER, before, after, 3, 3)
            last = stage == len(self.channels) - 1 and not self.refine
            # A transposed convolution brings s to 2 s - 1; the padding adds the missing row.
            padding = [
                target - (2 * source - 1)
                for source, target in zip(sizes[stage], sizes[stage + 1], strict=True)
            ]
            net.append(
                nn.ConvTranspose2d(
                    before,
                    after,
                    3,
                    stride=2,
                    padding=1,
                    output_padding=(padding[0], padding[1]),
                    bias=last or not self.batch_norm,
                )
            )
            if not last:
                net.extend(self._after_convolution(after))
        if self.refine:
            require_room(self, _SMALLER, picture[0], lowest, 3, 3)
            net.append(nn.Conv2d(lowest, picture[0], 3, padding=1))
        if self.output is not None:
            net.append(self.output())
        of_z = Skip(net, latent_dim) if self.skip else net
        return Batched(of_z, (latent_dim,), (latent_dim,), out_shape)

    def _after_convolution(self, channels: int) -> list[nn.Module]:
        norm = [_BatchNorm(channels)] if self.batch_norm else []
        return [*norm, nn.LeakyReLU()]

    def _sizes(self, picture: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Height and width before the first convolution and after each of them."""
        sizes = [picture[1:]]
        for _ in self.channels:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return sizes


class Batched(nn.Module):
    """`net` with any number of leading batch dimensions.

    They are flattened into one, because convolutions and batch norm accept only one.

    Args:
        net: Maps `(n, *net_shape)` to anything of `(n, prod(out_shape))` elements.
        in_shape: Shape of one row of the input.
        net_shape: Shape of one row for `net`.
        out_shape: Shape of one row of the output.
    """

    def __init__(
        self,
        net: nn.Module,
        in_shape: Sequence[int],
        net_shape: Sequence[int],
        out_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.net = net
        self.in_shape = tuple(in_shape)
        self.net_shape = tuple(net_shape)
        self.out_shape = tuple(out_shape)
        self.out_features = math.prod(out_shape)

    def forward(self, x: Tensor) -> Tensor:
        batch_ndim = x.ndim - len(self.in_shape)
        if batch_ndim < 0 or tuple(x.shape[batch_ndim:]) != self.in_shape:
            last = (
                f"last {len(self.in_shape)} dimensions" if self.in_shape[1:] else "last dimension"
            )
            raise ValueError(
                f"the network was built for rows of shape {self.in_shape}, but the input has shape "
                f"{tuple(x.shape)}, whose {last} should be {self.in_shape}"
            )
        batch = x.shape[:batch_ndim]
        y: Tensor = self.net(x.reshape(batch.numel(), *self.net_shape))
        return y.reshape(*batch, *self.out_shape)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that also works on a training batch of one single value per channel.

    Such a batch has no variance, and is normalized by the running statistics. It occurs when the last
    minibatch has one row and the picture has shrunk to one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def as_picture(shape: Sequence[int], owner: str = "Convolutional") -> tuple[int, int, int]:
    """Channels, height and width of a picture, whose leading dimensions all count as channels.

    Raises:
        ValueError: The shape is no picture's; the message names the owner.
    """
    if len(shape) < 2:
        raise ValueError(
            f"{owner} needs pictures of shape (*channels, height, width), but the shape is "
            f"{tuple(shape)}; use MLP for data that are not pictures"
        )
    if hint := channels_last(shape):
        warnings.warn(f"{owner}: {hint}", UserWarning, stacklevel=3)
    return math.prod(shape[:-2]), shape[-2], shape[-1]
