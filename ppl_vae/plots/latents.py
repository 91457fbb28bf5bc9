"""Pictures of the latents: KL by dimension, the aggregate posterior over the prior, codes and their use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.drawing import (
    GRAY,
    LARGE,
    MEDIUM,
    ORANGE,
    Floats,
    annotate,
    blue,
    ink,
    legend_above,
    marginal,
    numpy_of,
    paper,
    prior_contours,
)
from ppl_vae.runtime import HIDDEN, require_number


def kl_per_dimension(
    kl: ArrayLike | torch.Tensor, mean_variance: ArrayLike | torch.Tensor, threshold: float = 0.01
) -> Figure:
    """Where the rate is spent: the KL of each latent dimension, sorted, and which ones are active.

    A dimension is active where the variance over rows of its posterior mean exceeds the threshold
    (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv:1509.00519).

    Args:
        kl: Mean KL of each latent dimension, `(latent_dim,)`, in nats. What a dimension adds to the rate may be
            negative where it is no KL.
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
    bars = upper.bar(
        position, heights[order], color=[blue() if a else ORANGE for a in active[order]]
    )
    title = f"{active.sum()} of {len(order)} latent dimensions active"
    annotate(upper, title=title, y="KL (nats)")
    upper.set_ylim(bottom=min(0.0, 1.05 * float(np.min(heights, initial=0.0))))
    for chosen, label in ((True, "active"), (False, "inactive")):
        # An empty group of bars is left out of the legend.
        for bar in [b for b, a in zip(bars, active[order], strict=True) if a == chosen][:1]:
            bar.set_label(label)
    floor = min(threshold, float(np.min(variances[variances > 0], initial=threshold))) / 3
    for chosen, color, marker in ((True, blue(), "o"), (False, ORANGE, "s")):
        where = active[order] == chosen
        points = np.maximum(variances[order][where], floor)
        lower.plot(position[where], points, ls="", marker=marker, color=color, ms=7)
    lower.axhline(threshold, color=ink(), ls="--", lw=2, label=f"threshold {threshold:g}")
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


def worth_of_units(worth: ArrayLike | torch.Tensor, active: ArrayLike | torch.Tensor) -> Figure:
    """What each number of an autoencoder's code is worth to the decoder, sorted, and which ones are in use.

    Args:
        worth: By how much the distortion rises if the number is its mean in all rows, `(latent_dim,)`, nats:
            the `worth` of the entries of `Diagnosis.of_points`.
        active: Which of them are in use, `(latent_dim,)`.

    Example:
        >>> figure = worth_of_units([0.0, 2.0, 1.0], [False, True, True])
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [2.0, 1.0, 0.0]
    """
    heights = numpy_of(worth, "worth", "(latent_dim,)")
    used = numpy_of(active, "active", "(latent_dim,)").astype(bool)
    if heights.shape != used.shape:
        raise ValueError(f"worth has {len(heights)} numbers, and active {len(used)}")
    order = np.argsort(-heights, kind="stable")
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    colors = [blue() if on else ORANGE for on in used[order]]
    axes.bar(np.arange(len(order)), heights[order], color=colors)
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(-0.6, max(len(order), 5) - 0.4)
    title = f"{used.sum()} of {len(order)} numbers of the code in use"
    annotate(axes, title=title, x="number of the code", y="worth (nats)")
    if len(order) <= 10:
        axes.set_xticks(range(len(order)), [str(number) for number in order])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("rank of the number by its worth", fontsize=LARGE)
    return figure


def use_of_codes(
    uses: Mapping[str, ArrayLike | torch.Tensor],
) -> Figure:
    """How often each code of a quantizer is used: the shares of all codes, the most used first.

    Where all are used alike, the bars reach the line, and the perplexity exp(entropy) of the shares is K. Codes
    that nobody uses are dead.

    Args:
        uses: For each codebook, how often each of its K codes is used, `(K,)`.

    Returns:
        One panel for each codebook, with its shares and the line of 1 / K.

    Raises:
        ValueError: There is no codebook, or one without a use.

    Example:
        >>> figure = use_of_codes({"z": [4, 0, 12]})
        >>> figure.axes[0].get_title()
        'z: 2 of 3 codes used, perplexity 1.8'
        >>> [float(bar) for bar in figure.axes[0].patches[0].get_data().values]
        [0.75, 0.25, 0.0]
    """
    if not uses:
        raise ValueError("use_of_codes needs the uses of one codebook or more")
    figure = Figure(figsize=(6, 0.8 + 2.7 * len(uses)), dpi=150, layout="constrained")
    panels = figure.subplots(len(uses), 1, squeeze=False)[:, 0]
    for axes, (name, of) in zip(panels, uses.items(), strict=True):
        counts = numpy_of(of, f"uses of {name}", "(K,)")
        if not counts.sum() > 0:
            raise ValueError(f"no code of {name} is used")
        shares = np.sort(counts / counts.sum())[::-1]
        some = shares[shares > 0]
        perplexity = float(np.exp(-(some * np.log(some)).sum()))
        axes.stairs(shares, np.arange(len(shares) + 1) + 0.5, fill=True, color=blue())
        axes.axhline(1 / len(shares), color=ink(), ls="--", lw=2, label="all alike")
        title = f"{name}: {len(some):,} of {len(shares):,} codes used, perplexity {perplexity:.1f}"
        annotate(axes, title=title, y="share")
        axes.set_xlim(0.5, len(shares) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    panels[-1].set_xlabel("rank of the code by its use", fontsize=LARGE)
    legend_above(figure, [panels[0]])
    return figure


def aggregate_posterior(
    z: ArrayLike | torch.Tensor,
    prior: ArrayLike | torch.Tensor | None,
    kl: ArrayLike | torch.Tensor,
    *,
    labels: ArrayLike | torch.Tensor | None = None,
) -> Figure:
    """The aggregate posterior q(z) = mean over rows of q(z | x), against the prior.

    Where they differ, samples from the prior decode latents that no data row has.

    Args:
        z: One draw from q(z | x) per row, `(n, latent_dim)`.
        prior: Draws from p(z), `(m, latent_dim)`; None is N(0, I), which is drawn exactly.
        kl: Mean KL of each latent dimension, `(latent_dim,)`; the two largest are shown.
        labels: A class for each row, `(n,)`, which colors the points; -1 where it is not known.

    Returns:
        Points in the plane of two dimensions, contours around 50 and 95 percent of the prior (of its
        draws, or the circles of N(0, I)), and both marginal densities. For a single latent dimension, its
        marginal density.

    Example:
        >>> z = torch.randn(100, 3)
        >>> figure = aggregate_posterior(z, None, kl=[0.1, 3.0, 2.0])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('z[1]', 'z[2]')
        >>> [f"{circle.radius:.3f}" for circle in figure.axes[0].patches]
        ['2.448', '1.177']
    """
    draws = numpy_of(z, "z", "(n, latent_dim)")
    reference = None if prior is None else numpy_of(prior, "prior", "(m, latent_dim)")
    sizes = numpy_of(kl, "kl", "(latent_dim,)")
    of_prior = len(sizes) if reference is None else reference.shape[1]
    if not draws.shape[1] == of_prior == len(sizes):
        raise ValueError(
            f"z has {draws.shape[1]} latent dimensions, prior {of_prior}, and kl {len(sizes)}"
        )
    _require_labels(labels, len(draws))
    for name, values in (("z", draws), ("prior", reference)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite numbers")
    order = np.argsort(-sizes, kind="stable")[:2]
    draws = draws[:, order]
    reference = None if reference is None else reference[:, order]
    names = [f"z[{dimension}]" for dimension in order]
    if len(order) == 1:
        figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        marginal(axes, draws[:, 0], _column(reference, 0), "vertical")
        annotate(axes, title="aggregate posterior and prior", x=names[0], y="density")
        legend_above(figure, [axes])
        return figure
    figure = Figure(figsize=(6, 6.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    axes = figure.add_subplot(grid[1, 0])
    above = figure.add_subplot(grid[0, 0], sharex=axes)
    beside = figure.add_subplot(grid[1, 1], sharey=axes)
    _scatter(axes, draws, labels)
    prior_contours(axes, reference)
    annotate(axes, x=names[0], y=names[1])
    if reference is None:
        low, high = np.quantile(draws, [0.0005, 0.9995], axis=0)
        low, high = np.minimum(low, -2.7), np.maximum(high, 2.7)
    else:
        everything = np.concatenate([draws, reference])
        low, high = np.quantile(everything, [0.0005, 0.9995], axis=0)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    marginal(above, draws[:, 0], _column(reference, 0), "vertical")
    marginal(beside, draws[:, 1], _column(reference, 1), "horizontal")
    for edge in (above, beside):
        edge.set_axis_off()
    legend_above(figure, [above])
    return figure


def codes(
    z: ArrayLike | torch.Tensor,
    *,
    labels: ArrayLike | torch.Tensor | None = None,
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
) -> Figure:
    """The codes of all rows in the plane, by PCA of all latent dimensions together.

    Args:
        z: Posterior means, `(n, latent_dim)`, as `ppl_vae.encode` gives them.
        labels: A class for each row, `(n,)`, which colors the points; -1 where it is not known.
        method: "pca", or "umap" if the package umap-learn is installed: its distances between groups mean
            nothing.
        seed: Seed of UMAP.

    Returns:
        Points; with PCA the axes say how much of the variance they show. Codes of two dimensions are drawn as
        they are.

    Raises:
        ImportError: UMAP is not installed.
        ValueError: There are fewer than two dimensions or rows, or a number is not finite.

    Example:
        >>> figure = codes(torch.randn(100, 5) * torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0]))
        >>> figure.axes[0].get_title()
        'codes of 100 rows'
    """
    values = numpy_of(z, "z", "(n, latent_dim)")
    _require_labels(labels, len(values))
    if method not in ("pca", "umap"):
        raise ValueError(f"method must be 'pca' or 'umap', got {method!r}")
    if not np.isfinite(values).all():
        raise ValueError("z holds NaN or infinite numbers")
    if min(values.shape) < 2:
        raise ValueError(f"codes needs at least two rows and two dimensions, got {values.shape}")
    if method == "umap":
        points, names = _by_umap(values, seed), ["UMAP 1", "UMAP 2"]
    elif values.shape[1] == 2:
        points, names = values, ["z[0]", "z[1]"]
    else:
        points, shares = _by_pca(values)
        names = [f"PC {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares)]
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _scatter(axes, points, labels)
    annotate(axes, title=f"codes of {len(values):,} rows", x=names[0], y=names[1])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if method == "umap":  # its units mean nothing
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def _by_pca(values: Floats) -> tuple[Floats, Floats]:
    """The first two principal components `(n, 2)`, and their shares of the variance."""
    centered = values - values.mean(0)
    left, scales, _ = np.linalg.svd(centered, full_matrices=False)
    left = left[:, :2]
    left = left * np.sign(left[np.abs(left).argmax(0), [0, 1]])  # one sign, on every machine
    total = float((scales**2).sum()) or 1.0
    return left * scales[:2], scales[:2] ** 2 / total


def _by_umap(values: Floats, seed: int) -> Floats:
    try:
        umap = importlib.import_module("umap")
    except ImportError as error:
        raise ImportError(
            "method='umap' needs the package umap-learn: pip install umap-learn, or take method='pca'"
        ) from error
    found: Floats = np.asarray(umap.UMAP(random_state=seed).fit_transform(values), np.float64)
    return found


def _column(values: Floats | None, column: int) -> Floats | None:
    return None if values is None else values[:, column]


def _require_labels(labels: ArrayLike | torch.Tensor | None, n: int) -> None:
    if labels is not None and np.shape(labels) != (n,):
        raise ValueError(
            f"labels must hold one class for each of the {n} rows, got {np.shape(labels)}"
        )


def _scatter(axes: Axes, points: Floats, labels: ArrayLike | torch.Tensor | None) -> None:
    """Points in the plane; classes have a color each, and are written at their medians.

    Those whose label is hidden (-1) are gray, below the others.
    """
    size = float(np.clip(9000 / len(points), 2, 25))
    hidden = np.array([label == HIDDEN for label in np.asarray(labels).flat])
    if labels is not None and hidden.any() and not hidden.all():
        axes.scatter(points[hidden, 0], points[hidden, 1], color=GRAY, s=size, lw=0)
        points, labels = points[~hidden], np.asarray(labels)[~hidden]
    if labels is None or hidden.all():
        axes.scatter(points[:, 0], points[:, 1], color=blue(), s=size, lw=0)
        return
    classes, indices = np.unique(np.asarray(labels), return_inverse=True)
    many = len(classes) > 10
    colors = colormaps["turbo" if many else "tab10"]
    scale = np.linspace(0.05, 0.95, len(classes)) if many else np.arange(len(classes))
    # In random order: the last class would cover the others.
    order = np.random.default_rng(0).permutation(len(points))
    axes.scatter(
        points[order, 0], points[order, 1], color=colors(scale[indices[order]]), s=size, lw=0
    )
    for index, name in enumerate(classes):
        place = np.median(points[indices == index], axis=0)
        # The class is written at its median: ten colors are too many to distinguish by eye.
        axes.text(
            place[0],
            place[1],
            str(name),
            fontsize=MEDIUM,
            weight="bold",
            path_effects=[withStroke(linewidth=3, foreground=paper())],
            ha="center",
            va="center",
            zorder=4,
        )
