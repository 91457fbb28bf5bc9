"""Whether a decoder needs its latents: does it read the data itself, and does log p(x | z) depend on z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ppl_vae.runtime import own_generator

TRIES = 3
"""How often another number of each row is changed."""

DRAWS = 4
"""Draws of each row with which other rows' latents are compared."""

_NOT_TAKEN = "the model does not take numbers of other rows"
_MIXED = "no site observes numbers of x one by one"
_READS_ITSELF = (
    "what the model says of a number depends on that number, as by the size of the row, which hides whether it "
    "depends on others"
)
_RELATIVE = 1e-4  # of the log density, beyond rounding


class Dependence(NamedTuple):
    """Whether the numbers of x depend on each other given z.

    Attributes:
        found: Whether they do; None if that is not known.
        unknown: Why that is not known, or what may hide that they do, in words; empty if it is known.
    """

    found: bool | None
    unknown: str = ""


def models_dependencies(session: Session) -> Dependence:
    """Whether p(x | z) does not factorize over the numbers of x: an autoregressive decoder.

    Given z, the log density of numbers that are independent is a sum over them. So if the numbers of two rows
    are exchanged in one place or in the other, l(a, b) + l(a', b') = l(a', b) + l(a, b'). What rows come with
    and the model does not observe (labels, lengths) stays as it is. The model may observe x in one site or in
    many (a site for each step), or a function of each number (x / 255), but none of several (x less its mean).

    A program may compute a number from the whole row and give it to the likelihood, as the size of a library of
    counts. Then the numbers depend on each other, too, but p(x | z) is no distribution of x: what it says of a
    number depends on that number. No chain of conditionals does that, and such a dependence does not count.
    """
    rows = take_rows(session.first, slice(0, 16))
    if session.pair.keeps_rows:
        return Dependence(None, "the guide keeps parameters for each row")
    if session.layout.enumerated:
        return Dependence(None, "the model sums latents out")
    if num_rows(rows) < 2:
        return Dependence(None, "there is one row")
    drawn = sample_rows(session.pair, session.layout, rows, 1)
    values = {name: drawn.guide_trace.nodes[name]["value"] for name in session.layout.draws}
    seen = _Seen(session, rows, values)
    found = [seen.depends(place) for place in range(len(tensors_of(rows)))]
    told = {place: each for place, each in enumerate(found) if each is not None}
    if any(each.found for each in told.values()):
        return Dependence(True)
    if not told:
        return Dependence(None, _MIXED)
    unknown = [each for each in told.values() if each.unknown]
    return unknown[0] if unknown else seen.across(list(told))


@dataclass(frozen=True)
class _Run:
    """What the model makes of some rows, under the same latents.

    Attributes:
        sites: The observed sites.
        log_likelihood: log p(x | z) of each row, `(n,)`.
    """

    sites: Mapping[str, Site]
    log_likelihood: Tensor


@dataclass(frozen=True)
class _Seen:
    """How the sites of a model observe its arguments.

    Attributes:
        session: The opened pair.
        rows: A few rows.
        values: Their latents.
    """

    session: Session
    rows: Batch
    values: Mapping[str, Tensor]

    def depends(self, place: int) -> Dependence | None:
        """Whether the numbers of an argument depend on each other given z; None if no site observes it."""
        x = tensors_of(self.rows)[place]
        other = x.roll(1, 0)
        here, there = self._with({}), self._with({place: other})
        if here is None or there is None:
            return Dependence(None, _NOT_TAKEN)
        names = [name for name in here.sites if not _same(here.sites[name], there.sites.get(name))]
        if not names:
            is_seen = any(_holds(site["value"], x) for site in here.sites.values())
            same = is_seen and bool((x == other).all())
            return Dependence(None, "the rows are all the same") if same else None
        block = max(_block(here.sites[name]) for name in names)
        shape = x.shape[1 : x.dim() - block] if x.dim() > block else x.shape[:0]
        if shape.numel() < 2:  # one number is independent of all others
            return Dependence(False)
        generator = own_generator()
        for _ in range(TRIES):
            which = (torch.rand(shape, generator=generator) < 0.5).to(x.device)
            which = which.reshape(shape + (1,) * block)
            one = self._with({place: torch.where(which, x, other)})
            two = self._with({place: torch.where(which, other, x)})
            found = _is_no_sum(here, there, one, two)
            if found.found and self._reads_itself(place, x, block, here, names):
                return Dependence(False, _READS_ITSELF)
            if found.found is not False:
                return found
        return Dependence(False)

    def across(self, places: list[int]) -> Dependence:
        """Whether the arguments in some places depend on each other given z: rows exchange whole arguments.

        If they do, that is no answer: one of them may be a label that another one is generated from.
        """
        other = {place: tensors_of(self.rows)[place].roll(1, 0) for place in places}
        here, there = self._with({}), self._with(other)
        if here is None:
            return Dependence(None, _NOT_TAKEN)
        for place in places[1:]:
            one = self._with({place: other[place]})
            two = self._with({p: x for p, x in other.items() if p != place})
            found = _is_no_sum(here, there, one, two)
            if found.found:
                return Dependence(None, "one argument of the model depends on another one")
            if found.unknown:
                return found
        return Dependence(False)

    def _with(self, other: Mapping[int, Tensor]) -> _Run | None:
        """The run with other tensors for some arguments; None if the programs do not take these."""
        tensors = [other.get(place, x) for place, x in enumerate(tensors_of(self.rows))]
        batch, layout = with_tensors(self.rows, tensors), self.session.layout
        try:
            drawn = sample_rows(self.session.pair, layout, batch, 1, self.values)
        except (ValueError, RuntimeError, KeyError):
            return None
        nodes = drawn.model_trace.nodes
        return _Run({name: nodes[name] for name in layout.observed}, drawn.log_likelihood[0])

    def _reads_itself(
        self, place: int, x: Tensor, block: int, before: _Run, names: list[str]
    ) -> bool:
        """Whether the distribution of a number of x depends on it: that of another row is put in its place.

        The density of the number that the row has is asked for in both cases.
        """
        other, shape = x.roll(1, 0), x.shape[1 : x.dim() - block]
        n, numbers = len(x), shape.numel()
        differ = (x != other).reshape(n, numbers, -1).any(-1)
        generator = own_generator()
        for _ in range(TRIES):
            order = torch.rand((n, numbers), generator=generator).to(x.device)
            which = order.masked_fill(~differ, -1.0).argmax(1)
            here = torch.zeros((n, numbers), dtype=torch.bool, device=x.device)
            here[torch.arange(n, device=x.device), which] = True
            mixed = torch.where(here.reshape(n, *shape, *(1,) * block), other, x)
            after = self._with({place: mixed})
            if after is None:
                return False
            if any(_told_by_itself(before.sites[name], after.sites[name]) for name in names):
                return True
        return False


def _holds(value: Any, x: Tensor) -> bool:
    """Whether an observed value is an argument, in any shape."""
    return (
        isinstance(value, Tensor)
        and value.numel() == x.numel()
        and bool((value.reshape(x.shape) == x).all())
    )


def _same(site: Site, other: Site | None) -> bool:
    """Whether a site observes the same in two runs."""
    if other is None or site["value"].shape != other["value"].shape:
        return False
    return bool(_equal(site["value"], other["value"]).all())


def _equal(one: Tensor, two: Tensor) -> Tensor:
    return (one == two) | (one.isnan() & two.isnan())


def _is_no_sum(here: _Run, there: _Run | None, one: _Run | None, two: _Run | None) -> Dependence:
    """Whether log p(x | z) is no sum: of rows, of other rows, and of both with some numbers exchanged."""
    if there is None or one is None or two is None:
        return Dependence(None, _NOT_TAKEN)
    if not (_one_by_one(here, there, one) and _one_by_one(here, there, two)):
        return Dependence(None, _MIXED)
    sums = [run.log_likelihood.double() for run in (here, there, one, two)]
    difference = sums[0] + sums[1] - sums[2] - sums[3]
    size = torch.stack(sums).abs().amax(0)
    if not bool(difference.isfinite().all()):
        return Dependence(None, "log p(x | z) of numbers of other rows is not finite")
    return Dependence(bool((difference.abs() > _RELATIVE * (1 + size)).any()))


def _one_by_one(here: _Run, there: _Run, mixed: _Run) -> bool:
    """Whether all that a run with numbers of two rows observes is observed with one row or with the other."""
    for name in mixed.sites:
        one, two, both = (run.sites[name]["value"] for run in (here, there, mixed))
        if not (one.shape == two.shape == both.shape):
            return False
        if not bool((_equal(both, one) | _equal(both, two)).all()):
            return False
    return True


def _block(site: Site) -> int:
    """How many of the last dimensions of a site's values belong together: 1 for one-hot vectors."""
    support: Any = support_of(site["fn"])
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return 0 if support is None else int(support.event_dim)


def _told_by_itself(before: Site, after: Site) -> bool:
    """Whether the density of numbers that have changed is another one: of what they were, before and after."""
    block, value = _block(before), before["value"]
    changed = ~_equal(value, after["value"])
    changed = changed.flatten(changed.dim() - block).any(-1) if block else changed
    found = []
    for site in (before, after):
        fn = site["fn"]
        while isinstance(fn, WRAPPERS):
            fn = fn.base_dist
        if (
            isinstance(fn, Ancestral) or len(fn.event_shape) > block
        ):  # of whole rows, not of numbers
            return False
        try:
            with pyro.validation_enabled(False):
                found.append(fn.log_prob(value).double().expand(changed.shape)[changed])
        except (ValueError, RuntimeError):
            return False
    one, two = found
    return bool(((one - two).abs() > _RELATIVE * (1 + one.abs())).any())


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
