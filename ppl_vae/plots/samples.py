"""Pictures of what a pair generates: reconstructions, samples, decoded latents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_vae.plots.drawing import (
    annotate,
    curve_cells,
    curve_panels,
    decode,
    heat_maps,
    is_picture,
    mosaic,
    normal_quantiles,
    numpy_of,
    signed,
    value_range,
)
from ppl_vae.runtime import require_count

Decoder = Callable[[torch.Tensor], torch.Tensor]


def reconstructions(x: ArrayLike | torch.Tensor, x_mean: ArrayLike | torch.Tensor) -> Figure:
    """Inputs beside their reconstructions.

    Args:
        x: Data `(n, *event)`; at most the first 24 rows are shown.
        x_mean: Their reconstructions E[x | z], in the same shape and order.

    Returns:
        Pictures: each row of inputs above the row of its reconstructions, on one scale of values.
        Other data: two heat maps side by side.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> figure = reconstructions(torch.rand(8, 5, 5), torch.rand(8, 5, 5))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['input', 'output']
    """
    inputs, outputs = numpy_of(x, "x", "(n, *event)"), numpy_of(x_mean, "x_mean", "(n, *event)")
    if inputs.shape != outputs.shape:
        raise ValueError(
            f"reconstructions needs x and x_mean of one shape; got {inputs.shape} and "
            f"{outputs.shape}. Pass the mean of p(x | z) of the same rows."
        )
    inputs, outputs = inputs[:24], outputs[:24]
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
    samples = numpy_of(x, "x", "(n, *event)")[:64]
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
        decode_mean: Maps latents `(size * size, 2)` to means of p(x | z), `(size * size, *event)`.
        size: Tiles per side.

    Returns:
        A square of tiles; z[0] grows to the right and z[1] upwards.

    Example:
        >>> figure = manifold(lambda z: z.sum(-1)[:, None, None].expand(-1, 4, 4), size=3)
        >>> figure.axes[0].get_xlabel()
        'z[0]'
    """
    require_count("size", size)
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
        decode_mean: Maps latents `(m, latent_dim)` to means of p(x | z), `(m, *event)`.
        kl: Mean KL of each latent dimension, `(latent_dim,)`, in nats; the dimensions with the
            largest (at most ten) are shown, the largest first.

    Returns:
        Pictures: one row per dimension, one column per value. Other data: one panel of curves per
        dimension.

    Example:
        >>> figure = traversals(lambda z: z.sum(-1)[:, None, None].expand(-1, 4, 4), [0.1, 2.0])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['z[1]: 2.0', 'z[0]: 0.1']
    """
    sizes = numpy_of(kl, "kl", "(latent_dim,)")
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
