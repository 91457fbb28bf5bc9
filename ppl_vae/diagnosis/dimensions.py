"""Statistics of single latent dimensions from one pass over all rows: KL, posterior means and names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.checks import Session
from ppl_vae.diagnosis.faults import MomentGap
from ppl_vae.diagnosis.information import RowDraws
from ppl_vae.diagnosis.prior_conditions import PriorConditions
from ppl_vae.pairs import (
    Batch,
    RowDensities,
    as_args,
    elementwise,
    factorize,
    has_moments,
    kl_of_dimensions,
    latents_of_numbers,
    many_samples,
    mean_field_violations,
    names_of_dimensions,
    num_rows,
    over_draws,
    present_numbers,
    prior_moments,
    require_no_points,
    rows_first,
    shapes_of_rows,
    stated_moment,
    tensors_of,
)

NUM_DRAWS = 32
"""Draws from each row's q(z | x)."""

MANY_ROWS = 1000
"""Rows that get so many draws; each draw is decoded, which takes minutes for color pictures."""

FEW_DRAWS = 8
"""Draws of each row after those, if the guide states means: more rows make up for fewer draws."""


class OfSite(NamedTuple):
    """Numbers of the w dimensions of one site for each of n rows; all but the names `(n, w)`.

    Attributes:
        names: The dimensions' names.
        present: Whether the row has the dimension: masks may leave it out.
        kl: KL(q || p), nats.
        means: Posterior means.
        noise: Sampling variances of the means.
        prior_variance: The prior's variance.
    """

    names: tuple[str, ...]
    present: Tensor
    kl: Tensor
    means: Tensor
    noise: Tensor
    prior_variance: Tensor


class Dimensions:
    """Statistics of each latent dimension over the rows that have it.

    Sites, and the rows that have them, may differ from batch to batch. Means and variances are merged by the
    pairwise update of Chan, Golub & LeVeque (see `RunningVariance`).

    Example:
        >>> ones, found = torch.ones(3, 1), Dimensions()
        >>> means = torch.tensor([[1.0], [3.0], [100.0]])
        >>> there = torch.tensor([[True], [True], [False]])
        >>> found.update(OfSite(("z",), there, 2 * ones, means, 0 * ones, ones))
        >>> found.names, found.count.tolist(), found.kl.tolist(), found.mean_variance.tolist()
        (('z',), [2.0], [2.0], [2.0])
    """

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        # Rows, mean of means, their squared deviations, and the sums of KL, noise and prior variance.
        self._sums = torch.zeros(6, 0, dtype=torch.float64)

    def update(self, site: OfSite) -> None:
        """Adds rows."""
        for name in site.names:
            self._place.setdefault(name, len(self._place))
        missing = len(self._place) - self._sums.shape[1]
        self._sums = torch.cat([self._sums, self._sums.new_zeros(6, missing)], 1)
        places = torch.tensor([self._place[name] for name in site.names])
        there = site.present

        def total(values: Tensor) -> Tensor:
            return values.double().masked_fill(~there, 0.0).sum(0)

        rows = there.double().sum(0)
        mean = total(site.means) / rows.clamp(min=1.0)
        squares = total((site.means.double() - mean).square())
        count, old, old_squares, *sums = self._sums[:, places]
        both = (count + rows).clamp(min=1.0)
        delta = torch.where(rows > 0, mean - old, 0.0)
        # Once a mean is infinite, it stays infinite; the usual update would compute inf - inf.
        merged = torch.where(delta.isfinite(), old + delta * (rows / both), old + mean)
        squares = old_squares + squares + delta.square() * (count * rows / both)
        parts = (total(site.kl), total(site.noise), total(site.prior_variance))
        added = [old + new for old, new in zip(sums, parts, strict=True)]
        self._sums[:, places] = torch.stack([count + rows, merged, squares, *added])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(self._place)

    @property
    def count(self) -> Tensor:
        """The number of rows that have each dimension, `(d,)`."""
        return self._sums[0]

    @property
    def kl(self) -> Tensor:
        """Mean KL of each dimension over the rows that have it, nats, `(d,)`."""
        return self._sums[3] / self.count

    @property
    def mean_variance(self) -> Tensor:
        """Variance of the posterior means over those rows, without sampling noise, `(d,)`."""
        variance = self._sums[2] / (self.count - 1).clamp(min=1.0)
        variance = variance.masked_fill(self.count < 2, math.nan)
        return (variance - self._sums[4] / self.count).clamp(min=0.0)

    @property
    def prior_variance(self) -> Tensor:
        """Mean variance under the prior, `(d,)`."""
        return self._sums[5] / self.count


@dataclass(frozen=True)
class Gathered:
    """Statistics from one pass over n rows. The d latent dimensions are those of all sites, in order.

    Attributes:
        num_rows: n.
        dimensions: Statistics of each dimension; means are counted from those of the prior, if it varies.
        draws: One draw for each row.
        conditions: Which rows have the same prior.
        moment_gap: How far the moments of all draws are from those of the prior.
        elbo: The ELBO of each row, `(n,)`, at beta = 1.
        rate: Its rate, as many.
        identical: Whether all rows are the same.
        moments_alone: Sites whose KL per dimension comes from means and variances alone.
        without_moments: Sites that have no finite mean or variance in one of the programs.
        classes: Categorical sites, which have no dimensions beside others.
        without_kl: Sites whose dimensions have no KL, each with the latents that its prior depends on and that
            the guide computes from it.
    """

    num_rows: int
    dimensions: Dimensions
    draws: RowDraws
    conditions: PriorConditions
    moment_gap: MomentGap
    elbo: Tensor
    rate: Tensor
    identical: bool
    moments_alone: tuple[str, ...]
    without_moments: tuple[str, ...]
    classes: tuple[str, ...]
    without_kl: Mapping[str, set[str]]


def gather(session: Session, size: int) -> Gathered:
    """One pass over all rows, `size` at once.

    Args:
        session: The opened pair.
        size: Rows at once, with all draws of each.

    Raises:
        PairError: The guide gives points for some rows.
    """
    violations: dict[object, dict[str, set[str]]] = {}
    without_kl: dict[str, set[str]] = {}
    dimensions, draws = Dimensions(), RowDraws()
    moment_gap, bounds, rates = MomentGap(), [], []
    moments_alone: dict[str, None] = {}
    without: dict[str, None] = {}
    classes: dict[str, None] = {}
    row: tuple[Tensor, ...] | None = None
    identical, stated, n = True, True, 0
    conditions, beyond = PriorConditions(session), Dimensions()
    for batch in session.chunks(size, "diagnose"):
        enough = n >= MANY_ROWS and stated
        rows = session.sample(batch, FEW_DRAWS if enough else NUM_DRAWS)
        require_no_points(rows.layout, "diagnose")
        kind = rows.layout.signature, shapes_of_rows(batch)
        if kind not in violations:
            violations[kind] = mean_field_violations(session.pair, batch)
        in_guide, in_model = rows.guide_trace.nodes, rows.model_trace.nodes
        numbers = latents_of_numbers(rows, rows.layout)
        classes |= dict.fromkeys(set(rows.layout.latents) - set(numbers))
        for name in numbers:
            # Where a site's analytic KL is not its share of the rate, the sampled one is, which is no KL. The
            # others are sampled, too, then: shares of the same draws add up.
            site, of_prior = _of_site(session, batch, rows, name, analytic=not violations[kind])
            dimensions.update(site)
            beyond.update(site._replace(means=site.means - of_prior.nan_to_num(0.0, 0.0, 0.0)))
            stated &= stated_moment(rows, rows.layout, name, "mean") is not None
            if not factorize(in_guide[name], in_model[name]):
                moments_alone[name] = None
            if name in violations[kind]:
                without_kl.setdefault(name, set()).update(violations[kind][name])
            if not all(has_moments(nodes[name]["fn"]) for nodes in (in_guide, in_model)):
                without[name] = None
        draws.update(rows)
        conditions.update(rows, batch)
        moment_gap.update(_in_units_of_the_prior(rows))
        bounds.append(rows.log_weights.double().mean(0).cpu())
        rates.append((rows.log_guide - rows.log_prior).double().mean(0).cpu())
        args = tensors_of(batch)
        row = row or tuple(value[:1] for value in args)
        identical = identical and all_equal(args, row)
        n += num_rows(batch)
    return Gathered(
        num_rows=n,
        dimensions=beyond if conditions else dimensions,
        draws=draws,
        conditions=conditions,
        moment_gap=moment_gap,
        elbo=torch.cat(bounds),
        rate=torch.cat(rates),
        identical=identical,
        moments_alone=tuple(moments_alone),
        without_moments=tuple(without),
        classes=tuple(sorted(classes)),
        without_kl=without_kl,
    )


def _in_units_of_the_prior(rows: RowDensities) -> Tensor | None:
    """The draws of normal latents less their prior means, in its standard deviations, `(samples, n, d)`.

    A latent that depends on others has the mean and the deviation that it has given these. None if a latent is
    not normal, or not in all rows.
    """
    layout, (samples, n) = rows.layout, rows.log_guide.shape
    if not layout.vectorizes or layout.shared or layout.enumerated:
        return None
    found = []
    for name in latents_of_numbers(rows, rows.layout):
        site = rows.model_trace.nodes[name]
        p = elementwise(site["fn"])
        if not isinstance(p, Normal) or not bool(present_numbers(rows, layout, name).all()):
            return None
        units = (site["value"] - p.mean) / p.stddev
        shaped = rows_first({**site, "value": units}, layout, samples, n)
        found.append(shaped.reshape(samples, n, -1))
    return torch.cat(found, -1) if found else None


def all_equal(args: tuple[Tensor, ...], row: tuple[Tensor, ...]) -> bool:
    """Whether all rows equal one row."""
    return len(args) == len(row) and all(
        value.shape[1:] == one.shape[1:] and bool((value == one).all())
        for value, one in zip(args, row, strict=True)
    )


def notes_on_moments(alone: tuple[str, ...], without: tuple[str, ...]) -> tuple[str, ...]:
    """Notes on latents that do not factorize, and on latents without a finite mean or variance."""
    texts = {
        "does not factorize over its dimensions: the KL of each dimension is that of Gaussians with its means "
        "and variances; these need not add up to the rate": alone,
        "has no finite mean or variance: where that is so, medians stand for means, and distances between "
        "quartiles for standard deviations": without,
    }
    return tuple(
        f"guide or prior of {', '.join(map(repr, names))} {text}"
        for text, names in texts.items()
        if names
    )


def notes_on_terms(without_kl: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Notes on latents whose dimensions add to the rate what is no KL."""
    return tuple(
        f"the prior of '{name}' depends on {' and '.join(map(repr, sorted(guilty)))}, which the guide computes "
        f"from '{name}': what stands for the KL of each of its dimensions is what it adds to the rate, "
        "E[log q - log p], which is no KL and may be negative"
        for name, guilty in without_kl.items()
    )


def notes_on_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A note on categorical latents, which are not among the dimensions."""
    if not classes:
        return ()
    names = ", ".join(map(repr, classes))
    return (
        f"{names} is categorical: the number of a category is no code, so it has no dimension here",
    )


def note_on_rows(dimensions: Dimensions, n: int) -> tuple[str, ...]:
    """A note on dimensions that only some of n rows have."""
    some = dimensions.count < n
    if not bool(some.any()):
        return ()
    first = dimensions.names[int(some.nonzero()[0])]
    more = int(some.sum()) - 1
    which = f"'{first}'" + (f" and {more} more" if more else "")
    return (
        f"not all rows have {which}: the numbers of each dimension are those of the rows that have it, at "
        f"least {int(dimensions.count.min())} of {n}",
    )


def _of_site(
    session: Session,
    batch: Batch,
    rows: RowDensities,
    name: str,
    analytic: bool,
) -> tuple[OfSite, Tensor]:
    """The numbers of one latent site for each row, and the means of its prior, `(n, w)`."""
    layout = rows.layout
    samples, n = rows.log_guide.shape
    value = rows.latents[name].double()
    stated = stated_moment(rows, layout, name, "mean")
    centers = value if stated is None else stated.double()
    mean, variance = over_draws(centers)
    noise = variance / samples
    prior = _prior_moments(session, batch, rows, name)
    kl = kl_of_dimensions(rows, name, prior, analytic)
    there = present_numbers(rows, layout, name)
    numbers = (there, kl, mean, noise, prior[1].expand_as(mean))
    names = names_of_dimensions(name, mean.shape[1:])
    of_prior = prior[0].expand_as(mean).reshape(n, -1).cpu()
    return OfSite(tuple(names), *(number.reshape(n, -1).cpu() for number in numbers)), of_prior


def dimension_names(rows: RowDensities) -> list[str]:
    """The names of all latent dimensions of some rows, in the order of `posterior_means`."""
    return [
        name
        for site in rows.layout.latents
        for name in names_of_dimensions(site, rows.latents[site].shape[2:])
    ]


def _prior_moments(
    session: Session, batch: Batch, rows: RowDensities, name: str
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each number of a latent under the prior, `(n, *event)` or `(*event)`.

    They are the moments that the prior's distribution states. If it states none, or one for each value of an
    enumerated latent, they are estimated from draws of the model.
    """
    layout, n = rows.layout, rows.log_guide.shape[1]
    stated = prior_moments(rows, layout, name)
    if stated is not None:
        return stated
    drawn = NUM_DRAWS if layout.vectorizes else 1
    with many_samples(layout, drawn):
        trace = poutine.trace(session.pair.model).get_trace(*as_args(batch))
    value = rows_first(trace.nodes[name], layout, drawn, n).double().flatten(0, 1)
    return over_draws(value)
