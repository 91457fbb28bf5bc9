"""Progress bars: on standard error, or as widgets in a notebook that has them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ppl_vae.runtime.notebook import in_notebook

with warnings.catch_warnings():
    # Without ipywidgets, a notebook has bars of text, which do as well.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm


@contextmanager
def progress_bar(
    total: int | None, label: str, unit: str, progress: bool | None
) -> Iterator[tqdm[Any]]:
    """A progress bar; `progress=None` shows it on a terminal and in a notebook only."""
    shown = sys.stderr.isatty() or in_notebook() if progress is None else progress
    with tqdm(total=total, desc=label, unit=unit, disable=not shown, leave=False) as bar:
        yield bar
