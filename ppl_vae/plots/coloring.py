"""Contact sheets of colored photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.plots.curves import learning_curves
from ppl_vae.plots.files import draw_into

SHEET_PIXELS = 480
"""Longest side of a picture on a sheet, in pixels: larger ones are thinned out."""

_OF_A_PICTURE = 2.2
"""Inches."""


def segment_colors(segments: Tensor) -> Tensor:
    """Segments as a picture with a color for each number, uint8, `(*batch, 3)`.

    Args:
        segments: Whole numbers from 0, of any shape. Numbers from 20 on take the colors again.

    Example:
        >>> segment_colors(torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([2, 2, 3])
    """
    palette = np.asarray(colormaps["tab20"].colors)  # type: ignore[attr-defined]
    # The strong ones first, then the pale ones.
    order = torch.from_numpy(np.concatenate([palette[::2], palette[1::2]]))
    found: Tensor = (255 * order).round().to(torch.uint8)[segments.long() % len(order)]
    return found


def contact_sheet(
    columns: Mapping[str, Sequence[Tensor | None]], names: Sequence[str] = ()
) -> Figure:
    """Pictures side by side, a line for each photo.

    Args:
        columns: For each title the pictures of all photos, uint8, `(h, w, 3)` or gray `(h, w)`; None where
            there is none.
        names: What stands to the left of each line.

    Raises:
        ValueError: The columns differ in length, or there are none.

    Example:
        >>> gray = torch.zeros(8, 12, dtype=torch.uint8)
        >>> figure = contact_sheet({"gray": [gray], "truth": [None]}, ["a.png"])
        >>> len(figure.axes)
        2
    """
    lengths = {len(pictures) for pictures in columns.values()}
    if len(lengths) != 1 or not max(lengths):
        raise ValueError(
            f"a contact sheet needs columns of as many pictures each, got {sorted(lengths) or 'none'}"
        )
    (count,) = lengths
    lines = list(zip(*columns.values(), strict=True))
    heights = [
        max((p.shape[0] / p.shape[1] for p in line if p is not None), default=1.0) for line in lines
    ]
    width = _OF_A_PICTURE * len(columns)
    # Very tall photos are made smaller, so that a line is no higher than three are wide.
    heights = [min(max(h, 0.2), 3.0) for h in heights]
    size = (width + 0.3, _OF_A_PICTURE * sum(heights) + 0.2 * count + 0.4)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(count, len(columns), squeeze=False, height_ratios=heights)
    for line, axes_of_line, height in zip(lines, panels, heights, strict=True):
        for picture, axes in zip(line, axes_of_line, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if picture is None:
                axes.set_box_aspect(height)  # so that titles stand in one line
            else:
                step = -(-max(picture.shape[:2]) // SHEET_PIXELS)
                gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.dim() == 2 else {}
                axes.imshow(picture[::step, ::step].numpy(), interpolation="antialiased", **gray)
    for title, axes in zip(columns, panels[0], strict=True):
        axes.set_title(title, fontsize=12)
    for name, axes in zip(names, panels[:, 0], strict=False):
        short = name if len(name) < 24 else f"{name[:10]}...{name[-10:]}"
        axes.set_ylabel(short, fontsize=9, parse_math=False)
    return figure


def draw_colors(
    folder: Path,
    history: Sequence[Mapping[str, float]],
    columns: Mapping[str, Sequence[Tensor | None]],
    names: Sequence[str],
    weights: str | None = None,
    dark: Path | None = None,
) -> list[str]:
    """Draws the pictures of a run of a model of colors into a folder.

    Args:
        folder: The folder; it is made if it is not there.
        history: One mapping per epoch.
        columns: Those of the contact sheet.
        names: Its photos.
        weights: The digest of the pair's weights, which is written into each picture.
        dark: Another folder, for the same pictures on dark paper; None: they are not drawn.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    draws = {
        "learning_curves": lambda: lambda: learning_curves(history),
        "colorings": lambda: lambda: contact_sheet(columns, names),
    }
    return draw_into(folder, draws, weights, dark)
