"""Pictures of a training and its evaluation: learning curves, and the Pareto k-hat of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.pairs import COLLAPSED, MEASURES
from ppl_vae.plots.drawing import (
    GRAY,
    LARGE,
    MEDIUM,
    ORANGE,
    Floats,
    annotate,
    blue,
    curve,
    from_entry,
    ink,
    legend_above,
    numpy_of,
    paper,
    range_of_curves,
    require_history,
    runs,
)
from ppl_vae.runtime import require_count
from ppl_vae.stats import khat_limit
from ppl_vae.training import ERROR_OF_KL, KL, TERM

_COUNTS = ("active_units", "codes_used")
"""Metrics that are whole numbers."""


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """ELBO, rate and distortion over the epochs, active units where they change, and each dimension's KL.

    Of a quantizer, the codes used, where their number changes, and the perplexity of their use.

    A dimension that surely carries less than 0.01 nats in the end is gray. One that has no KL, as under a guide
    that draws bottom up, is dashed: its curve is what the dimension adds to the rate, which may be negative.
    Epochs trained with beta other than 1 are shaded. The last half of the epochs takes at least a fifth of the
    height of a panel: values of the first epochs may lie outside, which the label of the axis says then. A
    curve begins where it enters its panel.

    Args:
        history: One mapping per epoch with `epoch`, and any of `elbo`, `rate`, `distortion` (of points
            `log_joint` and `neg_log_prior` in the place of the first two), `active_units`, `codes_used`,
            `perplexity`, the same names prefixed with `validation_`, `beta`, and the KL of each dimension as
            `kl_z[0]`, ..., or what it adds to the rate as `rate_z[0]`. A name may be absent from some epochs.

    Returns:
        One panel per quantity, in nats per row, training and validation in each.

    Raises:
        TypeError: The history is no list of mappings with numbers.
        ValueError: There is nothing to draw, or an epoch without a number.

    Example:
        >>> figure = learning_curves([{"epoch": 1, "elbo": -30.0}, {"epoch": 2, "elbo": -25.0}])
        >>> figure.axes[0].get_ylabel()
        'ELBO\\n(nats per row)'
    """
    require_history(history, "history", ["epoch"])
    labels = {
        **{each.name: f"{each.text}\n(nats per row)" for each in MEASURES[:-1]},
        **{each.rate: f"{each.rate_text}\n(nats per row)" for each in MEASURES[:-1]},
        "distortion": "distortion\n(nats per row)",
        "active_units": "active\nunits",
        "codes_used": "codes\nused",
        "perplexity": "perplexity\nof codes",
    }
    curves = {
        name: {
            label: points
            for label, key in (("training", name), ("validation", f"validation_{name}"))
            if len(points := curve(history, key))
        }
        for name in labels
    }
    shown = [name for name in labels if curves[name]]
    kl = {name: curve(history, name) for name in _kl_columns(history)}
    if kl:
        shown.append("kl")
        curves["kl"], labels["kl"] = kl, "KL by dimension\n(nats)"
        if any(name.startswith(TERM) for name in kl):
            labels["kl"] = "rate by\ndimension (nats)"
    if not history:
        raise ValueError(
            "learning_curves needs one mapping per epoch, such as the rows of metrics.csv, but the history is "
            "empty: that of a run whose metrics.csv is missing is"
        )
    if not shown:
        raise ValueError(
            f"learning_curves needs epochs with any of {', '.join(labels)}; got {len(history)} "
            "epochs without them. Pass one mapping per epoch, such as the rows of metrics.csv."
        )
    counts = {
        name: {int(value) for points in curves[name].values() for value in points[:, 1]}
        for name in _COUNTS
    }
    told = []
    for name, found in counts.items():
        if len(found) == 1 and len(shown) > 1:  # a flat line needs no panel
            shown.remove(name)
            told.append(f"{name.replace('_', ' ')}: {found.pop()}")
    ratios = [0.6 if name in _COUNTS else 1.0 for name in shown]
    figure = Figure(figsize=(6, 1.1 + 2.2 * sum(ratios)), dpi=150, layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    beta = curve(history, "beta")
    entered = 0.0
    for name, axes in zip(shown, panels, strict=True):
        annotate(axes, y=labels[name])
        if name in _COUNTS:  # from zero, so that the ticks can be whole numbers
            low, high = 0.0, 1.15 * max(counts[name])
        else:
            low, high = range_of_curves(list(curves[name].values()))
        if name == "kl":
            low = min(low, -0.02 * high)  # zero is where dead dimensions are
            _draw_dimensions(axes, kl, COLLAPSED - 2 * (history[-1].get(ERROR_OF_KL) or 0.0))
        else:
            entered = max(entered, _draw_both(axes, curves[name], low, high))
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=name in _COUNTS))
        for start, end in runs(beta[:, 0], beta[:, 1] != 1):
            axes.axvspan(start - 0.5, end + 0.5, color=GRAY, alpha=0.25, lw=0, label="β ≠ 1")
    last = max(float(points[-1, 0]) for name in shown for points in curves[name].values())
    first = min(float(row["epoch"]) for row in history)
    if last > first:
        panels[-1].set_xlim(first - 0.02 * (last - first), last + 0.02 * (last - first))
    panels[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    outside_too = f"\n(until {entered:.0f}, some values lie outside)" if entered else ""
    panels[-1].set_xlabel(f"epoch{outside_too}", fontsize=LARGE)
    legend_above(figure, panels, ", ".join(told))
    figure.align_ylabels()
    return figure


def _draw_both(axes: Axes, lines: Mapping[str, Floats], low: float, high: float) -> float:
    """The curves of training and validation; the last epoch in which one of them lies outside of the range."""
    entered = 0.0
    for (label, points), color, dash in zip(
        lines.items(), (blue(), ORANGE), ("-", "--"), strict=False
    ):
        marker = "o" if len(points) < 12 else ""
        seen = from_entry(points, low, high)
        axes.plot(*seen.T, color=color, ls=dash, lw=2.5, marker=marker, label=label)
        outside = (points[:, 1] < low) | (points[:, 1] > high)
        entered = max(entered, points[outside, 0].max(initial=0.0))
    return entered


def _kl_columns(history: Sequence[Mapping[str, float]]) -> list[str]:
    """The names under which the KL or the term of each dimension is in some epoch, with at least one number."""
    names = dict.fromkeys(n for row in history for n in row if n.startswith((KL, TERM)))
    return [name for name in names if len(curve(history, name))]


def _draw_dimensions(axes: Axes, kl: Mapping[str, Floats], nothing: float) -> None:
    """One thin line for each dimension, gray if it carries nothing in the end: less than so many nats."""
    width = 2.0 if len(kl) <= 10 else 1.2
    for name, points in kl.items():
        term = name.startswith(TERM)
        dead = not term and points[-1, 1] < nothing
        color, label = (GRAY, "carries nothing") if dead else (blue(), "_alive")
        dash, label = ("--", "no KL") if term else ("-", label)
        axes.plot(
            *points.T, color=color, ls=dash, lw=width, alpha=1.0 if dead else 0.7, label=label
        )


def khat_histogram(
    khat: ArrayLike | torch.Tensor,
    num_samples: int,
    annealed: ArrayLike | torch.Tensor | None = None,
) -> Figure:
    """How far the importance-sampling estimates can be trusted: Pareto k-hat of each row.

    Above min(1 - 1 / log10(num_samples), 0.7) an estimate is unreliable (Vehtari, Simpson, Gelman,
    Yao and Gabry, "Pareto Smoothed Importance Sampling", arXiv:1507.02646).

    Args:
        khat: One k-hat per row, `(n,)`. Minus infinity (equal weights) is the best value; infinity
            and NaN (k-hat cannot be estimated) count as too high.
        num_samples: Importance samples per row.
        annealed: Rows that were annealed and have no k-hat, `(n,)`: they are counted apart. None: no rows.

    Raises:
        ValueError: The numbers of rows differ.

    Returns:
        A histogram with a line at this limit and, if the limit is lower, one at 0.7.

    Example:
        >>> figure = khat_histogram([0.1, 0.2, 0.9, 0.3], num_samples=10_000)
        >>> figure.axes[0].get_title()
        'k-hat too high: 1 of 4 rows'
    """
    require_count("num_samples", num_samples)
    values = numpy_of(khat, "khat", "(n,)")
    total, without = len(values), 0
    if annealed is not None:
        apart = numpy_of(annealed, "annealed", "(n,)") != 0
        if len(apart) != total:
            raise ValueError(
                f"khat has {total} rows, and annealed {len(apart)}: give both of the same rows"
            )
        values, without = values[~apart], int(apart.sum())
    limit = khat_limit(num_samples)
    finite = values[np.isfinite(values)]
    # The limit is the edge of a bar, so that a bar has one color.
    width = (max(finite.max(initial=1.0), 1.0) - min(finite.min(initial=0.0), 0.0)) / 30
    steps = np.floor((finite - limit) / width)
    edges = limit + width * np.arange(steps.min(initial=-1), steps.max(initial=0) + 2)
    counts, _ = np.histogram(finite, edges)
    figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    colors = [ORANGE if left >= limit - width / 2 else blue() for left in edges[:-1]]
    axes.bar(edges[:-1], counts, width=width, align="edge", color=colors)
    axes.axvline(limit, color=ink(), ls="--", lw=2.5, label=f"limit {limit:.2f}")
    if limit < 0.7:
        axes.axvline(0.7, color=GRAY, ls=":", lw=2.5, label="0.7")
    axes.set_xlim(min(edges[0], -0.05), max(edges[-1], 1.05))
    axes.set_ylim(bottom=0, top=None if len(finite) else 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    equal, unknown = (
        int(np.sum(values == -np.inf)),
        int(np.sum(np.isnan(values) | (values == np.inf))),
    )
    notes = [f"{_rows(equal)}: equal weights"] * (equal > 0)
    notes += [f"{_rows(unknown)}: unknown"] * (unknown > 0)
    notes += [f"{_rows(without)} annealed,\nwithout k-hat"] * (without > 0)
    if notes:
        axes.text(
            0.99,
            0.96,
            "\n".join(notes),
            transform=axes.transAxes,
            fontsize=MEDIUM,
            bbox={"facecolor": paper(), "lw": 0},
            ha="right",
            va="top",
        )
    bad = unknown + int(np.sum(finite > limit))
    annotate(
        axes,
        title=f"k-hat too high: {bad} of {_rows(len(values))}",
        x=f"Pareto k-hat of {num_samples:,} samples",
        y="rows",
    )
    legend_above(figure, [axes])
    return figure


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"
