"""Pictures that are larger than those of a model: the codes in the middle of them know what is around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.networks import PictureEncoder, PyramidEncoder
from ppl_vae.pairs import DataLike


class Around(NamedTuple):
    """Pictures, and which of their codes are those of a model.

    Attributes:
        pictures: `(n, *channels, H, W)`.
        top: Lines of pixels above those of the model.
        left: Columns of pixels beside them.
    """

    pictures: Tensor
    top: int
    left: int

    @torch.no_grad()
    def codes(
        self, guide: Any, rows: slice, grids: Sequence[tuple[int, ...]], device: Any
    ) -> list[Tensor]:
        """The codes in the middle of some of the pictures, `(n, *grid)` for each grid, from the lowest."""
        found: list[Tensor] = []
        z = guide.codes(self.pictures[rows].to(device))
        for each, (height, width, *_) in zip(
            [z] if isinstance(z, Tensor) else z, grids, strict=True
        ):
            stride = self.pictures.shape[-1] // each.shape[2]
            top, left = self.top // stride, self.left // stride
            found.append(each[:, top : top + height, left : left + width])
        return found


def margins(guide: Any) -> range:
    """By how many pixels on each side pictures may be larger than the model's, for `refit_prior`.

    Args:
        guide: A guide of codes.

    Returns:
        All margins, from the one beyond which the codes in the middle see nothing: multiples of what a position
        of the coarsest grid stands for. Empty if the guide draws its codes, or does not encode pictures of any
        size.

    Example:
        >>> from ppl_vae.guides import QuantizingEncoder
        >>> from ppl_vae.models import VQVAE
        >>> from ppl_vae.networks import ConvolutionalGrid
        >>> network = ConvolutionalGrid(channels=8, halvings=2, blocks=1)  # sees 11 pixels
        >>> list(margins(QuantizingEncoder(VQVAE((3, 16, 16), network=network), network)))
        [12, 8, 4]
    """
    encoder: Any = getattr(guide, "encoder", None)
    of_any_size = isinstance(encoder, PictureEncoder | PyramidEncoder)
    if not of_any_size or getattr(guide, "temperature", 0.0) > 0:
        return range(0)
    stride = encoder.stride
    return range(stride * math.ceil(encoder.radius / stride), 0, -stride)


def middle_of(model: Any, guide: Any, x: DataLike) -> tuple[DataLike, Around | None]:
    """The middle of pictures that are larger than the model's, and the pictures; others as they are.

    Raises:
        ValueError: They are larger by what has no middle.
    """
    rows, *rest = x if isinstance(x, tuple) else (x,)
    if not (isinstance(rows, Tensor) and margins(guide)):
        return x, None
    stride = -margins(guide).step
    shape, here = tuple(model.data_shape), tuple(rows.shape[1:])
    more = [own - of for own, of in zip(here[-2:], shape[-2:], strict=False)]
    fits = len(here) == len(shape) and here[:-2] == shape[:-2]
    if not fits or min(more) < 0 or not any(more):
        return x, None
    if any(side % (2 * stride) for side in more):
        raise ValueError(
            f"the pictures have {here[-2]} x {here[-1]} pixels, and those of {type(model).__name__} "
            f"{shape[-2]} x {shape[-1]}: larger ones must have a multiple of {2 * stride} pixels more in "
            "height and in width, so that their middle has the codes of a model's picture"
        )
    top, left = (side // 2 for side in more)
    middle = rows[..., top : top + shape[-2], left : left + shape[-1]].contiguous()
    around = Around(rows, top, left)
    return ((middle, *rest) if isinstance(x, tuple) else middle), around
