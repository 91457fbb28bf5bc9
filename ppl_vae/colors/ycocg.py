"""YCoCg-R: red, green and blue as luma and two numbers of chroma, integers on both sides, without loss."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256
"""Values of red, of green, of blue, and of the luma."""


def split_colors(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Luma Y and chroma (Co, Cg) of colors with 8 bits per channel, by the lifting steps of YCoCg-R.

        Co = R - B,    t = B + floor(Co / 2),    Cg = G - t,    Y = t + floor(Cg / 2)

    Y is in 0, ..., 255, Co (orange against blue) and Cg (green against purple) are in -255, ..., 255; all three
    are 0 but for Y if the color is gray ("YCoCg-R: A Color Space with RGB Reversibility and Low Dynamic Range",
    Malvar and Sullivan, JVT-I014r3, 2003). `to_rgb` is the inverse, so that a probability of (Y, Co, Cg) is one
    of (R, G, B).

    Args:
        rgb: Colors of whole numbers from 0 to 255, `(*batch, 3)`.

    Returns:
        The luma, `(*batch)`, and the chroma, `(*batch, 2)`, both int16.

    Raises:
        ValueError: The last dimension does not hold three numbers, or the numbers are no bytes.

    Example:
        >>> split_colors(torch.tensor([255, 0, 0], dtype=torch.uint8))
        (tensor(63, dtype=torch.int16), tensor([ 255, -127], dtype=torch.int16))
    """
    if rgb.dim() == 0 or rgb.shape[-1] != 3:
        raise ValueError(f"colors need the shape (*batch, 3), got {tuple(rgb.shape)}")
    if rgb.dtype != torch.uint8 and rgb.numel():
        bytes_only = (rgb >= 0) & (rgb < LEVELS) & (rgb == rgb.floor())
        if not bytes_only.all():
            raise ValueError(
                f"colors must be whole numbers from 0 to {LEVELS - 1}, got numbers from {rgb.min():g} to "
                f"{rgb.max():g}: multiply values from 0 to 1 by {LEVELS - 1} and round them"
            )
    red, green, blue = rgb.to(torch.int16).unbind(-1)
    orange = red - blue
    t = blue + (orange >> 1)
    green = green - t
    return t + (green >> 1), torch.stack([orange, green], -1)


def to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """The colors of luma and chroma: the inverse of `split_colors`.

        t = Y - floor(Cg / 2),    G = Cg + t,    B = t - floor(Co / 2),    R = B + Co

    Chroma that a luma leaves no room for is brought to the next color that there is, channel by channel.

    Args:
        luma: Y, `(*batch)`; rounded.
        chroma: (Co, Cg), `(*batch, 2)`; rounded.

    Returns:
        Red, green and blue, uint8, `(*batch, 3)`.

    Example:
        >>> to_rgb(torch.tensor([63, 128]), torch.tensor([[255, -127], [0, 0]]))
        tensor([[255,   0,   0],
                [128, 128, 128]], dtype=torch.uint8)
    """
    orange, green = _whole(chroma).unbind(-1)
    t = luma_after_green(_whole(luma), green)
    blue = t - (orange >> 1)
    return torch.stack([blue + orange, green + t, blue], -1).clamp(0, LEVELS - 1).to(torch.uint8)


def possible_chroma(luma: Tensor, chroma: Tensor) -> Tensor:
    """The next chroma that a luma leaves room for, int32: first Cg, then Co given it.

    So the luma of the color is this luma, which is not so if red, green and blue are cut.

    Args:
        luma: Y, whole numbers from 0 to 255, `(*batch)`.
        chroma: (Co, Cg), any numbers, `(*batch, 2)`; rounded.

    Example:
        >>> possible_chroma(torch.tensor([0, 128]), torch.tensor([[30.0, 7.2], [-3.0, 4.0]]))
        tensor([[ 1,  1],
                [-3,  4]], dtype=torch.int32)
    """
    level = _whole(luma)
    orange, green = _whole(chroma).unbind(-1)
    least, most = chroma_interval(level)
    green = torch.minimum(torch.maximum(green, least), most)
    least, most = chroma_interval(luma_after_green(level, green))
    orange = torch.minimum(torch.maximum(orange, least), most)
    return torch.stack([orange, green], -1)


def luma_after_green(luma: Tensor, green: Tensor) -> Tensor:
    """t = Y - floor(Cg / 2), the mean of red and blue, rounded down: what Co leaves room for depends on it.

    Args:
        luma: Y, `(*batch)`, whole numbers, of any kind: of bytes and short integers it is one of int32.
        green: Cg, of the same shape.

    Example:
        >>> luma_after_green(torch.tensor([63]), torch.tensor([-127]))
        tensor([127])
    """
    return _signed(luma) - torch.div(_signed(green), 2, rounding_mode="floor")


def chroma_interval(level: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest chroma that a level leaves room for, so that red, green and blue are in 0, ..., 255.

    For the level Y these are those of Cg; for t = Y - floor(Cg / 2), those of Co. All whole numbers between
    them are possible, and only these: max(-2 l - 1, 2 (l - 255)) and min(2 l + 1, 2 (255 - l)).

    Args:
        level: l, whole numbers from 0 to 255, of any shape and kind.

    Returns:
        Two tensors of that shape and kind; of bytes and short integers, which have no room for them, int32.

    Example:
        >>> chroma_interval(torch.tensor([0, 127, 255]))
        (tensor([  -1, -255,    0]), tensor([  1, 255,   0]))
    """
    level = _signed(level)
    room = 2 * (LEVELS - 1 - level)
    least = torch.maximum(-2 * level - 1, -room)
    return least, torch.minimum(2 * level + 1, room)


def _signed(values: Tensor) -> Tensor:
    """Integers as int32 at least, so that nothing overflows; other numbers as they are."""
    return values.to(torch.promote_types(values.dtype, torch.int32))


def _whole(values: Tensor) -> Tensor:
    values = values.round() if values.is_floating_point() else values
    return values.to(torch.int32)
