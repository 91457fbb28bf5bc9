"""Whether a decoder needs its latents: does it read the data itself, and does log p(x | z) depend on z."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.locations import WRAPPERS
from ppl_vae.distributions import Ancestral
from ppl_vae.pairs import (
    Batch,
    RowDensities,
    Site,
    in_plates,
    inner_sizes,
    names_of_dimensions,
    num_rows,
    sample_rows,
    support_of,
    take_rows,
    tensors_of,
    with_tensors,
)

TRIES = 3
"""How often another number of each row is changed."""

DRAWS = 4
"""Draws of each row with which other rows' latents are compared."""

_RELATIVE = 1e-4  # of the log density, beyond rounding


def models_dependencies(session: Session) -> bool | None:
    """Whether p(x | z) does not factorize over the numbers of x: an autoregressive decoder; None if not known.

    Given z, the log density of numbers that are independent is a sum over them. So if the numbers of two rows
    are exchanged in one place or in the other, l(a, b) + l(a', b') = l(a', b) + l(a, b'). What rows come with
    and the model does not observe (labels, lengths) stays as it is.

    A program may compute a number from the whole row and give it to the likelihood, as the size of a library of
    counts. Then the numbers depend on each other, too, but p(x | z) is no distribution of x: what it says of a
    number depends on that number. No chain of conditionals does that, and such a dependence does not count.
    """
    rows = take_rows(session.first, slice(0, 16))
    n = num_rows(rows)
    if session.pair.keeps_rows or session.layout.enumerated or n < 2:
        return None
    drawn = sample_rows(session.pair, session.layout, rows, 1)
    values = {name: drawn.guide_trace.nodes[name]["value"] for name in session.layout.draws}
    seen = [drawn.model_trace.nodes[name] for name in session.layout.observed]
    found: list[bool | None] = []
    for place, x in enumerate(tensors_of(rows)):
        sites = [site for site in seen if _holds(site["value"], x)]
        if sites:
            block = _block(sites[0])
            depends = _depends(session, rows, place, block, values)
            if depends and _reads_itself(session, rows, place, block, sites[0]["name"], values):
                depends = False
            found.append(depends)
    return None if not found or None in found else any(found)


def shows_its_arguments(session: Session) -> bool:
    """Whether a site observes one of the arguments as it is: what `models_dependencies` needs."""
    few = session.first if session.pair.keeps_rows else take_rows(session.first, slice(0, 16))
    trace = sample_rows(session.pair, session.layout, few, 1).model_trace
    seen = [trace.nodes[name]["value"] for name in session.layout.observed]
    return any(_holds(value, x) for x in tensors_of(few) for value in seen)


def _holds(value: Any, x: Tensor) -> bool:
    """Whether an observed value is an argument, in any shape."""
    return (
        isinstance(value, Tensor)
        and value.numel() == x.numel()
        and bool((value.reshape(x.shape) == x).all())
    )


def _block(site: Site) -> int:
    """How many of the last dimensions of a site's values belong together: 1 for one-hot vectors."""
    support: Any = support_of(site["fn"])
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return 0 if support is None else int(support.event_dim)


def _depends(
    session: Session, rows: Batch, place: int, block: int, values: Mapping[str, Tensor]
) -> bool | None:
    """Whether log p(x | z) is no sum over the numbers of an argument, or over blocks of them."""
    tensors = list(tensors_of(rows))
    x = tensors[place]
    other, shape = x.roll(1, 0), x.shape[1 : x.dim() - block]
    if shape.numel() < 2 or bool((x == other).all()):
        return None
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        here = (torch.rand(shape, generator=generator) < 0.5).to(x.device)
        here = here.reshape(shape + (1,) * block)
        sums = []
        for each in (x, other, torch.where(here, x, other), torch.where(here, other, x)):
            changed = with_tensors(rows, [*tensors[:place], each, *tensors[place + 1 :]])
            try:
                drawn = sample_rows(session.pair, session.layout, changed, 1, values)
            except (ValueError, RuntimeError):  # values that the programs do not take
                return None
            sums.append(drawn.log_likelihood[0].double())
        difference = sums[0] + sums[1] - sums[2] - sums[3]
        size = torch.stack(sums).abs().amax(0)
        if not bool(difference.isfinite().all()):
            return None
        if bool((difference.abs() > _RELATIVE * (1 + size)).any()):
            return True
    return False


def _reads_itself(
    session: Session,
    rows: Batch,
    place: int,
    block: int,
    name: str,
    values: Mapping[str, Tensor],
) -> bool:
    """Whether the distribution of a number of x depends on it: that of another row is put in its place.

    The density of the number that the row has is asked for in both cases.
    """
    tensors = list(tensors_of(rows))
    x = tensors[place]
    other, shape = x.roll(1, 0), x.shape[1 : x.dim() - block]
    n, numbers = len(x), shape.numel()
    differ = (x != other).reshape(n, numbers, -1).any(-1)
    before = _densities(session, rows, name, x, values)
    if before is None:
        return False
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIES):
        order = torch.rand((n, numbers), generator=generator).to(x.device)
        which = order.masked_fill(~differ, -1.0).argmax(1)
        here = torch.zeros((n, numbers), dtype=torch.bool, device=x.device)
        here[torch.arange(n, device=x.device), which] = True
        changed = torch.where(here.reshape(n, *shape, *(1,) * block), other, x)
        batch = with_tensors(rows, [*tensors[:place], changed, *tensors[place + 1 :]])
        after = _densities(session, batch, name, x, values)
        if after is None or after.shape != before.shape:
            return False
        one, two = (part.reshape(n, numbers)[here] for part in (before, after))
        if bool(((one - two).abs() > _RELATIVE * (1 + one.abs())).any()):
            return True
    return False


def _densities(
    session: Session, rows: Batch, name: str, x: Tensor, values: Mapping[str, Tensor]
) -> Tensor | None:
    """log p of each number of `x`, or block of them, by what the model makes of `rows`; None if not known."""
    try:
        drawn = sample_rows(session.pair, session.layout, rows, 1, values)
        site = drawn.model_trace.nodes[name]
        fn = site["fn"]
        while isinstance(fn, WRAPPERS):
            fn = fn.base_dist
        with pyro.validation_enabled(False):
            found: Tensor = fn.log_prob(x.reshape(site["value"].shape)).double()
    except (ValueError, RuntimeError, KeyError):
        return None
    block = _block(site)
    if isinstance(fn, Ancestral) or len(fn.event_shape) > block:  # of whole rows, not of numbers
        return None
    shape = site["value"].shape[: site["value"].dim() - block]
    return found.expand(shape).reshape(len(x), -1)


def loss_of_other_latents(session: Session, names: set[str]) -> float:
    """How much log p(x | z) falls, nats per row, if some latent numbers of each row are those of another one.

    Args:
        session: The opened pair; it is measured on its first rows.
        names: The dimensions.
    """
    batch, layout = session.first, session.layout
    rows = sample_rows(session.pair, layout, batch, DRAWS if layout.vectorizes else 1)
    values = {name: rows.guide_trace.nodes[name]["value"] for name in layout.draws}
    for site in set(layout.latents) & set(values):
        values[site] = _exchanged(rows, site, names)
    draws = rows.log_guide.shape[0]
    exchanged = sample_rows(session.pair, layout, batch, draws, values)
    return float((rows.log_likelihood - exchanged.log_likelihood).double().mean())


def _exchanged(rows: RowDensities, site: str, names: set[str]) -> Tensor:
    """The values of a site, with some of its numbers taken from the next row."""
    value, node = rows.latents[site], rows.guide_trace.nodes[site]
    draws, n = rows.log_guide.shape
    flat = value.reshape(draws, n, -1)
    which = torch.tensor(
        [name in names for name in names_of_dimensions(site, value.shape[2:])], device=value.device
    )
    flat = torch.where(which, flat.roll(1, 1), flat)
    shape = (draws, n, *inner_sizes(node, rows.layout), *node["fn"].event_shape)
    placed = in_plates(flat.reshape(shape), rows.layout)
    return placed if rows.layout.vectorizes else placed[0]
