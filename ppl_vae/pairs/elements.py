"""A discrete latent of many elements, such as one per pixel, which the likelihood takes one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.pairs.analytic_kl import expected_value, kl_between
from ppl_vae.pairs.densities import sample_rows
from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.finite import SummedRows
from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.layout import (
    Layout,
    LayoutChangedError,
    inner_scale,
    many_samples,
    sum_to_rows,
)
from ppl_vae.pairs.ours import stated_by
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args, num_rows, trace_guide, trace_programs
from ppl_vae.pairs.shared_work import sharing_work
from ppl_vae.pairs.traces import Site, Trace, elementwise, innermost, is_weighted, mask_kind

_TRIALS = 3
"""So many random values are tried."""


@dataclass(frozen=True)
class Elements:
    """A discrete latent of a row, z = (z_1, ..., z_m), of which each element has one of K values.

    Attributes:
        site: Its site.
        values: The K values.
    """

    site: str
    values: Tensor


@dataclass(frozen=True)
class ElementTables:
    """What a batch says about each element, in nats; `*plates` are all plates, with n rows.

    Attributes:
        q: q(z_i = k | x), the marginals, `(K, *plates, *event)`.
        log_likelihood: What log p(x | z) gets from z_i = k, of the same shape: their sum over i is log p(x |
            z).
        log_q: log q(z_i = k | x), of the same shape; None if the elements are not independent under q(z | x).
        log_prior: log p(z_i = k), of the same shape; None if the elements are not independent under p(z).
        kl: KL(q(z | x) || p(z)) of all elements together, `(*plates)`.
        traces: Those of model and guide, with z as each of the K values everywhere.
    """

    q: Tensor
    log_likelihood: Tensor
    log_q: Tensor | None
    log_prior: Tensor | None
    kl: Tensor
    traces: tuple[Trace, Trace]


def stated_elements(pair: Pair, layout: Layout, batch: Batch) -> Elements | None:
    """`elements_of` a model of this library that states what each element adds to its likelihood; else None.

    That a stranger's likelihood takes one element at a time is only tried, which may miss that it does not: so
    nothing is summed by element unasked.
    """
    return elements_of(pair, layout, batch) if states_elements(pair) else None


def states_elements(pair: Pair) -> bool:
    """Whether the model is one of this library that states what each element adds to its likelihood."""
    return stated_by(pair.model, "log_likelihoods") is not None


def missing_values(pair: Pair, q: Any, p: Any) -> str:
    """What is wrong with a guide whose elements have fewer values than those of a model of this library.

    The guide of a stranger's model may leave out values for good.

    Args:
        pair: The pair.
        q: The guide's distribution of the elements.
        p: The model's.

    Returns:
        A sentence; empty if nothing is wrong.
    """
    if not states_elements(pair):
        return ""
    (fewer, _), (count, word) = _number_of_values(q), _number_of_values(p)
    if fewer is None or count is None or fewer >= count:
        return ""
    return (
        f"{type(pair.model).__name__} has {count} {word}, but z of {type(pair.guide).__name__} has "
        f"{fewer} values: build the guide with {word}={count}"
    )


def _number_of_values(fn: Any) -> tuple[int | None, str]:
    """How many values an element has, None if that is not stated; and what our guides call them."""
    base = innermost(fn)
    if isinstance(base, torch.distributions.Categorical):
        return int(base.logits.shape[-1]), "segments"
    for word in ("segments", "states"):
        stated = getattr(base, word, None)
        if isinstance(stated, int):
            return stated, word
    return None, ""


def elements_of(
    pair: Pair, layout: Layout, batch: Batch, most: float = math.inf
) -> Elements | None:
    """The only latent of a pair, if it has several elements, which the likelihood takes one at a time.

    Then E_q log p(x | z) is a sum over elements and values, whatever the joint distribution of the elements is.
    It is for latents that Pyro cannot enumerate: elements in the event of a distribution, `.to_event(2)`, not
    in plates. That log p(x | z) is such a sum is tried row by row, at values that are drawn at random for each
    element, with the parameters as they are and with noise on them: a last layer of zeros hides what a decoder
    does. None if it is not so, or if q has no marginals, or if there is no formula of the KL. Parameters and
    random state are the same afterwards. Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: Rows.
        most: Nothing is tried, and None returned, if all values of all elements of these rows are more.
    """
    others = (*layout.shared, *layout.enumerated, *layout.factors)
    one = len(layout.draws) == 1 and layout.draws == layout.guide_sites == layout.latents
    if not one or others or layout.draws != layout.discrete or not layout.vectorizes:
        return None
    (name,) = layout.draws
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        model_trace, guide_trace = trace_programs(pair.model, pair.guide, batch)
        if name not in guide_trace.nodes:
            return None
        site = guide_trace.nodes[name]
        values = _values(site["fn"])
        if values is None or not site["fn"].event_shape:
            return None
        if len(values) * site["value"].numel() > most:
            return None
        of_model = [model_trace.nodes.get(each) for each in (name, *layout.observed)]
        if not all(each and _plain(each, layout) for each in (site, *of_model)):
            return None
        found = Elements(name, values)
        try:
            tables = element_tables(pair, layout, batch, found)
        except (NotImplementedError, LayoutChangedError, RuntimeError):
            return None
        if tables.q.shape != tables.log_likelihood.shape:
            return None
        if not _adds_up(pair, layout, batch, found, tables):
            return None
        with _noise_on(pair, batch):
            if not _adds_up(pair, layout, batch, found, None):
                return None
    return found


def _adds_up(
    pair: Pair, layout: Layout, batch: Batch, elements: Elements, tables: ElementTables | None
) -> bool:
    """Whether log p(x | z) of each row is the sum of what its elements add, at random values of these."""
    if tables is None:
        tables = element_tables(pair, layout, batch, elements)
    log_p, n = tables.log_likelihood, num_rows(batch)
    count = len(elements.values)
    for _ in range(_TRIALS):
        index = torch.randint(count, log_p.shape[1:], device=log_p.device)
        run = sample_rows(pair, layout, batch, 1, values={elements.site: elements.values[index]})
        chosen = _to_rows(log_p.gather(0, index.unsqueeze(0)).squeeze(0), layout, n)
        finite = chosen.isfinite() & run.log_likelihood.isfinite()
        size = _to_rows(log_p.abs().nan_to_num(0.0, 0.0, 0.0).amax(0), layout, n)
        off = (chosen - run.log_likelihood).abs() > 1e-5 * size + 1e-5
        if bool((off & finite).any()):
            return False
    return True


@contextmanager
def _noise_on(pair: Pair, batch: Batch) -> Iterator[None]:
    """Adds noise to all parameters, and takes it away again."""
    parameters = list(pair.parameters(batch).values())
    before = [p.detach().clone() for p in parameters]
    try:
        for p in parameters:
            p.add_(0.1 * torch.randn_like(p))
        yield
    finally:
        for p, kept in zip(parameters, before, strict=True):
            p.copy_(kept)


def element_tables(pair: Pair, layout: Layout, batch: Batch, elements: Elements) -> ElementTables:
    """Runs the guide once and the model at each value, and takes their densities apart by elements.

    A model that states what each element adds, `log_likelihoods(*batch)`, `(*plates, *event, K)`, is asked
    instead.

    Raises:
        NotImplementedError: A density cannot be taken apart, or there is no formula of the marginals or the KL.
        LayoutChangedError: The programs have other sites on this batch than the layout.
        PairError: The guide has fewer values than a model of this library: see `missing_values`.
    """
    args, name = as_args(batch), elements.site
    of_guide, of_model = _Keep(name, elements.values[0]), _Keep(name)
    with sharing_work():
        guide_trace = trace_guide(of_guide(pair.guide), *args)
        q = of_guide.fn
        if q is None:
            raise LayoutChangedError(f"the guide has no site '{name}' on this batch")
        event, stated = q.event_shape, stated_by(pair.model, "log_likelihoods")
        sizes = [1] * layout.nesting
        sizes[layout.dim] = num_rows(batch)
        count = 1 if stated is not None else len(elements.values)
        value = elements.values[:count].reshape(count, *(1,) * (layout.nesting + len(event)))
        value = value.expand(count, *sizes, *event)
        with many_samples(layout, count):
            model = Substitute({name: value[0] if count == 1 else value})(of_model(pair.model))
            model_trace = poutine.trace(model).get_trace(*args)
        layout.require(model_trace, guide_trace)
        if wrong := missing_values(pair, q, of_model.fn):
            raise PairError(wrong)
        if stated is not None:
            terms = [stated(*args).movedim(-1, 0)]
        else:
            terms = [
                _by_element(model_trace.nodes[x], layout, len(event), 1 + layout.nesting)
                for x in layout.observed
            ]
    log_likelihood = (
        torch.stack(torch.broadcast_tensors(*terms)).sum(0) if len(terms) > 1 else terms[0]
    )
    marginals = marginals_of(q).movedim(-1, 0)
    while marginals.dim() < log_likelihood.dim():
        marginals = marginals.unsqueeze(1)
    return ElementTables(
        marginals,
        log_likelihood,
        _log_probs(q, elements.values, log_likelihood.dim()),
        _log_probs(of_model.fn, elements.values, log_likelihood.dim()),
        kl_between(q, of_model.fn),
        (model_trace, guide_trace),
    )


def summed_elements(
    pair: Pair, layout: Layout, batch: Batch, elements: Elements
) -> SummedRows | None:
    """log p(x), rate and distortion of each row, exactly, by a sum over the values of each element.

    If elements depend on each other under p(z), log p(x) is what a model of this library states. None if it is
    not known. Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: n rows.
        elements: The elements of its latent.
    """
    log_p, rate, distortion = sums_of_elements(pair, layout, batch, elements)
    return None if log_p is None else SummedRows(log_p, rate, distortion)


def sums_of_elements(
    pair: Pair, layout: Layout, batch: Batch, elements: Elements
) -> tuple[Tensor | None, Tensor, Tensor]:
    """log p(x), rate and distortion of each row, `(1, n)` each, as `summed_elements`: None for log p(x) alone.

    Call it inside `pair.scope()`. The arguments are those of `summed_elements`.

    Raises:
        LayoutChangedError: The programs have other sites on this batch than the layout.
    """
    with sharing_work():
        tables = element_tables(pair, layout, batch, elements)
        log_p = evidence_of_elements(pair, layout, batch, tables)
    return log_p, *_of_tables(tables, layout, batch)


def elbo_of_elements(
    pair: Pair, layout: Layout, batch: Batch, elements: Elements
) -> tuple[Tensor, Tensor]:
    """Rate and distortion of each row, `(1, n)` each, exactly: also where log p(x) is not known.

    Call it inside `pair.scope()`. The arguments are those of `summed_elements`.

    Raises:
        LayoutChangedError: The programs have other sites on this batch than the layout.
    """
    return _of_tables(element_tables(pair, layout, batch, elements), layout, batch)


def _of_tables(tables: ElementTables, layout: Layout, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rate and distortion of each row, `(1, n)` each."""
    n = num_rows(batch)
    distortion = -_to_rows(expected_value(tables.q, tables.log_likelihood, 0), layout, n)
    return sum_to_rows(tables.kl, layout, 1, n), distortion


def evidence_of_elements(
    pair: Pair, layout: Layout, batch: Batch, tables: ElementTables
) -> Tensor | None:
    """log p(x) of each row, `(1, n)`; None if it is not known. Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: n rows.
        tables: From `element_tables`.
    """
    n = num_rows(batch)
    if tables.log_prior is not None:
        return _to_rows((tables.log_prior + tables.log_likelihood).logsumexp(0), layout, n)
    stated = stated_by(pair.model, "log_evidence")
    if stated is None:
        return None
    try:
        found: Tensor = stated(*as_args(batch))
    except ValueError:  # of pictures that are too wide
        return None
    return found.expand(1, n)


def _to_rows(terms: Tensor, layout: Layout, n: int) -> Tensor:
    """Sums over elements and inner plates, `(1, n)`, from `(*plates, *event)`."""
    event = terms.dim() - layout.nesting
    return sum_to_rows(terms.flatten(-event).sum(-1) if event else terms, layout, 1, n)


def _log_probs(of: Any, values: Tensor, dims: int) -> Tensor | None:
    """The log probability of each value, a tensor of `dims` dimensions, the first for the values."""
    single = elementwise(of)
    if single is None:
        return None
    batch = len(single.batch_shape)
    found: Tensor = single.log_prob(values.reshape(-1, *(1,) * batch))
    while found.dim() < dims:
        found = found.unsqueeze(1)
    return found


def marginals_of(q: Any) -> Tensor:
    """q(z_i = k) of each element of a discrete distribution, `(*batch, *event, K)`.

    Raises:
        NotImplementedError: Its elements are not independent, and it does not state them as `marginals`.

    Example:
        >>> import pyro.distributions as dist
        >>> marginals_of(dist.Bernoulli(torch.tensor([0.25, 0.5])).to_event(1))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    base = q
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    stated = getattr(base, "marginals", None)
    if isinstance(stated, Tensor):
        return stated
    if isinstance(base, torch.distributions.Categorical):
        return (
            base.logits.exp()
        )  # they are normalized; torch's softmax of few categories takes ten times as long
    if base.event_shape or not base.has_enumerate_support:
        raise NotImplementedError(f"{type(base).__name__} states no marginals")
    found: Tensor = base.log_prob(base.enumerate_support(expand=True)).exp().movedim(0, -1)
    return found


def _values(fn: Any) -> Tensor | None:
    """The values of an element, `(K,)`."""
    base = innermost(fn)
    if isinstance(getattr(base, "marginals", None), Tensor):
        return torch.arange(base.marginals.shape[-1], device=base.marginals.device)
    if base.event_shape or not base.has_enumerate_support:
        return None
    found: Tensor = base.enumerate_support(expand=False).flatten()
    return found


def _plain(site: Site, layout: Layout) -> bool:
    return mask_kind(site) is True and inner_scale(site, layout) == 1.0 and not is_weighted(site)


def _by_element(site: Site, layout: Layout, event_dim: int, plates: int) -> Tensor:
    """What each element of the latent's `event_dim` dimensions adds to a site's log density.

    Returns:
        A tensor of `plates + event_dim` dimensions.
    """
    if not _plain(site, layout):
        raise NotImplementedError(f"site '{site['name']}' is masked or subsampled")
    fn = base = site["fn"]
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    inner = len(base.batch_shape) - len(fn.batch_shape)
    if inner < event_dim:
        raise NotImplementedError(
            f"the density of site '{site['name']}' is that of all elements together"
        )
    log_p: Tensor = base.log_prob(site["value"])
    if inner > event_dim:
        log_p = log_p.flatten(log_p.dim() - (inner - event_dim)).sum(-1)
    while log_p.dim() < plates + event_dim:
        log_p = log_p.unsqueeze(0)
    return log_p


class _Keep(Messenger):
    """Keeps a site's distribution as the program has made it, before a plate over values expands it.

    Args:
        name: The site.
        value: The value of each element, where none is to be drawn.
    """

    def __init__(self, name: str, value: Tensor | None = None) -> None:
        super().__init__()
        self.name, self.value = name, value
        self.fn: Any = None

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] == self.name:
            self.fn = fn = msg["fn"]
            if self.value is not None:
                msg["value"] = self.value.expand(fn.shape())
                msg["done"] = True
