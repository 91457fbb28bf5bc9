"""The density of latents z = f(u) that a guide gives as Deltas, compared with that of its draws u."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from ppl_vae.pairs.coordinates import support_of
from ppl_vae.pairs.folds import fold
from ppl_vae.pairs.guide_maps import MOST_NUMBERS, Block, GuideMap
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch
from ppl_vae.pairs.traces import (
    Site,
    Trace,
    density_sites,
    free_numbers,
    has_log_density,
    is_delta,
    latent_sites,
    sample_sites,
)

_PER_SITE = 2
"""How many values of each latent are looked at."""


class Computed(NamedTuple):
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


def wrong_densities(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> dict[Computed, tuple[bool, float]]:
    """For groups with a wrong density: whether any is given, and the largest error of log q(z | x).

    The arguments are those of `jacobian_problems` in the room of checks, which says what is compared.
    """
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
    of = GuideMap(pair, batch, guide_trace, {n: in_model[n] for n in latents}, list(draws), factors)
    found: dict[Computed, tuple[bool, float]] = {}
    for group, off in _differences(of):
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


def _differences(of: GuideMap) -> Iterator[tuple[Computed, float]]:
    """Latents and draws with another `log_density` than the Jacobian's, and the error of log q(z | x)."""
    image = of.image
    if not image.numbers.requires_grad:
        return
    if of.factors:
        for cell in {0, len(image.factors) - 1}:
            yield from _difference_with_factors(of, cell)
        return
    done: set[int] = set()
    for i in range(len(of.latents)):
        values = (image.latent_of == i).nonzero()[:, 0]
        some = torch.linspace(0, len(values) - 1, min(len(values), _PER_SITE)).round().long()
        for value in values[some.to(values.device)].tolist():
            if value not in done:
                block = of.block(value)
                if block is not None:
                    done.update(block.values.tolist())
                    yield from _judged(Computed(*of.names(block)), _off(of, block))


def _difference_with_factors(of: GuideMap, cell: int) -> Iterator[tuple[Computed, float]]:
    """As `_differences`, of all that is at one place, with its factors; nothing if a part is not known."""
    image = of.image
    inside = (image.cell_of == cell).nonzero()[:, 0].tolist()
    if len(inside) > MOST_NUMBERS:
        return
    done: set[int] = set()
    groups: list[Computed] = []
    factor = float(image.factors[cell].detach())
    offs = [_Off(factor, 0.0, 100 * torch.finfo(image.factors.dtype).eps * abs(factor))]
    for value in inside:
        if value in done or of.is_point(value):
            continue
        block = of.block(value)
        if block is None or not set(block.values.tolist()) <= set(inside):
            return
        done.update(block.values.tolist())
        offs.append(_off(of, block))
        groups.append(Computed(*of.names(block)))
    if groups:
        latents, draws = (_once(g.latents for g in groups), _once(g.draws for g in groups))
        total = _Off(*(sum(column) for column in zip(*offs, strict=True)))
        yield from _judged(Computed(latents, draws, tuple(of.factors)), total)


def _off(of: GuideMap, block: Block) -> _Off:
    image, jacobian = of.image, block.jacobian.double()
    eps = torch.finfo(block.jacobian.dtype).eps
    log_det = float(torch.linalg.slogdet(jacobian)[1])
    density = float(image.density.detach()[block.values].double().sum())
    # A derivative much smaller than its number may come from rounded numbers, as for a sigmoid near 1.
    size = image.numbers.detach()[block.rows].double().abs().clamp(min=1e-6).unsqueeze(1)
    rounding = 4 * eps * float((1 / torch.linalg.svdvals(jacobian / size)).sum())
    rounding += 10 * float(image.rounding[block.values].sum()) + 100 * eps * (
        len(jacobian) + abs(log_det) + abs(density)
    )
    return _Off(density + log_det, fold(of, block), 1e-3 + rounding)


def _judged(group: Computed, off: _Off) -> Iterator[tuple[Computed, float]]:
    """The group and its error, if that is more than rounding."""
    error = off.alone - off.fold
    if abs(error) > off.rounding:
        yield group._replace(folded=off.fold > 0 and abs(off.alone) <= off.rounding), error


def _once(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All names in order, without repetitions."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(names)))
