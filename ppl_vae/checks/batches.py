"""Checks of one batch after another: the first one as a whole, later ones where they may differ from it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vae.checks.data import data_problems, same_for_all_rows, unusable
from ppl_vae.checks.jacobians import jacobian_problems
from ppl_vae.checks.latents import (
    auxiliary_problems,
    latent_problems,
    narrow_problems,
    vary_by_row,
)
from ppl_vae.checks.report import Problem, Report, run_pair
from ppl_vae.checks.rows import factor_problems
from ppl_vae.checks.shapes import shape_problems
from ppl_vae.pairs import (
    Batch,
    Buffers,
    Pair,
    PairError,
    Site,
    Trace,
    num_rows,
    rows_frame,
    rows_outside,
    shapes_of_rows,
    sites_of_rows,
    stated_by,
    support_has_tensors,
    take_rows,
    tensors_of,
)
from ppl_vae.runtime import preserve_random_state


def check_data(
    pair: Pair, batch: Batch, doubt: str = ""
) -> tuple[tuple[Trace, Trace], tuple[Problem, ...]]:
    """Raises an error that explains the problem if a pair cannot run on a batch.

    Runs both programs once, in evaluation mode and without gradients. The random generators do not change.
    Call it inside `pair.scope()`.

    Args:
        pair: Model and guide.
        batch: The batch that model and guide are called with.
        doubt: `Batches.doubt`: how the data were read, if they could be read otherwise.

    Returns:
        The traces of model and guide; and what may be intended, but usually is not.

    Raises:
        PairError: A program raises on the batch, its observed sites are not in a plate over the rows, a
            value does not fit its distribution, or data are NaN, infinite or outside the support, or a
            batch is taken as a single row.
    """
    with preserve_random_state(), pair.mode(training=False):
        traces = run_pair(pair, batch)
    if _has_nan(traces):
        pair.require_no_nan()
    if isinstance(traces, Problem):
        raise PairError(Report((traces,)).explained(doubt).problems[0].message)
    return traces, check_traces(pair, batch, traces, doubt)


def _has_nan(traces: tuple[Trace, Trace] | Problem) -> bool:
    """Whether an argument of a distribution, a latent or a factor is NaN; a parameter may be to blame.

    A parameter that is NaN and does not matter does no harm.
    """
    if isinstance(traces, Problem):
        return re.search(r"\bnan\b|invalid values", traces.message, re.IGNORECASE) is not None
    sites = (site for trace in traces for site in trace.nodes.values() if site["type"] == "sample")
    values = (
        getattr(site["fn"], "log_factor", None) if site["is_observed"] else site["value"]
        for site in sites
    )
    return any(isinstance(value, Tensor) and bool(value.isnan().any()) for value in values)


def check_traces(
    pair: Pair, batch: Batch, traces: tuple[Trace, Trace], doubt: str = ""
) -> tuple[Problem, ...]:
    """`check_data` on the traces of model and guide of a batch that have run.

    Raises:
        PairError: As from `check_data`.
    """
    with (
        preserve_random_state(),
        pair.mode(training=False),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        seen = sites_of_rows(pair.model, batch, traces[0])
        found = []
        if seen:
            dim = rows_frame(seen, num_rows(batch)).dim
            same = same_for_all_rows(seen, batch, dim, surely=bool(doubt))
            found = [problem for problem in same if problem.severity == "error"]
        found += trace_problems(pair, batch, traces, seen)
    Report(tuple(found)).explained(doubt).raise_errors()
    return tuple(found)


def trace_problems(
    pair: Pair, batch: Batch, traces: tuple[Trace, Trace], seen: dict[str, Site]
) -> Iterator[Problem]:
    """Problems with data, latents and terms of rows, for any use of a pair.

    Args:
        pair: Model and guide.
        batch: The batch that they have run on.
        traces: Their traces.
        seen: The `sites_of_rows` of the model.
    """
    if pair.model == pair.guide:
        yield Problem(
            "error",
            "guide",
            "model and guide are the same program: the guide is a program of its own that samples the latents "
            "of the model and observes nothing, such as MeanField of ppl_vae.guides",
        )
        return
    yield from data_problems(pair, seen, batch)
    found = list(latent_problems(pair, batch, *traces))
    found += auxiliary_problems(pair, batch, *traces)
    found = found or list(shape_problems(*traces))
    yield from found or jacobian_problems(pair, batch, *traces)
    yield from factor_problems(pair.model, batch, traces[0], seen)
    yield from narrow_problems(*traces)


class DataCheck:
    """Checks the data of one batch after another for values that are NaN, infinite or outside the support.

    If every observed value is a tensor of the batch itself, its support is the same for all rows, and so are
    the masks and supports of latents, only the tensors are checked, and the programs run only to explain what
    is wrong with them. Otherwise, on batches with other tensors than the first one, and after `new_kind`, the
    programs run, as in `check_data`, and their latents are checked, too.

    Args:
        pair: Model and guide; make and use the object inside `pair.scope()`.
        batch: A batch in which `check` has found no errors.
        traces: What `check_data` returned for it; None lets the programs run again.

    Attributes:
        dim: Where the plate over rows is; None if nothing is observed.
        varies: Whether latents have masks or supports that may be others in other rows; also if a program
            raises.
        data_vary: Whether the data have supports that may be others in other rows, such as bounds of a Uniform
            that are tensors.
    """

    def __init__(self, pair: Pair, batch: Batch, traces: tuple[Trace, Trace] | None = None) -> None:
        self._pair = pair
        self._shapes = shapes_of_rows(batch)
        self._as_they_come: list[tuple[int, str, Any, Callable[..., Constraint]]] | None = []
        self.dim: int | None = None
        self.data_vary = False
        traces = traces or quietly_run(pair, batch)
        self.varies = traces is None or vary_by_row(*traces)
        if traces is None:
            return
        if self.varies:
            self._as_they_come = None
        sites = _data_sites(pair, batch, traces[0])
        if not sites:  # pyro.factor alone
            return
        self.dim = rows_frame(sites, num_rows(batch)).dim
        self.data_vary = any(support_has_tensors(site["fn"]) for site in sites.values())
        for name, site in sites.items():
            found = _as_it_comes(site, tensors_of(batch), _stated_support(pair))
            if found is None or self._as_they_come is None:
                self._as_they_come = None
                return
            self._as_they_come.append((found[0], name, site, found[1]))

    def first_problem(self, batch: Batch) -> tuple[str, int | None] | None:
        """The first problem with the data of a batch and the first row that has it; None if there is none."""
        if self._is_as_it_comes(batch):
            return self.first_bad_value(batch)
        return message_and_row(self._by_programs(batch))

    def first_bad_value(self, batch: Batch) -> tuple[str, int | None] | None:
        """As `first_problem`, but None where the programs would have to run to find one."""
        n, args = num_rows(batch), tensors_of(batch)
        found: tuple[Problem, list[int]] | None = None
        if self._is_as_it_comes(batch):
            for i, name, site, support in self._as_they_come or []:
                value = args[i].reshape(n, *site["value"].shape[1:])
                given = (self._pair, batch)
                found = found or unusable(
                    *(name, site | {"value": value}, n, self.dim, support(*args)), given=given
                )
        if found is not None:
            # The sites of this batch may be others, which do not use the tensor.
            found = self._by_programs(batch, otherwise=found)
        return message_and_row(found)

    def new_kind(self, batch: Batch, traces: tuple[Trace, Trace]) -> bool:
        """Remembers a batch that has other sites or masks than those before; `Layouts.check` tells.

        Returns:
            Whether batches whose tensors alone were checked may be of this kind: they need another check.
        """
        self.varies = self.varies or vary_by_row(*traces)
        sites = _data_sites(self._pair, batch, traces[0])
        self.data_vary |= any(support_has_tensors(site["fn"]) for site in sites.values())
        mixed = self._is_as_it_comes(batch)
        if mixed:
            self._as_they_come = None
        return mixed

    def _by_programs(
        self, batch: Batch, otherwise: tuple[Problem, list[int]] | None = None
    ) -> tuple[Problem, list[int]] | None:
        """What is wrong with data and latents in a run of the programs; `otherwise` if one of them raises."""
        n = num_rows(batch)
        found = otherwise
        if (traces := quietly_run(self._pair, batch)) is not None:
            found = None
            sites = _data_sites(self._pair, batch, traces[0])
            dim = rows_frame(sites, n).dim if sites else self.dim
            for name, site in sites.items():
                found = found or unusable(name, site, n, dim, given=(self._pair, batch))
            found = found or self.wrong_latent(batch, traces, dim)
        return found

    def wrong_latent(
        self, batch: Batch, traces: tuple[Trace, Trace], dim: int | None
    ) -> tuple[Problem, list[int]] | None:
        """The first problem with latents, and the rows whose draws are outside of the model's support."""
        for problem in latent_problems(self._pair, batch, *traces):
            return problem, rows_outside(traces[0].nodes[problem.site], dim)
        return None

    def _is_as_it_comes(self, batch: Batch) -> bool:
        """Whether all that is observed are tensors of the batch, like those of the first one."""
        return self._as_they_come is not None and shapes_of_rows(batch) == self._shapes

    def refuse(self, batch: Batch, number: int, name: str = "x") -> None:
        """Refuses a batch with a problem, and says in which one and in which row of it.

        Raises:
            PairError: There is a problem.
        """
        found = self.first_problem(batch)
        if found is not None:
            row = "" if found[1] is None else f", row {found[1]} in it"
            message = f"batch {number} of {name}{row} (counted from 0): {found[0]}"
            raise PairError(message, names_rows=True)


def check_rows(
    batches: Iterable[Batch],
    first_problem: Callable[[Batch], tuple[str, int | None] | None],
    name: str = "x",
    start: int = 0,
) -> None:
    """Refuses data with a problem in any row, and says in which one.

    Args:
        batches: All rows, in their order.
        first_problem: What is wrong with a batch, and the first such row in it, as
            `DataCheck.first_problem` says.
        name: What to call the data in messages.
        start: The number of the first row.

    Raises:
        PairError: There is a problem.

    Example:
        >>> negative = lambda x: ("it is negative", int(x.argmin())) if bool((x < 0).any()) else None
        >>> check_rows([torch.ones(3), torch.tensor([1.0, -1.0])], negative)
        Traceback (most recent call last):
        ppl_vae.pairs.errors.PairError: row 4 of x (counted from 0): it is negative
    """
    for batch in batches:
        found = first_problem(batch)
        if found is not None:
            problem, row = found
            last = start + num_rows(batch) - 1
            where = f"rows {start} to {last}" if row is None else f"row {start + row}"
            message = f"{where} of {name} (counted from 0): {problem}"
            raise PairError(message, names_rows=True)
        start += num_rows(batch)


def small_batch_problem(pair: Pair, batch: Batch, rows: int) -> Problem | None:
    """What is wrong if the smallest batch of a training has so few rows. Batch norm needs two, for example.

    The pair runs on the first rows of a batch, in evaluation mode and in training mode. Neither the buffers of
    modules nor the random generators change.

    Args:
        pair: Model and guide, inside of `pair.scope()`.
        batch: A batch on which the pair runs in evaluation mode.
        rows: The number of rows; if the batch has as many, more than one, or fewer, there is nothing to find.
    """
    n = num_rows(batch)
    if not 0 < rows <= n or rows == n > 1:
        return None
    fewer = take_rows(batch, slice(0, rows))
    buffers = Buffers(pair.modules().values())
    for training in (False, True):
        before = buffers.copies()
        with preserve_random_state(), pair.mode(training):
            traces = run_pair(pair, fewer)
        buffers.put_back(before)
        wrong = [traces] if isinstance(traces, Problem) else list(shape_problems(*traces))
        if wrong:
            break
    else:
        return None
    few = "1 row" if rows == 1 else f"{rows} rows"
    remedy = (
        "Choose a batch_size that leaves more than one row for it, or leave such a batch out (drop_last=True "
        "of a DataLoader); squeeze() without a dimension and batch norm, for example, need more than one row"
        if rows == 1
        else "If the guide keeps parameters for each row, train with batch_size = the number of rows"
    )
    return Problem(
        "error",
        wrong[0].site,
        f"the pair {f'runs on the first {n} rows but not' if rows < n else 'does not run'} on the {few} that "
        f"the last batch of an epoch may have{' in training' if training else ''} ({wrong[0].message}). "
        f"{remedy}",
    )


def quietly_run(pair: Pair, batch: Batch) -> tuple[Trace, Trace] | None:
    """The traces of a pair; None if a program raises, which is reported where the batch is used."""
    with preserve_random_state(), pair.mode(training=False):
        traces = run_pair(pair, batch)
    return None if isinstance(traces, Problem) else traces


def message_and_row(found: tuple[Problem, list[int]] | None) -> tuple[str, int | None] | None:
    """A problem's message and the first row that has it, as `check_rows` takes them."""
    return None if found is None else (found[0].message, min(found[1], default=None))


def _data_sites(pair: Pair, batch: Batch, model_trace: Trace) -> dict[str, Site]:
    """The sites that hold data of rows, without factors."""
    sites = sites_of_rows(pair.model, batch, model_trace)
    return {name: site for name, site in sites.items() if site["value"].numel()}


def _stated_support(pair: Pair) -> Callable[..., Constraint] | None:
    """From a batch, the support of the data in it, if a model of this library states it.

    It is for supports that depend on other columns: the model's networks need not run to know them.
    """
    return stated_by(pair.model, "support_of_data")


def _as_it_comes(
    site: Any, args: tuple[Tensor, ...], stated: Callable[..., Constraint] | None
) -> tuple[int, Callable[..., Constraint]] | None:
    """The index of the argument that an observed value is, and from a batch the support of its rows.

    None if the value is computed, or if the support varies and the model does not state it.
    """
    value = site["value"]
    if isinstance(site["mask"], Tensor):
        return None
    try:
        shared = _of_any_row(site["fn"].support, alone=len(args) == 1)
    except Exception:  # distributions without a support
        shared = None
    support = stated if shared is None else lambda *_: shared
    for i, x in enumerate(args):
        if (
            support is not None
            and value.data_ptr() == x.data_ptr()
            and value.dtype == x.dtype
            and value.numel() == x.numel()
            and value.shape[:1] == x.shape[:1]
            and value.is_contiguous()
            and x.is_contiguous()
        ):
            return i, support
    return None


def _of_any_row(support: Constraint, alone: bool) -> Constraint | None:
    """A support whose tensors are reduced to single numbers; None if a tensor's values differ."""
    support = copy.copy(support)
    for name, part in list(vars(support).items()):
        if isinstance(part, Constraint):
            inner = _of_any_row(part, alone)
            if inner is None:
                return None
            setattr(support, name, inner)
        elif isinstance(part, Tensor):
            if not alone or bool((part != part.flatten()[0]).any()):
                return None
            setattr(support, name, part.flatten()[0])
        elif isinstance(part, (list, tuple)):
            return None
    return support
