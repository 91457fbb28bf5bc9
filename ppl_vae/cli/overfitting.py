"""What makes a model that EM has fitted overfit less, as it is typed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ppl_vae.data import Data
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.em import EMFit, overfitting
from ppl_vae.evaluation import Evaluation
from ppl_vae.pairs import tensors_of

_FEWER = {"components": "components", "states": "states", "latent_dim": "latent dimensions"}
"""Arguments of models whose parameters grow with them, in words."""

_SIMPLER = {"full": ("tied", "diagonal"), "diagonal": ("spherical",)}
"""Kinds of covariances with fewer parameters."""


def with_doubt(
    fitted: EMFit, evaluation: Evaluation, config: Mapping[str, Any], data: Data[Any]
) -> EMFit:
    """Adds a warning, and what to type, if the training rows fit far better than the test rows.

    Args:
        fitted: The fit.
        evaluation: What `evaluate` found for the test rows.
        config: What the run is made of.
        data: Its rows.
    """
    found = overfitting(
        fitted.log_likelihood,
        evaluation.log_likelihood,
        len(data.train),
        math.prod(data.shape),
    )
    if not found:
        return fitted
    told = f"{found}. What helps: {_told(config, data)}"
    return replace(fitted, cautions=(*fitted.cautions, told))


def with_remedies(diagnosis: Diagnosis, config: Mapping[str, Any], data: Data[Any]) -> Diagnosis:
    """The diagnosis of a run of EM: against overfitting it says what the warning of `ppl-vae em` does."""
    faults = dict(diagnosis.faults)
    for name in {"overfit", "overfit decoder"} & faults.keys():
        found = (
            faults[name].partition("; ")[0].replace("The decoder overfits", "The model overfits")
        )
        faults[name] = f"{found}; try {_told(config, data)}."
    return replace(diagnosis, faults=faults)


def _told(config: Mapping[str, Any], data: Data[Any]) -> str:
    spread = float(tensors_of(data.train)[0].double().std())
    model = config.get("model")
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    return ", ".join(_remedies(arguments if isinstance(arguments, Mapping) else {}, spread))


def _remedies(arguments: Mapping[str, Any], spread: float) -> Iterator[str]:
    """What makes a model of these arguments overfit less; for data of a standard deviation."""
    for name in ("components", "states", "latent_dim"):
        if arguments.get(name, 1) > 1:
            yield f"fewer {_FEWER[name]} (--model.{name} {arguments[name] // 2})"
    simpler = _SIMPLER.get(str(arguments.get("covariance")), ())
    if simpler:
        options = " or ".join(f"--model.covariance {name}" for name in simpler)
        yield f"simpler covariances ({options})"
    if arguments.get("min_scale", math.inf) < (floor := float(f"{spread / 10:.1g}")):
        yield f"a higher floor (--model.min_scale {floor:g})"
    if arguments.get("min_probability", math.inf) < 0.01:
        yield "a higher floor (--model.min_probability 0.01)"
    yield "more rows"
