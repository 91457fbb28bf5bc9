"""A U-Net: from a picture to numbers at each of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from ppl_vae.networks.arguments import require_at_least_one, require_room, require_widths

_SMALLER = "choose smaller UNet.widths"


@dataclass(frozen=True)
class UNet:
    """Convolutions at several resolutions, for pictures of any size ("U-Net", arXiv:1505.04597).

    Each entry of `widths` is a stage of two 3x3 convolutions, at half the resolution of the one before; going
    back up, each stage is joined with that of the same resolution. There is no normalization: what a pixel
    gets depends on the pixels around it alone, up to `radius` away, not on other rows nor on the size of the
    picture. So a large picture can be cut into tiles that overlap, with the same result.

    Args:
        widths: Channels of each stage, from the finest on.

    Raises:
        TypeError: A width is no whole number.
        ValueError: A width is not positive, or there is none.

    Example:
        >>> net = UNet((4, 8)).build(inputs=1, outputs=5)
        >>> net(torch.rand(3, 1, 17, 30)).shape
        torch.Size([3, 5, 17, 30])
    """

    widths: Sequence[int] = (16, 32, 64)

    def __post_init__(self) -> None:
        require_widths(self, widths=self.widths)
        object.__setattr__(self, "widths", tuple(self.widths))

    @property
    def stride(self) -> int:
        """Pixels per pixel of the coarsest stage: shifts by as many only shift the result."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def radius(self) -> int:
        """How many pixels away a pixel may lie that the result depends on."""
        return 8 * self.stride - 6

    def build(self, inputs: int, outputs: int) -> nn.Module:
        """Builds the network.

        Args:
            inputs: Channels of the picture.
            outputs: Numbers per pixel.

        Returns:
            A module that maps `(*batch, inputs, h, w)` to `(*batch, outputs, h, w)`.

        Raises:
            TypeError: One of the two is no whole number.
            ValueError: One of them is not positive.
        """
        require_at_least_one(self, inputs=inputs, outputs=outputs)
        for before, after in pairwise((inputs, *self.widths)):
            require_room(self, _SMALLER, after, before, 3, 3)
        net = _UNet(tuple(self.widths), inputs, outputs)
        return net.to(memory_format=torch.channels_last)  # faster by a fifth, on a CPU too


class _Stage(nn.Module):
    """Two convolutions, the second around a path of identity."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = silu(self.first(x))
        return h + silu(self.second(h))


class _UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...], inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Stage(a, b) for a, b in pairwise((inputs, *widths)))
        self.up = nn.ModuleList(_Stage(b + a, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, (h, w) = x.shape[:-3], x.shape[-2:]
        x = x.reshape(-1, *x.shape[-3:])
        stride = 2 ** len(self.up)
        x = pad(x, (0, -w % stride, 0, -h % stride), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        finer: list[Tensor] = []
        for stage in self.down:
            if finer:
                x = nn.functional.avg_pool2d(x, 2)
            x = stage(x)
            finer.append(x)
        finer.pop()
        for stage in reversed(self.up):
            x = interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, finer.pop()], 1))
        out = cast(Tensor, self.head(x))[..., :h, :w]
        return out.reshape(*batch, *out.shape[1:])
