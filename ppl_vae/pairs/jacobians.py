"""The density of latents z = f(u) that a guide gives as Deltas, compared with that of its draws u."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.pairs.coordinates import support_of
from ppl_vae.pairs.folds import flat_draws, fold, turns
from ppl_vae.pairs.guide_maps import MOST_NUMBERS, MOST_TOGETHER, ROUNDED, Block, GuideMap
from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args, num_rows, take_rows, tensors_of
from ppl_vae.pairs.row_plate import rows_frame, sites_of_rows
from ppl_vae.pairs.traces import (
    Site,
    Trace,
    density_sites,
    free_numbers,
    has_log_density,
    is_delta,
    latent_sites,
    present,
    sample_sites,
    trace_pair,
)

_PER_SITE = 2
"""How many values of each latent are looked at."""

_NOT_FREE = "its draws cannot be moved one by one"

_MOST_FACTORS = 8
"""Of more factors, all or none are density."""


class Computed(NamedTuple):
    """Latents with a wrong density.

    Attributes:
        latents: Their names.
        draws: The draws that they are computed from.
        factors: The factors that count as their density.
        fault: What is wrong: the "density"; it leaves out that of other draws with the same latents ("folded");
            some draws have no influence on the latents ("flat"); or a factor holds the density of all rows in
            one number ("outside").
    """

    latents: tuple[str, ...]
    draws: tuple[str, ...]
    factors: tuple[str, ...] = ()
    fault: Literal["density", "folded", "flat", "outside"] = "density"


class DensityComparison(NamedTuple):
    """The densities of a guide's latents, compared with those of their draws.

    Attributes:
        wrong: For groups with a wrong density: whether any is given, and the largest error of log q(z | x); 0
            if it is not known.
        factors: The `pyro.factor` sites that are part of log q(z | x).
        unknown: Latents that are computed from draws, and why it is not known whether their density is right.
    """

    wrong: dict[Computed, tuple[bool, float]]
    factors: tuple[str, ...]
    unknown: dict[str, str]


class _Off(NamedTuple):
    """By how much log q(z | x) is too large.

    Attributes:
        alone: If no other draws give the same latents, and without factors.
        fold: The log density that other draws add.
        rounding: How much of a difference rounding explains.
        turned: Whether other draws give the same latents, and what they add is not known.
    """

    alone: float
    fold: float
    rounding: float
    turned: bool = False

    @property
    def is_right_alone(self) -> bool:
        """Whether the density is that of a function that is one-to-one."""
        return not abs(self.alone) > self.rounding

    @property
    def is_right(self) -> bool:
        """Whether the density is right, as far as it is known."""
        return not abs(self.alone - self.fold) > self.rounding


class _Place(NamedTuple):
    """All latents at one place of the plates.

    Attributes:
        group: Their names.
        off: By how much log q(z | x) is too large without factors.
        factors: The factors there.
    """

    group: Computed
    off: _Off
    factors: dict[str, float]

    def off_with(self, names: Iterable[str]) -> _Off:
        """By how much log q(z | x) is too large if these factors are part of it."""
        values = [self.factors[name] for name in names]
        rounding = self.off.rounding + 1e-5 * sum(map(abs, values))
        return self.off._replace(alone=self.off.alone + sum(values), rounding=rounding)


def density_factors(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> tuple[str, ...]:
    """The guide's `pyro.factor` sites that are part of log q(z | x): see `compare_jacobians`.

    All that may be (see `density_sites`) are, if that cannot be decided.
    """
    possible = _possible_factors(guide_trace)
    if possible:
        try:
            return compare_jacobians(pair, batch, model_trace, guide_trace).factors
        except Exception:  # code that autograd cannot follow
            pass
    return possible


def compare_jacobians(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> DensityComparison:
    """Compares the densities of latents that a guide computes with -log|det dz/du| by autograd.

    Of the factors that may be density (see `density_sites`), those are whose sum with all `log_density` is
    right at the places that are looked at. It is the largest such group, as a factor that is 0 here may be a
    Jacobian that is not 0 elsewhere. If the `log_density` are right by themselves, no other factor is density.
    If no group is right, or nothing is known, all count.

    The arguments are those of `jacobian_problems` in the room of checks, which says what is compared.
    """
    batch, model_trace, guide_trace = _few_rows(pair, batch, model_trace, guide_trace)
    in_guide, in_model = latent_sites(guide_trace), latent_sites(model_trace)
    possible = _possible_factors(guide_trace)
    latents = {
        n: in_model[n]
        for n, s in in_guide.items()
        if is_delta(s) and n in in_model and _has_place(in_model[n])
    }
    draws = [
        n
        for n, s in in_guide.items()
        if not is_delta(s) and n not in sample_sites(model_trace) and _is_free(s)
    ]
    unknown = computed_latents(pair, batch, model_trace, guide_trace)
    if any(n not in in_model and has_log_density(s) for n, s in in_guide.items()):
        why = "it is computed from another Delta with a log_density"
        return DensityComparison({}, possible, dict.fromkeys(unknown, why))
    if not latents or not draws:
        return DensityComparison({}, possible, dict.fromkeys(unknown, _NOT_FREE))
    rows = sites_of_rows(pair.model, batch, model_trace)
    row_plate = rows_frame(rows, num_rows(batch)).name if possible else ""
    of_rows = all(_in_plate(in_guide[n], row_plate) for n in latents)
    inside = [n for n in possible if not of_rows or _in_plate(guide_trace.nodes[n], row_plate)]
    of = GuideMap(pair, batch, guide_trace, latents, draws, inside)
    flat = [Computed(*names, fault="flat") for names in flat_draws(of)]
    if flat:
        return DensityComparison({group: (False, 0.0) for group in flat}, possible, {})
    factors: tuple[str, ...] | None = possible
    if not possible:
        differences = list(_differences(of))
    else:
        differences, factors = _with_factors(of)
        if factors is None and len(inside) < len(possible):
            of = GuideMap(pair, batch, guide_trace, latents, draws, list(possible))
            others, factors = _with_factors(of)
            outside = tuple(n for n in factors or () if n not in inside)
            if outside:
                differences = [
                    (group._replace(factors=outside, fault="outside"), off)
                    for group, off in differences
                ]
            else:
                differences = others
    found: dict[Computed, tuple[bool, float]] = {}
    for group, off in differences:
        given = any(has_log_density(in_guide[n]) for n in group.latents)
        known = found.get(group, (given, 0.0))
        found[group] = max(known, (given, off), key=lambda pair: abs(pair[1]))
    decided = {name for i, name in enumerate(of.latents) if i in of.decided}
    decided |= {name for group in found for name in group.latents}
    reasons = {name: of.reasons.get(i, _NOT_FREE) for i, name in enumerate(of.latents)}
    return DensityComparison(
        found,
        possible if factors is None else factors,
        {
            name: reasons.get(name, _NOT_FREE)
            for name in unknown
            if name not in decided and reasons.get(name) != ROUNDED
        },
    )


def computed_latents(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> tuple[str, ...]:
    """The latents with a density in the model that a guide computes from draws of its own.

    The guide runs once more with other draws. If it raises then, all Deltas count that may be such latents.
    """
    in_guide, in_model = latent_sites(guide_trace), latent_sites(model_trace)
    known = sample_sites(model_trace)
    draws = {n: s for n, s in in_guide.items() if not is_delta(s) and n not in known}
    latents = tuple(
        n
        for n, s in in_guide.items()
        if is_delta(s) and n in in_model and _has_place(in_model[n]) and bool(present(s).any())
    )
    if not draws or not latents:
        return ()
    values = {n: s["value"] for n, s in in_guide.items() if not is_delta(s)}
    try:
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(1)
            others = {n: s["fn"].sample().expand_as(s["value"]) for n, s in draws.items()}
            traces: list[Trace] = []
            for some in (values, values | others):
                torch.manual_seed(0)
                traces.append(
                    poutine.trace(Substitute(some)(pair.guide)).get_trace(*as_args(batch))
                )
    except Exception:
        return latents
    here, there = [{n: trace.nodes[n]["value"] for n in latents} for trace in traces]
    return tuple(n for n in latents if not torch.equal(here[n], there[n]))


def _few_rows(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> tuple[Batch, Trace, Trace]:
    """The first and the last row and their traces, if a row has so many numbers that all rows take long."""
    n = num_rows(batch)
    numbers = sum(site["value"].numel() for site in latent_sites(guide_trace).values())
    if pair.keeps_rows or n <= 2 or numbers <= n * MOST_NUMBERS:
        return batch, model_trace, guide_trace
    ends = torch.tensor([0, n - 1], device=tensors_of(batch)[0].device)
    try:
        with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
            few = take_rows(batch, ends)
            return few, *trace_pair(pair, few)
    except Exception:  # some pairs run on all rows alone
        return batch, model_trace, guide_trace


def _possible_factors(guide_trace: Trace) -> tuple[str, ...]:
    return tuple(n for n, site in density_sites(guide_trace).items() if site["is_observed"])


def _in_plate(site: Site, name: str) -> bool:
    return any(frame.name == name for frame in site["cond_indep_stack"])


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


def _differences(of: GuideMap) -> Iterator[tuple[Computed, float]]:
    """Latents and draws with another `log_density` than the Jacobian's, and the error of log q(z | x)."""
    image = of.image
    done: set[int] = set()
    for i in range(len(of.latents)):
        values = ((image.latent_of == i) & image.present).nonzero()[:, 0]
        if len(values) == 0:
            continue
        large = int((image.value_of == values[0]).sum()) > MOST_NUMBERS
        looked_at = min(len(values), 1 if large else _PER_SITE)
        some = torch.linspace(0, len(values) - 1, looked_at).round().long()
        for value in values[some.to(values.device)].tolist():
            if value not in done:
                block = of.block(value)
                if block is not None:
                    done.update(block.values.tolist())
                    names = of.names(block.values, block.columns)
                    yield from _judged(Computed(*names), _off(of, block))


def _with_factors(of: GuideMap) -> tuple[list[tuple[Computed, float]], tuple[str, ...] | None]:
    """As `_differences`, and the factors that are density; None if no group of them is known to be right."""
    cells = {0, of.image.factors.shape[1] - 1}
    places = [place for place in (_place(of, cell) for cell in cells) if place is not None]
    if not places:
        return [], None
    names = of.factors
    sizes = range(len(names), -1, -1) if len(names) <= _MOST_FACTORS else (len(names), 0)
    groups = [group for size in sizes for group in itertools.combinations(names, size)]
    for kind in ("is_right", "is_right_alone"):
        for group in groups:
            if all(getattr(place.off_with(group), kind) for place in places):
                return list(_judged_places(places, group)), group
    return list(_judged_places(places, names)), None


def _judged_places(
    places: Iterable[_Place], factors: Iterable[str]
) -> Iterator[tuple[Computed, float]]:
    for place in places:
        group = place.group._replace(factors=tuple(factors))
        yield from _judged(group, place.off_with(factors))


def _place(of: GuideMap, cell: int) -> _Place | None:
    """All that is at one place; None if a part is not known, or all are points."""
    image = of.image
    inside = (image.cell_of == cell).nonzero()[:, 0].tolist()
    if len(inside) > MOST_TOGETHER:
        return None
    done: set[int] = set()
    groups: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    offs: list[_Off] = []
    for value in inside:
        if value in done or of.is_point(value):
            continue
        block = of.block(value)
        if block is None or not set(block.values.tolist()) <= set(inside):
            return None
        done.update(block.values.tolist())
        offs.append(_off(of, block))
        groups.append(of.names(block.values, block.columns))
    if not groups:
        return None
    latents, draws = (_once(column) for column in zip(*groups, strict=True))
    alone, fold, rounding, turned = zip(*offs, strict=True)
    return _Place(
        Computed(latents, draws),
        _Off(sum(alone), sum(fold), sum(rounding), any(turned)),
        dict(zip(of.factors, image.factors[:, cell].tolist(), strict=True)),
    )


def _off(of: GuideMap, block: Block) -> _Off:
    image, jacobian = of.image, block.jacobian.double()
    eps = torch.finfo(block.jacobian.dtype).eps
    density = float(image.density.detach()[block.values].double().sum())
    # A derivative much smaller than its number may come from rounded numbers, as for a sigmoid near 1.
    size = image.numbers.detach()[block.rows].double().abs().clamp(min=1e-6)
    if jacobian.dim() == 1:
        log_det = float(jacobian.abs().log().sum())
        inverse = float((size / jacobian.abs()).sum())
    else:
        log_det = float(torch.linalg.slogdet(jacobian)[1])
        inverse = _sum_of_inverse(jacobian / size.unsqueeze(1))
    rounding = block.noise + 4 * eps * inverse
    rounding += 10 * float(image.rounding[block.values].sum()) + 100 * eps * (
        len(jacobian) + abs(log_det) + abs(density)
    )
    folded = fold(of, block)
    return _Off(density + log_det, folded, 1e-3 + rounding, folded == 0 and turns(of, block))


def _sum_of_inverse(matrix: Tensor) -> float:
    """The sum of 1 / singular value; for a large matrix, a number that is at least as large."""
    if len(matrix) <= MOST_NUMBERS:
        return float((1 / torch.linalg.svdvals(matrix)).sum())
    inverse, info = torch.linalg.inv_ex(matrix)
    return math.inf if int(info) else len(matrix) ** 0.5 * float(inverse.norm())


def _judged(group: Computed, off: _Off) -> Iterator[tuple[Computed, float]]:
    """The group and its error, if that is more than rounding."""
    if off.is_right_alone and (off.turned or not off.is_right):
        yield group._replace(fault="folded"), 0.0 if off.turned else off.alone - off.fold
    elif not off.is_right:
        yield group, off.alone - off.fold


def _once(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All names in order, without repetitions."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(names)))
