"""Denormal numbers, which are slow, treated as zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Treats numbers below the smallest normal one, 1e-38, as 0 on the CPU.

    Adam's averages of a gradient that has become 0 (a dead unit, a pixel that is always black) shrink to such
    numbers within a thousand steps. Processors are slow with them: a step took 50 % longer.
    """
    flushed = float(torch.tensor(1e-40) * 1.0) == 0.0  # torch has no function to ask
    changed = not flushed and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changed:
            torch.set_flush_denormal(False)
