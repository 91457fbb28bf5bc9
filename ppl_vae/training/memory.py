"""Whether a training fits into the memory: a system ends a program that needs more without a word."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

_LARGE = 2**30
"""Bytes below which a training is not looked at."""


def require_memory(
    parameters: Collection[Tensor], moments: int, *, keeps_best: bool, writes: bool
) -> None:
    """Raises an error for a training on the CPU that cannot fit into the free memory.

    It counts what every training of this kind holds beside the weights: gradients, the moments of the
    optimizer, a copy of the best weights, and a checkpoint with all of them, twice while it is written. What
    the programs compute comes on top of that.

    Args:
        parameters: What is trained.
        moments: How many numbers the optimizer keeps for each weight.
        keeps_best: Whether the best weights are kept.
        writes: Whether checkpoints are written.

    Raises:
        ValueError: It cannot.
    """
    weights = sum(p.numel() for p in parameters if p.device.type == "cpu")
    size = sum(p.numel() * p.element_size() for p in parameters if p.device.type == "cpu")
    copies = 1 + moments + keeps_best
    copies += 2 * (1 + moments + keeps_best) if writes else 0
    needed = size * copies
    if needed < _LARGE:
        return
    free = free_memory()
    if needed > free:
        held = ["gradients", "the optimizer"]
        held += ["the best weights"] * keeps_best + ["checkpoints"] * writes
        raise ValueError(
            f"the training needs at least {needed / 2**30:.0f} GiB of memory beside its {weights:,} weights, "
            f"for {', '.join(held)}, and {free / 2**30:.0f} GiB are free: choose a smaller network "
            "(MLP.hidden) or rows of fewer numbers"
        )


def free_memory() -> float:
    """Free memory in bytes, with what the system can free, within the limit of a container; else infinite."""
    return min(_of_system(), _of_container())


def _of_system() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return math.inf


def _of_container() -> float:
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text().strip()
        used = (folder / "memory.current").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if most == "max" else max(0.0, float(most) - float(used))
