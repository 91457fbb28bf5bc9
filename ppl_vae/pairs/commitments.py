"""Rates below which a pair promises not to go, and what would break the promise.

A part of a model or of a guide that commits to a rate E KL(q(z | x) || p(z)) has the method
`why_not_committed(q, p)`: why the rate of a latent with these two may be lower; empty if it cannot. Its
`least_rate` is that rate, nats per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch.nn import Module

from ppl_vae.pairs.ours import hook_of
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch
from ppl_vae.pairs.traces import Site, is_delta, is_discrete, latent_sites, trace_pair


def broken_commitments(pair: Pair, batch: Batch) -> Iterator[tuple[str, str]]:
    """Latents whose rate may be below a committed one: the site, and why.

    The pair runs with gradients, so that a distribution shows whether it has parameters.
    """
    checks = [
        check
        for program in (pair.model, pair.guide)
        for part in (program.modules() if isinstance(program, Module) else ())
        if (check := hook_of(part, "why_not_committed"))
    ]
    if not checks:
        return
    with torch.random.fork_rng(), torch.enable_grad():
        model_trace, guide_trace = trace_pair(pair, batch)
    in_model = latent_sites(model_trace)
    for name, site in latent_sites(guide_trace).items():
        if name not in in_model or is_discrete(site):
            continue
        q = _drawn_as(site, guide_trace)
        for check in checks:
            if reason := check(q, in_model[name]["fn"]):
                yield name, f"site '{name}': {reason}"


def _drawn_as(site: Site, guide_trace: Trace) -> Any:
    """The distribution of a latent; of a Delta at what an auxiliary site has drawn, as autoguides have, the
    distribution of that site, if it is on the same numbers.
    """
    if not is_delta(site):
        return site["fn"]
    value = site["value"].flatten()
    nodes: Iterable[Site] = guide_trace.nodes.values()
    for drawn in nodes:
        if drawn["type"] != "sample" or not drawn["infer"].get("is_auxiliary"):
            continue
        same = drawn["value"].numel() == value.numel()
        if same and torch.equal(drawn["value"].flatten(), value):
            return drawn["fn"]
    return site["fn"]


def least_rate(pair: Pair) -> float:
    """The rate that a pair commits to, nats per row; 0 if it does not."""
    rates = [
        float(rate)
        for program in (pair.model, pair.guide)
        for part in (program.modules() if isinstance(program, Module) else ())
        if hook_of(part, "why_not_committed")
        and isinstance(rate := getattr(part, "least_rate", None), int | float)
    ]
    return max(rates, default=0.0)
