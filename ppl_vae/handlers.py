"""Effect handlers, and what can be read off a trace.

The engine asks of a pair's programs that they let their KL be scaled (:class:`ScaleLatents`) and their latents
be given (:class:`Substitute`); the functions here say what the sites of a trace are and what they
contribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.pairs import Batch, Pair, Program, as_args

Site = Any
"""A site of a trace: Pyro's message, a dict."""
Trace = Any


class PairError(ValueError):
    """A model/guide pair that can not be used as asked; the message names the site and the remedy."""


class ScaleLatents(Messenger):
    """Multiplies the log density of every latent site by ``scale``: the KL's weight beta.

    It has to be applied to model *and* guide, so that log p(z) and log q(z | x), or their analytic KL, are
    scaled alike. Unlike ``poutine.scale`` it leaves observed sites alone and allows a scale of zero.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro.poutine as poutine
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> trace = poutine.trace(ScaleLatents(4.0)(model)).get_trace()
        >>> trace.nodes["z"]["scale"], trace.nodes["x"]["scale"]
        (4.0, 1.0)
    """

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.scale


class Substitute(Messenger):
    """Gives latent sites the values that it is told, and lets everything else run."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


# -- the parts of a trace --------------------------------------------------------------------------------


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace that carry a density: no subsampling, no ``pyro.deterministic``."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
    }


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The unobserved sample sites."""
    return {n: s for n, s in sample_sites(trace).items() if not s["is_observed"]}


def observed_sites(trace: Trace) -> dict[str, Site]:
    """The observed sample sites (``pyro.factor`` statements among them)."""
    return {n: s for n, s in sample_sites(trace).items() if s["is_observed"]}


def is_enumerated(site: Site) -> bool:
    """Whether a site is marked for exact enumeration."""
    return site["infer"].get("enumerate") in ("parallel", "sequential")


def unscaled(site: Site) -> Tensor:
    """A site's log density with its mask, without any scale: shape of the site's batch."""
    if "unscaled_log_prob" not in site:
        site["unscaled_log_prob"] = site["fn"].log_prob(
            site["value"], *site["args"], **site["kwargs"]
        )
    masked: Tensor = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    return masked


def first_bad_site(traces: list[tuple[Any, Any]]) -> tuple[str, str] | None:
    """The first site, in the order of execution, whose value or density is not finite: name and words.

    Data come first: they are there before anything runs.
    """
    for model_trace, guide_trace in traces:
        for name, site in observed_sites(model_trace).items():
            if not _is_finite(site["value"]):
                return name, f"'{name}' in the model: the data observed at it are NaN or infinite"
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
    """The distribution of each single number of a factorising ``fn``, or None if it does not factorise.

    The batch shape of what is returned is ``fn.batch_shape + fn.event_shape``.
    """
    shape = fn.batch_shape + fn.event_shape
    while isinstance(fn, (torch.distributions.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    if fn.event_shape or isinstance(fn, dist.Delta):
        return None
    return fn.expand(shape) if fn.batch_shape != shape else fn


def elementwise_kl(guide_site: Site, model_site: Site, analytic: bool = True) -> Tensor | None:
    """KL(q || p) of each single latent number, or None if one of the two does not factorise (or if p is
    one for each value of an enumerated latent).

    Analytic where torch knows it, otherwise (or if ``analytic`` is false) the one-sample estimate
    log q(z) - log p(z). What the guide masks has no KL.

    Returns:
        ``(*batch, numbers of the event)``, in nats.
    """
    q, p = elementwise(guide_site["fn"]), elementwise(model_site["fn"])
    if q is None or p is None or len(p.batch_shape) > len(q.batch_shape):
        return None
    value = guide_site["value"]
    if p.batch_shape != q.batch_shape:  # torch's KL of Bernoullis does not broadcast
        p = p.expand(q.batch_shape)
    try:
        kl = kl_divergence(q, p) if analytic else q.log_prob(value) - p.log_prob(value)
    except NotImplementedError:
        kl = q.log_prob(value) - p.log_prob(value)
    kl = kl.expand(q.batch_shape)
    event_dim = len(guide_site["fn"].event_shape)
    kl = kl.flatten(kl.dim() - event_dim) if event_dim else kl.unsqueeze(-1)
    mask = guide_site["mask"]
    masked: Tensor = scale_and_mask(
        kl, mask=mask.unsqueeze(-1) if isinstance(mask, Tensor) else mask
    )
    return masked


def trace_pair(
    pair: Pair, batch: Batch, wrap: Callable[[Program], Program] = lambda program: program
) -> tuple[Trace, Trace]:
    """Runs the guide, then the model with the guide's latents: ``(model_trace, guide_trace)``."""
    args = as_args(batch)
    guide_trace = poutine.trace(wrap(pair.guide)).get_trace(*args)
    model = poutine.replay(pair.model, trace=guide_trace)
    return poutine.trace(wrap(model)).get_trace(*args), guide_trace


def innermost(fn: Any) -> Any:
    """The distribution inside of all wrappers (Independent, expanded, masked, transformed)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
