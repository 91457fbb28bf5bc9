"""The objective of a run, and the weight of the KL that its training has reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vae.cli.known import DEFAULTS
from ppl_vae.cli.output import warn
from ppl_vae.objectives import ELBO, Alternating, Controller, Objective, VAEDisLoss
from ppl_vae.pairs import HELD_OUT, measure_in
from ppl_vae.runs import (
    CONFIG,
    FIT,
    METRICS,
    Run,
    Trust,
    UntrustedError,
    build,
    made_by,
    read_history,
    read_result,
)
from ppl_vae.runtime import CorruptFileError
from ppl_vae.training import Fit


def objective_of(run: Run, trust: Trust) -> Objective:
    """The objective that a run was trained with.

    Raises:
        UntrustedError: It is of a class that is not trusted.
        CorruptFileError: The run does not say how it is built.
    """
    spec = run.config.get("objective")
    try:
        if isinstance(spec, dict) and "class_path" in spec:
            built = build(spec, role="objective", trust=trust)[0]
            if isinstance(built, Objective):
                return built
        raise ValueError("it does not say how the objective is built, as `ppl-vae train` writes it")
    except UntrustedError:
        raise
    except ValueError as error:
        raise CorruptFileError(run.path / CONFIG, f"objective: {error}") from error


def fit_of(run: Run, objective: Objective) -> Fit:
    """What is known of the training of a run."""
    history = read_history(run.path)
    best = len(history)
    asked = objective.asked_by(run.model) if isinstance(objective, ELBO) else None
    judged = (asked or objective).judged_by_elbo
    if run.config.get("patience") and judged and not isinstance(objective.beta, Controller):
        measure = measure_in(history, HELD_OUT)
        name = HELD_OUT + measure.name
        held = [measure.sign * row.get(name, -measure.sign * math.inf) for row in history]
        counted = [n for n in range(best) if n + 1 >= objective.warmup_epochs]
        if run.config.get("fit_noise"):  # ELBOs of one noise, the last one, are compared
            counted = [n for n in counted if history[n].get("sigma") == history[-1].get("sigma")]
        best = max(counted, key=held.__getitem__, default=best - 1) + 1
    prior_epochs, best_of_prior = _epochs_of_prior(run)
    if prior_epochs:
        best = len(history) - prior_epochs + best_of_prior
    return Fit(
        model=run.model,
        guide=run.guide,
        history=history,
        objective=objective,
        epochs=len(history),
        steps=int(history[-1].get("step", 0)) if history else 0,
        best_epoch=best,
        stopped="",
        seconds=0.0,
        batch_size=run.config.get("batch_size"),
        learning_rate=step_size_of_run(run.config),
        prior_epochs=prior_epochs,
        resolved=asked,
    )


def _epochs_of_prior(run: Run) -> tuple[int, int]:
    """How many epochs `ppl-vae refit-prior` has fitted the prior of a run, and which one's weights are kept."""
    found = (read_result(run.path / FIT) or {}) if made_by(run.config) == "refit-prior" else {}
    levels = found.get("levels")
    each = [*levels.values()] if isinstance(levels, dict) else [found]
    try:
        return epochs_of_levels([(int(of["epochs"]), int(of["best_epoch"])) for of in each])
    except (KeyError, TypeError, ValueError):  # a prior of vectors has none
        return 0, 0


def epochs_of_levels(each: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """For how many epochs a prior of codes was fitted, and which one's weights are kept.

    Args:
        each: The same of each level. If one has kept its start, 0, so has the whole.
    """
    taken = [
        (epochs, best) for epochs, best in each if epochs
    ]  # others were counted, without steps
    if not taken:
        return 0, 0
    epochs, best = (max(numbers) for numbers in zip(*taken, strict=True))
    return epochs, best if all(best for _, best in taken) else 0


def step_size_of_run(config: Mapping[str, Any]) -> float | None:
    """The step size of the default optimizer in the training of a run; None if another one was given."""
    return None if config.get("optimizer") else config.get("learning_rate")


def last_beta(run: Run, objective: Objective) -> float:
    """The weight of the KL in the end of a run's training."""
    if history := read_history(run.path):
        return objective.beta_after(history)
    most = int(run.config.get("max_epochs") or 0)
    if isinstance(objective.beta, Controller):
        known = f"the first one, {objective.beta.start:g}"
    else:
        known = f"that after {most} epochs"
    if isinstance(objective.beta, Controller) or objective.warmup_epochs:
        warn(
            f"{run.path / METRICS} is missing or empty, so that the last beta of the run is not known: it is "
            f"taken to be {known}"
        )
    return objective.beta_at(most)


def with_beta_held(spec: Any, run: Run, trust: Trust) -> Any:
    """The description of a run's objective for a guide alone, with the beta that its controller has reached.

    A guide that is trained for the run's model alone cannot hold the model's rate, so that a controller would
    move beta without end. Nor can it be trained by losses that move the model, or judge it by a discriminator:
    it takes the default objective.

    Args:
        spec: The description, as in the run's config.yaml.
        run: The run.
        trust: Which classes may be built.
    """
    if not isinstance(spec, dict):
        return spec
    objective = objective_of(run, trust)
    if isinstance(objective, Alternating | VAEDisLoss):
        return {"class_path": DEFAULTS["objective"]}
    if not isinstance(objective.beta, Controller):
        return spec
    beta = last_beta(run, objective)
    return {**spec, "init_args": {**spec["init_args"], "beta": beta}}
