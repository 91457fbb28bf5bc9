"""Large pictures in parts that overlap, each small enough for the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ppl_vae.runtime import require_count

MOST_PIXELS = 2**18
"""Pixels of a tile, with its margins, unless told otherwise or margins are wide: some hundred MB."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture.

    Attributes:
        seen: Rows and columns of the picture that are looked at.
        kept: Rows and columns of the picture that are taken from it: each pixel is in one tile.
        inside: Where these are among those that are seen.
    """

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]
    inside: tuple[slice, slice]


def tiles(
    height: int, width: int, *, radius: int, stride: int = 1, most_pixels: int | None = None
) -> Iterator[Tile]:
    """Cuts a picture into tiles with margins, so that a network gives the same as for the whole picture.

    It does for a network whose results depend on the pixels around it, up to `radius` away, and are only
    shifted if the picture is shifted by `stride` pixels: each tile begins at a multiple of it. A picture with
    `most_pixels` or fewer is one tile. Larger ones are cut across, and along too where lines are long.

    Args:
        height: Lines of the picture.
        width: Its columns.
        radius: Width of the margin, at least.
        stride: What tiles begin at multiples of.
        most_pixels: Most pixels of a tile, with its margins. None: 2^18, or, where margins are wide, as many as
            leave half of each side between them.

    Raises:
        TypeError: An argument is no whole number.
        ValueError: An argument is too small, or there is no room for a pixel between the margins.

    Example:
        >>> for tile in tiles(20, 10, radius=2, most_pixels=140):
        ...     print(tile.seen[0], tile.kept[0], tile.inside[0])
        slice(0, 12, None) slice(0, 10, None) slice(0, 10, None)
        slice(8, 20, None) slice(10, 20, None) slice(2, 12, None)
    """
    for name, value, least in (
        ("height", height, 1),
        ("width", width, 1),
        ("radius", radius, 0),
        ("stride", stride, 1),
    ):
        require_count(name, value, least)
    margin = math.ceil(radius / stride) * stride
    if most_pixels is None:
        most_pixels = max(MOST_PIXELS, (4 * margin + stride) ** 2)
    require_count("most_pixels", most_pixels, 1)
    if height * width <= most_pixels:
        sides = [(height, width)]
    else:
        square = math.isqrt(most_pixels)
        band = most_pixels // width
        # Bands of whole lines, unless they would be nearly all margin.
        sides = [(band, width) if band >= min(4 * margin + stride, square) else (square, square)]
    (tall, broad) = sides[0]
    for rows in _cuts(height, tall, margin, stride, most_pixels):
        for columns in _cuts(width, broad, margin, stride, most_pixels):
            seen, kept, inside = zip(rows, columns, strict=True)
            yield Tile(seen, kept, inside)


def _cuts(
    length: int, most: int, margin: int, stride: int, most_pixels: int
) -> Iterator[tuple[slice, slice, slice]]:
    """What is seen, kept and inside along one side of which `most` pixels may be seen at once."""
    if most >= length:
        whole = slice(0, length)
        yield whole, whole, whole
        return
    room = (most - 2 * margin) // stride * stride
    if room < 1:
        raise ValueError(
            f"most_pixels={most_pixels} leaves no room in a tile between margins of {margin} pixels: choose at "
            f"least {(2 * margin + stride) ** 2}"
        )
    count = math.ceil(length / room)
    room = math.ceil(length / count / stride) * stride  # tiles of about the same size
    for start in range(0, length, room):
        end = min(start + room, length)
        first, last = max(0, start - margin), min(length, end + margin)
        yield slice(first, last), slice(start, end), slice(start - first, end - first)
