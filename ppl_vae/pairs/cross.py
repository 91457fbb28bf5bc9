"""Densities of some rows' latents under the guide's posteriors of other rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.pairs.densities import RowDensities
from ppl_vae.pairs.errors import NoInverseError
from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.layout import (
    Layout,
    in_plates,
    inner_sizes,
    many_samples,
    row_log_prob,
    rows_first,
    sum_to_rows,
)
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args, num_rows
from ppl_vae.pairs.traces import present, sample_sites


def densities_under_rows(
    pair: Pair, batch: Batch, layout: Layout, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """log q(z_i | x_j) of draws i under each row j of a batch, and which of their numbers the row leaves in.

    Args:
        pair: The pair, inside of `pair.scope()`.
        batch: n rows.
        layout: Their layout.
        values: The draws, for each random site of the guide, `(k, *inner_sizes, *event)`.

    Returns:
        The densities, `(k, n)`, and `(k, n, numbers)`.
    """
    count, n = len(next(iter(values.values()))), num_rows(batch)
    trace = guide_with(pair, batch, layout, values)
    terms = [
        sum_to_rows(row_log_prob(site, layout), layout, count, n)
        for name, site in sample_sites(trace).items()
        if name in layout.guide_sites
    ]
    # Where a density is not defined outside of its support, torch may give NaN.
    found = torch.stack(terms).sum(0)
    there = numbers_there(layout, trace, count, n)
    return found.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf), there


def guide_with(pair: Pair, batch: Batch, layout: Layout, values: Mapping[str, Tensor]) -> Any:
    """The guide's trace in which all rows have the same draws, of several points."""
    n = num_rows(batch)
    count = len(next(iter(values.values())))
    spread = {}
    for name, value in values.items():
        shaped = in_plates(value.unsqueeze(1).expand(count, n, *value.shape[1:]), layout)
        spread[name] = shaped if count > 1 else shaped[0]
    # A draw of one row may lie outside of another's support, where its density is 0.
    with many_samples(layout, count), pyro.validation_enabled(False):
        return poutine.trace(Substitute(spread)(pair.guide)).get_trace(*as_args(batch))


def numbers_there(layout: Layout, guide_trace: Any, samples: int, n: int) -> Tensor:
    """Which numbers of the guide's draws its masks leave in, `(samples, n, numbers)`."""
    sites = [guide_trace.nodes[name] for name in layout.draws]
    masks = [
        rows_first({**site, "value": present(site)}, layout, samples, n).reshape(samples, n, -1)
        for site in sites
    ]
    return torch.cat(masks, -1) if masks else torch.ones(samples, n, 0, dtype=torch.bool)


def draw_of_each_row(rows: RowDensities, name: str, which: int) -> Tensor:
    """One of the draws of a site for each row, `(n, *inner_sizes, *event)`."""
    site, value = rows.guide_trace.nodes[name], rows.draws[name][which]
    return value.reshape(len(value), *inner_sizes(site, rows.layout), *site["fn"].event_shape)


def information_among(pair: Pair, rows: RowDensities, batch: Batch) -> float:
    """I(x; z) of some rows by one draw for each and their own aggregate posterior, nats; at most log n.

    NaN where one row's latents have no known density under another row's posterior.

    Args:
        pair: The pair, inside of `pair.scope()`.
        rows: Draws of the rows.
        batch: The n rows.
    """
    layout, (_, n) = rows.layout, rows.log_guide.shape
    values = {name: draw_of_each_row(rows, name, 0) for name in layout.draws}
    if not values or not layout.vectorizes:
        return math.nan
    width = max(1, 2**20 // n // max(1, sum(value[0].numel() for value in values.values())))
    parts = []
    try:
        for start in range(0, n, width):
            chosen = {name: value[start : start + width] for name, value in values.items()}
            parts.append(densities_under_rows(pair, batch, layout, chosen)[0])
    except NoInverseError:
        return math.nan
    densities = torch.cat(parts).double()
    at_home = torch.eye(n, dtype=torch.bool, device=densities.device)
    own = rows.log_guide[0].double()
    densities = torch.where(at_home, own.unsqueeze(1), densities)
    return float((own - densities.logsumexp(1) + math.log(n)).mean())
