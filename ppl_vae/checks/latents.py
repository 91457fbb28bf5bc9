"""Checks of latents: draws of the guide in the model's support, the same measure, the same masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.checks.report import DISCRETE, Problem
from ppl_vae.checks.supports import in_words, is_periodic, range_of
from ppl_vae.pairs import (
    Batch,
    Pair,
    Program,
    Site,
    Trace,
    about_obs_mask,
    free_numbers,
    has_log_density,
    innermost,
    is_delta,
    is_factor,
    latent_sites,
    may_leave_support,
    observed_sites,
    own_attribute,
    present,
    sample_sites,
    sharing_draws,
    sources_of,
    support_of,
    trace_tracked,
)

ROUNDING = 1e-4
"""By how much a support may exceed another."""


def latent_problems(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> Iterator[Problem]:
    """Problems with latents that both programs sample; none if the guide is the prior (`is_prior`).

    The ratio p(z) / q(z | x) needs draws of the guide inside of the model's support, two densities or two
    probabilities, and latents that are there in both programs. Otherwise the ELBO and the weights mean
    nothing, and nothing shows it: `Exponential(1).log_prob(-1)` is 1. A guide that is the prior itself
    (`is_prior`) takes its densities from the model.

    Args:
        pair: Model and guide.
        batch: The rows that they ran on.
        model_trace: The trace of the model, with the guide's latents.
        guide_trace: The trace of the guide.
    """
    if own_attribute(pair.guide, "is_prior"):  # its densities come from the model
        return
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is None or site["fn"].event_shape != other["fn"].event_shape:
            continue  # others report it
        text = _other_mask(site, other)
        if text and _is_point(pair, batch, name, model_trace, guide_trace):
            text = ""  # a point has no density that a mask could leave out
        if text and (advice := about_obs_mask(model_trace, name)):
            text = f"{text}. {advice}"
        text = text or _other_values(site, other)
        if text:
            yield Problem("error", name, f"site '{name}': {text}")


def vary_by_row(model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether latents have masks or supports that may be others in other rows."""
    sites = [s for trace in (model_trace, guide_trace) for s in latent_sites(trace).values()]
    masked = any(isinstance(s["mask"], Tensor) or not bool(present(s).all()) for s in sites)
    return masked or bool(may_leave_support(model_trace, guide_trace))


def auxiliary_problems(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> Iterator[Problem]:
    """Problems with variables of the guide that the model does not have.

    The mean of p(x, z) / (q(a | x) q(z | a, x)) is not p(x): a variable a of the guide alone needs a density
    r(a | z, x) in the model. The exception are variables of which latents are functions, as in autoguides, if
    there are no more of their numbers than of the latents'. `jacobian_problems` looks at the density of these.
    """
    in_model, known = latent_sites(model_trace), sample_sites(model_trace)
    own = {n: s for n, s in latent_sites(guide_trace).items() if n not in known}
    own = {n: s for n, s in own.items() if not is_delta(s)}
    deltas = [n for n in in_model if n in guide_trace.nodes and is_delta(guide_trace.nodes[n])]
    tracked = trace_tracked(pair, batch) if own and deltas else None
    if own and deltas and tracked is None:  # code that checks the type of a tensor
        return
    sources = {} if tracked is None else {n: sources_of(tracked.nodes[n]["value"]) for n in deltas}
    sources = {n: behind & own.keys() for n, behind in sources.items()}
    used = frozenset().union(*sources.values())
    all_discrete = in_model and all(s["fn"].has_enumerate_support for s in in_model.values())
    for name in (n for n in own if n not in used):
        yield Problem(
            "error",
            name,
            f"the guide's site '{name}' is not in the model, which has "
            f"{', '.join(map(repr, in_model)) or 'no latents'}"
            + (
                f". The model's latents are discrete: {DISCRETE}"
                if all_discrete
                else _same_name(name)
            ),
        )
    together = [draws for _, draws in sharing_draws(sources) if len(draws) > 1]
    for draws in [*(frozenset([name]) for name in own if name in used), *together]:
        made = [n for n in deltas if sources[n] & draws]
        numbers = sum(free_numbers(in_model[n]["fn"], guide_trace.nodes[n]["value"]) for n in made)
        drawn = sum(free_numbers(own[n]["fn"], own[n]["value"]) for n in draws)
        if drawn > numbers:
            names = [f"'{name}'" for name in own if name in draws]
            yield Problem(
                "error",
                min(draws),
                f"the guide computes {numbers} numbers of latents from the {drawn} of {', '.join(names)}, "
                f"which {'is' if len(names) == 1 else 'are'} not in the model: q is not the density of fewer "
                "numbers than were drawn. Sample "
                f"{names[0] if len(names) == 1 else 'one of them'} in the model, too, given the latents",
            )
            return


def _same_name(name: str) -> str:
    """What to do about a variable of the guide that the model does not have."""
    return (
        ": give the site the same name in both. A variable of the guide alone needs a density in the model, "
        f"given the latents (a reverse model r({name} | z, x)); without it, ELBO and log p(x) may exceed the "
        "truth"
    )


def narrow_problems(model_trace: Trace, guide_trace: Trace) -> Iterator[Problem]:
    """Latents that the guide draws from a part of the model's support only, as warnings.

    The ELBO stays a bound. But importance sampling never sees the rest, and its weights do not show that.
    """
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is None or is_delta(other):
            continue
        wanted, given = support_of(site["fn"]), support_of(other["fn"])
        if wanted is not None and given is not None and _leaves(site, other, site):
            yield Problem(
                "warning",
                name,
                f"site '{name}': the guide draws {in_words(other['fn'])} only, and the model has "
                f"{in_words(site['fn'])}: "
                "log p(x) leaves out the rest, and nothing in the weights shows it",
            )


def observed_problems(guide: Program, guide_trace: Trace) -> Iterator[Problem]:
    """Values that the guide observes, as warnings. A `pyro.factor` may be meant as a term of the loss."""
    if isinstance(poutine.unwrap(guide), Messenger):  # it runs the model
        return
    for name, site in observed_sites(guide_trace).items():
        if not is_factor(site):
            yield Problem(
                "warning",
                name,
                f"the guide observes '{name}': that is no part of q(z | x), but Pyro's loss subtracts its log "
                "density as if it were, so that training makes these values less likely. Observe "
                f"'{name}' in the model, or add a term to the loss by an objective of your own",
            )


def _is_point(pair: Pair, batch: Batch, name: str, model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether the guide gives a latent no density: a Delta that is no function of draws of the guide alone."""
    site = guide_trace.nodes[name]
    if not is_delta(site) or has_log_density(site):
        return False
    own = latent_sites(guide_trace).keys() - latent_sites(model_trace).keys()
    if not own:
        return True
    tracked = trace_tracked(pair, batch)
    return tracked is not None and not sources_of(tracked.nodes[name]["value"]) & own


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
        f"the {alone} masks {differ} of {there.numel()} numbers that the other program does not mask, so that "
        "q(z | x) and p(z) are densities of different latents: use the same poutine.mask in both"
    )


def _other_values(in_model: Site, in_guide: Site) -> str:
    """What is wrong with the values that the guide draws; empty if nothing is."""
    value: Tensor = in_model["value"]
    wanted = support_of(in_model["fn"])
    if wanted is None or not bool(torch.isfinite(value).all()):
        return ""
    model_kind, guide_kind = (type(innermost(s["fn"])).__name__ for s in (in_model, in_guide))
    given = None if is_delta(in_guide) else support_of(in_guide["fn"])
    if given is not None and given.is_discrete != wanted.is_discrete:
        kinds = ["a density", "probabilities"]
        return (
            f"the guide's {guide_kind} gives {kinds[given.is_discrete]} (on {in_words(in_guide['fn'])}) and "
            f"the model's {model_kind} {kinds[wanted.is_discrete]} (on {in_words(in_model['fn'])}), whose "
            "ratio has no meaning: "
            "draw the latent from a distribution with the same support in both"
        )
    try:
        outside = int((~wanted.check(value) & _there(in_model, wanted)).sum())
    except (RuntimeError, NotImplementedError):
        return ""
    beyond = given is not None and _leaves(in_guide, in_model, in_model)
    if not (outside or beyond):
        return ""
    drawn = "" if given is None else f" on {in_words(in_guide['fn'])}"
    seen = f", and {outside} of the values drawn here are" if outside else ", some of which are"
    return (
        f"the model's {model_kind} is a distribution on {in_words(in_model['fn'])}, but the guide draws from "
        f"{guide_kind}{drawn}{seen} outside of that. Draw from a distribution with the model's support, such "
        "as LogNormal for positive numbers, or a TransformedDistribution"
    )


def _leaves(one: Site, other: Site, there: Site) -> bool:
    """Whether numbers of one site's range lie outside of the other's, by more than rounding, where not masked.

    Angles are the same after a full turn: of a range around a circle, only the length counts.
    """
    of_one, of_other = range_of(one["fn"]), range_of(other["fn"])
    if of_one is None or of_other is None:
        return False
    (low, high), (least, most) = of_one, of_other
    try:
        if is_periodic(one["fn"]) or is_periodic(other["fn"]):
            outside = high - low > most - least + ROUNDING
        else:
            outside = (low < least - ROUNDING) | (high > most + ROUNDING)
        return bool((outside & present(there)).any())
    except RuntimeError:  # shapes do not fit, which is reported elsewhere
        return False


def _there(site: Site, support: Any) -> Tensor:
    """Which of the values that a support judges are not masked."""
    there = present(site)
    return there.flatten(there.dim() - support.event_dim).all(-1) if support.event_dim else there
