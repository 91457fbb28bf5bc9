"""compress() and decompress(): rows as a file without loss, by bits-back coding with any pair."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ppl_vae.checks import Session, evaluating, opened
from ppl_vae.coding import Pops, Pushes, Stack, require_constriction
from ppl_vae.compression.coded_sites import CodedSites, WrongValueError
from ppl_vae.compression.exact_arithmetic import exact_arithmetic, name_of
from ppl_vae.compression.file_format import (
    MOST_BITS,
    Argument,
    Contents,
    numbers_in,
    read,
    written,
)
from ppl_vae.compression.interval_masses import masses_of, standard
from ppl_vae.compression.latent_grid import Grids, free_coordinates
from ppl_vae.compression.reading import Reading, covered
from ppl_vae.compression.result import Compressed
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import (
    Batch,
    DataLike,
    Layout,
    Pair,
    PairError,
    Program,
    Site,
    SomeArguments,
    as_args,
    innermost,
    is_delta,
    is_discrete,
    kind_of,
    latent_sites,
    num_rows,
    observed_sites,
    sum_to_rows,
    take_rows,
    tensors_of,
    trace_pair,
    with_tensors,
)
from ppl_vae.runtime import described, preserve_random_state, progress_bar, require_count
from ppl_vae.stats import Estimate

_MOST_NUMBERS = 2**28
"""Most numbers that a file may say it has, unless more are asked for."""

_SURVEYED = 256
"""Rows that moments of latents are found from."""

_FAR = 4.5
"""Draws further out than that are beyond the quantiles of N(0, 1), and ask for a grid of their own."""

_SHARE = 8
"""Of the rows so far, one in so many more are coded at once: what they leave is enough to begin the next."""


def compress(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    latent_bits: int = 16,
    rows_at_once: int = 64,
    progress: bool | None = None,
) -> Compressed:
    """Writes rows to a file that `decompress` reads with the same pair, without loss.

    A row is coded in three steps (BB-ANS: "Practical Lossless Compression with Latent Variables using Bits Back
    Coding", arXiv:1901.04866): z is popped from the bits so far with q(z | x), then x is pushed with p(x | z),
    and z with p(z). The bits that chose z are got back when the row is read, so it costs

        - log2 p(x, z) + log2 q(z | x) bits, - ELBO / ln 2 in the mean.

    It holds for any pair: both programs run, and each sample site is coded with its distribution, in the
    order of the program. So latents may depend on each other, be discrete, or be Markov chains; each value of
    an `Ancestral` row is coded given those before it. A latent that is certain costs nothing; a model without
    latents is an ordinary code.

    Continuous numbers are one of 2^b values each, the medians of equally probable intervals: under p(z) where
    that is N(0, 1), else, or if q(z | x) is far out, under a normal with moments that stand in the file, in
    free coordinates (log z for a positive z). The guide is discretized alike, so this costs little, and less
    with each bit.

    Of the first rows the guide has no bits to choose z with. They are random ones, and stay in the file: some
    hundred bits for each row of the first few. Later on, more and more rows are coded at once.

    Everything is computed by the CPU in double precision and one thread, in the same shapes for writing and
    reading, wherever the pair is: while it runs, its parameters are moved. Probabilities are rounded to 2^-24.

    What the model observes is in the file; arguments of which it observes nothing, such as the labels of a
    `ConditionalVAE`, are not, and the reader has to have them.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows, in memory; `(x, c)` for programs that are called with both.
        latent_bits: b, from 1 to 20.
        rows_at_once: Most rows that are coded at once. More are faster; with 1, there are fewest initial bits.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The file, and where its bits come from. It is for processors of this kind and this version of torch:
        others may round sums differently. `decompress` then says so.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        PairError: A site cannot be coded: rows that have a density (`Gaussian`), flows, latents that only one
            program samples, masks; or a value is impossible. The message names the site.
        TypeError: An option is of a wrong type.
        ValueError: An option is out of its range.

    Example:
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import BernoulliMixture
        >>> model = BernoulliMixture((6,), components=3)
        >>> x = torch.tensor([[0.0, 1, 0, 1, 1, 0]]).repeat(50, 1)
        >>> file = compress(model, Exact(model), x)
        >>> bool((decompress(model, Exact(model), file.data) == x).all())
        True
    """
    library = require_constriction("compressed rows", "compress")
    require_count("latent_bits", latent_bits, 1)
    require_count("rows_at_once", rows_at_once, 1)
    if latent_bits > MOST_BITS:
        raise ValueError(f"latent_bits must be from 1 to {MOST_BITS}, got {latent_bits}")
    if rows_at_once >= 2**16:
        raise ValueError(f"rows_at_once must be from 1 to {2**16 - 1}, got {rows_at_once}")
    with torch.inference_mode(False), opened(model, guide, x, seed=0, progress=progress) as session:
        pair, layout = session.pair, session.layout
        rows = _rows_in_memory(session)
        _require_local(layout)
        at_once = 0 if pair.keeps_rows else rows_at_once
        double = _runs_in_double(session, rows, latent_bits)
        with exact_arithmetic(pair, double):
            prepared, few = _prepared(rows, double), _prepared(_few(session, rows), double)
            context, grids = _survey(pair, few, latent_bits, double)
            stack = Stack(library)
            elbo, bits = _encoded(session, rows, prepared, context, grids, stack, at_once)
            tensors = tensors_of(rows)
            contents = Contents(
                double,
                latent_bits,
                at_once,
                num_rows(rows),
                stack.initial_words,
                _sum_of(t for t, given in zip(tensors, context, strict=True) if not given),
                _sum_of(t for t, given in zip(tensors, context, strict=True) if given),
                name_of(pair, _blank(prepared, context, _named(num_rows(rows), at_once))),
                [
                    Argument(given, t.dtype, tuple(t.shape[1:]))
                    for t, given in zip(tensors, context, strict=True)
                ],
                grids.moments,
            )
    data, beside = written(contents, stack.data())
    return Compressed(
        Estimate(elbo),
        Estimate(bits, "bits"),
        numbers_in(contents) // contents.num_rows,
        32 * stack.initial_words,
        8 * beside,
        latent_bits,
        rows_at_once,
        sum(context),
        data,
    )


def decompress(
    model: Program,
    guide: Program,
    data: bytes | bytearray | memoryview,
    *,
    context: Tensor | Sequence[Tensor] = (),
    most_numbers: int = _MOST_NUMBERS,
    progress: bool | None = None,
) -> Any:
    """Reads what `compress` wrote, and gives exactly the rows that it was given.

    Args:
        model: The same model.
        guide: The same guide.
        data: The file.
        context: The arguments that are not in the file, such as the labels of the rows; in their order, if
            there are several.
        most_numbers: Most numbers of all rows that are accepted.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        The rows, on the CPU; a tuple if several arguments of the programs are in the file.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `data` are no bytes.
        ValueError: The file is damaged, of another version or pair, or has too many numbers; the context is
            another one; or this machine computes other probabilities than that on which it was written.
    """
    library = require_constriction("compressed rows", "compress")
    require_count("most_numbers", most_numbers, 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data must be the bytes of a file, got {described(data)}")
    contents, payload = read(bytes(data))
    if numbers_in(contents) > most_numbers:
        raise ValueError(
            f"this file says that it has {numbers_in(contents):,} numbers, more than "
            f"most_numbers={most_numbers:,}: raise most_numbers, if the memory has room for them"
        )
    given = _matching(contents, context)
    pair = Pair.of(model, guide)
    arguments = contents.arguments
    is_context = [each.is_context for each in arguments]
    with torch.inference_mode(False), evaluating(pair, 0):
        rows = [
            next(given)
            if each.is_context
            else torch.zeros(contents.num_rows, *each.shape, dtype=each.dtype)
            for each in arguments
        ]
        blank: Batch = rows[0] if len(rows) == 1 else tuple(rows)
        first = take_rows(blank, slice(0, _named(contents.num_rows, contents.rows_at_once)))
        other = f"this file was written with another pair than this {_in_words(pair)}"
        with preserve_random_state():
            try:
                _run_once(pair, first)
            except Exception as error:
                raise ValueError(f"{other}, which does not run on such rows ({error})") from error
        with exact_arithmetic(pair, contents.double):
            few = _prepared(first, contents.double)
            if name_of(pair, _blank(few, is_context, num_rows(few))) != contents.name:
                raise ValueError(f"{other}: give the model and the guide with the same parameters")
            grids = Grids(contents.latent_bits, _dtype(contents.double), contents.moments)
            done = False
            try:
                stack = Stack(library, payload, contents.initial_words)
                _decoded(pair, blank, contents, is_context, grids, stack, progress)
                found = [t for t, each in zip(rows, arguments, strict=True) if not each.is_context]
                done = stack.is_initial and _sum_of(found) == contents.sum_of_rows
            except (WrongValueError, PairError, ValueError, RuntimeError, IndexError):
                done = False
    if not done:
        raise ValueError(
            "this file does not decode to the rows that were written, though it is whole and the parameters "
            "are right: probabilities are rounded differently here, or the programs are others. Decode it "
            "with the kind of processor and the version of torch with which it was written"
        )
    return found[0] if len(found) == 1 else tuple(found)


# -- chunks ----------------------------------------------------------------------------------------------------


def _encoded(
    session: Session,
    rows: Batch,
    prepared: Batch,
    context: list[bool],
    grids: Grids,
    stack: Stack,
    at_once: int,
    quiet: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pushes all rows; gives the ELBO and the length of the code of each."""
    pair, layout = session.pair, session.layout
    elbo, bits = [], []
    orders: dict[str, tuple[Tensor, list[int]]] = {}
    n = num_rows(rows)
    dtypes = [t.dtype for t in tensors_of(rows)]
    with progress_bar(n, "compress", "row", False if quiet else session.progress) as bar:
        for part in _chunks(n, at_once):
            count = part.stop - part.start
            if part.start:
                stack.stir()
            truth = _prepared(take_rows(prepared, part), False)
            blank = _blank(truth, context, count)
            reading = Reading(tensors_of(blank), dtypes, tensors_of(truth), context, orders)
            popped = CodedSites(Pops(stack), grids)
            pushes = Pushes(stack)
            with _explained():
                _run(pair.guide, popped, truth)
                pushed = CodedSites(pushes, grids, popped.indices, reading)
                _run(pair.model, pushed, blank)
            pushes.finish()
            _require_same(blank, truth, context, part.start)
            elbo.append(_sum(pushed.log_p, layout, count) - _sum(popped.log_p, layout, count))
            bits.append(_sum(pushed.bits, layout, count) - _sum(popped.bits, layout, count))
            bar.update(count)
    return torch.cat(elbo), torch.cat(bits)


def _decoded(
    pair: Pair,
    blank: Batch,
    contents: Contents,
    context: list[bool],
    grids: Grids,
    stack: Stack,
    progress: bool | None,
) -> None:
    """Pops all rows, into `blank`."""
    dtypes = [t.dtype for t in tensors_of(blank)]
    orders: dict[str, tuple[Tensor, list[int]]] = {}
    with progress_bar(contents.num_rows, "decompress", "row", progress) as bar:
        for part in reversed(list(_chunks(contents.num_rows, contents.rows_at_once))):
            chunk = _prepared(take_rows(blank, part), contents.double)
            reading = Reading(tensors_of(chunk), dtypes, None, context, orders)
            popped = CodedSites(Pops(stack), grids, None, reading)
            _run(pair.model, popped, chunk)
            pushes = Pushes(stack)
            _run(pair.guide, CodedSites(pushes, grids, popped.indices), chunk)
            pushes.finish()
            for whole, found, known in zip(
                tensors_of(blank), tensors_of(chunk), context, strict=True
            ):
                if not known:
                    whole[part] = found.to(whole.dtype)
            if part.start:
                stack.unstir()
            bar.update(part.stop - part.start)


def _chunks(n: int, at_once: int) -> Iterator[slice]:
    """Rows that are coded at once: few at first, whose latents take bits that nobody has left."""
    start = 0
    while start < n:
        size = n if at_once == 0 else min(at_once, n - start, 1 + start // _SHARE)
        yield slice(start, start + size)
        start += size


def _run_once(pair: Pair, batch: Batch) -> None:
    """Makes the parameters of programs that have not run yet, whatever their precision is."""
    try:
        trace_pair(pair, batch)
    except RuntimeError:
        trace_pair(pair, _prepared(batch, True))


def _dtype(double: bool) -> torch.dtype:
    return torch.float64 if double else torch.get_default_dtype()


def _named(n: int, at_once: int) -> int:
    """How many rows a pair is run on for its name: all where it keeps parameters for each."""
    return min(n, 2) if at_once else n


def _run(program: Program, coded: CodedSites, batch: Batch) -> None:
    """Runs a program with its sites coded."""
    with coded:
        program(*as_args(batch))


def _sum(of_sites: Mapping[str, Tensor], layout: Layout, n: int) -> Tensor:
    """What all sites have together for each row, `(n,)`."""
    found = torch.zeros(n, dtype=torch.float64)
    for each in of_sites.values():
        found += sum_to_rows(each, layout, 1, n)[0]
    return found


# -- before the first chunk ------------------------------------------------------------------------------------


def _runs_in_double(session: Session, rows: Batch, latent_bits: int) -> bool:
    """Whether a row can be coded in double precision: programs may hold tensors that nobody finds."""
    n = num_rows(rows) if session.pair.keeps_rows else 1
    with exact_arithmetic(session.pair, True):
        few = _prepared(_few(session, rows), True)
        try:
            context, grids = _survey(session.pair, few, latent_bits, True)
            one = take_rows(rows, slice(0, n))
            stack = Stack(require_constriction("compressed rows", "compress"))
            _encoded(session, one, _prepared(one, True), context, grids, stack, 0, quiet=True)
        except RuntimeError:
            return False
    return True


def _survey(pair: Pair, batch: Batch, latent_bits: int, double: bool) -> tuple[list[bool], Grids]:
    """Which arguments the sites say nothing of, and the grids of continuous latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_trace, guide_trace = trace_pair(pair, batch)
    latents = latent_sites(model_trace)
    for name in latent_sites(guide_trace):
        if name not in latents:
            raise PairError(
                f"the guide samples '{name}', which the model does not: who reads the rows could not find "
                "its value, and its bits would be lost. Use a guide that samples the model's latents alone "
                "(MeanField in place of AutoNormal)"
            )
    values = [
        site["value"]
        for site in observed_sites(model_trace).values()
        if not isinstance(innermost(site["fn"]), Given | Revealed)
    ]
    context = []
    for i, mask in enumerate(covered(tensors_of(batch), values)):
        if bool(mask.any()) and not bool(mask.all()):
            raise PairError(
                f"the model observes a part of argument {i + 1} alone, and the rest could not be read from a "
                "file: observe all of it, or give what is not modeled as an argument of its own"
            )
        context.append(not bool(mask.any()))
    if all(context):
        raise PairError(
            "the model observes nothing that can be put into a file: its observed sites have to hold the rows"
        )
    moments = {}
    for name, site in latents.items():
        if not is_discrete(site):
            of_guide = guide_trace.nodes[name]
            if not _is_standard(name, site) or bool((of_guide["value"].abs() > _FAR).any()):
                moments[name] = _moments(site, of_guide)
    grids = Grids(latent_bits, _dtype(double), moments)
    for site in latents.values():
        grids.of(site)
    return context, grids


def _is_standard(name: str, site: Site) -> bool:
    """Whether a prior is N(0, 1) for each number."""
    masses = None if is_delta(site) else masses_of(site["fn"])
    if masses is None:
        raise PairError(
            f"the prior of latent '{name}' is {kind_of(site['fn'])}, of which masses of intervals are not "
            "known number by number (as those of a flow): use a prior with a cdf for each number, a "
            "multivariate normal or a mixture of normals"
        )
    return standard(masses)


def _moments(site: Site, of_guide: Site) -> Tensor:
    """Moments for the grid of a latent, those of draws from q and p in free coordinates, `(2, E)`.

    The scale is twice theirs: rows that are far out have intervals that are narrow enough, too.
    """
    fn, numbers = site["fn"], site["fn"].event_shape.numel()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.cat([t.reshape(-1, numbers) for t in (fn.sample(), of_guide["value"])])
    transform = free_coordinates(fn)
    free = draws.double() if transform is None else transform.inv(draws.double())
    loc = free.mean(0)
    scale = 2 * free.std(0, correction=0) + loc.abs() / 64 + 1e-6
    return torch.stack([loc, scale]).bfloat16().double()  # as they stand in the file


def _require_local(layout: Layout) -> None:
    """Raises an error for latents that do not belong to single rows, or that the guide does not sample."""
    if layout.shared:
        raise PairError(
            f"latent '{layout.shared[0]}' is shared by all rows: rows are coded one after the other, so make "
            "it a parameter"
        )
    if layout.enumerated:
        raise PairError(
            f"latent '{layout.enumerated[0]}' is summed out by the model, and bits-back coding needs a guide "
            "that samples it: use one that does (Exact, Enumerated)"
        )


# -- rows ------------------------------------------------------------------------------------------------------


def _rows_in_memory(session: Session) -> Batch:
    """All rows on the CPU."""
    if not session.batches.in_memory or isinstance(session.batches.rows, SomeArguments):
        raise TypeError(
            f"{session.batches.name} must be tensors in memory, one for each argument of the programs, to be "
            "compressed"
        )
    rows: Batch = session.batches.rows
    return with_tensors(rows, [t.detach().cpu().contiguous() for t in tensors_of(rows)])


def _few(session: Session, rows: Batch) -> Batch:
    """Some rows that are spread over all."""
    n = num_rows(rows)
    if session.pair.keeps_rows:
        return rows
    return take_rows(rows, torch.linspace(0, n - 1, min(n, _SURVEYED), dtype=torch.float64).long())


def _prepared(batch: Batch, double: bool) -> Batch:
    """Rows as the programs read them: copies, in double precision if they run in it."""
    copies = [t.clone(memory_format=torch.contiguous_format) for t in tensors_of(batch)]
    return with_tensors(
        batch, [t.double() if double and t.is_floating_point() else t for t in copies]
    )


def _blank(batch: Batch, context: Sequence[bool], count: int) -> Batch:
    """The first rows without what is in the file."""
    parts = [t[:count].clone() for t in tensors_of(batch)]
    return with_tensors(
        batch, [t if known else t.zero_() for t, known in zip(parts, context, strict=True)]
    )


def _sum_of(tensors: Iterable[Tensor]) -> int:
    """A checksum of values."""
    found = 0
    for tensor in tensors:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(flat.numpy().data, found)
    return found


def _require_same(found: Batch, truth: Batch, context: Sequence[bool], start: int) -> None:
    """Raises an error if the rows are not those that a reader would find."""
    for one, two, known in zip(tensors_of(found), tensors_of(truth), context, strict=True):
        if known or torch.equal(one, two):
            continue
        wrong = (one != two).reshape(len(one), -1)
        row = int(wrong.any(1).nonzero()[0])
        place = int(wrong[row].nonzero()[0])
        real, restored = (float(t.reshape(len(t), -1)[row, place]) for t in (two, one))
        raise PairError(
            f"row {start + row} has the value {real!r}, of which a reader would find {restored!r}: give "
            "values that are exactly those of the likelihood's support, such as whole numbers divided by 255"
        )


def _matching(contents: Contents, context: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
    """The arguments that the receiver has.

    Raises:
        ValueError: They are not those that the rows were written with.
    """
    given = (context,) if isinstance(context, Tensor) else tuple(context)
    wanted = [each for each in contents.arguments if each.is_context]
    if len(given) != len(wanted):
        raise ValueError(
            f"the rows were written with {len(wanted)} arguments that are not in the file, such as labels, but "
            f"context has {len(given)}: give the same ones as context"
        )
    parts = []
    for each, part in zip(wanted, given, strict=True):
        expected = (contents.num_rows, *each.shape)
        if not isinstance(part, Tensor) or tuple(part.shape) != expected:
            raise ValueError(f"context must have the shape {expected}, got {described(part)}")
        parts.append(part.detach().cpu().to(each.dtype).contiguous())
    if _sum_of(parts) != contents.sum_of_context:
        raise ValueError(
            "the rows were written with another context: give the same labels, in their order"
        )
    return iter(parts)


@contextmanager
def _explained() -> Iterator[None]:
    """Says what a value is that is certain, and not the one that is to be written."""
    try:
        yield
    except WrongValueError as error:
        raise PairError(
            "the guide draws a latent that the model gives the probability 0: look at the supports of both"
        ) from error


def _in_words(pair: Pair) -> str:
    return f"{type(pair.model).__name__} and {type(pair.guide).__name__}"
