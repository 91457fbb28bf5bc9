"""Checks of latents: draws of the guide in the model's support, the same measure, the same masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.checks.report import Problem
from ppl_vae.pairs import (
    Batch,
    Pair,
    Site,
    Trace,
    innermost,
    latent_sites,
    present,
    sample_sites,
    sources_of,
    trace_tracked,
)


def latent_problems(
    model_trace: Trace, guide_trace: Trace, guide_is_prior: bool = False
) -> Iterator[Problem]:
    """Problems with latents that both programs sample.

    The ratio p(z) / q(z | x) needs draws of the guide inside of the model's support, two densities or two
    probabilities, and latents that are there in both programs. Otherwise the ELBO and the weights mean
    nothing, and nothing shows it: `Exponential(1).log_prob(-1)` is 1.

    Args:
        model_trace: The trace of the model, with the guide's latents.
        guide_trace: The trace of the guide.
        guide_is_prior: Whether the guide is the prior itself, whose densities come from the model.
    """
    if guide_is_prior:
        return
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is None or site["fn"].event_shape != other["fn"].event_shape:
            continue  # others report it
        text = _other_mask(site, other) or _other_values(site, other)
        if text:
            yield Problem("error", name, f"site '{name}': {text}")


def auxiliary_problems(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> Iterator[Problem]:
    """Problems with variables of the guide that the model does not have.

    The mean of p(x, z) / (q(a | x) q(z | a, x)) is not p(x): a variable a of the guide alone needs a density
    r(a | z, x) in the model. The exception are variables of which latents are functions, as in autoguides.
    """
    in_model, known = latent_sites(model_trace), sample_sites(model_trace)
    own = {n: s for n, s in latent_sites(guide_trace).items() if n not in known}
    own = {n: s for n, s in own.items() if not _is_delta(s)}
    deltas = [n for n in in_model if n in guide_trace.nodes and _is_delta(guide_trace.nodes[n])]
    tracked = trace_tracked(pair, batch) if own and deltas else None
    if own and deltas and tracked is None:  # code that checks the type of a tensor
        return
    sources = {} if tracked is None else {n: sources_of(tracked.nodes[n]["value"]) for n in deltas}
    for name, site in own.items():
        made = [guide_trace.nodes[n]["value"].numel() for n in deltas if name in sources[n]]
        if not made:
            yield Problem(
                "error",
                name,
                f"the guide's site '{name}' is not in the model, which has "
                f"{', '.join(map(repr, in_model)) or 'no latents'}: give the site the same name in both. A "
                "variable of the guide alone needs a density in the model, given the latents (a reverse model "
                f"r({name} | z, x)); without it, ELBO and log p(x) may exceed the truth",
            )
        elif site["value"].numel() > sum(made):
            yield Problem(
                "error",
                name,
                f"the guide computes {sum(made)} numbers of latents from the {site['value'].numel()} of "
                f"'{name}', which is not in the model: q is not the density of fewer numbers than were drawn. "
                f"Sample '{name}' in the model, too, given the latents",
            )


def _is_delta(site: Site) -> bool:
    return isinstance(innermost(site["fn"]), dist.Delta)


def _other_mask(in_model: Site, in_guide: Site) -> str:
    """What is wrong with the masks of a latent; empty if nothing is."""
    try:
        there, other = torch.broadcast_tensors(present(in_model), present(in_guide))
    except RuntimeError:  # shapes do not fit, which is reported elsewhere
        return ""
    differ = int((there != other).sum())
    if not differ:
        return ""
    alone = "model" if bool((other & ~there).any()) else "guide"
    return (
        f"{differ} of {there.numel()} numbers are masked in one program and not in the other (in the {alone}, "
        "for example), so that q(z | x) and p(z) are densities of different latents: use the same "
        "poutine.mask in both"
    )


def _other_values(in_model: Site, in_guide: Site) -> str:
    """What is wrong with the values that the guide draws; empty if nothing is."""
    value: Tensor = in_model["value"]
    wanted = _support(in_model["fn"])
    if wanted is None or not bool(torch.isfinite(value).all()):
        return ""
    model_kind, guide_kind = (type(innermost(s["fn"])).__name__ for s in (in_model, in_guide))
    point = _is_delta(in_guide)
    given = None if point else _support(in_guide["fn"])
    if given is not None and given.is_discrete != wanted.is_discrete:
        kinds = ["a density", "probabilities"]
        return (
            f"the guide's {guide_kind} gives {kinds[given.is_discrete]} and the model's {model_kind} "
            f"{kinds[wanted.is_discrete]}, whose ratio has no meaning (their supports are {given} and "
            f"{wanted}): draw the latent from a distribution of the same kind in both"
        )
    try:
        outside = int((~wanted.check(value) & _there(in_model, wanted)).sum())
    except (RuntimeError, NotImplementedError):
        return ""
    unbounded = given is not None and _base(given) is constraints.real
    beyond = unbounded and _is_bounded(_base(wanted))
    if outside or beyond:
        seen = (
            f"{outside} of the values drawn here are outside of it"
            if outside
            else "and so leaves it"
        )
        return (
            f"the model's {model_kind} has the support {wanted}, but the guide draws from {guide_kind}"
            f"{' on all real numbers' if unbounded else ''}: {seen}. Draw from a distribution with the "
            "model's support, such as LogNormal for positive numbers, or a TransformedDistribution"
        )
    return ""


def _there(site: Site, support: Any) -> Tensor:
    """Which of the values that a support judges are not masked."""
    there = present(site)
    return there.flatten(there.dim() - support.event_dim).all(-1) if support.event_dim else there


def _support(fn: Any) -> Any:
    """The support of a distribution; None if it states none."""
    try:
        return fn.support
    except (NotImplementedError, AttributeError, ValueError):
        return None


def _base(support: Any) -> Any:
    """The support of single numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


_BOUNDED = (
    *(type(constraints.positive), type(constraints.nonnegative), type(constraints.unit_interval)),
    *(type(constraints.simplex), type(constraints.less_than(0.0))),
    type(constraints.half_open_interval(0.0, 1.0)),
)
"""Supports that leave out most real numbers."""


def _is_bounded(support: Any) -> bool:
    return isinstance(support, _BOUNDED)
