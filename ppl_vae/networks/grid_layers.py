"""Layers of networks between pictures and grids: nothing knows the size of the picture, or other rows."""

from __future__ import annotations

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


class _Residual(nn.Module):
    """x plus two convolutions of it, with so many channels between them."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inside, 3, padding=1)
        self.second = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(relu(self.first(relu(x))))
        return x + added
