"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(
    total: int | None, label: str, unit: str, progress: bool | None
) -> Iterator[tqdm[Any]]:
    """A progress bar on standard error; `progress=None` shows it on a terminal only."""
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=total, desc=label, unit=unit, disable=not shown, leave=False) as bar:
        yield bar
