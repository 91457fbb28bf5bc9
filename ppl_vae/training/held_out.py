"""The held-out ELBO, and what each latent dimension carries, after each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ppl_vae.checks import DataCheck, check_data, check_rows, large_values
from ppl_vae.pairs import (
    Batch,
    Batches,
    Elements,
    Layout,
    Layouts,
    Pair,
    PairError,
    RowDensities,
    Trace,
    elbo_of_elements,
    find_layout,
    first_line,
    information_among,
    is_plain,
    measure_of,
    move,
    num_rows,
    sample_rows,
    selects_outside,
    stated_elements,
    states_elements,
    take_rows,
    tensors_of,
    transformed,
)
from ppl_vae.runtime import preserve_random_state
from ppl_vae.training.errors import read_only_once
from ppl_vae.training.latents import Known, LatentUse
from ppl_vae.training.rows import TrainingRows

VALIDATION_SAMPLES = 4
"""Samples per row for the held-out ELBO after each epoch, with the same random numbers every time."""

LEAST_ROWS = 512
"""Rows per run of the pair, if the training's batches are smaller."""

FEW_ROWS = 64
"""As many, if rows are large."""

MOST_NUMBERS = 2**20
"""Numbers in the rows of a run, beyond which rows are large: a look must not take as long as an epoch."""

T = TypeVar("T")


class HeldOut:
    """Measures the pair after each epoch, on rows that it is not trained on.

    Args:
        pair: The pair.
        layouts: The layouts of its batches.
        batches: The held-out rows; None measures what the latents carry on a batch of training rows.
        rows: The training rows.

    Attributes:
        doubt: Why the held-out ELBO is not finite, if it is not.
        measures_information: Whether the mutual information is measured, too, on the first batch.
        used: The layouts of the rows that were measured.
    """

    def __init__(
        self, pair: Pair, layouts: Layouts, batches: Batches | None, rows: TrainingRows
    ) -> None:
        self.pair = pair
        self.layouts = layouts
        self.batches = batches
        self.rows = rows
        self._check: DataCheck | None = None
        self._known = Known()
        self.doubt: str | None = None
        self.measures_information = False
        self.used: dict[Layout, None] = {}
        self.size = rows.batch_size if pair.keeps_rows else max(rows.batch_size, LEAST_ROWS)
        self._elements: dict[object, Elements | None] = {}  # by the kind of the rows

    def check(self, first: Batch) -> None:
        """Checks the held-out rows: all of them if they are in memory, otherwise the first batch.

        The other batches of an iterable are checked as they come.

        Args:
            first: A batch on which the pair has been checked.

        Raises:
            PairError: The pair cannot run on them, or data of a row are NaN, infinite, or outside of the
                likelihood's support.
        """
        numbers = sum(of.numel() for of in tensors_of(first)) / num_rows(first)
        most = max(FEW_ROWS, int(MOST_NUMBERS / max(numbers, 1)))
        self.size = max(self.rows.batch_size, min(self.size, most))
        if self.batches is None:
            return
        self._check = DataCheck(self.pair, first)
        with preserve_random_state():
            few = move(self.batches.first(self.size), self.rows.processes.device)
            with self._explained(few):
                if self.batches.in_memory:
                    self._check_all(self.batches, self._check)
                try:
                    check_data(self.pair, few, self.batches.doubt)
                    self._require_rows_of_training(few)
                except PairError as error:
                    raise PairError(f"validation: {error}") from None

    def _require_rows_of_training(self, few: Batch) -> None:
        """Refuses other rows than those of the training for a pair with parameters for each row.

        Raises:
            PairError: It has them, and these are another number of rows.
        """
        find_layout(self.pair, few)  # which shows whether indices of rows select parameters
        batches = self.batches
        if batches is None or not (self.pair.keeps_rows and batches.in_memory):
            return
        if num_rows(batches.rows) != self.rows.number:
            raise PairError(
                "the pair keeps parameters for each of the rows that it is trained on, so it has none for "
                "other rows: leave validation out, or use a guide that computes q(z | x) from x"
            )

    def new_kind(self, batch: Batch, traces: tuple[Trace, Trace]) -> None:
        """Checks the held-out rows again, as `TrainingRows.new_kind` does.

        Raises:
            PairError: As from `check`.
        """
        if self.batches is None or self._check is None:
            return
        if self._check.new_kind(batch, traces) and self.batches.in_memory:
            with preserve_random_state():
                self._check_all(self.batches, self._check)

    def _check_all(self, batches: Batches, check: DataCheck) -> None:
        device = self.rows.processes.device
        rows = (move(batch, device) for batch in batches.ordered(self.size))
        check_rows(rows, check.first_problem, "validation")

    @contextmanager
    def _explained(self, batch: Batch) -> Iterator[None]:
        """Adds to an error that held-out rows are not transformed, if that would mend the batch."""
        try:
            yield
        except PairError as error:
            if self.rows.transform is None or not self._is_mended_by(self.rows.transform, batch):
                raise
            raise PairError(
                f"{error}. transform is applied to training batches only: give the validation rows as the "
                "likelihood takes them, as in validation=transform(rows)"
            ) from None

    def _is_mended_by(self, transform: Callable[[Tensor], Tensor], batch: Batch) -> bool:
        with preserve_random_state():
            try:
                check_data(self.pair, transformed(batch, transform))
            except Exception:  # of the user's transform, any
                return False
        return True

    def measure(self, seed: int, epoch: int) -> dict[str, float]:
        """What the latents carry and, with held-out rows, their beta = 1 ELBO, rate and distortion, in nats.

        Where the only latent is one of many elements, such as the segment of each pixel, rate and distortion
        are exact: nothing is drawn. Nor is anything measured of single elements, of which there are thousands.

        Args:
            seed: Seed of the draws.
            epoch: Epochs trained, for the message of an error.

        Raises:
            PairError: As from `check`, at the first measurement of an iterable.
            ValueError: The rows gave no batches.
        """
        rate = distortion = rows = 0.0
        information = math.nan
        used = LatentUse(self.pair, self._known)
        source = self.rows.batches if self.batches is None else self.batches
        with (
            torch.no_grad(),
            self.pair.mode(training=False),
            torch.random.fork_rng(),
            self.layouts.of_others(self.used),
        ):
            torch.manual_seed(seed)
            for number, batch in enumerate(source.ordered(self.size)):
                if self.batches is None:
                    batch = self.rows.prepared(batch)
                else:
                    batch = move(batch, self.rows.processes.device)
                    if self._check is not None and not source.in_memory:
                        with self._explained(batch):
                            self._check.refuse(batch, number, "validation")
                elements = self._elements_of(batch, number)
                if elements is None:
                    drawn = self._run(batch, number, self._draws_of(batch))
                    rate += float((drawn.log_guide - drawn.log_prior).double().mean(0).sum())
                    distortion -= float(drawn.log_likelihood.double().mean(0).sum())
                    if self.measures_information and not rows:
                        information = information_among(self.pair, drawn, batch)
                    used.update(drawn, batch)
                elif self.batches is not None:
                    exact = self._run(batch, number, self._elbo_of(batch, elements))
                    rate += float(exact[0].double().sum())
                    distortion += float(exact[1].double().sum())
                if self.batches is not None and not math.isfinite(rate + distortion):
                    self._explain(batch, int(rows))
                rows += num_rows(batch)
                if self.batches is None:
                    break
        if not source.in_memory:  # all of them have been checked
            self._check = None
        if not rows:
            raise read_only_once("x" if self.batches is None else "validation", epoch)
        found = {} if used.is_empty else used.metrics
        if self.measures_information:
            found["mutual_information"] = information
        if self.batches is not None:
            found["validation_rate"] = rate / rows
            found["validation_distortion"] = distortion / rows
            found["validation_elbo"] = -(rate + distortion) / rows
        return found

    def _explain(self, batch: Batch, start: int) -> None:
        """Notes why the ELBO of a batch is not finite."""
        large = large_values(batch, start=start, name="validation")
        name = measure_of(self.used).text
        where = large or f"it is so from row {start} of validation on"
        self.doubt = self.doubt or (
            f"the held-out {name} is NaN or infinite: {where}. Repair or rescale these rows, or stop earlier"
        )

    def _elements_of(self, batch: Batch, number: int) -> Elements | None:
        """The latent that is summed element by element, found once for each kind of rows.

        None if there is none, or if mutual information is asked for, which is estimated from draws.
        """
        if self.measures_information or not states_elements(self.pair):
            return None
        few = take_rows(batch, slice(0, 2))

        def find(layout: Layout) -> Elements | None:
            if layout.signature not in self._elements:
                self._elements[layout.signature] = stated_elements(self.pair, layout, few)
            return self._elements[layout.signature]

        return self._run(few, number, find)

    def _draws_of(self, batch: Batch) -> Callable[[Layout], RowDensities]:
        return lambda layout: sample_rows(self.pair, layout, batch, VALIDATION_SAMPLES)

    def _elbo_of(
        self, batch: Batch, elements: Elements
    ) -> Callable[[Layout], tuple[Tensor, Tensor]]:
        return lambda layout: elbo_of_elements(self.pair, layout, batch, elements)

    def _run(self, batch: Batch, number: int, of: Callable[[Layout], T]) -> T:
        """What is measured of a batch with its layout; errors say which batch it is."""
        if self.batches is None:
            return self.layouts.run(batch, of)
        with self._explained(batch):
            try:
                return self.layouts.run(batch, of)
            except PairError as error:  # of a kind of batch that comes here first
                if error.names_rows:
                    raise
                raise PairError(f"validation: {error}") from None
            except Exception as error:
                if not is_plain(error):
                    raise
                selected = selects_outside(self.pair, batch, error)
                raise PairError(
                    f"validation: the pair does not run on its batch {number} (counted from 0), of "
                    f"{num_rows(batch)} rows: {first_line(error)}{': ' * bool(selected)}{selected}"
                ) from error
