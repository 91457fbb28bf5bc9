"""Gray pictures with known segments: regions with a texture and shading, made here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.runtime import require_count, require_seed


def simulated_regions(
    count: int, size: int = 32, segments: int = 4, seed: int = 0, regions: int = 6
) -> tuple[Tensor, Tensor]:
    """Gray pictures of regions, each of a kind of segment with a luma and a texture of its own.

    A region is all that is nearest to one of some random points. Kind k has stripes of its own direction,
    around a luma that differs little from kind to kind; a shading over the whole picture and noise come on top,
    so that the luma of a single pixel says little about its segment, and the pixels around it much. Colors come
    from a model: `model.decode(z, x).sample()`.

    Args:
        count: Number n of pictures.
        size: Their side in pixels.
        segments: Number K of kinds of segments.
        seed: Seed of the draws.
        regions: Number of regions of a picture.

    Returns:
        The segments, 0, ..., K - 1, `(n, size, size)`, and the luma, whole numbers from 0 to 255, float32,
        `(n, size, size)`.

    Raises:
        TypeError: An argument is no whole number.
        ValueError: An argument is not positive.

    Example:
        >>> z, x = simulated_regions(count=2, size=8)
        >>> z.shape, x.shape, bool((x == x.round()).all())
        (torch.Size([2, 8, 8]), torch.Size([2, 8, 8]), True)
    """
    for name, value in (
        ("count", count),
        ("size", size),
        ("segments", segments),
        ("regions", regions),
    ):
        require_count(name, value, 1)
    require_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    line = torch.arange(size, dtype=torch.float32)
    down, right = torch.meshgrid(line, line, indexing="ij")
    points = size * torch.rand(count, regions, 2, generator=generator)
    kinds = torch.randint(segments, (count, regions), generator=generator)
    place = torch.stack([down, right], -1).reshape(1, -1, 2).expand(count, -1, -1)
    nearest = torch.cdist(place, points).argmin(-1)
    z = kinds.gather(1, nearest).reshape(count, size, size)
    angle = math.pi * z / segments
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    stripes = torch.sin((down * angle.cos() + right * angle.sin()) * (2 * math.pi / 5) + phase)
    slope = 0.5 * torch.randn(count, 2, 1, 1, generator=generator)
    shading = slope[:, 0] * (down - size / 2) + slope[:, 1] * (right - size / 2)
    noise = torch.randn(count, size, size, generator=generator)
    luma = 120.0 + 4.0 * z + 20.0 * stripes + shading + 3.0 * noise
    return z, luma.round().clamp(0, 255)
