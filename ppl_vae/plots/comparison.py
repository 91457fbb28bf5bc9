"""The picture of a comparison of runs."""

from __future__ import annotations

from textwrap import fill

from matplotlib.figure import Figure

from ppl_vae.plots.drawing import GRAY, MEDIUM, annotate, blue, require_result
from ppl_vae.runs import Comparison


def comparison_plot(comparison: Comparison) -> Figure:
    """Draws each run's difference from the first run, with bars of two standard errors to each side."""
    require_result("comparison", comparison, Comparison, "Comparison.of")
    others = range(1, len(comparison.names))
    figure = Figure(figsize=(7, 2.3 + 0.6 * len(others)), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (quantity, label) in zip(
        panels, (("elbo", "ELBO"), ("log_likelihood", "log p(x)")), strict=True
    ):
        for i in others:
            d = comparison.difference(quantity, i)
            if lack := comparison.lack(quantity, i):
                place = {"ha": "center", "va": "center", "transform": axes.get_yaxis_transform()}
                axes.text(0.5, i, lack, fontsize=MEDIUM, **place)
                continue
            axes.errorbar(
                d.mean, i, xerr=2 * d.standard_error, color=blue(), marker="o", capsize=4, lw=2
            )
        axes.axvline(0, color=GRAY, ls="--", lw=2)
        axes.set_ylim(len(comparison.names) - 0.4, 0.4)
        axes.locator_params(axis="x", nbins=5)
        annotate(axes, title=label, x="difference\n(nats per row)")
    labels = [fill(comparison.names[i], 22) for i in others]
    panels[0].set_yticks(list(others), labels, fontsize=MEDIUM)
    title = fill(f"minus {comparison.names[0]}", 50) + "\nbars: ± 2 standard errors"
    figure.suptitle(title, fontsize=MEDIUM)
    return figure
