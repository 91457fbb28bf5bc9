"""Pictures of a sweep: each metric against the option that varies, and the rate-distortion plane."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppl_vae.pairs import AT_POINT
from ppl_vae.plots.drawing import LARGE, MEDIUM, annotate, legend_above, require_result
from ppl_vae.plots.rate_plane import mark, rate_distortion
from ppl_vae.sweeps import Backdrop, SweepTable, SweptPoint

PANELS = {
    "elbo": "ELBO\n(nats per row)",
    AT_POINT.name: f"{AT_POINT.text}\n(nats per row)",
    "log_likelihood": "log p(x)\n(nats per row)",
    "rate": "rate\n(nats per row)",
    "distortion": "distortion\n(nats per row)",
    "active_units": "active\nunits",
    "mutual_information": "mutual information\n(nats)",
    "unreliable": "unreliable\n(share of rows)",
    "seconds": "seconds",
}


def sweep_metrics(table: SweepTable) -> Figure | None:
    """Each metric of a sweep against the one option that varies and has numbers as values.

    Bars at the means are two standard errors over seeds to each side, small points the seeds. The axis is
    logarithmic where all numbers are positive and the largest is ten times the smallest, or more.

    Args:
        table: What the sweep has found.

    Returns:
        One panel per metric, and in each a line for all that varies beside; None if there is no such option,
        or no result.

    Raises:
        TypeError: It is no table of a sweep.
    """
    require_result("table", table, SweepTable, "SweepTable.of")
    axis = table.axis()
    series = table.series(axis)
    if axis is None or not series:
        return None
    shown = [
        n for n in PANELS if any(p.values[n] and _number(p, n) for s in series.values() for p in s)
    ]
    rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(10, 1.2 + 2.6 * rows), dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    for metric, axes in zip(shown, panels, strict=False):
        for place, (name, points) in enumerate(series.items()):
            _draw(axes, axis, metric, points, name, place)
        annotate(axes, y=PANELS[metric])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=metric == "active_units"))
        if metric == "active_units":
            axes.set_ylim(0, 1.15 * max(1.0, axes.dataLim.y1))
        elif metric == "unreliable":
            axes.set_ylim(-0.03, 1.03)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    numbers = [float(p.varied[axis]) for points in series.values() for p in points]
    for axes in panels[max(0, len(shown) - 2) : len(shown)]:
        axes.set_xlabel(axis.rpartition(".")[2], fontsize=LARGE)
        axes.tick_params(labelbottom=True, labelsize=MEDIUM)
    if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
        panels[0].set_xscale("log")
    legend_above(figure, panels[:1], "means over seeds, ± 2 standard errors")
    return figure


def sweep_plane(table: SweepTable, backdrop: Backdrop | None = None) -> Figure | None:
    """The points of a sweep in the plane of distortion and rate, with bars of two standard errors over seeds.

    Args:
        table: What the sweep has found.
        backdrop: Curves, and the entropy of the data; None: neither.

    Returns:
        The picture of `rate_distortion`; None if no point has a rate and a distortion.

    Raises:
        TypeError: It is no table of a sweep.
    """
    require_result("table", table, SweepTable, "SweepTable.of")
    axis = table.axis()
    points = {}
    for name, members in table.series(axis).items():
        there = [p for p in members if _number(p, "rate") and _number(p, "distortion")]
        varying = table.varying if axis is None else [axis]
        if there:
            over = "mean over seeds, ± 2 standard errors"
            points[name or over] = {p.short(varying): p for p in there}
    if not points:
        return None
    behind = backdrop or Backdrop()
    return rate_distortion(
        points,
        curves=behind.curves,
        entropy=behind.entropy,
        entropy_bound=behind.entropy_bound,
    )


def _number(point: SweptPoint, metric: str) -> bool:
    return math.isfinite(point.estimate(metric).mean)


def _draw(
    axes: Axes, axis: str, metric: str, points: list[SweptPoint], name: str, place: int
) -> None:
    """A line through the means of a metric, with bars, and the seeds as small points."""
    color, marker = mark(place)
    there = [point for point in points if _number(point, metric)]
    x = np.array([float(point.varied[axis]) for point in there])
    found = [point.estimate(metric) for point in there]
    errors = np.nan_to_num([2 * each.standard_error for each in found])
    axes.errorbar(
        x,
        [each.mean for each in found],
        yerr=errors,
        color=color,
        marker=marker,
        ms=8,
        lw=2,
        capsize=4,
        label=name or None,
    )
    for at, point in zip(x, there, strict=True):
        values = point.values[metric]
        if len(values) > 1:
            axes.plot([at] * len(values), values, ".", color=color, alpha=0.5, ms=6)
