"""inference_gaps(): log p(x), the best ELBO in the guide's family, the amortized ELBO, and their gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.diagnosis.families import own_family
from ppl_vae.diagnosis.refinement import maximize
from ppl_vae.evaluation import Conditions, Ladder, not_reached
from ppl_vae.pairs import (
    Batch,
    DataLike,
    FiniteLatents,
    Layout,
    Pair,
    Program,
    as_args,
    covers_posterior,
    finite_latents,
    first_line,
    hook_of,
    is_posterior,
    notes_on_discrete,
    num_rows,
    require_no_points,
    require_proper,
    sample_rows,
    stated_by,
    summed_rows,
)
from ppl_vae.runtime import described, require_count, require_samples
from ppl_vae.stats import Estimate, RowResult, StreamingWeights, bad_khat

STEP_SAMPLES = 8
"""Samples per row in a step of the per-row optimization."""

_QUANTITIES = {
    "log_likelihood": "log p(x)",
    "best_elbo": "best ELBO in the family",
    "elbo": "ELBO, amortized",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
}
"""Quantities of a row, and what they are called in print."""


class Truth(Protocol):
    """An estimate of log p(x) of each row, such as `evaluate` or annealed importance sampling returns."""

    @property
    def log_likelihood(self) -> Estimate:
        """log p(x), per row."""

    @property
    def log_likelihood_error(self) -> Tensor:
        """Monte-Carlo standard error of each row's log p(x), `(n,)`."""


@dataclass(frozen=True)
class Gaps(RowResult):
    """Result of `inference_gaps`, row by row, in nats.

    The mean of an `Estimate` comes with its standard error over rows; the `..._error` are
    Monte-Carlo standard errors of single rows, `(n,)`.

    Attributes:
        log_likelihood: log p(x).
        log_likelihood_error: Its error; zero if the model computes log p(x) exactly.
        best_elbo: The ELBO of the best q in the guide's family, found for each row.
        best_elbo_error: Its error.
        elbo: The amortized ELBO, of the guide as given.
        elbo_error: Its error.
        source: Where log p(x) comes from.
        unreliable: Rows whose log p(x) should not be trusted, `(n,)`.
        converged: Rows whose best q was found: its ELBO had stopped improving, `(n,)`.
        num_samples: Samples per row, for each of the two ELBOs and for log p(x) by importance sampling.
    """

    log_likelihood: Estimate
    log_likelihood_error: Tensor
    best_elbo: Estimate
    best_elbo_error: Tensor
    elbo: Estimate
    elbo_error: Tensor
    source: str
    unreliable: Tensor
    converged: Tensor
    num_samples: int

    derived: ClassVar = (
        *("approximation_gap", "approximation_gap_error"),
        *("amortization_gap", "amortization_gap_error"),
    )

    @property
    def approximation_gap(self) -> Estimate:
        """log p(x) - best ELBO: the loss because the family does not contain the posterior."""
        return Estimate(self.log_likelihood.values - self.best_elbo.values)

    @property
    def amortization_gap(self) -> Estimate:
        """Best ELBO - ELBO: the loss because the encoder does not find the best q."""
        return Estimate(self.best_elbo.values - self.elbo.values)

    @property
    def inference_gap(self) -> Estimate:
        """log p(x) - ELBO = KL(q(z | x) || p(z | x)): the sum of the two gaps."""
        return Estimate(self.log_likelihood.values - self.elbo.values)

    @property
    def approximation_gap_error(self) -> Tensor:
        """Monte-Carlo standard error of each row's approximation gap, `(n,)`."""
        return torch.hypot(self.log_likelihood_error, self.best_elbo_error)

    @property
    def amortization_gap_error(self) -> Tensor:
        """Monte-Carlo standard error of each row's amortization gap, `(n,)`."""
        return torch.hypot(self.best_elbo_error, self.elbo_error)

    @property
    def inference_gap_error(self) -> Tensor:
        """Monte-Carlo standard error of each row's inference gap, `(n,)`."""
        return torch.hypot(self.log_likelihood_error, self.elbo_error)

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        n = self.num_rows
        bad = int(self.unreliable.sum())
        if bad:
            yield (
                f"log p(x) by {self.source} is unreliable on {bad} of {n} rows, where it and the approximation "
                "gap are likely too low: pass truth=annealed_importance_sampling(...), or raise num_samples"
            )
        late = int((~self.converged).sum())
        if late:
            yield (
                f"the best ELBO in the family was still improving on {late} of {n} rows when its "
                "optimization ended: the approximation gap is too large and the amortization gap too small; "
                "raise max_steps"
            )
        for name, remedy in (
            ("approximation", "log p(x) is too low: pass a better estimate of it as truth"),
            (
                "amortization",
                "the optimization did not find the best q in the family: raise max_steps",
            ),
        ):
            yield from self._wrong_sign(name, remedy)

    def _wrong_sign(self, name: str, remedy: str) -> Iterator[str]:
        """Warns of a gap that is negative by more than rounding: an estimate has not converged."""
        n = self.num_rows
        rounding = _rounding(self.log_likelihood.values)
        gap = getattr(self, f"{name}_gap").values.double()
        error = getattr(self, f"{name}_gap_error").double()
        wrong = gap < -rounding
        clear = gap < -(rounding + 3 * error)
        mean, mean_error = float(gap.mean()), float(error.square().sum().sqrt()) / n
        if not (mean < -float(rounding.mean()) or bool(clear.any())):  # or it is not known
            return
        size = (
            f"the mean {mean:.2g} ± {mean_error:.2g} (Monte Carlo)"
            if mean < 0
            else f"{int(wrong.sum())} of {n} rows, {int(clear.sum())} by more than 3 errors"
        )
        cause = (
            "the gap is within its Monte-Carlo error of zero: raise num_samples"
            if not clear.any() and mean > -2 * mean_error
            else remedy
        )
        words = _QUANTITIES[f"{name}_gap"]
        yield f"the {words} has the wrong sign ({size}): the estimate has not converged; {cause}"

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        shown = {**_QUANTITIES, "log_likelihood": f"log p(x), {self.source}"}
        return [(words, self._line(name)) for name, words in shown.items()]

    def _line(self, name: str) -> str:
        error = getattr(self, f"{name}_error").double()
        mean_error = float(error.square().sum().sqrt()) / self.num_rows
        return f"{getattr(self, name)} (Monte Carlo {mean_error:.2g})"


def inference_gaps(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    truth: Truth | None = None,
    num_samples: int = 1000,
    max_steps: int = 2000,
    seed: int | None = None,
    progress: bool | None = None,
) -> Gaps:
    """Splits each row's inference gap: log p(x) >= best ELBO in the family >= amortized ELBO.

    The difference of the first two is the approximation gap, KL(q* || p(z | x)) of the family's best q*. The
    difference of the last two is the amortization gap (Cremer et al., *Inference Suboptimality in Variational
    Autoencoders*, arXiv:1801.03558). `maximize` finds q* for each row in `own_family`, starting from the
    guide's own q; its ELBO is then estimated with fresh samples. log p(x) comes from the first available of:
    `truth`; the model's `log_evidence(x)`, unless it raises a `ValueError` for these rows; importance sampling
    from q*, or from the guide for rows where q* is unreliable and the guide has a smaller Pareto k-hat; rows
    that neither reaches get proposals of their own, as from `evaluate`. Discrete latents with few values are
    summed over, as `evaluate` does, and each row's log p(x) comes from the one of smaller k-hat.

    Args:
        model: Pyro program of p(x, z). Its weights do not change.
        guide: Any Pyro program of q(z | x); see `own_family`.
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        truth: log p(x) of the same rows: a result of `evaluate` (with a better guide) or of
            `annealed_importance_sampling`.
        num_samples: Samples per row for each ELBO and for log p(x).
        max_steps: Maximum number of gradient steps for the best q of a row.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        The `Gaps`, with their errors, `notes` and `warnings`.

    Raises:
        PairError: The family of the guide cannot be freed row by row (the message says what the guide
            needs), or the pair cannot be evaluated.
        TypeError: `truth` is no result with log p(x) of rows.
        ValueError: `truth` has a different number of rows, `num_samples` is below 2, or `x` has no rows.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # its mean is off by 1: a KL of 1 / (2 variance) = 1
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2 + 1, 0.5**0.5))
        >>> gaps = inference_gaps(model, guide, torch.tensor([0.0, 1.0, 2.0]), seed=0)
        >>> abs(gaps.amortization_gap.mean - 1.0) < 0.1, abs(gaps.approximation_gap.mean) < 0.01
        (True, True)
    """
    require_samples("num_samples", num_samples, least=2)  # one would show no error
    require_count("max_steps", max_steps)
    if truth is not None and not hasattr(truth, "log_likelihood_error"):
        raise TypeError(
            "truth must be what evaluate or annealed_importance_sampling has returned for these rows, got "
            f"{described(truth)}"
        )
    parts: list[dict[str, Tensor]] = []
    notes: dict[str, None] = {}
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        cautions: dict[str, None] = {}
        conditions = Conditions(session)
        if truth is not None and session.num_rows is not None:
            _require_rows(truth, session.num_rows)
        evidence = _Evidence(session.pair.model)
        covered = covers_posterior(session.pair.model, session.pair.guide)
        at_once, samples = session.chunk_sizes(num_samples)
        ladder = Ladder(session, num_samples, at_once * samples) if truth is None else None
        rows = at_once if session.pair.keeps_rows else max(1, at_once * samples // STEP_SAMPLES)
        for chunk in session.chunks(rows, "gaps"):
            samples_now = max(1, at_once * samples // num_rows(chunk))
            layout = session.layouts.of(chunk)
            finite = finite_latents(session.pair, layout, chunk)
            exact = None if truth is not None else evidence.of(chunk)  # before what takes long
            summed, drawn = notes_on_discrete(layout.discrete, finite, covered)
            notes |= dict.fromkeys(summed)
            cautions |= dict.fromkeys(drawn if truth is None and exact is None else ())
            if exact is not None and is_posterior(session.pair.model, session.pair.guide):
                part, note = _no_gaps(exact), ""
            else:
                part, note = _gaps_of_rows(
                    session, chunk, num_samples, samples_now, max_steps, finite, covered
                )
            unknown = torch.full_like(part["log_likelihood"], math.nan)
            part["exact"] = unknown if exact is None else exact.to(unknown)
            part["known"] = torch.full_like(part["heavy"], exact is not None)
            parts.append(part)
            conditions.add(chunk)
            if ladder is not None and exact is None:
                ladder.look(chunk, layout, part)
            elif ladder is not None:
                ladder.pass_over(num_rows(chunk))
            if note:
                notes[note] = None
        if ladder is not None:
            ladder.finish()
        notes |= dict.fromkeys(evidence.notes)
        findings = session.findings
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if ladder is not None:
        joined["rung"] = torch.zeros(len(joined["khat"]))
        ladder.improve(joined)
        left = not_reached(joined["khat"], joined["ess"], joined["rung"], num_samples)
        moved = joined["rung"] > 0
        joined["heavy"] = torch.where(moved, left, joined["heavy"])
        if count := int(moved.sum()):
            note = f"log p(x) of {count} of {len(moved)} rows comes from proposals of their own"
            notes |= dict.fromkeys([note])
        notes |= dict.fromkeys(ladder.notes)
    values, error, unreliable, source = _log_likelihood(joined, truth)
    return Gaps(
        log_likelihood=Estimate(values),
        log_likelihood_error=error,
        best_elbo=Estimate(joined["best_elbo"]),
        best_elbo_error=joined["best_elbo_error"],
        elbo=Estimate(joined["elbo"]),
        elbo_error=joined["elbo_error"],
        source=source,
        unreliable=unreliable,
        converged=joined["converged"],
        num_samples=num_samples,
        notes=(
            *conditions.notes,
            *findings.notes,
            *notes,
            *(
                f"about log p(x): {text}"
                for text in getattr(truth, "notes", ())
                if text not in conditions.notes
            ),
        ),
        cautions=(
            *findings.doubts,
            *cautions,
            *findings.biases,
            *(f"about log p(x): {text}" for text in getattr(truth, "warnings", ())),
        ),
    )


class _Evidence:
    """log p(x) as a model's own method `log_evidence` gives it.

    Args:
        model: Any program.
    """

    def __init__(self, model: Program) -> None:
        self._method = hook_of(model, "log_evidence")
        self._explains = stated_by(model, "log_evidence") is None
        self._notes: dict[str, None] = {}

    def of(self, batch: Batch) -> Tensor | None:
        """log p(x) of the rows, `(n,)`; None if the model has no such method, or does not know it of these."""
        if self._method is None:
            return None
        try:
            found: Tensor = self._method(*as_args(batch))
        except ValueError as error:  # ours do so if more than z is latent, or a grid is too wide
            if self._explains:
                text = f"log_evidence does not give log p(x) of all rows: {first_line(error)}"
                self._notes[text] = None
            return None
        return found.detach().cpu()

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a method of a stranger's model has not given log p(x)."""
        return tuple(self._notes)


def _no_gaps(exact: Tensor) -> dict[str, Tensor]:
    """What `_gaps_of_rows` would find of the posterior itself, whose ELBO is log p(x)."""
    nothing, no = torch.zeros_like(exact), torch.zeros(len(exact), dtype=torch.bool)
    part = {name: exact for name in ("elbo", "best_elbo", "log_likelihood")}
    part |= {name: nothing for name in ("elbo_error", "best_elbo_error", "error")}
    part |= {"ess": torch.ones_like(exact), "khat": torch.full_like(exact, -math.inf)}
    return part | {"heavy": no, "converged": ~no}


def _gaps_of_rows(
    session: Session,
    batch: Batch,
    num_samples: int,
    chunk: int,
    max_steps: int,
    finite: FiniteLatents | None,
    covered: bool,
) -> tuple[dict[str, Tensor], str]:
    pair, layout = session.pair, session.layouts.of(batch).of_another_guide
    require_proper(layout, "inference_gaps", pair.model)
    require_no_points(layout, "inference_gaps")
    if not (layout.latents or layout.shared or layout.enumerated):  # the ELBO is log p(x)
        exact = _bounds(layout, pair, batch, num_samples, chunk, finite, covered)
        part = exact | {"best_elbo": exact["elbo"], "best_elbo_error": exact["elbo_error"]}
        part |= {"heavy": torch.zeros_like(exact["heavy"])}
        return part | {"converged": torch.ones_like(exact["heavy"])}, ""
    family = own_family(pair, layout, batch)
    result = maximize(pair, layout, batch, family, num_samples=STEP_SAMPLES, max_steps=max_steps)
    amortized = _bounds(layout, pair, batch, num_samples, chunk, finite, covered)
    best = _bounds(layout, family.pair(pair), batch, num_samples, chunk, finite, covered)
    # The best q of other latents suits likely values of summed ones, and may be too narrow for rare ones.
    doubtful = best["heavy"] if finite is None else torch.ones_like(best["heavy"])
    better = ~(doubtful & (amortized["khat"] < best["khat"]))
    chosen = ("log_likelihood", "error", "ess", "khat", "heavy")
    part = {k: torch.where(better, best[k], amortized[k]) for k in chosen}
    part |= {"elbo": amortized["elbo"], "elbo_error": amortized["elbo_error"]}
    part |= {"best_elbo": best["elbo"], "best_elbo_error": best["elbo_error"]}
    part["converged"] = torch.full_like(better, result.converged)
    return part, family.note


def _bounds(
    layout: Layout,
    pair: Pair,
    batch: Batch,
    num_samples: int,
    chunk: int,
    finite: FiniteLatents | None,
    covered: bool,
) -> dict[str, Tensor]:
    """The ELBO and log p(x) by importance sampling of each row, with their errors.

    Finite latents are summed over, as `evaluate` does: the weights of draws do not show what is never drawn.
    """
    if finite is not None and finite.alone:
        return _exact_bounds(layout, pair, batch, chunk, finite)
    weights = StreamingWeights(num_samples)
    bounds = weights if finite is None else StreamingWeights(num_samples)
    while weights.count < num_samples:
        k = min(chunk, num_samples - weights.count)
        if finite is None:
            weights.update(sample_rows(pair, layout, batch, k).log_weights)
        else:
            k = min(k, max(1, chunk // finite.count))
            rows = summed_rows(pair, layout, batch, k, finite, chunk)
            weights.update(rows.log_weights)
            bounds.update(-rows.rate - rows.distortion)
    khat = weights.khat
    # Weights say nothing about values of discrete latents that are not drawn.
    drawn = finite is None and bool(layout.discrete)
    khat = khat.masked_fill((khat == -math.inf) & drawn, math.nan)
    heavy = (drawn and not covered) | bad_khat(khat, weights.ess, num_samples)
    found = {
        "elbo": bounds.mean_log_weight,
        "elbo_error": (bounds.log_weight_variance / num_samples).sqrt(),
        "log_likelihood": weights.log_mean_exp,
        "error": weights.monte_carlo_error,
        "ess": weights.ess,
        "khat": khat,
        "heavy": heavy,
    }
    return {name: value.cpu() for name, value in found.items()}


def _exact_bounds(
    layout: Layout, pair: Pair, batch: Batch, chunk: int, finite: FiniteLatents
) -> dict[str, Tensor]:
    """The ELBO and log p(x) of each row, if all of its latents are summed over."""
    rows = summed_rows(pair, layout, batch, 1, finite, chunk)
    sampled = rows.log_weights[0].cpu()
    elbo = -(rows.rate + rows.distortion)[0].cpu()
    nothing = torch.zeros_like(sampled)
    return {
        "elbo": elbo,
        "elbo_error": nothing,
        "log_likelihood": sampled,
        "error": nothing,
        "ess": torch.ones_like(sampled),
        "khat": torch.full_like(sampled, -math.inf),
        "heavy": torch.zeros_like(sampled, dtype=torch.bool),
    }


def _log_likelihood(
    found: dict[str, Tensor], truth: Truth | None
) -> tuple[Tensor, Tensor, Tensor, str]:
    """log p(x) of each row, its error, whether it is unreliable, and where it comes from."""
    n = len(found["elbo"])
    if truth is not None:
        _require_rows(truth, n)
        values = truth.log_likelihood.values.cpu()
        doubtful = getattr(truth, "unreliable", torch.zeros(n, dtype=torch.bool))
        return values, truth.log_likelihood_error.cpu(), doubtful.cpu(), type(truth).__name__
    known, sampled = found["known"], "importance sampling"
    source = (
        "log_evidence"
        if bool(known.all())
        else f"log_evidence where it is known, else {sampled}"
        if bool(known.any())
        else sampled
    )
    values = torch.where(known, found["exact"], found["log_likelihood"])
    error = torch.where(known, torch.zeros_like(found["error"]), found["error"])
    return values, error, found["heavy"] & ~known, source


def _require_rows(truth: Truth, n: int) -> None:
    rows = len(truth.log_likelihood.values)
    if rows != n:
        raise ValueError(
            f"truth holds log p(x) of {rows} rows, but x has {n}: it must be of the same rows"
        )


def _rounding(log_likelihood: Tensor) -> Tensor:
    """How far rounding alone may shift a sum over a row's values, in nats."""
    eps = torch.finfo(log_likelihood.dtype).eps
    return 64 * eps * log_likelihood.double().abs().clamp(min=1.0)
