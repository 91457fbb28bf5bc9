"""Statistics of single latent dimensions from one pass over all rows: KL, posterior means and names."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae.checks import Session
from ppl_vae.diagnosis.residuals import Residuals
from ppl_vae.pairs import (
    Batch,
    Layout,
    RowDensities,
    as_args,
    elementwise,
    elementwise_kl,
    many_samples,
    num_rows,
    rows_first,
    sample_rows,
    stated_moment,
)
from ppl_vae.stats import RunningVariance

NUM_DRAWS = 32
"""Draws from each row's q(z | x)."""


@dataclass(frozen=True)
class Gathered:
    """Statistics from one pass over n rows. The d latent dimensions are those of all sites, in order.

    Attributes:
        num_rows: n.
        names: The dimensions' names.
        kl: Mean KL of each dimension, nats, `(d,)`.
        mean_variance: Variance over rows of the posterior means, `(d,)`.
        points: One draw per row, `(n, *inner plates, *event)`, for each site of the guide.
        log_guide: log q(z | x) at those draws, `(n,)`.
        log_prior: log p(z) at them, `(n,)`.
        residuals: The decoder's residuals.
        identical: Whether all rows are the same.
        moments_alone: Sites whose KL per dimension comes from means and variances alone.
    """

    num_rows: int
    names: tuple[str, ...]
    kl: Tensor
    mean_variance: Tensor
    points: dict[str, Tensor]
    log_guide: Tensor
    log_prior: Tensor
    residuals: Residuals
    identical: bool
    moments_alone: tuple[str, ...]


def gather(session: Session, size: int, analytic: bool) -> Gathered:
    """One pass over all rows, `size` at once.

    Args:
        session: The opened pair.
        size: Rows at once, with all draws of each.
        analytic: Whether the analytic KL of a site equals its share of the rate.
    """
    layout = session.layout
    spread, residuals = RunningVariance(), Residuals()
    names: tuple[str, ...] = ()
    kl_sum = sampling = torch.zeros(())
    points: list[dict[str, Tensor]] = []
    log_guide, log_prior = [], []
    row: tuple[Tensor, ...] | None = None
    identical, n = True, 0
    for batch in session.chunks(size, "diagnose"):
        rows = sample_rows(session.pair, layout, batch, NUM_DRAWS)
        kl, means, noise_of_means, names = _latent_dimensions(session, batch, rows, analytic)
        spread.update(means.cpu())
        kl_sum = kl_sum + kl.sum(0)
        sampling = sampling + noise_of_means.sum(0)
        points.append({name: _first_draw(rows, layout, name) for name in rows.draws})
        log_guide.append(rows.log_guide[0])
        log_prior.append(rows.log_prior[0])
        residuals.update(rows, layout)
        args = as_args(batch)
        row = row or tuple(value[:1] for value in args)
        pairs = zip(args, row, strict=True)
        identical = identical and all(bool((value == one).all()) for value, one in pairs)
        n += num_rows(batch)
    in_guide, in_model = rows.guide_trace.nodes, rows.model_trace.nodes
    return Gathered(
        num_rows=n,
        names=names,
        kl=(kl_sum / n).cpu(),
        mean_variance=(spread.variance - (sampling / n).cpu()).clamp(min=0.0),
        points={name: torch.cat([part[name] for part in points]) for name in points[0]},
        log_guide=torch.cat(log_guide),
        log_prior=torch.cat(log_prior),
        residuals=residuals,
        identical=identical,
        moments_alone=tuple(
            name
            for name in layout.latents
            if elementwise_kl(in_guide[name], in_model[name], analytic) is None
        ),
    )


def note_on_moments(names: tuple[str, ...]) -> tuple[str, ...]:
    """A note on the KL per dimension of latents that do not factorize."""
    if not names:
        return ()
    sites = ", ".join(f"'{name}'" for name in names)
    return (
        f"guide or prior of {sites} does not factorize over its dimensions: the KL of each dimension is that "
        "of Gaussians with its means and variances; these need not add up to the rate",
    )


def _latent_dimensions(
    session: Session, batch: Batch, rows: RowDensities, analytic: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """KL, posterior mean and sampling variance of that mean for each row and dimension; and the names."""
    layout = session.layout
    kls, means, noises, names = [], [], [], []
    samples, n = rows.log_guide.shape
    for name in layout.latents:
        value = rows.latents[name].double()
        stated = stated_moment(rows, layout, name, "mean")
        centers = value if stated is None else stated.double()
        mean, noise = centers.mean(0), centers.var(0) / samples
        guide_site, model_site = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
        kl = elementwise_kl(guide_site, model_site, analytic)
        if kl is not None:
            fn = guide_site["fn"]
            kl = kl.reshape(fn.batch_shape + fn.event_shape)
            kl = rows_first({**guide_site, "value": kl}, layout, samples, n).mean(0)
        else:
            variance = stated_moment(rows, layout, name, "variance")
            spread = centers.var(0)
            if stated is not None and variance is not None:
                spread = spread + variance.double().mean(0)
            prior_mean, prior_variance = _prior_moments(session, batch, rows, name)
            kl = _gaussian_kl(mean, spread, prior_mean, prior_variance)
            if stated is None:
                kl = kl - _sampling_bias(spread / prior_variance, samples)
        kls.append(kl.double().reshape(n, -1))
        means.append(mean.reshape(n, -1))
        noises.append(noise.reshape(n, -1))
        names += _dimension_names(name, mean.shape[1:])
    return torch.cat(kls, 1), torch.cat(means, 1), torch.cat(noises, 1), tuple(names)


def _first_draw(rows: RowDensities, layout: Layout, name: str) -> Tensor:
    """The first draw of a site for each row, with a dimension for every plate inside of the rows' plate."""
    site, value = rows.guide_trace.nodes[name], rows.draws[name][0]
    event = site["fn"].event_shape
    batch = site["value"].shape[: site["value"].dim() - len(event)]
    inner = batch[max(0, len(batch) + layout.dim + 1) :]
    ones = (1,) * (-layout.dim - 1 - len(inner))
    return value.reshape(len(value), *ones, *inner, *event)


def _dimension_names(site: str, shape: torch.Size) -> list[str]:
    """`z[0]`, `z[1]`, ... for a vector, `z[0][0]`, ... for a matrix, `z` for a scalar."""
    return [
        site + "".join(f"[{i}]" for i in index) for index in itertools.product(*map(range, shape))
    ]


def _gaussian_kl(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> Tensor:
    """KL from a Gaussian with a dimension's mean and variance to one with the prior's."""
    q = Normal(mean, variance.clamp(min=1e-12).sqrt())
    kl: Tensor = kl_divergence(q, Normal(prior_mean, prior_variance.clamp(min=1e-12).sqrt()))
    return kl


def _sampling_bias(variance: Tensor, samples: int) -> Tensor:
    """What estimating a Gaussian's mean and variance from samples adds to its KL.

    For a variance v in units of the prior's, the squared mean is too large by v / K, and the logarithm of
    the variance too small by log((K - 1) / 2) - digamma((K - 1) / 2).
    """
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64, device=variance.device)
    bias: Tensor = 0.5 * (variance / samples + half.log() - torch.special.digamma(half))
    return bias


def _prior_moments(
    session: Session, batch: Batch, rows: RowDensities, name: str
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each number of a latent under the prior, `(n, *event)` or `(*event)`.

    They are the moments that the prior's distribution states. If it states none, or one for each value of an
    enumerated latent, they are estimated from draws of the model.
    """
    layout = session.layout
    site = rows.model_trace.nodes[name]
    single = elementwise(site["fn"])
    fn = site["fn"] if single is None else single
    samples, n = rows.log_guide.shape
    if len(site["fn"].batch_shape) <= layout.nesting + 1:
        try:
            mean, variance = (
                rows_first({**site, "value": moment}, layout, samples, n).double()
                for moment in (fn.mean, fn.variance)
            )
        except NotImplementedError:
            pass
        else:
            return mean.mean(0), variance.mean(0) + mean.var(0, unbiased=False)
    drawn = NUM_DRAWS if layout.vectorizes else 1
    with many_samples(layout, drawn):
        trace = poutine.trace(session.pair.model).get_trace(*as_args(batch))
    value = rows_first(trace.nodes[name], layout, drawn, n).double().flatten(0, 1)
    return value.mean(0), value.var(0)
