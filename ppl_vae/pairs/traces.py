"""Reading a trace: its sites, their log densities, and the distributions inside wrappers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae.pairs.errors import NoInverseError
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, trace_programs

Site = Any
"""A site of a trace: Pyro's message, a dict."""


Trace = Any


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace that have a density: without subsampling and computed values."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not _is_computed(site)
    }


def _is_computed(site: Site) -> bool:
    """Whether a site only gives a name to a value: `pyro.deterministic`, or what `poutine.reparam` replaced.

    Both are observed Deltas without a density.
    """
    if site["infer"].get("_deterministic", False):
        return True
    return bool(site["is_observed"]) and is_delta(site) and mask_kind(site) is False


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The unobserved sample sites."""
    return {n: s for n, s in sample_sites(trace).items() if not s["is_observed"]}


def observed_sites(trace: Trace) -> dict[str, Site]:
    """The observed sample sites (`pyro.factor` statements among them)."""
    return {n: s for n, s in sample_sites(trace).items() if s["is_observed"]}


def about_obs_mask(model_trace: Trace, name: str) -> str:
    """What a latent is that Pyro has made of `obs_mask`, and how to do without it; empty for any other latent.

    `pyro.sample("x", fn, obs=x, obs_mask=mask)` samples "x_unobserved" beside observing "x_observed".

    Args:
        model_trace: The trace of the model.
        name: The latent site.
    """
    observed = name.removesuffix("_unobserved")
    other = model_trace.nodes.get(f"{observed}_observed")
    if observed == name or other is None or not other["is_observed"]:
        return ""
    return (
        f"obs_mask makes what is missing of '{observed}' a latent of the model, called '{name}'. To leave out "
        f"what is missing, without a latent, write pyro.sample('{observed}', fn.mask(mask), obs=x) in place of "
        "obs_mask=mask, or poutine.mask(mask=mask) around it; to have the latent, sample it in the guide, "
        "inside of poutine.mask(mask=~mask)"
    )


def is_enumerated(site: Site) -> bool:
    """Whether a site is marked for exact enumeration."""
    return site["infer"].get("enumerate") in ("parallel", "sequential")


def unscaled(site: Site) -> Tensor:
    """A site's log density with its mask but without any scale; of the shape of the site's batch.

    Raises:
        NoInverseError: As from `log_prob_of`.
    """
    if "unscaled_log_prob" not in site:
        site["unscaled_log_prob"] = log_prob_of(site)
    masked: Tensor = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    return masked


def log_prob_of(site: Site) -> Tensor:
    """A site's log density, without the masks and scales of handlers.

    Raises:
        NoInverseError: A flow without an inverse does not know the density of this value.
    """
    try:
        found: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except (KeyError, NotImplementedError) as error:
        transforms = _transforms(site["fn"])
        if not transforms:
            raise
        raise NoInverseError(site["name"], transforms) from error
    return found


def _transforms(fn: Any) -> tuple[str, ...]:
    """The names of the transforms that a distribution, or one inside of its wrappers, is made of."""
    found: tuple[str, ...] = ()
    while hasattr(fn, "base_dist"):
        found += tuple(type(transform).__name__ for transform in getattr(fn, "transforms", ()))
        fn = fn.base_dist
    return found


def present(site: Site) -> Tensor:
    """Which numbers of a site its masks leave in, of the shape of its value; those of `fn.mask(...)` too."""
    fn = site["fn"]
    shape = fn.batch_shape + fn.event_shape
    device = site["value"].device
    found = torch.ones(shape, dtype=torch.bool, device=device)

    def leave_out(mask: Any, event_dim: int) -> None:
        nonlocal found
        if mask is not None:
            mask = torch.as_tensor(mask, dtype=torch.bool, device=device)
            found = found & mask.reshape(mask.shape + (1,) * event_dim)

    leave_out(site["mask"], len(fn.event_shape))
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            leave_out(fn._mask, len(fn.event_shape))
        fn = fn.base_dist
    return found


def mask_kind(site: Site) -> bool | None:
    """Whether masks leave in all of a site's numbers or none of them; None if that depends on a tensor."""
    masks, fn = [site["mask"]], site["fn"]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append(fn._mask)
        fn = fn.base_dist
    if any(mask is False for mask in masks):
        return False
    return None if any(isinstance(mask, Tensor) for mask in masks) else True


def first_bad_site(traces: list[tuple[Any, Any]]) -> tuple[str, str] | None:
    """The first site, in the order of execution, whose value or density is not finite.

    Data come first, because they exist before anything runs.

    Returns:
        The site's name and a description of the problem, or None if all is finite.
    """
    for model_trace, guide_trace in traces:
        for name, site in observed_sites(model_trace).items():
            if not _is_finite(site["value"]):
                return name, f"'{name}' in the model: its observed data are NaN or infinite"
        for role, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in sample_sites(trace).items():
                if not _is_finite(site["value"]):
                    return name, f"'{name}' in the {role}: a value drawn from it is NaN or infinite"
                if not _is_finite(site.get("unscaled_log_prob")):
                    return name, f"'{name}' in the {role}: its log density is NaN or infinite"
    return None


def _is_finite(value: Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())


def elementwise(fn: Any) -> Any | None:
    """The distribution of each single number of a factorizing `fn`, or None if it does not factorize.

    The batch shape of the returned distribution is `fn.batch_shape + fn.event_shape`.
    """
    shape = fn.batch_shape + fn.event_shape
    while isinstance(fn, (torch.distributions.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    if fn.event_shape or isinstance(fn, dist.Delta):
        return None
    return fn.expand(shape) if fn.batch_shape != shape else fn


def given_earlier(site: Site) -> Any:
    """The distribution of a site's values, each given those before it, as independent values.

    Of an `Ancestral`, whose values depend on those before them, these are its conditionals at the values that
    the site has: their log-probabilities add up to that of the site. Others are as they are.
    """
    fn = site["fn"]
    return fn.conditionals(site["value"]) if hasattr(fn, "conditionals") else fn


def trace_pair(pair: Pair, batch: Batch) -> tuple[Trace, Trace]:
    """Runs the guide, then the model with the guide's latents: `(model_trace, guide_trace)`."""
    return trace_programs(pair.model, pair.guide, batch)


def density_sites(guide_trace: Trace) -> dict[str, Site]:
    """The sites of a guide whose log densities may add up to log q(z | x).

    They are its draws, and a `pyro.factor` beside draws and Deltas of which one has no `log_density`: it may be
    a change of variables written by hand, which `density_factors` finds out. What a guide observes, and any
    other factor, belongs to Pyro's loss, but is no density of latents.
    """
    drawn, possible = latent_sites(guide_trace), possible_density_sites(guide_trace)
    if len(possible) > len(drawn) and all(
        has_log_density(site) for site in drawn.values() if is_delta(site)
    ):
        return drawn
    return possible


def possible_density_sites(guide_trace: Trace) -> dict[str, Site]:
    """As `density_sites`, for any `log_density`."""
    drawn = latent_sites(guide_trace)
    by_hand = 0 < sum(is_delta(site) for site in drawn.values()) < len(drawn)
    return {
        name: site
        for name, site in sample_sites(guide_trace).items()
        if name in drawn or (by_hand and is_factor(site))
    }


def is_delta(site: Site) -> bool:
    """Whether a site is a point: a `Delta`, maybe inside of wrappers."""
    return isinstance(innermost(site["fn"]), dist.Delta)


def is_improper(site: Site) -> bool:
    """Whether a site has an improper density, which does not integrate to 1, as Pyro's `ImproperUniform`."""
    return isinstance(innermost(site["fn"]), dist.ImproperUniform)


def has_log_density(site: Site) -> bool:
    """Whether a site is a `Delta` with a `log_density` other than 0."""
    return is_delta(site) and bool((innermost(site["fn"]).log_density != 0).any())


def is_factor(site: Site) -> bool:
    """Whether a site is a `pyro.factor`."""
    return isinstance(innermost(site["fn"]), dist.Unit)


def is_weighted(site: Site) -> bool:
    """Whether a site has another scale than that of the plates around it: a `poutine.scale`.

    A scale that is a tensor may be another one for other rows, and counts even if it is 1 here. A number that a
    program computes from its rows is seen only where it is not 1.
    """
    if isinstance(site["scale"], Tensor):
        return True
    expected = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size:
            expected *= frame.full_size / frame.size
    scale = torch.as_tensor(site["scale"], dtype=torch.float64)
    return not bool(torch.isclose(scale, torch.tensor(expected, dtype=torch.float64)).all())


def is_discrete(site: Site) -> bool:
    """Whether a site has probabilities, not densities."""
    try:
        return bool(site["fn"].support.is_discrete)
    except (NotImplementedError, AttributeError, ValueError):
        return bool(site["fn"].has_enumerate_support)


def free_numbers(fn: Any, value: Tensor) -> int:
    """How many of a value's numbers are free in the support of a distribution.

    Example:
        >>> free_numbers(dist.Dirichlet(torch.ones(3)), torch.ones(10, 3) / 3)
        20
    """
    try:
        return int(biject_to(fn.support).inverse_shape(value.shape).numel())
    except (NotImplementedError, AttributeError, ValueError):
        return value.numel()


def innermost(fn: Any) -> Any:
    """The distribution inside all wrappers (Independent, expanded, masked, transformed)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_certain(site: Site) -> bool:
    """Whether a site's distribution has all of its mass on one value, and says so, as a `PointMass`."""
    return bool(getattr(innermost(site["fn"]), "is_certain", False))


def is_categorical(site: Site) -> bool:
    """Whether a site's values are numbers of categories."""
    return isinstance(innermost(site["fn"]), torch.distributions.Categorical)


def kind_of(fn: Any) -> str:
    """The classes of a distribution, without wrappers that change no value.

    Example:
        >>> kind_of(dist.Normal(torch.zeros(2), 1.0).to_event(1)), kind_of(dist.HalfNormal(1.0))
        ('Normal', 'HalfNormal of Normal')
    """
    classes = []
    while hasattr(fn, "base_dist"):
        if hasattr(fn, "transforms"):
            classes.append(type(fn).__name__)
        fn = fn.base_dist
    return " of ".join([*classes, type(fn).__name__])
