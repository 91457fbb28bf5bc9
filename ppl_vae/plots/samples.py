"""Pictures of what a pair generates: reconstructions, samples, paths through the latent space."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ppl_vae.pairs import DISTORTION, MEASURES
from ppl_vae.plots.drawing import (
    LARGE,
    MEDIUM,
    Floats,
    annotate,
    curve_cells,
    curve_panels,
    decode,
    heat_maps,
    is_picture,
    mosaic,
    normal_quantiles,
    numpy_of,
    require_result,
    signed,
    some_rows,
    value_range,
)
from ppl_vae.runtime import require_count, require_seed
from ppl_vae.tasks import Outliers

Decoder = Callable[[torch.Tensor], torch.Tensor]

MOST_RECONSTRUCTED = 24

MOST_SAMPLES, MOST_OF_EACH = 64, 24

MOST_PATHS = 10

MOST_WORST = 8

REACH = 3.0
"""Where the paths of `traverse` end, in standard deviations of the prior."""


def reconstructions(
    x: ArrayLike | torch.Tensor, x_mean: ArrayLike | torch.Tensor, *, seed: int = 0
) -> Figure:
    """Inputs beside their reconstructions.

    Args:
        x: Data `(n, *event)`; of more than 24 rows, 24 are chosen at random: the first ones of sorted data
            would all be of one kind.
        x_mean: Their reconstructions E[x | z], in the same shape and order, as `ppl_vae.reconstruct`
            gives them.
        seed: Seed of the choice.

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
    require_seed(seed)
    inputs, outputs = _same_shape("reconstructions", x, x_mean)
    chosen = some_rows(len(inputs), MOST_RECONSTRUCTED, seed)
    inputs, outputs = inputs[chosen], outputs[chosen]
    if not is_picture(inputs):
        return heat_maps({"input": inputs, "reconstruction": outputs})
    columns = min(8, len(inputs))
    tiles = _pairs(inputs, outputs, columns)
    figure = Figure(figsize=(6, 0.7 + 0.6 * len(tiles)), dpi=150, layout="constrained")
    axes = figure.subplots()
    mosaic(axes, tiles, value_range(inputs))
    axes.set_yticks(range(len(tiles)), ["input", "output"] * (len(tiles) // 2))
    axes.set_xticks([])
    annotate(axes, title="inputs and reconstructions")
    return figure


def worst_reconstructions(
    x: ArrayLike | torch.Tensor, x_mean: ArrayLike | torch.Tensor, worst: Outliers
) -> Figure:
    """The rows that a pair explains worst, their reconstructions, and their ELBO (or distortion).

    Args:
        x: Those rows, `(num, *event)`: `x[worst.index]`.
        x_mean: Their reconstructions, in the same shape and order.
        worst: What `ppl_vae.outliers` has returned; at most the first 8 rows are shown.

    Returns:
        Pictures: each row above its reconstruction, with its number and its value in nats below. Other data:
        two heat maps side by side, one line per row.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> from ppl_vae import outliers, reconstruct
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((3, 3), latent_dim=1), torch.zeros(50, 3, 3)
        >>> x[17] = 30.0
        >>> worst = outliers(model, Exact(model), x, num=4, seed=0)
        >>> some = x[worst.index]
        >>> figure = worst_reconstructions(some, reconstruct(model, Exact(model), some), worst)
        >>> figure.axes[0].texts[0].get_text().splitlines()[0]
        'row 17'
    """
    require_result("worst", worst, Outliers, "outliers")
    inputs, outputs = _same_shape("worst_reconstructions", x, x_mean)
    if len(inputs) != len(worst.index):
        raise ValueError(
            f"worst holds {len(worst.index)} rows, and x {len(inputs)}: pass x[worst.index]"
        )
    inputs, outputs = inputs[:MOST_WORST], outputs[:MOST_WORST]
    measure = next(each for each in MEASURES if each.name == worst.by)
    by_distortion = measure is DISTORTION
    values = (worst.distortion if by_distortion else worst.elbo).values.tolist()[:MOST_WORST]
    index = worst.index.tolist()[:MOST_WORST]
    name = measure.text
    title = f"{'highest' if by_distortion else 'lowest'} {name} of {worst.out_of:,} rows"
    if not is_picture(inputs):
        figure = heat_maps({"input": inputs, "reconstruction": outputs})
        labels = [f"{i}: {told}" for i, told in zip(index, _told_apart(values), strict=True)]
        figure.axes[0].set_yticks(range(len(index)), labels)
        figure.axes[0].set_ylabel(f"row: {name} (nats)", fontsize=LARGE)
        figure.suptitle(title, fontsize=LARGE)
        return figure
    columns = min(4, len(inputs))
    tiles = _pairs(inputs, outputs, columns)
    # Room for the words below each reconstruction.
    height, width = inputs.shape[-2:]
    room = max(2, round(0.5 * width))
    tiles = np.pad(tiles, [*[(0, 0)] * (tiles.ndim - 2), (0, room), (0, 0)], constant_values=np.nan)
    # Both pictures of a row in one tile, without the room between them.
    upper, lower = tiles[0::2, ..., : height + 1, :], tiles[1::2]
    tall = np.concatenate([upper, lower], axis=-2)
    total = tall.shape[-2]
    lines = len(tall)
    tile_width = 5.0 / columns
    figure = Figure(
        figsize=(6, 0.8 + lines * tile_width * total / width), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    mosaic(axes, tall, value_range(inputs))
    for place, (i, told) in enumerate(zip(index, _told_apart(values), strict=True)):
        axes.text(
            place % columns,
            place // columns + 0.5 - 0.5 * room / total,
            f"row {i}\n{told}",
            ha="center",
            va="center",
            fontsize=MEDIUM - 2,
            linespacing=1.0,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    annotate(axes, title=title, x=f"{name} in nats; above: input, reconstruction")
    return figure


def prior_samples(
    draws: ArrayLike | torch.Tensor | None = None,
    *,
    means: ArrayLike | torch.Tensor | None = None,
    data: ArrayLike | torch.Tensor | None = None,
) -> Figure:
    """Rows from the model, z from the prior, each kind labeled as what it is; and rows of the data beside them.

    Args:
        draws: Draws x ~ p(x | z), `(n, *event)`, as `ppl_vae.sample` gives them.
        means: Means E[x | z], as `ppl_vae.sample` gives them with `means=True`; with one seed, they are of the
            same z as the draws. They look smoother than what the model draws.
        data: Rows of the data, to compare with.

    Returns:
        A block of pictures for each kind, or a heat map with one line per sample: at most 64 of each, or 24 of
        each with data beside draws and means. The titles say how many there are, if there are more.

    Raises:
        ValueError: Nothing is given, or the rows have different shapes.

    Example:
        >>> figure = prior_samples(torch.rand(9, 5, 5), means=torch.rand(9, 5, 5))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['draws of x', 'means of p(x | z)']
    """
    given = {"data": data, "draws of x": draws, "means of p(x | z)": means}
    kinds = {
        title: numpy_of(rows, name, "(n, *event)")
        for (title, rows), name in zip(given.items(), ("data", "draws", "means"), strict=True)
        if rows is not None
    }
    if not kinds.keys() - {"data"}:
        raise ValueError("prior_samples needs draws, means or both")
    if len({rows.shape[1:] for rows in kinds.values()}) > 1:
        shapes = ", ".join(f"{title}: {rows.shape[1:]}" for title, rows in kinds.items())
        raise ValueError(f"prior_samples needs rows of one shape, got {shapes}")
    most = MOST_OF_EACH if len(kinds) == 3 else MOST_SAMPLES
    kinds = {
        f"{title}\n({most} of {len(rows):,})" if len(rows) > most else title: rows[:most]
        for title, rows in kinds.items()
    }
    if not is_picture(next(iter(kinds.values()))):
        figure = heat_maps(kinds)
        for axes in figure.axes[: len(kinds)] if len(kinds) > 1 else ():
            title = re.sub(
                "^(draws|means) of", r"\1\nof", axes.get_title()
            )  # the panels are narrow
            axes.set_title(title, fontsize=MEDIUM)
        return figure
    # Data say which value is white: with that of each kind of its own, means would look like draws.
    limits = value_range(
        np.concatenate(list(kinds.values())) if data is None else next(iter(kinds.values()))
    )
    rows = max(kinds.values(), key=len)
    square = len(kinds) == 1 or len(rows) > MOST_OF_EACH
    columns = int(np.ceil(np.sqrt(len(rows)))) if square else min(8, len(rows))
    lines = -(-len(rows) // columns)
    if square:  # side by side
        height = 0.9 + 4.4 * lines / columns * _shape_of_tile(rows)
        figure = Figure(
            figsize=(6.0 if len(kinds) == 1 else 9.4, max(height, 6.0 / len(kinds))),
            dpi=150,
            layout="constrained",
        )
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    else:
        height = lines * 5.3 / columns * _shape_of_tile(rows) + 0.45
        figure = Figure(figsize=(6, 0.1 + len(kinds) * height), dpi=150, layout="constrained")
        panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, kinds.items(), strict=True):
        mosaic(axes, _grid(rows, columns), limits, list(panels) if axes is panels[-1] else [])
        axes.set_xticks([])
        axes.set_yticks([])
        annotate(axes, title=title)
    return figure


def manifold(decode_mean: Decoder, *, size: int = 15) -> Figure:
    """Means of p(x | z) over a two-dimensional latent space, at equal steps of the mass of N(0, I).

    The grid's points are the standard normal's quantiles (i + 1/2) / size, so each tile has
    the same prior probability (Kingma and Welling, "Auto-Encoding Variational Bayes",
    arXiv:1312.6114, figure 4).

    Args:
        decode_mean: Maps latents `(size * size, 2)` to means of p(x | z), `(size * size, *event)`, such as
            `lambda z: ppl_vae.sample(model, len(z), given={"z": z}, means=True)`.
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


def traversals(
    paths: ArrayLike | torch.Tensor,
    kl: ArrayLike | torch.Tensor,
    *,
    names: Sequence[str] | None = None,
    row: ArrayLike | torch.Tensor | None = None,
    points: bool = False,
) -> Figure:
    """What each latent dimension does: it moves, and the others stay at the posterior mean of a row.

    Args:
        paths: E[x | z] as each dimension moves over three standard deviations of the prior to both sides,
            `(dimensions, steps, *event)`: `traverse(model, guide, x[:1], range(4))[0]`.
        kl: Mean KL of each of these dimensions, in nats; those with the largest (at most ten) are shown, the
            largest first.
        names: Their names; z[0], z[1], ... by default.
        row: The row at whose posterior mean the paths start, `(*event)`. Pictures: it stands on the left.
        points: Whether the latent is the code of an autoencoder: then `kl` is what each number is worth, and
            deviations are those of the codes.

    Returns:
        Pictures: one row per dimension, one column per value. Other data: one panel of curves per
        dimension.

    Raises:
        ValueError: The numbers of paths, of KLs and of names differ.

    Example:
        >>> figure = traversals(torch.rand(2, 9, 4, 4), [0.1, 2.0])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['z[1]: 2.0', 'z[0]: 0.1']
    """
    means = numpy_of(paths, "paths", "(dimensions, steps, *event)")
    sizes = numpy_of(kl, "kl", "(dimensions,)")
    called = [f"z[{i}]" for i in range(len(sizes))] if names is None else list(names)
    if not len(means) == len(sizes) == len(called):
        raise ValueError(
            f"traversals needs one KL and one name for each path, got {len(means)} paths, {len(sizes)} KLs and "
            f"{len(called)} names"
        )
    order = np.argsort(-sizes, kind="stable")[:MOST_PATHS]
    means = means[order]
    steps = means.shape[1]
    values = np.linspace(-REACH, REACH, steps)
    of = "code" if points else "prior"
    if not is_picture(means[0]):
        panels = [f"{called[i]}\n{sizes[i]:.1f}\nnats" for i in order]
        return curve_panels(means, values, panels, f"{of} standard deviations")
    limits = value_range(means)
    start = None if row is None else _one_row(row, means.shape[2:])
    tiles, first = _with_ends(means, start, None)
    columns = tiles.shape[1]
    figure = Figure(
        figsize=(6, 1.6 + 4.3 / columns * len(order) * _shape_of_tile(means[0])),
        dpi=150,
        layout="constrained",
    )
    axes = figure.subplots()
    mosaic(axes, tiles, limits)
    axes.set_yticks(range(len(order)), [f"{called[i]}: {sizes[i]:.1f}" for i in order])
    shown = sorted({0, (steps - 1) // 2, steps - 1})
    ticks = {first + i: signed(values[i]) for i in shown}
    if row is not None:
        ticks[0] = "row"
    axes.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)])
    annotate(
        axes,
        title="traversals" if row is None else "traversals from one row",
        x=f"one latent, in {of} standard deviations\n(the others: the row's "
        f"{'own' if points else 'posterior mean'})",
        y="number: worth (nats)" if points else "latent: KL (nats)",
    )
    axes.xaxis.label.set_fontsize(MEDIUM)
    return figure


def interpolations(
    paths: ArrayLike | torch.Tensor,
    *,
    a: ArrayLike | torch.Tensor | None = None,
    b: ArrayLike | torch.Tensor | None = None,
) -> Figure:
    """Paths through the latent space between pairs of rows.

    Args:
        paths: E[x | z] along each path, `(n, steps, *event)`, as `ppl_vae.interpolate` gives it; at most ten
            are shown.
        a: The rows at which the paths start, `(n, *event)`. Pictures: they stand on the left.
        b: The rows at which they end, on the right.

    Returns:
        Pictures: one row per path. Other data: one panel of curves per path.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> figure = interpolations(torch.rand(3, 5, 4, 4), a=torch.rand(3, 4, 4), b=torch.rand(3, 4, 4))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['row a', '0', '½', '1', 'row b']
    """
    means = numpy_of(paths, "paths", "(n, steps, *event)")
    ends = [
        None if rows is None else numpy_of(rows, name, "(n, *event)")
        for name, rows in (("a", a), ("b", b))
    ]
    for name, rows in zip("ab", ends, strict=True):
        if rows is not None and rows.shape != means[:, 0].shape:
            raise ValueError(
                f"{name} has shape {rows.shape}, and paths {means.shape}: expected {means[:, 0].shape}"
            )
    means = means[:MOST_PATHS]
    start, end = (None if rows is None else rows[:MOST_PATHS] for rows in ends)
    steps = means.shape[1]
    if not is_picture(means[0]):
        names = [f"path {i}" for i in range(len(means))]
        return curve_panels(means, np.linspace(0, 1, steps), names, "share of the way from a to b")
    tiles, first = _with_ends(means, start, end)
    columns = tiles.shape[1]
    figure = Figure(
        figsize=(6, 1.2 + 5.0 / columns * len(means) * _shape_of_tile(means[0])),
        dpi=150,
        layout="constrained",
    )
    axes = figure.subplots()
    shown = [values.ravel() for values in (means, start, end) if values is not None]
    mosaic(axes, tiles, value_range(np.concatenate(shown)))
    ticks = {first: "0", first + steps - 1: "1"}
    if steps % 2 and steps > 2:
        ticks[first + steps // 2] = "½"
    if start is not None:
        ticks[0] = "row a"
    if end is not None:
        ticks[columns - 1] = "row b"
    axes.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)])
    axes.set_yticks([])
    annotate(axes, title="mean of p(x | z) between two rows", x="share of the way")
    return figure


def _told_apart(values: Sequence[float]) -> list[str]:
    """Numbers without decimals, or with one or two if different ones would look the same.

    Example:
        >>> _told_apart([-9.31, -9.26, -8.4]), _told_apart([-12.0, -7.6])
        (['−9.31', '−9.26', '−8.40'], ['−12', '−8'])
    """
    known = {round(value, 2) for value in values}
    for decimals in range(3):
        texts = [f"{value:z,.{decimals}f}".replace("-", "−") for value in values]
        if len({*texts}) >= min(len(known), len(values)):
            break
    return texts


def _same_shape(
    function: str, x: ArrayLike | torch.Tensor, x_mean: ArrayLike | torch.Tensor
) -> tuple[Floats, Floats]:
    inputs, outputs = numpy_of(x, "x", "(n, *event)"), numpy_of(x_mean, "x_mean", "(n, *event)")
    if inputs.shape != outputs.shape:
        raise ValueError(
            f"{function} needs x and x_mean of one shape; got {inputs.shape} and "
            f"{outputs.shape}. Pass the mean of p(x | z) of the same rows."
        )
    return inputs, outputs


def _one_row(row: ArrayLike | torch.Tensor, shape: tuple[int, ...]) -> Floats:
    found = numpy_of(row, "row")
    if found.shape != shape:
        raise ValueError(f"row has shape {found.shape}, and those of the paths {shape}")
    return found


def _grid(rows: Floats, columns: int) -> Floats:
    """Rows from left to right and downwards; what is left of the last line is NaN."""
    lines = -(-len(rows) // columns)
    padding = [(0, lines * columns - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, padding, constant_values=np.nan).reshape(lines, columns, *rows.shape[1:])


def _pairs(inputs: Floats, outputs: Floats, columns: int) -> Floats:
    """Lines of inputs and of outputs in turn."""
    tiles = np.stack([_grid(inputs, columns), _grid(outputs, columns)], axis=1)
    return tiles.reshape(-1, *tiles.shape[2:])


def _with_ends(means: Floats, start: Floats | None, end: Floats | None) -> tuple[Floats, int]:
    """Paths with the rows at their ends, and an empty column between; and the column where the paths begin.

    Args:
        means: `(n, steps, *event)`.
        start: The rows on the left, `(n, *event)`, or one for all paths, in the line in the middle.
        end: The rows on the right.
    """
    gap = np.full_like(means[:, :1], np.nan)
    parts, first = [means], 0
    if start is not None:
        if start.ndim < means.ndim - 1:
            column = np.full_like(means[:, 0], np.nan)
            column[(len(means) - 1) // 2] = start
            start = column
        parts, first = [start[:, None], gap, *parts], 2
    if end is not None:
        parts = [*parts, gap, end[:, None]]
    return np.concatenate(parts, 1), first


def _shape_of_tile(pictures: Floats) -> float:
    height, width = pictures.shape[-2:]
    return float(height / width)
