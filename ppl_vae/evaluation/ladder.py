"""The ladder of `evaluate`: rows that the guide does not reach are estimated in better ways."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.evaluation.adaptation import FEW_DIMENSIONS
from ppl_vae.evaluation.chains import AnnealingSchedule
from ppl_vae.evaluation.path import Path
from ppl_vae.evaluation.refined import EFFORTS, Refinement, numbers_of_row
from ppl_vae.evaluation.result import ANNEALED_CHAINS, METHODS, not_reached
from ppl_vae.pairs import (
    Batch,
    Layout,
    PairError,
    finite_latents,
    first_line,
    num_rows,
    shapes_of_rows,
    take_rows,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import preserve_random_state

_logger = logging.getLogger(__name__)

FOUND = ("log_likelihood", "error", "ess", "khat", "rung")
"""What is found of a row; `rung` is the number of its method."""

FEWEST_SAMPLES = 100
"""Samples from which k-hat says something; with fewer, all rows stay with the guide."""

ROWS_AT_ONCE = 512
"""Most rows that are refined at once."""

NUMBERS_AT_ONCE = 2**28
"""Numbers that may be kept at once while rows are refined; see `numbers_of_row`."""

LEAST_ESS = 0.5
"""ESS, as a share of K, below which rows get a proposal of their own, whatever k-hat is.

Of a thousand weights without a mean, k-hat was 0.36 once: few numbers give the right shape on average only.
"""

POOR_ESS = 0.1, 0.4
"""ESS, as a share of K, below which refined rows are refined once more, for the same reason; and the same if
there are few latents, where a mixture can come so near that less means that a mode is missing."""

AGREES = 4.0
"""Standard errors of the difference within which two estimates agree."""

MORE = 3.0
"""Standard errors of the difference from which on one estimate has seen more than the other."""

LOOKED_AT = 16
"""Rows among those that the guide seems to reach, which are refined all the same, to compare."""

MOST_ANNEALED = (4, 0.2, 2000)
"""Rows that are annealed if they are no more than the first number, or than the second as a share of all; in no
case more than the third, as they are kept until the end, and take a second each."""

ANNEALING = AnnealingSchedule(num_chains=ANNEALED_CHAINS, num_steps=50, num_leapfrog=5)
"""From proposals that are nearly right, few temperatures suffice."""


@dataclass
class _Waiting:
    """Rows of one kind that are to be refined together.

    Attributes:
        numbers: Which rows of the evaluation they are.
        parts: Their data.
    """

    numbers: list[int] = field(default_factory=list)
    parts: list[Batch] = field(default_factory=list)


@dataclass(eq=False)
class Ladder:
    """Finds better estimates for rows of an evaluation, while the evaluation goes on.

    Its draws do not move the generators outside. With fewer samples than `FEWEST_SAMPLES` it finds none.

    Attributes:
        session: The opened pair.
        num_samples: K.
        at_once: Rows times samples that fit in the memory budget.
        anneals: Whether all rows that are left are annealed, and not only if they are few.
        found: Better estimates by the number of the row: the values of `FOUND`.
        unmoved: Why rows stay with the guide, and how many.
        unseen: In how many rows that the guide seemed to reach more was found.
        looked_at: In how many it was looked for.
    """

    session: Session
    num_samples: int
    at_once: int
    anneals: bool = False
    found: dict[int, tuple[float, ...]] = field(default_factory=dict)
    unmoved: dict[str, int] = field(default_factory=dict)
    unseen: int = 0
    looked_at: int = 0

    def __post_init__(self) -> None:
        self._waiting: list[dict[object, _Waiting]] = [{} for _ in EFFORTS]
        self._reliable: dict[int, tuple[float, float]] = {}
        self._left: dict[object, _Waiting] = {}
        self._num_left = 0
        self._rows = 0
        self._passed_over = 0
        self._looks_everywhere = False
        self._fit: int | None = None

    @property
    def rows_at_once(self) -> int:
        """Rows that are refined together: many draws of each are to run at once, too."""
        return max(1, min(ROWS_AT_ONCE, self.at_once // 8, self._fit or ROWS_AT_ONCE))

    def look(self, chunk: Batch, layout: Layout, part: dict[str, Tensor]) -> None:
        """Takes the rows of a chunk that need a better estimate.

        Args:
            chunk: The rows that come next.
            layout: Their layout.
            part: Their estimates.
        """
        n, start = num_rows(chunk), self._rows
        self._rows += n
        if layout.points or self.num_samples < FEWEST_SAMPLES:
            return
        of_guide = torch.full(part["khat"].shape, METHODS.index("guide"))
        unreliable = not_reached(part["khat"], part["ess"], of_guide, self.num_samples)
        low = (part["ess"] < LEAST_ESS * self.num_samples) & part["khat"].isfinite()
        bad = unreliable | low
        if layout.discrete and not self._can_be_summed(chunk, layout):
            names = ", ".join(f"'{name}'" for name in layout.discrete)
            self._stay(f"{names} is discrete", int(bad.sum()))
            return
        if not layout.draws:
            return
        if self._fit is None:
            self._fit = self._rows_that_fit(chunk)
        if start == self._passed_over:  # the first rows that are looked at
            self._compare(chunk, part, (~bad).nonzero()[:LOOKED_AT, 0])
        if self._looks_everywhere:
            bad[[number not in self.found for number in range(start, start + n)]] = True
        else:
            for i in (low & ~unreliable).nonzero()[:, 0].tolist():
                log_p, error = float(part["log_likelihood"][i]), float(part["error"][i])
                self._reliable[start + i] = (log_p, error)
        index = bad.nonzero()[:, 0]
        if len(index):
            self._begin(chunk, index, start)

    def pass_over(self, rows: int) -> None:
        """Counts rows that come next and need no better estimate, as theirs is exact."""
        self._rows += rows
        self._passed_over += rows

    def finish(self) -> None:
        """Estimates the rows that still wait, and anneals those that are left, if they are few."""
        for effort, waiting in enumerate(self._waiting):
            for key in list(waiting):
                self._refine_waiting(effort, waiting.pop(key))
        if self.anneals or self._num_left <= self._few:
            for left in self._left.values():
                self._in_pieces(left, self._anneal)

    def improve(self, values: dict[str, Tensor]) -> None:
        """Puts the better estimates in the place of those that there are.

        Args:
            values: What is known of each row, `(n,)` each; among it the quantities of `FOUND`.
        """
        for number, found in self.found.items():
            for name, value in zip(FOUND, found, strict=True):
                values[name][number] = value

    @property
    def notes(self) -> tuple[str, ...]:
        """What the estimates do not show by themselves."""
        found = [
            f"{count} of {self._rows} rows stay with samples from the guide: {reason}"
            for reason, count in self.unmoved.items()
        ]
        if self._looks_everywhere:
            which = f"{self.unseen} of {self.looked_at}" if self.unseen else f"{self.looked_at}"
            found.append(
                f"{which} rows that the guide seemed to reach have values of the latents that it hardly draws "
                "and that matter; all rows have got a proposal of their own"
            )
        return tuple(found)

    def _can_be_summed(self, chunk: Batch, layout: Layout) -> bool:
        """Whether there are other latents than the discrete ones, whose joint values are few.

        Where samples are drawn one after the other, each of their values would be a run of the programs.
        """
        if not layout.vectorizes:
            return False
        summed = finite_latents(self.session.pair, layout, chunk)
        return summed is not None and not summed.alone

    # -- the rungs ---------------------------------------------------------------------------------------

    def _rows_that_fit(self, chunk: Batch) -> int:
        """So many rows keep no more than `NUMBERS_AT_ONCE` numbers."""
        if self.session.pair.keeps_rows:  # which cannot be divided
            return ROWS_AT_ONCE
        with self._apart():
            try:
                coordinates = self.session.layouts.run(
                    chunk,
                    lambda layout: Path(self.session.pair, layout, chunk).draw(1).shape[-1],
                )
            except PairError:  # they will stay with the guide
                return ROWS_AT_ONCE
        return max(1, int(NUMBERS_AT_ONCE / numbers_of_row(coordinates)))

    def _begin(self, chunk: Batch, index: Tensor, start: int) -> None:
        """Refines rows of a chunk, now or together with others."""
        numbers = [int(i) + start for i in index]
        if self.session.pair.keeps_rows:
            self._refine(0, numbers, chunk, index)
        else:
            self._wait(0, numbers, take_rows(chunk, index.to(_device(chunk))))

    def _compare(self, chunk: Batch, part: dict[str, Tensor], index: Tensor) -> None:
        """Refines some rows that the guide seems to reach: if that finds more, all rows are refined.

        Weights say nothing about what was never drawn.
        """
        if not len(index):
            return
        whole = self.session.pair.keeps_rows
        index = index if whole else index[: self.rows_at_once]
        guides = {
            int(i): (float(part["log_likelihood"][i]), float(part["error"][i])) for i in index
        }
        self._reliable |= guides
        rows = chunk if whole else take_rows(chunk, index.to(_device(chunk)))
        self._refine(0, list(guides), rows, index if whole else None, silent=True)
        gains, variances = [], []
        for number, (log_p, error) in guides.items():
            if number not in self.found:
                continue
            refined, its_error = self.found[number][:2]
            gains.append(refined - log_p)
            variances.append(max(error**2 + its_error**2, 1e-12))
            self.unseen += gains[-1] > MORE * variances[-1] ** 0.5
        self.looked_at = len(gains)
        together = sum(gains) > MORE * math.sqrt(sum(variances))
        self._looks_everywhere = self.unseen > 0 or together
        for number in guides:
            if self._looks_everywhere:
                self._reliable.pop(number, None)
            else:  # the guide's samples will do
                self.found.pop(number, None)
        if not self._looks_everywhere:  # no other rows wait yet
            for waiting in (*self._waiting, self._left):
                waiting.clear()
            self._num_left = 0

    def _wait(self, effort: int, numbers: list[int], batch: Batch) -> None:
        waiting = self._waiting[effort].setdefault(shapes_of_rows(batch), _Waiting())
        waiting.numbers += numbers
        waiting.parts.append(batch)
        if len(waiting.numbers) >= self.rows_at_once:
            self._refine_waiting(effort, self._waiting[effort].pop(shapes_of_rows(batch)))

    @property
    def _few(self) -> int:
        """Most rows that are annealed."""
        least, share, most = MOST_ANNEALED
        return min(most, max(least, int(share * self._rows)))

    def _refine_waiting(self, effort: int, waiting: _Waiting) -> None:
        self._in_pieces(waiting, lambda numbers, rows: self._refine(effort, numbers, rows))

    def _in_pieces(self, waiting: _Waiting, work: Callable[[list[int], Batch], None]) -> None:
        """Works on rows that have waited, as many at once as fit."""
        tensors = zip(*map(tensors_of, waiting.parts), strict=True)
        batch = with_tensors(waiting.parts[0], [torch.cat(parts) for parts in tensors])
        size = self.rows_at_once
        for first in range(0, len(waiting.numbers), size):
            some = slice(first, first + size)
            work(waiting.numbers[some], take_rows(batch, some))

    def _refine(
        self,
        effort: int,
        numbers: list[int],
        batch: Batch,
        index: Tensor | None = None,
        silent: bool = False,
    ) -> None:
        """Refines rows, or those at an index of a batch whose rows cannot be divided.

        No note says why that cannot be done if it is `silent`.
        """
        n = num_rows(batch)
        at_once = max(1, self.at_once // n)
        least = POOR_ESS[0]

        def estimated(layout: Layout) -> dict[str, Tensor]:
            nonlocal least
            made = Refinement(self.session.pair, layout, batch, at_once, EFFORTS[effort])
            least = POOR_ESS[made.starts.shape[-1] <= FEW_DIMENSIONS]
            return made.estimate(self.num_samples)

        with self._apart(), self.session.bar("refine", "row", n) as bar:
            try:
                found = self.session.layouts.run(batch, estimated)
            except PairError as error:
                _logger.info("rows stay with the guide: %s", error)
                self._stay(first_line(error), 0 if silent else len(numbers))
                return
            bar.update(n)
        values = [found[name].cpu() for name in ("log_likelihood", "error", "ess", "khat")]
        if index is not None:
            values = [value[index] for value in values]
        refined = torch.full(values[3].shape, METHODS.index("refined"))
        bad = not_reached(values[3], values[2], refined, self.num_samples)
        settled = self._settled(numbers, values, bad)
        self._keep(numbers, values, METHODS.index("refined"), ~settled)
        poor = bad & ~settled
        if effort + 1 < len(EFFORTS):
            poor |= (values[2] < least * self.num_samples) & ~settled
        left = poor.nonzero()[:, 0]
        if not len(left):
            return
        still = [numbers[i] for i in left.tolist()]
        if index is not None:  # the rows do not run without the others
            if effort + 1 < len(EFFORTS):
                self._refine(effort + 1, still, batch, index[left])
            return
        rows = take_rows(batch, left.to(_device(batch)))
        if effort + 1 < len(EFFORTS):
            self._wait(effort + 1, still, rows)
            return
        self._num_left += len(still)
        if self._num_left > MOST_ANNEALED[2] and not self.anneals:
            self._left.clear()
            return
        there = self._left.setdefault(shapes_of_rows(rows), _Waiting())
        there.numbers += still
        there.parts.append(rows)
        if self.anneals and len(there.numbers) >= self.rows_at_once:
            self._in_pieces(self._left.pop(shapes_of_rows(rows)), self._anneal)

    def _anneal(self, numbers: list[int], batch: Batch) -> None:
        """Anneals rows from their proposals."""
        n = num_rows(batch)
        at_once = max(1, self.at_once // n)
        with self._apart(), self.session.bar("anneal", "row", n) as bar:
            try:
                found = self.session.layouts.run(
                    batch,
                    lambda layout: Refinement(
                        self.session.pair, layout, batch, at_once, EFFORTS[-1]
                    ).anneal(ANNEALING),
                )
            except PairError as error:
                _logger.info("rows are not annealed: %s", error)
                return
            bar.update(n)
        values = [found[name].cpu() for name in ("log_likelihood", "error", "ess", "khat")]
        # What sees less than the samples before has missed a part of the posterior.
        before = torch.tensor([self.found[number][:2] for number in numbers]).to(values[0])
        spread = torch.hypot(values[1].to(before), before[:, 1])
        lower = values[0] - before[:, 0] < -AGREES * spread
        self._keep(numbers, values, METHODS.index("annealed"), ~lower)

    def _settled(self, numbers: list[int], values: Sequence[Tensor], bad: Tensor) -> Tensor:
        """Rows that had a reliable estimate before, and now have none that is higher.

        Others that are bad have lost what seemed reliable: the new samples show more. A lower one shows less.
        """
        settled = torch.zeros_like(bad)
        for i, number in enumerate(numbers):
            log_p, error = float(values[0][i]), float(values[1][i])
            if not bad[i]:
                self._reliable[number] = (log_p, error)
            elif number in self._reliable:
                before, its_error = self._reliable[number]
                settled[i] = log_p - before <= AGREES * math.hypot(error, its_error)
                if not settled[i]:
                    del self._reliable[number]
        return settled

    def _keep(self, numbers: list[int], values: Sequence[Tensor], rung: int, kept: Tensor) -> None:
        for i, number in enumerate(numbers):
            if kept[i]:
                self.found[number] = (*(float(value[i]) for value in values), float(rung))

    def _stay(self, reason: str, rows: int) -> None:
        if rows:
            self.unmoved[reason] = self.unmoved.get(reason, 0) + rows

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Draws of their own, which depend on the seed and leave the generators as they were."""
        with preserve_random_state():
            torch.manual_seed(int(torch.randint(2**62, ())))
            yield


def _device(batch: Batch) -> torch.device:
    return tensors_of(batch)[0].device
