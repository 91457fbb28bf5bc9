"""Layers of networks between pictures and grids: nothing knows the size of the picture, or other rows."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import relu


def halving(reads: int, width: int, halvings: int, blocks: int) -> nn.Sequential:
    """Halves a picture so often, then residual blocks."""
    layers: list[nn.Module] = []
    for i in range(halvings):
        layers += [nn.Conv2d(width if i else reads, width, 4, 2, 1), nn.ReLU()]
    layers.append(nn.Conv2d(width if halvings else reads, width, 3, padding=1))
    inside = max(1, width // 2)
    return nn.Sequential(*layers, *(_Residual(width, inside) for _ in range(blocks)), nn.ReLU())


def doubling(reads: int, width: int, gives: int, halvings: int, blocks: int) -> nn.Sequential:
    """Residual blocks, then doubles a picture so often."""
    layers: list[nn.Module] = [nn.Conv2d(reads, width, 3, padding=1)]
    inside = max(1, width // 2)
    layers += [*(_Residual(width, inside) for _ in range(blocks)), nn.ReLU()]
    for i in range(halvings):
        last = i == halvings - 1
        layers.append(nn.ConvTranspose2d(width, gives if last else width, 4, 2, 1))
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers, *([] if halvings else [nn.Conv2d(width, gives, 1)]))


def embedding_patches(reads: int, width: int, side: int, blocks: int) -> nn.Sequential:
    """A linear map of each patch of `side` x `side` pixels, then residual blocks."""
    cut: list[nn.Module] = [nn.PixelUnshuffle(side), nn.Conv2d(reads * side**2, width, 1)]
    return nn.Sequential(*cut, *(_Residual(width, width) for _ in range(blocks)))


def drawing_patches(reads: int, width: int, gives: int, side: int, blocks: int) -> nn.Sequential:
    """Residual blocks, then a linear map to each patch of `side` x `side` pixels."""
    layers: list[nn.Module] = [nn.Conv2d(reads, width, 3, padding=1)]
    layers += [_Residual(width, width) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(width, gives * side**2, 1), nn.PixelShuffle(side))


def residual_head(reads: int, width: int, gives: int) -> nn.Sequential:
    """A residual block, then a linear map: there is a way through without a ReLU."""
    return nn.Sequential(_Residual(reads, width), nn.Conv2d(reads, gives, 1))


def reach(net: nn.Module, first: int, last: int) -> tuple[int, int]:
    """The first and the last position that a net of these layers reads, for some of what it gives.

    Along one side, as if the picture had no border.

    Args:
        net: The layers.
        first: The first position of what is given.
        last: The last one.

    Example:
        >>> reach(halving(3, 8, halvings=2, blocks=0), 0, 0)
        (-7, 10)
    """
    if isinstance(net, nn.Sequential):
        for layer in reversed(net):
            first, last = reach(layer, first, last)
    elif isinstance(net, _Residual):
        first, last = reach(net.first, first, last)
    elif isinstance(net, nn.PixelUnshuffle):
        factor = net.downscale_factor
        first, last = factor * first, factor * last + factor - 1
    elif isinstance(net, nn.PixelShuffle):
        first, last = first // net.upscale_factor, last // net.upscale_factor
    elif isinstance(net, nn.Conv2d | nn.ConvTranspose2d):
        side, step, padding = net.kernel_size[0], net.stride[0], cast(int, net.padding[0])
        if isinstance(net, nn.Conv2d):
            first, last = step * first - padding, step * last - padding + side - 1
        else:  # position i gives positions from i step - padding on, as many as the side of the kernel
            first, last = -((side - 1 - padding - first) // step), (last + padding) // step
    return first, last


class _Residual(nn.Module):
    """x plus two convolutions of it, with so many channels between them."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inside, 3, padding=1)
        self.second = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(relu(self.first(relu(x))))
        return x + added
