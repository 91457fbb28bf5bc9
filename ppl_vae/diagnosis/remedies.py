"""What to type against a cause: a line of Python, and options of the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import nn

from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.objectives import ELBO, Controller, LinearWarmup, Objective, TargetRate
from ppl_vae.pairs import Program

EPOCHS = 200
"""Fewest epochs of a remedy."""

BATCH_SIZE, LEARNING_RATE = 128, 1e-3
"""The defaults of `fit`."""

SMALLER = 0.3
"""Of the learning rate with which an encoder has died, that of the next training."""

PER_DIMENSION = 0.5
"""Nats that a target rate allows each dimension that is not used."""


@dataclass(frozen=True)
class Facts:
    """What a remedy depends on.

    Attributes:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        beta: The weight of the KL that the pair was trained with.
        epochs: How many epochs it was trained for; None if that is not known.
        rate: The mean rate, nats per row.
        unused: How many dimensions are not used.
        objective: What was maximized, if that is known.
        guide_learns: Whether the guide has parameters.
        summed: Whether the model sums latents out, which have no KL that beta could weight.
        batch_size: Rows in a batch of the training, if that is known.
        learning_rate: Its step size with the default optimizer; None if it is the default one, or not known.
    """

    model: Program
    guide: Program
    beta: float
    epochs: int | None
    rate: float
    unused: int
    objective: Objective | None = None
    guide_learns: bool = True
    summed: bool = False
    batch_size: int | None = None
    learning_rate: float | None = None

    @property
    def length(self) -> int:
        """Epochs of a training that is to mend it."""
        return max(EPOCHS, self.epochs or 0)


def what_to_type(cause: str, facts: Facts) -> tuple[str, tuple[str, ...]]:
    """A line of Python and options of the command line against a cause; empty if there is nothing to type."""
    made = _MAKERS.get(cause)
    if made is None or (facts.summed and cause in _OF_BETA):
        return "", ()
    return made(facts)


_OF_BETA = ("large beta", "strong decoder", "local optimum", "ignored latent")


def _fit(facts: Facts, beta: Any = None) -> str:
    given = f"{_objective(facts, beta)}{_steps(facts)}max_epochs={facts.length}"
    return f"ppl_vae.fit(model, guide, x, {given})"


def _steps(facts: Facts) -> str:
    """The arguments for batches and steps, where they are not the default ones."""
    found = ""
    if facts.batch_size not in (None, BATCH_SIZE):
        found += f"batch_size={facts.batch_size}, "
    if facts.learning_rate not in (None, LEARNING_RATE):
        found += f"learning_rate={facts.learning_rate:.6g}, "
    return found


def _objective(facts: Facts, beta: Any = None) -> str:
    """The argument that names the objective, with another beta; empty if it is the default one."""
    given = facts.objective or ELBO(beta=facts.beta)
    wanted = given if beta is None else replace(given, beta=beta)
    code = _as_code(wanted) or _as_code(
        ELBO(beta=wanted.beta)
    )  # one of the user's own has another name
    return "" if wanted == ELBO() or not code else f"objective={code}, "


def _as_code(value: Any) -> str:
    """An objective or a schedule of ours as an expression; empty if it is something else."""
    if not is_dataclass(value):
        return repr(value)
    if not type(value).__module__.startswith("ppl_vae.objectives"):
        return ""
    parts = []
    for each in fields(value):
        own = getattr(value, each.name)
        if own != each.default:
            parts.append(f"{each.name}={_as_code(own)}")
    return f"ppl_vae.objectives.{type(value).__name__}({', '.join(parts)})"


def _longer(facts: Facts) -> tuple[str, tuple[str, ...]]:
    warm = 0 if facts.objective is None else math.ceil(facts.objective.warmup_epochs)
    length = max(facts.length, 2 * warm)
    code = f"ppl_vae.fit(model, guide, x, {_objective(facts)}{_steps(facts)}max_epochs={length})"
    if facts.epochs is None:
        return code, ()
    return code, ("resume", "--max_epochs", str(max(10, 3 * facts.epochs, 2 * warm)))


def _refit(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if not facts.guide_learns:
        return "", ()
    facts = _without_tiny_steps(facts)
    held = facts.beta if isinstance(getattr(facts.objective, "beta", 1), Controller) else None
    objective = _objective(facts, held)
    given = f"{objective}{_steps(facts)}max_epochs={facts.length}"
    code = f"ppl_vae.refit_guide(model, guide, x, {given})"
    return code, ("refit",)


def _lower_beta(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if isinstance(getattr(facts.objective, "beta", 1), Controller):
        return _target(facts)
    return _with_new_weights(facts, _fit(facts, 1.0)), ("train", "--objective.beta", "1")


def _warm_up(facts: Facts) -> tuple[str, tuple[str, ...]]:
    half, end = max(1, facts.length // 2), min(1.0, facts.beta) or 1.0
    facts = _without_tiny_steps(facts)
    code = _fit(facts, LinearWarmup(epochs=half, end=end))
    # All arguments: those of another class may be in the run's config.yaml.
    options = ["--objective.beta", "LinearWarmup", "--objective.beta.epochs", str(half)]
    options += ["--objective.beta.start", "0", "--objective.beta.end", f"{end:g}"]
    return code, ("train", *options)


def _without_tiny_steps(facts: Facts) -> Facts:
    """With the default steps in place of smaller ones, which may be why nothing has moved."""
    tiny = facts.learning_rate is not None and facts.learning_rate < LEARNING_RATE
    return replace(facts, learning_rate=None) if tiny else facts


def _start_again(facts: Facts) -> tuple[str, tuple[str, ...]]:
    code, options = _warm_up(facts)
    return _with_new_weights(facts, code), options


def _with_new_weights(facts: Facts, code: str) -> str:
    """A training from new weights: units that a collapse has switched off do not come back by themselves.

    Tensors of a model that no part draws anew stay: they may be a noise, or rows of the data. With a guide that
    tells of x they get gradients.
    """
    parts = [f"*{each}.modules()" for each, of in _programs(facts).items() if _has_weights(of)]
    lines = [_RESET.format(f"[{', '.join(parts)}]")] if parts else []
    lines += [_RESET_TENSORS] if _has_tensors(facts.guide) else []
    return "; ".join([*lines, code])


def _programs(facts: Facts) -> dict[str, Program]:
    return {"model": facts.model, "guide": facts.guide}


def _target(facts: Facts) -> tuple[str, tuple[str, ...]]:
    nats = round(facts.rate + PER_DIMENSION * facts.unused, 1)
    code = _fit(facts, TargetRate(nats=nats))
    options = ["--objective.beta", "TargetRate", "--objective.beta.nats", f"{nats:g}"]
    return code, ("train", *options, "--objective.beta.start", "1")


def _learn_noise(facts: Facts) -> tuple[str, tuple[str, ...]]:
    model: Any = facts.model
    if isinstance(getattr(model, "likelihood", None), Gaussian):
        # Under a noise that hides everything the weights have learned to do without the latents.
        code = _with_new_weights(facts, _fit(facts))
        code = f"model.likelihood = ppl_vae.likelihoods.OptimalGaussian(); {code}"
        return code, ("train", "--model.likelihood", "OptimalGaussian")
    if isinstance(model, ProbabilisticPCA) and not isinstance(model.log_sigma, nn.Parameter):
        code = f"model.log_sigma = torch.nn.Parameter(model.log_sigma); {_fit(facts)}"
        return code, ("train", "--model.learn_sigma", "true")
    return "", ()


def _new_weights(facts: Facts) -> tuple[str, tuple[str, ...]]:
    rate = SMALLER * (facts.learning_rate or LEARNING_RATE)
    options = ("train", "--seed", "1", "--learning_rate", f"{rate:.3g}")
    if not (_has_weights(facts.guide) or _has_tensors(facts.guide)):
        return "", options
    if facts.learning_rate is not None:
        facts = replace(facts, learning_rate=rate)
    # Those of the model, too: it has learned to do without its latents.
    return _with_new_weights(facts, _fit(facts)), options


def _has_weights(program: Program) -> bool:
    """Whether a program is a module of which parts draw their weights anew."""
    parts = program.modules() if isinstance(program, nn.Module) else ()
    return any(hasattr(part, "reset_parameters") for part in parts)


def _has_tensors(program: Program) -> bool:
    """Whether it has parameters that belong to no such part."""
    parts = program.modules() if isinstance(program, nn.Module) else ()
    return any(
        not hasattr(part, "reset_parameters") and any(True for _ in part.parameters(recurse=False))
        for part in parts
    )


_RESET = "[part.reset_parameters() for part in {} if hasattr(part, 'reset_parameters')]"
_RESET_TENSORS = (
    "[torch.nn.init.xavier_normal_(p) if p.dim() > 1 else torch.nn.init.normal_(p, std=0.1) "
    "for part in guide.modules() if not hasattr(part, 'reset_parameters') "
    "for p in part.parameters(recurse=False)]"
)

_MAKERS: dict[str, Callable[[Facts], tuple[str, tuple[str, ...]]]] = {
    "still training": _longer,
    "constant posterior": _longer,
    "dead encoder": _new_weights,
    "lagging guide": _refit,
    "strong decoder": _target,
    "large beta": _lower_beta,
    "decoder noise": _learn_noise,
    "local optimum": _start_again,
    "ignored latent": _warm_up,
}
