"""The KL of each latent dimension, and the latents whose analytic KL would be wrong."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch
from ppl_vae.pairs.sources import TrackLatents, sources_of
from ppl_vae.pairs.traces import Site, elementwise, given_earlier, latent_sites, trace_pair


def elementwise_kl(guide_site: Site, model_site: Site, analytic: bool = True) -> Tensor | None:
    """KL(q || p) of each single latent number.

    The KL is analytic where torch has a formula. Otherwise, or if `analytic` is false, it is the one-sample
    estimate log q(z) - log p(z). Values that the guide masks have no KL.

    Returns:
        `(*batch, numbers of the event)`, in nats. None if q or p does not factorize, or if p is a separate
        distribution for each value of an enumerated latent.
    """
    single = _of_single_numbers(guide_site, model_site)
    if single is None:
        return None
    q, p = single
    value = guide_site["value"]
    if p.batch_shape != q.batch_shape:  # torch's KL of Bernoullis does not broadcast
        p = p.expand(q.batch_shape)
    try:
        kl = kl_between(q, p) if analytic else q.log_prob(value) - p.log_prob(value)
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


def kl_between(q: Any, p: Any) -> Tensor:
    """KL(q || p), of the batch shape, as torch has it; but of categories from their logits.

    Torch's is infinite where p is so small that it is 0 in the dtype of the numbers, below 1e-45.

    Raises:
        NotImplementedError: There is no formula.

    Example:
        >>> import pyro.distributions as dist
        >>> q, p = dist.Categorical(torch.ones(2)), dist.Categorical(logits=torch.tensor([0.0, -200.0]))
        >>> kl_between(q, p), kl_divergence(q, p)
        (tensor(99.3069), tensor(inf))
    """
    layers = 0
    inner_q, inner_p = q, p
    while isinstance(inner_q, torch.distributions.Independent) and isinstance(
        inner_p, torch.distributions.Independent
    ):
        if inner_q.reinterpreted_batch_ndims != inner_p.reinterpreted_batch_ndims:
            return kl_divergence(q, p)
        layers += inner_q.reinterpreted_batch_ndims
        inner_q, inner_p = inner_q.base_dist, inner_p.base_dist
    categorical = torch.distributions.Categorical
    if not (isinstance(inner_q, categorical) and isinstance(inner_p, categorical)):
        return kl_divergence(q, p)
    probs: Tensor = (
        inner_q.logits.exp()
    )  # torch's softmax of few categories takes ten times as long
    terms = expected_value(probs, inner_q.logits - inner_p.logits, -1)
    return terms.flatten(terms.dim() - layers).sum(-1) if layers else terms


def expected_value(probs: Tensor, log: Tensor, dim: int) -> Tensor:
    """sum_k probs_k log_k, where what is impossible counts nothing: 0 * -inf is 0, with the gradient 0.

    Args:
        probs: Probabilities.
        log: Logarithms, of the same shape.
        dim: The dimension of k.

    Example:
        >>> expected_value(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([-1.0, -3.0, -torch.inf]), 0)
        tensor(-2.)
    """
    return (probs * log.masked_fill(probs == 0, 0.0)).sum(dim)


def factorize(guide_site: Site, model_site: Site) -> bool:
    """Whether q and p factorize over its numbers: then `elementwise_kl` is what each adds to the rate."""
    return _of_single_numbers(guide_site, model_site) is not None


def _of_single_numbers(guide_site: Site, model_site: Site) -> tuple[Any, Any] | None:
    """q and p of each single number."""
    q, p = elementwise(guide_site["fn"]), elementwise(given_earlier(model_site))
    if q is None or p is None or len(p.batch_shape) > len(q.batch_shape):
        return None
    return q, p


def mean_field_violations(pair: Pair, batch: Batch) -> dict[str, set[str]]:
    """Latents whose analytic KL would be wrong, each with the latents that cause it.

    The KL of a latent z_i is E_q[KL(q(z_i | parents) || p(z_i | parents))] as long as z_i's parents in the
    model do not descend from z_i in the guide. Otherwise E_q[log q(z_i | parents) - log p(z_i | parents)], what
    z_i adds to the rate, is no KL at all, and may be negative: bottom up, with q(z_1 | x) q(z_2 | z_1) and
    p(z_2) p(z_1 | z_2), z_1 adds E KL(q(z_1 | z_2, x) || p(z_1 | z_2)) - I_q(z_1; z_2 | x). Dependencies are
    found by tracking the provenance of values, not guessed from the order of the sites.

    Returns:
        A dict from each offending site to its parents in the model that descend from it in the guide.
    """
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        model_trace, guide_trace = trace_pair(pair, batch)
        latents = [n for n in latent_sites(model_trace) if n in guide_trace.nodes]
        if len(latents) < 2:
            return {}
        try:
            with TrackLatents():
                model_trace, guide_trace = trace_pair(pair, batch)
        except Exception:  # code that checks a tensor's type; use the order as the dependence
            return _out_of_order(latents, guide_trace)
    parents = {n: _parents(model_trace.nodes[n]) & set(latents) - {n} for n in latents}
    ancestors: dict[str, set[str]] = {}
    for name, site in latent_sites(guide_trace).items():
        direct = _parents(site) - {name}
        ancestors[name] = direct.union(*(ancestors.get(d, set()) for d in direct))
    found = {n: {p for p in parents[n] if n in ancestors.get(p, set())} for n in latents}
    return {name: guilty for name, guilty in found.items() if guilty}


def _out_of_order(latents: list[str], guide_trace: Any) -> dict[str, set[str]]:
    """Latents that the guide samples before a latent that comes earlier in the model."""
    place = {name: i for i, name in enumerate(guide_trace.nodes)}
    found = {n: {p for p in latents[:i] if place[n] < place[p]} for i, n in enumerate(latents)}
    return {name: guilty for name, guilty in found.items() if guilty}


def _parents(site: dict[str, Any]) -> set[str]:
    return set(sources_of(site["fn"].log_prob(site["value"])))
