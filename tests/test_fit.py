"""fit(): what comes back and stands on disk, seeds, wrong arguments, and precisions."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from trainings import HELD_OUT, Guide, Model, X, read_csv, same, train, weights

from ppl_vae import evaluate, fit
from ppl_vae.checks import PairWarning
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    LinearWarmup,
    MeanFieldELBO,
    Objective,
    TraceELBO,
)
from ppl_vae.pairs import PairError
from ppl_vae.runs.contents import holds_others
from ppl_vae.runtime import make_fabric, resolve_device
from ppl_vae.training.metrics import METRICS


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{n: v for n, v in row.items() if n != "seconds"} for row in history]


# -- what comes back -------------------------------------------------------------------------------------


def test_every_keyword_has_a_default() -> None:
    model, guide = Model(), Guide()
    fitted = fit(model, guide, X[:20])
    assert fitted.epochs == fitted.steps == fitted.best_epoch == 100
    assert fitted.model is model
    assert fitted.guide is guide
    assert fitted.objective == ELBO()
    assert fitted.run_dir is None
    assert fitted.stopped == "reached max_epochs = 100"
    assert repr(fitted).startswith(f"Fit(elbo={fitted.history[-1]['elbo']:.3f}, epochs=100")
    assert not model.decoder.weight.grad_fn


def test_history() -> None:
    fitted, _ = train(validation=HELD_OUT, max_epochs=2)
    assert [row["epoch"] for row in fitted.history] == [1, 2]
    assert [row["step"] for row in fitted.history] == [4, 8]
    for row in fitted.history:
        assert set(row) == {*METRICS, "kl_z[0]", "kl_z[1]"}
        assert row["elbo"] == pytest.approx(-(row["rate"] + row["distortion"]))
        held_out = row["validation_rate"] + row["validation_distortion"]
        assert row["validation_elbo"] == pytest.approx(-held_out)
        assert row["learning_rate"] == 1e-3
    assert fitted.seconds >= fitted.history[-1]["seconds"] - 1e-3 > 0


def test_an_epochs_metrics_are_means_over_rows_not_over_batches() -> None:
    """With a step size of nothing and an exact guide, the ELBO of an epoch is the mean log p(x) of all rows."""
    model, guide = programs.located, programs.normal_guide(0.5, 0.5**0.5)
    x = torch.arange(7.0)
    options: dict[str, Any] = {"objective": TraceELBO(), "learning_rate": 1e-30, "validation": x}
    row = fit(model, guide, x, batch_size=3, max_epochs=1, seed=0, **options).history[0]
    expected = float(torch.distributions.Normal(0.0, 2**0.5).log_prob(x).mean())
    assert row["elbo"] == pytest.approx(expected, abs=1e-5)
    assert row["loss"] == pytest.approx(-expected, abs=1e-5)
    assert row["validation_elbo"] == pytest.approx(expected, abs=1e-5)


# -- seeds -----------------------------------------------------------------------------------------------


def generators() -> list[Any]:
    numpy_state: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist()]


@pytest.mark.parametrize("resume", [False, True])
def test_a_seed_makes_everything_reproducible_and_leaves_the_generators(
    tmp_path: Path, resume: bool
) -> None:
    model, guide = Model(), Guide()
    before = generators()
    options: dict[str, Any] = {"max_epochs": 2, "seed": 3, "validation": HELD_OUT, "batch_size": 16}
    first = fit(model, guide, X, run_dir=tmp_path, **options)
    if resume:
        fit(model, guide, X, run_dir=tmp_path, resume=True, **(options | {"max_epochs": 4}))
    assert generators() == before
    torch.manual_seed(99)
    second, again = train(validation=HELD_OUT, max_epochs=4 if resume else 2, seed=3)
    assert same(weights(model, guide), again)
    assert without_seconds(first.history) == without_seconds(second.history)[:2]
    other, _ = train(validation=HELD_OUT, max_epochs=2, seed=4)
    assert other.history[0]["loss"] != first.history[0]["loss"]


def test_without_a_seed_the_global_generator_decides() -> None:
    runs = []
    for seed in (0, 0, 1):
        model, guide = Model(), Guide()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fit(model, guide, X, max_epochs=2, batch_size=16)
        assert not torch.equal(before, torch.get_rng_state())
        runs.append(weights(model, guide))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# -- objectives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (pyro.infer.Trace_ELBO(num_particles=2), TraceELBO(num_particles=2)),
        (pyro.infer.TraceMeanField_ELBO(), MeanFieldELBO()),
    ],
)
def test_pyros_own_objectives(theirs: Any, ours: Objective) -> None:
    fitted, found = train(objective=theirs)
    _, expected = train(objective=ours)
    assert fitted.objective == ours
    assert same(found, expected)


def test_beta_follows_its_schedule() -> None:
    fitted, _ = train(objective=ELBO(beta=LinearWarmup(4)), max_epochs=6)
    assert [r["beta"] for r in fitted.history] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    for row in fitted.history[4:]:
        assert row["loss"] == pytest.approx(-row["elbo"], abs=0.3)  # analytic against sampled rate
    row = fitted.history[0]
    assert row["loss"] < -row["elbo"]


# -- on disk ---------------------------------------------------------------------------------------------


def test_metrics_csv_is_the_history(tmp_path: Path) -> None:
    fitted, _ = train(run_dir=tmp_path, validation=HELD_OUT)
    rows = read_csv(tmp_path / "metrics.csv")
    assert [tuple(row) for row in rows] == [(*METRICS, "kl_z[0]", "kl_z[1]")] * 3
    assert [{n: float(v) for n, v in row.items()} for row in rows] == fitted.history
    fitted, _ = train(run_dir=tmp_path / "other")
    rows = read_csv(tmp_path / "other" / "metrics.csv")
    assert [{n: float(v) for n, v in row.items() if v} for row in rows] == fitted.history


def test_tensorboard_on_request(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted, _ = train(run_dir=tmp_path, tensorboard=True)
    assert not holds_others(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("elbo")]
    assert found == [(row["epoch"], pytest.approx(row["elbo"])) for row in fitted.history]
    train(run_dir=tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "other")) == ["checkpoints", "metrics.csv"]


# -- wrong arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"patience": 3}, ValueError, "give validation rows"),
        ({"patience": 0, "validation": HELD_OUT}, ValueError, "patience of at least 1"),
        ({"resume": True}, ValueError, "run_dir"),
        ({"tensorboard": True}, ValueError, "run_dir"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive, got 0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be positive"),
        ({"clip_grad_norm": 0.0}, ValueError, "clip_grad_norm must be positive"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number, got the string"),
        (
            {"learning_rate": lambda step: 0.1},
            TypeError,
            "learning_rate must be a number, got a la",
        ),
        ({"objective": "elbo"}, TypeError, "objective is the string 'elbo'"),
        ({"objective": pyro.infer.RenyiELBO()}, TypeError, "RenyiELBO.*objective=Importance"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "LBFGS.*several times"),
        ({"optimizer": "Adam"}, TypeError, "optimizer is the string 'Adam'; write optimizer=torch"),
        ({"optimizer": lambda p: None}, TypeError, "optimizer made None"),
        (
            {"optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)])},
            TypeError,
            "optimizer is an object of Adam",
        ),
        ({"lr_scheduler": lambda o: 0.1}, TypeError, "lr_scheduler made 0.1"),
    ],
)
def test_wrong_arguments(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        train(**options)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"max_epochs": 1.5}, TypeError, "max_epochs must be a whole number, got 1.5"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be a whole number, got 8.0"),
        ({"device": "gpu"}, ValueError, "device='gpu': expected 'auto'"),
        ({"device": "cuda:2"}, ValueError, "the last GPU that torch sees is 'cuda:1'"),
    ],
)
def test_fit_refuses_options_that_the_command_line_cannot_pass(
    option: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(error, match=message):
        fit(VAE((3,), 2), MeanField((3,), 2), torch.zeros(8, 3), **option)


def test_a_pair_that_is_wrong_is_not_trained() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.raises(PairError, match=r"'z' is not sampled by the guide.*(?s:.)*'code'"):
        train(guide=guide)

    def nothing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, z[:, :1]], 1), 1.0).to_event(1), obs=x)

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.raises(
        ValueError, match=r"no parameters to train.* evaluate takes the pair as it is"
    ):
        train(model=nothing, guide=fixed)


def test_a_pair_that_is_not_finite_from_the_start() -> None:
    class Broken(Guide):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                scale = (self.log_scale - 1.0).sqrt()
                pyro.sample("z", dist.Normal(self.encoder(x), scale).to_event(1))

    with pytest.raises(PairError, match=r"before any training.*'z' in the guide"):
        train(guide=Broken())


def test_what_may_be_meant_is_a_warning() -> None:
    with pytest.warns(PairWarning, match="warms up for 9 epochs"):
        train(objective=ELBO(beta=LinearWarmup(9)))
    guide = Guide()
    guide.unused = nn.Linear(2, 2)
    with pytest.warns(PairWarning, match=r"'guide\.unused\.(weight|bias)' receives no gradient"):
        train(guide=guide)


def test_an_error_in_a_program_says_at_which_step() -> None:
    class Failing(Guide):
        calls = 0

        def forward(self, x: Tensor) -> None:
            if self.training and torch.is_grad_enabled():  # `check` runs it without
                self.calls += 1
                if self.calls == 3:
                    raise KeyError("mine")
            super().forward(x)

    with pytest.raises(KeyError) as caught:
        train(guide=Failing(), capture=False)
    assert caught.value.__notes__ == ["while training, at step 3"]


# -- precision -------------------------------------------------------------------------------------------


def test_bfloat16() -> None:
    fitted, found = train(fabric=make_fabric(precision="bf16-mixed"), max_epochs=5)
    exact, expected = train(max_epochs=5)
    assert all(t.dtype == torch.float32 for t in found.values())
    assert not same(found, expected)  # or it was not used
    # In bfloat16 other numbers are drawn: the weights are compared by a bound that hardly depends on draws.
    bounds = [
        evaluate(done.model, done.guide, X, num_samples=200, method="guide", seed=0).elbo.mean
        for done in (fitted, exact)
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=0.02)


def test_double_precision() -> None:
    fitted, found = train(X.double(), model=Model().double(), guide=Guide().double())
    assert all(t.dtype == torch.float64 for t in found.values())
    assert math.isfinite(fitted.history[-1]["elbo"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "16-mixed"}, "'32-true', 'bf16-mixed'.*, got '16-mixed'"),
        ({"device": "cuda:1", "num_processes": 2}, "'cuda:1' is one GPU"),
    ],
)
def test_make_fabric_refuses_options_that_the_command_line_cannot_pass(
    option: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        make_fabric(**option)


def test_a_device_with_a_number_is_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with patch("lightning_fabric.Fabric") as fabric:
        make_fabric("cuda:1")
        make_fabric("cpu", num_processes=2)
    asked = [(c.kwargs["accelerator"], c.kwargs["devices"]) for c in fabric.call_args_list]
    assert asked == [("cuda", [1]), ("cpu", 2)]


def test_denormal_numbers_are_flushed_while_training_and_not_after() -> None:
    def flushed() -> bool:
        return float(torch.tensor(1e-40) * 1.0) == 0.0

    seen = []

    def stop(x: Tensor) -> Tensor:
        seen.append(flushed())
        if len(seen) > 8:
            raise KeyboardInterrupt
        return x

    model, guide = VAE((4,), 2, MLP(hidden=(3,))), MeanField((4,), 2, MLP(hidden=(3,)))
    assert not flushed()
    with pytest.raises(KeyboardInterrupt):
        fit(model, guide, torch.ones(6, 4), transform=stop, batch_size=2, max_epochs=9, seed=0)
    assert seen[-1]
    assert not flushed()
