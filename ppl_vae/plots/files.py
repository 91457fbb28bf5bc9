"""Pictures as files: on white paper, and once more on dark paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_vae.runs import WEIGHTS_KEY
from ppl_vae.runtime import own_folder, replacing

Draw = Callable[[], Figure]
"""A function that draws; it draws in the style of the moment at which it is called."""

DARK_PAPER, DARK_INK = "#16191d", "#e8e8e8"
"""Background and text of dark pictures: those of a report."""

_OF_INK = (
    *("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
    *("lines.color", "patch.edgecolor", "grid.color"),
)
_OF_PAPER = ("figure.facecolor", "figure.edgecolor", "axes.facecolor")


@contextmanager
def dark_paper() -> Iterator[None]:
    """Pictures that are drawn meanwhile are light on dark, as a report shows them in the dark.

    Example:
        >>> from matplotlib.colors import to_hex
        >>> from ppl_vae.plots import kl_per_dimension
        >>> with dark_paper():
        ...     figure = kl_per_dimension([1.0, 0.5], [0.9, 0.6])
        >>> to_hex(figure.get_facecolor()) == DARK_PAPER
        True
    """
    colors: dict[Any, Any] = dict.fromkeys(_OF_INK, DARK_INK) | dict.fromkeys(_OF_PAPER, DARK_PAPER)
    with rc_context(colors):
        yield


def draw_into(
    folder: Path,
    draws: Mapping[str, Callable[[], Draw]],
    weights: str | None,
    dark: Path | None = None,
) -> list[str]:
    """Draws pictures by name into a folder.

    Args:
        folder: The folder; it is made if it is not there.
        draws: For each name a function that computes what is shown, once, and returns one that draws it.
        weights: The digest of the pair's weights, which is written into each picture.
        dark: Another folder, for the same pictures on dark paper; None: they are not drawn.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    failed = []
    for name, prepare in draws.items():
        try:
            draw = prepare()
            _save(draw(), own_folder(folder) / f"{name}.png", weights)
            if dark is not None:
                with dark_paper():
                    _save(draw(), own_folder(dark) / f"{name}.png", weights)
        except Exception as error:  # the user's programs may raise anything; the results are safe
            failed.append(f"{name}.png was not drawn: {error}")
    return failed


def _save(figure: Figure, file: Path, weights: str | None) -> None:
    with replacing(file) as temporary:
        figure.savefig(temporary, metadata={} if weights is None else {WEIGHTS_KEY: weights})
