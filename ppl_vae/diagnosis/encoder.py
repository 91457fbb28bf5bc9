"""Whether an encoder is dead: it gives all rows one posterior, and no gradient can change that."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.information import RowDraws, density_of_rows
from ppl_vae.stats import Estimate

_ROUNDING = 1e-5
"""Relative to the largest number that is compared."""


def same_for_all_rows(information: Estimate, draws: RowDraws) -> bool:
    """Whether all rows have one posterior, up to rounding: no draw tells anything of its row.

    Args:
        information: log q(z_i | x_i) - log q(z_i) of one draw for each of some rows.
        draws: The draws.
    """
    log_guide, _ = draws.densities
    size = max(1.0, float(log_guide.abs().max()))
    return bool((information.values.abs() <= _ROUNDING * size).all())  # false if it is not known


def gradient_tells_rows_apart(session: Session, draws: RowDraws) -> bool | None:
    """Whether a gradient step could make q(z | x) depend on x; None if no gradient reaches a parameter.

    It could if the density of the same z has another gradient for one row than for another. Units that are
    inactive on all rows leave only biases with a gradient, which is then that of all rows alike.
    """
    (group, *_) = draws.chosen(1)
    batch, layout = session.first, session.layout
    values = {name: point[:1] for name, point in group.points.items()}
    leaves = list(session.pair.parameters(batch).values())
    if not leaves or not values:
        return None
    with torch.enable_grad():
        densities = density_of_rows(session, batch, layout, values)
        if not densities.requires_grad:
            return None
        first: list[Tensor] | None = None
        for density in densities:
            gradient = torch.autograd.grad(
                density, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            if first is None:
                first = list(gradient)
            for one, other in zip(first, gradient, strict=True):
                size = float(torch.maximum(one.abs().max(), other.abs().max()))
                if float((one - other).abs().max()) > 10 * _ROUNDING * size:
                    return True
    return False
