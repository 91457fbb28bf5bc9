"""The loop of `fit_em`: its iterations and its restarts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ppl_vae.checks import row_problems, small_batch_problem
from ppl_vae.em.data import EMData, empty_guide
from ppl_vae.em.notes import Notes
from ppl_vae.em.steps import (
    ByGuide,
    ClosedForm,
    Draws,
    Enumeration,
    GradientSteps,
    Statistics,
    Steps,
    StepSize,
    closed_form,
)
from ppl_vae.objectives import ELBO, Resolved
from ppl_vae.pairs import (
    Batch,
    Pair,
    PairError,
    as_args,
    latent_sites,
    num_rows,
    take_rows,
    trace_pair,
)
from ppl_vae.runtime import preserve_random_state

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


@dataclass(frozen=True)
class EMLoop:
    """One call of `fit_em`, which says what the attributes are, inside of the pair's scope."""

    pair: Pair
    data: EMData
    max_iterations: int
    tolerance: float
    hard: bool
    online: StepSize | None
    m_step: GradientSteps | None

    def best_of(
        self, restarts: int, seed: int, initialize: bool, bar: Any
    ) -> tuple[list[dict[str, float]], bool, float, tuple[str, ...]]:
        """History, convergence, seconds and notes of the best start, whose parameters the model keeps."""
        started = time.monotonic()
        found = []
        for i in range(restarts):
            noted = Notes()
            start: Any = getattr(self.pair.model, "initialize", None)
            if initialize and start is not None:
                with noted.of_warnings(0):
                    start(*as_args(self.data.sample(seed + i)), seed=seed + i)
            if self.online is None:
                history, converged = self._iterate(bar, noted)
            else:
                history, converged = self._online(self.online, seed, bar, noted)
            state = {k: v.clone() for k, v in self.pair.state().items()} if restarts > 1 else {}
            found.append((history[-1]["bound"], i, history, converged, noted.written(), state))
        _, chosen, history, converged, notes, state = max(found, key=lambda f: (f[0], -f[1]))
        if restarts > 1:
            self.pair.load_state(state)
            bounds = ", ".join(f"{f[0]:.4f}" for f in found)
            notes = (*notes, f"start {chosen} was the best of {restarts}, with bounds {bounds}")
        return history, converged, time.monotonic() - started, notes

    def _iterate(self, bar: Any, notes: Notes) -> tuple[list[dict[str, float]], bool]:
        started = time.monotonic()
        steps = choose_steps(self.pair, self.data, self.m_step, self.hard)
        if isinstance(steps, ByGuide) and self.data.in_parts:
            few = self.data.few(self.pair)
            if not self.pair.keeps_rows:  # a plate of all rows shows it only in a batch of fewer
                few = take_rows(few, slice(0, self.data.batch_size))
            for problem in _counted_again(self.pair, few, steps):
                notes.add(problem, 0)
        history: list[dict[str, float]] = []
        for iteration in range(self.max_iterations + 1):
            repaired = False
            if iteration > 0:
                with notes.of_warnings(iteration) as repairs:
                    steps.maximize()
                repaired = bool(repairs)
            bound = steps.expect(self.data)
            _require_finite(bound, iteration)
            row = {
                "iteration": float(iteration),
                "log_likelihood": self._log_likelihood(bound, steps),
                "bound": bound,
                "passes": steps.passes,
                "gradient_evaluations": steps.gradient_evaluations,
                "seconds": time.monotonic() - started,
            }
            history.append(row)
            bar.update(1 if iteration else 0)
            bar.set_postfix(bound=f"{bound:.4f}")
            if iteration == 0:
                continue
            gain = bound - history[-2]["bound"]
            if gain < -self._slack(bound) and not repaired:
                self._fell(steps, notes, iteration, history[-2]["bound"], bound)
            if abs(gain) < self.tolerance:
                return history, True
        return history, False

    def _online(
        self, step_size: StepSize, seed: int, bar: Any, notes: Notes
    ) -> tuple[list[dict[str, float]], bool]:
        started = time.monotonic()
        model = closed_form(self.pair.model)
        assert model is not None
        history: list[dict[str, float]] = []
        average: Statistics = {}
        step = 0
        for epoch in range(1, self.max_iterations + 1):
            total, rows = 0.0, 0.0
            for batch in self.data.shuffled(seed, epoch):
                found = model.expected_statistics(*as_args(batch), hard=self.hard)
                n = found["num_rows"]
                total, rows = total + float(found["log_evidence"]), rows + float(n)
                weight = step_size(step) if average else 1.0
                average = {
                    k: (1 - weight) * average[k] + weight * v / n if average else v / n
                    for k, v in found.items()
                }
                with notes.of_warnings(epoch):
                    model.maximize(average)
                step += 1
            bound = total / rows
            _require_finite(bound, epoch)
            history.append(
                {
                    "iteration": float(epoch),
                    "log_likelihood": math.nan if self.hard else bound,
                    "bound": bound,
                    "passes": float(epoch),
                    "gradient_evaluations": 0.0,
                    "seconds": time.monotonic() - started,
                }
            )
            bar.update(1)
            bar.set_postfix(bound=f"{bound:.4f}")
            if epoch > 1 and abs(bound - history[-2]["bound"]) < self.tolerance:
                return history, True
        return history, False

    def _log_likelihood(self, bound: float, steps: Steps) -> float:
        """log p(x) per row: the bound where the two are the same; NaN if the model does not know it."""
        if not self.hard and not isinstance(steps, ByGuide):
            return bound
        if isinstance(steps, ClosedForm):  # faster than log_evidence(x), which keeps gradients
            return ClosedForm(steps.model, hard=False).expect(self.data)
        model: Any = self.pair.model
        if not callable(getattr(model, "log_evidence", None)):
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

    def _fell(
        self, steps: Steps, notes: Notes, iteration: int, before: float, after: float
    ) -> None:
        """Raises an error if exact EM lowered the bound; for gradient steps, adds a note instead."""
        if isinstance(steps, ClosedForm):
            raise EMError(
                f"the bound fell by {before - after:.3g} nats per row at iteration {iteration}, from "
                f"{before:.8g} to {after:.8g}, which exact EM cannot do: expected_statistics or maximize of "
                f"{type(self.pair.model).__name__} is wrong, or the data lie so far apart that rounding "
                "takes over (then use float64)",
                iteration,
                before - after,
            )
        text = "the bound fell: lower the learning rate of the gradient steps"
        if not isinstance(steps, ByGuide | Draws):  # whose bounds are estimates
            notes.add(text, iteration)


def choose_steps(pair: Pair, data: EMData, m_step: GradientSteps | None, hard: bool) -> Steps:
    """The E and M steps that a pair allows: in closed form, by enumeration, by draws, or by its guide.

    Args:
        pair: The pair.
        data: The rows.
        m_step: Gradient steps to take, even if the model has an M step in closed form.
        hard: Whether the E step takes the mode.

    Raises:
        PairError: There are none, or the programs do not run on the smallest batch.
        ValueError: `hard` is set, but the mode of p(z | x) cannot be computed.
    """
    few = data.few(pair)
    model = None if m_step else closed_form(pair.model)
    m_step = m_step or GradientSteps()
    by_guide = pair.guide is not empty_guide
    if model is not None and not by_guide:
        return ClosedForm(model, hard)
    problem = small_batch_problem(pair, few, data.smallest_batch)
    if problem is not None:
        raise PairError(problem.message)
    if by_guide:
        by_elbo = ByGuide(pair, Resolved(ELBO(), pair), m_step, few)
        by_elbo.layouts.of(few)
        data.batches.require_all_rows(pair, data.batch_size)  # which may just have been found
        by_elbo.layouts.check = partial(data.new_kind, pair)
        return by_elbo
    latents = latent_sites(trace_pair(pair, few)[0])
    marked = [s["infer"].get("enumerate") == "parallel" for s in latents.values()]
    by_draws = all(callable(getattr(pair.model, m, None)) for m in ("posterior", "log_evidence"))
    # Labelled rows have no latents, but others may come.
    if all(marked) and (latents or not by_draws):
        exact = Enumeration(pair, m_step, few, hard)
        exact.layouts.of(few)
        exact.layouts.check = partial(data.new_kind, pair)
        return exact
    if by_draws:
        if hard:
            raise ValueError("hard=True needs a closed form, or latents that can be enumerated")
        return Draws(pair, m_step, few)
    first = next(n for n, ok in zip(latents, marked, strict=True) if not ok)
    raise PairError(
        f"site '{first}' has no exact posterior that fit_em can find: mark a discrete latent with "
        'infer={"enumerate": "parallel"}, give the model a posterior(x) and a log_evidence(x), or give '
        "fit_em a guide"
    )


def _counted_again(pair: Pair, few: Batch, steps: ByGuide) -> list[str]:
    """What all rows share and would count once in each batch."""
    layout = steps.layouts.of(few)
    with preserve_random_state(), torch.no_grad(), pair.mode(training=False):
        model_trace, _ = trace_pair(pair, few)
    found = row_problems(model_trace, layout, minibatches=True, factors=True)
    return [problem.message for problem in found]


def _require_finite(bound: float, iteration: int) -> None:
    if not math.isfinite(bound):
        raise EMError(
            f"log p(x) is {bound} at iteration {iteration}: a row is impossible under the model, or its "
            "parameters are not finite; look at the start, and at data of extreme size",
            iteration,
            math.nan,
        )
