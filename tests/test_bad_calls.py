"""Programs, options and parts that do not fit: each answer names the culprit and what was expected."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyro
import pytest
import torch
from bad_inputs import (
    Case,
    X,
    evaluate,
    fit,
    guide,
    in_plate,
    model,
    pair,
    refused,
)
from torch import nn

import ppl_vae
from ppl_vae import objectives
from ppl_vae.data import load_data
from ppl_vae.em import GradientSteps
from ppl_vae.evaluation import Generator
from ppl_vae.guides import MeanField, NeuralSpline
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import VAE, DiagonalNormal, GaussianHMM, GaussianMixture, HierarchicalVAE
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.pairs import PairError
from ppl_vae.plots import learning_curves
from ppl_vae.runs import Comparison
from ppl_vae.runtime import make_fabric
from ppl_vae.training import refit_prior

PROGRAMS: dict[str, Case] = {
    "a guide with another number of latents": (
        lambda: fit(*pair(2, of_guide=3), X),
        PairError,
        ["site 'z' has 2 dimensions in the model and 3 dimensions in the guide"],
    ),
    "the same in evaluate": (
        lambda: evaluate(*pair(1, of_guide=4), X),
        PairError,
        ["site 'z' has 1 dimension in the model and 4 dimensions in the guide"],
    ),
    "a guide without the site": (
        lambda: fit(model, lambda x: None, X),
        PairError,
        ["latent site 'z' is not sampled by the guide, which samples nothing"],
    ),
    "a plate of another size": (
        lambda: fit(model, in_plate("data", 7), X),
        PairError,
        ["'data'", "size 7", "20 rows"],
    ),
    "a plate of another name": (
        lambda: fit(model, in_plate("rows"), X),
        PairError,
        ["site 'z' is in 'data' in the model and in 'rows' in the guide"],
    ),
    "a guide of no arguments": (
        lambda: fit(model, lambda: None, X),
        PairError,
        ["the guide raised TypeError", "takes 0 positional arguments but 1 was given"],
    ),
    "a model of keywords": (
        lambda: fit(lambda *, x: None, guide, X),
        TypeError,
        ["the model takes 'x' by keyword alone"],
    ),
    "a layer as model": (
        lambda: fit(nn.Linear(3, 3), guide, X),
        PairError,
        ["the model observes nothing", "obs=x"],
    ),
    "a fit as model": (
        lambda: evaluate(fit(model, guide, X), guide, X),
        TypeError,
        ["model is a ppl_vae.Fit: pass a Pyro program"],
    ),
    "both in a tuple": (
        lambda: evaluate((model, guide), X, X),
        TypeError,
        ["model is a tuple: pass a Pyro program"],
    ),
    "a loss of torch": (
        lambda: fit(model, guide, X, objective=nn.MSELoss()),
        TypeError,
        ["objective is an object of MSELoss", "ppl_vae.objectives"],
    ),
    "SVI as objective": (
        lambda: fit(model, guide, X, objective=object.__new__(pyro.infer.SVI)),
        TypeError,
        ["objective is an object of SVI", "pyro.infer.Trace_ELBO()"],
    ),
}

OPTIONS: dict[str, Case] = {
    "a trillion samples": (
        lambda: evaluate(model, guide, X, num_samples=10**12),
        ValueError,
        ["num_samples must be at most 100,000,000, got 1,000,000,000,000", "square root"],
    ),
    "half a sample": (
        lambda: evaluate(model, guide, X, num_samples=2.5),
        TypeError,
        ["num_samples must be a whole number, got 2.5"],
    ),
    "yes, samples": (
        lambda: evaluate(model, guide, X, num_samples=True),
        TypeError,
        ["num_samples must be a whole number, got True"],
    ),
    "gaps of one sample": (
        lambda: ppl_vae.inference_gaps(model, guide, X, num_samples=1),
        ValueError,
        ["num_samples must be at least 2, got 1"],
    ),
    "gaps in no steps": (
        lambda: ppl_vae.inference_gaps(model, guide, X, max_steps=0),
        ValueError,
        ["max_steps must be at least 1, got 0"],
    ),
    "too many temperatures": (
        lambda: ppl_vae.annealed_importance_sampling(model, guide, X, num_steps=10**12),
        ValueError,
        ["num_steps must be at most 1,000,000, got 1,000,000,000,000"],
    ),
    "too many draws": (
        lambda: ppl_vae.to_arviz(model, guide, X, num_draws=10**12),
        ValueError,
        ["num_draws must be at most"],
    ),
    "a word as seed": (
        lambda: fit(model, guide, X, seed="a"),
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "a fraction as seed": (
        lambda: evaluate(model, guide, X, seed=1.5),
        TypeError,
        ["seed must be a whole number, got 1.5"],
    ),
    "a seed of 70 bits": (
        lambda: evaluate(model, guide, X, seed=2**70),
        ValueError,
        ["seed must be at most 9,223,372,036,854,775,807"],
    ),
    "data with a word as seed": (
        lambda: load_data("digits", seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got 'a'"],
    ),
    "data with a seed of 70 bits": (
        lambda: load_data("digits", seed=2**70),
        ValueError,
        ["seed must be a whole number of 64 bits"],
    ),
    "EM with a word as seed": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "EM with a word as tolerance": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, tolerance="low"),  # type: ignore[arg-type]
        TypeError,
        ["tolerance must be a number, got the string 'low'"],
    ),
    "EM for half an iteration": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, max_iterations=0.5),  # type: ignore[arg-type]
        TypeError,
        ["max_iterations must be a whole number, got 0.5"],
    ),
    "the number of a device": (
        lambda: fit(model, guide, X, device=3),
        TypeError,
        ["device must be 'auto', 'cpu', 'cuda'", "got 3"],
    ),
    "a device of another name": (
        lambda: fit(model, guide, X, device="gpu"),
        ValueError,
        ["device='gpu': expected 'auto', 'cpu', 'cuda'"],
    ),
    "a name as fabric": (
        lambda: fit(model, guide, X, fabric="cuda"),
        TypeError,
        ["fabric must be a launched Lightning Fabric", "got the string 'cuda'"],
    ),
    "no processes": (
        lambda: make_fabric("cpu", num_processes=0),
        ValueError,
        ["num_processes must be at least 1, got 0"],
    ),
    "endless epochs": (
        lambda: fit(model, guide, X, max_epochs=float("inf")),
        TypeError,
        ["max_epochs must be a whole number, got inf"],
    ),
    "a check of no rows": (
        lambda: ppl_vae.check(model, guide, X, batch_size=0),
        ValueError,
        ["batch_size must be at least 1, got 0"],
    ),
    "patience without validation": (
        lambda: fit(model, guide, X, patience=3),
        ValueError,
        ["early stopping watches the held-out ELBO: give validation rows"],
    ),
    "a negative beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta=-1.0),
        ValueError,
        ["beta is a weight of the KL and must be >= 0, not -1.0"],
    ),
    "a word as beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta="one"),  # type: ignore[arg-type]
        TypeError,
        ["beta must be a number, got the string 'one'"],
    ),
    "an objective with a negative beta": (
        lambda: objectives.ELBO(beta=-1.0),
        ValueError,
        ["must be >= 0, not -1.0"],
    ),
    "a number as truth": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=3.0),  # type: ignore[arg-type]
        TypeError,
        ["truth must be what evaluate or annealed_importance_sampling has returned", "got 3.0"],
    ),
    "a truth of other rows": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=evaluate(model, guide, X[:5])),
        ValueError,
        ["truth holds log p(x) of 5 rows, but x has 20"],
    ),
    "a dict as evaluation": (
        lambda: ppl_vae.to_arviz(model, guide, X, evaluation={}),  # type: ignore[arg-type]
        TypeError,
        ["evaluation must be what evaluate has returned", "got an object of dict"],
    ),
    "a name as prior": (
        lambda: refit_prior(*pair(), X, "normal"),  # type: ignore[arg-type]
        TypeError,
        ["prior must be a description such as MixturePrior(20), got the string 'normal'"],
    ),
    "a class as prior": (
        lambda: refit_prior(*pair(), X, DiagonalNormal),  # type: ignore[arg-type]
        TypeError,
        ["got the class DiagonalNormal"],
    ),
    "no draws of data": (
        lambda: Generator(*pair(), X).from_prior(0),
        ValueError,
        ["num must be at least 1, got 0"],
    ),
    "latents of another width": (
        lambda: Generator(*pair(), X).decode(torch.zeros(4, 5)),
        ValueError,
        ["z has shape (4, 5)", "expected (m, 2)"],
    ),
    "an empty history": (
        lambda: learning_curves([]),
        ValueError,
        ["the history is empty", "metrics.csv is missing"],
    ),
}

PARTS: dict[str, Case] = {
    "half a latent": (
        lambda: VAE((3,), latent_dim=2.5),  # type: ignore[arg-type]
        TypeError,
        ["VAE.latent_dim must be a whole number, got 2.5"],
    ),
    "a number as shape": (
        lambda: VAE(3),  # type: ignore[arg-type]
        TypeError,
        ["VAE.data_shape must be the shape of a row, such as (5,), got 3"],
    ),
    "rows of no numbers": (
        lambda: MeanField((0,)),
        ValueError,
        ["MeanField.data_shape must hold positive numbers, got (0,)"],
    ),
    "half a column": (
        lambda: GaussianHMM((4, 0.5)),  # type: ignore[arg-type]
        TypeError,
        ["GaussianHMM.data_shape must hold whole numbers, got (4, 0.5)"],
    ),
    "the name of a network": (
        lambda: NeuralSpline((3,), network="MLP"),  # type: ignore[arg-type]
        TypeError,
        ["NeuralSpline.network must be an object such as MLP(), got 'MLP'"],
    ),
    "the class of a network": (
        lambda: HierarchicalVAE((3,), latent_network=MLP),  # type: ignore[arg-type]
        TypeError,
        ["HierarchicalVAE.latent_network must be an object such as MLP(), got the class MLP"],
    ),
    "the class of a likelihood": (
        lambda: VAE((3,), likelihood=Bernoulli),  # type: ignore[arg-type]
        TypeError,
        ["VAE.likelihood must be an object such as Bernoulli(), got the class Bernoulli"],
    ),
    "the name of a prior": (
        lambda: VAE((3,), prior="normal"),  # type: ignore[arg-type]
        TypeError,
        ["VAE.prior must be an object such as StandardNormal(), got 'normal'"],
    ),
    "one width": (
        lambda: MLP(hidden=8),  # type: ignore[arg-type]
        TypeError,
        ["MLP.hidden must be a list of widths, one for each layer, got 8"],
    ),
    "half a channel": (
        lambda: Convolutional(channels=(2.5,)),  # type: ignore[arg-type]
        TypeError,
        ["Convolutional.channels must hold whole numbers, got (2.5,)"],
    ),
}


async def awaited(x: Tensor) -> None:
    model(x)


def yielding(x: Tensor) -> Iterator[None]:
    yield model(x)


def filled(value: float) -> tuple[VAE, MeanField]:
    """A pair, one of whose weights is set."""
    programs = pair()
    with torch.no_grad():
        next(programs[1].parameters()).flatten()[3] = value
    return programs


class Later:
    """A schedule's factor, good at first."""

    def __init__(self, later: float) -> None:
        self.later = later

    def __call__(self, epoch: int) -> float:
        return self.later if epoch else 1.0


def schedule(kind: Any, *arguments: Any) -> Callable[[Any], Any]:
    return lambda optimizer: kind(optimizer, *arguments)


NAN = "the parameter 'guide.encoder.net.0.weight' is NaN in 1 of its 12 numbers"
META = "is on the meta device, which holds no numbers"
schedules = torch.optim.lr_scheduler

STATES: dict[str, Case] = {
    "a coroutine as model": (
        lambda: fit(awaited, guide, X),
        TypeError,
        ["model is the function awaited", "with async def", "write it as a plain function"],
    ),
    "a generator as guide": (
        lambda: fit(model, yielding, X),
        TypeError,
        ["guide is the function yielding", "with yield in its body", "calling it runs nothing"],
    ),
    "evaluate with a NaN weight": (lambda: evaluate(*filled(torch.nan), X), PairError, [NAN]),
    "diagnose with a NaN weight": (
        lambda: ppl_vae.diagnose(*filled(torch.nan), X),
        PairError,
        [NAN, "its training has diverged", "clip_grad_norm"],
    ),
    "gaps with a NaN weight": (
        lambda: ppl_vae.inference_gaps(*filled(torch.nan), X),
        PairError,
        [NAN],
    ),
    "annealing with a NaN weight": (
        lambda: ppl_vae.annealed_importance_sampling(*filled(torch.nan), X, num_steps=2),
        PairError,
        [NAN],
    ),
    "ArviZ with a NaN weight": (lambda: ppl_vae.to_arviz(*filled(torch.nan), X), PairError, [NAN]),
    "fit on meta": (lambda: fit(*(p.to("meta") for p in pair()), X), PairError, [META, "to_empty"]),
    "evaluate on meta": (lambda: evaluate(*(p.to("meta") for p in pair()), X), PairError, [META]),
    "a step size of 0 epochs": (
        lambda: fit(model, guide, X, lr_scheduler=schedule(schedules.StepLR, 0)),
        ValueError,
        ["lr_scheduler made an object of StepLR, whose step raised ZeroDivisionError"],
    ),
    "a negative factor": (
        lambda: fit(model, guide, X, lr_scheduler=schedule(schedules.ExponentialLR, -1.0)),
        ValueError,
        ["an object of ExponentialLR, which set the learning rate to -0.001", "at least 0"],
    ),
    "a factor of NaN": (
        lambda: fit(model, guide, X, lr_scheduler=schedule(schedules.LambdaLR, Later(torch.nan))),
        ValueError,
        ["an object of LambdaLR, which set the learning rate to nan"],
    ),
    "an infinite factor": (
        lambda: fit(model, guide, X, lr_scheduler=schedule(schedules.LambdaLR, Later(torch.inf))),
        ValueError,
        ["which set the learning rate to inf"],
    ),
    "half the steps of EM": (
        lambda: GradientSteps(steps=2.5),  # type: ignore[arg-type]
        TypeError,
        ["GradientSteps.steps must be a whole number, got 2.5"],
    ),
    "a word as step size of EM": (
        lambda: GradientSteps(learning_rate="x"),  # type: ignore[arg-type]
        TypeError,
        ["GradientSteps.learning_rate must be a number, got the string 'x'"],
    ),
    "an infinite step size of EM": (
        lambda: GradientSteps(learning_rate=torch.inf),
        ValueError,
        ["GradientSteps.learning_rate must be positive, got inf"],
    ),
    "the name of EM's optimizer": (
        lambda: GradientSteps(optimizer="adam"),  # type: ignore[arg-type]
        TypeError,
        ["GradientSteps.optimizer must be a function", "got the string 'adam'"],
    ),
    "the name of an activation": (
        lambda: MLP(activation="relu"),  # type: ignore[arg-type]
        TypeError,
        ["MLP.activation must be a class such as torch.nn.ReLU, got 'relu'"],
    ),
    "strangers compared": (
        lambda: Comparison.of(["a", "b"]),  # type: ignore[list-item]
        TypeError,
        ["runs must be what load_run has returned, got the string 'a'"],
    ),
    "too many processes": (
        lambda: make_fabric("cpu", num_processes=100_000),
        ValueError,
        ["num_processes=100,000 is more than this machine is good for", "core(s)"],
    ),
    "machines without an address": (
        lambda: make_fabric("cpu", num_nodes=5),
        ValueError,
        ["num_nodes=5, but nothing says where the other machines are: set MASTER_ADDR"],
    ),
}

CASES = PROGRAMS | OPTIONS | PARTS | STATES


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = CASES[case]
    refused(call, kind, *words)


@pytest.mark.parametrize("value", ["no", 2.5, torch.tensor([1, 2]), None, dict])
@pytest.mark.parametrize("name", ["resume", "tensorboard", "capture"])
def test_a_flag_is_true_or_false(name: str, value: object) -> None:
    """The string 'no' counts as True in Python."""
    refused(
        lambda: fit(model, guide, X, **{name: value}), TypeError, f"{name} must be True or False"
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fit(model, guide, X, progress="no"),
            "progress must be True or False, got the string",
        ),
        (
            lambda: fit(model, guide, X, compile="no"),
            "compile must be True or False, got the string",
        ),
        (lambda: evaluate(model, guide, X, capture="no"), "capture must be True or False"),
        (lambda: ppl_vae.save_run("x", *pair(), overwrite="no"), "overwrite must be True or False"),
        (lambda: load_data("digits", download="no"), "download must be True or False, got 'no'"),
        (lambda: load_data("digits", dequantize="no"), "dequantize must be True or False"),
        (lambda: load_data("digits", max_rows=True), "max_rows must be a whole number, got True"),
    ],
)
def test_flags_of_other_functions(call: Callable[[], Any], words: str) -> None:
    refused(call, TypeError, words)


@pytest.mark.parametrize("value", [None, True, "3", 2.5, torch.tensor([1, 2])])
@pytest.mark.parametrize("name", ["max_epochs", "batch_size"])
def test_a_count_is_a_whole_number(name: str, value: object) -> None:
    refused(
        lambda: fit(model, guide, X, **{name: value}), TypeError, f"{name} must be a whole number"
    )


@pytest.mark.parametrize("value", [True, "fast", [1.0], torch.tensor([1.0, 2.0]), 1j])
@pytest.mark.parametrize("name", ["learning_rate", "clip_grad_norm"])
def test_a_number_is_one_number(name: str, value: object) -> None:
    refused(
        lambda: fit(model, guide, X, **{name: value}), TypeError, f"{name} must be a number, got"
    )


def test_any_real_number_is_taken() -> None:
    for value in (Fraction(1, 100), np.float32(0.01), torch.tensor(0.01)):
        fit(model, guide, X, learning_rate=value, clip_grad_norm=value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("online", 2.5, "online must be StepSize(...), got 2.5"),
        ("m_step", dict, "m_step must be GradientSteps(...), got the class dict"),
        ("run_dir", 2.5, "run_dir must be a path, got 2.5"),
        ("hard", "no", "hard must be True or False, got the string 'no'"),
        ("initialize", 1.5, "initialize must be True or False"),
        ("tolerance", True, "tolerance must be a number, got True"),
    ],
)
def test_options_of_em(name: str, value: object, words: str) -> None:
    options: dict[str, Any] = {name: value}
    refused(lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, **options), TypeError, words)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1])
def test_em_takes_any_seed(seed: int) -> None:
    """scikit-learn, which starts a mixture, takes seeds of 32 bits."""
    ppl_vae.fit_em(GaussianMixture((3,), 2), X, seed=seed, max_iterations=2, progress=False)
