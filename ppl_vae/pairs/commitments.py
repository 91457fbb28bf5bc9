"""Rates below which a pair promises not to go, and what would break the promise.

A part of a model or of a guide that commits to a rate E KL(q(z | x) || p(z)) has the method
`why_not_committed(q, p)`: why the rate of a latent with these two may be lower; empty if it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import Module

from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch
from ppl_vae.pairs.traces import is_discrete, latent_sites, trace_pair


def broken_commitments(pair: Pair, batch: Batch) -> Iterator[tuple[str, str]]:
    """Latents whose rate may be below a committed one: the site, and why.

    The pair runs with gradients, so that a distribution shows whether it has parameters.
    """
    checks = [
        check
        for program in (pair.model, pair.guide)
        for part in (program.modules() if isinstance(program, Module) else ())
        if callable(check := getattr(part, "why_not_committed", None))
    ]
    if not checks:
        return
    with torch.random.fork_rng(), torch.enable_grad():
        model_trace, guide_trace = trace_pair(pair, batch)
    in_model = latent_sites(model_trace)
    for name, site in latent_sites(guide_trace).items():
        if name not in in_model or is_discrete(site):
            continue
        for check in checks:
            if reason := check(site["fn"], in_model[name]["fn"]):
                yield name, f"site '{name}': {reason}"
