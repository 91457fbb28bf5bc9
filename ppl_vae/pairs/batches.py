"""Data as batches: a tensor (or a tuple of tensors) held in memory, or any iterable of batches.

Tensors are split by one gather with a permutation that depends only on the seed and the epoch. The order of the
data is therefore known at every step without being stored. Iterables, such as a `DataLoader`, keep their own
order.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_vae.pairs.autoguides import autoguides_of, keep_rows
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, num_rows, take_rows

_FEW = 64
"""Rows that show what an autoguide keeps."""

DataLike = Tensor | tuple[Tensor, ...] | Iterable[Any]


class Batches:
    """The rows of `x` as batches for the programs of a pair.

    Args:
        x: A tensor `(n, *event)`; a tuple of such tensors for programs with several arguments; or an
            iterable of batches (also a list) that can be iterated once per epoch. If a batch holds more
            tensors than the model takes (usually labels), only the first ones are kept: one for each argument
            without a default, and for each argument right after these whose default is None (`y=None`).
            Other arguments (`annealing=1.0`) are options, not data.
        pair: The pair that the batches are for.

    Raises:
        TypeError: `x` is none of these, or is an iterator that can be read only once.
        ValueError: There are no rows, or the tensors have different numbers of rows.
    """

    def __init__(self, x: DataLike, pair: Pair) -> None:
        self._arguments = _num_arguments(pair)
        self._rows: Batch | None = None
        if isinstance(x, Tensor) or (
            isinstance(x, tuple) and x and all(isinstance(t, Tensor) for t in x)
        ):
            self._rows = self._cut(x)
            self._check(self._rows)
        elif isinstance(x, Iterator):
            raise TypeError(
                f"x is a {type(x).__name__}, which can be read only once; give a DataLoader, a list of "
                "batches, or another iterable that can be read again"
            )
        elif isinstance(x, Iterable):
            self._iterable: Iterable[Any] = x
        else:
            raise TypeError(
                f"x is a {type(x).__name__}; expected a tensor of shape (rows, ...), a tuple of them, or "
                "an iterable of batches such as a torch DataLoader"
            )
        self._look_at_autoguides(pair)

    def _look_at_autoguides(self, pair: Pair) -> None:
        """Tells the pair whether its autoguides keep parameters for each row, which only rows can show."""
        guides = autoguides_of(pair.guide)
        if guides and not getattr(pair.guide, "keeps_rows", False):
            with torch.random.fork_rng():
                few = take_rows(self.first(_FEW), slice(0, _FEW))
            pair.keeps_rows = keep_rows(guides, pair.model, few)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are tensors rather than an iterable."""
        return self._rows is not None

    @property
    def rows(self) -> Batch:
        """All rows; only if they are in memory."""
        assert self._rows is not None
        return self._rows

    def num_batches(self, batch_size: int) -> int | None:
        """The number of batches in an epoch, or None for an iterable without a length."""
        if self._rows is not None:
            return math.ceil(num_rows(self._rows) / batch_size)
        try:
            return len(self._iterable)  # type: ignore[arg-type]
        except TypeError:
            return None

    def last_batch(self, batch_size: int) -> int | None:
        """Rows of the last batch of an epoch; None if it is as large as the others, or not known."""
        if self._rows is not None:
            rows = num_rows(self._rows)
        else:
            loader: Any = self._iterable
            if getattr(loader, "drop_last", True) or not getattr(loader, "batch_size", None):
                return None
            try:
                rows, batch_size = len(loader.dataset), loader.batch_size
            except (AttributeError, TypeError):  # not a DataLoader, or one without a known length
                return None
        return (rows % batch_size or None) if rows > batch_size else None

    def first(self, batch_size: int) -> Batch:
        """The first batch, for inspecting the pair."""
        if self._rows is not None:
            return take_rows(self._rows, slice(0, batch_size))
        for batch in self.ordered(batch_size):
            return batch
        raise ValueError("x holds no batches")

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """The batches, in the order of the rows.

        In memory, a single last row joins the batch before it: many programs do not run on one row alone.
        """
        if self._rows is not None:
            for part in parts_of(num_rows(self._rows), batch_size):
                yield take_rows(self._rows, part)
        else:
            for batch in self._iterable:
                yield self._as_batch(batch)

    def shuffled(
        self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[tuple[Batch | None, int]]:
        """The batches of an epoch from step `start` on, as `(batch, rows of the global batch)`.

        A process gets every `world`-th row of each global batch, or None if no row is left for it. A batch
        of all rows keeps their order, because guides with parameters for each row rely on it.
        """
        if self._rows is None:
            batches = self.ordered(batch_size)
            if world > 1:
                batches = _in_one_order(batches, seed, epoch)
            for i, batch in enumerate(batches):
                if i >= start:
                    n = num_rows(batch)
                    own = batch if world == 1 else take_rows(batch, slice(rank, None, world))
                    yield (own if num_rows(own) else None), n
            return
        n = num_rows(self._rows)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.arange(n) if batch_size >= n else torch.randperm(n, generator=generator)
        for first in range(start * batch_size, n, batch_size):
            index = order[first : first + batch_size]
            own_index = index[rank::world]
            yield (take_rows(self._rows, own_index) if len(own_index) else None), len(index)

    def _as_batch(self, batch: Any) -> Batch:
        if isinstance(batch, (tuple, list)) and batch and all(isinstance(t, Tensor) for t in batch):
            batch = self._cut(tuple(batch))
        elif not isinstance(batch, Tensor):
            raise TypeError(
                f"a batch of x is a {type(batch).__name__}; expected a tensor or a tuple of tensors"
            )
        self._check(batch)
        return batch  # type: ignore[no-any-return]

    def _cut(self, batch: Batch) -> Batch:
        if isinstance(batch, Tensor):
            return batch
        kept = batch if self._arguments is None else batch[: self._arguments]
        return kept[0] if len(kept) == 1 else kept

    @staticmethod
    def _check(batch: Batch) -> None:
        tensors = (batch,) if isinstance(batch, Tensor) else batch
        if any(t.dim() == 0 or t.shape[0] == 0 for t in tensors):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"x has no rows: its shape is {shapes}; expected (rows, ...)")
        if len({t.shape[0] for t in tensors}) > 1:
            sizes = ", ".join(str(t.shape[0]) for t in tensors)
            raise ValueError(f"the tensors of a batch have different numbers of rows: {sizes}")


def parts_of(n: int, size: int) -> list[slice]:
    """n rows in parts of `size`; a single last row joins the part before it.

    Example:
        >>> parts_of(5, 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    starts = list(range(0, n, size))
    if size > 1 and n > size and n % size == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def _in_one_order(batches: Iterator[Batch], seed: int, epoch: int) -> Iterator[Batch]:
    """Makes a loader shuffle the same way in every process.

    A seed for the first batch is enough, because a loader draws its order there.
    """
    with torch.random.fork_rng():
        torch.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches


def _num_arguments(pair: Pair) -> int | None:
    """The number of tensors that the model takes; None if it takes any number or has no readable signature."""
    program = pair.model.forward if isinstance(pair.model, torch.nn.Module) else pair.model
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    data = itertools.takewhile(lambda p: p.default in (p.empty, None), positional)
    return max(1, len(list(data)))
