"""Whether a decoder needs its latents: does it read the data itself, and does log p(x | z) depend on z."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.checks import Session
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

DRAWS = 4
"""Draws of each row with which other rows' latents are compared."""

_RELATIVE = 1e-4  # of the log density, beyond rounding


def models_dependencies(session: Session) -> bool | None:
    """Whether p(x | z) does not factorize over the numbers of x: an autoregressive decoder; None if not known.

    Given z, the log density of numbers that are independent is a sum over them. So if the numbers of two rows
    are exchanged in one place or in the other, l(a, b) + l(a', b') = l(a', b) + l(a, b'). What rows come with
    and the model does not observe (labels, lengths) stays as it is.
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
            found.append(_depends(session, rows, place, _block(sites[0]), values))
    return None if not found or None in found else any(found)


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
