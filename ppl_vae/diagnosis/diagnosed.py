"""What `diagnose` finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae.diagnosis.causes import Cause, command, in_lines, main_cause
from ppl_vae.diagnosis.use_of_codes import (
    UseOfCodes,
    lines_of_codes,
    table_of_codes,
    told_of_codes,
)
from ppl_vae.diagnosis.use_of_points import UseOfPoint, table_of_points, told_of_points
from ppl_vae.diagnosis.use_of_sentences import (
    UseOfSentences,
    lines_of_sentences,
    told_of_sentences,
)
from ppl_vae.stats import Estimate, Result

SATURATED = 1.0
"""Nats below the limit for so many rows from which on the mutual information is only a lower bound."""


@dataclass(frozen=True)
class UseOfElements:
    """What is known of a discrete latent with many elements, such as a segment per pixel.

    Attributes:
        count: Number of elements of a row.
        values: How many values each may have.
        used_values: How many of them are used: exp of the entropy of their shares.
        rate: The rate, nats per element.
        gain: By how much log p(x | z) falls with the z of another row, nats per element.
    """

    count: int
    values: int
    used_values: float
    rate: float
    gain: float


@dataclass(frozen=True)
class Diagnosis(Result):
    """Result of `diagnose`. The d latent dimensions are those of all latent sites, in order.

    Classes, categorical latents beside others, are not among them: the number of a class is no code.

    Attributes:
        names: The dimensions' names, `z[0]`, `z[1]`, ...
        kl: Mean of each dimension's KL(q || p) over the rows that have it, nats, `(d,)`. Where the prior of a
            latent depends on others that the guide computes from it, it is what the dimension adds to the rate,
            which is no KL and may be negative: `notes` name such latents.
        mean_variance: Variance of the posterior means over those rows, `(d,)`.
        active: Which dimensions are active units: `mean_variance` > 0.01 times the prior's variance (Burda et
            al., for a prior of variance 1), `(d,)`.
        collapsed: Which dimensions have collapsed onto the prior: KL < 0.01 nats, and not active, `(d,)`. Those
            without a KL have if the rate is below 0.01 nats per dimension.
        mutual_information: I(x; z) under q, nats, from the aggregate posterior of the rows given. NaN, and its
            `missing` says why, if the guide gives no density of one row's latents under another's posterior.
        marginal_kl: KL(aggregate posterior || prior), nats. The mean rate is the sum of the two.
        leave_one_out: I(x; z) with the aggregate posterior of the other rows, nats: an upper bound.
        rate: E KL(q(z | x) || p(z)) of the rows given, nats: an upper bound on I(x; z), too. -log p(z) of
            points.
        causes: Why each dimension that is not active is not, by name: with evidence, and what to do about it.
        num_rows: Number of rows used.
        information_limit: The largest mutual information that these rows can show, nats; log n if None.
        beta: The beta that the pair was trained with, as far as it was given.
        faults: What else is wrong, by name, each in a sentence with its number and a remedy: `overfit decoder`,
            `overfit encoder` or, if that is not known, `overfit`; `prior mismatch`; `log p(x) not trusted`,
            `poor guide`, `still training`; of a prior that was fitted to codes `prior still fitting`, `prior
            not fitted`.
        run: The folder of the run, if the pair is one: what to type is then a command for it.
        fault_options: What to type against faults, by their names: options as those of a `Cause`.
        of_elements: If the only latent is a discrete one with many elements, which is judged as a whole: what
            is known of it. Then there is one dimension, that latent, active if its rate, or what the decoder
            gains by its value, is 0.01 nats per element or more.
        of_codes: If all latents are codes of a quantizer that are certain: what is known of each codebook;
            empty for other latents. Then there is one dimension for each codebook, active if the codes differ
            from row to row and the decoder needs them, and `causes` also say why codes of an active one are
            dead.
        of_points: If the guide gives points, as that of an autoencoder: what is known of each number of the
            code. Then there is no KL and no mutual information, and a number is active if it is worth 0.01 nats
            to the decoder.
        of_sentences: If the only latent is a sentence, which is judged as a whole: what is known of it. Then
            there is one dimension, that latent, active if each word of it is worth 0.01 nats to the decoder,
            and it is not a copy of x.
    """

    names: tuple[str, ...]
    kl: Tensor
    mean_variance: Tensor
    active: Tensor
    collapsed: Tensor
    mutual_information: Estimate
    marginal_kl: Estimate
    leave_one_out: Estimate
    rate: Estimate
    causes: Mapping[str, Cause]
    num_rows: int
    information_limit: float | None = None
    beta: float = 1.0
    faults: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    fault_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    of_elements: UseOfElements | None = None
    of_codes: tuple[UseOfCodes, ...] = ()
    of_points: tuple[UseOfPoint, ...] = ()
    of_sentences: UseOfSentences | None = None

    @property
    def cause(self) -> str:
        """Why most of the dimensions that are not active are not; `none` if all are."""
        return main_cause(self.causes).name

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return main_cause(self.causes).remedy

    @property
    def active_units(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    @property
    def information_bounds(self) -> tuple[float, float]:
        """Between which values I(x; z) of the population is, nats, with two standard errors on both sides.

        In expectation, the estimate of n rows is a lower bound, at most log n. The rate, and the estimate with
        the aggregate posterior of the other rows, are upper bounds: the smaller one counts. Where the estimates
        are not known, the values are 0 and the rate.
        """
        if self.of_points:  # without a density
            return 0.0, math.nan
        lower = _beyond(self.mutual_information, -2.0)
        # Where the prior depends on what rows come with, the rate is no bound: the "marginal KL" is negative.
        common = not _beyond(self.marginal_kl, 2.0) < 0
        bounds = (self.rate, self.leave_one_out) if common else (self.leave_one_out,)
        upper = [_beyond(each, 2.0) for each in bounds]
        if self.of_codes:  # z says no more than each of its codes
            upper.append(sum(use.count * use.most for use in self.of_codes))
        known = [value for value in upper if not math.isnan(value)]
        return 0.0 if math.isnan(lower) else max(0.0, lower), max(0.0, min(known, default=math.nan))

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within a nat of its limit for n rows, usually log n."""
        limit = self.information_limit
        limit = math.log(self.num_rows) if limit is None else limit
        return self.mutual_information.mean > limit - SATURATED

    def summary(self) -> str:
        """How many dimensions are used, why not more, and what to do; then what else is wrong, line by line."""
        if self.of_codes and self.num_rows == 1:
            lines = [
                "One row was given: whether its codes are those of all rows shows in others; diagnose with "
                "more rows."
            ]
        elif self.of_codes:
            told = told_of_codes(self.of_codes, bool(self.active.all()), bool(self.causes))
            lines = [told, *in_lines(self.causes, self.run)]
        elif self.of_points and self.num_rows > 1:
            lines = [
                told_of_points(self.of_points, self.active_units),
                *in_lines(self.causes, self.run),
            ]
        elif self.of_sentences is not None and self.of_sentences.is_known:
            told = told_of_sentences(self.names[0], self.of_sentences, bool(self.active[0]))
            lines = [told, *in_lines(self.causes, self.run)]
        else:
            lines = [self._of_dimensions() if self.of_elements is None else self._of_its_elements()]
        for name, told in self.faults.items():
            lines.append(told)
            if self.run and name in self.fault_options:
                lines.append(f"  {command(self.fault_options[name], self.run)}")
        return "\n".join(lines)

    def _of_dimensions(self) -> str:
        if self.of_sentences is not None:
            given = "One row was given" if self.num_rows == 1 else "Batches of one row were given"
            more = "with more rows" if self.num_rows == 1 else "in larger batches"
            return f"{given}: whether a sentence z is used shows with the z of another row; diagnose {more}."
        if self.num_rows == 1:
            return (
                "One row was given: whether a latent dimension is active shows in how its mean varies "
                "from row to row; diagnose with more rows."
            )
        d, unused = len(self.names), ~self.active
        used = f"{self.active_units} of {d} latent dimension{'s are' if d > 1 else ' is'} active"
        at_least = "at least " if self.saturated else ""
        # The estimate may be below zero, the true value cannot.
        nats = self.mutual_information.mean
        known = not math.isnan(nats)
        used = (
            f"{used} and z carries {at_least}{max(0.0, nats):.1f} nats about x" if known else used
        )
        count = int(unused.sum())
        if count == 0:
            found = f"No collapse: {used}."
        else:
            which = "it" if d == 1 else "all" if count == d else str(count)
            one = count == 1
            if torch.equal(self.collapsed, unused):
                state = f"{'has' if one else 'have'} collapsed onto the prior"
            else:
                state = f"{'is' if one else 'are'} inactive"
            found = f"{used}; {which} {state}."
        found = found if known else f"{found} {self._unknown()}"
        return "\n".join([found, *in_lines(self.causes, self.run)])

    def _of_its_elements(self) -> str:
        of = self.of_elements
        assert of is not None
        (name,) = self.names
        told = (
            f"{name}, of {of.count:,} elements, uses {of.used_values:.1f} of {of.values} values; x tells "
            f"{of.rate:.2g} nats of each element, and each is worth {of.gain:.2g} nats to the decoder"
        )
        found = f"{'No collapse' if bool(self.active[0]) else 'Collapse'}: {told}."
        return "\n".join([found, *in_lines(self.causes, self.run)])

    def _unknown(self) -> str:
        return f"How much z carries about x is {self.mutual_information.missing or 'not known'}."

    def table(self) -> list[list[str]]:
        """The latent dimensions, largest KL first; of codes, the codebooks."""
        if self.of_codes:
            return table_of_codes(self.of_codes)
        if self.of_points:
            return table_of_points(self.of_points)
        rows = [["latent", "KL (nats)", "variance of means", ""]]
        for i in torch.argsort(self.kl, descending=True).tolist():
            state = "collapsed" if self.collapsed[i] else "active" if self.active[i] else ""
            kl, variance = float(self.kl[i]), float(self.mean_variance[i])
            varies = "-" if math.isnan(variance) else f"{variance:.4f}"
            rows.append([self.names[i], f"{kl:.3f}", varies, state])
        return rows

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        if self.of_codes:
            return lines_of_codes(self.of_codes, self.information_bounds)
        if self.of_sentences is not None and self.of_sentences.is_known:
            return lines_of_sentences(self.of_sentences)
        information = self.mutual_information
        if self.of_points:
            used = f"{self.active_units} of {len(self.of_points)}"
            return [
                (
                    "numbers of the code in use",
                    used if self.num_rows > 1 else "not defined for one row",
                ),
                ("KL, mutual information", information.missing),
            ]
        # Shown without a standard error: it is a lower bound, as the rows are too few to show all of it.
        shown = f"≥ {information.mean:.2f} {information.unit}" if self.saturated else information
        # The mean rate is the sum of the two, and is known.
        rest = self.marginal_kl
        upper = f"≤ {rest.mean:.2f} {rest.unit}" if self.saturated else rest
        active = f"{self.active_units} of {len(self.kl)}"
        found = [
            ("active units", active if self.num_rows > 1 else "not defined for one row"),
            ("mutual information", "not known" if math.isnan(information.mean) else str(shown)),
            ("marginal KL", "not known" if math.isnan(information.mean) else str(upper)),
        ]
        low, high = self.information_bounds
        if math.isfinite(low + high):
            found.insert(2, ("of the population", f"between {low:.2f} and {high:.2f} nats"))
        return found

    def caption(self) -> list[str]:
        """The summary."""
        return self.summary().splitlines()

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        if self.saturated:
            yield (
                "the mutual information is within a nat of its limit log n: read it as a lower bound, and the "
                "marginal KL as an upper one"
            )

    def summary_numbers(self) -> dict[str, Any]:
        """All numbers, the cause, the remedy, the other faults and the summary."""
        return {
            "num_rows": self.num_rows,
            "names": list(self.names),
            "kl": self.kl.tolist(),
            "mean_variance": self.mean_variance.tolist(),
            "active": self.active.tolist(),
            "active_units": self.active_units,
            "collapsed": self.collapsed.tolist(),
            "mutual_information": self.mutual_information.to_dict(),
            "marginal_kl": self.marginal_kl.to_dict(),
            "leave_one_out": self.leave_one_out.to_dict(),
            "rate": self.rate.to_dict(),
            "information_bounds": list(self.information_bounds),
            "cause": self.cause,
            "remedy": self.remedy,
            "causes": {name: cause.to_dict() for name, cause in self.causes.items()},
            "beta": self.beta,
            "faults": dict(self.faults),
            "fault_options": {name: list(words) for name, words in self.fault_options.items()},
            "of_elements": None if self.of_elements is None else asdict(self.of_elements),
            "of_codes": [asdict(use) for use in self.of_codes],
            "of_points": [asdict(use) for use in self.of_points],
            "of_sentences": None if self.of_sentences is None else self.of_sentences.to_dict(),
            "summary": self.summary(),
        }


def diagnosis_of_wholes(
    names: Sequence[str],
    kl: Tensor,
    used: Tensor,
    rate: Tensor,
    unknown: str,
    **others: Any,
) -> Diagnosis:
    """A diagnosis of latents that are judged as wholes, without a mean or an aggregate posterior.

    Args:
        names: Of the latents.
        kl: Rate of each, `(d,)`.
        used: Which of them are used, `(d,)`; the others have collapsed.
        rate: Of each row, `(n,)`.
        unknown: Why mutual information and the KL of the aggregate posterior are not known.
        others: Further attributes; of those that are named here, their own values.
    """
    missing = Estimate(torch.full_like(rate, math.nan), missing=unknown)
    told: dict[str, Any] = {
        "mean_variance": torch.full((len(names),), math.nan),
        "mutual_information": missing,
        "marginal_kl": missing,
        "leave_one_out": missing,
        "num_rows": len(rate),
        "information_limit": math.inf,
    }
    return Diagnosis(
        names=tuple(names),
        kl=kl,
        active=used,
        collapsed=~used,
        rate=Estimate(rate),
        **told | others,
    )


def _beyond(estimate: Estimate, errors: float) -> float:
    """The mean plus so many standard errors; of one row the mean alone."""
    error = estimate.standard_error
    return estimate.mean + (0.0 if math.isnan(error) else errors * error)
