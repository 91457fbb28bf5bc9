"""Per-row log densities of any pair for many samples.

`sample_rows` computes what each *row* contributes to log p(z), log p(x | z) and log q(z | x). A `Layout` names
the plate that holds the rows and gives the role of each site; `Layouts` knows the one of each batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.layout import (
    Layout,
    inner_scale,
    many_samples,
    row_log_prob,
    rows_first,
    sum_to_rows,
)
from ppl_vae.pairs.moments import center, over_draws, spread
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, num_rows, tensors_of, trace_programs
from ppl_vae.pairs.supports import require_inside, without_draws_outside
from ppl_vae.pairs.traces import (
    Site,
    Trace,
    elementwise,
    innermost,
    is_categorical,
    present,
    unscaled,
)


@dataclass(frozen=True)
class RowDensities:
    """Log densities of n rows at K samples from q(z | x); all in nats, of shape `(K, n)`.

    Attributes:
        latents: The model's latent values by site, `(K, n, *event)`.
        draws: The guide's random values by site, `(K, n, *event)`, including auxiliary variables.
        log_prior: log p(z).
        log_likelihood: log p(x | z), with sites that the model enumerates summed out.
        log_guide: log q(z | x).
        guide_trace: The trace of the guide, for its distributions.
        model_trace: The trace of the model.
        layout: The layout of the batch.
        each: If the samples were drawn one after the other: the same of each of them. The traces above are
            those of the last one alone.
    """

    latents: dict[str, Tensor]
    draws: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    guide_trace: Trace
    model_trace: Trace
    layout: Layout
    each: tuple[RowDensities, ...] = ()

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x): the importance weights, `(K, n)`."""
        return self.log_likelihood + self.log_prior - self.log_guide


def sample_rows(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    num_samples: int,
    values: Mapping[str, Tensor] | None = None,
    as_seen: Callable[[Trace], Trace] | None = None,
) -> RowDensities:
    """Draws `num_samples` latents per row from the guide and scores them, row by row.

    `poutine.scale` and the weight of a subsampled plate over rows are left out, because importance weights
    are those of single rows. Call it inside `pair.scope()`.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: n rows.
        num_samples: K. If the pair does not vectorize, the samples are drawn one after the other.
        values: Values of the guide's random sites, to be scored instead of drawn.
        as_seen: From the guide's trace, the trace that the model gets its latents from: the same numbers with
            another gradient. It is called once, or once per sample if these are drawn one after the other.

    Raises:
        LayoutChangedError: The programs have other sites on this batch than the layout.
        PairError: A draw is outside of the model's support.
    """
    if num_samples > 1 and not layout.vectorizes:
        parts = [
            sample_rows(
                pair,
                layout,
                batch,
                1,
                None if values is None else {n: v[k] for n, v in values.items()},
                as_seen,
            )
            for k in range(num_samples)
        ]
        return _stack(parts)
    model_trace, guide_trace = _run(pair, layout, batch, num_samples, values, as_seen)
    layout.require(model_trace, guide_trace)
    if values is None:
        require_inside(model_trace, layout)
    n = num_rows(batch)

    def total(trace: Trace, names: tuple[str, ...]) -> Tensor:
        sites = [trace.nodes[name] for name in names]
        rows = [sum_to_rows(row_log_prob(site, layout), layout, num_samples, n) for site in sites]
        nothing = tensors_of(batch)[0].new_zeros((num_samples, n))
        return torch.stack(rows).sum(0) if rows else nothing

    if layout.enumerated:
        log_likelihood, log_prior = _summed_out(layout, model_trace, num_samples, n)
    else:
        log_likelihood = total(model_trace, layout.observed)
        log_prior = total(model_trace, layout.latents)
    if values is None:
        log_prior = without_draws_outside(log_prior, model_trace, layout, num_samples, n)
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
        layout=layout,
    )


def _run(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    num_samples: int,
    values: Mapping[str, Tensor] | None,
    as_seen: Callable[[Trace], Trace] | None,
) -> tuple[Trace, Trace]:
    """The traces of model and guide under many samples, with the model's own latents enumerated."""
    guide, model = pair.guide, pair.model
    if values is not None:
        guide = Substitute(values)(guide)
    if layout.enumerated:
        model = poutine.infer_config(model, lambda site: _enumerate_only(layout, site))
        model = poutine.enum(model, first_available_dim=-layout.nesting - 2)
    with many_samples(layout, num_samples):
        return trace_programs(model, guide, batch, as_seen)


def _enumerate_only(layout: Layout, site: Site) -> Any:
    """Turns off enumeration for sites that the guide has drawn, even if the model marks them."""
    return {} if site["name"] in layout.enumerated else {"enumerate": None}


def _summed_out(layout: Layout, trace: Trace, num_samples: int, n: int) -> tuple[Tensor, Tensor]:
    """(log p(x | z), log p(z)), with the model's enumerated sites summed out of p(x, z) and of p(z)."""
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
    """The log density of the named sites with the enumerated ones summed out, `(num_samples, n)`."""
    plates = set(trace.plate_to_symbol.values())
    terms: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for name in (n for n in trace.nodes if n in names):
        site = trace.nodes[name]
        require_whole_row(name, site, layout)
        term = factor_of(site, name in layout.enumerated)
        frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in frames)
        terms.setdefault(ordinal, []).append(term)
    sum_dims = {d for ts in terms.values() for t in ts for d in t._pyro_dims} - plates
    contracted = contract_tensor_tree(terms, sum_dims)
    dense = [packed.unpack(t, trace.symbol_to_dim) for ts in contracted.values() for t in ts]
    return torch.stack([sum_to_rows(t, layout, num_samples, n) for t in dense]).sum(0)


def require_whole_row(name: str, site: Site, layout: Layout) -> None:
    """Raises an error if a row subsamples a site, where latents of the model are summed out.

    Raises:
        PairError: It does. The sum over latents is not linear in log densities, so a weight makes no whole of a
            part.
    """
    if inner_scale(site, layout) != 1.0:
        raise PairError(
            f"site '{name}' is in a subsampled plate inside of a row, and a latent of the model is summed out: "
            "the sum needs the whole row; give the plate no subsample_size"
        )


def factor_of(site: Site, enumerated: bool) -> Any:
    """The factor that a site of a packed trace contributes to log p(x, z), as Pyro's estimators see it.

    A mask leaves factors out. It does not leave out the density of an enumerated latent: that sums to 1 over
    the latent's values, where a factor of 1 for each of K values would add log K.
    """
    log_prob, mask = site["packed"]["unscaled_log_prob"], site["packed"]["mask"]
    if enumerated and isinstance(mask, Tensor):
        return packed.broadcast_all(log_prob, mask)[0]  # with the dimensions that the mask has
    return packed.scale_and_mask(log_prob, mask=None if enumerated else mask)


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
        layout=parts[-1].layout,
        each=tuple(parts),
    )


def scores_of_draws(rows: RowDensities) -> Tensor:
    """log q of the draws that have no reparameterized sampler, `(K, n)`: what the score function derives.

    A subsampled plate inside of a row has no weight here: the draws are those of the part.
    """
    if rows.each:
        return torch.cat([scores_of_draws(part) for part in rows.each])
    found = torch.zeros_like(rows.log_guide)
    for name in rows.layout.draws:
        site = rows.guide_trace.nodes[name]
        if not site["fn"].has_rsample:
            found = found + sum_to_rows(unscaled(site), rows.layout, *rows.log_guide.shape)
    return found


def posterior_means(rows: RowDensities, layout: Layout) -> Tensor:
    """E_q[z | x] of every latent number of each row, `(n, dimensions)`.

    For each site, this is the average over samples of the conditional means given by the guide's distribution,
    or of the samples themselves if the distribution has no mean.
    """
    columns = [*means_of_sites(rows, layout).values()]
    if not columns:
        return rows.log_guide.new_zeros((rows.log_guide.shape[1], 0))
    return torch.cat(columns, 1)


def means_of_sites(rows: RowDensities, layout: Layout) -> dict[str, Tensor]:
    """The columns of `posterior_means` by site, each `(n, dimensions)`."""
    columns: dict[str, Tensor] = {}
    for name in layout.latents:
        value = rows.latents[name]
        mean = stated_moment(rows, layout, name, "mean")
        average = (value if mean is None else mean).double().mean(0)
        columns[name] = average.reshape(len(average), -1)
    return columns


def prior_moments(rows: RowDensities, layout: Layout, name: str) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of each number of a latent under the prior, `(n, *event)`, if the prior states them.

    They are those over the samples, if the prior depends on other latents. None also for a prior with one
    distribution for each value of an enumerated latent.
    """
    site = rows.model_trace.nodes[name]
    single = elementwise(site["fn"])
    fn = site["fn"] if single is None else single
    if len(site["fn"].batch_shape) > layout.nesting + 1 or is_categorical(site):
        return None
    samples, n = rows.log_guide.shape
    try:
        mean, variance = (
            rows_first({**site, "value": moment}, layout, samples, n)
            for moment in (center(fn), spread(fn))
        )
    except (NotImplementedError, AttributeError):
        return None
    if samples > 1 and not mean.stride(0) and not variance.stride(0):  # the same for each draw
        return mean[0].double(), variance[0].double()
    total, between = over_draws(mean, unbiased=False)
    return total, variance.mean(0, dtype=torch.float64) + between


def latents_of_numbers(rows: RowDensities, layout: Layout) -> tuple[str, ...]:
    """The latents whose values are numbers: no categories, unless there is nothing else."""
    found = tuple(n for n in layout.latents if not is_categorical(rows.model_trace.nodes[n]))
    return found or layout.latents


def present_numbers(rows: RowDensities, layout: Layout, name: str) -> Tensor:
    """Which numbers of a latent the masks of the guide leave in, `(n, *event)`."""
    site = rows.guide_trace.nodes[name]
    there: Tensor = present(site)
    return rows_first({**site, "value": there}, layout, *rows.log_guide.shape).any(0)


def stated_moment(
    rows: RowDensities, layout: Layout, name: str, moment: Literal["mean", "variance"]
) -> Tensor | None:
    """The mean or variance of the guide's distribution at a site, `(samples, n, *event)`, if it states one.

    Where they are not finite, see `center` and `spread`.
    """
    site = rows.guide_trace.nodes[name]
    if isinstance(innermost(site["fn"]), dist.Delta) or site["fn"].has_enumerate_support:
        return None
    if is_categorical(site):  # inside of an Independent
        return None
    try:
        value = center(site["fn"]) if moment == "mean" else spread(site["fn"])
    except (NotImplementedError, AttributeError):
        return None
    if value.shape != site["fn"].batch_shape + site["fn"].event_shape:
        return None
    samples, n = rows.log_guide.shape
    # After a loop over samples, the trace is that of the last sample alone. Its moments hold for all samples
    # only if they do not depend on other latents, which is not known here.
    if not layout.vectorizes and samples > 1 and len(layout.draws) > 1:
        return None
    return rows_first({**site, "value": value}, layout, samples, n)
