"""What latents tell about rows: mutual information, and the aggregate posterior's KL from the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.prior_conditions import PriorConditions
from ppl_vae.pairs import (
    Batch,
    Layout,
    NoInverseError,
    RowDensities,
    as_args,
    densities_under_rows,
    draw_of_each_row,
    guide_with,
    num_rows,
    numbers_there,
    rows_first,
)
from ppl_vae.stats import Estimate

_POINTS = 1000
"""Rows whose draws are compared with the aggregate posterior."""


_NO_DENSITY = "so that one row's latents have no known density under another row's posterior"


class Information(NamedTuple):
    """What `aggregate_information` finds.

    Attributes:
        mutual: I(x; z) of the rows given, nats; for the population a lower bound in expectation.
        leave_one_out: The same with the aggregate posterior of the other rows, nats: an upper bound, likewise.
        marginal_kl: KL(q(z) || p(z)), nats.
        limit: The largest value that the mutual information of these rows can have, nats.
        notes: How to read the numbers.
    """

    mutual: Estimate
    leave_one_out: Estimate
    marginal_kl: Estimate
    limit: float
    notes: tuple[str, ...]


@dataclass
class _Group:
    """Rows whose latents have the same sites and shapes.

    Attributes:
        layout: Their layout.
        rows: The rows' numbers.
        points: One draw per row for each random site of the guide, in parts, `(k, *inner_sizes, *event)`.
        there: Which numbers of the draws the masks leave in, in parts, `(k, numbers)`.
    """

    layout: Layout
    rows: list[Tensor] = field(default_factory=list)
    points: list[dict[str, Tensor]] = field(default_factory=list)
    there: list[Tensor] = field(default_factory=list)


class RowDraws:
    """One draw from q(z | x) for each row, with its densities; rows of the same sites and shapes together."""

    def __init__(self) -> None:
        self._groups: dict[object, _Group] = {}
        self._densities: list[Tensor] = []
        self.num_rows = 0

    def update(self, rows: RowDensities) -> None:
        """Adds one draw of each row."""
        layout, (samples, n) = rows.layout, rows.log_guide.shape
        # Of samples that are drawn one after the other, only the last one has a trace, which tells its masks.
        which = 0 if layout.vectorizes else samples - 1
        kept = samples if layout.vectorizes else 1
        key = _key(layout, rows.guide_trace, kept, n)
        group = self._groups.setdefault(key, _Group(layout))
        group.rows.append(torch.arange(self.num_rows, self.num_rows + n))
        group.points.append({name: draw_of_each_row(rows, name, which) for name in layout.draws})
        group.there.append(numbers_there(layout, rows.guide_trace, kept, n)[0].cpu())
        self._densities.append(torch.stack([rows.log_guide[which], rows.log_prior[which]]))
        self.num_rows += n

    def chosen(self, count: int) -> list[_Points]:
        """Up to `count` rows, evenly spread."""
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
                there = torch.cat(group.there)[among]
                found.append(_Points(key, group.layout, rows[among], points, there))
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


def _key(layout: Layout, guide_trace: Any, samples: int, n: int) -> object:
    """What the rows of a group have in common."""
    sites = {name: guide_trace.nodes[name] for name in layout.draws}
    shapes = tuple(
        (name, rows_first(site, layout, samples, n).shape[2:]) for name, site in sites.items()
    )
    return layout.signature, shapes


@dataclass
class _Points:
    """Draws of some rows, and the densities of these under all rows with the same latents.

    Masks may depend on the row (its length), or on draws (an object that is there or not, and where it is).
    Given the draws, a row leaves in certain numbers: if they are those of a point, the point has a density
    under that row, and none otherwise. The rows under which a point has one are its kind. If a mask depends
    on the draws alone, all rows are of one kind, and the density is that of presence and value together; if it
    depends on the rows alone, a kind is the rows of one mask.

    Attributes:
        key: What the group's rows have in common.
        layout: Their layout.
        rows: The numbers of the points' rows, `(k,)`.
        points: The draws.
        there: Which of their numbers the masks leave in, `(k, numbers)`.
        aggregate: log of the sum over rows of the points' densities, float64, `(k,)`.
        others: The same without the point's own row.
        size: How many rows there are of each point's kind, `(k,)`.
        kind: A number that is the same for points whose kinds have the same rows, `(k,)`.
        together: Which of the points' rows are of which point's kind, `(k, k)`.
    """

    key: object
    layout: Layout
    rows: Tensor
    points: dict[str, Tensor]
    there: Tensor
    aggregate: Tensor = field(init=False)
    others: Tensor = field(init=False)
    size: Tensor = field(init=False)
    kind: Tensor = field(init=False)
    together: Tensor = field(init=False)

    def __post_init__(self) -> None:
        k = len(self.rows)
        self.aggregate = torch.full((k,), -math.inf).double()
        self.others = self.aggregate.clone()
        self.size, self.kind = torch.zeros(2, k, dtype=torch.long)
        self.together = torch.zeros(k, k, dtype=torch.bool)

    def add(self, numbers: Tensor, densities: Tensor, there: Tensor, own: Tensor) -> None:
        """Adds m rows.

        Args:
            numbers: The rows' numbers, `(m,)`.
            densities: log q of each point under each row, `(k, m)`.
            there: Whether the masks of each row, given each point, leave in the numbers of the point, `(k, m)`.
            own: log q of each point under its own row, `(k,)`.
        """
        # A draw has its row's density already: a flow finds it with the draw, and only there exactly.
        at_home = self.rows.unsqueeze(1) == numbers
        densities = torch.where(at_home, own.unsqueeze(1), densities)
        densities = densities.masked_fill(~there, -math.inf)
        self.aggregate = torch.logaddexp(self.aggregate, densities.logsumexp(1))
        others = densities.masked_fill(at_home, -math.inf)
        self.others = torch.logaddexp(self.others, others.logsumexp(1))
        self.size += there.sum(1)
        # Sums of random numbers tell sets of rows apart.
        generator = torch.Generator().manual_seed(int(numbers[0]))
        label = torch.randint(-(2**62), 2**62, (len(numbers),), generator=generator)
        self.kind += (there * label).sum(1)
        among = torch.isin(self.rows, numbers)
        self.together[:, among] = there[:, self.rows[among] - int(numbers[0])]

    @property
    def are_of_kinds(self) -> bool:
        """Whether rows are of one kind each, so that each kind has an aggregate posterior of its own."""
        return torch.equal(self.together, self.kind.unsqueeze(1) == self.kind)


def aggregate_information(
    session: Session, draws: RowDraws, size: int, conditions: PriorConditions
) -> Information:
    r"""I(x; z) and KL(q(z) || p(z)) from one draw for each of some rows, with q(z) of all rows.

    For n rows of a population and z_i ~ q(z | x_i), the mean of

    $$\log \frac{q(z_i \mid x_i)}{\frac{1}{n} \sum_j q(z_i \mid x_j)} \quad \text{and of} \quad
    \log \frac{q(z_i \mid x_i)}{\frac{1}{n - 1} \sum_{j \ne i} q(z_i \mid x_j)}$$

    are bounds on the population's I(x; z) in expectation: the first a lower one, at most log n (InfoNCE, with
    the exact density as its critic), the second an upper one (Poole et al., "On Variational Bounds of Mutual
    Information", arXiv:1905.06922). The rate is an upper bound, too.

    Rows of which each has other latents (other lengths, other masks) live in different spaces: both numbers
    are then given the kind of row, with q(z) of the rows of that kind. Masks that depend on draws are no such
    kind: see `_Points`. So it is with rows under another prior, if their `conditions` are few.
    """
    n = draws.num_rows
    count = min(n, _POINTS if session.layout.vectorizes else 100)
    groups = draws.chosen(count)
    own_way = [
        name for group in groups for name in _made_by_row(session, group.layout, group.points)
    ]
    if own_way:
        return _unknown(
            count,
            f"the guide computes '{own_way[0]}' from a draw in a way of its own for each row",
        )
    log_guide, log_prior = (values.cpu() for values in draws.densities)
    done, given = 0, bool(conditions)
    if given and not conditions.are_few:
        return _unknown(
            count, "nearly each row has a prior of its own", "so that rows cannot be compared"
        )
    for batch in session.chunks(size, "diagnose"):
        here = torch.arange(done, done := done + num_rows(batch))
        key = None if draws.num_groups == 1 else _key_of(session, batch)
        for group in groups:
            if key is None or key == group.key:
                if not group.points:  # rows without latents: the density of nothing is 1
                    ones = torch.zeros(len(group.rows), len(here), dtype=torch.float64)
                    group.add(here, ones, ones == 0, log_guide[group.rows])
                    continue
                alike = (
                    conditions.same(group.rows, int(here[0]), len(here))
                    if given
                    else torch.tensor(True)
                )
                try:
                    densities, there = _cross_density(session, batch, group)
                except NoInverseError as error:
                    return _unknown(count, error.why)
                group.add(
                    here, densities.double().cpu(), there.cpu() & alike, log_guide[group.rows]
                )
    if not all(group.are_of_kinds for group in groups):
        return _unknown(
            count,
            "the masks of latents depend on the row and on what is drawn for it, or on chance",
            "so that rows cannot be compared by what latents they have",
        )
    rows = torch.cat([group.rows for group in groups])
    members = torch.cat([group.size for group in groups]).double()
    log_q = torch.cat([group.aggregate for group in groups]) - members.log()
    order = rows.argsort()
    information, marginal = log_guide[rows] - log_q, log_q - log_prior[rows]
    others = torch.cat([group.others for group in groups]) - (members - 1).log()
    bound = Estimate((log_guide[rows] - others)[order])
    with_latents = torch.cat([torch.tensor([bool(g.points)] * len(g.rows)) for g in groups])
    most = float((members.log() * with_latents).mean())
    kinds = sum(len(group.kind.unique()) for group in groups)
    if kinds == 1:
        these = f"{n} rows" if n > 1 else "one row"
        what = f"of the {these} given: it cannot exceed log n = {most:.2f} nats"
    else:
        same = "prior" if given else "latents"
        what = (
            f"among rows that have the same {same}, of which there are {kinds} kinds: it cannot exceed their "
            f"mean log n = {most:.2f} nats"
        )
    note = f"the mutual information is that {what} and is biased low for the population"
    return Information(
        Estimate(information[order]), bound, Estimate(marginal[order]), most, (note,)
    )


def _unknown(count: int, why: str, so: str = _NO_DENSITY) -> Information:
    """Numbers that are not known, and the reason."""
    missing = Estimate(torch.full((count,), math.nan).double(), missing=f"not known, because {why}")
    note = f"mutual information and marginal KL are not known: {why}, {so}"
    return Information(missing, missing, missing, math.inf, (note,))


def _key_of(session: Session, batch: Batch) -> object:
    """The group of a batch. The random state does not change."""
    layout = session.layouts.of(batch)
    with torch.random.fork_rng():
        trace = poutine.trace(session.pair.guide).get_trace(*as_args(batch))
    return _key(layout, trace, 1, num_rows(batch))


def _cross_density(session: Session, batch: Batch, group: _Points) -> tuple[Tensor, Tensor]:
    """log q(z_i | x_j) under the guide, for given points i and each row j of the batch: `(points, n)`.

    And whether the masks of row j, given point i, leave in the numbers that point i has.
    """
    count = len(group.rows)
    width = max(1, min(count, 2**20 // num_rows(batch) // max(1, _numbers(group.points))))
    width = width if group.layout.vectorizes else 1
    densities, masks = [], []
    for start in range(0, count, width):
        values = {name: point[start : start + width] for name, point in group.points.items()}
        found, there = densities_under_rows(session.pair, batch, group.layout, values)
        expected = group.there[start : start + width].unsqueeze(1).to(there.device)
        densities.append(found)
        masks.append((there == expected).all(-1))
    return torch.cat(densities), torch.cat(masks)


def _made_by_row(session: Session, layout: Layout, points: dict[str, Tensor]) -> list[str]:
    """Latents that the guide computes from its draws otherwise for each row: the same draw gives others."""
    n = num_rows(session.first)
    if n == 1 or not points or layout.signature != session.layout.signature:
        return []
    same = {name: point[:1] for name, point in points.items()}
    trace = guide_with(session.pair, session.first, layout, same)
    found = []
    for name in layout.latents:
        if name not in layout.draws:
            value = rows_first(trace.nodes[name], layout, 1, n)[0]
            if not torch.allclose(value, value[:1].expand_as(value), rtol=1e-4, atol=1e-5):
                found.append(name)
    return found


def _numbers(points: dict[str, Tensor]) -> int:
    return sum(point[0].numel() for point in points.values())


def density_of_rows(
    session: Session, batch: Batch, layout: Layout, values: dict[str, Tensor]
) -> Tensor:
    """log q(z | x_j) of one draw z under each row j of a batch, `(n,)`; differentiable with gradients enabled.

    Args:
        session: The opened pair.
        batch: n rows.
        layout: Their layout.
        values: The draw, one for each random site of the guide, `(1, *inner_sizes, *event)`.
    """
    return densities_under_rows(session.pair, batch, layout, values)[0][0]
