"""Progress: bars on a terminal, widgets in a notebook that has them; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ppl_vae.runtime.notebook import in_notebook

with warnings.catch_warnings():
    # Without ipywidgets, a notebook has bars of text, which do as well.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

Say = Callable[[str], None]

_LEAST_SECONDS, _MOST_SECONDS = 3.0, 600.0
"""Between two lines of a bar: a short piece of work tells nothing, and a long one not only each tenth."""

_say: ContextVar[Say | None] = ContextVar("_say", default=None)


@contextmanager
def progress_in_lines(say: Say) -> Iterator[None]:
    """Meanwhile, bars that are shown on a terminal only are told in a few lines where there is none."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


@contextmanager
def progress_bar(total: int | None, label: str, unit: str, progress: bool | None) -> Iterator[Any]:
    """A progress bar; `progress=None` shows it on a terminal and in a notebook only."""
    say = _say.get()
    if progress is None and not bars_by_default() and say is not None and total:
        yield _Lines(total, label, say)
        return
    shown = bars_by_default() if progress is None else progress
    with tqdm(total=total, desc=label, unit=unit, disable=not shown, leave=False) as bar:
        yield bar


def bars_by_default() -> bool:
    """Whether somebody looks at the bars of work that goes on: on a terminal, or in a notebook."""
    return on_terminal() or in_notebook()


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


class _Lines:
    """What `tqdm` is for a terminal: a line for each tenth of the work, with the numbers and the time left.

    Args:
        total: How much there is to do.
        label: What is done.
        say: Prints a line.
    """

    def __init__(self, total: int, label: str, say: Say) -> None:
        self._total, self._label, self._say = total, label, say
        self._done = 0
        self._numbers = ""
        self._start = self._told = time.monotonic()
        self._mark = (self._start, 0)  # from where the pace is measured
        self._due: bool = False

    def update(self, n: int = 1) -> None:
        """Counts what has been done."""
        now = time.monotonic()
        before, self._done = self._done, self._done + n
        if before == 0 and now - self._start < 0.05:  # done by the run that this one continues
            self._mark = (now, self._done)
        tenth = 10 * before // self._total < 10 * self._done // self._total
        self._due = self._due or tenth or now - self._told > _MOST_SECONDS
        if self._due and not self._numbers:
            self._tell()

    def set_postfix(self, ordered_dict: Mapping[str, Any] | None = None, **numbers: Any) -> None:
        """Tells what is measured, with the next line."""
        measured = {**(ordered_dict or {}), **numbers}
        self._numbers = ", ".join(f"{name} {value}" for name, value in measured.items())
        if self._due:
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        self._due = False
        since, done = self._mark
        left = self._total - self._done
        if now - self._told < _LEAST_SECONDS or left <= 0 or self._done <= done:
            return
        seconds = left * (now - since) / (self._done - done)
        self._told, self._mark = now, (now, self._done)
        numbers = f"{self._numbers}; " if self._numbers else ""
        self._say(
            f"{self._label}, {100 * self._done // self._total} %: {numbers}{duration(now - self._start)} so "
            f"far, about {duration(seconds)} left"
        )


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> [duration(s) for s in (0.04, 3.21, 59.7, 200, 7321)]
        ['0.0 s', '3.2 s', '60 s', '3 min 20 s', '2 h 2 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
