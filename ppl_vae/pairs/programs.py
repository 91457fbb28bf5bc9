"""Programs and batches: calling a model or guide with rows of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

Program = Callable[..., Any]
"""A Pyro model or guide."""

Batch = Tensor | tuple[Tensor, ...]
"""Rows of data: one tensor, or one for each argument of the programs."""


def as_args(batch: Batch) -> tuple[Tensor, ...]:
    """The arguments to call a model or guide with for one batch: `model(*as_args(batch))`."""
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def num_rows(batch: Batch) -> int:
    """The number of rows `n` of a batch: the first dimension of its first tensor."""
    return int(as_args(batch)[0].shape[0])


def take_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """The given rows of every tensor of a batch."""
    if isinstance(batch, tuple):
        return tuple(_rows_of(tensor, rows) for tensor in batch)
    return _rows_of(batch, rows)


def move(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def _rows_of(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    # For whole rows, index_select is twice as fast as indexing.
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def trace_guide(guide: Program, *args: Tensor) -> Any:
    """Runs a guide: its trace.

    A guide that is a messenger (`AutoNormalMessenger`) runs the model with other distributions for the latents.
    What the model observes is not its own, and does not belong to the trace.
    """
    trace: Any = poutine.trace(guide).get_trace(*args)
    if isinstance(poutine.unwrap(guide), Messenger):
        for name, site in list(trace.nodes.items()):
            if site["type"] == "sample" and site["is_observed"]:
                trace.remove_node(name)
    return trace


def trace_programs(
    model: Program,
    guide: Program,
    batch: Batch,
    as_seen: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Runs the guide, then the model with the guide's latents: `(model_trace, guide_trace)`.

    Args:
        model: The model.
        guide: The guide.
        batch: The rows.
        as_seen: From the guide's trace, the trace that the model gets its latents from: the same numbers with
            another gradient.
    """
    args = as_args(batch)
    guide_trace = trace_guide(guide, *args)
    seen = guide_trace if as_seen is None else as_seen(guide_trace)
    replayed = poutine.replay(model, trace=seen)
    return poutine.trace(replayed).get_trace(*args), guide_trace
