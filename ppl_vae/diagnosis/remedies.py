"""What to type against a cause: a line of Python, and options of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.pairs import Program

EPOCHS = 200
"""Fewest epochs of a remedy."""

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
    """

    model: Program
    guide: Program
    beta: float
    epochs: int | None
    rate: float
    unused: int

    @property
    def length(self) -> int:
        """Epochs of a training that is to mend it."""
        return max(EPOCHS, self.epochs or 0)


def what_to_type(cause: str, facts: Facts) -> tuple[str, tuple[str, ...]]:
    """A line of Python and options of the command line against a cause; empty if there is nothing to type."""
    made = _MAKERS.get(cause)
    return ("", ()) if made is None else made(facts)


def _fit(facts: Facts, beta: str = "") -> str:
    weight = beta or ("" if facts.beta == 1 else f"{facts.beta:g}")
    objective = f"objective=ppl_vae.objectives.ELBO(beta={weight}), " if weight else ""
    return f"ppl_vae.fit(model, guide, x, {objective}max_epochs={facts.length})"


def _longer(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if facts.epochs is None:
        return _fit(facts), ()
    return _fit(facts), ("resume", "--max_epochs", str(max(10, 3 * facts.epochs)))


def _refit(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if isinstance(facts.guide, nn.Module) and not any(True for _ in facts.guide.parameters()):
        return "", ()
    objective = (
        "" if facts.beta == 1 else f"objective=ppl_vae.objectives.ELBO(beta={facts.beta:g}), "
    )
    code = f"ppl_vae.refit_guide(model, guide, x, {objective}max_epochs={facts.length})"
    return code, ("refit",)


def _lower_beta(facts: Facts) -> tuple[str, tuple[str, ...]]:
    return _with_new_weights(facts, _fit(facts, "1")), ("train", "--objective.beta", "1")


def _warm_up(facts: Facts) -> tuple[str, tuple[str, ...]]:
    half = max(1, facts.length // 2)
    code = _fit(facts, f"ppl_vae.objectives.LinearWarmup(epochs={half})")
    options = ("--objective.beta", "LinearWarmup", "--objective.beta.epochs", str(half))
    return code, ("train", *options)


def _start_again(facts: Facts) -> tuple[str, tuple[str, ...]]:
    code, options = _warm_up(facts)
    return _with_new_weights(facts, code), options


def _with_new_weights(facts: Facts, code: str) -> str:
    """A training from new weights: units that a collapse has switched off do not come back by themselves."""
    programs = {"model": facts.model, "guide": facts.guide}
    parts = [f"*{name}.modules()" for name, each in programs.items() if _has_weights(each)]
    both = f"[{', '.join(parts)}]"
    return f"{_RESET.format(both)}; {code}" if parts else code


def _target(facts: Facts) -> tuple[str, tuple[str, ...]]:
    nats = round(facts.rate + PER_DIMENSION * facts.unused, 1)
    code = _fit(facts, f"ppl_vae.objectives.TargetRate(nats={nats:g})")
    return code, ("train", "--objective.beta", "TargetRate", "--objective.beta.nats", f"{nats:g}")


def _learn_noise(facts: Facts) -> tuple[str, tuple[str, ...]]:
    model: Any = facts.model
    if isinstance(getattr(model, "likelihood", None), Gaussian):
        code = f"model.likelihood = ppl_vae.likelihoods.OptimalGaussian(); {_fit(facts)}"
        return code, ("train", "--model.likelihood", "OptimalGaussian")
    if isinstance(model, ProbabilisticPCA) and not isinstance(model.log_sigma, nn.Parameter):
        code = f"model.log_sigma = torch.nn.Parameter(model.log_sigma); {_fit(facts)}"
        return code, ("train", "--model.learn_sigma", "true")
    return "", ()


def _new_weights(facts: Facts) -> tuple[str, tuple[str, ...]]:
    options = ("train", "--seed", "1", "--learning_rate", "3e-4")
    if not _has_weights(facts.guide):
        return "", options
    return f"{_RESET.format('guide.modules()')}; {_fit(facts)}", options


def _has_weights(program: Program) -> bool:
    """Whether a program is a module of which parts draw their weights anew."""
    parts = program.modules() if isinstance(program, nn.Module) else ()
    return any(hasattr(part, "reset_parameters") for part in parts)


_RESET = "[part.reset_parameters() for part in {} if hasattr(part, 'reset_parameters')]"

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
