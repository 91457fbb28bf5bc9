"""The rows of a training: transformed, on the device, and checked before a step uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ppl_vae.checks import DataCheck, check_rows
from ppl_vae.pairs import (
    Batch,
    Batches,
    Pair,
    PairError,
    Trace,
    move,
    num_rows,
    tensors_of,
    transformed,
)
from ppl_vae.runtime import digest, preserve_random_state
from ppl_vae.training.processes import Processes

CHECKED_ROWS = 1024
"""Fewest rows per run of the pair when all rows are checked before the training."""


@dataclass(eq=False)
class TrainingRows:
    """The batches of a training, as its steps get them.

    Attributes:
        pair: The pair.
        batches: The rows.
        batch_size: Rows in a global batch.
        transform: Applied to every batch, such as dynamic binarization.
        processes: The processes that share each batch.
        per_epoch: Batches in an epoch; None if that is not known.
        number: All rows, if they are in memory.

    Raises:
        PairError: The guide needs all rows at once, and a batch does not hold them.
    """

    pair: Pair
    batches: Batches
    batch_size: int
    transform: Callable[[Tensor], Tensor] | None
    processes: Processes

    def __post_init__(self) -> None:
        self.per_epoch = self.batches.num_batches(self.batch_size)
        self.number = num_rows(self.batches.rows) if self.batches.in_memory else None
        self._check: DataCheck | None = None
        self.require_all_rows()

    @property
    def in_parts(self) -> bool:
        """Whether the pair is given only some of the rows at once, in several batches or processes."""
        return self.per_epoch != 1 or self.processes.count > 1

    def require_all_rows(self) -> None:
        """Refuses to divide the rows of a guide that keeps parameters for each of them.

        Raises:
            PairError: The guide is such a one, and there are several batches or processes.
        """
        self.batches.require_all_rows(self.pair, self.batch_size)
        if self.pair.keeps_rows and self.processes.count > 1:
            raise PairError(
                "the guide keeps parameters for each row (it is not amortized), so its rows cannot be divided "
                f"among {self.processes.count} processes: train in one process, or use a guide that computes "
                "q(z | x) from x"
            )

    def prepared(self, batch: Batch) -> Batch:
        """A batch on the device, transformed: the likelihood sees binarized intensities, say."""
        batch = move(batch, self.processes.device)
        return batch if self.transform is None else transformed(batch, self.transform)

    def first(self) -> Batch:
        """A first batch, to check the pair with."""
        return self.prepared(self.batches.first(self.batch_size))

    def share_of(self, batch: Batch) -> int:
        """How many rows of a global batch this process gets."""
        return self._share(num_rows(batch))

    def _share(self, rows: int) -> int:
        return math.ceil((rows - self.processes.rank) / self.processes.count)

    @property
    def smallest_batch(self) -> int | None:
        """This process's rows of the smallest batch of an epoch; None if that is not known."""
        rows = self.batches.smallest_batch(self.batch_size)
        return None if rows is None else self._share(rows)

    def check(self, first: Batch) -> None:
        """Checks the data of all rows now, or those of an iterable as they come.

        Args:
            first: A batch on which the pair has been checked; with one batch per epoch, nothing is left.

        Raises:
            PairError: Data of a row are NaN, infinite, or outside of the likelihood's support.
        """
        if self.per_epoch == 1:
            return
        self._check = DataCheck(self.pair, first)
        if self.batches.in_memory:
            self._check_all(self._check)

    def new_kind(self, batch: Batch, traces: tuple[Trace, Trace]) -> None:
        """Checks the rows again if a batch has other sites or masks than the one they were checked with.

        Raises:
            PairError: As from `check`.
        """
        if (
            self._check is not None
            and self._check.new_kind(batch, traces)
            and self.batches.in_memory
        ):
            self._check_all(self._check)

    def _check_all(self, check: DataCheck) -> None:
        batches = self.batches.ordered(max(self.batch_size, CHECKED_ROWS))
        with preserve_random_state():
            check_rows(map(self.prepared, batches), check.first_problem)

    def shuffled(self, seed: int, epoch: int, start: int) -> Iterator[tuple[Batch | None, int]]:
        """The batches of an epoch from step `start` on, as `(batch, rows of the global batch)`.

        A batch is None if no row of the global batch is left for this process.

        Raises:
            PairError: As from `check`, for the first epoch of an iterable.
            ValueError: The processes read an iterable in different orders.
        """
        check = self._check if epoch == 0 and not self.batches.in_memory else None
        rank, count = self.processes.rank, self.processes.count
        source = self.batches.shuffled(
            self.batch_size, seed, epoch, rank, count, start=start, first=self._require_one_order
        )
        for step, (batch, rows) in enumerate(source, start):
            if batch is not None:
                batch = self.prepared(batch)
                if check is not None:
                    check.refuse(batch, step)
            yield batch, rows

    def _require_one_order(self, first: Batch) -> None:
        """Refuses an iterable that begins an epoch with other rows in another process."""
        self.processes.require_same(
            {"the first batch of an epoch": digest(tensors_of(first))},
            "Each process takes its part of every batch, so all of them must read the same batches, or rows "
            "would be left out and others taken twice: draw their order (and noise) from torch's generator, as "
            "DataLoader(shuffle=True) does, or from a generator with the same seed in all processes",
        )
