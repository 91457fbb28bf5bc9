"""Whether draws of the guide lie in the supports of the model's latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_vae.pairs.coordinates import support_of
from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.layout import Layout, sum_to_rows
from ppl_vae.pairs.traces import Site, Trace, innermost, is_delta, latent_sites, present


def of_numbers(support: Any) -> Any:
    """The support of single numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def may_leave_support(model_trace: Trace, guide_trace: Trace) -> tuple[str, ...]:
    """The latents of which a run on some rows does not show whether all draws lie in the model's support.

    If the supports of both programs are the same for any rows, one run shows it. A Delta states no support, and
    bounds that are tensors may differ from row to row and from step to step.
    """
    found = []
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        wanted = of_numbers(support_of(site["fn"]))
        if other is None or wanted is None or isinstance(wanted, type(constraints.real)):
            continue
        given = of_numbers(support_of(other["fn"]))
        if is_delta(other) or any(_has_tensors(support) for support in (wanted, given)):
            found.append(name)
    return tuple(found)


def require_inside(model_trace: Trace, layout: Layout) -> None:
    """Refuses draws outside of the model's support, of the latents of which a layout knows that it may happen.

    There the model's density is 0, but `Exponential(1).log_prob(-1)` is 1 if nothing validates it. A recording
    does not look at values.

    Raises:
        PairError: A draw is outside.
    """
    if get_proxy_mode() is not None:
        return
    for name in layout.unsure:
        site = model_trace.nodes[name]
        outside = _outside(site)
        if outside is None or not bool(outside.any()):
            continue
        rows = rows_outside(site, layout.dim) if name in layout.latents else []
        row = f"row {rows[0]} of a batch (counted from 0): " if rows else ""
        raise PairError(
            f"{row}{int(outside.sum())} of the values that the guide draws for site '{name}' are outside of "
            f"the support of the model's {type(innermost(site['fn'])).__name__}, where its density is 0. Draw "
            "from a distribution with the model's support, for all rows"
        )


def rows_outside(site: Site, dim: int | None) -> list[int]:
    """The rows in which a value of a latent is outside of the model's support; none if that is not known.

    Args:
        site: The model's site.
        dim: Where the plate over rows is; None if there is none.
    """
    outside = _outside(site)
    if outside is None or dim is None or outside.dim() < -dim:
        return []
    by_row = outside.movedim(dim, 0)
    rows: list[int] = by_row.reshape(len(by_row), -1).any(1).nonzero().flatten().tolist()
    return rows


def without_draws_outside(
    log_prior: Tensor, model_trace: Trace, layout: Layout, num_samples: int, n: int
) -> Tensor:
    """log p(z) of rows, -inf where a recording finds a draw outside of the model's support."""
    if get_proxy_mode() is None:
        return log_prior
    for name in (name for name in layout.unsure if name in layout.latents):
        outside = _outside(model_trace.nodes[name])
        if outside is not None:
            by_row = sum_to_rows(outside.to(log_prior.dtype), layout, num_samples, n) > 0
            log_prior = log_prior.masked_fill(by_row, -torch.inf)
    return log_prior


def _outside(site: Site) -> Tensor | None:
    """Which values of a site are outside of its support and not masked, of the shape of its batch.

    None if no support is stated, or none can be checked, or if shapes do not fit, which others report.
    """
    support = support_of(site["fn"])
    if support is None:
        return None
    try:
        inside: Tensor = support.check(site["value"])
        there = present(site)
        if event_dim := support.event_dim:
            there = there.flatten(there.dim() - event_dim).all(-1)
        return ~inside & there
    except (RuntimeError, NotImplementedError):
        return None


def support_has_tensors(fn: Any) -> bool:
    """Whether the support of a distribution may be another one for other rows: bounds that are tensors.

    Example:
        >>> import pyro.distributions as dist
        >>> support_has_tensors(dist.Normal(0.0, 1.0)), support_has_tensors(dist.Uniform(0.0, torch.ones(2)))
        (False, True)
    """
    return _has_tensors(of_numbers(support_of(fn)))


def _has_tensors(support: Any) -> bool:
    return any(isinstance(part, Tensor) for part in vars(support).values()) if support else False
