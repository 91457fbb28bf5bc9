"""color_picture() and segment_picture(): what a model of colors makes of a gray picture of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ppl_vae.coloring.mixtures import mean_of_mixture, mode_of_mixture
from ppl_vae.coloring.model import ModelOfColors
from ppl_vae.colors import possible_chroma, split_colors, to_rgb
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.networks import MOST_PIXELS, tiles
from ppl_vae.pairs import marginals_of
from ppl_vae.runtime import (
    described,
    device_of,
    preserve_random_state,
    require_count,
    seed_everything,
)

_MOST_SEGMENTS = 256
"""Most segments that a byte per pixel can tell apart."""

_SHIFTS = 16
"""Draws of latent colors that the mean is averaged over."""


@dataclass(frozen=True, eq=False)
class Coloring:
    """Colors for a gray picture of h x w pixels.

    Attributes:
        luma: The gray picture Y, int16, `(h, w)`.
        mean: E[y | x], the chroma (Co, Cg) of least expected squared error, float32, `(h, w, 2)`.
        mode: The likeliest chroma of each pixel among the modes of its segments, int16, `(h, w, 2)`.
        draws: Drawn from P(y | x), each with a segmentation of its own, int16, `(draws, h, w, 2)`.
        segments: The likeliest segment of each pixel given the gray picture, uint8, `(h, w)`.
    """

    luma: Tensor
    mean: Tensor
    mode: Tensor
    draws: Tensor
    segments: Tensor

    def rgb(self, chroma: Tensor) -> Tensor:
        """The gray picture with this chroma, uint8, `(*batch, h, w, 3)`: its luma is that of the gray picture.

        Chroma that is not whole, or that the luma leaves no room for, is brought to the next that there is.

        Args:
            chroma: `mean`, `mode`, `draws` or others, `(*batch, h, w, 2)`.
        """
        luma = self.luma.expand(chroma.shape[:-1])
        return to_rgb(luma, possible_chroma(luma, chroma))


def color_picture(
    model: ModelOfColors,
    luma: Tensor,
    *,
    longest: int | None = None,
    draws: int = 0,
    seed: int = 0,
    most_pixels: int = MOST_PIXELS,
) -> Coloring:
    """Colors a gray picture.

    With P(z_i = k | x), the marginals of the segments, P(y_i | x) is a mixture with a component for each
    segment: the mean is its mean, the mode the likeliest of the modes of its components under the mixture. A
    draw takes one segmentation of the whole picture from P(z | x), and the colors of each pixel given it.

    A large picture is colored tile by tile, see `tiles`: with the same result for pixels that are independent
    given x; what segments of other tiles would say of those at the edge of one is left out, and superpixels are
    those of the tile. So the memory does not grow with the picture, but for what is returned. Where colors are
    latent, one draw of them is that of all tiles; the mean is that over 16 draws, the mode is at their mode. Of
    a wide grid of neighbors (`PottsSegments`) the marginals are those of its mean field.

    Args:
        model: A model of colors, such as `IndependentSegments`.
        luma: Y, whole numbers from 0 to 255, `(h, w)`.
        longest: The size at which colors are found, the longest side in pixels: a larger picture is reduced to
            it, and chroma and segments are enlarged to the picture, whose own luma is kept. A model that has
            learned on small photos sees more of a large one then. None takes the picture as it is.
        draws: How many colorings are drawn.
        seed: Seed of the draws.
        most_pixels: Most pixels of a tile.

    Raises:
        TypeError: The picture is no tensor, or `longest` or `draws` is no whole number.
        ValueError: The picture has another shape or no pixels, or numbers that are no bytes; `longest` is not
            positive, or the model has more segments than a byte can tell apart.

    Example:
        >>> from ppl_vae.models import IndependentSegments
        >>> from ppl_vae.networks import MOST_PIXELS, tiles, UNet
        >>> model = IndependentSegments(segments=3, network=UNet((4, 8)))
        >>> found = color_picture(model, torch.full((17, 30), 128.0), draws=2)
        >>> found.mean.shape, found.rgb(found.draws).shape
        (torch.Size([17, 30, 2]), torch.Size([2, 17, 30, 3]))
    """
    require_count("draws", draws, 0)
    luma = as_bytes(luma)
    small = _reduced(luma, longest)
    found = _colored(model, small, draws, seed, most_pixels)
    if small.shape == luma.shape:
        return found
    size = tuple(luma.shape)
    return Coloring(
        luma,
        _enlarged(found.mean, size),
        _enlarged(found.mode, size),
        torch.stack([_enlarged(each, size) for each in found.draws])
        if draws
        else found.draws.new_empty(0, *size, 2),
        _repeated(found.segments, size),
    )


def _colored(
    model: ModelOfColors, luma: Tensor, draws: int, seed: int, most_pixels: int
) -> Coloring:
    """A picture at its own size."""
    height, width = luma.shape
    mean = torch.empty(height, width, 2)
    mode = torch.empty(height, width, 2, dtype=torch.int16)
    segments = torch.empty(height, width, dtype=torch.uint8)
    drawn = torch.empty(draws, height, width, 2, dtype=torch.int16)
    with applied(model, seed) as device:
        prior = model.shifts_prior()
        shifts = None if prior is None else prior.sample((max(_SHIFTS, draws),))
        for tile in _tiles(model, luma, most_pixels):
            x = luma[tile.seen].to(device).float()[None]
            field = model.prior(x)
            weights = _marginals(field)
            mixtures = [
                model.color_components(x, None if c is None else c[None])
                for c in ([None] if shifts is None else shifts[:_SHIFTS])
            ]
            at_mode = (
                model.color_components(x, shifts.new_zeros(1, *shifts.shape[1:]))
                if shifts is not None
                else mixtures[0]
            )
            mean[tile.kept] = mean_of_mixture(weights, mixtures, x)[0][tile.inside].cpu()
            mode[tile.kept] = mode_of_mixture(weights, at_mode, x)[0][tile.inside].short().cpu()
            segments[tile.kept] = weights.argmax(-1)[0][tile.inside].byte().cpu()
            for i, z in enumerate(field.sample((draws,)) if draws else ()):
                c = None if shifts is None else shifts[i][None]
                y = model.decode(z, x, c).sample()
                drawn[i][tile.kept] = y[0][tile.inside].short().cpu()
    return Coloring(luma, mean, mode, drawn, segments)


def segment_picture(
    model: ModelOfColors,
    luma: Tensor,
    chroma: Tensor | None = None,
    *,
    longest: int | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Tensor:
    """The likeliest segment of each pixel, by the marginals of P(z | x), or of P(z | x, y) if y is given.

    Args:
        model: A model of colors, such as `IndependentSegments`.
        luma: Y, whole numbers from 0 to 255, `(h, w)`.
        chroma: (Co, Cg), `(h, w, 2)`.
        longest: The size at which segments are found, as for `color_picture`.
        most_pixels: Most pixels of a tile, as for `color_picture`.

    Returns:
        Segments, uint8, `(h, w)`.

    Raises:
        TypeError: The luma or the chroma is no tensor, or `longest` is no whole number.
        ValueError: The shapes do not fit together, the luma has numbers that are no bytes, or it leaves no room
            for the chroma; `longest` is not positive, or the model has more segments than a byte can tell
            apart.

    Example:
        >>> from ppl_vae.models import IndependentSegments
        >>> from ppl_vae.networks import MOST_PIXELS, tiles, UNet
        >>> model = IndependentSegments(segments=3, network=UNet((4, 8)))
        >>> segment_picture(model, torch.full((17, 30), 128.0), torch.zeros(17, 30, 2)).shape
        torch.Size([17, 30])
    """
    luma = as_bytes(luma)
    chroma = None if chroma is None else as_chroma(luma, chroma)
    _require_longest(longest)
    size = tuple(luma.shape)
    if longest is not None and max(size) > longest:
        if chroma is None:
            luma = _reduced(luma, longest)
        else:
            rgb = _resized(to_rgb(luma, chroma).movedim(-1, 0), longest).movedim(0, -1)
            luma, chroma = split_colors(rgb.round().clamp(0, 255).to(torch.uint8))
    segments = torch.empty(luma.shape, dtype=torch.uint8)
    with applied(model) as device:
        shifts = None if chroma is None else fitted_shifts(model, luma, chroma, most_pixels)
        for tile in _tiles(model, luma, most_pixels):
            x = luma[tile.seen].to(device).float()[None]
            if chroma is None:
                field = model.prior(x)
            else:
                y = chroma[tile.seen].to(device).float()[None]
                field = model.conditioned(y, x, shifts=shifts)
            segments[tile.kept] = _marginals(field).argmax(-1)[0][tile.inside].byte().cpu()
    return _repeated(segments, size)


def fitted_shifts(
    model: ModelOfColors,
    luma: Tensor,
    chroma: Tensor,
    most_pixels: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """The latent colors of a whole picture, `(1, K, 2)`, from every so many of its pixels; None if it has none.

    Call it inside of `applied`.
    """
    if model.shifts_prior() is None:
        return None
    device = device_of(cast(nn.Module, model).parameters())
    step = math.ceil(math.sqrt(luma.numel() / most_pixels))  # any that are near will do
    y, x = (of[::step, ::step].to(device, dtype)[None] for of in (chroma, luma))
    return model.fit_shifts(y, x)[0]


def _reduced(luma: Tensor, longest: int | None) -> Tensor:
    """The luma with no side longer than this."""
    _require_longest(longest)
    if longest is None or max(luma.shape) <= longest:
        return luma
    return _resized(luma[None], longest)[0].round().clamp(0, 255).short()


def _require_longest(longest: int | None) -> None:
    if longest is not None:
        require_count("longest", longest, 1)


def _resized(channels: Tensor, longest: int) -> Tensor:
    """Channels `(c, h, w)` reduced to this longest side, each pixel a mean of those that it covers."""
    share = longest / max(channels.shape[1:])
    size = [max(1, round(side * share)) for side in channels.shape[1:]]
    return interpolate(channels[None].float(), size, mode="area")[0]


def _enlarged(chroma: Tensor, size: Sequence[int]) -> Tensor:
    """Chroma `(h, w, 2)` at another size, in its dtype."""
    channels = chroma.movedim(-1, 0)[None].float()
    found = interpolate(channels, list(size), mode="bilinear", align_corners=False)[0].movedim(
        0, -1
    )
    return found if chroma.is_floating_point() else found.round().to(chroma.dtype)


def _repeated(segments: Tensor, size: Sequence[int]) -> Tensor:
    """Segments `(*batch, h, w)` at another size."""
    if tuple(segments.shape[-2:]) == tuple(size):
        return segments
    rows, columns = (
        (torch.arange(new) * old // new) for new, old in zip(size, segments.shape[-2:], strict=True)
    )
    return segments[..., rows[:, None], columns]


def require_few_segments(model: ModelOfColors) -> None:
    """Raises an error for a model with more segments than a byte per pixel can tell apart.

    A picture of segments is one of bytes, and a palette in a PNG file has 256 colors. So it is better asked
    before a training than after it.

    Args:
        model: A model of colors.

    Raises:
        ValueError: It has more than 256 segments.
    """
    if model.segments > _MOST_SEGMENTS:
        raise ValueError(
            f"pictures of segments hold numbers up to {_MOST_SEGMENTS - 1}, and this {type(model).__name__} "
            f"has {model.segments} segments: use fewer"
        )


@contextmanager
def applied(model: ModelOfColors, seed: int = 0) -> Iterator[torch.device]:
    """The model in evaluation mode, without gradients, with draws of its own; gives its device."""
    require_few_segments(model)
    module = cast(nn.Module, model)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), preserve_random_state():
            seed_everything(seed)
            yield device_of(module.parameters())
    finally:
        module.train(was_training)


def _tiles(model: ModelOfColors, luma: Tensor, most_pixels: int) -> Any:
    height, width = luma.shape
    return tiles(height, width, radius=model.radius, stride=model.stride, most_pixels=most_pixels)


def _marginals(field: Any) -> Tensor:
    """P(z_i = k), `(n, h, w, K)`; of a grid that is too wide those of its mean field."""
    try:
        return marginals_of(field)
    except NotImplementedError:
        return marginals_of(field.mean_field())


def as_bytes(luma: Tensor) -> Tensor:
    """The luma as int16.

    Raises:
        TypeError: It is no tensor.
        ValueError: It is no picture of whole numbers from 0 to 255.
    """
    if not isinstance(luma, Tensor):
        raise TypeError(f"the luma must be a tensor of shape (h, w), got {described(luma)}")
    if luma.dim() != 2 or not luma.numel():
        raise ValueError(
            f"the luma of a picture must have the shape (h, w), with pixels, got {tuple(luma.shape)}"
        )
    if not bool(((luma >= 0) & (luma <= 255) & (luma == luma.round())).all()):
        raise ValueError(
            "the luma must be whole numbers from 0 to 255, as `ppl_vae.colors.split_colors` gives it, got "
            f"numbers from {luma.min():g} to {luma.max():g}"
        )
    return luma.short().cpu()


def as_chroma(luma: Tensor, chroma: Tensor) -> Tensor:
    """The chroma as int16, if all of its colors exist.

    Args:
        luma: The luma, from `as_bytes`.
        chroma: (Co, Cg) of each pixel.

    Raises:
        TypeError: It is no tensor.
        ValueError: It has another shape, or there is a pixel whose luma leaves no room for its chroma.
    """
    if not isinstance(chroma, Tensor):
        raise TypeError(f"chroma must be a tensor of shape (h, w, 2), got {described(chroma)}")
    if chroma.shape != (*luma.shape, 2):
        raise ValueError(
            f"chroma must have the shape {(*luma.shape, 2)}, (Co, Cg) of each pixel of the luma, got "
            f"{tuple(chroma.shape)}"
        )
    chroma = chroma.cpu()
    impossible = ~ChromaLogistic.room(luma).check(chroma)
    if bool(impossible.any()):
        row, column = impossible.nonzero()[0].tolist()
        raise ValueError(
            f"{int(impossible.sum())} pixels have chroma that their luma leaves no room for; the first is that "
            f"in row {row}, column {column}, with Y = {luma[row, column]} and (Co, Cg) = "
            f"{tuple(chroma[row, column].tolist())}: take both from `ppl_vae.colors.split_colors`"
        )
    return chroma.short()
