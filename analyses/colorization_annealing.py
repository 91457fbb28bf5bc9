"""The annealed mean of colors, between their mean and their mode, for `colorization_files.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_vae.coloring import ModelOfColors
from ppl_vae.colors import chroma_interval, luma_after_green
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.networks import tiles
from ppl_vae.pairs import marginals_of

STEP = 8
"""Levels from one entry of the table of chroma to the next."""

_AT_ONCE = 2**22
"""Numbers of a table that are computed at once, at most."""


def annealed_mean(
    model: ModelOfColors, luma: Tensor, temperature: float, most_pixels: int = 2**18
) -> Tensor:
    """The mean of P(y_i | x)^(1 / T), normalized again, of each pixel.

    At T = 1 it is the mean, and toward T = 0 the likeliest entry of the table ("Colorful Image Colorization",
    Zhang, Isola and Efros, arXiv:1603.08511, equation 5). P(y_i | x) is the whole mixture,

        sum_k P(z_i = k | x) P(y_i | z_i = k, x),

    on a table of Co and Cg in steps of 8 levels: the mass of each cell, cut to what the luma leaves room for.
    Where colors are latent, it is that at the middle of their prior, with shifts of 0.

    Args:
        model: A model of colors.
        luma: Y, `(h, w)`.
        temperature: T, above 0.
        most_pixels: Most pixels that go through the networks at once.

    Returns:
        (Co, Cg), float32, `(h, w, 2)`.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    height, width = luma.shape
    found = torch.empty(height, width, 2)
    prior = model.shifts_prior()
    shifts = None if prior is None else torch.zeros_like(prior.mean)[None]
    for tile in tiles(
        height, width, radius=model.radius, stride=model.stride, most_pixels=most_pixels
    ):
        with torch.no_grad():
            x = luma[tile.seen].float()[None]
            field = model.prior(x)
            try:
                weights = marginals_of(field)
            except NotImplementedError:  # a grid that is too wide
                weights = marginals_of(field.mean_field())
            p = model.color_components(x, shifts)
            p = p.expand(weights.shape)
            of_each, loc, scale, slope = (
                of[0][tile.inside].flatten(0, 1) for of in (weights, p.loc, p.scale, p.slope)
            )
            level = x[0][tile.inside].flatten()
            of_tile = _of_pixels(level, of_each, loc, scale, slope, temperature)
        rows, columns = tile.kept
        found[tile.kept] = of_tile.reshape(
            rows.stop - rows.start, columns.stop - columns.start, 2
        ).float()
    return found


def _of_pixels(
    luma: Tensor, weights: Tensor, loc: Tensor, scale: Tensor, slope: Tensor, temperature: float
) -> Tensor:
    """That of pixels in any order, `(n, 2)`, some of them at once."""
    found = torch.empty(len(luma), 2, dtype=luma.dtype)
    # Pixels of about the same luma have about as much room, so that their tables are no larger than they must.
    order = luma.argsort(stable=True)
    entries = (512 // STEP + 1) ** 2 * weights.shape[-1]
    for part in order.split(max(1, _AT_ONCE // entries)):
        components = ChromaLogistic(
            luma[part].unsqueeze(-1), loc[part], scale[part], slope[part], validate_args=False
        )
        log_p, centers = table(weights[part], components)
        p = (log_p / temperature).flatten(1).softmax(1)
        found[part] = torch.einsum("ne,nec->nc", p, centers.flatten(1, 2))
    return found


def table(weights: Tensor, components: ChromaLogistic) -> tuple[Tensor, Tensor]:
    """log P(y_i | x) of each cell of chroma, and where the cells are.

    A cell reaches 4 levels to each side of its center, a multiple of 8, as far as there is room. The mass of Cg
    is exact; that of Co is the one beside the center of the cell in Cg.

    Args:
        weights: P(z_i = k | x), `(n, K)`.
        components: P(y_i | z_i = k, x), of batch shape `(n, K)`.

    Returns:
        The logarithms, `(n, greens, oranges)`, and (Co, Cg), `(n, greens, oranges, 2)`.
    """
    level = components.luma[:, :1]
    least, greatest = chroma_interval(level)
    greens = _grid(least, greatest)
    log_green = _log_masses(
        components.loc[..., 1:],
        components.scale[..., 1:],
        least.unsqueeze(-1),
        greatest.unsqueeze(-1),
        greens,
    )  # (n, K, greens)
    green = torch.minimum(torch.maximum(greens, least), greatest)  # (n, greens)
    low, high = chroma_interval(luma_after_green(level, green.round()))
    oranges = _grid(low, high)
    away = green.unsqueeze(1) - components.loc[..., 1:]
    at = components.loc[..., :1] + components.slope.unsqueeze(-1) * away  # (n, K, greens)
    log_orange = _log_masses(
        at.unsqueeze(-1),
        components.scale[..., 0, None, None],
        low[:, None, :, None],
        high[:, None, :, None],
        oranges,
    )
    log_w = weights.log()[..., None, None]
    log_p = (log_w + log_green.unsqueeze(-1) + log_orange).logsumexp(1)
    orange = torch.minimum(torch.maximum(oranges, low.unsqueeze(-1)), high.unsqueeze(-1))
    centers = torch.stack([orange, green.unsqueeze(-1).expand_as(orange)], -1)
    return log_p, centers


def _grid(least: Tensor, greatest: Tensor) -> Tensor:
    """All multiples of the step whose cells have room in any of the intervals."""
    first = torch.floor((least.min() - 0.5) / STEP + 0.5)
    last = torch.ceil((greatest.max() + 0.5) / STEP - 0.5)
    return STEP * torch.arange(float(first), float(last) + 1, dtype=least.dtype)


def _log_masses(
    loc: Tensor, scale: Tensor, least: Tensor, greatest: Tensor, centers: Tensor
) -> Tensor:
    """log of the mass of each cell of a cut logistic distribution, `(*batch, cells)`; -inf without room.

    From s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)) in logarithms, exact at any distance.
    """
    bottom, top = least - 0.5, greatest + 0.5
    edges = torch.cat([centers - STEP / 2, centers[-1:] + STEP / 2])
    edges = torch.minimum(torch.maximum(edges, bottom), top)
    u = (edges - loc) / scale
    log_p = (
        logsigmoid(u[..., 1:]) + logsigmoid(-u[..., :-1]) + _log_width(edges.diff(dim=-1) / scale)
    )
    of_all = logsigmoid((top - loc) / scale) + logsigmoid((loc - bottom) / scale)
    return log_p - of_all - _log_width((top - bottom) / scale)


def _log_width(d: Tensor) -> Tensor:
    """log(1 - exp(-d)); -inf for d = 0."""
    return (-torch.expm1(-d)).log()
