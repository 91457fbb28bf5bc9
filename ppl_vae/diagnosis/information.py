"""Mutual information and marginal KL from the aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.diagnosis.collapse import Residuals
from ppl_vae.pairs import (
    Batch,
    Batches,
    Layout,
    Pair,
    Substitute,
    as_args,
    many_samples,
    move,
    num_rows,
    sample_sites,
    sum_to_rows,
    take_rows,
    unscaled,
)
from ppl_vae.runtime import progress_bar
from ppl_vae.stats import Estimate

_POINTS = 1000


@dataclass
class Look:
    """What one pass over all rows gathers."""

    n: int
    names: tuple[str, ...]
    kl: Tensor
    mean_variance: Tensor
    points: list[dict[str, Tensor]]
    log_guide: Tensor
    log_prior: Tensor
    residuals: Residuals
    identical: bool
    moments_alone: tuple[str, ...]  # sites whose dimensions have no KL but that of their moments


def row_chunks(batches: Batches, size: int, device: torch.device) -> Iterator[Batch]:
    """The rows in order, ``size`` at most at once; a loader's batches may be larger."""
    for batch in batches.ordered(size):
        for start in range(0, num_rows(batch), size):
            yield move(take_rows(batch, slice(start, start + size)), device)


def aggregate_information(
    pair: Pair,
    layout: Layout,
    batches: Batches,
    size: int,
    device: torch.device,
    look: Look,
    progress: bool | None,
) -> tuple[Estimate, Estimate, tuple[str, ...]]:
    """I(x; z) and KL(q(z) || p(z)) at one draw for each of some rows, against all rows."""
    count = min(look.n, _POINTS if layout.vectorizes else 100)
    chosen = torch.linspace(0, look.n - 1, count, device=device).round().long()
    points = {name: torch.cat([p[name] for p in look.points])[chosen] for name in look.points[0]}
    aggregate = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
    with progress_bar(look.n, "diagnose", "row", progress) as bar:
        for batch in row_chunks(batches, size, device):
            n = num_rows(batch)
            width = max(1, min(count, 2**20 // n // max(1, len(look.names))))
            parts = []
            for start in range(0, count, width):
                values = {name: point[start : start + width] for name, point in points.items()}
                parts.append(_cross_density(pair, layout, batch, values, n).logsumexp(1))
            aggregate = torch.logaddexp(aggregate, torch.cat(parts).double())
            bar.update(n)
    log_q = aggregate - math.log(look.n)
    information = look.log_guide[chosen].double() - log_q
    marginal = log_q - look.log_prior[chosen].double()
    notes = [
        f"the mutual information is that of the {look.n} rows given: it can not exceed log n = "
        f"{math.log(look.n):.2f} nats and is biased low for the population"
    ]
    if float(information.mean()) > math.log(look.n) - 1.0:
        notes.append(
            "the mutual information is within a nat of its limit log n: take it for a lower bound"
        )
    return Estimate(information.cpu()), Estimate(marginal.cpu()), tuple(notes)


def _cross_density(
    pair: Pair, layout: Layout, batch: Batch, values: dict[str, Tensor], n: int
) -> Tensor:
    """log q(z_i | x_j) of given points i under the guide at each row j of the batch: ``(points, n)``."""
    count = len(next(iter(values.values())))
    if not layout.vectorizes:
        return torch.cat(
            [
                _scored(pair, layout, batch, {k: v[i : i + 1] for k, v in values.items()}, 1, n)
                for i in range(count)
            ]
        )
    return _scored(pair, layout, batch, values, count, n)


def _scored(
    pair: Pair, layout: Layout, batch: Batch, values: dict[str, Tensor], count: int, n: int
) -> Tensor:
    inner = (1,) * (-layout.dim - 1)
    outer = (1,) * (layout.nesting + layout.dim)
    spread = {}
    for name, value in values.items():
        shaped = value.reshape(count, *outer, 1, *inner, *value.shape[1:])
        shaped = shaped.expand(count, *outer, n, *inner, *value.shape[1:])
        spread[name] = shaped if count > 1 else shaped[0]
    with many_samples(layout, count):
        trace = poutine.trace(Substitute(spread)(pair.guide)).get_trace(*as_args(batch))
    terms = [
        sum_to_rows(unscaled(site), layout, count, n)
        for name, site in sample_sites(trace).items()
        if name in layout.guide_sites
    ]
    return torch.stack(terms).sum(0)
