"""The rows of `fit_em`: batches on the device, a check of all of them, a sample to start from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vae.checks import DataCheck, check_data, check_rows, check_traces
from ppl_vae.pairs import (
    Batch,
    Batches,
    Pair,
    Program,
    Trace,
    as_args,
    hook_of,
    move,
    num_rows,
    shapes_of_rows,
    take_rows,
    tensors_of,
)

START_ROWS = 20_000
"""Most rows, drawn at random, that a model's `initialize` is given."""


def empty_guide(*args: Tensor) -> None:
    """The guide of a model that sums its own latents out."""


def check_start(model: Program, rows: Batch) -> None:
    """Asks a model that has a `check_start(*rows)` whether EM can start from so many rows, before any work.

    Raises:
        ValueError: It cannot, because there are fewer rows than components, say.
    """
    own = hook_of(model, "check_start")
    if own is not None:
        own(*as_args(take_rows(rows, slice(0, START_ROWS))))


class EMData:
    """The batches of `fit_em`, on the device; kept there if there is only one.

    Args:
        batches: The rows.
        batch_size: Rows at once; None for all of them, or for 256 online.
        device: Where the pair computes.
        online: Whether an M step follows each batch.

    Attributes:
        smallest_batch: Rows of the smallest batch so far; `check` sees all of them. 0 before.
    """

    def __init__(
        self, batches: Batches, batch_size: int | None, device: torch.device, online: bool
    ) -> None:
        self.batches, self.device = batches, device
        every = num_rows(batches.rows) if batches.in_memory else 1
        self.batch_size = batch_size or (256 if online else every)
        self.smallest_batch = 0
        self._only: Batch | None = None
        self._check: DataCheck | None = None
        if batches.in_memory and self.batch_size >= every:
            self._only = move(batches.rows, device)

    @property
    def in_parts(self) -> bool:
        """Whether there may be several batches."""
        return self._only is None

    def __iter__(self) -> Iterator[Batch]:
        alone = None if self._only is None else [self._only]
        empty = True
        for batch in alone or self.batches.ordered(self.batch_size):
            empty = False
            rows = num_rows(batch)
            self.smallest_batch = min(self.smallest_batch or rows, rows)
            yield move(batch, self.device)
        if empty:
            raise ValueError("x gave no batches: it is empty, or can be read only once")

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """The minibatches of a pass; each pass has its own order."""
        for batch, _ in self.batches.shuffled(self.batch_size, seed, epoch):
            assert batch is not None  # a single process has all rows
            yield move(batch, self.device)

    def few(self, pair: Pair) -> Batch:
        """The first 64 rows; all of them for a guide that keeps parameters for each row."""
        if pair.keeps_rows:
            return move(self.batches.first(self.batch_size), self.device)
        return take_rows(move(self.batches.first(64), self.device), slice(0, 64))

    def sample(self, seed: int) -> Batch:
        """Rows to start from: drawn at random from a tensor, the first ones of an iterable."""
        if self.batches.in_memory:
            everything = self.batches.rows
            n = num_rows(everything)
            if n > START_ROWS:
                generator = torch.Generator().manual_seed(seed)
                everything = take_rows(
                    everything, torch.randperm(n, generator=generator)[:START_ROWS]
                )
            return move(everything, self.device)
        parts: list[tuple[Tensor, ...]] = []
        kind: object = None
        for batch in self:
            kind = kind or shapes_of_rows(batch)
            if shapes_of_rows(batch) != kind:
                break
            parts.append(tensors_of(batch))
            if sum(len(part[0]) for part in parts) >= START_ROWS:
                break
        joined = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return joined[0] if len(joined) == 1 else joined

    def check(self, pair: Pair) -> None:
        """Refuses NaN, and data outside of the support, and says in which row.

        A model whose program takes long may have a `first_problem(*batch)` of its own, which says what is
        wrong and in which row of the batch; the program is not run then.

        Raises:
            PairError: There are such data, or the guide needs all rows at once, and a batch does not hold them.
        """
        self.batches.require_all_rows(pair, self.batch_size)
        own = hook_of(pair.model, "first_problem")
        if own is None or pair.guide is not empty_guide:
            few = self.few(pair)
            check_data(pair, few, self.batches.doubt)
            self._check = DataCheck(pair, few)
            check_rows(self, self._check.first_problem)
        else:
            check_rows(self, lambda batch: own(*as_args(batch)))

    def new_kind(self, pair: Pair, batch: Batch, traces: tuple[Trace, Trace]) -> None:
        """Checks a batch that has other sites or masks than those before, and all rows again, if need be.

        Raises:
            PairError: As from `check`.
        """
        check_traces(pair, batch, traces, self.batches.doubt)
        if self._check is not None and self._check.new_kind(batch, traces):
            check_rows(self, self._check.first_problem)
