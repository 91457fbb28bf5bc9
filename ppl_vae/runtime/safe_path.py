"""Processes that are started meanwhile: none of them finds modules in the current folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "PYTHONSAFEPATH"
_lock = threading.Lock()
_inside = 0
_before: str | None = None


@contextmanager
def safe_children(safe: bool = True) -> Iterator[None]:
    """Keeps the current folder off the path of each Python that this process starts meanwhile.

    `python -c` and `python -m`, by which libraries start others, put it first on their path: a file `json.py`
    there would be run in the place of Python's own. The environment is as it was when the last thread leaves.

    Args:
        safe: False changes nothing.
    """
    global _inside, _before
    if not safe:
        yield
        return
    with _lock:
        if _inside == 0:
            _before = os.environ.get(_VARIABLE)
            os.environ[_VARIABLE] = "1"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _before is None:
                os.environ.pop(_VARIABLE, None)
            elif _inside == 0 and _before is not None:
                os.environ[_VARIABLE] = _before
