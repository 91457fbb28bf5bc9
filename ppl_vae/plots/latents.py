"""Pictures of the latent dimensions: the KL of each, and the aggregate posterior over the prior."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.drawing import (
    BLUE,
    LARGE,
    MEDIUM,
    ORANGE,
    annotate,
    legend_above,
    marginal,
    numpy_of,
    prior_contours,
)
from ppl_vae.runtime import require_number


def kl_per_dimension(
    kl: ArrayLike | torch.Tensor, mean_variance: ArrayLike | torch.Tensor, threshold: float = 0.01
) -> Figure:
    """Where the rate is spent: the KL of each latent dimension, sorted, and which ones are active.

    A dimension is active where the variance over rows of its posterior mean exceeds the threshold
    (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv:1509.00519).

    Args:
        kl: Mean KL of each latent dimension, `(latent_dim,)`, in nats.
        mean_variance: Variance over rows of the posterior means, `(latent_dim,)`.
        threshold: Variance above which a dimension counts as active.

    Returns:
        Two panels with the dimensions in one order: KL, and the variance with the threshold.

    Example:
        >>> figure = kl_per_dimension([0.001, 2.0, 1.0], [1e-5, 0.9, 0.5])
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [2.0, 1.0, 0.001]
    """
    require_number("threshold", threshold)
    heights = numpy_of(kl, "kl", "(latent_dim,)")
    variances = numpy_of(mean_variance, "mean_variance", "(latent_dim,)")
    if heights.shape != variances.shape:
        raise ValueError(
            f"kl has {len(heights)} latent dimensions, and mean_variance {len(variances)}"
        )
    order = np.argsort(-heights, kind="stable")
    active = variances > threshold
    position = np.arange(len(order))
    figure = Figure(figsize=(6, 5.4), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    bars = upper.bar(position, heights[order], color=[BLUE if a else ORANGE for a in active[order]])
    title = f"{active.sum()} of {len(order)} latent dimensions active"
    annotate(upper, title=title, y="KL (nats)")
    upper.set_ylim(bottom=0)
    for chosen, label in ((True, "active"), (False, "inactive")):
        # An empty group of bars is left out of the legend.
        for bar in [b for b, a in zip(bars, active[order], strict=True) if a == chosen][:1]:
            bar.set_label(label)
    floor = min(threshold, float(np.min(variances[variances > 0], initial=threshold))) / 3
    for chosen, color, marker in ((True, BLUE, "o"), (False, ORANGE, "s")):
        where = active[order] == chosen
        points = np.maximum(variances[order][where], floor)
        lower.plot(position[where], points, ls="", marker=marker, color=color, ms=7)
    lower.axhline(threshold, color="black", ls="--", lw=2, label=f"threshold {threshold:g}")
    lower.set_yscale("log")
    annotate(lower, x="latent dimension", y="variance of\nposterior means")
    if len(order) <= 10:
        lower.set_xticks(position, [str(dimension) for dimension in order])
    else:
        lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lower.set_xlabel("rank of the latent dimension by KL", fontsize=LARGE)
    upper.set_xlim(-0.6, max(len(order), 5) - 0.4)
    legend_above(figure, [upper, lower])
    return figure


def aggregate_posterior(
    z: ArrayLike | torch.Tensor,
    prior: ArrayLike | torch.Tensor,
    kl: ArrayLike | torch.Tensor,
    *,
    labels: ArrayLike | torch.Tensor | None = None,
) -> Figure:
    """The aggregate posterior q(z) = mean over rows of q(z | x), against the prior.

    Where they differ, samples from the prior decode latents that no data row has.

    Args:
        z: One draw from q(z | x) per row, `(n, latent_dim)`.
        prior: Draws from p(z), `(m, latent_dim)`.
        kl: Mean KL of each latent dimension, `(latent_dim,)`; the two largest are shown.
        labels: A class for each row, `(n,)`, which colors the points.

    Returns:
        Points in the plane of two dimensions, contours around 50 and 95 percent of the prior's
        draws, and both marginal densities. For a single latent dimension, its marginal density.

    Example:
        >>> z = torch.randn(100, 3)
        >>> figure = aggregate_posterior(z, torch.randn(1000, 3), kl=[0.1, 3.0, 2.0])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('z[1]', 'z[2]')
    """
    draws, reference = (
        numpy_of(z, "z", "(n, latent_dim)"),
        numpy_of(prior, "prior", "(m, latent_dim)"),
    )
    sizes = numpy_of(kl, "kl", "(latent_dim,)")
    if not draws.shape[1] == reference.shape[1] == len(sizes):
        raise ValueError(
            f"z has {draws.shape[1]} latent dimensions, prior {reference.shape[1]}, and kl {len(sizes)}"
        )
    if labels is not None and np.shape(labels) != draws.shape[:1]:
        raise ValueError(
            f"labels must hold one class for each of the {len(draws)} rows, got {np.shape(labels)}"
        )
    for name, values in (("z", draws), ("prior", reference)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite numbers")
    order = np.argsort(-sizes, kind="stable")[:2]
    draws, reference = draws[:, order], reference[:, order]
    names = [f"z[{dimension}]" for dimension in order]
    if len(order) == 1:
        figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        marginal(axes, draws[:, 0], reference[:, 0], "vertical")
        annotate(axes, title="aggregate posterior and prior", x=names[0], y="density")
        legend_above(figure, [axes])
        return figure
    figure = Figure(figsize=(6, 6.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    axes = figure.add_subplot(grid[1, 0])
    above = figure.add_subplot(grid[0, 0], sharex=axes)
    beside = figure.add_subplot(grid[1, 1], sharey=axes)
    size = float(np.clip(9000 / len(draws), 2, 25))
    if labels is None:
        axes.scatter(draws[:, 0], draws[:, 1], color=BLUE, s=size, lw=0)
    else:
        classes, indices = np.unique(np.asarray(labels), return_inverse=True)
        axes.scatter(draws[:, 0], draws[:, 1], c=indices, cmap="tab10", s=size, lw=0)
        for index, name in enumerate(classes):
            place = np.median(draws[indices == index], axis=0)
            # The class is written at its median: ten colors are too many to distinguish by eye.
            axes.text(
                place[0],
                place[1],
                str(name),
                fontsize=MEDIUM,
                weight="bold",
                path_effects=[withStroke(linewidth=3, foreground="white")],
                ha="center",
                va="center",
                zorder=4,
            )
    prior_contours(axes, reference)
    annotate(axes, x=names[0], y=names[1])
    everything = np.concatenate([draws, reference])
    low, high = np.quantile(everything, [0.0005, 0.9995], axis=0)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    marginal(above, draws[:, 0], reference[:, 0], "vertical")
    marginal(beside, draws[:, 1], reference[:, 1], "horizontal")
    for edge in (above, beside):
        edge.set_axis_off()
    legend_above(figure, [above])
    return figure
