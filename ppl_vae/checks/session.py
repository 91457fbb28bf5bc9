"""A pair opened for evaluation: mode, device, seed, and chunks of rows that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.pairs import (
    Batch,
    Batches,
    Layout,
    Pair,
    num_rows,
    sample_rows,
)
from ppl_vae.runtime import device_of

MEMORY_BUDGET = 64 * 2**20
"""Bytes of intermediate results that one chunk of rows x samples may make."""


@contextmanager
def evaluating(pair: Pair, seed: int | None) -> Iterator[None]:
    """No gradients, evaluation mode, the pair's own parameters, and a seed of its own if one is given."""
    with torch.no_grad(), pair.scope(), pair.mode(training=False):
        if seed is None:
            yield
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                yield


def device_of_pair(pair: Pair) -> torch.device:
    """Where the pair's parameters are; the CPU if it has none."""
    tensors = [p for module in pair.modules().values() for p in module.parameters()]
    return device_of([*tensors, *pair.store["params"].values()])


def all_rows(batches: Batches) -> int:
    """The number of all rows, for guides that can not be given fewer.

    Raises:
        ValueError: The rows are not in one tensor.
    """
    if not batches.in_memory:
        raise ValueError(
            "the guide keeps parameters for each row: give evaluate all rows in one tensor"
        )
    return num_rows(batches.rows)


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of everything that is computed inside of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return out


def chunk_sizes(pair: Pair, layout: Layout, batch: Batch, num_samples: int) -> tuple[int, int]:
    """How many rows and samples to run at once, measured so as to stay in the memory budget."""
    n = num_rows(batch)
    used = []
    for k in (2, 6):
        with torch.random.fork_rng(), _CountBytes() as counter:
            sample_rows(pair, layout, batch, k)
        used.append(counter.total)
    a_sample = max(1.0, (used[1] - used[0]) / (4 * n))
    at_once = max(1, int(MEMORY_BUDGET / a_sample))
    most = 64 if layout.vectorizes else 1024  # looped samples: the rows alone fill a run
    rows = n if pair.keeps_rows else max(1, min(most, at_once))
    return rows, max(1, min(num_samples, at_once // rows))
