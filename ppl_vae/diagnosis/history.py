"""Whether a training had ended, by the metrics of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_vae.objectives import Controller, Objective
from ppl_vae.pairs import HELD_OUT, measure_in

PART = 5
"""The last epochs that are compared with those before are one in so many."""

RISES = 0.05
"""Share of the whole rise of the ELBO that the last part must have gained, if the training has not ended."""

LEAST = 0.01
"""Nats that it must have gained."""

SURE = 3.0
"""Standard errors, by how the ELBO changes from epoch to epoch, that it must have gained."""

FEW = 6
"""Epochs up to which nothing is known of these, and the later half is compared with the other."""


def still_training(history: Sequence[Mapping[str, float]], objective: Objective | None) -> str:
    """Why a training had not ended, with the numbers that show it; empty if it had, or if that is not known.

    It had not if beta was still to rise, or if the last fifth of the epochs raised the ELBO, or what the pair
    has in its place, by more than 5 percent of its whole rise, 0.01 nats, and the noise of the epochs. Only
    epochs with the last beta and the last noise of p(x | z) are compared (`refit_guide(fit_noise=True)` logs
    that as `sigma`); if these are few, it is not known. Nor is it with an adversary.

    Args:
        history: The metrics of each epoch.
        objective: What was maximized for this pair, if that is known.

    Example:
        >>> still_training([{"elbo": -100.0}, {"elbo": -80.0}, {"elbo": -65.0}], None)
        'after 3 epochs the ELBO still rises: the last one is 25 nats above those before'
    """
    n = len(history)
    if objective is not None and not isinstance(objective.beta, Controller) and n:
        now, end = objective.beta_at(n), objective.beta_at(math.ceil(objective.warmup_epochs))
        if n < objective.warmup_epochs and now < end:
            return f"beta was {now:.2g} after {n} epochs, and still rises to {end:g}"
    measure = measure_in(history, HELD_OUT)
    name = HELD_OUT + measure.name
    if not all(name in row for row in history):
        measure = measure_in(history)
        name = measure.name
    if objective is not None and not objective.judged_by_elbo:
        return ""
    rows = _comparable(history, objective, of_training=name == measure.name)
    found = _rise([measure.sign * row[name] for row in rows if name in row])
    if found is None or FEW >= len(rows) < n:
        return ""
    gain, last = found
    moves, side = ("rises", "above") if measure.sign > 0 else ("falls", "below")
    return (
        f"after {n} epochs {measure.noun} still {moves}: {last} {gain:.2g} nats {side} those before"
    )


def _comparable(
    history: Sequence[Mapping[str, float]], objective: Objective | None, of_training: bool
) -> list[Mapping[str, float]]:
    """The epochs with the last beta and the last noise, as far as these are known.

    Args:
        history: The metrics of each epoch.
        objective: What was maximized.
        of_training: Whether means over the steps of an epoch are compared, in which beta may have grown.
    """
    held = objective is None or isinstance(objective.beta, Controller)
    warm = 0.0 if objective is None or held else objective.warmup_epochs
    warm = warm if warm < len(history) else 0.0
    return [
        row
        for epoch, row in enumerate(history, 1)
        if epoch - of_training >= warm and row.get("sigma") == history[-1].get("sigma")
    ]


def still_fitting_prior(history: Sequence[Mapping[str, float]]) -> str:
    """Why the fit of a prior to codes had not ended, as `still_training` says it of a pair.

    Args:
        history: The metrics of each epoch of that fit.

    Example:
        >>> still_fitting_prior([{"validation_rate": 40.0}, {"validation_rate": 35.0}])
        'after 2 epochs of the prior the held-out rate still falls: the last one is 5 nats below those before'
    """
    rates = [row["validation_rate"] for row in history if "validation_rate" in row]
    found = _rise([-rate for rate in rates])
    if found is None:
        return ""
    gain, last = found
    return (
        f"after {len(history)} epochs of the prior the held-out rate still falls: {last} {gain:.2g} nats below "
        "those before"
    )


def _rise(values: Sequence[float]) -> tuple[float, str] | None:
    """By how much the last values are above those before, and which these are; None if by too little."""
    if len(values) < 2:
        return None
    elbo = torch.tensor(values, dtype=torch.float64)
    few = len(elbo) <= FEW
    size = max(1, len(elbo) // (2 if few else PART))
    before = elbo[:-size] if few else elbo[-2 * size : -size]
    gain = _mean(elbo[-size:]) - _mean(before)
    whole = _mean(elbo[-size:]) - float(elbo[0])
    steps = elbo.diff()
    noise = float((steps - steps.mean()).std()) / math.sqrt(size) if not few else 0.0
    if not gain > max(LEAST, RISES * whole, SURE / math.sqrt(2) * noise):
        return None
    return gain, "the last one is" if size == 1 else f"the last {size} are"


def _mean(values: Tensor) -> float:
    return float(values.mean())
