"""The pictures of EM: how the bound climbs, and what a mixture's components look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppl_vae.plots.drawing import (
    GRAY,
    GREEN,
    LARGE,
    MEDIUM,
    ORANGE,
    PINK,
    Floats,
    annotate,
    blue,
    heat_maps,
    ink,
    is_picture,
    mosaic,
    numpy_of,
    require_history,
    shade,
    sky,
    value_range,
)
from ppl_vae.runtime import described


def _color(place: int) -> str:
    """The color of a fit, in the style of now."""
    colors = (blue(), ORANGE, GREEN, PINK, "#E69F00", sky(), GRAY)
    return colors[place % len(colors)]


"""One per fit, from the palette of Okabe and Ito; its black would not be seen in a dark style."""

NAMES = {
    "iteration": "iteration",
    "passes": "passes over the data",
    "gradient_evaluations": "gradient evaluations",
    "seconds": "seconds",
}

MOST_COMPONENTS = 40

FLAT = 12
"""How many times the range of the later iterations all of them may have, to be shown."""


def bound_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    against: Sequence[str] = ("iteration",),
) -> Figure:
    """The bound and log p(x) of one or several fits of a model.

    The bound is solid. Where it differs from log p(x), log p(x) is dashed, and the shaded gap between the two
    is the mean of KL(q || p(z | x)) over rows. The first iteration is always there: as a number, where it lies
    so far below that the last nine tenths would have less than a twelfth of the height.

    Args:
        histories: The history of each `EMFit`, by the name of the fit. Its rows have `bound`,
            `log_likelihood` (NaN where it is unknown) and the quantities in `against`. The name "" is left
            out of the legend.
        against: `iteration`, or any of `passes`, `gradient_evaluations` and `seconds`. The axes of these
            three are logarithmic (linear near 0), to compare fits of very different costs.

    Returns:
        One panel per quantity in `against`, all on one scale of nats.

    Raises:
        ValueError: There is nothing to draw.

    Example:
        >>> history = [{"iteration": i, "bound": -9 / (i + 1), "log_likelihood": -8.0} for i in range(5)]
        >>> figure = bound_curves({"": history})
        >>> figure.axes[0].get_ylabel().splitlines()
        ['bound and log p(x)', '(nats per row)']
    """
    if not isinstance(histories, Mapping):
        raise TypeError(
            f"histories must be a dict of the histories of fits, by name, got {described(histories)}"
        )
    if isinstance(against, str) or not against:
        raise ValueError(f"against must be a list of names, such as ['iteration'], got {against!r}")
    for name, history in histories.items():
        require_history(history, f"histories[{name!r}]", ["bound", "log_likelihood", *against])
    if not any(histories.values()):
        raise ValueError("bound_curves needs at least one fit, with at least one iteration")
    width = 6 if len(against) == 1 else 1.2 + 4 * len(against)
    figure = Figure(figsize=(width, 4.5), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(against), sharey=True, squeeze=False)[0]
    shaded = known = False
    later, everything, starts = [], [], []
    for place, history in enumerate(histories.values()):
        color = _color(place)
        bound, truth = _column(history, "bound"), _column(history, "log_likelihood")
        differ = not np.allclose(bound, truth, rtol=0, atol=1e-6, equal_nan=True)
        differ &= bool(np.isfinite(truth).any())
        shaded |= differ
        for axes, name in zip(panels, against, strict=True):
            x = _column(history, name)
            # A mark at the end: without it, a fit that takes no gradients would be invisible there.
            end: dict[str, Any] = {"marker": "o", "ms": 7, "markevery": [-1]}
            axes.plot(x, bound, color=color, lw=2.5, **end)
            if differ:
                axes.plot(x, truth, color=color, lw=2, ls="--")
                axes.fill_between(x, bound, truth, color=color, alpha=0.2, lw=0)
        drawn = [bound, truth] if differ else [bound]
        everything += drawn
        later += [values[len(history) // 10 :] for values in drawn]
        starts += [(row, value, color) for row, value in zip(history[:1], bound[:1], strict=True)]
        known |= bool(np.isfinite(truth).any())
    for axes, name in zip(panels, against, strict=True):
        _across(axes, name)
    what = "bound and log p(x)" if shaded else "log p(x)" if known else "bound"
    panels[0].set_ylabel(f"{what}\n(nats per row)", fontsize=LARGE)
    panels[0].yaxis.set_major_locator(MaxNLocator(5))
    low = _limit(panels[0], np.concatenate(later), np.concatenate(everything))
    _say_starts(panels[0], against[0], [start for start in starts if start[1] < low])
    _legend(figure, list(histories), shaded)
    return figure


def _column(history: Sequence[Mapping[str, float]], name: str) -> Floats:
    return np.array([row[name] for row in history], dtype=np.float64)


def _across(axes: Axes, name: str) -> None:
    """The horizontal axis of a quantity."""
    annotate(axes, x=NAMES.get(name, name))
    if name == "iteration":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        # Linear near 0: most fits begin there, and EM in closed form takes no gradients at all.
        axes.set_xscale("symlog", linthresh=0.1 if name == "seconds" else 1)
        axes.set_xlim(0, 1.4 * max(float(np.max(line.get_xdata())) for line in axes.lines) or 1.0)


def _limit(axes: Axes, later: Floats, everything: Floats) -> float:
    """Sets the vertical range to all values, or to the later ones if they would be flat; returns its foot."""
    later, everything = (values[np.isfinite(values)] for values in (later, everything))
    if not len(later):
        raise ValueError("bound_curves needs a bound that is finite, and all are NaN or infinite")
    shown = later if np.ptp(everything) > FLAT * np.ptp(later) > 0 else everything
    margin = 0.08 * float(np.ptp(shown)) or 0.5
    axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
    return axes.get_ylim()[0]


def _say_starts(
    axes: Axes, name: str, starts: Sequence[tuple[Mapping[str, float], float, str]]
) -> None:
    """Says in the lower right corner, which rising curves leave free, where fits began below the panel."""
    for place, (row, value, color) in enumerate(starts):
        digits = f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
        axes.text(
            0.98,
            0.04 + 0.09 * place,
            f"▼ {NAMES.get(name, name)} {row[name]:.3g}: {digits}".replace("-", "−"),
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=MEDIUM,
            color=color if len(starts) > 1 else ink(),
        )


def _legend(figure: Figure, names: Sequence[str], shaded: bool) -> None:
    """Names the fits by color, and bound and log p(x) by dashes if they differ anywhere."""
    entries: list[Line2D | Patch] = [
        Line2D([], [], color=_color(i), lw=4, label=name) for i, name in enumerate(names) if name
    ]
    if shaded:
        entries += [
            Line2D([], [], color=shade(0.7), lw=2.5, label="bound"),
            Line2D([], [], color=shade(0.7), lw=2, ls="--", label="log p(x)"),
            Patch(color=shade(0.2), label="KL(q || p(z | x))"),
        ]
    if entries:
        columns = -(-len(entries) // 3) if figure.get_figwidth() > 8 else 2
        figure.legend(
            handles=entries,
            loc="outside upper center",
            ncols=columns,
            fontsize=MEDIUM,
            frameon=False,
        )


def components(means: Tensor, weights: Tensor) -> Figure:
    """The components of a mixture, the heaviest first, each with its weight.

    Args:
        means: Means of the components, `(K, *event)`; at most 40 are shown.
        weights: Weights of the components, `(K,)`.

    Returns:
        Pictures; for other data, a heat map with one line per component.

    Raises:
        ValueError: The numbers of weights and of components differ.

    Example:
        >>> import torch
        >>> figure = components(torch.rand(3, 8, 8), torch.tensor([0.2, 0.5, 0.3]))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.500', '0.300', '0.200']
    """
    each, share_of = numpy_of(means, "means", "(K, *event)"), numpy_of(weights, "weights", "(K,)")
    if len(share_of) != len(each):
        raise ValueError(
            f"components needs one weight for each mean; got weights of shape {share_of.shape} and "
            f"means of shape {each.shape}"
        )
    order = np.argsort(-share_of, kind="stable")[:MOST_COMPONENTS]
    shown, shares = each[order], share_of[order]
    labels = [f"{share:.3f}" for share in shares]
    left_out = len(each) - len(order)
    title = f"{len(order)} of {len(each)} components" if left_out else "components"
    if not is_picture(shown):
        return _lines(shown, labels, title)
    columns = min(len(shown), 5 if len(shown) <= 20 else 8)
    rows = -(-len(shown) // columns)
    # Room for the weight above each picture.
    room = max(2, round(0.28 * shown.shape[-2] * max(1.0, shown.shape[-1] / shown.shape[-2])))
    padding = [(0, rows * columns - len(shown))] + [(0, 0)] * (shown.ndim - 3)
    tiles = np.pad(shown, [*padding, (room, 0), (0, 0)], constant_values=np.nan)
    height, width = tiles.shape[-2:]
    figure = Figure(
        figsize=(6, 0.6 + rows * 5.4 / columns * height / width), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    mosaic(axes, tiles.reshape(rows, columns, *tiles.shape[1:]), value_range(shown))
    for place, label in enumerate(labels):
        axes.text(
            place % columns,
            place // columns - 0.5 + 0.5 * room / height,
            label,
            ha="center",
            va="center",
            fontsize=MEDIUM if columns <= 5 else 11,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    annotate(axes, title=f"{title}, by weight")
    return figure


def _lines(means: Floats, labels: Sequence[str], title: str) -> Figure:
    """A heat map with one line per component."""
    figure = heat_maps({title: means})
    axes = figure.axes[0]
    step = -(-len(labels) // 10)
    axes.set_yticks(range(0, len(labels), step), labels[::step])
    axes.set_ylabel("weight", fontsize=LARGE)
    return figure
