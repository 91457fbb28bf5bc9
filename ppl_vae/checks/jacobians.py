"""Whether a guide's Deltas carry the density of the draws that they were computed from."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks.report import Problem
from ppl_vae.checks.supports import support_of, unconstrained
from ppl_vae.pairs import (
    Batch,
    Pair,
    Site,
    Substitute,
    Trace,
    as_args,
    density_sites,
    free_numbers,
    has_log_density,
    is_delta,
    latent_sites,
    present,
    sample_sites,
    unscaled,
)

_PER_SITE = 2
"""How many values of each latent are looked at."""

_MOST_FOLDED = 8
"""Most draws that are moved one by one to find others that give the same latents."""

_MOST = 256
"""Most numbers that are computed from one another, of which the determinant is taken."""


def jacobian_problems(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> Iterator[Problem]:
    """Latents z = f(u) that a guide gives as Deltas, with another density than the draws u give them.

    If f is one-to-one, log q(z | x) = log q(u | x) - log|det dz/du|, and the last term has to stand in the
    `log_density` of the Deltas. The determinant is found by autograd at a few values of each latent, from all
    numbers that these values share draws with, and compared with the sum of their `log_density`.

    That is decided only where these numbers and their draws are equally many, at most 256, differentiable (the
    gradient agrees with a difference of f), and not masked. For latents such as those of a simplex, the free
    numbers count. Otherwise nothing is said: if the numbers differ, `auxiliary_problems` and `Layout.points`
    say what is certain. A difference that rounding can explain does not count.

    A `pyro.factor` of the guide that is part of log q (see `density_sites`) may hold the Jacobian, too. All
    factors and `log_density` are then summed in the plates that the factors and the Deltas share, which is once
    per row, and so are the determinants.

    It is an error if `log_density` is left at 0 and there is no such factor, otherwise a warning: a function
    that is not one-to-one has another density. That is known here only if -u or u + 2 pi k give the same
    latents, whose densities q(-u) or q(u + 2 pi k) have to be added; it is a warning if they are left out.

    Args:
        pair: The pair, inside its scope.
        batch: The rows of the traces.
        model_trace: The trace of the model, with the guide's latents.
        guide_trace: The trace of the guide.
    """
    try:
        found = _differences(pair, batch, model_trace, guide_trace)
    # Code that autograd cannot follow; what is wrong with it is reported elsewhere.
    except Exception:
        return
    for (latents, draws, factors, folded), (given, off) in found.items():
        z, u = (", ".join(f"'{name}'" for name in names) for names in (latents, draws))
        dz, du = (
            names[0] if len(names) == 1 else f"({', '.join(names)})" for names in (latents, draws)
        )
        log_det = f"-log|det d{dz}/d{du}|"
        has = f"does not have the log_density {log_det}" if given else "has no log_density"
        if folded:
            yield Problem(
                "warning",
                latents[0],
                f"the guide computes {z} from its draw {u}, and other values of {u} give the same {z}, as for "
                "an even or periodic function: log q(z | x) leaves out their density and is too low by "
                f"{-off:.3g} nats on one of the first rows. Add it to log_density: for z = |u|, "
                "log(1 + q(-u) / q(u)). Or use a function that is one-to-one, such as exp(u)",
            )
            continue
        if factors:
            has = (
                f"has no log_density, so that pyro.factor {', '.join(map(repr, factors))} counts as one, but "
                f"that is not {log_det}"
            )
        yield Problem(
            "warning" if given or factors else "error",
            latents[0],
            f"the guide computes {z} from its draw {u}, but the Delta {has}: log q(z | x) is too "
            f"{'high' if off > 0 else 'low'} by {abs(off):.3g} nats on one of the first rows. Pass "
            f"dist.Delta(..., log_density={log_det}): for z = exp(u) that is -u, for z = a u + b it is -log|a| "
            "for each number. Or sample from a TransformedDistribution",
        )


class _Computed(NamedTuple):
    """Latents with a wrong density.

    Attributes:
        latents: Their names.
        draws: The draws that they are computed from.
        factors: The factors that count as their density.
        folded: Whether only the density of other draws with the same latents is missing.
    """

    latents: tuple[str, ...]
    draws: tuple[str, ...]
    factors: tuple[str, ...] = ()
    folded: bool = False


class _Off(NamedTuple):
    """By how much log q(z | x) is too large.

    Attributes:
        alone: If no other draws give the same latents, and without factors.
        fold: The log density that other draws add.
        rounding: How much of a difference rounding explains.
    """

    alone: float
    fold: float
    rounding: float


_Block = tuple[Tensor, Tensor, Tensor]
"""Values of latents, the draws that they alone are computed from, and the square Jacobian."""


def _differences(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> dict[_Computed, tuple[bool, float]]:
    """For groups with a wrong density: whether any is given, and the largest error of log q(z | x)."""
    in_guide, in_model = latent_sites(guide_trace), latent_sites(model_trace)
    if any(n not in in_model and has_log_density(s) for n, s in in_guide.items()):
        return {}
    latents = [
        n for n, s in in_guide.items() if is_delta(s) and n in in_model and _has_place(in_model[n])
    ]
    draws = {
        n: s
        for n, s in in_guide.items()
        if not is_delta(s) and n not in sample_sites(model_trace) and _is_free(s)
    }
    if not latents or not draws:
        return {}
    factors = [n for n, site in density_sites(guide_trace).items() if site["is_observed"]]
    maps = _Map(pair, batch, guide_trace, {n: in_model[n] for n in latents}, list(draws), factors)
    found: dict[_Computed, tuple[bool, float]] = {}
    for group, off in maps.differences():
        given = any(has_log_density(in_guide[n]) for n in group.latents)
        known = found.get(group, (given, 0.0))
        found[group] = max(known, (given, off), key=lambda pair: abs(pair[1]))
    return found


def _has_place(in_model: Site) -> bool:
    """Whether a model's latent is one of continuous numbers with a density."""
    support = support_of(in_model["fn"])
    return support is not None and not support.is_discrete and not is_delta(in_model)


def _is_free(draw: Site) -> bool:
    """Whether the numbers of a draw can be moved one by one."""
    value, support = draw["value"], support_of(draw["fn"])
    if support is None or support.is_discrete or not value.is_floating_point():
        return False
    return bool(free_numbers(draw["fn"], value) == value.numel())


@dataclass
class _Image:
    """What the guide computes from its draws.

    Attributes:
        numbers: The free numbers of all latents, `(m,)`.
        density: `log_density`, for the free numbers; of each value of a latent, `(v,)`.
        rounding: By how much `density` may be off because latents are rounded, `(v,)`.
        present: Which values are not masked, `(v,)`.
        value_of: The value that each number belongs to, `(m,)`.
        latent_of: The latent that each value belongs to, `(v,)`.
        cell_of: The place of each value in the plates that all latents and factors share, `(v,)`.
        factors: The sum of the factors at each of these places, `(cells,)`.
    """

    numbers: Tensor
    density: Tensor
    rounding: Tensor
    present: Tensor
    value_of: Tensor
    latent_of: Tensor
    cell_of: Tensor
    factors: Tensor


class _Map:
    """The function from the guide's draws to its latents, on the rows of a trace.

    Args:
        pair: The pair.
        batch: Its rows.
        guide_trace: The trace whose draws it starts at.
        latents: The model's sites of the latents.
        draws: The names of the draws that may move; other draws stay where they are.
        factors: The names of the factors that count as density of the latents.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        guide_trace: Trace,
        latents: dict[str, Site],
        draws: list[str],
        factors: list[str],
    ) -> None:
        self._pair, self._batch, self._latents, self._draws = pair, batch, latents, draws
        self._factors = factors
        plates = [
            {(f.dim, f.size) for f in guide_trace.nodes[name]["cond_indep_stack"] if f.vectorized}
            for name in (*latents, *factors)
        ]
        self._shared_plates: dict[int, int] = dict(set.intersection(*plates))
        self._values = {
            n: s["value"].detach() for n, s in latent_sites(guide_trace).items() if not is_delta(s)
        }
        self._sizes = [self._values[n].numel() for n in draws]
        self._start = torch.cat([self._values[n].flatten() for n in draws]).requires_grad_()
        self._gradients: dict[int, Tensor] = {}
        with torch.enable_grad():
            self._image = self._at(self._start)

    def differences(self) -> Iterator[tuple[_Computed, float]]:
        """Latents and draws with another `log_density` than the Jacobian's, and the error of log q(z | x)."""
        image = self._image
        if not image.numbers.requires_grad:
            return
        if self._factors:
            for cell in {0, len(image.factors) - 1}:
                yield from self._difference_with_factors(cell)
            return
        done: set[int] = set()
        for i in range(len(self._latents)):
            values = (image.latent_of == i).nonzero()[:, 0]
            some = torch.linspace(0, len(values) - 1, min(len(values), _PER_SITE)).round().long()
            for value in values[some.to(values.device)].tolist():
                if value not in done:
                    block = self._block(value)
                    if block is not None:
                        done.update(block[0].tolist())
                        yield from _judged(self._names(*block), self._off(*block))

    def _difference_with_factors(self, cell: int) -> Iterator[tuple[_Computed, float]]:
        """As `differences`, of all that is at one place, with its factors; nothing if a part is not known."""
        image = self._image
        inside = (image.cell_of == cell).nonzero()[:, 0].tolist()
        if len(inside) > _MOST:
            return
        done: set[int] = set()
        groups: list[_Computed] = []
        factor = float(image.factors[cell].detach())
        offs = [_Off(factor, 0.0, 100 * torch.finfo(image.factors.dtype).eps * abs(factor))]
        for value in inside:
            if value in done or self._is_point(value):
                continue
            block = self._block(value)
            if block is None or not set(block[0].tolist()) <= set(inside):
                return
            done.update(block[0].tolist())
            offs.append(self._off(*block))
            groups.append(self._names(*block))
        if groups:
            latents, draws = (_once(g.latents for g in groups), _once(g.draws for g in groups))
            total = _Off(*(sum(column) for column in zip(*offs, strict=True)))
            yield from _judged(_Computed(latents, draws, tuple(self._factors)), total)

    def _is_point(self, value: int) -> bool:
        """Whether a value of a latent depends on no draw."""
        rows = (self._image.value_of == value).nonzero()[:, 0].tolist()
        with torch.enable_grad():
            return not any(bool(self._gradient(row).any()) for row in rows)

    def _cells(self, shape: torch.Size) -> Tensor:
        """For each place of a site's batch, in order, its place in the shared plates."""
        sizes = [self._shared_plates.get(dim, 1) for dim in range(-len(shape), 0)]
        cells = torch.arange(math.prod(sizes), device=self._start.device)
        return cells.view(sizes).expand(shape).flatten()

    def _trace(self, draws: Tensor) -> Trace:
        parts = zip(self._draws, draws.split(self._sizes), strict=True)
        values = self._values | {
            n: part.view_as(self._values[n]).to(self._values[n].dtype) for n, part in parts
        }
        with torch.random.fork_rng(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return poutine.trace(Substitute(values)(self._pair.guide)).get_trace(
                *as_args(self._batch)
            )

    def _at(self, draws: Tensor) -> _Image:
        trace = self._trace(draws)
        parts_of: list[tuple[Tensor, ...]] = []
        first = 0
        for i, (name, in_model) in enumerate(self._latents.items()):
            site: Site = trace.nodes[name]
            shape, dims = site["fn"].batch_shape, len(site["fn"].event_shape)
            numbers, jacobian, rounding = unconstrained(in_model["fn"], site["value"])
            there = present(site)
            there = there.flatten(there.dim() - dims).all(-1) if dims else there
            density = (unscaled({**site, "mask": None}) + jacobian).expand(shape).flatten()
            size, device = density.numel(), density.device
            which = torch.arange(first, first + size, device=device)
            parts_of.append(
                (
                    numbers.flatten(),
                    density,
                    rounding.expand(shape).flatten(),
                    there.expand(shape).flatten(),
                    which.repeat_interleave(numbers.numel() // size),
                    torch.full_like(which, i),
                    self._cells(shape),
                )
            )
            first += size
        factors = self._start.new_zeros(math.prod(self._shared_plates.values()))
        for name in self._factors:
            factor = unscaled(trace.nodes[name])
            factors = factors.index_add(0, self._cells(factor.shape), factor.flatten().to(factors))
        columns = (torch.cat(column) for column in zip(*parts_of, strict=True))
        return _Image(*(*columns, factors))

    def _gradient(self, number: int) -> Tensor:
        """The derivatives of a number of a latent, `(draws,)`."""
        if number not in self._gradients:
            (self._gradients[number],) = torch.autograd.grad(
                self._image.numbers[number], self._start, retain_graph=True
            )
        return self._gradients[number]

    def _block(self, value: int) -> _Block | None:
        """The values that share draws with a value, these draws, and the Jacobian, if it is square.

        None also if the gradient is not that of the function.
        """
        image = self._image
        values = torch.tensor([value], device=image.value_of.device)
        while True:
            rows = torch.isin(image.value_of, values).nonzero()[:, 0]
            if len(rows) > _MOST:
                return None
            with torch.enable_grad():
                jacobian = torch.stack([self._gradient(row) for row in rows.tolist()])
            columns = (jacobian != 0).any(0).nonzero()[:, 0]
            if not 0 < len(columns) <= _MOST or not bool(image.present[values].all()):
                return None
            step = torch.zeros_like(self._start)
            scale = 0.003 * (1 + self._start.detach()[columns].abs())
            step[columns] = scale * (1 - 2 * (torch.arange(len(columns), device=scale.device) % 2))
            with torch.no_grad():
                there = self._at(self._start + step).numbers
            moved = torch.isin(image.value_of, values) | ~(there == image.numbers)
            others = image.value_of[moved].unique()
            if len(others) == len(values):
                break
            values = others
        seen, expected = (there - image.numbers.detach())[rows], jacobian @ step
        noise = 10 * torch.finfo(seen.dtype).eps * image.numbers[rows].detach().abs().max()
        agrees = float((seen - expected).norm()) <= 0.1 * float(expected.norm()) + float(noise)
        return (
            (values, columns, jacobian[:, columns])
            if agrees and len(rows) == len(columns)
            else None
        )

    def _off(self, values: Tensor, columns: Tensor, jacobian: Tensor) -> _Off:
        image = self._image
        rows = torch.isin(image.value_of, values)
        eps = torch.finfo(jacobian.dtype).eps
        jacobian = jacobian.double()
        log_det = float(torch.linalg.slogdet(jacobian)[1])
        density = float(image.density.detach()[values].double().sum())
        # A derivative much smaller than its number may come from rounded numbers, as for a sigmoid near 1.
        size = image.numbers.detach()[rows].double().abs().clamp(min=1e-6).unsqueeze(1)
        rounding = 4 * eps * float((1 / torch.linalg.svdvals(jacobian / size)).sum())
        rounding += 10 * float(image.rounding[values].sum()) + 100 * eps * (
            len(jacobian) + abs(log_det) + abs(density)
        )
        fold = self._fold(rows, columns)
        return _Off(density + log_det, fold, 1e-3 + rounding)

    def _fold(self, rows: Tensor, columns: Tensor) -> float:
        """log of 1 + the sum of q(v) / q(u) over other draws v with the same numbers of latents.

        -u is tried, and u + 2 pi k. If each number of u alone can be moved so, their densities count as
        independent. There the determinant is the same, because the function is.
        """
        start = self._start.detach()

        def moved(by: Tensor, which: Tensor) -> Tensor:
            there = start.clone()
            there[which] = by[which]
            return there

        def change(there: Tensor) -> Tensor:
            with torch.no_grad():
                numbers = self._at(there).numbers
            return (numbers - self._image.numbers.detach())[rows].abs()

        eps = 10 * torch.finfo(start.dtype).eps
        noise = eps * (1 + self._image.numbers.detach()[rows].abs() + start[columns].abs().max())

        def same(there: Tensor) -> bool:
            return bool((change(there) <= noise).all())

        turns = 2 * math.pi * torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, -3.0])
        others = [
            tries
            for tries in ([-start], [start + float(turn) for turn in turns])
            if same(moved(tries[0], columns))
        ]
        # A function that is flat here, as far as rounding lets one see, gives the same numbers anywhere.
        if not others or not bool((change(start + 0.003 * (1 + start.abs())) > 10 * noise).all()):
            return 0.0
        tries = [there for some in others for there in some]
        singly = len(columns) <= _MOST_FOLDED and all(
            same(moved(some[0], column)) for some in others for column in columns
        )
        with torch.no_grad():
            log_q = self._log_draws(start)
            return sum(
                math.log1p(
                    sum(
                        math.exp(min(50.0, float((self._log_draws(moved(t, which)) - log_q).sum())))
                        for t in tries
                    )
                )
                for which in (columns if singly else [columns])
            )

    def _log_draws(self, draws: Tensor) -> Tensor:
        """The log densities of all draws of the guide, -inf outside of the support."""
        trace = self._trace(draws)
        terms = []
        with pyro.validation_enabled(False):
            for name in self._values:
                site = trace.nodes[name]
                support, log_q = support_of(site["fn"]), unscaled(site).double()
                if support is not None:
                    log_q = log_q.where(support.check(site["value"]), -math.inf)
                terms.append(log_q.flatten())
        return torch.cat(terms)

    def _names(self, values: Tensor, columns: Tensor, jacobian: Tensor) -> _Computed:
        names: list[Any] = list(self._latents)
        ends = torch.tensor(self._sizes, device=columns.device).cumsum(0)
        return _Computed(
            tuple(names[i] for i in self._image.latent_of[values].unique().tolist()),
            tuple(
                self._draws[i] for i in torch.bucketize(columns, ends, right=True).unique().tolist()
            ),
        )


def _judged(group: _Computed, off: _Off) -> Iterator[tuple[_Computed, float]]:
    """The group and its error, if that is more than rounding."""
    error = off.alone - off.fold
    if abs(error) > off.rounding:
        yield group._replace(folded=off.fold > 0 and abs(off.alone) <= off.rounding), error


def _once(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All names in order, without repetitions."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(names)))
