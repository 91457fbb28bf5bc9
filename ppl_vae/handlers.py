"""Effect handlers, and per-row log densities of any pair under many samples.

The engine asks two things of a pair's programs beyond running them: to scale the KL (:class:`ScaleLatents`)
and to say what each *row* contributes to log p(z), log p(x | z) and log q(z | x) under many samples at once
(:func:`sample_rows`). A :class:`Layout`, found once by :func:`survey`, says which plate holds the rows and
which sites are what.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.inspect import TrackProvenance
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.provenance import get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.pairs import Batch, Pair, Program, as_args, num_rows, take_rows

Site = Any
"""A site of a trace: Pyro's message, a dict."""
Trace = Any

_SAMPLES_PLATE = "_ppl_vae_samples"


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


# -- where the rows are ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which plate of a pair holds the rows, and what its sites are.

    Attributes:
        plate: Name of the plate over rows.
        dim: The plate's dimension, counted from the right (negative).
        latents: The model's latent sites inside of that plate, which the guide samples.
        shared: Latent sites outside of it: they belong to all rows.
        enumerated: Latent sites that the model sums out exactly (the guide does not sample them).
        guide_sites: The guide's sites inside of the plate, whose log densities make up log q(z | x).
        draws: Those of them that are random: no Delta sites, but auxiliary ones.
        observed: Observed sites.
        nesting: The number of dimensions that plates take up.
        vectorizes: Whether one run can hold many samples, or they have to be looped over.
    """

    plate: str
    dim: int
    latents: tuple[str, ...]
    shared: tuple[str, ...]
    enumerated: tuple[str, ...]
    guide_sites: tuple[str, ...]
    draws: tuple[str, ...]
    observed: tuple[str, ...]
    nesting: int
    vectorizes: bool


def trace_pair(
    pair: Pair, batch: Batch, wrap: Callable[[Program], Program] = lambda program: program
) -> tuple[Trace, Trace]:
    """Runs the guide, then the model with the guide's latents: ``(model_trace, guide_trace)``."""
    args = as_args(batch)
    guide_trace = poutine.trace(wrap(pair.guide)).get_trace(*args)
    model = poutine.replay(pair.model, trace=guide_trace)
    return poutine.trace(wrap(model)).get_trace(*args), guide_trace


def rows_frame(sites: Mapping[str, Site], n: int) -> Any:
    """The outermost plate of size ``n`` that holds every one of the given observed sites.

    Raises:
        PairError: There is none; the message says which plates there are.
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
        f'put the latents and the data of each row inside `with pyro.plate("data", x.shape[0]):`'
    )


def _plates_around(sites: Mapping[str, Site], n: int) -> dict[str, Any]:
    """The plates of size ``n`` that hold every one of the given sites."""
    common: dict[str, Any] | None = None
    for site in sites.values():
        frames = {f.name: f for f in site["cond_indep_stack"] if f.vectorized and f.size == n}
        common = frames if common is None else {k: f for k, f in common.items() if k in frames}
    return common or {}


def _find_rows(pair: Pair, batch: Batch, sites: Mapping[str, Site]) -> Any:
    """:func:`rows_frame`; of several plates with as many entries as rows, the one that follows their number."""
    n = num_rows(batch)
    found = rows_frame(sites, n)
    if n == 1 or len(_plates_around(sites, n)) == 1 or pair.keeps_rows:
        return found
    try:
        fewer, _ = trace_pair(pair, take_rows(batch, slice(0, n - 1)))
        name = rows_frame(observed_sites(fewer), n - 1).name
    except Exception:  # a pair that runs on these rows alone
        return found
    return _plates_around(sites, n).get(name, found)


def survey(pair: Pair, batch: Batch) -> Layout:
    """Finds the layout of a pair by running it on a batch; leaves the random state as it was.

    Call it inside of ``pair.scope()``.

    Raises:
        PairError: No plate over rows, latents of different rows that are drawn jointly, or a latent that
            neither the guide samples nor the model enumerates.
    """
    with torch.random.fork_rng(), torch.no_grad(), pair.mode(training=False):
        model_trace, guide_trace = trace_pair(pair, batch)
        observed = observed_sites(model_trace)
        frame = _find_rows(pair, batch, observed)
        in_plate = {
            name
            for trace in (model_trace, guide_trace)
            for name, site in sample_sites(trace).items()
            if any(f.name == frame.name for f in site["cond_indep_stack"])
        }
        latents = latent_sites(model_trace)
        for name, site in latents.items():
            if name not in guide_trace.nodes:
                _require_enumerable(name, site, frame.name)
        draws = {
            n: s
            for n, s in latent_sites(guide_trace).items()
            if not isinstance(_innermost(s["fn"]), dist.Delta)
        }
        own = tuple(n for n in latents if n in in_plate and n in guide_trace.nodes)
        joint = _drawn_jointly(pair, batch, set(own), {n for n in draws if n not in in_plate})
        if joint:
            raise PairError(
                f"the guide draws the latents of all rows jointly at site '{joint}', outside of plate "
                f"'{frame.name}': no density of a single row can be told apart. Use a guide that samples "
                "inside of the plate (AutoNormal instead of AutoMultivariateNormal, or an amortised guide)"
            )
        dims = [
            f.dim
            for trace in (model_trace, guide_trace)
            for site in sample_sites(trace).values()
            for f in site["cond_indep_stack"]
            if f.vectorized
        ]
        layout = Layout(
            plate=frame.name,
            dim=frame.dim,
            latents=own,
            shared=tuple(n for n in latents if n not in in_plate and n in guide_trace.nodes),
            enumerated=tuple(n for n in latents if n not in guide_trace.nodes),
            guide_sites=tuple(n for n in sample_sites(guide_trace) if n in in_plate),
            draws=tuple(n for n in draws if n in in_plate),
            observed=tuple(observed),
            nesting=-min(dims),
            vectorizes=True,
        )
        if not _vectorizes(pair, layout, batch):
            layout = Layout(**{**layout.__dict__, "vectorizes": False})
    return layout


def _require_enumerable(name: str, site: Site, plate: str) -> None:
    """A latent that the guide leaves out has to be one that the model can sum out, row by row."""
    if site["infer"].get("enumerate") != "parallel":
        raise PairError(
            f"the model's latent site '{name}' is not sampled by the guide: give the site the same name in "
            'both, or mark it for enumeration with infer={"enumerate": "parallel"}'
        )
    if not any(f.name == plate for f in site["cond_indep_stack"]):
        raise PairError(
            f"the model's latent site '{name}' is to be summed out, but is outside of plate '{plate}': rows "
            "that share it have no densities of their own; sample it in the guide"
        )


def _drawn_jointly(pair: Pair, batch: Batch, own: set[str], outside: set[str]) -> str | None:
    """A draw outside of the plate over rows that latents of rows are mere functions of, if there is one."""
    if not outside or not own:
        return None
    with TrackProvenance(), pyro.validation_enabled(False):
        trace = poutine.trace(pair.guide).get_trace(*as_args(batch))
    for name in own:
        site = trace.nodes[name]
        if isinstance(_innermost(site["fn"]), dist.Delta):
            sources = get_provenance(site["value"]) & outside
            if sources:
                return str(min(sources))
    return None


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _vectorizes(pair: Pair, layout: Layout, batch: Batch) -> bool:
    """Tries two samples at once against one at a time: the same latents must get the same densities."""
    small = batch if pair.keeps_rows else take_rows(batch, slice(0, 8))
    try:
        both = sample_rows(pair, layout, small, 2)
        for k in range(2):
            values = {
                name: _one_sample(site, layout, k)
                for name, site in latent_sites(both.guide_trace).items()
                if not isinstance(_innermost(site["fn"]), dist.Delta)
            }
            single = sample_rows(pair, layout, small, 1, values=values)
            for name in ("log_prior", "log_likelihood", "log_guide"):
                one, two = getattr(single, name)[0], getattr(both, name)[k]
                if not torch.allclose(one, two, rtol=1e-3, atol=1e-3, equal_nan=True):
                    return False
    except Exception:  # whatever a program raises that was not written for an extra dimension
        return False
    return True


def _one_sample(site: Site, layout: Layout, k: int) -> Tensor:
    """Sample ``k`` of a site drawn in :func:`many_samples`, shaped as without."""
    value: Tensor = site["value"][k]
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != _SAMPLES_PLATE]
    batch_dim = max((-f.dim for f in frames), default=0)
    return value.reshape(value.shape[layout.nesting - batch_dim :])


# -- densities of rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowDensities:
    """What K samples from q(z | x) say of each of n rows; all log densities in nats, shape ``(K, n)``.

    Attributes:
        latents: The model's latent values by site, ``(K, n, *event)``.
        draws: The guide's random values by site, likewise (auxiliary variables included).
        log_prior: log p(z).
        log_likelihood: log p(x | z), with sites that the model enumerates summed out.
        log_guide: log q(z | x).
        guide_trace: The trace of the guide, for its distributions.
        model_trace: The trace of the model.
    """

    latents: dict[str, Tensor]
    draws: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    guide_trace: Trace
    model_trace: Trace

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x): the importance weights, ``(K, n)``."""
        return self.log_likelihood + self.log_prior - self.log_guide


def sample_rows(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    num_samples: int,
    values: Mapping[str, Tensor] | None = None,
) -> RowDensities:
    """Draws ``num_samples`` latents a row from the guide and scores them, row by row.

    Neither ``poutine.scale`` nor the weight of a subsampled plate enters: importance weights are
    those of single rows. Call it inside of ``pair.scope()``.

    Args:
        pair: The pair.
        layout: What :func:`survey` found.
        batch: n rows.
        num_samples: K. Where the pair does not vectorise, the samples are drawn one after the other.
        values: Values for the guide's random sites to score instead of drawing them.
    """
    if num_samples > 1 and not layout.vectorizes:
        parts = [
            sample_rows(
                pair,
                layout,
                batch,
                1,
                None if values is None else {n: v[k] for n, v in values.items()},
            )
            for k in range(num_samples)
        ]
        return _stack(parts)
    guide, model = pair.guide, pair.model
    if values is not None:
        guide = Substitute(values)(guide)
    args = as_args(batch)
    with many_samples(layout, num_samples):
        guide_trace = poutine.trace(guide).get_trace(*args)
        if layout.enumerated:
            model = poutine.infer_config(model, lambda site: _enumerate_only(layout, site))
            model = poutine.enum(model, first_available_dim=-layout.nesting - 2)
        model = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(model).get_trace(*args)
    n = num_rows(batch)

    def total(trace: Trace, names: tuple[str, ...]) -> Tensor:
        rows = [sum_to_rows(unscaled(trace.nodes[name]), layout, num_samples, n) for name in names]
        return torch.stack(rows).sum(0) if rows else args[0].new_zeros((num_samples, n))

    if layout.enumerated:
        log_likelihood, log_prior = _summed_out(layout, model_trace, num_samples, n)
    else:
        log_likelihood = total(model_trace, layout.observed)
        log_prior = total(model_trace, layout.latents)
    return RowDensities(
        latents={
            name: rows_first(model_trace.nodes[name], layout, num_samples, n)
            for name in layout.latents
        },
        draws={
            name: rows_first(guide_trace.nodes[name], layout, num_samples, n)
            for name in layout.draws
        },
        log_prior=log_prior,
        log_likelihood=log_likelihood,
        log_guide=total(guide_trace, layout.guide_sites),
        guide_trace=guide_trace,
        model_trace=model_trace,
    )


@contextlib.contextmanager
def many_samples(layout: Layout, num_samples: int) -> Iterator[None]:
    """A plate of ``num_samples`` to the left of all plates of the pair (nothing for a single sample)."""
    if num_samples == 1:
        yield
    else:
        with pyro.plate(_SAMPLES_PLATE, num_samples, dim=-layout.nesting - 1):
            yield


def sum_to_rows(log_prob: Tensor, layout: Layout, num_samples: int, n: int) -> Tensor:
    """Sums a site's log density over all dimensions but samples and rows: ``(num_samples, n)``."""
    samples_dim = -layout.nesting - 1
    while log_prob.dim() < layout.nesting + 1:
        log_prob = log_prob.unsqueeze(0)
    keep = {log_prob.dim() + samples_dim, log_prob.dim() + layout.dim}
    others = [d for d in range(log_prob.dim()) if d not in keep]
    if others:
        log_prob = log_prob.sum(others)
    return log_prob.expand(num_samples, n)


def rows_first(site: Site, layout: Layout, num_samples: int, n: int) -> Tensor:
    """A site's value as ``(num_samples, n, *inner plates, *event)``."""
    value: Tensor = site["value"]
    event_dim = len(site["fn"].event_shape)
    while value.dim() < layout.nesting + 1 + event_dim:
        value = value.unsqueeze(0)
    batch_dim = value.dim() - event_dim
    value = value.movedim((batch_dim - layout.nesting - 1, batch_dim + layout.dim), (0, 1))
    shape = value.shape[2:]
    value = value.expand(num_samples, n, *shape)
    ones = [d for d in range(2, value.dim() - event_dim) if value.shape[d] == 1]
    return value.squeeze(ones) if ones else value


def _enumerate_only(layout: Layout, site: Site) -> Any:
    """Sites that the guide has drawn are not enumerated, whatever the model says of them."""
    return {} if site["name"] in layout.enumerated else {"enumerate": None}


def _summed_out(layout: Layout, trace: Trace, num_samples: int, n: int) -> tuple[Tensor, Tensor]:
    """(log p(x | z), log p(z)) where the model's enumerated sites are summed out of p(x, z) and of p(z)."""
    trace.compute_log_prob()
    trace.pack_tensors()
    log_joint = _contracted(
        layout, trace, (*layout.observed, *layout.latents, *layout.enumerated), num_samples, n
    )
    log_prior = _contracted(layout, trace, (*layout.latents, *layout.enumerated), num_samples, n)
    return log_joint - log_prior, log_prior


def _contracted(
    layout: Layout, trace: Trace, names: tuple[str, ...], num_samples: int, n: int
) -> Tensor:
    """The log density of the named sites, the model's enumerated ones summed out: ``(num_samples, n)``."""
    plates = set(trace.plate_to_symbol.values())
    terms: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for name in (n for n in trace.nodes if n in names):
        site = trace.nodes[name]
        term = packed.scale_and_mask(
            site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"]
        )
        frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in frames)
        terms.setdefault(ordinal, []).append(term)
    sum_dims = {d for ts in terms.values() for t in ts for d in t._pyro_dims} - plates
    contracted = contract_tensor_tree(terms, sum_dims)
    dense = [packed.unpack(t, trace.symbol_to_dim) for ts in contracted.values() for t in ts]
    return torch.stack([sum_to_rows(t, layout, num_samples, n) for t in dense]).sum(0)


def _stack(parts: list[RowDensities]) -> RowDensities:
    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return RowDensities(
        latents={k: torch.cat([p.latents[k] for p in parts]) for k in parts[0].latents},
        draws={k: torch.cat([p.draws[k] for p in parts]) for k in parts[0].draws},
        log_prior=join("log_prior"),
        log_likelihood=join("log_likelihood"),
        log_guide=join("log_guide"),
        guide_trace=parts[-1].guide_trace,
        model_trace=parts[-1].model_trace,
    )


def posterior_means(rows: RowDensities, layout: Layout) -> Tensor:
    """E_q[z | x] of every latent number of each row, ``(n, dimensions)``.

    The average over the samples of the conditional means that the guide's distributions state, or of the
    samples themselves where a distribution states none.
    """
    columns: list[Tensor] = []
    for name in layout.latents:
        value = rows.latents[name]
        mean = stated_moment(rows, layout, name, "mean")
        average = (value if mean is None else mean).double().mean(0)
        columns.append(average.reshape(len(average), -1))
    if not columns:
        return rows.log_guide.new_zeros((rows.log_guide.shape[1], 0))
    return torch.cat(columns, 1)


def stated_moment(rows: RowDensities, layout: Layout, name: str, moment: str) -> Tensor | None:
    """The mean or variance that the guide's distribution at a site states, ``(samples, n, *event)``."""
    site = rows.guide_trace.nodes[name]
    if isinstance(_innermost(site["fn"]), dist.Delta) or site["fn"].has_enumerate_support:
        return None
    try:
        value = getattr(site["fn"], moment)
    except (NotImplementedError, AttributeError):
        return None
    if value.shape != site["fn"].batch_shape + site["fn"].event_shape:
        return None
    samples, n = rows.log_guide.shape
    # A trace of looped samples is that of the last one alone: its moments stand for all of them only if
    # they do not depend on other latents, which is not known here.
    if not layout.vectorizes and samples > 1 and len(layout.draws) > 1:
        return None
    return rows_first({**site, "value": value}, layout, samples, n)
