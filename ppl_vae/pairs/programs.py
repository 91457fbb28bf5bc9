"""Programs and batches: calling a model or guide with rows of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.pairs.shared_work import sharing_work

Program = Callable[..., Any]
"""A Pyro model or guide."""


class SomeArguments(tuple[Tensor, ...]):
    """Rows of data for some arguments of the programs; the arguments before and between them are None.

    Example:
        >>> as_args(SomeArguments.at([1], [torch.zeros(3)]))
        (None, tensor([0., 0., 0.]))
    """

    places: tuple[int, ...]

    @classmethod
    def at(cls, places: Iterable[int], tensors: Iterable[Tensor]) -> SomeArguments:
        """The tensors, each for the argument of that number, counted from 0."""
        some = cls(tensors)
        some.places = tuple(places)
        return some


Batch = Tensor | tuple[Tensor, ...]
"""Rows of data: one tensor, or one for each argument of the programs, or `SomeArguments`."""


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """The tensors of a batch."""
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def with_tensors(batch: Batch, tensors: Iterable[Tensor]) -> Batch:
    """Other tensors for the same arguments as those of a batch."""
    if isinstance(batch, SomeArguments):
        return SomeArguments.at(batch.places, tensors)
    found = tuple(tensors)
    return found[0] if isinstance(batch, Tensor) else found


def places_of(batch: Batch) -> tuple[int, ...]:
    """The numbers of the arguments that the tensors of a batch are for."""
    if isinstance(batch, SomeArguments):
        return batch.places
    return tuple(range(len(tensors_of(batch))))


def as_args(batch: Batch) -> tuple[Any, ...]:
    """The arguments to call a model or guide with for one batch: `model(*as_args(batch))`."""
    if not isinstance(batch, SomeArguments):
        return tensors_of(batch)
    given = dict(zip(batch.places, batch, strict=True))
    return tuple(given.get(i) for i in range(max(given) + 1))


def num_rows(batch: Batch) -> int:
    """The number of rows `n` of a batch: the first dimension of its first tensor."""
    return int(tensors_of(batch)[0].shape[0])


def shapes_of_rows(batch: Batch) -> object:
    """The shape and dtype of a row in each tensor of a batch, and which arguments they are for."""
    return places_of(batch), tuple((t.shape[1:], t.dtype) for t in tensors_of(batch))


def take_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """The given rows of every tensor of a batch."""
    return with_tensors(batch, [_rows_of(tensor, rows) for tensor in tensors_of(batch)])


def move(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch to a device."""
    return with_tensors(batch, [t.to(device, non_blocking=True) for t in tensors_of(batch)])


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
    with sharing_work():
        guide_trace = trace_guide(guide, *args)
        seen = guide_trace if as_seen is None else as_seen(guide_trace)
        replayed = poutine.replay(model, trace=seen)
        return poutine.trace(replayed).get_trace(*args), guide_trace
