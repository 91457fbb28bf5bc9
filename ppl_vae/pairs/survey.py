"""Finding the layout of a pair by running it: the plate that holds the rows, and the roles of the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.pairs.densities import RowDensities, sample_rows
from ppl_vae.pairs.errors import NoInverseError, PairError
from ppl_vae.pairs.jacobians import density_factors
from ppl_vae.pairs.layout import (
    SAMPLES_PLATE,
    Layout,
    LayoutChangedError,
    Signature,
    signature_of,
)
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args, num_rows, take_rows, trace_programs
from ppl_vae.pairs.row_parameters import parameters_by_row
from ppl_vae.pairs.row_plate import find_rows, sites_of_rows
from ppl_vae.pairs.sources import sharing_draws, sources_of, trace_tracked
from ppl_vae.pairs.subsampling import Trial
from ppl_vae.pairs.supports import may_leave_support
from ppl_vae.pairs.traces import (
    Site,
    Trace,
    about_obs_mask,
    free_numbers,
    innermost,
    is_discrete,
    is_improper,
    latent_sites,
    sample_sites,
    trace_pair,
)


def find_layout(pair: Pair, batch: Batch, traces: tuple[Trace, Trace] | None = None) -> Layout:
    """Finds the layout of a pair by running it on a batch; the random state does not change.

    Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        batch: The rows to run it on.
        traces: The traces of model and guide on these rows, from an earlier run with other random numbers.

    Raises:
        PairError: There is no plate over rows, latents of different rows are drawn jointly, or a latent is
            neither sampled by the guide nor enumerated by the model; or sites come and go by chance.
    """
    with torch.random.fork_rng(), torch.no_grad(), pair.mode(training=False):
        model_trace, guide_trace = traces or trace_pair(pair, batch)
        trial = _run_again(pair, batch, signature_of(model_trace, guide_trace))
        model = pair.subsampling.tried(pair.model, {})  # on one row fewer, whatever rows it needs
        observed = sites_of_rows(model, batch, model_trace)
        frame = find_rows(model, batch, model_trace)
        # Indices of the rows that select from something longer, such as parameters for each of all rows.
        longer = set() if trial is None else trial.uses.get(frame.name, set()) - {0, trial.rows}
        if longer and pair.selects_rows:
            raise PairError(
                f"the indices of plate '{frame.name}' select from {max(longer)} rows, such as parameters for "
                f"each of them, but {frame.size} rows are given in all: give those that the pair was trained "
                "on, or use a guide that computes q(z | x) from x"
            )
        if longer:
            pair.keeps_rows = pair.selects_rows = True
        pair.by_row |= parameters_by_row(pair, batch, (model_trace, guide_trace))
        pair.keeps_rows = pair.keeps_rows or bool(pair.by_row)
        in_plate = {
            name
            for trace in (model_trace, guide_trace)
            for name, site in sample_sites(trace).items()
            if any(f.name == frame.name for f in site["cond_indep_stack"])
        }
        latents = latent_sites(model_trace)
        for name in latents:
            if name not in guide_trace.nodes:
                _require_enumerable(name, model_trace, frame.name)
        draws = {
            n: s
            for n, s in latent_sites(guide_trace).items()
            if not isinstance(innermost(s["fn"]), dist.Delta)
        }
        own = tuple(n for n in latents if n in in_plate and n in guide_trace.nodes)
        outside = {n for n in draws if n not in in_plate}
        joint = _drawn_jointly(pair, batch, set(own), outside, bool(draws.keys() - outside))
        if joint:
            raise PairError(
                f"the guide draws the latents of all rows jointly at site '{joint}', outside of plate "
                f"'{frame.name}': single rows have no separate densities. Use a guide that samples inside "
                "the plate (AutoNormal instead of AutoMultivariateNormal, or an amortized guide)"
            )
        dims = [
            f.dim
            for trace in (model_trace, guide_trace)
            for site in sample_sites(trace).values()
            for f in site["cond_indep_stack"]
            if f.vectorized
        ]
        factors = density_factors(pair, batch, model_trace, guide_trace)
        in_density = [
            n for n, s in sample_sites(guide_trace).items() if not s["is_observed"] or n in factors
        ]
        layout = Layout(
            plate=frame.name,
            dim=frame.dim,
            latents=own,
            shared=tuple(n for n in latents if n not in in_plate and n in guide_trace.nodes),
            enumerated=tuple(n for n in latents if n not in guide_trace.nodes),
            guide_sites=tuple(n for n in in_density if n in in_plate),
            draws=tuple(n for n in draws if n in in_plate),
            points=_points(pair, batch, model_trace, guide_trace),
            observed=tuple(observed),
            nesting=-min(dims),
            vectorizes=True,
            discrete=tuple(n for n in draws if n in in_plate and is_discrete(guide_trace.nodes[n])),
            factors=factors,
            unsure=may_leave_support(model_trace, guide_trace),
            improper=tuple(n for n, site in latents.items() if is_improper(site)),
            signature=signature_of(model_trace, guide_trace),
        )
        return replace(layout, vectorizes=_vectorizes(pair, layout, batch))


def _run_again(pair: Pair, batch: Batch, before: Signature) -> Trial | None:
    """Runs the pair again on the same rows: what the indices of its plates select from.

    None if a program does not run with indices that tell.

    Raises:
        PairError: The programs have other sites in this run.
    """
    trials: dict[int, Trial] = {}
    model, guide = (pair.subsampling.tried(p, trials) for p in (pair.model, pair.guide))
    try:
        traces = trace_programs(model, guide, batch)
    except Exception:
        trials, traces = {}, trace_pair(pair, batch)
    again = signature_of(*traces)
    if again != before:
        differ = sorted({str(site[1]) for site in set(before) ^ set(again)})
        raise PairError(
            f"the programs have other sites each time they run on the same rows (such as '{differ[0]}'): give "
            "the sites names that do not depend on chance, such as the index of a random subsample"
        )
    return trials.get(num_rows(batch))


def _points(pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace) -> tuple[str, ...]:
    """The latents that have no density: Deltas with more numbers than were drawn for them.

    Draws of latents do not count, as a function of a latent leaves nothing random once the latent is given. A
    latent that is a point in the model, too, needs no density.
    """
    in_model, drawn = latent_sites(model_trace), latent_sites(guide_trace)
    deltas = [
        n for n in in_model if n in drawn and isinstance(innermost(drawn[n]["fn"]), dist.Delta)
    ]
    draws = {n: s for n, s in drawn.items() if n not in deltas}
    if not deltas or not draws:
        return tuple(deltas)
    trace = trace_tracked(pair, batch)
    if trace is None:  # a point stays where it is, a function of other draws does not
        same = _same_twice(pair, batch, set(deltas))
        return tuple(n for n in deltas if n in same)
    sources = {n: sources_of(trace.nodes[n]["value"]) & draws.keys() for n in deltas}
    points = {n for n in deltas if not sources[n]}
    for latents, behind in sharing_draws(sources):
        own = [draws[n] for n in behind if n not in in_model]
        left = sum(free_numbers(site["fn"], site["value"]) for site in own)
        for name in latents:
            if not isinstance(innermost(in_model[name]["fn"]), dist.Delta):
                left -= free_numbers(in_model[name]["fn"], drawn[name]["value"])
                points |= {name} if left < 0 else set()
    return tuple(n for n in deltas if n in points)


def _same_twice(pair: Pair, batch: Batch, names: set[str]) -> set[str]:
    """Those of the guide's sites that have the same value in two runs."""
    runs: list[Any] = [poutine.trace(pair.guide).get_trace(*as_args(batch)) for _ in range(2)]
    values = [{name: run.nodes[name]["value"] for name in names} for run in runs]
    return {name for name in names if torch.equal(values[0][name], values[1][name])}


def _require_enumerable(name: str, model_trace: Trace, plate: str) -> None:
    """Raises a PairError unless the model can sum out, row by row, a latent that the guide does not sample."""
    site = model_trace.nodes[name]
    if site["infer"].get("enumerate") != "parallel":
        advice = about_obs_mask(model_trace, name) or (
            "give the site the same name in both, or mark it for enumeration with "
            'infer={"enumerate": "parallel"}'
        )
        raise PairError(f"the model's latent site '{name}' is not sampled by the guide: {advice}")
    if not any(f.name == plate for f in site["cond_indep_stack"]):
        raise PairError(
            f"the model's latent site '{name}' is marked for enumeration, but is outside of plate '{plate}': "
            "rows that share a latent have no separate densities; sample it in the guide"
        )


def _drawn_jointly(
    pair: Pair, batch: Batch, own: set[str], outside: set[str], own_draws: bool
) -> str | None:
    """A draw outside the plate over rows that determines the latents inside it, if there is one."""
    if not outside or not own:
        return None
    trace = trace_tracked(pair, batch)
    if trace is None:  # nothing else is drawn that could vary the latents inside
        random = own_draws or own <= _same_twice(pair, batch, own)
        return None if random else min(outside)
    for name in own:
        site = trace.nodes[name]
        if isinstance(innermost(site["fn"]), dist.Delta):
            sources = sources_of(site["value"]) & outside
            if sources:
                return str(min(sources))
    return None


def _vectorizes(pair: Pair, layout: Layout, batch: Batch) -> bool:
    """Whether the same latents get the same densities in a run of two samples as in runs of one sample each."""
    small = batch if pair.keeps_rows else take_rows(batch, slice(0, 8))
    try:
        try:
            both = sample_rows(pair, layout, small, 2)
        except LayoutChangedError:  # the longest sequence is not among the first
            small = batch
            both = sample_rows(pair, layout, small, 2)
        try:
            # Scored as given values in both runs: a flow's density of its own draw is more exact.
            given = {name: site["value"] for name, site in _drawn(both).items()}
            again = sample_rows(pair, layout, small, 2, values=given)
            return _as_single_runs(pair, layout, small, again, {})
        except NoInverseError:  # flows draw the same values again from those of their bases
            both = sample_rows(pair, layout, small, 2)
            bases = {name: _base(site) for name, site in _drawn(both).items()}
            return _as_single_runs(pair, layout, small, both, bases)
    except Exception:  # any error of a program that does not support an extra dimension
        return False


def _drawn(rows: RowDensities) -> dict[str, Site]:
    """The random sites of the guide."""
    return {
        name: site
        for name, site in latent_sites(rows.guide_trace).items()
        if not isinstance(innermost(site["fn"]), dist.Delta)
    }


def _as_single_runs(
    pair: Pair, layout: Layout, batch: Batch, both: RowDensities, bases: Mapping[str, Tensor | None]
) -> bool:
    """Whether the densities of two samples are those of runs of one sample each."""
    for k in range(2):
        given, made = {}, {}
        for name, site in _drawn(both).items():
            base = bases.get(name)
            if base is None:
                given[name] = _one_sample(site, layout, k)
            else:
                made[name] = _one_sample({**site, "value": base}, layout, k)
        alone = Pair(pair.model, _FromBase(made)(pair.guide), pair.store) if made else pair
        single = sample_rows(alone, layout, batch, 1, values=given)
        for name in ("log_prior", "log_likelihood", "log_guide"):
            one, two = getattr(single, name)[0], getattr(both, name)[k]
            if not torch.allclose(one, two, rtol=1e-3, atol=1e-3, equal_nan=True):
                return False
    return True


def _flow(fn: Any) -> Any:
    """The transformed distribution inside of wrappers; None if there is none."""
    while not isinstance(fn, torch.distributions.TransformedDistribution):
        if not hasattr(fn, "base_dist"):
            return None
        fn = fn.base_dist
    return fn


def _base(site: Site) -> Tensor | None:
    """What a flow has made its latest draw of, which its transforms remember; None if the site is no flow."""
    flow = _flow(site["fn"])
    if flow is None:
        return None
    value: Tensor = site["value"]
    for transform in reversed(flow.transforms):
        value = transform.inv(value)
    return value


class _FromBase(Messenger):
    """Draws from flows, with given values of their bases."""

    def __init__(self, bases: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.bases = bases

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.bases and not msg["is_observed"]:
            value = self.bases[msg["name"]]
            for transform in _flow(msg["fn"]).transforms:
                value = transform(value)
            msg["value"], msg["done"] = value, True


def _one_sample(site: Site, layout: Layout, k: int) -> Tensor:
    """Sample `k` of a site drawn in `many_samples`, in the shape it has without that plate."""
    value: Tensor = site["value"][k]
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != SAMPLES_PLATE]
    batch_dim = max((-f.dim for f in frames), default=0)
    return value.reshape(value.shape[layout.nesting - batch_dim :])
