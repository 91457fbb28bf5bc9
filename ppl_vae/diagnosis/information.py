"""What latents tell about rows: mutual information, and the aggregate posterior's KL from the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.pairs import (
    Batch,
    Layout,
    RowDensities,
    Substitute,
    as_args,
    in_plates,
    inner_sizes,
    many_samples,
    num_rows,
    present,
    row_log_prob,
    rows_first,
    sample_sites,
    sum_to_rows,
)
from ppl_vae.stats import Estimate

_POINTS = 1000
"""Rows whose draws are compared with the aggregate posterior."""


class Information(NamedTuple):
    """What `aggregate_information` finds.

    Attributes:
        mutual: I(x; z), nats.
        marginal_kl: KL(q(z) || p(z)), nats.
        limit: The largest value that the mutual information of these rows can have, nats.
        notes: How to read the numbers.
    """

    mutual: Estimate
    marginal_kl: Estimate
    limit: float
    notes: tuple[str, ...]


@dataclass
class _Group:
    """Rows that have the same latents: their draws are points of one space.

    Attributes:
        layout: Their layout.
        rows: The rows' numbers.
        points: One draw per row for each random site of the guide, in parts, `(k, *inner_sizes, *event)`.
    """

    layout: Layout
    rows: list[Tensor] = field(default_factory=list)
    points: list[dict[str, Tensor]] = field(default_factory=list)


class RowDraws:
    """One draw from q(z | x) for each row, with its densities; rows that have the same latents together."""

    def __init__(self) -> None:
        self._groups: dict[object, _Group] = {}
        self._densities: list[Tensor] = []
        self.num_rows = 0

    def update(self, rows: RowDensities) -> None:
        """Adds the first draw of each row."""
        layout, n = rows.layout, rows.log_guide.shape[1]
        points = {name: _first_draw(rows, name) for name in layout.draws}
        for key, members in _members(layout, rows.guide_trace, *rows.log_guide.shape).items():
            group = self._groups.setdefault(key, _Group(layout))
            group.rows.append(self.num_rows + members.cpu())
            group.points.append({name: value[members] for name, value in points.items()})
        self._densities.append(torch.stack([rows.log_guide[0], rows.log_prior[0]]))
        self.num_rows += n

    def chosen(self, count: int) -> list[tuple[object, Layout, int, Tensor, dict[str, Tensor]]]:
        """Up to `count` rows, evenly spread: for each group its key, layout, size, rows and points."""
        picked = torch.linspace(0, self.num_rows - 1, count).round().long()
        found = []
        for key, group in self._groups.items():
            rows = torch.cat(group.rows)
            among = torch.isin(rows, picked)
            if bool(among.any()):
                points = {
                    name: torch.cat([part[name] for part in group.points])
                    for name in group.points[0]
                }
                points = {name: value[among.to(value.device)] for name, value in points.items()}
                found.append((key, group.layout, len(rows), rows[among], points))
        return found

    @property
    def densities(self) -> tuple[Tensor, Tensor]:
        """log q(z | x) and log p(z) at the draws, `(n,)` each, float64."""
        log_guide, log_prior = torch.cat(self._densities, 1).double()
        return log_guide, log_prior

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self._groups)


def _first_draw(rows: RowDensities, name: str) -> Tensor:
    """The first draw of a site for each row, `(n, *inner_sizes, *event)`."""
    site, value = rows.guide_trace.nodes[name], rows.draws[name][0]
    return value.reshape(len(value), *inner_sizes(site, rows.layout), *site["fn"].event_shape)


def _members(layout: Layout, guide_trace: Any, samples: int, n: int) -> dict[object, Tensor]:
    """The rows of a batch by what latents they have: those with the same layout, shapes and masks together."""
    sites = {name: guide_trace.nodes[name] for name in layout.draws}
    shapes = tuple(
        (name, rows_first(site, layout, samples, n).shape[2:]) for name, site in sites.items()
    )
    masks = [
        rows_first({**site, "value": present(site)}, layout, samples, n)[0].reshape(n, -1)
        for site in sites.values()
    ]
    there = torch.cat(masks, 1) if masks else torch.ones(n, 0, dtype=torch.bool)
    if bool(there.all()):
        return {(layout.signature, shapes, ()): torch.arange(n, device=there.device)}
    patterns, which = torch.unique(there, dim=0, return_inverse=True)
    return {
        (layout.signature, shapes, tuple(pattern.tolist())): (which == i).nonzero()[:, 0]
        for i, pattern in enumerate(patterns)
    }


def aggregate_information(session: Session, draws: RowDraws, size: int) -> Information:
    """I(x; z) and KL(q(z) || p(z)) from one draw for each of some rows, with q(z) of all rows.

    Rows of which each has other latents (other lengths, other masks) live in different spaces: both numbers
    are then given the kind of row, with q(z) of the rows of that kind.
    """
    n = draws.num_rows
    count = min(n, _POINTS if session.layout.vectorizes else 100)
    groups = draws.chosen(count)
    own_way = [
        name for _, layout, _, _, points in groups for name in _made_by_row(session, layout, points)
    ]
    if own_way:
        why = f"the guide computes '{own_way[0]}' from a draw in a way of its own for each row"
        unknown = Estimate(
            torch.full((count,), math.nan).double(), missing=f"not known, because {why}"
        )
        note = (
            f"mutual information and marginal KL are not known: {why}, so that one row's latents have no known "
            "density under another row's posterior"
        )
        return Information(unknown, unknown, math.inf, (note,))
    # Rows without latents carry no information: q(z) of their empty z is 1.
    aggregates = [
        torch.full((len(rows),), -math.inf if points else math.log(members), dtype=torch.float64)
        for _, _, members, rows, points in groups
    ]
    log_guide, log_prior = (values.cpu() for values in draws.densities)
    done = 0
    for batch in session.chunks(size, "diagnose"):
        here = torch.arange(done, done := done + num_rows(batch))
        kinds = None if draws.num_groups == 1 else _kinds(session, batch)
        for i, (key, layout, _, rows, points) in enumerate(groups):
            if points and (kinds is None or key in kinds):
                found = _cross_density(session, batch, layout, points).double().cpu()
                columns = slice(None) if kinds is None else kinds[key].cpu()
                # A draw has its row's density already: a flow finds it with the draw, and only there exactly.
                own = rows.unsqueeze(1) == here[columns]
                found = torch.where(own, log_guide[rows].unsqueeze(1), found[:, columns])
                aggregates[i] = torch.logaddexp(aggregates[i], found.logsumexp(1))
    order, informations, marginals, limits = [], [], [], []
    for (_, _, members, rows, points), aggregate in zip(groups, aggregates, strict=True):
        log_q = aggregate - math.log(members)
        order.append(rows)
        informations.append(log_guide[rows] - log_q)
        marginals.append(log_q - log_prior[rows])
        limits.append(torch.full(rows.shape, math.log(members) if points else 0.0).double())
    in_order = torch.cat(order).argsort()
    information, marginal, limit = (
        torch.cat(parts)[in_order] for parts in (informations, marginals, limits)
    )
    most = float(limit.mean())
    if draws.num_groups == 1:
        given = f"{n} rows" if n > 1 else "one row"
        what = f"of the {given} given: it cannot exceed log n = {most:.2f} nats"
    else:
        what = (
            f"among rows that have the same latents, of which there are {draws.num_groups} kinds: it cannot "
            f"exceed their mean log n = {most:.2f} nats"
        )
    note = f"the mutual information is that {what} and is biased low for the population"
    return Information(Estimate(information), Estimate(marginal), most, (note,))


def _kinds(session: Session, batch: Batch) -> dict[object, Tensor]:
    """The rows of a batch by what latents they have. The random state does not change."""
    layout = session.layouts.of(batch)
    with torch.random.fork_rng():
        trace = poutine.trace(session.pair.guide).get_trace(*as_args(batch))
    return _members(layout, trace, 1, num_rows(batch))


def _cross_density(
    session: Session, batch: Batch, layout: Layout, points: dict[str, Tensor]
) -> Tensor:
    """log q(z_i | x_j) under the guide, for given points i and each row j of the batch: `(points, n)`."""
    count = len(next(iter(points.values())))
    width = max(1, min(count, 2**20 // num_rows(batch) // max(1, _numbers(points))))
    width = width if layout.vectorizes else 1
    parts = []
    for start in range(0, count, width):
        values = {name: point[start : start + width] for name, point in points.items()}
        parts.append(_scored(session, batch, layout, values))
    return torch.cat(parts)


def _made_by_row(session: Session, layout: Layout, points: dict[str, Tensor]) -> list[str]:
    """Latents that the guide computes from its draws otherwise for each row: the same draw gives others."""
    n = num_rows(session.first)
    if n == 1 or not points or layout.signature != session.layout.signature:
        return []
    same = {name: point[:1] for name, point in points.items()}
    trace = _run_with(session, session.first, layout, same)
    found = []
    for name in layout.latents:
        if name not in layout.draws:
            value = rows_first(trace.nodes[name], layout, 1, n)[0]
            if not torch.allclose(value, value[:1].expand_as(value), rtol=1e-4, atol=1e-5):
                found.append(name)
    return found


def _numbers(points: dict[str, Tensor]) -> int:
    return sum(point[0].numel() for point in points.values())


def _scored(session: Session, batch: Batch, layout: Layout, values: dict[str, Tensor]) -> Tensor:
    count, n = len(next(iter(values.values()))), num_rows(batch)
    trace = _run_with(session, batch, layout, values)
    terms = [
        sum_to_rows(row_log_prob(site, layout), layout, count, n)
        for name, site in sample_sites(trace).items()
        if name in layout.guide_sites
    ]
    # Where a density is not defined outside of its support, torch may give NaN.
    return torch.stack(terms).sum(0).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _run_with(session: Session, batch: Batch, layout: Layout, values: dict[str, Tensor]) -> Any:
    """The guide's trace in which all rows have the same draws, of several points."""
    n = num_rows(batch)
    count = len(next(iter(values.values())))
    spread = {}
    for name, value in values.items():
        shaped = in_plates(value.unsqueeze(1).expand(count, n, *value.shape[1:]), layout)
        spread[name] = shaped if count > 1 else shaped[0]
    # A draw of one row may lie outside of another's support, where its density is 0.
    with many_samples(layout, count), pyro.validation_enabled(False):
        return poutine.trace(Substitute(spread)(session.pair.guide)).get_trace(*as_args(batch))
