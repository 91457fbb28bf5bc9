"""Pictures of a pair: one function each, arrays in, a matplotlib `Figure` out.

Nothing here touches pyplot, so a figure belongs to its caller and no window opens. Save one with
`figure.savefig("name.png")`. Type sizes are chosen to be legible on a thumbnail 300 pixels wide,
and the colors are those of Okabe and Ito, which color-blind readers can distinguish.

Data whose rows have the shape `(height, width)`, `(1, height, width)` or `(3, height, width)` are
shown as pictures, all others as lines or heat maps over their flattened entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.drawing import (
    BLUE,
    GRAY,
    LARGE,
    MEDIUM,
    ORANGE,
    annotate,
    curve,
    curve_cells,
    curve_panels,
    decode,
    heat_maps,
    is_picture,
    legend_above,
    limit_to_later_epochs,
    marginal,
    mosaic,
    normal_quantiles,
    numpy_of,
    prior_contours,
    runs,
    signed,
    value_range,
)
from ppl_vae.stats import khat_limit

Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Maps latents `(m, latent_dim)` to the means of p(x | z), `(m, *event)`."""


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """ELBO, rate and distortion (and active units, where counted) over the epochs.

    Epochs trained with beta other than 1 are shaded. The vertical range is that of the epochs after
    the first tenth, so the first epochs may lie outside a panel.

    Args:
        history: one mapping per epoch with `epoch`, and any of `elbo`, `rate`, `distortion`,
            `active_units`, the same names prefixed with `validation_`, and `beta`. A name may be absent
            from some epochs.

    Returns:
        One panel per quantity, in nats per row, training and validation in each.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = learning_curves([{"epoch": 1, "elbo": -30.0}, {"epoch": 2, "elbo": -25.0}])
        >>> figure.axes[0].get_ylabel()
        'ELBO\\n(nats per row)'
    """
    labels = {
        "elbo": "ELBO\n(nats per row)",
        "rate": "rate\n(nats per row)",
        "distortion": "distortion\n(nats per row)",
        "active_units": "active\nunits",
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
    if not shown:
        raise ValueError(
            f"learning_curves needs epochs with any of {', '.join(labels)}; got {len(history)} "
            "epochs without them. Pass one mapping per epoch, such as the rows of metrics.csv."
        )
    figure = Figure(figsize=(6, 0.8 + 2.2 * len(shown)), dpi=150, layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    beta = curve(history, "beta")
    for name, axes in zip(shown, panels, strict=True):
        for (label, points), color, dash in zip(
            curves[name].items(), (BLUE, ORANGE), ("-", "--"), strict=False
        ):
            marker = "o" if len(points) < 12 else ""
            axes.plot(*points.T, color=color, ls=dash, lw=2.5, marker=marker, label=label)
        annotate(axes, y=labels[name])
        limit_to_later_epochs(axes, list(curves[name].values()))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=name == "active_units"))
        if name == "active_units":  # a count: from zero, so that the ticks can be whole numbers
            axes.set_ylim(bottom=0)
        for start, end in runs(beta[:, 0], beta[:, 1] != 1):
            axes.axvspan(start - 0.5, end + 0.5, color=GRAY, alpha=0.25, lw=0, label="β ≠ 1")
    panels[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[-1].set_xlabel("epoch", fontsize=LARGE)
    legend_above(figure, panels)
    return figure


def reconstructions(x: ArrayLike | torch.Tensor, x_mean: ArrayLike | torch.Tensor) -> Figure:
    """Inputs beside their reconstructions.

    Args:
        x: data `(n, *event)`; at most the first 24 rows are shown.
        x_mean: their reconstructions E[x | z], in the same shape and order.

    Returns:
        Pictures: each row of inputs above the row of its reconstructions, on one scale of values.
        Other data: two heat maps side by side.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> figure = reconstructions(torch.rand(8, 5, 5), torch.rand(8, 5, 5))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['input', 'output']
    """
    inputs, outputs = numpy_of(x)[:24], numpy_of(x_mean)[:24]
    if np.shape(x) != np.shape(x_mean):
        raise ValueError(
            f"reconstructions needs x and x_mean of one shape; got {tuple(np.shape(x))} and "
            f"{tuple(np.shape(x_mean))}. Pass the mean of p(x | z) of the same rows."
        )
    if not is_picture(inputs):
        return heat_maps({"input": inputs, "reconstruction": outputs})
    columns = min(8, len(inputs))
    blocks = -(-len(inputs) // columns)
    padding = [(0, columns * blocks - len(inputs))] + [(0, 0)] * (inputs.ndim - 1)
    tiles = np.stack(
        [
            np.pad(values, padding, constant_values=np.nan).reshape(
                blocks, columns, *values.shape[1:]
            )
            for values in (inputs, outputs)
        ],
        axis=1,
    ).reshape(2 * blocks, columns, *inputs.shape[1:])
    figure = Figure(figsize=(6, 0.7 + 1.2 * blocks), dpi=150, layout="constrained")
    axes = figure.subplots()
    mosaic(axes, tiles, value_range(inputs))
    axes.set_yticks(range(2 * blocks), ["input", "output"] * blocks)
    axes.set_xticks([])
    annotate(axes, title="inputs and reconstructions")
    return figure


def prior_samples(x: ArrayLike | torch.Tensor) -> Figure:
    """Data drawn from the model: z from the prior, then x (or its mean) given z.

    Args:
        x: `(n, *event)`; at most the first 64 are shown, from left to right and downwards.

    Returns:
        A square of pictures, or a heat map with one line per sample.

    Example:
        >>> figure = prior_samples(torch.rand(9, 5, 5))
        >>> figure.axes[0].get_title()
        'samples from the prior'
    """
    samples = numpy_of(x)[:64]
    if not is_picture(samples):
        return heat_maps({"samples from the prior": samples})
    columns = int(np.ceil(np.sqrt(len(samples))))
    rows = -(-len(samples) // columns)
    padding = [(0, rows * columns - len(samples))] + [(0, 0)] * (samples.ndim - 1)
    tiles = np.pad(samples, padding, constant_values=np.nan)
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    mosaic(axes, tiles.reshape(rows, columns, *samples.shape[1:]), value_range(samples))
    axes.set_xticks([])
    axes.set_yticks([])
    annotate(axes, title="samples from the prior")
    return figure


def manifold(decode_mean: Decoder, *, size: int = 15) -> Figure:
    """Means of p(x | z) over a two-dimensional latent space, at equal steps of prior mass.

    The grid's points are the standard normal's quantiles (i + 1/2) / size, so each tile has
    the same prior probability (Kingma and Welling, "Auto-Encoding Variational Bayes",
    arXiv:1312.6114, figure 4).

    Args:
        decode_mean: maps latents `(size * size, 2)` to means of p(x | z), `(size * size, *event)`.
        size: tiles per side.

    Returns:
        A square of tiles; z[0] grows to the right and z[1] upwards.

    Example:
        >>> figure = manifold(lambda z: z.sum(-1)[:, None, None].expand(-1, 4, 4), size=3)
        >>> figure.axes[0].get_xlabel()
        'z[0]'
    """
    values = normal_quantiles(size)
    second, first = torch.meshgrid(values.flip(0), values, indexing="ij")
    means = decode(decode_mean, torch.stack([first.flatten(), second.flatten()], -1))
    tiles = means.reshape(size, size, *means.shape[1:])
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    if is_picture(means):
        mosaic(axes, tiles, value_range(means))
    else:
        curve_cells(axes, tiles)
    ticks = sorted({0, size // 2, size - 1})
    axes.set_xticks(ticks, [signed(values[i]) for i in ticks])
    axes.set_yticks(ticks, [signed(values[size - 1 - i]) for i in ticks])
    annotate(axes, title="mean of p(x | z) over the latent plane", x="z[0]", y="z[1]")
    return figure


def traversals(decode_mean: Decoder, kl: ArrayLike | torch.Tensor) -> Figure:
    """What each latent dimension does: it moves from -3 to 3, with the others at 0.

    Args:
        decode_mean: maps latents `(m, latent_dim)` to means of p(x | z), `(m, *event)`.
        kl: mean KL of each latent dimension, `(latent_dim,)`, in nats; the dimensions with the
            largest (at most ten) are shown, the largest first.

    Returns:
        Pictures: one row per dimension, one column per value. Other data: one panel of curves per
        dimension.

    Example:
        >>> figure = traversals(lambda z: z.sum(-1)[:, None, None].expand(-1, 4, 4), [0.1, 2.0])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['z[1]: 2.0', 'z[0]: 0.1']
    """
    sizes = numpy_of(kl)
    order = np.argsort(-sizes, kind="stable")[:10]
    values = torch.linspace(-3, 3, 9)
    z = torch.zeros(len(order), len(values), len(sizes))
    for row, dimension in enumerate(order):
        z[row, :, dimension] = values
    means = decode(decode_mean, z.flatten(0, 1))
    tiles = means.reshape(len(order), len(values), *means.shape[1:])
    names = [f"z[{dimension}]: {sizes[dimension]:.1f}" for dimension in order]
    if not is_picture(means):
        return curve_panels(tiles, numpy_of(values), names)
    figure = Figure(figsize=(6, 1.3 + 0.55 * len(order)), dpi=150, layout="constrained")
    axes = figure.subplots()
    mosaic(axes, tiles, value_range(means))
    axes.set_yticks(range(len(order)), names)
    axes.set_xticks([0, 2, 4, 6, 8], [signed(values[i]) for i in (0, 2, 4, 6, 8)])
    annotate(axes, x="value of one latent, the others at 0", y="latent: KL (nats)")
    return figure


def kl_per_dimension(
    kl: ArrayLike | torch.Tensor, mean_variance: ArrayLike | torch.Tensor, threshold: float = 0.01
) -> Figure:
    """Where the rate is spent: the KL of each latent dimension, sorted, and which ones are active.

    A dimension is active where the variance over rows of its posterior mean exceeds the threshold
    (Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", arXiv:1509.00519).

    Args:
        kl: mean KL of each latent dimension, `(latent_dim,)`, in nats.
        mean_variance: variance over rows of the posterior means, `(latent_dim,)`.
        threshold: variance above which a dimension counts as active.

    Returns:
        Two panels with the dimensions in one order: KL, and the variance with the threshold.

    Example:
        >>> figure = kl_per_dimension([0.001, 2.0, 1.0], [1e-5, 0.9, 0.5])
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [2.0, 1.0, 0.001]
    """
    heights, variances = numpy_of(kl), numpy_of(mean_variance)
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
        z: one draw from q(z | x) per row, `(n, latent_dim)`.
        prior: draws from p(z), `(m, latent_dim)`.
        kl: mean KL of each latent dimension, `(latent_dim,)`; the two largest are shown.
        labels: a class for each row, `(n,)`, which colors the points.

    Returns:
        Points in the plane of two dimensions, contours around 50 and 95 percent of the prior's
        draws, and both marginal densities. For a single latent dimension, its marginal density.

    Example:
        >>> z = torch.randn(100, 3)
        >>> figure = aggregate_posterior(z, torch.randn(1000, 3), kl=[0.1, 3.0, 2.0])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('z[1]', 'z[2]')
    """
    draws, reference = numpy_of(z), numpy_of(prior)
    order = np.argsort(-numpy_of(kl), kind="stable")[:2]
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


def khat_histogram(khat: ArrayLike | torch.Tensor, num_samples: int) -> Figure:
    """How far the importance-sampling estimates can be trusted: Pareto k-hat of each row.

    Above min(1 - 1 / log10(num_samples), 0.7) an estimate is unreliable (Vehtari, Simpson, Gelman,
    Yao and Gabry, "Pareto Smoothed Importance Sampling", arXiv:1507.02646).

    Args:
        khat: one k-hat per row, `(n,)`. Minus infinity (equal weights) is the best value; infinity
            and NaN (k-hat cannot be estimated) count as too high.
        num_samples: importance samples per row.

    Returns:
        A histogram with a line at this limit and, if the limit is lower, one at 0.7.

    Example:
        >>> figure = khat_histogram([0.1, 0.2, 0.9, 0.3], num_samples=10_000)
        >>> figure.axes[0].get_title()
        'k-hat too high: 1 of 4 rows'
    """
    values = numpy_of(khat)
    limit = khat_limit(num_samples)
    finite = values[np.isfinite(values)]
    # The limit is the edge of a bar, so that a bar has one color.
    width = (max(finite.max(initial=1.0), 1.0) - min(finite.min(initial=0.0), 0.0)) / 30
    steps = np.floor((finite - limit) / width)
    edges = limit + width * np.arange(steps.min(initial=-1), steps.max(initial=0) + 2)
    counts, _ = np.histogram(finite, edges)
    figure = Figure(figsize=(6, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    colors = [ORANGE if left >= limit - width / 2 else BLUE for left in edges[:-1]]
    axes.bar(edges[:-1], counts, width=width, align="edge", color=colors)
    axes.axvline(limit, color="black", ls="--", lw=2.5, label=f"limit {limit:.2f}")
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
    notes = [f"{equal} rows: equal weights"] * (equal > 0)
    notes += [f"{unknown} rows: unknown"] * (unknown > 0)
    if notes:
        axes.text(
            0.99,
            0.96,
            "\n".join(notes),
            transform=axes.transAxes,
            fontsize=MEDIUM,
            bbox={"facecolor": "white", "lw": 0},
            ha="right",
            va="top",
        )
    bad = unknown + int(np.sum(finite > limit))
    annotate(
        axes,
        title=f"k-hat too high: {bad} of {len(values)} rows",
        x=f"Pareto k-hat of {num_samples:,} samples",
        y="rows",
    )
    legend_above(figure, [axes])
    return figure
