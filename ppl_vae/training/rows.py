"""The rows of a training: transformed, on the device, and checked before a step uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ppl_vae.checks import DataCheck, check_rows
from ppl_vae.pairs import Batch, Batches, Pair, PairError, move, num_rows, transformed
from ppl_vae.runtime import preserve_random_state
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

    def require_all_rows(self) -> None:
        """Refuses batches that do not hold all rows for a pair that needs them.

        Raises:
            PairError: They do not.
        """
        if self.pair.keeps_rows and self.per_epoch != 1:
            raise PairError(
                "the guide keeps parameters for each row (it is not amortized), so it cannot be given "
                f"batches of {self.batch_size} rows: train with batch_size = the number of rows, or use a "
                "guide that computes q(z | x) from x"
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
    def last_batch(self) -> int | None:
        """This process's rows of the last batch of an epoch, if it is smaller than the others."""
        last = self.batches.last_batch(self.batch_size)
        return None if last is None else self._share(last)

    def check(self, first: Batch) -> None:
        """Checks the data of all rows now, or those of an iterable as they come.

        Args:
            first: A batch on which the pair has been checked; with one batch per epoch, nothing is left.

        Raises:
            PairError: Data of a row are NaN, infinite, or outside of the likelihood's support.
        """
        if self.per_epoch == 1:
            return
        check = DataCheck(self.pair, first)
        if self.batches.in_memory:
            batches = self.batches.ordered(max(self.batch_size, CHECKED_ROWS))
            with preserve_random_state():
                check_rows(map(self.prepared, batches), check.first_problem)
        else:
            self._check = check

    def shuffled(self, seed: int, epoch: int, start: int) -> Iterator[tuple[Batch | None, int]]:
        """The batches of an epoch from step `start` on, as `(batch, rows of the global batch)`.

        A batch is None if no row of the global batch is left for this process.

        Raises:
            PairError: As from `check`, for the first epoch of an iterable.
        """
        check = self._check if epoch == 0 else None
        rank, count = self.processes.rank, self.processes.count
        source = self.batches.shuffled(self.batch_size, seed, epoch, rank, count, start=start)
        for step, (batch, rows) in enumerate(source, start):
            if batch is not None:
                batch = self.prepared(batch)
                problem = None if check is None else check.first_problem(batch)
                if problem is not None:
                    row = "" if problem[1] is None else f", row {problem[1]} in it"
                    raise PairError(f"batch {step} of x{row} (counted from 0): {problem[0]}")
            yield batch, rows
