"""Checks of an evaluation's chunks of rows, which come after the first rows have been checked as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from ppl_vae.checks.batches import (
    DataCheck,
    check_rows,
    check_traces,
    message_and_row,
    quietly_run,
)
from ppl_vae.checks.data import large_values
from ppl_vae.checks.findings import Findings
from ppl_vae.checks.latents import narrow_problems
from ppl_vae.checks.report import Problem
from ppl_vae.pairs import Batch, Pair, Trace, shapes_of_rows, tensors_of
from ppl_vae.runtime import preserve_random_state


class ChunkCheck:
    """Checks one chunk of rows after another, where it may have problems that the first rows have not.

    Data are checked where the programs need not run for that (see `DataCheck`). Latents are checked if their
    masks or supports may vary, or if the rows have other shapes. If kinds of rows of the same shapes alternate,
    or the data have supports that vary, the programs run for each chunk. What else may differ in values alone
    is looked at in the first rows of a kind: factors that follow the rows, and the Jacobians of guides. Use it
    inside of `pair.scope()`.

    Args:
        pair: Model and guide.
        batch: A batch in which `check_data` has found no errors.
        traces: What it returned.
        findings: Where to add what the checks of other kinds of rows warn of.
        doubt: `Batches.doubt`.

    Attributes:
        large: The first number of the data, and its place, whose square is beyond its dtype; empty so far.
        failed: The first rows on which the programs do not run, while they do on those before; empty so far.
        last: The rows that were checked last, and the number of the first of them.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        traces: tuple[Trace, Trace],
        findings: Findings,
        doubt: str = "",
    ) -> None:
        self._pair, self._findings, self._doubt = pair, findings, doubt
        self._mixed = False
        self.last: tuple[Batch, int] = (batch, 0)
        self.large = self.failed = ""
        self._checked = {shapes_of_rows(batch)}
        self._data = DataCheck(pair, batch, traces)

    def __call__(self, chunk: Batch, start: int) -> None:
        """Raises an error if a chunk cannot be right.

        Args:
            chunk: The rows.
            start: How many rows came before them.

        Raises:
            PairError: Data are NaN, infinite or outside the support; a support, a measure or a mask of latents
                differs between model and guide.
        """
        self.last = (chunk, start)
        if self._mixed or self._data.data_vary:
            check_rows([chunk], self._data.first_problem, start=start)
        else:
            check_rows([chunk], self._data.first_bad_value, start=start)
        if not self.large and (large := large_values(chunk, power=2, start=start)):
            self.large = large
            text = (
                f"{large}, whose square is no number: what is NaN or infinite comes from the data"
            )
            self._findings.add([Problem("warning", "x", text)])
        if not self._data.varies and shapes_of_rows(chunk) in self._checked:
            return
        self._checked.add(shapes_of_rows(chunk))
        traces = quietly_run(self._pair, chunk)
        if traces is None:
            shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors_of(chunk))
            self.failed = (
                f"the pair does not run on rows of shape {shapes}, from row {start} of x on"
            )
        else:
            found = message_and_row(self._data.wrong_latent(chunk, traces, self._data.dim))
            check_rows([chunk], lambda _: found, start=start)
            self._findings.add(narrow_problems(*traces))  # bounds may be tensors of the batch

    def look_ahead(self, parts: Iterable[Batch]) -> None:
        """Looks for data that are NaN, infinite or outside of the support in all rows.

        The programs run only where a tensor has NaN or infinite numbers, to see whether these are observed:
        what masks leave out may be anything.

        Args:
            parts: All rows, in their order.

        Raises:
            PairError: There are such data; the message says in which row.
        """

        def first_problem(part: Batch) -> tuple[str, int | None] | None:
            found = self._data.first_bad_value(part)
            if found is None and not _all_finite(part):
                found = self._data.first_problem(part)
            return found

        with preserve_random_state():
            check_rows(parts, first_problem)

    def new_kind(self, chunk: Batch, traces: tuple[Trace, Trace]) -> None:
        """Checks the first chunk that has other sites, masks or shapes than those before, as `Layouts.check`.

        Raises:
            PairError: As from `check_data`.
        """
        self._findings.add(check_traces(self._pair, chunk, traces, self._doubt))
        self._mixed = self._data.new_kind(chunk, traces) or self._mixed


def _all_finite(batch: Batch) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors_of(batch))
