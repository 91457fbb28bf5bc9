"""The plate over rows, found by running the model: on the rows, and on one row fewer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.programs import Batch, Program, as_args, num_rows, take_rows, tensors_of
from ppl_vae.pairs.sources import TrackLatents, sources_of
from ppl_vae.pairs.traces import Site, Trace, latent_sites, observed_sites


def sites_of_rows(model: Program, batch: Batch, trace: Trace) -> dict[str, Site]:
    """The observed sites that belong to rows.

    The others belong to the loss, and to no row: a `pyro.factor` outside of all plates, and what is outside of
    the plate over rows and the same for any rows, such as a penalty on weights in a plate over these, or a
    prior written as `pyro.sample("w_prior", ..., obs=w)`. An observation outside of the plate that follows the
    rows stays: it makes no sense row by row, and `rows_frame` refuses it.

    Args:
        model: The model; it runs twice if the observed sites share no plate of the size of the batch.
        batch: The n rows.
        trace: The model's trace on these rows.
    """
    sites = {
        name: site
        for name, site in observed_sites(trace).items()
        if site["value"].numel() or any(f.vectorized for f in site["cond_indep_stack"])
    }
    n = num_rows(batch)
    possible = any(_plates_around({name: site}, n) for name, site in sites.items())
    if not possible or _plates_around(sites, n):
        return sites
    same = same_for_any_rows(model, batch, sites)
    return {name: site for name, site in sites.items() if name not in same} or sites


def same_for_any_rows(model: Program, batch: Batch, names: Collection[str]) -> set[str]:
    """Those of the observed sites that depend on neither the rows nor their latents."""
    if not names:
        return set()
    try:
        all_rows, fewer = (_tracked(model, rows) for rows in (batch, one_row_fewer(batch)))
    except Exception:  # a model of exactly these rows
        return set()
    shared = {
        name
        for name, site in latent_sites(all_rows).items()
        if name in fewer.nodes and site["value"].shape == fewer.nodes[name]["value"].shape
    }
    return {
        name
        for name in names
        if name in all_rows.nodes
        and name in fewer.nodes
        and _same(all_rows.nodes[name], fewer.nodes[name], shared | {name})
    }


def _same(site: Site, other: Site, shared: set[str]) -> bool:
    """Whether a site has the same value and log density in both runs, whatever latents all rows share."""
    values = [detach_provenance(s["value"]) for s in (site, other)]
    if values[0].shape != values[1].shape or not torch.equal(*values):
        return False
    scores = [s["fn"].log_prob(s["value"]) for s in (site, other)]
    if not sources_of(scores[0]) <= shared:
        return False
    if scores[0].shape != scores[1].shape:
        return False
    by_draws = bool(sources_of(scores[0]) - {site["name"]})
    return by_draws or torch.equal(*(detach_provenance(score) for score in scores))


def _tracked(model: Program, batch: Batch) -> Trace:
    """The trace of a model that runs alone, whose values know their sources if its code allows for that."""
    try:
        with TrackLatents():
            return run_alone(model, batch)
    except Exception:  # code that checks the type of a tensor
        return run_alone(model, batch)


def rows_frame(sites: Mapping[str, Site], n: int) -> Any:
    """The outermost plate of size `n` that holds all of the given observed sites.

    Raises:
        PairError: There is none; the message lists the plates that were found.
    """
    common = _plates_around(sites, n)
    if common:
        return min(common.values(), key=lambda frame: frame.dim)
    names = ", ".join(f"'{name}'" for name in sites) or "(none)"
    plates = {
        f"'{f.name}' of size {f.size}"
        for site in sites.values()
        for f in site["cond_indep_stack"]
        if f.vectorized
    }
    found = f"the plates found are {', '.join(sorted(plates))}" if plates else "there is none"
    raise PairError(
        f"the observed sites {names} are not inside a plate over the {n} rows of the batch ({found}): "
        f'put the latents and the data of each row inside `with pyro.plate("data", x.shape[0]):`{_own(sites)}'
    )


def _own(sites: Mapping[str, Site]) -> str:
    """The remedy if a plate around the data draws rows of its own; empty if no plate draws."""
    for frame in (f for site in sites.values() for f in site["cond_indep_stack"] if f.vectorized):
        if frame.full_size not in (None, frame.size):
            return drawn_rows(frame.name, frame.full_size, frame.size)
    return ""


def drawn_rows(name: str, size: int, part: int) -> str:
    """The remedy if a plate, which draws a part of its elements, holds the rows; the end of a message."""
    return (
        f"; if plate '{name}', which draws {part} of {size}, holds the rows: here fit and evaluate choose "
        f'them, so write pyro.plate("{name}", {size}, subsample_size=len(x)) and use x in place of x[index]'
    )


def _plates_around(sites: Mapping[str, Site], n: int) -> dict[str, Any]:
    """The plates of size `n` that hold all of the given sites."""
    common: dict[str, Any] | None = None
    for site in sites.values():
        frames = {f.name: f for f in site["cond_indep_stack"] if f.vectorized and f.size == n}
        common = frames if common is None else {k: f for k, f in common.items() if k in frames}
    return common or {}


def find_rows(model: Program, batch: Batch, trace: Trace) -> Any:
    """The plate over rows: of those of size n around the data, the one that follows the number of rows.

    A size alone may mislead: 12 words of 12 documents, 5 rows of 5 features. The model runs alone, on one row
    fewer; a single row is given twice.

    Args:
        model: The model.
        batch: The n rows.
        trace: The model's trace on these rows.

    Raises:
        PairError: No plate around the data has size n, or the data follow the rows in another dimension.
    """
    n = num_rows(batch)
    sites = sites_of_rows(model, batch, trace)
    found = rows_frame(sites, n)
    other = one_row_fewer(batch)
    try:
        after = observed_sites(run_alone(model, other))
        frames = {f.name: f for s in after.values() for f in s["cond_indep_stack"]}
        dims = _changed_dims(sites, after)
    except Exception:  # a model of exactly these rows
        return found
    plates = _plates_around(sites, n)
    sized = {k: f for k, f in plates.items() if k in frames and frames[k].size == num_rows(other)}
    following = sized or {k: f for k, f in plates.items() if f.dim in dims}
    if following:
        return min(following.values(), key=lambda frame: frame.dim)
    if dims:
        raise PairError(
            f"plate '{found.name}' has as many elements as there are rows ({n}), but the data at "
            f"'{next(iter(sites))}' have their rows in another dimension, which is in no plate: put the "
            'latents and the data of each row inside `with pyro.plate("data", x.shape[0]):`'
        )
    return found


def one_row_fewer(batch: Batch) -> Batch:
    """The rows without the last one; a single row twice."""
    n = num_rows(batch)
    twice = torch.zeros(2, dtype=torch.long, device=tensors_of(batch)[0].device)
    return take_rows(batch, slice(0, n - 1) if n > 1 else twice)


def run_alone(model: Program, batch: Batch) -> Trace:
    """The trace of a model that draws its latents itself, without gradients; nothing is kept.

    Neither the random state nor the parameter store changes.
    """
    store: Any = pyro.get_param_store().get_state()
    inside: Any = {key: dict(value) for key, value in store.items()}
    with (
        torch.random.fork_rng(),
        torch.no_grad(),
        pyro.validation_enabled(False),
        pyro.get_param_store().scope(inside),
    ):
        return poutine.trace(model).get_trace(*as_args(batch))


def _changed_dims(before: Mapping[str, Site], after: Mapping[str, Site]) -> set[int]:
    """The dimensions in which the data's sizes differ: negative in plates, others in the event."""
    changed: set[int] = set()
    for name in before.keys() & after.keys():
        event_dim = len(before[name]["fn"].event_shape)
        values: list[Tensor] = [before[name]["value"], after[name]["value"]]
        if values[0].dim() == values[1].dim():
            sizes = zip(*(reversed(v.shape) for v in values), strict=True)
            changed |= {event_dim - 1 - i for i, (a, b) in enumerate(sizes) if a != b}
    return changed
