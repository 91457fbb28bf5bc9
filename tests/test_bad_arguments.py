"""Weights, schedules, flags and numbers that cannot be: each answer names the culprit and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bad_inputs import Case, X, evaluate, fit, guide, model, pair, refused
from torch import Tensor

import ppl_vae
from ppl_vae.data import load_data
from ppl_vae.em import GradientSteps
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE, DiagonalNormal, GaussianHMM, GaussianMixture, MixtureOfPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.runs import Comparison, RunFolder
from ppl_vae.runtime import make_fabric


async def awaited(x: Tensor) -> None:
    model(x)


def yielding(x: Tensor) -> Iterator[None]:
    yield model(x)  # type: ignore[func-returns-value]


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
    "no runs compared": (
        lambda: Comparison.of([]),
        ValueError,
        ["runs must be a list of what load_run has returned, got an empty one"],
    ),
    "nothing compared": (
        lambda: Comparison.of(None),  # type: ignore[arg-type]
        TypeError,
        ["runs must be a list of what load_run has returned, got None"],
    ),
    "a number as trust": (
        lambda: ppl_vae.load_run("x", trust=3),  # type: ignore[arg-type]
        TypeError,
        ["trust must be True, False, or the names of packages", "got 3"],
    ),
    "a dict as trust": (
        lambda: ppl_vae.load_run("x", trust={"os": 1}),
        TypeError,
        ["trust must be True, False, or the names of packages", "got an object of dict"],
    ),
    "a word for results": (
        lambda: ppl_vae.load_run("x", results="no"),  # type: ignore[arg-type]
        TypeError,
        ["results must be True or False, got the string 'no'"],
    ),
    "no path to load": (
        lambda: ppl_vae.load_run(""),
        ValueError,
        ["the path of the run is empty: give its folder"],
    ),
    "no path to write": (lambda: RunFolder.new(""), ValueError, ["path is empty: give the path"]),
    "no path to go on": (lambda: RunFolder.open(""), ValueError, ["path is empty: give the path"]),
    "a number as folder": (
        lambda: RunFolder.new(3),  # type: ignore[arg-type]
        TypeError,
        ["path must be the path of a folder, got 3"],
    ),
    "None as folder": (
        lambda: RunFolder.open(None),  # type: ignore[arg-type]
        TypeError,
        ["path must be the path of a folder, got None"],
    ),
    "a number as configuration": (
        lambda: RunFolder.new("x", 3),  # type: ignore[arg-type]
        TypeError,
        ["config must be a dict, got 3"],
    ),
    "a diagnosis as evaluation": (
        lambda: ppl_vae.save_run("x", *pair(), evaluation=ppl_vae.diagnose(*pair(), X)),
        TypeError,
        ["evaluation must be what evaluate has returned, got an object of Diagnosis"],
    ),
    "an evaluation as diagnosis": (
        lambda: ppl_vae.save_run("x", *pair(), diagnosis=evaluate(*pair(), X)),
        TypeError,
        ["diagnosis must be what diagnose has returned, got an object of Evaluation"],
    ),
    "too many processes": (
        lambda: make_fabric("cpu", num_processes=100_000),
        ValueError,
        ["num_processes=100,000 is more than this machine can use", "core(s)"],
    ),
}


def test_machines_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr("ppl_vae.runtime.devices._in_cluster", lambda: False)
    with pytest.raises(
        ValueError, match="nothing says where the other machines are: set MASTER_ADDR"
    ):
        make_fabric("cpu", num_nodes=5)


@pytest.mark.parametrize("case", STATES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = STATES[case]
    refused(call, kind, *words)


@pytest.mark.parametrize("value", ["no", 2.5, torch.tensor([1, 2]), None, dict])
@pytest.mark.parametrize("name", ["resume", "tensorboard", "capture"])
def test_a_flag_is_true_or_false(name: str, value: object) -> None:
    """The string 'no' counts as True in Python."""
    refused(
        lambda: fit(model, guide, X, **{name: value}), TypeError, f"{name} must be True or False"
    )


BARS: dict[str, Callable[..., Any]] = {
    "fit": lambda **how: fit(model, guide, X, **how),
    "fit_em": lambda **how: ppl_vae.fit_em(GaussianMixture((3,), 2), X, **how),
    "evaluate": lambda **how: evaluate(model, guide, X, **how),
    "diagnose": lambda **how: ppl_vae.diagnose(model, guide, X, **how),
    "gaps": lambda **how: ppl_vae.inference_gaps(model, guide, X, **how),
    "annealing": lambda **how: ppl_vae.annealed_importance_sampling(model, guide, X, **how),
    "sandwich": lambda **how: ppl_vae.evaluation.bidirectional_monte_carlo(model, guide, X, **how),
    "refit_prior": lambda **how: ppl_vae.refit_prior(*pair(), X, DiagonalNormal(), **how),
}


@pytest.mark.parametrize("name", BARS)
def test_a_bar_is_shown_or_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(lambda: BARS[name](progress="no"), TypeError, "progress must be True or False, got the")
    assert capsys.readouterr().err == ""


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
        (lambda: ppl_vae.save_run("x", *pair(), overwrite="no"), "overwrite must be True or False"),  # type: ignore[arg-type]
        (lambda: load_data("digits", download="no"), "download must be True or False, got 'no'"),  # type: ignore[call-overload]
        (lambda: load_data("digits", dequantize="no"), "dequantize must be True or False"),  # type: ignore[call-overload]
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
@pytest.mark.parametrize(
    ("kind", "shape"), [(GaussianMixture, (3,)), (MixtureOfPCA, (3,)), (GaussianHMM, (4, 3))]
)
def test_em_takes_any_seed(seed: int, kind: Any, shape: tuple[int, ...]) -> None:
    """scikit-learn, which starts a mixture, takes seeds of 32 bits."""
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    ppl_vae.fit_em(kind(shape, 2), x, seed=seed, max_iterations=2, progress=False)


def test_a_guide_that_makes_its_weights_later_is_taken() -> None:
    """They are not looked at for NaN before they are there."""

    class Later(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.LazyLinear(3)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.layer(x), 1.0).to_event(1))

    assert evaluate(model, Later(), X).num_rows == len(X)


def test_a_nan_parameter_that_does_not_matter_is_none_of_our_business() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.full((2,), torch.nan))

        def forward(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def exact(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0])
    found = evaluate(Model(), exact, x, num_samples=2).log_likelihood.values
    torch.testing.assert_close(found, dist.Normal(0.0, 2**0.5).log_prob(x))
