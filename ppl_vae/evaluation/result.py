"""What `evaluate` finds: per-row values, what to doubt of them, and how they print."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_vae.pairs import DISTORTION, ELBO_MEASURE, Measure
from ppl_vae.stats import (
    Estimate,
    RowResult,
    bad_khat,
    bits_per_dim,
    khat_limit,
    not_finite,
)

METHODS = ("guide", "refined", "annealed")
"""How log p(x) of a row was found, by the number of the rung."""

ANNEALED_CHAINS = 64
"""Chains of a row that is annealed."""

FEW_ESS = 0.1
"""ESS, as a share of K or of 1,000 if that is less, below which samples do not reach a row of a ladder."""

_ALONE = 1.2
"""ESS below which one sample has nearly all of the weight: its share is above 0.8."""


def not_reached(khat: Tensor, ess: Tensor, rung: Tensor | None, num_samples: int) -> Tensor:
    """Rows whose proposals do not reach where the posterior is, as far as their weights show, `(n,)`.

    Args:
        khat: Pareto shape of each row, `(n,)`.
        ess: Effective sample size, of the chains if the row is annealed.
        rung: The number of each row's method; None if all rows have the samples of the guide.
        num_samples: K.
    """
    bad = bad_khat(khat, ess, num_samples)
    if rung is None:
        return bad
    # So few effective samples estimate neither their error nor k-hat.
    bad |= (ess < FEW_ESS * min(num_samples, 1000)) & (khat != -math.inf)  # exact, if that
    annealed = rung == METHODS.index("annealed")
    return torch.where(annealed, ~(ess >= 0.25 * ANNEALED_CHAINS), bad)


class DataResult(RowResult):
    """A result with log p(x) of each row; a base class of dataclasses, which state its attributes as fields."""

    log_likelihood: Estimate
    num_values: int | Tensor
    counted: str

    derived: ClassVar[tuple[str, ...]] = ("bits_per_dim", "unreliable")

    @property
    def bits_per_dim(self) -> Estimate:
        """Bits per dimension: -log2 p(x) / numbers of the row; the mean is that over all numbers.

        Of sentences, a dimension is a token: a word (or a piece of one, which the vocabulary decides) or the
        end. What fills up a row is none. See `ppl_vae.stats.bits_per_dim`.
        """
        return bits_per_dim(self.log_likelihood, self.num_values, self.counted)

    @property
    def bits_line(self) -> tuple[str, str]:
        """The line of the printed result with the bits per dimension, or per token."""
        bits = self.bits_per_dim
        return bits.unit, bits.missing or f"{bits.mean:.4f}"

    @property
    @abstractmethod
    def unreliable(self) -> Tensor:
        """Rows whose log p(x) should not be trusted, `(n,)`."""


@dataclass(frozen=True)
class Evaluation(DataResult):
    """Result of `evaluate`, row by row, in nats.

    Attributes:
        elbo: E_q log p(x, z) - log q(z | x) = -(rate + distortion), from the same samples; for a guide that
            gives points, log p(x, z) there. NaN where p(z) is improper.
        rate: E_q log q(z | x) - log p(z); for a guide that gives points, -log p(z) there. NaN where p(z) is
            improper.
        distortion: - E_q log p(x | z).
        log_likelihood: log p(x) by importance sampling, log 1/K sum_k w_k: a lower bound in expectation. NaN
            for rows for which the guide gives points, which have no density; its mean is then NaN, too.
        log_likelihood_error: Monte-Carlo standard error of each row's log p(x) (delta method), `(n,)`.
        ess: Effective sample size of each row's weights, (sum w)^2 / sum w^2, `(n,)`.
        khat: Pareto shape of each row's largest weights, `(n,)`. Do not trust rows above `khat_limit`. It is
            infinite where it cannot be estimated. It is NaN where weights are zero, infinite or NaN, and where
            K equal weights of a discrete latent say nothing about the values that were not drawn.
        num_samples: K.
        num_values: Numbers of data per row, for bits per dimension: those of the observed sites that masks
            leave in; one count for each row, `(n,)`, if they differ; 0 if a `pyro.factor` is a part of the
            likelihood, which has no count: bits per dimension are then NaN.
        rung: The number of the method by which each row's log p(x) was found, `(n,)`; None if all are samples
            from the guide. `method` has the names.
        drawn: Rows with discrete latents that are drawn, because their values are too many to sum over, `(n,)`;
            None if no row has any. No number shows what the guide does not draw. Rows of a guide that is known
            to leave out nothing (`StructuredMeanField` of the model) are not among them.
        certain: Whether the guide puts all of its mass on one value of each latent, as a quantizer does. Then
            ELBO, rate and distortion are exact, and log p(x), which is at least the ELBO, is NaN.
        at_points: Whether the guide gives a point for every latent, and draws nothing.
        measure: What `elbo` and `rate` are called: of points, and where p(z) of some rows is improper, they are
            none. `rows()`, `to_dict()` and the files of a run have them under these names.
        counted: What `num_values` counts: a "dimension"; a "token" if the data are sentences, of which each
            word and the end count.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    log_likelihood: Estimate
    log_likelihood_error: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int
    num_values: int | Tensor
    drawn: Tensor | None = None
    rung: Tensor | None = None
    certain: bool = False
    at_points: bool = False
    measure: Measure = ELBO_MEASURE
    counted: str = "dimension"

    derived: ClassVar = (*DataResult.derived, "method", "unreliable")
    hidden: ClassVar = ("rung",)

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield "measure", self.measure.name
        yield from self.measure.of(dict(super()._values())).items()

    @property
    def method(self) -> list[str]:
        """How log p(x) of each row was found: a name of `METHODS`."""
        if self.rung is None:
            return ["guide"] * self.num_rows
        return [METHODS[i] for i in self.rung.tolist()]

    @property
    def khat_limit(self) -> float:
        """The Pareto shape above which a row's log p(x) is unreliable, for this number of samples."""
        return khat_limit(self.num_samples)

    @property
    def unreliable(self) -> Tensor:
        """Rows whose log p(x) should not be trusted: k-hat is above the limit, or says nothing, `(n,)`.

        Rows whose ESS is at least 0.9 K are not among them, unless k-hat is NaN; see
        `ppl_vae.stats.bad_khat`. Rows with discrete latents that are drawn are, if the guide may leave values
        out: k-hat is that of what the guide draws. Where the guide is certain, log p(x) is not claimed, and no
        row is among them.
        """
        if self.certain:
            return torch.zeros(self.num_rows, dtype=torch.bool)
        return self._bad_khat if self.drawn is None else self._bad_khat | self.drawn

    @property
    def _annealed(self) -> Tensor:
        """Rows that were annealed, `(n,)`."""
        if self.rung is None:
            return torch.zeros(self.num_rows, dtype=torch.bool)
        return self.rung == METHODS.index("annealed")

    @property
    def _remedy(self) -> str:
        """What reaches rows that are left: annealing, if it was not done."""
        alone = "annealed_importance_sampling"
        if self.rung is None or bool(self._annealed.any()):
            return alone
        left = self._bad_khat & (self.rung == METHODS.index("refined"))
        return f"method='annealed' (or {alone})" if bool(left.any()) else alone

    @property
    def _bad_khat(self) -> Tensor:
        """Rows whose k-hat is above the limit, or unknown, `(n,)`."""
        return not_reached(self.khat, self.ess, self.rung, self.num_samples)

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        n, bad, khat, limit = self.num_rows, self._bad_khat, self.khat, f"{self.khat_limit:.2f}"
        few = bad & khat.isfinite() & ~bad_khat(khat, self.ess, self.num_samples)
        heavy = bad & khat.isfinite() & ~few
        alone = heavy & (self.ess < _ALONE)
        if count := int((heavy & ~alone).sum()):
            more = float(khat[heavy & ~alone].max()) < 1  # otherwise, more samples help little
            remedy = "more samples" if more else self._remedy
            yield (
                f"Pareto k-hat exceeds {limit} on {count} of {n} rows: do not trust their log p(x), which is "
                f"likely too low; use a better guide or {remedy}"
            )
        if count := int(alone.sum()):
            yield (
                f"one sample has nearly all of the weight on {count} of {n} rows: their log p(x) may be far "
                f"too low or too high; use a better guide or {self._remedy}"
            )
        if count := int(few.sum()):
            yield (
                f"the weights of {count} of {n} rows have few effective samples (ess): the error of their log "
                f"p(x) is larger than log_likelihood_error says; use more samples or {self._remedy}"
            )
        if count := int((bad & (khat == math.inf)).sum()):
            yield (
                f"Pareto k-hat cannot be estimated on {count} of {n} rows, which have too few different "
                "weights: their log p(x) says little; use more samples or a better guide"
            )
        annealed = self._annealed
        if count := int((bad & annealed).sum()):
            yield (
                f"fewer than a quarter of the {ANNEALED_CHAINS} chains count on {count} of {n} rows that were "
                "annealed: do not trust their log p(x); use a better guide or annealed_importance_sampling"
            )
        without = khat.isnan() & self.log_likelihood.values.isfinite() & ~annealed
        if count := int((bad & without).sum()):
            yield (
                f"all samples have the same weight on {count} of {n} rows, which says nothing about discrete "
                "values that were not drawn: do not trust their log p(x); use more samples"
            )
        if count := int(((khat > 0.5) & (khat <= self.khat_limit) & ~bad).sum()):
            yield (
                f"Pareto k-hat is between 0.5 and {limit} on {count} of {n} rows: their Monte-Carlo error is "
                "larger than log_likelihood_error says; use more samples"
            )
        values = self.log_likelihood.values
        if self.log_likelihood.missing:  # a caution says which rows have none
            values = values.masked_fill(values.isnan() & self.distortion.values.isfinite(), 0.0)
        yield from not_finite("log p(x)", Estimate(values))
        if not self.rate.missing:  # as above
            yield from not_finite("the rate, of log q(z | x) and log p(z),", self.rate)
        yield from not_finite("the distortion, of log p(x | z),", self.distortion)

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        known = ~self.log_likelihood.values.isnan()
        n = int(known.sum())
        among = "" if n == self.num_rows else f", of {n} rows"
        finite = self.khat[known & torch.isfinite(self.khat)]
        largest = f"{float(finite.max()):.2f}" if len(finite) else "-"
        share = float(self._bad_khat[known].double().mean())
        bounds = [
            (f"{self.measure.text}{self.measure.at}", str(self.elbo)),
            (self.measure.rate_text, str(self.rate)),
            ("distortion", str(self.distortion)),
        ]
        if self.measure is DISTORTION:
            bounds = [bounds[2], ("ELBO, rate", str(self.elbo))]  # which says what is missing
        if n == 0 and self.certain:
            of_elbo = bits_per_dim(self.elbo, self.num_values, self.counted)
            most = of_elbo.missing or f"at most {of_elbo.mean:.4f}, by the ELBO"
            return [*bounds, ("log p(x)", "at least the ELBO"), (of_elbo.unit, most)]
        if n == 0 and self.measure is DISTORTION:
            return [bounds[0], ("ELBO, log p(x)", "not defined")]
        if n == 0:
            return [*bounds, ("log p(x)", "not defined")]
        bits = self.bits_line
        if bool((self.khat[known] == -math.inf).all()) and not bool(
            self.log_likelihood_error[known].any()
        ):
            return [*bounds, ("log p(x), exact", str(self.log_likelihood)), bits]
        taken = {name: self.method.count(name) for name in METHODS}
        rungs = ", ".join(f"{name} {count}" for name, count in taken.items() if count)
        return [
            *bounds,
            (f"log p(x), {self.num_samples} samples", str(self.log_likelihood)),
            *([] if self.rung is None else [("proposals, rows", rungs)]),
            bits,
            (
                f"ESS, median{among}",
                f"{float(self.ess[known].double().median()):.1f} of {self.num_samples}",
            ),
            (
                f"Pareto k-hat, largest{among}",
                f"{largest} ({100 * share:.1f} % above {self.khat_limit:.2f})",
            ),
        ]
