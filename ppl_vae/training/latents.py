"""What each latent dimension carries, after each epoch.

An epoch may be short, so that a tenth of a millisecond is felt. What rows have is summed by torch; with the
sums, which are few numbers, numpy computes, whose operations take a tenth of the time. What does not change
from epoch to epoch is kept in `Known`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_vae.objectives import marked_sites
from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    NormalRows,
    Pair,
    RowDensities,
    factorize,
    kl_and_noise_of_dimensions,
    latents_of_numbers,
    mask_kind,
    mean_field_violations,
    names_of_dimensions,
    normal_rows,
    over_draws,
    present_numbers,
    prior_moments,
    stated_moment,
)

KL = "kl_"
"""Before the name of a dimension: its KL in the metrics of an epoch, `kl_z[0]`."""

TERM = "rate_"
"""Before the name of a dimension that has no KL: what it adds to the rate, which may be negative, `rate_z[0]`.

So it is where the prior depends on latents that the guide computes from it: see `mean_field_violations`."""

ERROR_OF_KL = "error_of_kl"
"""The metric that says how far draws may have moved the KL of a dimension that carries little, nats."""

MOST_DIMENSIONS = 512
"""Most dimensions whose KL is in the metrics."""

LITTLE = 10 * COLLAPSED
"""KL in nats below which it matters whether a dimension carries nothing, or only little."""

ACTIVE = 0.01
"""Variance of the posterior means, in units of the prior's, above which a dimension is active."""

SURE = 3.0
"""Standard errors above that variance beyond which a dimension is surely active."""

Floats = NDArray[np.float64]


@dataclass
class Known:
    """What is found once for all epochs.

    Attributes:
        violations: By the kind of the rows, the sites whose analytic KL would be wrong.
        names: By what stands before them, site and shape: the names of the metrics of its dimensions.
    """

    violations: dict[object, frozenset[str]] = field(default_factory=dict)
    names: dict[tuple[str, str, torch.Size], list[str]] = field(default_factory=dict)

    def names_of(self, of_what: str, site: str, shape: torch.Size) -> list[str]:
        """The names of the metrics of a site's dimensions, such as `kl_z[0]`."""
        key = of_what, site, shape
        if key not in self.names:
            self.names[key] = [of_what + name for name in names_of_dimensions(site, shape)]
        return self.names[key]


@dataclass(frozen=True)
class _Sums:
    """Sums over rows, of each of the d dimensions of a site, in double precision.

    Attributes:
        count: The rows; or how many of them have each dimension, `(d,)`.
        mean: The mean of its posterior means, in units of the prior, `(d,)`.
        squares: Their squared deviations from that, `(d,)`.
        noise: The variances that draws give them, `(d,)`; None if nothing is drawn for them.
        kl: Its KL, `(d,)`; None if that is not known.
        kl_noise: The variances that draws give that, `(d,)`; None if nothing is drawn for it.
    """

    count: Floats | float
    mean: Floats
    squares: Floats
    noise: Floats | None = None
    kl: Floats | None = None
    kl_noise: Floats | None = None

    def plus(self, more: _Sums) -> _Sums:
        """With more rows; means and squares by the pairwise update of Chan, Golub & LeVeque."""
        count = self.count + more.count
        share = more.count / np.maximum(count, 1.0)
        with np.errstate(all="ignore"):  # of a training that diverges
            delta = more.mean - self.mean
            squares = self.squares + more.squares + delta**2 * (self.count * share)
            mean = self.mean + delta * share
        known = self.kl is not None and more.kl is not None
        return _Sums(
            count,
            mean,
            squares,
            _added(self.noise, more.noise),
            _added(self.kl, more.kl) if known else None,
            _added(self.kl_noise, more.kl_noise),
        )


def _added(one: Floats | None, other: Floats | None) -> Floats | None:
    """The sum of two; None is 0."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


class LatentUse:
    """Active units and the KL of each dimension over some rows.

    Args:
        pair: The pair.
        known: What has been found of the pair before, to which more is added.
    """

    def __init__(self, pair: Pair, known: Known) -> None:
        self._pair = pair
        self._known = known
        self._sums: dict[tuple[str, torch.Size], _Sums] = {}  # by site and shape
        self._without_kl: set[str] = set()
        self._samples = 0

    @property
    def is_empty(self) -> bool:
        """Whether no rows have been added."""
        return self._samples == 0

    def update(self, rows: RowDensities, batch: Batch) -> None:
        """Adds rows."""
        self._samples = rows.log_guide.shape[0]
        codes = marked_sites(rows.guide_trace)  # whose numbers are names, and no values
        for name in latents_of_numbers(rows, rows.layout):
            if name in codes:
                continue
            normal = normal_rows(rows, name)
            sums = self._of_site(rows, batch, name) if normal is None else _of_normals(normal)
            key = name, rows.latents[name].shape[2:]
            before = self._sums.get(key)
            self._sums[key] = sums if before is None else before.plus(sums)

    def _of_site(self, rows: RowDensities, batch: Batch, name: str) -> _Sums:
        """The sums of any latent; without a KL if its prior states no moments."""
        n = rows.log_guide.shape[1]
        mean, noise = _mean_and_noise(rows, name)
        prior = prior_moments(rows, rows.layout, name)
        scale = _scale_of_the_prior(prior, mean)
        there = None
        if not mask_kind(rows.guide_trace.nodes[name]):
            there = present_numbers(rows, rows.layout, name).reshape(n, -1)
        noise = None if noise is None else noise / scale**2
        sums = _over_rows(mean / scale, noise, there)
        if prior is None or rows.layout.points:
            return sums
        violates = name in self._violations_of(rows, batch)
        kl, spread = kl_and_noise_of_dimensions(rows, name, prior, analytic=not violates)
        if violates and factorize(rows.guide_trace.nodes[name], rows.model_trace.nodes[name]):
            self._without_kl.add(name)
        both = torch.stack([kl, spread]).reshape(2, n, -1)
        kept = both if there is None else both.masked_fill(~there, 0.0)
        of_rows, of_draws = _as_floats(kept.sum(1))
        return replace(sums, kl=of_rows, kl_noise=of_draws)

    def _violations_of(self, rows: RowDensities, batch: Batch) -> frozenset[str]:
        kind, violations = rows.layout.signature, self._known.violations
        if kind not in violations:
            one = len(rows.layout.latents) < 2  # nothing that it could depend on
            found = () if one else mean_field_violations(self._pair, batch)
            violations[kind] = frozenset(found)
        return violations[kind]

    @property
    def metrics(self) -> dict[str, float]:
        """`active_units`, the mean KL of each dimension over the rows that have it, and its error, nats.

        `active_units` is left out for a single row, and if draws decide it: the guide states no mean, and there
        are too few rows. So is the error if nothing is drawn for the KLs; and the KLs if there are more than
        `MOST_DIMENSIONS`, those of a site whose prior states no moments, and of a dimension that no row has.
        """
        found: dict[str, float] = {}
        if not self._sums:
            return found
        active = [_num_active(sums, self._samples) for sums in self._sums.values()]
        if None not in active:
            found["active_units"] = sum(number or 0 for number in active)
        kls: dict[
            str, tuple[torch.Size, _Sums]
        ] = {}  # of other batches, a site may have another shape
        for (site, shape), sums in self._sums.items():
            if sums.kl is not None:
                kls.setdefault(site, (shape, sums))
        if sum(shape.numel() for shape, _ in kls.values()) > MOST_DIMENSIONS:
            return found
        error = 0.0
        for site, (shape, sums) in kls.items():
            of_what = TERM if site in self._without_kl else KL
            means, errors = _kl_and_errors(sums)
            pairs = zip(self._known.names_of(of_what, site, shape), means, strict=True)
            found.update((name, mean) for name, mean in pairs if mean is not None)
            if of_what == KL:
                error = max(error, errors)
        return found | ({ERROR_OF_KL: error} if error else {})


def _as_floats(sums: Tensor) -> Floats:
    found: Floats = sums.detach().double().cpu().numpy()
    return found


def _of_normals(normal: NormalRows) -> _Sums:
    """The sums of normal numbers, for which nothing is drawn."""
    away = (normal.mean - normal.prior_mean) / normal.prior_scale
    ratio = (normal.scale / normal.prior_scale).square_()
    in_units = away
    if len(normal.prior_scale) > 1:  # the prior's variance is then its mean over rows
        in_units = normal.mean / normal.prior_scale.square().mean(0).sqrt_()
    mean = in_units.mean(0)
    squares = (in_units - mean).square_().sum(0)
    twice = away.square_().add_(ratio).sub_(ratio.log()).sum(0, dtype=torch.float64)
    n = float(len(away))
    mean, squares, twice = _as_floats(torch.stack([mean, squares, twice]))
    return _Sums(n, mean, squares, kl=0.5 * (twice - n))


def _over_rows(means: Tensor, noise: Tensor | None, there: Tensor | None) -> _Sums:
    """The sums over rows, of those that have a number.

    Args:
        means: Posterior means in units of the prior, `(n, d)`.
        noise: The variances that draws give them, as many; None if nothing is drawn for them.
        there: Which rows have which number; None if all have all.
    """
    if there is None:
        mean = means.mean(0)
        squares = (means - mean).square().sum(0)
        drawn = [] if noise is None else [noise.sum(0)]
        return _Sums(float(len(means)), *_as_floats(torch.stack([mean, squares, *drawn])))
    means = means.masked_fill(~there, 0.0)
    count = there.sum(0).to(means)
    mean = means.sum(0) / count.clamp(min=1)
    squares = (means - mean).square().masked_fill(~there, 0.0).sum(0)
    drawn = [] if noise is None else [noise.masked_fill(~there, 0.0).sum(0)]
    return _Sums(*_as_floats(torch.stack([count, mean, squares, *drawn])))


def _kl_and_errors(sums: _Sums) -> tuple[list[float | None], float]:
    """The mean KL of each dimension, None of one that no row has, and the largest error that matters."""
    assert sums.kl is not None
    with np.errstate(all="ignore"):  # of dimensions that no row has, and a training that diverges
        found = sums.kl / sums.count
        means: list[float | None] = found.tolist()
        if not isinstance(sums.count, float):
            means = [m if n else None for m, n in zip(means, sums.count.tolist(), strict=True)]
        if sums.kl_noise is None:
            return means, 0.0
        errors = np.sqrt(sums.kl_noise) / sums.count
        matter = (found - 3 * errors < LITTLE) & (sums.count > 0)
        return means, float(np.max(errors, where=matter, initial=0.0))


def _num_active(sums: _Sums, samples: int) -> int | None:
    """The number of active units, each over the rows that have it; None for one row, or if draws would decide.

    The variance of the means over n rows is too large by what K draws give each of them, v on average. Where
    the means are all the same, the difference of the two has a standard error of v sqrt(2 (1 + 1 / (K - 1)) /
    n), which must be below half of what makes a dimension active.

    Args:
        sums: Over the rows.
        samples: K.
    """
    count, noise = sums.count, sums.noise
    if noise is None and isinstance(count, float):
        return None if count < 2 else int(np.count_nonzero(sums.squares > ACTIVE * (count - 1)))
    some = np.maximum(count, 1.0)
    if not np.any(some > 1):
        return None
    with np.errstate(all="ignore"):  # of a training that diverges
        drawn = (0.0 if noise is None else noise) / some
        variance = sums.squares / np.maximum(some - 1, 1.0) - drawn
        error = drawn * np.sqrt(2 * (1 + 1 / (samples - 1)) / some)
        doubtful = (error > ACTIVE / 2) & (variance < ACTIVE + SURE * error)
        if np.any((some > 1) & doubtful):
            return None
        return int(np.count_nonzero((some > 1) & (variance > ACTIVE)))


def _mean_and_noise(rows: RowDensities, name: str) -> tuple[Tensor, Tensor | None]:
    """The posterior mean of a latent's numbers, `(n, d)`, and the variance that draws give it; None: none."""
    stated = stated_moment(rows, rows.layout, name, "mean")
    samples, n = rows.log_guide.shape
    centers = (rows.latents[name] if stated is None else stated).reshape(samples, n, -1)
    if samples > 1 and not centers.stride(0):  # stated, and repeated for each draw
        return centers[0].double(), None
    means, noise = over_draws(centers)
    return means, noise / samples


def _scale_of_the_prior(prior: tuple[Tensor, Tensor] | None, means: Tensor) -> Tensor:
    """The prior's standard deviations of a latent's numbers, `(d,)`; 1 where there are none."""
    if prior is None:
        return means.new_ones(means.shape[1])
    variances = _as_floats(prior[1].reshape(len(means), -1).mean(0))
    known = (variances > 0) & np.isfinite(variances)
    return torch.from_numpy(np.sqrt(np.where(known, variances, 1.0))).to(means)
