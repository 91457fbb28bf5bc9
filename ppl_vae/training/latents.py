"""What each latent dimension carries, after each epoch, and which of them have died."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vae.pairs import (
    COLLAPSED,
    Batch,
    Pair,
    RowDensities,
    factorize,
    kl_and_noise_of_dimensions,
    latents_of_numbers,
    mask_kind,
    mean_field_violations,
    names_of_dimensions,
    over_draws,
    present_numbers,
    prior_moments,
    stated_moment,
)

_logger = logging.getLogger(__name__)

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

DEAD_EPOCHS = 5
"""Epochs in a row for which a dimension carries nothing until it is called dead."""


class LatentUse:
    """Active units and the KL of each dimension over some rows.

    Args:
        pair: The pair.
        violations: The sites whose analytic KL would be wrong, by the kind of the rows; it is filled in.
    """

    def __init__(self, pair: Pair, violations: dict[object, frozenset[str]]) -> None:
        self._pair = pair
        self._violations = violations
        self._means: dict[tuple[str, int], list[Tensor]] = {}  # and their variance over draws
        self._masked = False
        # By site, the sums over rows: of the KL, of the variance that draws give it, of rows with the number.
        self._kl: dict[str, list[tuple[Tensor, Tensor | int]]] = {}
        self._names: dict[str, list[str]] = {}
        self._without_kl: set[str] = set()
        self._samples = 0

    def update(self, rows: RowDensities, batch: Batch) -> None:
        """Adds rows."""
        layout, (self._samples, n) = rows.layout, rows.log_guide.shape
        for name in latents_of_numbers(rows, layout):
            mean, noise = _mean_and_noise(rows, name)
            prior = prior_moments(rows, layout, name)
            scale = _scale_of_the_prior(prior, mean)
            scaled = torch.stack([mean / scale, noise / scale**2])
            there = None
            if not mask_kind(rows.guide_trace.nodes[name]):
                there = present_numbers(rows, layout, name).reshape(n, -1)
                scaled = scaled.masked_fill(~there, math.nan)
                self._masked = True
            self._means.setdefault((name, mean.shape[1]), []).append(scaled.cpu())
            if prior is None or layout.points:
                continue
            violates = name in self._violations_of(rows, batch)
            kl, spread = kl_and_noise_of_dimensions(rows, name, prior, analytic=not violates)
            if violates and factorize(rows.guide_trace.nodes[name], rows.model_trace.nodes[name]):
                self._without_kl.add(name)
            names = names_of_dimensions(name, kl.shape[1:])
            if self._names.setdefault(name, names) != names:
                continue  # of another size than in the rows before
            both = torch.stack([kl, spread]).reshape(2, n, -1)
            kept = both if there is None else both.masked_fill(~there, 0.0)
            count = n if there is None else there.sum(0)
            self._kl.setdefault(name, []).append((kept.sum(1), count))

    def _violations_of(self, rows: RowDensities, batch: Batch) -> frozenset[str]:
        kind = rows.layout.signature
        if kind not in self._violations:
            one = len(rows.layout.latents) < 2  # nothing that it could depend on
            found = () if one else mean_field_violations(self._pair, batch)
            self._violations[kind] = frozenset(found)
        return self._violations[kind]

    @property
    def metrics(self) -> dict[str, float]:
        """`active_units`, the mean KL of each dimension over the rows that have it, and its error, nats.

        `active_units` is left out for a single row, and if draws decide it: the guide states no mean, and there
        are too few rows. So is the error if nothing is drawn for the KLs; and the KLs if there are more than
        `MOST_DIMENSIONS`, those of a site whose prior states no moments, and of a dimension that no row has.
        """
        found: dict[str, float] = {}
        columns = [torch.cat(parts, 1).unbind() for parts in self._means.values()]
        active = [_num_active(mean, noise, self._samples, self._masked) for mean, noise in columns]
        if None not in active:
            found["active_units"] = sum(number or 0 for number in active)
        if sum(map(len, self._names.values())) > MOST_DIMENSIONS:
            return found
        error = 0.0
        for site, parts in self._kl.items():
            kl, noise = torch.stack([of for of, _ in parts]).sum(0)
            counts = torch.as_tensor(sum(number for _, number in parts)).expand(len(kl))
            means, errors = (kl / counts).tolist(), (noise.sqrt() / counts).tolist()
            of_what = TERM if site in self._without_kl else KL
            for name, mean, e, number in zip(
                self._names[site], means, errors, counts.tolist(), strict=True
            ):
                if number:
                    found[of_what + name] = mean
                    if of_what == KL and mean - 3 * e < LITTLE:
                        error = max(error, e)
        return found | ({ERROR_OF_KL: error} if error else {})


def kl_of_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """The KL of each dimension in the metrics of an epoch, by the dimension's name.

    Example:
        >>> kl_of_epoch({"epoch": 3, "rate": 2.0, "kl_z[0]": 1.9, "kl_z[1]": 0.1})
        {'z[0]': 1.9, 'z[1]': 0.1}
    """
    return {name[len(KL) :]: value for name, value in metrics.items() if name.startswith(KL)}


def terms_of_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """What each dimension that has no KL adds to the rate, by the dimension's name, as `kl_of_epoch`.

    Example:
        >>> terms_of_epoch({"epoch": 3, "rate": 2.0, "kl_top": 2.1, "rate_middle": -0.1})
        {'middle': -0.1}
    """
    return {name[len(TERM) :]: value for name, value in metrics.items() if name.startswith(TERM)}


def dead_dimensions(history: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """The dimensions that have carried less than 0.01 nats in each of the last 5 epochs.

    Where the KLs are of draws, two standard errors more are less than that. A dimension that has no KL is not
    known to be dead.

    Example:
        >>> dead_dimensions([{"epoch": i, "kl_z[0]": 1.0, "kl_z[1]": 0.001} for i in range(5)])
        ('z[1]',)
    """
    if len(history) < DEAD_EPOCHS:
        return ()
    dead = frozenset.intersection(*map(carry_nothing, history[-DEAD_EPOCHS:]))
    return tuple(name for name in kl_of_epoch(history[-1]) if name in dead)


def carry_nothing(metrics: Mapping[str, float]) -> frozenset[str]:
    """The dimensions that surely carry less than 0.01 nats, by the metrics of an epoch.

    Example:
        >>> sorted(carry_nothing({"kl_z[0]": 0.009, "kl_z[1]": 0.001, "error_of_kl": 0.002}))
        ['z[1]']
    """
    least = COLLAPSED - 2 * metrics.get(ERROR_OF_KL, 0.0)
    return frozenset(name for name, kl in kl_of_epoch(metrics).items() if kl < least)


class Deaths:
    """Says in the log that dimensions have died, each of them once, and at most every 5 epochs.

    Of dimensions that have no KL, it says so once, if what they add to the rate looks as if they had died.

    Args:
        history: The epochs before, when a training is resumed: what died in them has been said.
        speaks: Whether this process says it.
    """

    def __init__(self, history: Sequence[Mapping[str, float]], speaks: bool = True) -> None:
        self._named: dict[str, None] = {}
        self._last = -DEAD_EPOCHS
        self._speaks = False
        self._doubted = False
        for end in range(1, len(history) + 1):
            self.look(history[max(0, end - DEAD_EPOCHS) : end], end)
        self._speaks = speaks

    def look(self, history: Sequence[Mapping[str, float]], epoch: int) -> None:
        """Looks at the epochs so far, of which the last has just ended."""
        self._look_at_terms(history, epoch)
        new = [name for name in dead_dimensions(history) if name not in self._named]
        if not new or epoch - self._last < DEAD_EPOCHS:
            return
        self._last = epoch
        self._named |= dict.fromkeys(new)
        number = len(kl_of_epoch(history[-1])) + len(terms_of_epoch(history[-1]))
        self._say(_said(new, number, epoch))

    def _look_at_terms(self, history: Sequence[Mapping[str, float]], epoch: int) -> None:
        if self._doubted or len(history) < DEAD_EPOCHS:
            return
        terms = [terms_of_epoch(row) for row in history[-DEAD_EPOCHS:]]
        small = [n for n in terms[-1] if all(row.get(n, math.inf) < COLLAPSED for row in terms)]
        if small:
            self._doubted = True
            self._say(_not_known(small, epoch))

    def _say(self, text: str) -> None:
        if self._speaks:
            _logger.warning("%s", text)


def _not_known(small: Sequence[str], epoch: int) -> str:
    add, each, it_is = ("adds", "", "it is") if len(small) == 1 else ("add", " each", "they are")
    return (
        f"epoch {epoch}: {_few(small)} {add} less than {COLLAPSED} nats{each} to the rate, which does not say "
        f"that {it_is} unused: the prior depends on latents that the guide computes from the same draws, so "
        f"that this number ({TERM}{small[0]}) is no KL and may be negative. See active_units and diagnose()"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(itertools.islice(names, 3))}{more}"


def _said(new: Sequence[str], number: int, epoch: int) -> str:
    have, each = ("has", "") if len(new) == 1 else ("have", " each")
    every = "both latent dimensions" if number == 2 else f"all {number} latent dimensions"
    whole = every if 1 < len(new) == number else _few(new)
    return (
        f"epoch {epoch}: {whole} {have} carried less than {COLLAPSED} nats{each} for {DEAD_EPOCHS} epochs; "
        "diagnose() and `ppl-vae diagnose` say why"
    )


def _mean_and_noise(rows: RowDensities, name: str) -> tuple[Tensor, Tensor]:
    """The posterior mean of a latent's numbers, each `(n, d)`, and the variance that draws give it."""
    stated = stated_moment(rows, rows.layout, name, "mean")
    samples, n = rows.log_guide.shape
    centers = (rows.latents[name] if stated is None else stated).reshape(samples, n, -1)
    means, noise = over_draws(centers)
    return means, noise / samples


def _scale_of_the_prior(prior: tuple[Tensor, Tensor] | None, means: Tensor) -> Tensor:
    """The prior's standard deviations of a latent's numbers, `(d,)`; 1 where there are none."""
    if prior is None:
        return means.new_ones(means.shape[1])
    variances = prior[1].reshape(len(means), -1).mean(0).tolist()
    return means.new_tensor([math.sqrt(v) if 0 < v < math.inf else 1.0 for v in variances])


def _num_active(means: Tensor, noise: Tensor, samples: int, masked: bool) -> int | None:
    """The number of active units, each over the rows that have it; None for one row, or if draws would decide.

    The variance of the means over n rows is too large by what K draws give each of them, v on average. Where
    the means are all the same, the difference of the two has a standard error of v sqrt(2 (1 + 1 / (K - 1)) /
    n), which must be below half of what makes a dimension active.

    Args:
        means: Posterior means in units of the prior, `(n, d)`; NaN in rows without the number.
        noise: The variances that draws give them, as many.
        samples: K.
        masked: Whether there are such rows.
    """
    if len(means) < 2:
        return None
    if masked:
        there = ~means.isnan()
        counts = there.sum(0)
        squares = (means - means.nansum(0) / counts.clamp(min=1)).square().nansum(0)
        variances = squares / (counts - 1).clamp(min=1)
        drawn = noise.masked_fill(~there, 0.0).sum(0) / counts.clamp(min=1)
        numbers = counts.tolist()
    else:
        variances, drawn = over_draws(means)[1], noise.mean(0)
        numbers = [len(means)] * means.shape[1]
    # Number by number: as tensors these few take a tenth of a millisecond, which is felt in short epochs.
    found = 0
    for n, variance, by_draws in zip(numbers, variances.tolist(), drawn.tolist(), strict=True):
        if n < 2:
            continue
        error = by_draws * math.sqrt(2 * (1 + 1 / (samples - 1)) / n)
        if error > ACTIVE / 2 and variance - by_draws < ACTIVE + SURE * error:
            return None
        found += variance - by_draws > ACTIVE
    return found
