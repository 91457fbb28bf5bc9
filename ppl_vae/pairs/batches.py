"""Data as batches: arrays held in memory, or any iterable of batches.

Tensors are split by one gather with a permutation that depends only on the seed and the epoch. The order of the
data is therefore known at every step without being stored. Iterables, such as a `DataLoader`, keep their own
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, TensorDataset

from ppl_vae.pairs.as_tensors import kind_of
from ppl_vae.pairs.autoguides import autoguides_of, device_of_programs, keep_rows
from ppl_vae.pairs.errors import PLAIN, PairError, first_line, is_plain
from ppl_vae.pairs.ours import own_attribute
from ppl_vae.pairs.own_rows import take_all_rows
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import (
    Batch,
    move,
    num_rows,
    places_of,
    take_rows,
    tensors_of,
    with_tensors,
)
from ppl_vae.pairs.row_parameters import has_dimension, runs_on_all_alone
from ppl_vae.pairs.rows_of_data import DataArguments, read_batch, read_data

_FEW = 64
"""Rows that show what an autoguide keeps."""

DataLike = Tensor | tuple[Tensor, ...] | Mapping[str, Any] | TensorDataset | Iterable[Any]
"""What `Batches` takes."""


class Batches:
    """The rows of `x` as batches for the programs of a pair.

    `x` is one of these:

    - an array `(n, *event)`: a tensor, or an array of numpy, pandas, polars or xarray, or lists of numbers;
    - a tuple of arrays, or a `TensorDataset`, for programs with several arguments;
    - a dict of arrays, its keys the names of the model's arguments;
    - an iterable of batches that can be iterated once per epoch, such as a `DataLoader` or a list. A batch is
      an array, or a tuple or dict of arrays.

    Tensors keep their dtype, but get no gradient. Other floating-point numbers (numpy and pandas hold float64)
    get the dtype of the pair's parameters, or torch's default dtype if there are none; integers and booleans
    keep theirs.

    If there are more arrays than the model takes (usually labels), only the first ones are kept: one for each
    argument without a default, and for each argument right after these whose default is None (`y=None`). Other
    arguments (`annealing=1.0`) are options, not data, and so are arguments after `*`, because programs are
    called by position. Each argument gets one tensor: tuples and dicts are not nested. Parts that are not
    arrays (names of rows), where the model does not need them, and keys of a dict that are not arguments of the
    model are ignored.

    A list of tensors is a list of batches, unless each is a single number; a list of vectors of another
    library, all of one length, is a list of rows. The same holds for lists of dicts of them. Sparse arrays are
    refused, because dense ones may not fit in memory.

    `Buckets` are an iterable of batches in a training alone. Otherwise they are rows in memory, in the order in
    which they were given, so that what is found of each row belongs to that row.

    Args:
        x: The data.
        pair: The pair that the batches are for.
        name: What to call the data in messages.
        transform: What is done to the first array of a batch before the programs see it.
        in_batches: Whether `Buckets` give the batches that they make, as in a training, and not rows in order.

    Attributes:
        name: What to call the data in messages.
        doubt: How a list of arrays was read, where it could mean rows or batches; otherwise empty. The checks
            add it to what they find.

    Raises:
        TypeError: `x` is none of these, is sparse or not numeric, or is an iterator that can be read only
            once; the message says what to pass.
        ValueError: There are no rows, or the arrays have different numbers of rows.

    Example:
        >>> import numpy as np
        >>> def model(x): ...
        >>> Batches(np.zeros((5, 2)), Pair(model, model)).rows.dtype
        torch.float32
    """

    def __init__(
        self,
        x: DataLike,
        pair: Pair,
        name: str = "x",
        transform: Callable[[Tensor], Tensor] | None = None,
        in_batches: bool = False,
    ) -> None:
        self._arguments, self.name = DataArguments.of(pair), name
        in_order = None if in_batches else own_attribute(x, "rows_in_order")
        x = x if in_order is None else in_order
        read = read_data(x, self._arguments, name)
        self._rows = read.rows
        self._iterable: Any = None if self.in_memory else x
        self._order: tuple[object, Tensor] | None = None
        self.doubt = read.doubt
        self._look_at_autoguides(pair, transform)
        self._look_at_parameters(pair, transform)

    def _look_at_autoguides(self, pair: Pair, transform: Callable[[Tensor], Tensor] | None) -> None:
        """Tells the pair whether its autoguides keep parameters for each row, which only rows can show."""
        guides = autoguides_of(pair.guide)
        if guides and getattr(pair.guide, "keeps_rows", False) is not True:
            with torch.random.fork_rng():
                few = take_rows(self.first(_FEW), slice(0, _FEW))
                few = few if transform is None else transformed(few, transform)
            few = move(few, device_of_programs(pair.model, guides))
            with pair.subsampling.watched():
                pair.keeps_rows = keep_rows(guides, pair.model, few)
                if _takes_all(pair, few):
                    pair.keeps_rows = keep_rows(guides, pair.model, few)

    def _look_at_parameters(self, pair: Pair, transform: Callable[[Tensor], Tensor] | None) -> None:
        """Tells the pair if it has parameters for all of these rows and does not run on fewer."""
        if self._rows is None or pair.keeps_rows or autoguides_of(pair.guide):
            return
        if has_dimension(pair, num_rows(self._rows)):
            everything = self._rows if transform is None else transformed(self._rows, transform)
            pair.keeps_rows = runs_on_all_alone(pair, everything, _FEW)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are tensors rather than an iterable."""
        return self._rows is not None

    @property
    def rows(self) -> Batch:
        """All rows.

        Raises:
            ValueError: `x` is an iterable of batches.
        """
        if self._rows is None:
            raise ValueError(
                "all rows are needed at once (a guide that keeps parameters for each row always needs them): "
                f"pass {self.name} as one tensor"
            )
        return self._rows

    def require_all_rows(self, pair: Pair, batch_size: int) -> None:
        """Refuses to give a guide that keeps parameters for each row fewer than all rows at once.

        Raises:
            PairError: The guide is such a one, and an epoch has several batches.
        """
        if pair.keeps_rows and self.num_batches(batch_size) != 1:
            some = f"batches of {batch_size} rows" if self.in_memory else "several batches"
            raise PairError(not_in_parts(some))

    def num_batches(self, batch_size: int) -> int | None:
        """The number of batches in an epoch, or None for an iterable without a length."""
        if self._rows is not None:
            return math.ceil(num_rows(self._rows) / batch_size)
        try:
            return len(self._iterable)
        except TypeError:
            return None

    @property
    def rows_per_batch(self) -> float | None:
        """The mean number of rows in a batch, where batches of unlike sizes are to be weighed by their rows.

        Only `Buckets` say so. None leaves each batch the weight of every other, as is usual: of rows in memory,
        or of a `DataLoader`, the last one alone may be smaller.
        """
        found = own_attribute(self._iterable, "rows_per_batch")
        return None if found is None else float(found)

    def smallest_batch(self, batch_size: int) -> int | None:
        """Rows of the smallest batch of an epoch, usually the last one; None if that is not known."""
        if self._rows is not None:
            rows = num_rows(self._rows)
        elif isinstance(self._iterable, list | tuple):
            return min(map(num_rows, self.ordered(batch_size)), default=None)
        else:
            sampler: Any = getattr(self._iterable, "batch_sampler", None)
            if isinstance(sampler, list | tuple):
                return min(map(len, sampler), default=None)
            if getattr(type(sampler), "__iter__", None) is not BatchSampler.__iter__:
                return None  # not a DataLoader, or one with a sampler that makes batches of its own
            try:
                rows, batch_size = len(sampler.sampler), int(sampler.batch_size)
            except TypeError:  # without a known length
                return None
            if sampler.drop_last:
                return batch_size
        return rows % batch_size or min(rows, batch_size)

    def first(self, batch_size: int) -> Batch:
        """The first batch, for inspecting the pair."""
        if self._rows is not None:
            return take_rows(self._rows, slice(0, batch_size))
        for batch in self.ordered(batch_size):
            return batch
        raise ValueError(f"{self.name} holds no batches")

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """The batches, in the order of the rows.

        In memory, a single last row joins the batch before it: many programs do not run on one row alone.
        """
        if self._rows is not None:
            for part in parts_of(num_rows(self._rows), batch_size):
                yield take_rows(self._rows, part)
        else:
            for batch in self._read():
                yield read_batch(batch, self._arguments, self.name)

    def _read(self) -> Iterator[Any]:
        """The batches of an iterable; what it raises is told in which batch."""
        batches, number = iter(self._iterable), 0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                error.add_note(f"({self.name} raised this for batch {number}, counted from 0)")
                raise
            yield batch
            number += 1

    def shuffled(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        first: Callable[[Batch], None] | None = None,
    ) -> Iterator[tuple[Batch | None, int]]:
        """The batches of an epoch from step `start` on, as `(batch, rows of the global batch)`.

        A process gets every `world`-th row of each global batch, or None if no row is left for it. A batch
        of all rows keeps their order, because guides with parameters for each row rely on it. `first` is called
        with the whole first batch of an iterable that several processes read.
        """
        if self._rows is None:
            batches = self.ordered(batch_size)
            if world > 1:
                batches = _in_one_order(batches, seed, epoch)
            for i, batch in enumerate(batches):
                if i == 0 and world > 1 and first is not None:
                    first(batch)
                if i >= start:
                    n = num_rows(batch)
                    own = batch if world == 1 else take_rows(batch, slice(rank, None, world))
                    yield (own if num_rows(own) else None), n
            return
        n = num_rows(self._rows)
        order = self.order(batch_size, seed, epoch)
        for begin in range(start * batch_size, n, batch_size):
            index = order[begin : begin + batch_size]
            own_index = index[rank::world]
            yield (take_rows(self._rows, own_index) if len(own_index) else None), len(index)

    def order(self, batch_size: int, seed: int, epoch: int) -> Tensor:
        """The order of the rows in memory in an epoch, `(n,)`; the same tensor until another is asked for."""
        n = num_rows(self.rows)
        key = (batch_size >= n, seed, epoch)
        if self._order is None or self._order[0] != key:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            made = torch.arange(n) if batch_size >= n else torch.randperm(n, generator=generator)
            self._order = (key, made)
        return self._order[1]


def not_in_parts(parts: str) -> str:
    """The message for a pair with parameters for each row that is to be given a part of them."""
    return (
        f"the guide keeps parameters for each row (it is not amortized), so it cannot be given {parts}: train "
        "with batch_size = the number of rows, or use a guide that computes q(z | x) from x"
    )


def _takes_all(pair: Pair, batch: Batch) -> bool:
    try:
        return take_all_rows(pair, batch)
    except PairError:  # the checks of the pair say so
        return False


def transformed(batch: Batch, transform: Callable[[Tensor], Tensor]) -> Batch:
    """A batch whose first tensor, for the first argument of the programs, is transformed.

    Raises:
        TypeError: The transform returns no tensor.
        ValueError: It raises an error, or returns another number of rows.
    """
    if places_of(batch)[0] != 0:  # nothing is given for the first argument
        return batch
    first, *others = tensors_of(batch)
    shape = tuple(first.shape)
    try:
        found: object = transform(first)
    except PLAIN as error:
        if not is_plain(error):
            raise
        raise ValueError(
            f"transform raised {type(error).__name__} on the first tensor of a batch, of shape {shape}: "
            f"{first_line(error)}"
        ) from error
    expected = f"it is given the first tensor of a batch, here of shape {shape}, and must return"
    if not isinstance(found, Tensor):
        raise TypeError(f"transform returned {kind_of(found)}: {expected} a tensor")
    if found.shape[:1] != first.shape[:1]:
        raise ValueError(
            f"transform returned a tensor of shape {tuple(found.shape)}: {expected} as many rows"
        )
    return with_tensors(batch, (found, *others))


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
