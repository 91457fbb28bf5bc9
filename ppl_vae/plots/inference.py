"""Pictures of inference: guides over the exact posterior, and the gap between log p(x) and each ELBO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_vae.diagnosis import Gaps, PosteriorGrid
from ppl_vae.plots.drawing import (
    LARGE,
    MEDIUM,
    ORANGE,
    SHARES,
    Floats,
    annotate,
    blue,
    ink,
    numpy_of,
    paper,
    require_result,
    shade,
)
from ppl_vae.runtime import described, require_count

OUTER, INNER = 0.15, 0.38
"""How far the two regions of the posterior are from the background, on the way to the color of text."""


_LEAST_WIDTH = 0.02
"""Nats that an axis of gaps spans at least: they are written with two places."""


def posterior_contours(
    grid: PosteriorGrid,
    guides: Mapping[str, ArrayLike | Tensor],
    *,
    rows: Sequence[int] = (0, 1, 2),
) -> Figure:
    """The exact posterior of a few rows, and each guide's contours over it.

    The contours bound the smallest regions that hold 50 and 95 percent of the mass. The title of each guide's
    panel gives KL(q(z | x) || p(z | x)) in nats, by quadrature, if the grid holds 99 percent of the guide's
    mass.

    Args:
        grid: The result of `posterior_grid`.
        guides: log q(z | x) on the same points, `(n, size, size)`, from `guide_on_grid`, by the name of the
            guide.
        rows: Which rows of the data to show, at most four.

    Returns:
        One line of panels per row of the data: the posterior alone, then one panel per guide.

    Raises:
        ValueError: The shapes differ, or there are more than four rows.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> from ppl_vae.networks import MLP
        >>> from ppl_vae.diagnosis import guide_on_grid, posterior_grid
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(1, 3)
        >>> guide = MeanField((3,), 2, MLP((8,)))
        >>> grid = posterior_grid(model, guide, x)
        >>> q = guide_on_grid(model, guide, x, grid)
        >>> figure = posterior_contours(grid, {"mean-field": q}, rows=[0])
        >>> [axes.get_title().splitlines()[0] for axes in figure.axes]
        ['exact posterior', 'mean-field']
    """
    log_p, log_q = _densities(grid, guides)
    if not isinstance(rows, Sequence):
        raise TypeError(f"rows must be a list of rows, such as [0, 1], got {described(rows)}")
    if not 1 <= len(rows) <= 4:
        raise ValueError(f"posterior_contours shows one to four rows, got {len(rows)}")
    columns = 1 + len(log_q)
    figure = Figure(
        figsize=(0.6 + 2.7 * columns, 1.6 + 2.6 * len(rows)), dpi=150, layout="constrained"
    )
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    for row, line in zip(rows, panels, strict=True):
        x, y = numpy_of(grid.points[row])
        cell = (x[1] - x[0]) * (y[1] - y[0])
        for axes in line:
            _fill_posterior(axes, x, y, log_p[row], cell)
        for axes, values in zip(line[1:], log_q.values(), strict=True):
            _draw_guide(axes, x, y, values[row], cell)
            axes.set_title(_kl(values[row], log_p[row], cell), fontsize=MEDIUM)
        _zoom(line[0], x, y, log_p[row], [values[row] for values in log_q.values()], cell)
        line[0].set_title(f"row {row}", fontsize=MEDIUM)
        line[0].set_ylabel(grid.names[1], fontsize=LARGE)
    for axes, name in zip(panels[0], ["exact posterior", *log_q], strict=True):
        axes.set_title(f"{name}\n{axes.get_title()}", fontsize=MEDIUM)
    for axes in panels[-1]:
        axes.set_xlabel(grid.names[0], fontsize=LARGE)
    for axes in panels.flat:
        axes.tick_params(labelsize=MEDIUM)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    entries = {
        "p(z | x), 50%": Patch(color=shade(INNER)),
        "p(z | x), 95%": Patch(color=shade(OUTER)),
        "q(z | x), 50%": Line2D([], [], color=ORANGE, lw=2.5),
        "q(z | x), 95%": Line2D([], [], color=ORANGE, lw=2.5, ls="--"),
    }
    _legend(figure, entries, columns=4 if columns > 3 else 2)
    return figure


def guides_over_posterior(
    grid: PosteriorGrid, guides: Mapping[str, ArrayLike | Tensor], *, row: int = 0
) -> Figure:
    """Guides over the exact posterior of one row, side by side: a picture for a first page.

    The exact density is shaded; lines bound the smallest regions that hold 50 and 95 percent of the guide's
    mass. Below each panel stands KL(q(z | x) || p(z | x)) in nats, by quadrature, as in `posterior_contours`.

    Args:
        grid: The result of `posterior_grid`.
        guides: log q(z | x) on the same points, `(n, size, size)`, from `guide_on_grid`, by the name of the
            guide. A name may have several lines.
        row: Which row of the data.

    Raises:
        ValueError: The shapes differ, there is no such row, or there are no guides.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> from ppl_vae.networks import MLP
        >>> from ppl_vae.diagnosis import guide_on_grid, posterior_grid
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(1, 3)
        >>> guide = MeanField((3,), 2, MLP((8,)))
        >>> grid = posterior_grid(model, guide, x)
        >>> figure = guides_over_posterior(grid, {"mean-field": guide_on_grid(model, guide, x, grid)})
        >>> figure.axes[0].get_title()
        'mean-field'
    """
    log_p, log_q = _densities(grid, guides)
    require_count("row", row, 0, len(log_p) - 1)
    if not log_q:
        raise ValueError("guides_over_posterior needs at least one guide")
    x, y = numpy_of(grid.points[row])
    cell = (x[1] - x[0]) * (y[1] - y[0])
    figure = Figure(
        figsize=(0.2 + 2.1 * len(log_q), 3.1 if len(log_q) > 2 else 4.0),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(1, len(log_q), squeeze=False, sharex=True, sharey=True)[0]
    figure.patch.set(linewidth=3, edgecolor=shade(0.2))  # a frame, on a page of another color
    shades = LinearSegmentedColormap.from_list("posterior", [paper(), blue()])
    density = np.exp(log_p[row]).T
    levels = np.linspace(0, 1, 25)[1:] * density.max()
    for axes, (name, values) in zip(panels, log_q.items(), strict=True):
        axes.contourf(x, y, density, levels=levels, cmap=shades, vmin=0, antialiased=False)
        _draw_guide(axes, x, y, values[row], cell)
        axes.set_title(name, fontsize=LARGE, linespacing=1.05)
        kl = _kl(values[row], log_p[row], cell)
        axes.set_xlabel(kl and f"{kl} nats", fontsize=LARGE)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(shade(0.5))
    _zoom(panels[0], x, y, log_p[row], [values[row] for values in log_q.values()], cell)
    entries = {
        "exact p(z | x)": Patch(color=blue()),
        "guide q(z | x): 50%": Line2D([], [], color=ORANGE, lw=2.5),
        "95%": Line2D([], [], color=ORANGE, lw=2.5, ls="--"),
    }
    _legend(figure, entries, columns=3 if len(log_q) > 2 else 1)
    return figure


def _densities(
    grid: PosteriorGrid, guides: Mapping[str, ArrayLike | Tensor]
) -> tuple[Floats, dict[str, Floats]]:
    """log p(z | x) and log q(z | x) of each guide on the points of a grid, as arrays."""
    require_result("grid", grid, PosteriorGrid, "posterior_grid")
    if not isinstance(guides, Mapping):
        raise TypeError(f"guides must be a dict of log q(z | x) by name, got {described(guides)}")
    log_p = numpy_of(grid.log_density)
    log_q = {name: numpy_of(values) for name, values in guides.items()}
    for name, values in log_q.items():
        if values.shape != log_p.shape:
            raise ValueError(
                f"guide '{name}' has shape {values.shape}, but the grid has {log_p.shape}: pass the result "
                "of guide_on_grid for this grid"
            )
    return log_p, log_q


def _fill_posterior(axes: Axes, x: Floats, y: Floats, log_p: Floats, cell: float) -> None:
    """Fills the regions that hold the shares of the posterior."""
    levels = [*_levels(log_p, cell), np.inf]
    axes.contourf(x, y, np.exp(log_p).T, levels=levels, colors=[shade(OUTER), shade(INNER)])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _draw_guide(axes: Axes, x: Floats, y: Floats, log_q: Floats, cell: float) -> None:
    """Draws the contours of a guide."""
    axes.contour(
        x,
        y,
        np.exp(log_q).T,
        levels=_levels(log_q, cell),
        colors=ORANGE,
        linewidths=2.5,
        linestyles=["--", "-"],
    )


def _legend(figure: Figure, entries: Mapping[str, Artist], columns: int) -> None:
    """A legend above all panels."""
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper center",
        ncols=columns,
        fontsize=MEDIUM,
        frameon=False,
    )


def _levels(log_density: Floats, cell: float) -> list[float]:
    """The densities at the edges of the smallest regions that hold the shares, in rising order."""
    falling = np.sort(np.exp(log_density), axis=None)[::-1]
    mass = np.cumsum(falling) * cell
    places = [min(int((mass < share).sum()), len(falling) - 1) for share in SHARES]
    lower = max(float(falling[places[0]]), float(np.finfo(np.float64).tiny))
    return [lower, max(float(falling[places[1]]), lower * (1 + 1e-9))]


def _kl(log_q: Floats, log_p: Floats, cell: float) -> str:
    """KL(q || p) as text; empty if too much of q is outside the grid."""
    q = np.exp(log_q) * cell
    if abs(q.sum() - 1) > 0.01:
        return ""
    return f"KL {max(0.0, float((q * (log_q - log_p)).sum())):.2f}"


def _zoom(
    axes: Axes, x: Floats, y: Floats, log_p: Floats, log_qs: list[Floats], cell: float
) -> None:
    """Limits the panels of a row of data to the 95 % regions of all densities in them, and a margin."""
    shown = np.logical_or.reduce([np.exp(v) >= _levels(v, cell)[0] for v in (log_p, *log_qs)])
    for points, axis, limit in ((x, 1, axes.set_xlim), (y, 0, axes.set_ylim)):
        inside = points[shown.any(axis)]
        margin = 0.12 * (inside[-1] - inside[0])
        limit(inside[0] - margin, inside[-1] + margin)


def gaps_plot(gaps: Mapping[str, Gaps]) -> Figure:
    """The gap of each guide: from log p(x) to the best ELBO in its family, and from there to its ELBO.

    Args:
        gaps: Results of `inference_gaps` on the same rows, by the name of the guide.

    Returns:
        One bar per guide, on the scale of nats. It ends at log p(x) on the right and at the ELBO on the
        left, and is divided at the best ELBO in the family. Each error bar is the standard error over rows
        of the gap to its right (of row-by-row differences, so that what both terms share cancels). A bar
        is hatched if log p(x) is unreliable on a tenth of the rows or more; its gap is then likely larger.

    Raises:
        ValueError: There are no guides, or their numbers of rows differ.

    Example:
        >>> import torch
        >>> from ppl_vae.diagnosis import inference_gaps
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(5, 3)
        >>> figure = gaps_plot({"exact": inference_gaps(model, Exact(model), x, num_samples=10)})
        >>> figure.axes[0].get_xlabel()
        'nats per row, from the ELBO up to log p(x)'
    """
    if not isinstance(gaps, Mapping):
        raise TypeError(
            f"gaps must be a dict of gaps by the name of the guide, got {described(gaps)}"
        )
    for name, found in gaps.items():
        require_result(f"gaps[{name!r}]", found, Gaps, "inference_gaps")
    if not gaps:
        raise ValueError("gaps_plot needs the gaps of at least one guide")
    counts = {name: found.num_rows for name, found in gaps.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"gaps of different numbers of rows cannot be compared: {counts}")
    figure = Figure(figsize=(8, 1.9 + 0.75 * len(gaps)), dpi=150, layout="constrained")
    axes = figure.subplots()
    hatched = [_draw_gaps(axes, place, found) for place, found in enumerate(gaps.values())]
    low = min(f.elbo.mean - _finite(f.inference_gap.standard_error) for f in gaps.values())
    high = max(f.log_likelihood.mean for f in gaps.values())
    ends = [f.best_elbo.mean + _finite(f.approximation_gap.standard_error) for f in gaps.values()]
    edge = max(high, *ends)
    width = max(edge - low, _LEAST_WIDTH)  # the posterior itself has no gaps
    if edge - low < width:
        high = low + width
    for place, found in enumerate(gaps.values()):
        missing = found.approximation_gap.mean
        sign = "−" if missing < -0.005 else "+"  # of the wrong sign: log p(x) is too low
        text = f"{found.amortization_gap.mean:z.2f} {sign} {abs(missing):.2f}"
        axes.text(edge + 0.04 * width, place, text, va="center", fontsize=MEDIUM)
    axes.set_xlim(low - 0.04 * width, edge + 0.4 * width)
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high + 0.01 * width])
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_yticks(range(len(gaps)), list(gaps))
    axes.set_ylim(len(gaps) - 0.5, -0.5)
    annotate(axes, x="nats per row, from the ELBO up to log p(x)")
    entries = {"amortization gap": Patch(color=ORANGE), "approximation gap": Patch(color=blue())}
    if any(hatched):
        entries["at least"] = Patch(facecolor=blue(), hatch="///", ec=paper(), lw=0)
    _legend(figure, entries, columns=3)
    return figure


def _draw_gaps(axes: Axes, place: int, found: Gaps) -> bool:
    """Draws the bar of one guide and its errors; returns whether log p(x) is in doubt, and the bar hatched."""
    truth, best, elbo = (e.mean for e in (found.log_likelihood, found.best_elbo, found.elbo))
    axes.barh(place, truth - best, left=best, height=0.6, color=blue())
    axes.barh(place, best - elbo, left=elbo, height=0.6, color=ORANGE)
    doubtful = float(found.unreliable.double().mean()) >= 0.1
    if doubtful:
        style: dict[str, Any] = {"fill": False, "hatch": "///", "ec": paper(), "lw": 0}
        axes.barh(place, truth - best, left=best, height=0.6, **style)
    for at, gap in ((best, found.approximation_gap), (elbo, found.inference_gap)):
        axes.errorbar(at, place, xerr=gap.standard_error, color=ink(), lw=2, capsize=5)
    return doubtful


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 0.0
