"""The rate-distortion plane: pairs as points, curves, and the line that no pair can cross."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppl_vae.plots.drawing import (
    GREEN,
    LARGE,
    MEDIUM,
    ORANGE,
    PINK,
    Floats,
    annotate,
    blue,
    ink,
    legend_above,
    paper,
    shade,
    sky,
)
from ppl_vae.runtime import described, require_number
from ppl_vae.stats import Estimate


def mark(place: int) -> tuple[str, str]:
    """Color and marker of a kind of points, in the style of now."""
    marks = ((blue(), "o"), (ORANGE, "x"), (PINK, "s"), (sky(), "^"))
    return marks[place % len(marks)]


def _line(place: int) -> tuple[str, str]:
    lines = ((ink(), "-"), (GREEN, "-"), (PINK, "--"), (sky(), "-."))
    return lines[place % len(lines)]


class RatePoint(Protocol):
    """Whatever has a rate and a distortion: an `Evaluation`, or a result of `ppl_vae.rate_distortion`."""

    @property
    def rate(self) -> Estimate | float:
        """E KL(q(z | x) || p(z)), nats per row."""

    @property
    def distortion(self) -> Estimate | float:
        """-E log p(x | z), nats per row."""


def rate_distortion(
    points: Mapping[str, Mapping[str, RatePoint] | Sequence[RatePoint]],
    *,
    curves: Mapping[str, Iterable[RatePoint]] | None = None,
    entropy: float | None = None,
    entropy_bound: float | None = None,
    diagonals: bool = True,
) -> Figure:
    """Pairs in the plane of distortion and rate, with curves, the line H - D and lines of equal ELBO.

    No pair is below R = H - D, with the entropy H of the data, because -(rate + distortion) is a lower bound of
    log p(x). A pair that ignores its latent is on the axis R = 0; the corner where the line meets it, D = H, is
    a collapsed latent under a perfect decoder. All pairs with one ELBO are on a diagonal: the ELBO does not say
    where ("Fixing a Broken ELBO", arXiv:1711.00464). Bars at the
    points are two standard errors over rows to each side.

    Args:
        points: Points by name for each series, such as `{"beta-VAE": {"β = 1": evaluate(...)}}`; those of a
            list have no names. A point is anything with a `rate` and a `distortion`.
        curves: Points of each curve, such as those of `frozen_decoder_curve`, by the name of the curve.
        entropy: H of the data, nats per row, where it is known: what is below the line is shaded.
        entropy_bound: An upper bound of H instead, such as -log p(x) of a good model: a dashed line. H - D
            itself is below it.
        diagonals: Whether to draw the lines of equal ELBO; False where the distortion is not in nats.

    Raises:
        TypeError: A point has no rate or no distortion.
        ValueError: There is nothing to draw, a number is not finite, or both entropies are given.

    Example:
        >>> from ppl_vae.rate_distortion import linear_optimum
        >>> found = {f"β = {beta}": linear_optimum([4.0, 1.0], 0.5, beta) for beta in (0.5, 1, 2)}
        >>> figure = rate_distortion({"linear VAE": found})
        >>> figure.axes[0].get_xlabel()
        'distortion D (nats per row)'
    """
    drawn = _series("points", points)
    lines = _series("curves", {} if curves is None else curves)
    if not any(len(where) for _, where in (*drawn.values(), *lines.values())):
        raise ValueError("rate_distortion needs at least one point, in points or in curves")
    if entropy is not None and entropy_bound is not None:
        raise ValueError("give entropy or entropy_bound, not both")
    for name, value in (("entropy", entropy), ("entropy_bound", entropy_bound)):
        if value is not None:
            require_number(name, value)
            if not np.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
    figure = Figure(figsize=(8, 6.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (name, (_, where)) in enumerate(lines.items()):
        color, style = _line(place)
        where = where[np.argsort(where[:, 0])]
        axes.plot(where[:, 0], where[:, 1], color=color, ls=style, lw=2, label=name)
    for place, (name, (_, where)) in enumerate(drawn.items()):
        color, marker = mark(place)
        _bars(axes, where, color)
        size = 9 if marker == "o" else 11
        axes.plot(
            *where[:, :2].T,
            marker,
            color=color,
            ms=size,
            mew=2.5,
            label=name,
            zorder=4,
            clip_on=False,
        )
    everything = np.concatenate([where for _, where in (*drawn.values(), *lines.values())])
    height = entropy if entropy is not None else entropy_bound
    right, top = _limit(axes, everything, height)
    if height is not None:
        _draw_entropy(axes, height, known=entropy is not None)
    if diagonals:
        _draw_diagonals(axes, top)
    for names, where in drawn.values():
        _name(axes, names, where)
    annotate(axes, x="distortion D (nats per row)", y="rate R (nats per row)")
    if not diagonals:
        axes.set_xlabel("distortion D", fontsize=LARGE)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(right=right)
    legend_above(figure, [axes])
    return figure


def _series(
    name: str, given: Mapping[str, Mapping[str, RatePoint] | Iterable[RatePoint]]
) -> dict[str, tuple[list[str], Floats]]:
    """For each series the names of its points, and their distortion, rate and errors of both, `(m, 4)`."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name} must be a dict of points by the name of the series, got {described(given)}"
        )
    found = {}
    for series, members in given.items():
        where = f"{name}[{series!r}]"
        if not isinstance(members, Iterable) or isinstance(members, str):
            raise TypeError(
                f"{where} must be points by name, or a list of points, got {described(members)}"
            )
        by_name = isinstance(members, Mapping)
        labels = [str(label) for label in members] if by_name else []
        points = members.values() if isinstance(members, Mapping) else members
        rows = [[*_numbers(f"{where}[{i}]", point)] for i, point in enumerate(points)]
        found[series] = (labels, np.array(rows, dtype=np.float64).reshape(-1, 4))
    return found


def _numbers(name: str, point: RatePoint) -> Iterator[float]:
    """Distortion and rate of a point, and the standard errors of the two."""
    errors = []
    for quantity in ("distortion", "rate"):
        value = getattr(point, quantity, None)
        if value is None:
            raise TypeError(
                f"{name} must have a rate and a distortion, as what evaluate() returns, "
                f"got {described(point)}"
            )
        mean = value.mean if isinstance(value, Estimate) else value
        require_number(f"{name}.{quantity}", mean)
        if not np.isfinite(mean):
            raise ValueError(f"{name}.{quantity} is not finite: {mean}")
        error = value.standard_error if isinstance(value, Estimate) else 0.0
        errors.append(error if np.isfinite(error) else 0.0)
        yield float(mean)
    yield from errors


def _bars(axes: Axes, where: Floats, color: str) -> None:
    """Bars of two standard errors."""
    x, y, x_error, y_error = where.T
    axes.errorbar(
        x, y, xerr=2 * x_error, yerr=2 * y_error, color=color, ls="", lw=1.5, capsize=3, zorder=3
    )


def _limit(axes: Axes, where: Floats, entropy: float | None) -> tuple[float, float]:
    """Sets the limits of both axes, and gives the right and the upper one."""
    x, y, x_bar, y_bar = where.T * [[1], [1], [2], [2]]
    y = np.concatenate([np.maximum(y - y_bar, np.minimum(y, 0)), y + y_bar])
    ends = [*(x - x_bar), *(x + x_bar), *([] if entropy is None else [entropy])]
    low, high = min(ends), max(ends)
    width = (high - low) or max(1.0, abs(high))
    left = 0.0 if 0 <= low < 0.2 * high else low - 0.06 * width
    top = 1.12 * max(float(y.max()), 1e-3)
    if left == 0.0 and entropy is not None:  # the corner D = 0, R = H is in sight
        top = max(top, 1.08 * entropy)
    axes.set_xlim(left, high + 0.16 * width)
    axes.set_ylim(min(0.0, float(y.min())), top)
    return high + 0.16 * width, top


def _draw_entropy(axes: Axes, entropy: float, known: bool) -> None:
    """The line R = H - D with its corner; what is below is shaded if H is known."""
    (left, _), (_, top) = axes.get_xlim(), axes.get_ylim()
    ends = np.array([min(left, entropy - top), entropy])
    style = "-" if known else "--"
    label = "H − D: no pair is below" if known else "a bound of H − D"
    axes.plot(ends, entropy - ends, color=shade(0.55), ls=style, lw=2, label=label, zorder=2)
    if known:
        axes.fill_between(ends, entropy - ends, 0, color=shade(0.1), lw=0, zorder=0)
    axes.plot(entropy, 0, "D", color=shade(0.55), ms=9, clip_on=False, zorder=5)
    axes.annotate(
        "collapse",
        (entropy, 0),
        xytext=(6, 8),
        textcoords="offset points",
        fontsize=MEDIUM,
        color=ink(),
    )


def _draw_diagonals(axes: Axes, top: float) -> None:
    """Lines of equal ELBO, with their values above the axes."""
    left, right = axes.get_xlim()
    low, high = left, right + top
    values = MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    for value in values:
        axes.plot([value - top, value], [top, 0], color=shade(0.35), ls=":", lw=1.2, zorder=1)

    def of_upper_edge(distortion: Any) -> Any:  # the ELBO; its own inverse
        return -(distortion + top)

    above = axes.secondary_xaxis("top", functions=(of_upper_edge, of_upper_edge))
    above.set_xticks([-value for value in values if left <= value - top <= right])
    above.set_xlabel("ELBO (nats per row), along the dotted lines", fontsize=MEDIUM)
    above.tick_params(labelsize=MEDIUM, color=shade(0.35))
    above.spines[:].set_visible(False)
    axes.set_xlim(left, right)
    axes.set_ylim(top=top)


def _name(axes: Axes, names: Sequence[str], where: Floats) -> None:
    """Names to the upper right of points; of names that would overlap, only the first."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    scale = np.array([right - left, high - low])
    placed: list[Floats] = []
    for name, point in zip(names, where[:, :2], strict=False):
        if any((np.abs(point - other) / scale < [0.12, 0.05]).all() for other in placed):
            continue
        placed.append(point)
        axes.annotate(
            name,
            point,
            xytext=(8, 6),
            textcoords="offset points",
            fontsize=MEDIUM,
            color=ink(),
            bbox={"fc": paper(), "ec": "none", "alpha": 0.7, "pad": 1},
            zorder=6,
        )
