"""Mutual information and marginal KL from the aggregate posterior."""

from __future__ import annotations

import math

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.dimensions import Gathered
from ppl_vae.pairs import (
    Batch,
    Substitute,
    as_args,
    many_samples,
    num_rows,
    sample_sites,
    sum_to_rows,
    unscaled,
)
from ppl_vae.stats import Estimate

_POINTS = 1000


def aggregate_information(
    session: Session, gathered: Gathered, size: int
) -> tuple[Estimate, Estimate, tuple[str, ...]]:
    """I(x; z) and KL(q(z) || p(z)) from one draw for each of some rows, with q(z) of all rows; and notes."""
    n = gathered.num_rows
    count = min(n, _POINTS if session.layout.vectorizes else 100)
    chosen = torch.linspace(0, n - 1, count, device=session.device).round().long()
    points = {name: value[chosen] for name, value in gathered.points.items()}
    aggregate = torch.full((count,), -math.inf, dtype=torch.float64, device=session.device)
    for batch in session.chunks(size, "diagnose"):
        width = max(1, min(count, 2**20 // num_rows(batch) // max(1, len(gathered.names))))
        parts = []
        for start in range(0, count, width):
            values = {name: point[start : start + width] for name, point in points.items()}
            parts.append(_cross_density(session, batch, values).logsumexp(1))
        aggregate = torch.logaddexp(aggregate, torch.cat(parts).double())
    log_q = aggregate - math.log(n)
    information = gathered.log_guide[chosen].double() - log_q
    marginal = log_q - gathered.log_prior[chosen].double()
    notes = (
        f"the mutual information is that of the {n} rows given: it cannot exceed log n = "
        f"{math.log(n):.2f} nats and is biased low for the population",
    )
    return Estimate(information.cpu()), Estimate(marginal.cpu()), notes


def _cross_density(session: Session, batch: Batch, values: dict[str, Tensor]) -> Tensor:
    """log q(z_i | x_j) under the guide, for given points i and each row j of the batch: `(points, n)`."""
    if session.layout.vectorizes:
        return _scored(session, batch, values)
    count = len(next(iter(values.values())))
    single = ({k: v[i : i + 1] for k, v in values.items()} for i in range(count))
    return torch.cat([_scored(session, batch, value) for value in single])


def _scored(session: Session, batch: Batch, values: dict[str, Tensor]) -> Tensor:
    layout, n = session.layout, num_rows(batch)
    count = len(next(iter(values.values())))
    outer = (1,) * (layout.nesting + layout.dim)
    spread = {}
    for name, value in values.items():
        shaped = value.reshape(count, *outer, 1, *value.shape[1:])
        shaped = shaped.expand(count, *outer, n, *value.shape[1:])
        spread[name] = shaped if count > 1 else shaped[0]
    with many_samples(layout, count):
        trace = poutine.trace(Substitute(spread)(session.pair.guide)).get_trace(*as_args(batch))
    terms = [
        sum_to_rows(unscaled(site), layout, count, n)
        for name, site in sample_sites(trace).items()
        if name in layout.guide_sites
    ]
    return torch.stack(terms).sum(0)
