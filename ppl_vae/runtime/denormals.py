"""Denormal numbers, which are slow, taken for zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below the smallest normal one, 1e-38, are taken for 0 on the CPU.

    Adam's averages of a gradient that has become 0, as of a dead unit or of a pixel that is always black,
    shrink to such numbers within a thousand steps. Processors are slow with them: a step took half as long
    again.
    """
    flushed = float(torch.tensor(1e-40) * 1.0) == 0.0  # there is no other way to ask
    changed = not flushed and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changed:
            torch.set_flush_denormal(False)
