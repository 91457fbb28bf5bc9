"""What a code of colors consists of: which numbers come one after the other, and how probable each is."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from ppl_vae.coding import Coder, Writer, WrongFileError
from ppl_vae.coloring.model import ModelOfColors
from ppl_vae.coloring.pictures import fitted_shifts
from ppl_vae.colors import chroma_interval
from ppl_vae.distributions import ChromaLogistic, PottsGrid, PottsTree
from ppl_vae.networks import Tile, tiles

_AT_ONCE = 2**18
"""Probabilities that are computed at once. With another number a file has another order: a new version."""

_MOST_SHIFT = 8
"""Shifts further away from the mean of their prior are cut, in standard deviations."""


def code_picture(
    model: ModelOfColors, luma: Tensor, chroma: Tensor, coder: Coder, most_pixels: int
) -> None:
    """Writes the chroma of a picture, or reads it.

    Args:
        model: The model, in double precision.
        luma: Y, `(h, w)`.
        chroma: What is written, or filled, `(h, w, 2)`.
        coder: What writes or reads.
        most_pixels: Most pixels of a tile.

    Raises:
        ValueError: Nobody knows log P(y | x), or the model gives probabilities that are not finite.
        WrongFileError: What is read cannot have been written.
    """
    height, width = luma.shape
    parts = list(
        tiles(height, width, radius=model.radius, stride=model.stride, most_pixels=most_pixels)
    )
    shifts = _coded_shifts(model, luma, chroma, coder, most_pixels)
    for _, group in groupby(parts, key=lambda tile: tile.kept[0]):
        band = list(group)
        rows = band[0].kept[0]
        field, colors = _of_band(model, luma, shifts, band)
        _require_exact(model, field, luma)
        chroma_of_band = chroma[rows]
        likelihoods = None
        predictions = _predictions(field)
        while True:
            try:
                where, weights = predictions.send(likelihoods)
            except StopIteration:
                break
            likelihoods = _coded_pixels(
                luma[rows][where], chroma_of_band[where], weights[0], colors[where], coder
            )[None]


def _coded_shifts(
    model: ModelOfColors, luma: Tensor, chroma: Tensor, coder: Coder, most_pixels: int
) -> Tensor | None:
    """Those of the picture, on a grid, `(1, K, 2)`; None if colors are not latent."""
    prior = model.shifts_prior()
    if prior is None:
        return None
    mean, spread = prior.mean, prior.stddev
    fine = 2 ** round(math.log2(1 + luma.numel() / model.segments) / 2)
    most = _MOST_SHIFT * fine
    found = torch.zeros_like(mean)
    if isinstance(coder, Writer):
        best = cast(Tensor, fitted_shifts(model, luma, chroma, most_pixels, torch.float64))[0]
        found = ((best - mean) / spread * fine).nan_to_num().round().clamp(-most, most)
    found = coder.normal(found.flatten(), float(fine), most).reshape(mean.shape).to(mean)
    shifts: Tensor = mean + spread * (found / fine)
    return shifts[None]


def _of_band(
    model: ModelOfColors, luma: Tensor, shifts: Tensor | None, band: list[Tile]
) -> tuple[Any, Tensor]:
    """P(z | x) of some whole lines, and what P(y_i | z_i = k, x) is made of, `(rows, width, K, 5)`."""
    unary, colors = [], []
    for tile in band:
        x = luma[tile.seen].double()[None]
        unary.append(model.unary(x)[0][tile.inside])
        p = model.color_components(x, shifts)
        made_of = torch.cat([p.loc, p.scale, p.slope.unsqueeze(-1)], -1)
        colors.append(made_of.expand(*p.batch_shape, -1)[0][tile.inside])
    x = luma[band[0].kept[0]].double()[None]
    return model.field(torch.cat(unary, 1)[None], x), torch.cat(colors, 1)


def _require_exact(model: ModelOfColors, field: Any, luma: Tensor) -> None:
    """Raises an error if P(y | x) is not known, pixel by pixel."""
    if isinstance(field, PottsTree):
        raise ValueError(
            f"{type(model).__name__}: colors are written pixel by pixel, and for trees of superpixels there "
            "is no such order: use ScanLineSegments or IndependentSegments"
        )
    if isinstance(field, PottsGrid) and not (field.is_exact and field.event_shape == luma.shape):
        raise ValueError(
            f"{type(model).__name__}: the colors of {luma.shape[0]} x {luma.shape[1]} pixels with "
            f"{model.segments} segments cannot be written, as nobody knows log P(y | x) of a Potts field on a "
            "grid that wide: use ScanLineSegments or IndependentSegments"
        )


def _predictions(field: Any) -> Any:
    """As `PottsField.predictions`; independent pixels say nothing of each other, and are one group."""
    if hasattr(field, "predictions"):
        yield from field.predictions()
    else:
        yield (slice(None), slice(None)), field.base_dist.logits


def _coded_pixels(
    luma: Tensor, chroma: Tensor, log_weights: Tensor, colors: Tensor, coder: Coder
) -> Tensor:
    """Writes pixels that are independent, or reads them into `chroma`.

    Args:
        luma: Y, `(h, w)`.
        chroma: (Co, Cg), `(h, w, 2)`.
        log_weights: Those of their segments, `(h, w, K)`.
        colors: Locations, scales and slope, `(h, w, K, 5)`.
        coder: What writes or reads.

    Returns:
        log P(y_i | z_i = k), `(h, w, K)`.
    """
    level, y = luma.flatten().double(), chroma.reshape(-1, 2).double()
    log_w, made_of = log_weights.flatten(0, 1), colors.flatten(0, 1)
    found = torch.empty_like(log_w)
    room = chroma_interval(level)[1] - chroma_interval(level)[0]
    at_once = max(1, _AT_ONCE // (512 * log_w.shape[-1]))
    # Pixels with as much room are neighbors, so that tables have few columns for nothing.
    for part in room.argsort(stable=True).split(at_once):
        loc, scale, slope = made_of[part].split([2, 2, 1], -1)
        p = ChromaLogistic(
            level[part].unsqueeze(-1), loc, scale, slope.squeeze(-1), validate_args=False
        )
        of_green = p.of_green()
        green = _coded(y[part, 1], of_green, log_w[part], coder)
        log_p = of_green.log_prob(green.unsqueeze(-1))
        of_orange = p.of_orange(green.unsqueeze(-1))
        orange = _coded(y[part, 0], of_orange, log_w[part] + log_p, coder)
        y[part] = torch.stack([orange, green], -1)
        found[part] = log_p + of_orange.log_prob(orange.unsqueeze(-1))
    chroma.copy_(y.reshape(chroma.shape))
    return found.reshape(log_weights.shape)


def _coded(values: Tensor, p: Any, log_weights: Tensor, coder: Coder) -> Tensor:
    """Writes one channel, or reads it: a mixture of logistic distributions."""
    least, room = p.least[..., 0], (p.greatest - p.least)[..., 0]
    count = max(2, int(room.max()) + 1)  # the coder knows no distribution of one value
    tables = (log_weights.softmax(-1).unsqueeze(-1) * p.masses(count)).sum(-2)
    if not bool(tables.isfinite().all()):
        raise ValueError(
            "the model gives colors probabilities that are not finite: look at its parameters, or train it "
            "again"
        )
    numbers = coder.categorical((values - least).round(), tables)
    if bool((numbers > room).any()):
        raise WrongFileError
    found: Tensor = numbers + least
    return found
