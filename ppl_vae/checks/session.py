"""A pair opened for evaluation: checked, in evaluation mode, with its rows in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.checks.arguments import arguments_explained
from ppl_vae.checks.batches import check_data
from ppl_vae.checks.chunks import ChunkCheck
from ppl_vae.checks.findings import Findings
from ppl_vae.checks.report import Problem
from ppl_vae.pairs import (
    PLAIN,
    Batch,
    Batches,
    DataLike,
    Layout,
    Layouts,
    Pair,
    PairError,
    Program,
    RowDensities,
    first_line,
    is_plain,
    move,
    num_rows,
    parts_of,
    runs_on_all_alone,
    sample_rows,
    selects_outside,
    shapes_of_rows,
    take_rows,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import (
    device_of,
    preserve_random_state,
    progress_bar,
    require_progress,
    seed_everything,
)

MEMORY_BUDGET = 64 * 2**20
"""Bytes of intermediate results that one chunk of rows x samples may take."""

MANY_OPERATIONS = 256
"""A pair of more operations takes small ones, and frees most results on its way, as one that writes word by
word does: its chunks are larger in proportion."""

MOST_BUDGETS = 8
"""How many times the budget such a chunk may take, if nothing were freed."""

FIRST_ROWS = 64
"""Number of rows on which a pair is checked and its layout is found."""

CHECKED_ROWS = 4096
"""Rows whose values are looked at together before the first chunk."""

MOST_AT_ONCE = 10_000
"""Most rows that are tried at once for a pair that does not run on the first ones."""


@dataclass(frozen=True)
class Session:
    """An opened pair and its rows.

    Attributes:
        pair: The pair, inside its scope, in evaluation mode, without gradients.
        layouts: For each batch, the plate that holds the rows, and the roles of the sites.
        first: The first rows, which were checked; on the device.
        device: The device of the pair's parameters.
        batches: All rows.
        progress: Whether to show progress bars; None shows them on a terminal.
        check_chunk: Checks a chunk, where it may have problems that the first rows have not.
        findings: What the checks say of the rows so far. It is complete after the last chunk.
    """

    pair: Pair
    layouts: Layouts
    first: Batch
    device: torch.device
    batches: Batches
    progress: bool | None
    check_chunk: ChunkCheck
    findings: Findings

    @property
    def layout(self) -> Layout:
        """The layout of the first rows."""
        return self.layouts.known[0]

    @property
    def num_rows(self) -> int | None:
        """The number of rows; None if they come from an iterable."""
        return num_rows(self.batches.rows) if self.batches.in_memory else None

    def chunk_sizes(self, num_samples: int, rows: int = FIRST_ROWS) -> tuple[int, int]:
        """How many rows to run at once, and how many samples of each; measured on the first `rows` rows."""
        few = self.first if self.pair.keeps_rows else take_rows(self.first, slice(0, rows))
        return chunk_sizes(self.pair, self.layout, few, num_samples)

    def rows_at_once(self, num_samples: int, rows: int = FIRST_ROWS, spare: int = 1) -> int:
        """How many rows to run at once, with all samples of each row.

        Args:
            num_samples: Samples of each row.
            rows: Number of the first rows to measure on.
            spare: Measure for so many times the samples: the memory that is left is used for more rows.
        """
        if self.pair.keeps_rows:
            return num_rows(self.first)
        at_once, samples = self.chunk_sizes(spare * num_samples, rows)
        return max(1, at_once * samples // num_samples)

    def sample(
        self, batch: Batch, num_samples: int, values: Mapping[str, Tensor] | None = None
    ) -> RowDensities:
        """Draws latents per row from the guide and scores them, as `sample_rows` does."""
        return self.layouts.run(
            batch, lambda layout: sample_rows(self.pair, layout, batch, num_samples, values)
        )

    def spread(self, count: int) -> list[Batch]:
        """About `count` rows, evenly spread over all, on the device; all rows of a pair that keeps rows.

        Args:
            count: How many; from an iterable they are up to twice as many.

        Returns:
            Parts of them, each with rows of one shape.

        Example:
            >>> from ppl_vae.guides import Exact
            >>> from ppl_vae.models import ProbabilisticPCA
            >>> model = ProbabilisticPCA((2,))
            >>> with opened(model, Exact(model), torch.arange(10.0).expand(2, 10).T) as session:
            ...     [part[:, 0].tolist() for part in session.spread(4)]
            [[0.0, 3.0, 6.0, 9.0]]
        """
        if self.pair.keeps_rows:
            return [self.first]
        if self.batches.in_memory:
            rows = self.batches.rows
            n = num_rows(rows)
            which = torch.linspace(0, n - 1, min(count, n), dtype=torch.float64).round().long()
            return [move(take_rows(rows, which), self.device)]
        kept: list[tuple[int, Batch]] = []  # with the number of its first row
        stride, start = 1, 0
        for batch in self.chunks(CHECKED_ROWS):
            n = num_rows(batch)
            own = take_rows(batch, slice(-start % stride, None, stride))
            if num_rows(own):
                kept.append((-(-start // stride), own))
            start += n
            while sum(num_rows(part) for _, part in kept) >= 2 * count:
                stride *= 2
                halves = [
                    (first, take_rows(part, slice(first % 2, None, 2))) for first, part in kept
                ]
                kept = [(-(-first // 2), part) for first, part in halves if num_rows(part)]
        same: dict[object, list[Batch]] = {}
        for _, part in kept:
            same.setdefault(shapes_of_rows(part), []).append(part)
        return [_joined(parts) for parts in same.values()]

    def with_first(self, rows: list[Batch]) -> Session:
        """The same with as many first rows that are spread over those given: the first of all may be sorted.

        It is the session as it is if that cannot be: rows of other shapes or sites, parameters for each row.

        Args:
            rows: What `spread` found.
        """
        if (
            self.pair.keeps_rows
            or len(rows) > 1
            or shapes_of_rows(rows[0]) != shapes_of_rows(self.first)
        ):
            return self
        n = num_rows(rows[0])
        which = torch.linspace(0, n - 1, min(n, num_rows(self.first)), dtype=torch.float64)
        few = take_rows(rows[0], which.round().long().to(self.device))
        return replace(self, first=few) if self.layouts.of(few) is self.layout else self

    def bar(self, label: str, unit: str = "row", total: int | None = None) -> Any:
        """A progress bar as a context manager."""
        return progress_bar(total, label, unit, self.progress)

    def chunks(self, rows: int, label: str = "") -> Iterator[Batch]:
        """The rows in order, at most `rows` at once, on the device; with a progress bar if it has a label."""
        with progress_bar(self.num_rows, label, "row", self.progress if label else False) as bar:
            start = 0
            for batch in self.batches.ordered(rows):
                n = num_rows(batch)  # of a loader, it may be more than asked for
                for part in [slice(0, n)] if self.batches.in_memory else parts_of(n, rows):
                    chunk = move(take_rows(batch, part), self.device)
                    self.check_chunk(chunk, start)
                    start += num_rows(chunk)
                    yield chunk
                    bar.update(num_rows(chunk))
            if not start:
                raise ValueError(f"{self.batches.name} gave no batches: it can be read only once")


@contextmanager
def opened(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    seed: int | None = None,
    progress: bool | None = None,
    whole: bool = False,
    draws_start_at_seed: bool = False,
) -> Iterator[Session]:
    """Opens a pair for evaluation: checks it on the first rows, finds device and layout.

    Inside, gradients are off, the modules are in evaluation mode, and the pair's own `pyro.param` values are
    used. With a seed, draws of programs and of loaders do not touch the global random state.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x). If `fit` has trained exactly this pair, its `pyro.param` values are
            used.
        x: The rows; all that `Batches` takes.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show progress bars; None shows them on a terminal.
        whole: Use all rows as the first rows. A guide that keeps parameters for each row always gets all rows,
            and so does a pair that runs on all of them alone, such as one with a plate of their number.
        draws_start_at_seed: Whether draws inside are the first ones after seeding. If not, the programs have
            run once before; the results of `evaluate` for a given seed depend on that.

    Raises:
        PairError: The programs fail on the rows, the rows are not in a plate, data are NaN or outside the
            likelihood's support, or the guide draws the latents of different rows jointly.
        ValueError: `x` has no rows, or it is an iterable and all rows are needed at once.

    Example:
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model = ProbabilisticPCA((3,))
        >>> with opened(model, Exact(model), torch.zeros(100, 3)) as session:
        ...     sizes = [len(chunk) for chunk in session.chunks(40)]
        ...     session.layout.latents, sizes
        (('z',), [40, 40, 20])
    """
    require_progress(progress)
    pair = Pair.of(model, guide)
    pair.require_numbers()
    with preserve_random_state():  # data sets may draw, too
        batches = Batches(x, pair)
    with evaluating(pair, seed), ExitStack() as stack:
        everything = whole or pair.keeps_rows
        first = batches.first(num_rows(batches.rows) if everything else FIRST_ROWS)
        first = move(first, _device_of_modules(pair))
        trained = set(pyro.get_param_store())
        try:
            traces, told = check_data(pair, first, batches.doubt)
        except PairError:
            if everything or not _needs_all_rows(pair, batches):
                raise
            pair.forget(set(pyro.get_param_store()) - trained)
            pair.keeps_rows = everything = True
            first = move(batches.rows, _device_of_modules(pair))
            traces, told = check_data(pair, first, batches.doubt)
        stack.enter_context(arguments_explained(pair, lambda: first))
        with preserve_random_state() if draws_start_at_seed else nullcontext():
            device = device_of(pair.parameters(first).values())
        seen = first  # the rows of the traces
        if not everything:  # a loader's first batch may be larger
            first = take_rows(first, slice(0, FIRST_ROWS))
        first = move(first, device)
        findings = Findings()
        layouts = _layouts(pair, findings, told)
        layouts.of(first)
        if pair.keeps_rows and not everything:  # which only these runs have shown
            first = seen = move(batches.rows, device)
            pair.forget(pair.by_row - trained)
            traces, told = check_data(pair, first, batches.doubt)
            findings = Findings()
            layouts = _layouts(pair, findings, told)
            layouts.of(first)
        findings.add(Problem("warning", "pyro.param", text) for text in pair.forgotten())
        check_chunk = ChunkCheck(pair, seen, traces, findings, batches.doubt)
        layouts.check = check_chunk.new_kind
        del traces, seen  # they hold all that was computed
        if (
            batches.in_memory and not everything
        ):  # before hours are spent on the rows before a bad one
            parts = batches.ordered(CHECKED_ROWS)
            check_chunk.look_ahead(move(part, device) for part in parts)
        try:
            yield Session(pair, layouts, first, device, batches, progress, check_chunk, findings)
        except PLAIN as error:  # as distributions raise for parameters that are NaN
            if not is_plain(error):
                raise
            rows, start = check_chunk.last
            if selected := selects_outside(pair, rows, error, start):
                raise PairError(f"{selected} ({first_line(error)})", names_rows=True) from error
            if not (check_chunk.large or check_chunk.failed):
                raise
            if check_chunk.failed:
                raise PairError(f"{check_chunk.failed} ({first_line(error)})") from error
            raise PairError(
                f"{first_line(error)}. The likely cause are the data: {check_chunk.large}; repair or "
                "rescale them"
            ) from error


def _joined(parts: list[Batch]) -> Batch:
    """The rows of several batches as one."""
    return with_tensors(
        parts[0], [torch.cat(each) for each in zip(*map(tensors_of, parts), strict=True)]
    )


def _layouts(pair: Pair, findings: Findings, told: tuple[Problem, ...]) -> Layouts:
    """Layouts that tell the findings, to which those of the first rows are added."""
    findings.add(told)
    layouts = Layouts(pair)
    layouts.found = findings.look
    return layouts


@contextmanager
def evaluating(pair: Pair, seed: int | None) -> Iterator[None]:
    """Turns gradients off, sets evaluation mode and the pair's own parameters, and a local seed if given."""
    with torch.no_grad(), pair.scope(), pair.mode(training=False):
        if seed is None:
            yield
        else:
            with preserve_random_state():
                seed_everything(seed)
                yield


def _needs_all_rows(pair: Pair, batches: Batches) -> bool:
    """Whether a pair that does not run on the first rows does on all: `pyro.plate("data", 400)`."""
    if not batches.in_memory or num_rows(batches.rows) > MOST_AT_ONCE:
        return False
    return runs_on_all_alone(pair, batches.rows, FIRST_ROWS)


def _device_of_modules(pair: Pair) -> torch.device:
    """The device of the pair's parameters; the CPU if it has none."""
    tensors = [p for module in pair.modules().values() for p in module.parameters()]
    return device_of([*tensors, *pair.store["params"].values()])


class _CountBytes(TorchDispatchMode):
    """Counts the operations inside it, and adds up the bytes of all tensors that they compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return out


def chunk_sizes(pair: Pair, layout: Layout, batch: Batch, num_samples: int) -> tuple[int, int]:
    """How many rows and samples to run at once to stay within the memory budget; found by measurement."""
    n = num_rows(batch)
    counters = []
    for k in (2, 6):
        with torch.random.fork_rng(), _CountBytes() as counter:
            sample_rows(pair, layout, batch, k)
        counters.append(counter)
    a_sample = max(1.0, (counters[1].total - counters[0].total) / (4 * n))
    operations = counters[0].operations / (1 if layout.vectorizes else 2)
    budgets = min(MOST_BUDGETS, max(1.0, operations / MANY_OPERATIONS))
    at_once = max(1, int(budgets * MEMORY_BUDGET / a_sample))
    most = 64 if layout.vectorizes else 1024  # if samples are looped over, only rows fill a run
    rows = n if pair.keeps_rows else max(1, min(most, at_once))
    return rows, max(1, min(num_samples, at_once // rows))
