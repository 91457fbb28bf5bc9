"""diagnose(): which latent dimensions carry information, why the others do not, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae import stats
from ppl_vae.batches import Batches, DataLike, device_of, move
from ppl_vae.collapse import CAUSES, Residuals, find_cause, remedy_of
from ppl_vae.data_check import check_data
from ppl_vae.evaluation import (
    Estimate,
    all_rows,
    chunk_sizes,
    device_of_pair,
    evaluating,
    progress_bar,
)
from ppl_vae.handlers import (
    Substitute,
    elementwise,
    elementwise_kl,
    latent_sites,
    sample_sites,
    unscaled,
)
from ppl_vae.layout import survey
from ppl_vae.mean_field import mean_field_violations
from ppl_vae.pairs import Batch, Pair, Program, as_args, num_rows, take_rows
from ppl_vae.rows import (
    Layout,
    RowDensities,
    many_samples,
    rows_first,
    sample_rows,
    stated_moment,
    sum_to_rows,
)

COLLAPSED = 0.01
"""Nats: an inactive dimension whose mean KL is below has collapsed onto the prior."""

_DRAWS = 32
_POINTS = 1000


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found. The d latent dimensions are those of all latent sites, in order.

    Attributes:
        names: The dimensions' names, ``z[0]``, ``z[1]``, ...
        kl: Mean over rows of each dimension's KL(q || p), nats, ``(d,)``.
        mean_variance: Variance over rows of the posterior means, ``(d,)``.
        active: Which dimensions are active units: ``mean_variance`` > 0.01 (Burda et al.), ``(d,)``.
        collapsed: Which dimensions have collapsed onto the prior: KL < 0.01 nats, and not active, ``(d,)``.
        mutual_information: I(x; z) under q, nats, from the aggregate posterior of the rows given.
        marginal_kl: KL(aggregate posterior || prior), nats. The mean rate is the sum of the two.
        cause: Why dimensions are not active: ``none``, ``identical rows``, ``constant posterior``,
            ``small means``, ``lagging guide``, ``large beta``, ``decoder noise``, ``surplus dimensions`` or
            ``ignored latent``.
        remedy: What to do about it.
        num_rows: Rows looked at.
        notes: What a reader of the numbers must know.
    """

    names: tuple[str, ...]
    kl: Tensor
    mean_variance: Tensor
    active: Tensor
    collapsed: Tensor
    mutual_information: Estimate
    marginal_kl: Estimate
    cause: str
    remedy: str
    num_rows: int
    notes: tuple[str, ...] = ()

    @property
    def active_units(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within a nat of log n, the most that n rows can show."""
        return self.mutual_information.mean > math.log(self.num_rows) - 1.0

    def summary(self) -> str:
        """One sentence: how much of the latent is used, why not more, and what to do."""
        d, unused = len(self.names), ~self.active
        used = f"{self.active_units} of {d} latent dimension{'s are' if d > 1 else ' is'} active"
        at_least = "at least " if self.saturated else ""
        # What is estimated may fall below zero, what is meant can not.
        information = (
            f"z carries {at_least}{max(0.0, self.mutual_information.mean):.1f} nats about x"
        )
        count = int(unused.sum())
        if count == 0:
            return f"Healthy: {used}, {information}, and no dimension has collapsed."
        which = "it" if d == 1 else "all" if count == d else str(count)
        one = count == 1
        if torch.equal(self.collapsed, unused):
            state = f"{'has' if one else 'have'} collapsed onto the prior"
        else:
            state = f"{'is' if one else 'are'} inactive"
        meaning = CAUSES[self.cause][0]
        return f"{used} and {information}; {which} {state}: {meaning}; {self.remedy}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        return {
            "names": list(self.names),
            "kl": self.kl.tolist(),
            "mean_variance": self.mean_variance.tolist(),
            "active": self.active.tolist(),
            "active_units": self.active_units,
            "collapsed": self.collapsed.tolist(),
            "mutual_information": {
                "mean": self.mutual_information.mean,
                "standard_error": self.mutual_information.standard_error,
            },
            "marginal_kl": {
                "mean": self.marginal_kl.mean,
                "standard_error": self.marginal_kl.standard_error,
            },
            "cause": self.cause,
            "remedy": self.remedy,
            "num_rows": self.num_rows,
            "notes": list(self.notes),
            "summary": self.summary(),
        }

    def __str__(self) -> str:
        return self.summary()


def diagnose(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    beta: float = 1.0,
    seed: int | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Which latent dimensions carry information about x, and why the others do not.

    *Active units* count the dimensions whose posterior mean varies over all rows by more than 0.01 (Burda et
    al., arXiv:1509.00519). The *mutual information* I(x; z) = E log q(z | x) - log q(z) and the *marginal KL*
    E log q(z) - log p(z) (Hoffman and Johnson, *ELBO surgery*, 2016) use the aggregate posterior
    q(z) = 1/n sum_j q(z | x_j) of the n rows given, at one draw for each of at most 1,000 rows. For those
    rows they are unbiased; for the population the mutual information is biased low, as it can
    not exceed log n; a note says when that limit is near.

    The KL of a dimension is analytic where guide and prior factorise, and sampled where the guide's
    dependencies forbid that. Where the guide correlates its dimensions, or the prior is a mixture, it is that
    of the Gaussians with each dimension's own mean and variance.

    If dimensions are not active, the cause is sought: be it that they have collapsed onto the prior, or that
    all rows have much the same posterior elsewhere, which costs KL and tells nothing. If no dimension is
    active and the mutual information is below 0.01 nats a dimension, though the KL of one is not, the guide's
    posterior is constant. If posteriors fitted to each of 64 rows, the model frozen, do use the dimensions,
    the guide lags behind the model. Otherwise a Gaussian decoder is judged by what it
    leaves of the data (Lucas et al., arXiv:1911.02469): a further dimension pays where the variance left in
    some direction exceeds beta sigma^2. If there is such a direction, or if the likelihood is not Gaussian,
    all that can be said is that the decoder does not use the dimensions; or that beta is too large, if for a
    likelihood that is not Gaussian posteriors fitted under beta = 1 do use them.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Rows, as for ``evaluate``.
        beta: The beta that the pair was trained with, by which the cause of a collapse is judged.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A :class:`Diagnosis`.

    Raises:
        PairError: The rows are not in a plate, or the guide ties the latents of different rows together.
        ValueError: The guide samples no latent of a row.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: z[1] has nothing to say
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
        >>> _ = torch.manual_seed(0)
        >>> diagnosis = diagnose(model, guide, 2**0.5 * torch.randn(500))
        >>> diagnosis.active_units, diagnosis.collapsed
        (1, tensor([False,  True]))
    """
    pair = Pair.of(model, guide)
    batches = Batches(x, pair)
    with evaluating(pair, seed):
        first = batches.first(all_rows(batches) if pair.keeps_rows else 64)
        check_data(pair, move(first, device_of_pair(pair)))
        device = device_of(pair.parameters(move(first, device_of_pair(pair))).values())
        layout = survey(pair, move(first, device))
        if not layout.latents:
            raise ValueError("the guide samples no latent of a row: there is nothing to diagnose")
        size = num_rows(first)
        if not pair.keeps_rows:
            # All draws of a row at once, and as many rows as fit.
            few = move(take_rows(first, slice(0, 16)), device)
            rows, draws = chunk_sizes(pair, layout, few, 4 * _DRAWS)
            size = max(1, rows * draws // _DRAWS)
        # Where an analytic KL is not a site's share of the rate, the sampled one is.
        analytic = not mean_field_violations(pair, move(first, device))
        held = _hold_shared(pair, layout, move(first, device))
        look = _look(pair, layout, batches, size, device, analytic, progress)
        information, marginal, notes = _information(
            pair, layout, batches, size, device, look, progress
        )
        notes += held + _of_moments(look.moments_alone)
        active = look.mean_variance > 0.01
        collapsed = (look.kl < COLLAPSED) & ~active
        cause = _plain_cause(look, active, collapsed, information)
        if cause is None:
            small = first if pair.keeps_rows else take_rows(first, slice(0, 64))
            cause, unknown = find_cause(
                pair, layout, move(small, device), look.residuals, ~active, beta
            )
            notes += unknown
    return Diagnosis(
        names=look.names,
        kl=look.kl,
        mean_variance=look.mean_variance,
        active=active,
        collapsed=collapsed,
        mutual_information=information,
        marginal_kl=marginal,
        cause=cause,
        remedy=remedy_of(cause, beta),
        num_rows=look.n,
        notes=notes,
    )


def _plain_cause(
    look: _Look, active: Tensor, collapsed: Tensor, information: Estimate
) -> str | None:
    """The cause that the numbers tell by themselves; None if it must be sought."""
    if bool(active.all()):
        return "none"
    if look.identical:
        return "identical rows"
    if bool(active.any()) or bool(collapsed.all()):
        return None
    if information.mean < COLLAPSED * len(active):
        return "constant posterior"
    return None if bool(collapsed.any()) else "small means"


def _hold_shared(pair: Pair, layout: Layout, batch: Batch) -> tuple[str, ...]:
    """Fixes latents of all rows at one draw from the guide: else every batch would have its own."""
    if not layout.shared:
        return ()
    trace = poutine.trace(pair.guide).get_trace(*as_args(batch))
    outside = {n: s["value"] for n, s in latent_sites(trace).items() if n not in layout.guide_sites}
    pair.guide = Substitute(outside)(pair.guide)
    names = ", ".join(f"'{name}'" for name in layout.shared)
    return (f"sites {names} belong to all rows: they are held at one draw from the guide",)


@dataclass
class _Look:
    """What one pass over all rows gathers."""

    n: int
    names: tuple[str, ...]
    kl: Tensor
    mean_variance: Tensor
    points: list[dict[str, Tensor]]
    log_guide: Tensor
    log_prior: Tensor
    residuals: Residuals
    identical: bool
    moments_alone: tuple[str, ...]  # sites whose dimensions have no KL but that of their moments


def _chunks(batches: Batches, size: int, device: torch.device) -> Iterator[Batch]:
    """The rows in order, ``size`` at most at once; a loader's batches may be larger."""
    for batch in batches.ordered(size):
        for start in range(0, num_rows(batch), size):
            yield move(take_rows(batch, slice(start, start + size)), device)


def _look(
    pair: Pair,
    layout: Layout,
    batches: Batches,
    size: int,
    device: torch.device,
    analytic: bool,
    progress: bool | None,
) -> _Look:
    spread = stats.RunningVariance()
    kl_sum: Tensor | None = None
    sampling = torch.zeros(())
    names: tuple[str, ...] = ()
    points: list[dict[str, Tensor]] = []
    log_guide, log_prior = [], []
    residuals = Residuals()
    row: tuple[Tensor, ...] | None = None
    identical = True
    n = 0
    with progress_bar(None, "diagnose", "row", progress) as bar:
        for batch in _chunks(batches, size, device):
            rows = sample_rows(pair, layout, batch, _DRAWS)
            kl, means, noise_of_means, names = _dimensions(pair, layout, batch, rows, analytic)
            spread.update(means.cpu())
            kl_sum = kl.sum(0) if kl_sum is None else kl_sum + kl.sum(0)
            sampling = sampling + noise_of_means.sum(0)
            points.append({name: value[0] for name, value in rows.draws.items()})
            log_guide.append(rows.log_guide[0])
            log_prior.append(rows.log_prior[0])
            residuals.update(rows, layout)
            args = as_args(batch)
            row = row or tuple(value[:1] for value in args)
            identical = identical and all(
                bool((value == one).all()) for value, one in zip(args, row, strict=True)
            )
            n += num_rows(batch)
            bar.update(num_rows(batch))
    assert kl_sum is not None
    mean_variance = (spread.variance - (sampling / n).cpu()).clamp(min=0.0)
    return _Look(
        n=n,
        names=names,
        kl=(kl_sum / n).cpu(),
        mean_variance=mean_variance,
        points=points,
        log_guide=torch.cat(log_guide),
        log_prior=torch.cat(log_prior),
        residuals=residuals,
        identical=identical,
        moments_alone=tuple(
            name
            for name in layout.latents
            if elementwise_kl(rows.guide_trace.nodes[name], rows.model_trace.nodes[name], analytic)
            is None
        ),
    )


def _of_moments(names: tuple[str, ...]) -> tuple[str, ...]:
    """What a reader of the dimensions' KL must know of latents that do not factorise."""
    if not names:
        return ()
    sites = ", ".join(f"'{name}'" for name in names)
    return (
        f"guide or prior of {sites} does not factorise over its dimensions: the KL of each is that of the "
        "Gaussians with its means and variances; they need not add up to the rate",
    )


def _dimensions(
    pair: Pair, layout: Layout, batch: Batch, rows: RowDensities, analytic: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """KL, posterior mean and the latter's sampling variance of each row and dimension; the names."""
    kls, means, noises, names = [], [], [], []
    samples, n = rows.log_guide.shape
    for name in layout.latents:
        value = rows.latents[name].double()
        stated = stated_moment(rows, layout, name, "mean")
        centres = value if stated is None else stated.double()
        mean, noise = centres.mean(0), centres.var(0) / samples
        guide_site, model_site = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
        kl = elementwise_kl(guide_site, model_site, analytic)
        if kl is not None:
            fn = guide_site["fn"]
            kl = kl.reshape(fn.batch_shape + fn.event_shape)
            kl = rows_first({**guide_site, "value": kl}, layout, samples, n).mean(0)
        else:
            variance = stated_moment(rows, layout, name, "variance")
            spread = centres.var(0)
            if stated is not None and variance is not None:
                spread = spread + variance.double().mean(0)
            prior_mean, prior_variance = _prior_moments(pair, layout, batch, rows, name)
            kl = _gaussian_kl(mean, spread, prior_mean, prior_variance)
            if stated is None:
                kl = kl - _sampling_bias(spread / prior_variance, samples)
        kls.append(kl.double().reshape(n, -1))
        means.append(mean.reshape(n, -1))
        noises.append(noise.reshape(n, -1))
        shape = mean.shape[1:]
        names += (
            [
                name + "".join(f"[{i}]" for i in index)
                for index in torch.cartesian_prod(*[torch.arange(s) for s in shape])
                .reshape(-1, len(shape))
                .tolist()
            ]
            if shape
            else [name]
        )
    return torch.cat(kls, 1), torch.cat(means, 1), torch.cat(noises, 1), tuple(names)


def _gaussian_kl(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor
) -> Tensor:
    """KL of the Gaussian with a dimension's mean and variance against that with the prior's."""
    q = Normal(mean, variance.clamp(min=1e-12).sqrt())
    kl: Tensor = kl_divergence(q, Normal(prior_mean, prior_variance.clamp(min=1e-12).sqrt()))
    return kl


def _sampling_bias(variance: Tensor, samples: int) -> Tensor:
    """What estimating a Gaussian's mean and variance from samples adds to its KL.

    With a variance v in units of the prior's, the squared mean is too large by v / K, and the logarithm of
    the variance too small by log((K - 1) / 2) - digamma((K - 1) / 2).
    """
    half = torch.tensor((samples - 1) / 2, dtype=torch.float64, device=variance.device)
    bias: Tensor = 0.5 * (variance / samples + half.log() - torch.special.digamma(half))
    return bias


def _prior_moments(
    pair: Pair, layout: Layout, batch: Batch, rows: RowDensities, name: str
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each number of a latent under the prior, ``(n, *event)`` or ``(*event)``.

    Those that the prior states; if it states none, or one for each value of an enumerated latent, those of
    draws from the model.
    """
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
    drawn = _DRAWS if layout.vectorizes else 1
    with many_samples(layout, drawn):
        trace = poutine.trace(pair.model).get_trace(*as_args(batch))
    value = rows_first(trace.nodes[name], layout, drawn, n).double().flatten(0, 1)
    return value.mean(0), value.var(0)


def _information(
    pair: Pair,
    layout: Layout,
    batches: Batches,
    size: int,
    device: torch.device,
    look: _Look,
    progress: bool | None,
) -> tuple[Estimate, Estimate, tuple[str, ...]]:
    """I(x; z) and KL(q(z) || p(z)) at one draw for each of some rows, against all rows."""
    count = min(look.n, _POINTS if layout.vectorizes else 100)
    chosen = torch.linspace(0, look.n - 1, count, device=device).round().long()
    points = {name: torch.cat([p[name] for p in look.points])[chosen] for name in look.points[0]}
    aggregate = torch.full((count,), -math.inf, dtype=torch.float64, device=device)
    with progress_bar(look.n, "diagnose", "row", progress) as bar:
        for batch in _chunks(batches, size, device):
            n = num_rows(batch)
            width = max(1, min(count, 2**20 // n // max(1, len(look.names))))
            parts = []
            for start in range(0, count, width):
                values = {name: point[start : start + width] for name, point in points.items()}
                parts.append(_cross_density(pair, layout, batch, values, n).logsumexp(1))
            aggregate = torch.logaddexp(aggregate, torch.cat(parts).double())
            bar.update(n)
    log_q = aggregate - math.log(look.n)
    information = look.log_guide[chosen].double() - log_q
    marginal = log_q - look.log_prior[chosen].double()
    notes = [
        f"the mutual information is that of the {look.n} rows given: it can not exceed log n = "
        f"{math.log(look.n):.2f} nats and is biased low for the population"
    ]
    if float(information.mean()) > math.log(look.n) - 1.0:
        notes.append(
            "the mutual information is within a nat of its limit log n: take it for a lower bound"
        )
    return Estimate(information.cpu()), Estimate(marginal.cpu()), tuple(notes)


def _cross_density(
    pair: Pair, layout: Layout, batch: Batch, values: dict[str, Tensor], n: int
) -> Tensor:
    """log q(z_i | x_j) of given points i under the guide at each row j of the batch: ``(points, n)``."""
    count = len(next(iter(values.values())))
    if not layout.vectorizes:
        return torch.cat(
            [
                _scored(pair, layout, batch, {k: v[i : i + 1] for k, v in values.items()}, 1, n)
                for i in range(count)
            ]
        )
    return _scored(pair, layout, batch, values, count, n)


def _scored(
    pair: Pair, layout: Layout, batch: Batch, values: dict[str, Tensor], count: int, n: int
) -> Tensor:
    inner = (1,) * (-layout.dim - 1)
    outer = (1,) * (layout.nesting + layout.dim)
    spread = {}
    for name, value in values.items():
        shaped = value.reshape(count, *outer, 1, *inner, *value.shape[1:])
        shaped = shaped.expand(count, *outer, n, *inner, *value.shape[1:])
        spread[name] = shaped if count > 1 else shaped[0]
    with many_samples(layout, count):
        trace = poutine.trace(Substitute(spread)(pair.guide)).get_trace(*as_args(batch))
    terms = [
        sum_to_rows(unscaled(site), layout, count, n)
        for name, site in sample_sites(trace).items()
        if name in layout.guide_sites
    ]
    return torch.stack(terms).sum(0)
