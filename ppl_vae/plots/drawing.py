"""Building blocks of the pictures in `ppl_vae.plots`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import colormaps, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import chi2, norm

from ppl_vae.runtime import described

Floats = NDArray[np.float64]


BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#8C8C8C"
GREEN, PINK, SKY = "#009E73", "#CC79A7", "#56B4E9"

LIGHT_BLUE = "#6CC0F5"
"""Blue on dark paper, where that of paper is hardly seen."""

YELLOW = "#F0E442"
"""In place of the sky's blue on dark paper, where blue is as light."""

LARGE, MEDIUM = 17, 15

MOST_COLORS = 20
"""Most whole numbers that have a color each."""

LONGEST = 4
"""How many times as long as wide a picture may be."""

SHARES = (0.95, 0.5)
"""Probability mass inside each contour."""


def ink() -> str:
    """The color of text in the style of now: black, or white in a dark one."""
    return to_hex(rcParams["text.color"])


def paper() -> str:
    """The color of the background in the style of now."""
    color = rcParams["axes.facecolor"]
    return "#FFFFFF" if color == "none" else to_hex(color)


def is_dark() -> bool:
    """Whether the style of now is light on dark."""
    return sum(to_rgb(paper())) < 1.5


def blue() -> str:
    """The blue of lines, bars and points in the style of now."""
    return LIGHT_BLUE if is_dark() else BLUE


def sky() -> str:
    """A light color beside `blue` in the style of now."""
    return YELLOW if is_dark() else SKY


def shade(share: float) -> str:
    """A color between the background (0) and the text (1)."""
    low, high = to_rgb(paper()), to_rgb(ink())
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(low, high, strict=True))
    return to_hex((red, green, blue))


def map_of_lines() -> LinearSegmentedColormap:
    """Viridis without the end that is near the background."""
    low, high = (0.25, 1.0) if is_dark() else (0.0, 0.9)
    return LinearSegmentedColormap.from_list(
        "lines", colormaps["viridis"](np.linspace(low, high, 64))
    )


def some_rows(n: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """The numbers of rows for a picture, in rising order: all, or `most` of them at random.

    The first rows of sorted data would all be of one kind.

    Example:
        >>> some_rows(3, 5), len(set(some_rows(1000, 5)))
        (array([0, 1, 2]), 5)
    """
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def highest_density(density: Floats) -> list[float]:
    """The densities at the edges of the smallest regions that hold the shares, on cells of one size."""
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) / falling.sum()
    return [float(falling[min(int((mass < share).sum()), len(falling) - 1)]) for share in SHARES]


def numpy_of(values: ArrayLike | torch.Tensor, name: str = "x", shape: str = "") -> Floats:
    """A tensor or an array as an array of doubles.

    Args:
        values: The numbers.
        name: What they are, for the message.
        shape: The shape that they must have, such as `(n, latent_dim)` or `(n, *event)`; empty: any.

    Raises:
        TypeError: They are no numbers.
        ValueError: They have another shape, or there are none.
    """
    given: object = values
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        if values is None:  # NumPy would take it for NaN
            raise TypeError
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {described(given)}") from error
    sizes = [size for size in shape.strip("()").replace(" ", "").split(",") if size]
    fits = found.ndim >= len(sizes) - 1 if "*event" in sizes else found.ndim == len(sizes)
    if shape and not (fits and found.ndim and found.size):
        raise ValueError(f"{name} must have the shape {shape}, without a 0, got {found.shape}")
    return found


def require_result(name: str, given: object, kind: type, source: str) -> None:
    """Raises a `TypeError` unless an argument is a result of ours.

    Args:
        name: The argument, for the message.
        given: What was given for it.
        kind: Its class.
        source: What makes such results.
    """
    if not isinstance(given, kind):
        raise TypeError(f"{name} must be what {source} has returned, got {described(given)}")


def require_history(history: object, name: str, keys: Collection[str]) -> None:
    """Raises an error unless a history is a list of mappings with numbers (or None) for their names.

    Args:
        history: What was given.
        name: The argument, for the message.
        keys: Names that each mapping must have.

    Raises:
        TypeError: It is something else.
        ValueError: A name is missing.
    """
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise TypeError(
            f"{name} must be a list of mappings, such as the history of a fit, got {described(history)}"
        )
    for place, row in enumerate(history):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}[{place}] must be a mapping, got {described(row)}")
        for key in keys:
            if key not in row:
                raise ValueError(f"{name}[{place}] has no {key!r}, only {', '.join(map(str, row))}")
        for key, value in row.items():
            if isinstance(value, str):
                raise TypeError(f"{name}[{place}][{key!r}] must be a number, got {value!r}")


def signed(value: torch.Tensor | float) -> str:
    """A tick label with one decimal and a sign."""
    return "0" if abs(float(value)) < 0.05 else f"{float(value):+.1f}"


def normal_quantiles(size: int) -> torch.Tensor:
    """The standard normal's quantiles at (i + 1/2) / size, `(size,)`."""
    z: torch.Tensor = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(size) + 0.5) / size)
    return z


def decode(decode_mean: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> Floats:
    """The means at `z`, without gradients."""
    if not callable(decode_mean):
        raise TypeError(
            "decode_mean must be a function from latents to means of p(x | z), got "
            f"{described(decode_mean)}"
        )
    with torch.no_grad():
        means = numpy_of(decode_mean(z), "what decode_mean returns", "(m, *event)")
    if len(means) != len(z):
        raise ValueError(f"decode_mean returned {len(means)} rows for {len(z)} latents")
    return means


def is_picture(x: Floats) -> bool:
    """Whether the rows of `x` are gray or RGB pictures: no narrow strips, such as steps of two numbers."""
    if x.ndim != 3 and not (x.ndim == 4 and x.shape[1] in (1, 3)):
        return False
    height, width = x.shape[-2:]
    return bool(max(height, width) <= LONGEST * min(height, width))


def value_range(x: Floats) -> tuple[float, float]:
    """The values shown as black and white: from 0, or the minimum if it is negative, to the maximum."""
    low, high = min(0.0, float(x.min(initial=0.0))), float(x.max(initial=0.0))
    return low, high if high > low else low + 1.0


def annotate(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Sets title and axis labels, in type sizes that are legible on a thumbnail."""
    axes.set_title(title, fontsize=LARGE)
    axes.set_xlabel(x, fontsize=LARGE)
    axes.set_ylabel(y, fontsize=LARGE)
    axes.tick_params(labelsize=MEDIUM)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(figure: Figure, panels: Iterable[Axes], more: str = "") -> None:
    """One legend for all panels, each label once; `more` is a line of its own."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if more:
        entries[more] = Line2D([], [], ls="")
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper center",
        ncols=_columns(list(entries), figure.get_figwidth()),
        fontsize=MEDIUM,
        frameon=False,
    )


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns a legend has, so that it is not wider than its figure, whose width is in inches."""
    if sum(map(len, labels)) + 5 * len(labels) < 45:
        return 3
    half = -(-len(labels) // 2)
    longest = sum(max(map(len, part), default=0) for part in (labels[:half], labels[half:]))
    return 2 if longest + 2 * 5 < width / (0.55 * MEDIUM / 72) else 1


def mosaic(
    axes: Axes, tiles: Floats, limits: tuple[float, float], beside: Sequence[Axes] | None = None
) -> None:
    """Draws pictures `(rows, columns, [channels,] height, width)` as one image; NaN shows the background.

    The center of the tile in row i and column j lies at (j, i), so that ticks can label tiles. Each has a thin
    frame: pictures with a black background would run together in a dark style, those with a white one on paper.
    The scale of gray stands beside `beside`: the axes alone, if that is None; nowhere, if it is empty.
    """
    if tiles.ndim == 4:
        tiles = tiles[:, :, None]
    rows, columns, channels, height, width = tiles.shape
    gap = max(1, width // 14)
    border = [(0, 0)] * 3 + [(gap, 0), (gap, 0)]
    spaced = np.pad(tiles, border, constant_values=np.nan)
    image = spaced.transpose(0, 3, 1, 4, 2).reshape(
        rows * (height + gap), columns * (width + gap), channels
    )
    image = np.pad(image, [(0, gap), (0, gap), (0, 0)], constant_values=np.nan)
    low, high = limits
    left, top = (gap + width / 2) / (width + gap), (gap + height / 2) / (height + gap)
    extent = (-left, columns - 1 + left, rows - 1 + top, -top)
    if channels == 3:
        image = np.where(
            np.isnan(image), to_rgb(paper()), np.clip((image - low) / (high - low), 0, 1)
        )
        axes.imshow(image, extent=extent, interpolation="nearest")
    else:
        picture = axes.imshow(
            np.ma.masked_invalid(image[:, :, 0]),
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=extent,
            interpolation="nearest",
        )
        panels = [axes] if beside is None else list(beside)
        if panels:
            bar = axes.figure.colorbar(
                picture, ax=panels, ticks=[low, high], format="%.3g", fraction=0.04, pad=0.01
            )
            bar.ax.tick_params(labelsize=MEDIUM)
    frames = []
    for i in range(rows):
        for j in range(columns):
            there = np.isfinite(tiles[i, j]).any(0)
            if not there.any():
                continue
            lines, across = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
            x = (
                j
                - 0.5 * width / (width + gap)
                + np.array([across[0], across[-1] + 1]) / (width + gap)
            )
            y = (
                i
                - 0.5 * height / (height + gap)
                + np.array([lines[0], lines[-1] + 1]) / (height + gap)
            )
            frames.append([(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])])
    axes.add_collection(LineCollection(frames, colors=shade(0.35), linewidths=0.8), autolim=False)
    axes.set_aspect((height + gap) / (width + gap))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def heat_maps(panels: Mapping[str, Floats]) -> Figure:
    """One heat map per title, all on one scale: rows downwards, flattened entries to the right; none of NaN.

    Few whole numbers, such as categories or counts, have a color each, and the scale is that of all panels.
    Else the first panel says what the scale is.
    """
    flat = {title: x.reshape(len(x), -1) for title, x in panels.items()}
    first = next(iter(flat.values()))
    low, high = float(first.min()), float(first.max())
    whole = _few_whole_numbers(list(flat.values()))
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    if whole is not None:
        low, high = whole
        edges = np.arange(low - 0.5, high + 1)
        colors = colormaps["viridis"].resampled(len(edges) - 1)
        scale = {"cmap": colors, "norm": BoundaryNorm(edges, colors.N)}
    figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
    row = figure.subplots(1, len(flat), sharey=True, squeeze=False)[0]
    for axes, (title, x) in zip(row, flat.items(), strict=True):
        image = axes.imshow(x, aspect="auto", interpolation="nearest", **scale)
        annotate(axes, title=title, x="dimension")
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    row[0].set_ylabel("row", fontsize=LARGE)
    bar = figure.colorbar(image, ax=row, aspect=15)
    bar.set_label("value", fontsize=LARGE)
    bar.ax.tick_params(labelsize=MEDIUM)
    if whole is None:
        bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    else:
        step = max(1, round((high - low) / 5))
        bar.set_ticks([*np.arange(low, high + 1, step)])
        bar.set_ticks([], minor=True)
        bar.ax.yaxis.set_major_formatter("{x:.0f}")
    return figure


def _few_whole_numbers(panels: Sequence[Floats]) -> tuple[int, int] | None:
    """The least and the largest of all values, if these are few whole numbers; else None."""
    if not all(np.array_equal(x, np.round(x)) for x in panels):
        return None
    low, high = (int(f([f(x) for x in panels])) for f in (np.min, np.max))
    return (low, high) if high - low < MOST_COLORS else None


def curve_cells(axes: Axes, tiles: Floats) -> None:
    """Draws curves `(rows, columns, *event)` in the cells of a grid, all on one scale of values."""
    rows, columns = tiles.shape[:2]
    curves = tiles.reshape(rows, columns, -1)
    low, high = float(curves.min()), float(curves.max())
    height = 0.8 * ((curves - low) / max(high - low, 1e-12) - 0.5)
    across = np.linspace(-0.4, 0.4, curves.shape[-1])
    lines = [
        np.stack([j + across, i - height[i, j]], -1) for i in range(rows) for j in range(columns)
    ]
    axes.add_collection(LineCollection(lines, colors=blue(), linewidths=2))
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(rows - 0.4, -0.6)


def curve_panels(curves: Floats, values: Floats, names: Sequence[str], label: str) -> Figure:
    """One panel per name, one curve per value, from curves `(names, values, *event)`; `label`: the values."""
    curves = curves.reshape(len(names), len(values), -1)
    figure = Figure(figsize=(6, 1.4 + 1.5 * len(names)), dpi=150, layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    across = np.arange(curves.shape[-1])
    for axes, name, members in zip(panels, names, curves, strict=True):
        lines = LineCollection(
            [np.stack([across, curve], -1) for curve in members],
            array=values,
            cmap=map_of_lines(),
            linewidths=2,
        )
        axes.add_collection(lines)
        axes.autoscale_view()
        annotate(axes, y=name)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    panels[-1].set_xlabel("dimension of x", fontsize=LARGE)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar = figure.colorbar(lines, ax=panels, aspect=25)
    bar.set_label(label, fontsize=LARGE)
    bar.ax.tick_params(labelsize=MEDIUM)
    return figure


def curve(history: Sequence[Mapping[str, float]], name: str) -> Floats:
    """Epochs and finite values of `name`, `(m, 2)`."""
    points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    points = [point for point in points if np.isfinite(point[1])]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def runs(epochs: Floats, chosen: NDArray[np.bool_]) -> Iterator[tuple[float, float]]:
    """First and last epoch of each unbroken run of chosen epochs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        yield float(epochs[start]), float(epochs[stop - 1])


_ROUNDING = 1e-6


def range_of_curves(curves: Sequence[Floats]) -> tuple[float, float]:
    """The vertical range for curves `(m, 2)` of epochs and values.

    All values, or at most so many that the last half of the epochs takes a fifth of the height: what happens
    early is often many times as large.
    """
    last = max(float(points[-1, 0]) for points in curves)

    def after(share: float) -> Floats:
        return np.concatenate([points[points[:, 0] > share * last, 1] for points in curves])

    everything = np.concatenate(list(curves))[:, 1]
    low, high = float(everything.min()), float(everything.max())
    if last >= 10:
        ends = [points[-1, 1] for points in curves]
        # Without the few epochs of a spike.
        bottom, top = (float(edge) for edge in np.quantile(after(1 / 2), [0.02, 0.98]))
        bottom, top = min(bottom, *ends), max(top, *ends)
        height = max(top - bottom, 0.1 * float(np.ptp(after(1 / 10))))
        low, high = max(low, bottom - 2 * height), min(high, top + 2 * height)
    if high - low < _ROUNDING * max(abs(low), abs(high)):
        return low - 0.5, high + 0.5  # what rounding adds to a constant is no curve
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def from_entry(points: Floats, low: float, high: float) -> Floats:
    """A curve `(m, 2)` without what lies outside of a range in its first half, but for the last such point."""
    early = points[: len(points) // 2, 1]
    outside = np.flatnonzero((early < low) | (early > high))
    return points[outside[-1] if len(outside) else 0 :]


def marginal(
    axes: Axes,
    draws: Floats,
    reference: Floats | None,
    orientation: Literal["vertical", "horizontal"],
) -> None:
    """The densities of one dimension of the aggregate posterior and of the prior: of its draws, or N(0, 1)."""
    everything = draws if reference is None else np.concatenate([draws, reference])
    low, high = np.quantile(everything, [0.001, 0.999])
    if reference is None:
        low, high = min(low, -3.3), max(high, 3.3)
    bins = np.linspace(low, high, 41).tolist() if high > low else 10
    axes.hist(
        draws,
        bins,
        density=True,
        orientation=orientation,
        color=blue(),
        alpha=0.6,
        label="q(z), draws",
    )
    label = "prior p(z), 50% and 95%"
    if reference is None:
        z = np.linspace(low, high, 201)
        line = (z, norm.pdf(z)) if orientation == "vertical" else (norm.pdf(z), z)
        axes.plot(*line, color=ink(), lw=2, label=label)
        return
    axes.hist(
        reference,
        bins,
        density=True,
        orientation=orientation,
        histtype="step",
        color=ink(),
        lw=2,
        label=label,
    )


def prior_contours(axes: Axes, reference: Floats | None) -> None:
    """Contours around 50 and 95 percent of the prior in the plane.

    Args:
        axes: Where to draw.
        reference: Draws `(m, 2)`, whose smoothed histogram is used; None is N(0, I). Its contours are circles:
            |z|^2 has a chi-square distribution with two degrees of freedom.
    """
    if reference is None:
        for share in SHARES:
            radius = float(np.sqrt(chi2.ppf(share, df=2)))
            axes.add_patch(Circle((0, 0), radius, fill=False, ec=ink(), lw=2, zorder=3))
        return
    counts, x, y = np.histogram2d(reference[:, 0], reference[:, 1], bins=60)
    density = gaussian_filter(np.pad(counts, 6), sigma=2)
    x, y = (
        edges[0] + (np.arange(-6, len(edges) + 5) + 0.5) * (edges[1] - edges[0]) for edges in (x, y)
    )
    axes.contour(x, y, density.T, levels=highest_density(density), colors=ink(), linewidths=2)
