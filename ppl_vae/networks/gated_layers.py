"""Gated convolutions over the pixels before the one that they describe: all at once, or pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, pad

from ppl_vae.networks.arguments import require_room


class GatedLayers(nn.ModuleList):
    """Two stacks of gated convolutions, which carry what is above and what is left of a pixel.

    The layers of a gated PixelCNN, without a blind spot ("Conditional Image Generation with PixelCNN Decoders",
    arXiv:1606.05328). Pixels are in raster order; layer l has

        v_l = tanh(a_l) sigmoid(b_l),           (a_l, b_l) = V_l * v_{l-1} + P_l m + G_l c,
        h_l = h_{l-1} + O_l tanh(c_l) sigmoid(d_l),  (c_l, d_l) = H_l * h_{l-1} + L_l (a_l, b_l),

    for a picture m and a vector c, which the pixels do not belong to. v_0 and h_0 are the pixels, of which V_1
    and H_1 leave out the one that is described.

    Args:
        inputs: Channels of the pixels.
        channels: Channels of each layer, and of m.
        size: Height and width of the picture.
        layers: Number of layers.
        window: How many rows and columns back a pixel sees.
        given: Length of c; 0 if there is none.
        owner: What an error names, a class; it has `channels` and `window`.

    Raises:
        ValueError: There is no room for the weights.

    Example:
        >>> layers = GatedLayers(inputs=1, channels=4, size=(3, 3), layers=2, window=2)
        >>> pixels, place = torch.rand(5, 1, 3, 3), torch.zeros(1, 4, 3, 3)
        >>> layers(pixels, place).shape
        torch.Size([5, 4, 3, 3])
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        size: Sequence[int],
        layers: int,
        window: int,
        given: int = 0,
        owner: str = "GatedLayers",
    ) -> None:
        require_room(owner, _smaller(owner), 2 * channels, 2 * channels)
        self.inputs, self.size = inputs, tuple(size)
        # No pixel is further away than the picture is large.
        up, aside = (_shares(min(window, n - 1), layers) for n in size)
        super().__init__(
            _Layer(channels if i else inputs, channels, given, reach, not i, owner)
            for i, reach in enumerate(zip(up, aside, strict=True))
        )

    def forward(
        self, seen: Tensor, place: Tensor, given: Tensor | None = None, hide: float = 0.0
    ) -> Tensor:
        """What the last layer gives for all pixels, each from those before it.

        Args:
            seen: The pixels, `(n, inputs, height, width)`.
            place: m, `(n, channels, height, width)`, or of one row for all.
            given: c, `(n, given)`; None if there is none.
            hide: Share of the gated numbers that are set to 0: dropout.

        Returns:
            `(n, channels, height, width)`.
        """
        above = left = seen
        gates: Tensor | None = None
        for layer in self._layers():
            above = above if gates is None else _gated(gates, hide)
            gates, link = layer.above(layer.padded_above(above), place, given)
            left = layer.left(layer.padded_left(left), link, None if layer.first else left, hide)
        return left

    @torch.no_grad()
    def draw(
        self,
        n: int,
        place: Tensor,
        given: Tensor | None,
        pixel: Callable[[int, int, Tensor], Tensor],
    ) -> None:
        """Goes over the pixels in their order, and computes what the next one adds alone.

        Of the stack from above each layer keeps the last rows that it reads, of the one from the left this row.

        Args:
            n: How many pictures.
            place: As for a pass over all pixels.
            given: As there.
            pixel: Is called with the row, the column and what the last layer gives there, `(n, channels)`; it
                draws the pixel, and gives it as the first layer reads it, `(n, inputs)`.
        """
        layers = self._layers()
        height, width = self.size
        rows = [place.new_zeros(n, layer.reads, layer.rows, width) for layer in layers]
        for r in range(height):
            links: list[Tensor] = []
            gates: Tensor | None = None
            for i, layer in enumerate(layers):
                if gates is not None:
                    rows[i] = torch.cat([rows[i][:, :, 1:], _gated(gates)], 2)
                gates, link = layer.above(rows[i], place[:, :, r : r + 1], given)
                links.append(link)
            # One row of what each layer reads, with the columns left of the picture.
            row = [place.new_zeros(n, layer.reads, 1, layer.aside + width) for layer in layers]
            for c in range(width):
                left: Tensor | None = None
                for layer, link, read in zip(layers, links, row, strict=True):
                    if left is not None:
                        read[..., layer.aside + c] = left[..., 0]
                    columns = read[..., c : c + layer.columns]
                    left = layer.left(columns, link[..., c : c + 1], left)
                assert left is not None
                row[0][:, :, 0, layers[0].aside + c] = pixel(r, c, left[..., 0, 0])
            if rows[0].shape[2]:
                line = row[0][..., layers[0].aside :]
                rows[0] = torch.cat([rows[0][:, :, 1:], line], 2)

    def _layers(self) -> list[_Layer]:
        return [layer for layer in self if isinstance(layer, _Layer)]


class _Layer(nn.Module):
    """One layer of both stacks.

    Args:
        reads: Channels of what it reads.
        channels: Channels of what it gives.
        given: Length of the vector that is given; 0 if there is none.
        reach: How many rows up and columns to both sides it reads.
        first: Whether it is the first layer, which must not read the pixel itself.
        owner: What an error names.
    """

    def __init__(
        self,
        reads: int,
        channels: int,
        given: int,
        reach: tuple[int, int],
        first: bool,
        owner: str,
    ) -> None:
        super().__init__()
        self.reads, self.first = reads, first
        self.up, self.aside = reach
        self.rows = self.up + (not first)  # of what is above, read at once
        self.columns = self.aside + (not first)
        across = 2 * self.aside + 1
        require_room(owner, _smaller(owner), 2 * channels, reads, self.rows + 1, across)
        # A convolution with a masked kernel gives the same numbers, from more multiplications.
        self.of_above = _convolution(reads, 2 * channels, (self.rows, across), self.aside)
        self.of_left = _convolution(reads, 2 * channels, (1, self.columns), 0)
        self.place = nn.Conv2d(channels, 2 * channels, 1, bias=not given)
        self.latent = nn.Linear(given, 2 * channels) if given else None
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = _Convolution(channels, channels, 1)

    def padded_above(self, above: Tensor) -> Tensor:
        """All rows of the picture, with those above it, that `above` reads."""
        return pad(above, (0, 0, self.up, -1 if self.first else 0))

    def padded_left(self, left: Tensor) -> Tensor:
        """All columns of the picture, with those left of it, that `left` reads."""
        return pad(left, (self.aside, -1 if self.first else 0))

    def above(self, above: Tensor, place: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gates of what is above, before their activation, and what they give to what is left."""
        gates: Tensor = self.place(place)
        if self.latent is not None:
            gates = gates + self.latent(given)[:, :, None, None]
        if self.of_above is not None:
            gates = gates + self.of_above(above)
        gates = gates.expand(len(above), *gates.shape[1:])
        return gates, self.link(gates)

    def left(self, left: Tensor, link: Tensor, before: Tensor | None, hide: float = 0.0) -> Tensor:
        """What the layer gives, from what is left and the link; `before` is what the layer before gave."""
        gates = link if self.of_left is None else link + self.of_left(left)
        given: Tensor = self.out(_gated(gates, hide))
        return given if before is None else before + given


def _smaller(owner: str) -> str:
    return f"choose smaller {owner}.channels or {owner}.window"


def _convolution(reads: int, gives: int, kernel: tuple[int, int], aside: int) -> nn.Conv2d | None:
    """A convolution that is padded to the sides alone; None if it would read nothing."""
    if not math.prod(kernel):
        return None
    return _Convolution(reads, gives, kernel, padding=(0, aside), bias=False)


class _Convolution(nn.Conv2d):
    """A convolution; without padding, and where its kernel fits once, as in a draw, by a product of matrices.

    That gives the same numbers, but for rounding, and takes a tenth of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == self.kernel_size and self.padding == (0, 0):
            return linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]
        return super().forward(x)


def _gated(gates: Tensor, hide: float = 0.0) -> Tensor:
    """tanh(a) sigmoid(b), of the two halves of the channels."""
    a, b = gates.chunk(2, 1)
    gated: Any = a.tanh() * b.sigmoid()
    return dropout(gated, hide) if hide else gated


def _shares(total: int, parts: int) -> list[int]:
    """A whole number as a sum of parts, which differ by 1 at most, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]
