"""The loop of `fit_em`: its iterations and its restarts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppl_vae.checks import large_values
from ppl_vae.em.checkpoints import EMCheckpoints
from ppl_vae.em.choice import choose_steps, counted_again
from ppl_vae.em.data import EMData
from ppl_vae.em.notes import Notes
from ppl_vae.em.online import Online, StepSize
from ppl_vae.em.progress import EMProgress
from ppl_vae.em.steps import ByGuide, ClosedForm, Draws, GradientSteps, Steps, closed_form
from ppl_vae.pairs import Pair, as_args, first_line, hook_of, num_rows, take_rows
from ppl_vae.runs import RunFolder, digest_of_rows, programs_of, settings_of

_SLACK = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far rounding may lower the bound of exact EM, relative to 1 + |log p(x)|."""


class EMError(RuntimeError):
    """Exact EM has lowered the likelihood, or it is not finite: the model's E or M step is wrong.

    Attributes:
        iteration: The iteration whose M step lowered it.
        fall: By how much, nats per row; NaN if the likelihood is not finite.
    """

    def __init__(self, message: str, iteration: int, fall: float) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.fall = fall


@dataclass(eq=False)
class EMLoop:
    """One call of `fit_em`, which says what the attributes are, inside of the pair's scope.

    Attributes:
        progress: How far the call has come.
        best: The weights of the best start that has ended, if there are several.
    """

    pair: Pair
    data: EMData
    max_iterations: int
    tolerance: float
    hard: bool
    online: StepSize | None
    m_step: GradientSteps | None
    initialize: bool
    restarts: int
    folder: RunFolder | None
    progress: EMProgress
    best: dict[str, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        facts = {
            "hard": self.hard,
            "batch_size": self.data.batch_size,
            "restarts": self.restarts,
            "initialize": self.initialize,
            "online": str(self.online),
            "data": None if self.folder is None else digest_of_rows(self.data.batches),
            "programs": programs_of(self.pair),
            "settings": settings_of(self.pair),
        }
        self.checkpoints = EMCheckpoints(self.folder, facts, self.pair, self.data.device)

    def run(self, resume: bool, bar: Any, seed: int | None) -> None:
        """Takes all starts to their ends; the model keeps the parameters of the best one.

        Args:
            resume: Go on from the newest good checkpoint.
            bar: The progress bar.
            seed: The seed that was asked for, which must be that of a resumed call.
        """
        self._clock = time.monotonic()
        steps = self._resumed(bar, seed) if resume else self._started()
        while True:
            try:
                converged = self._iterate(steps, bar)
            except LinAlgError as error:  # a covariance that rounding has made singular
                large = self._large_values()
                if not large:
                    raise
                raise EMError(
                    f"{first_line(error)}. The likely cause are the data: {large}; repair or rescale them",
                    self.progress.iteration,
                    math.nan,
                ) from error
            self._end_start(converged)
            if len(self.progress.ended) == self.restarts:
                break
            steps = self._started()
        if self.best is not None:
            self.pair.load_state({n: t.to(self.data.device) for n, t in self.best.items()})
        self._seconds()
        self.checkpoints.write(self.progress.ended[self.progress.best].history)

    def _started(self) -> Steps:
        """Puts the model where the next start begins: before its first E step."""
        progress = self.progress
        seed, notes = progress.seed + len(progress.ended), Notes(progress.notes)
        start = hook_of(self.pair.model, "initialize")
        if self.initialize and start is not None:
            with notes.of_warnings(0):
                start(*as_args(self.data.sample(seed)), seed=seed)
        progress.began = self._seconds()
        steps = self._steps()
        if isinstance(steps, ByGuide) and self.data.in_parts:
            few = self.data.few(self.pair)
            if not self.pair.keeps_rows:  # a plate of all rows shows it only in a batch of fewer
                few = take_rows(few, slice(0, self.data.batch_size))
            for problem in counted_again(self.pair, few, steps):
                notes.add(problem, 0)
        if isinstance(steps, Online):  # whose first bound is that of the first pass
            self._maximize(steps)
        else:
            self.checkpoints.take(progress, self.best, steps)
        return steps

    def _resumed(self, bar: Any, seed: int | None) -> Steps:
        """Goes back to before the E step of the newest good checkpoint."""
        self.progress, self.best = self.checkpoints.load()
        self._clock -= self.progress.seconds
        for i, start in enumerate(self.progress.ended):
            if not start.converged and start.iterations < self.max_iterations:
                raise ValueError(
                    f"max_iterations={self.max_iterations} would have taken start {i} further, which has "
                    f"ended after {start.iterations} iterations: a call with restarts goes on with the "
                    "max_iterations that it was begun with"
                )
        steps = self._steps()
        self.checkpoints.put_back(steps, seed)
        self.checkpoints.take(self.progress, self.best, steps)
        bar.update(self.progress.iterations - (self.progress.iteration > 0))
        return steps

    def _steps(self) -> Steps:
        if self.online is None:
            return choose_steps(self.pair, self.data, self.m_step, self.hard)
        model = closed_form(self.pair.model)
        assert model is not None
        progress = self.progress
        notes = Notes(progress.notes)
        return Online(model, self.hard, self.data, self.online, progress.seed, notes)

    def _iterate(self, steps: Steps, bar: Any) -> bool:
        """E and M steps, beginning with an E step, until the start has ended; whether it has converged."""
        progress = self.progress
        while True:
            self._expect(steps)
            bar.update(1 if progress.iteration else 0)
            bar.set_postfix(bound=f"{progress.history[-1]['bound']:.4f}")
            converged = self._has_converged(steps)
            ended = converged or progress.iteration >= self.max_iterations
            self.checkpoints.save(progress.history, at_once=ended)
            if ended:
                return converged
            self._maximize(steps)

    def _expect(self, steps: Steps) -> None:
        """The E step, and the row of the history."""
        progress = self.progress
        bound = steps.expect(self.data)
        self._require_finite(bound)
        progress.history.append(
            {
                "iteration": float(progress.iteration),
                "log_likelihood": self._log_likelihood(bound, steps),
                "bound": bound,
                "passes": steps.passes,
                "gradient_evaluations": steps.gradient_evaluations,
                "seconds": self._seconds() - progress.began,
            }
        )

    def _maximize(self, steps: Steps) -> None:
        """The M step, and a copy of all that the next E step may change."""
        progress = self.progress
        progress.iteration += 1
        if isinstance(steps, Online):  # it has notes of its own, on each minibatch
            steps.maximize()
        else:
            with Notes(progress.notes).of_warnings(progress.iteration) as repairs:
                steps.maximize()
            progress.repaired = bool(repairs)
        self._seconds()
        self.checkpoints.take(progress, self.best, steps)

    def _has_converged(self, steps: Steps) -> bool:
        """Whether the last iteration has gained less than the tolerance; EM must not have lowered the bound."""
        history = self.progress.history
        if len(history) < 2:
            return False
        before, bound = history[-2]["bound"], history[-1]["bound"]
        if bound - before < -self._slack(bound) and not self.progress.repaired:
            self._fell(steps, before, bound)
        return abs(bound - before) < self.tolerance

    def _end_start(self, converged: bool) -> None:
        progress = self.progress
        progress.end_start(converged)
        if self.restarts > 1 and progress.best == len(progress.ended) - 1:
            self.best = {name: t.clone() for name, t in self.pair.state().items()}

    def _seconds(self) -> float:
        """Time spent so far, which `progress` is told."""
        self.progress.seconds = time.monotonic() - self._clock
        return self.progress.seconds

    def _log_likelihood(self, bound: float, steps: Steps) -> float:
        """log p(x) per row: the bound where the two are the same; NaN if the model does not know it."""
        if not self.hard and not isinstance(steps, ByGuide):
            return bound
        if isinstance(steps, Online):  # the parameters have changed since
            return math.nan
        if isinstance(steps, ClosedForm):  # faster than log_evidence(x), which keeps gradients
            return ClosedForm(steps.model, hard=False).expect(self.data)
        model: Any = self.pair.model
        if hook_of(model, "log_evidence") is None:
            return math.nan
        total, rows = 0.0, 0
        with torch.no_grad():
            for batch in self.data:
                total += float(model.log_evidence(*as_args(batch)).double().sum())
                rows += num_rows(batch)
        return total / rows

    def _slack(self, bound: float) -> float:
        """How far rounding may lower the bound."""
        kinds = {t.dtype for t in self.pair.state().values() if t.is_floating_point()}
        return max((_SLACK.get(k, 1e-2) for k in kinds), default=1e-5) * (1 + abs(bound))

    def _fell(self, steps: Steps, before: float, after: float) -> None:
        """Raises an error if exact EM lowered the bound; for gradient steps, adds a note instead."""
        iteration = self.progress.iteration
        if isinstance(steps, ClosedForm):
            large = self._large_values()
            why = (
                f"the likely cause are the data: {large}, where rounding takes over; repair or rescale them"
                if large
                else f"expected_statistics or maximize of {type(self.pair.model).__name__} is wrong, or the "
                "data lie so far apart that rounding takes over (then use float64)"
            )
            raise EMError(
                f"the bound fell by {before - after:.3g} nats per row at iteration {iteration}, from "
                f"{before:.8g} to {after:.8g}, which exact EM cannot do: {why}",
                iteration,
                before - after,
            )
        text = "the bound fell: lower the learning rate of the gradient steps"
        if not isinstance(steps, ByGuide | Draws | Online):  # whose bounds are estimates
            Notes(self.progress.notes).add(text, iteration)

    def _require_finite(self, bound: float) -> None:
        """Raises an error for a bound that is NaN or infinite."""
        if math.isfinite(bound):
            return
        large = self._large_values()
        why = (
            f"the likely cause are the data: {large}; repair or rescale them"
            if large
            else "a row is impossible under the model, or its parameters are not finite; look at the start, "
            "and at data of extreme size"
        )
        iteration = self.progress.iteration
        raise EMError(f"log p(x) is {bound} at iteration {iteration}: {why}", iteration, math.nan)

    def _large_values(self) -> str:
        """A number of the data whose powers are beyond its dtype, and its place; empty if there is none."""
        start = 0
        for batch in self.data:
            if large := large_values(batch, start=start):
                return large
            start += num_rows(batch)
        return ""
