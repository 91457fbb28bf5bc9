"""What to type against a cause: a line of Python, and options of the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import nn

from ppl_vae.diagnosis.new_weights import has_new_weights, with_new_weights
from ppl_vae.likelihoods import Gaussian, LearnedGaussian
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import recipe_of
from ppl_vae.objectives import ELBO, Controller, LinearWarmup, Objective, TargetRate
from ppl_vae.pairs import Program, is_ours

EPOCHS = 200
"""Fewest epochs of a remedy."""

STEPS = 1000
"""Fewest steps of one: 200 epochs of one batch are too few for a decoder that has to learn its noise, too."""

BATCH_SIZE, LEARNING_RATE = 128, 1e-3
"""The defaults of `fit`."""

SMALLER = 0.3
"""Of the learning rate with which an encoder has died, that of the next training."""

LONGER_BEFORE = (
    "train the pair for longer (`train --resume` with its run), and fit the prior again after that"
)
"""What helps a pair whose training had not ended before a prior was fitted to its codes."""

PER_DIMENSION = 0.5
"""Nats that a target rate allows each dimension that is not used."""


@dataclass(frozen=True)
class Facts:
    """What a remedy depends on.

    Attributes:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        beta: The weight of the KL that the pair was trained with.
        epochs: How many epochs the pair was trained for; None if that is not known.
        rate: The mean rate, nats per row.
        unused: How many dimensions are not used.
        objective: What was maximized, if that is known.
        guide_learns: Whether the guide has parameters.
        summed: Whether the model sums latents out, which have no KL that beta could weight.
        batch_size: Rows in a batch of the training, if that is known.
        learning_rate: Its step size with the default optimizer; None if it is the default one, or not known.
        steps: How many steps it took, 0 if that is not known.
        active: How many dimensions are used, if that is known.
        suiting_beta: The weight of the KL under which the decoder's noise acts like one that suits the data, if
            it is too large: $(s^* / s)^2$ for a normal decoder with the noise s where $s^*$ suits, since its
            log p(x | z) is that with the other noise times that weight, up to a constant. For absolute errors
            (Laplace) it is $s^* / s$; for densities that are smooth at their peak (logistic, Student),
            $(s^* / s)^2$ is about right. None if it is not known.
        least_epochs: Fewest epochs of a remedy.
        prior_epochs: For how many epochs a new prior was fitted to the codes after that training.
        penalized: Whether points were trained with a density p(z), and not with a flat one; None if that is not
            known.
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
    steps: int = 0
    active: int | None = None
    suiting_beta: float | None = None
    least_epochs: int = EPOCHS
    prior_epochs: int = 0
    penalized: bool | None = None

    @property
    def length(self) -> int:
        """Epochs of a training that is to mend it."""
        epochs = self.epochs or 0
        enough = math.ceil(STEPS * epochs / self.steps) if self.steps else 0
        return max(self.least_epochs, epochs, enough)


def what_to_type(cause: str, facts: Facts) -> tuple[str, tuple[str, ...]]:
    """A line of Python and options of the command line against a cause; empty if there is nothing to type."""
    made = _MAKERS.get(cause)
    if made is None or (facts.summed and cause in _OF_BETA):
        return "", ()
    return made(facts)


def words_beside(cause: str, facts: Facts) -> str:
    """What is to be said of a line beside the remedy in words; it goes on with that sentence."""
    beta = _beta_for_noise(facts) if cause == "decoder noise" else None
    return "" if beta is None else _OF_NOISE.format(beta=beta)


_OF_NOISE = (
    ". A smaller noise in the model is best; the line trains the model as it is, with beta = {beta:.4g}, which "
    "does the same for z. What is maximized is then no bound of log p(x), and draws of x keep the noise"
)

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
    if not is_ours(value, "objectives"):
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
    if facts.epochs is None or facts.prior_epochs:  # the run of the prior cannot be continued
        return code, ()
    return code, ("resume", "--max_epochs", str(max(10, 3 * facts.epochs, 2 * warm)))


def _refit(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if not facts.guide_learns:
        return "", ()
    held = facts.beta if isinstance(getattr(facts.objective, "beta", 1), Controller) else None
    objective = _objective(facts, held)
    given = f"{objective}{_steps(_without_tiny_steps(facts))}max_epochs={facts.length}"
    code = f"ppl_vae.refit_guide(model, guide, x, {given})"
    return code, ("refit", *_larger_steps(facts), *as_long(facts))


def _lower_beta(facts: Facts) -> tuple[str, tuple[str, ...]]:
    if isinstance(getattr(facts.objective, "beta", 1), Controller):
        return _target(facts)
    # Not beta = 1 from the start: a scale that is learned would grow to what the data vary by without z.
    return _start_again(facts)


def _warm_up(facts: Facts) -> tuple[str, tuple[str, ...]]:
    half, end = max(1, facts.length // 2), min(1.0, facts.beta) or 1.0
    code = _fit(_without_tiny_steps(facts), LinearWarmup(epochs=half, end=end))
    # All arguments: those of another class may be in the run's config.yaml.
    options = ["--objective.beta", "LinearWarmup", "--objective.beta.epochs", str(half)]
    options += ["--objective.beta.start", "0", "--objective.beta.end", f"{end:g}"]
    # As many epochs as the run has may end within the warm-up.
    options += [*_larger_steps(facts), "--max_epochs", str(facts.length)]
    return code, ("train", *options)


def fit_again(facts: Facts, objective: Objective | None = None, fresh: bool = False) -> str:
    """A line of Python that trains a pair again, as it was trained.

    Args:
        facts: What it depends on.
        objective: What is to be maximized; None: what was.
        fresh: Whether with new weights.
    """
    given = facts if objective is None else replace(facts, objective=objective)
    return _with_new_weights(facts, _fit(given)) if fresh else _fit(given)


def as_long(facts: Facts) -> tuple[str, ...]:
    """Options with which a run is as long as the line of Python is, if it was shorter."""
    short = facts.epochs is not None and facts.epochs < facts.length
    return ("--max_epochs", str(facts.length)) if short else ()


def _larger_steps(facts: Facts) -> tuple[str, ...]:
    """Options with the default steps in place of smaller ones."""
    return ("--learning_rate", f"{LEARNING_RATE:g}") if _has_tiny_steps(facts) else ()


def _has_tiny_steps(facts: Facts) -> bool:
    """Whether the steps were smaller than the default ones, which may be why nothing has moved."""
    return facts.learning_rate is not None and facts.learning_rate < LEARNING_RATE


def _without_tiny_steps(facts: Facts) -> Facts:
    """With the default steps in place of smaller ones."""
    return replace(facts, learning_rate=None) if _has_tiny_steps(facts) else facts


def _start_again(facts: Facts) -> tuple[str, tuple[str, ...]]:
    code, options = _warm_up(facts)
    return _with_new_weights(facts, code), options


def _with_new_weights(facts: Facts, code: str) -> str:
    return with_new_weights(facts.model, facts.guide, code)


def _target(facts: Facts) -> tuple[str, tuple[str, ...]]:
    nats = round(facts.rate + PER_DIMENSION * facts.unused, 1)
    code = _fit(facts, TargetRate(nats=nats))
    options = ["--objective.beta", "TargetRate", "--objective.beta.nats", f"{nats:g}"]
    options += ["--objective.beta.start", "1", *as_long(facts)]
    return code, ("train", *options)


def _smaller_noise(facts: Facts) -> tuple[str, tuple[str, ...]]:
    beta = _beta_for_noise(facts)
    if beta is None:
        return _learn_noise(facts)
    options = ("train", "--objective.beta", f"{beta:.4g}", *as_long(facts))
    return _with_new_weights(facts, _fit(facts, float(f"{beta:.4g}"))), options


def _learn_noise(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """For models of ours, whose noise can be learned; empty for others."""
    model: Any = facts.model
    if isinstance(getattr(model, "likelihood", None), Gaussian | LearnedGaussian):
        # Under a noise that hides everything the weights have learned to do without the latents.
        code = _with_new_weights(facts, _fit(facts))
        code = f"model.likelihood = ppl_vae.likelihoods.OptimalGaussian(); {code}"
        return code, ("train", "--model.likelihood", "OptimalGaussian", *as_long(facts))
    if isinstance(model, ProbabilisticPCA) and not isinstance(model.log_sigma, nn.Parameter):
        code = f"model.log_sigma = torch.nn.Parameter(model.log_sigma); {_fit(facts)}"
        return code, ("train", "--model.learn_sigma", "true", *as_long(facts))
    ours = is_ours(model, "models") and not facts.summed
    return _start_again(facts) if ours else ("", ())  # it is learned, but has not been


def _beta_for_noise(facts: Facts) -> float | None:
    """The weight of the KL that does what a smaller noise would, in a model that is not ours; or None."""
    held = isinstance(getattr(facts.objective, "beta", 1), Controller)
    if facts.suiting_beta is None or facts.summed or held or _learn_noise(facts)[1]:
        return None
    return facts.suiting_beta * (min(1.0, facts.beta) or 1.0)


def _fewer(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """For a run alone: a pair that is there cannot be given another size."""
    if facts.active is None or _size_of(facts.model) != facts.active + facts.unused:
        return "", ()
    if hasattr(getattr(facts.model, "prior", None), "committed_rate"):  # of so many latents
        return "", ()
    size = str(max(1, facts.active))
    options = ("train", "--model.latent_dim", size)
    if _size_of(facts.guide) == _size_of(facts.model):
        return "", (*options, "--guide.latent_dim", size)
    takes_model = "model" in inspect.signature(type(facts.guide)).parameters
    return "", options if takes_model else ()


def _size_of(program: Program) -> int | None:
    """The `latent_dim` that a class was given; None if it takes none, or that is not known."""
    if not isinstance(program, nn.Module):
        return None
    recipe = recipe_of(program)
    if recipe is None and "latent_dim" not in inspect.signature(type(program)).parameters:
        return None
    given = (
        getattr(program, "latent_dim", None)
        if recipe is None
        else recipe.arguments.get("latent_dim")
    )
    return given if isinstance(given, int) else None


def _new_weights(facts: Facts) -> tuple[str, tuple[str, ...]]:
    code, options = begin_again(facts)
    return code if has_new_weights(facts.model, facts.guide) else "", options


def begin_again(facts: Facts) -> tuple[str, tuple[str, ...]]:
    """A line and options that train with new weights and smaller steps.

    The weights are those of the model, too: it has learned to do without its latents.

    Args:
        facts: What it depends on.
    """
    rate = SMALLER * (facts.learning_rate or LEARNING_RATE)
    options = ("train", "--seed", "1", "--learning_rate", f"{rate:.3g}", *as_long(facts))
    if facts.learning_rate is not None:
        facts = replace(facts, learning_rate=rate)
    return _with_new_weights(facts, _fit(facts)), options


_MAKERS: dict[str, Callable[[Facts], tuple[str, tuple[str, ...]]]] = {
    "still training": _longer,
    "constant posterior": _longer,
    "dead encoder": _new_weights,
    "dead units under a penalty": _start_again,
    "dead units": _new_weights,
    "units without worth": _fewer,
    "lagging guide": _refit,
    "strong decoder": _target,
    "large beta": _lower_beta,
    "decoder noise": _smaller_noise,
    "surplus dimensions": _fewer,
    "local optimum": _start_again,
    "ignored latent": _warm_up,
}
