"""Aggressive updates of the guide: what each step moves, when the phase ends, and that it resumes alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from trainings import compilers

from ppl_vae import diagnose, fit, sample
from ppl_vae.capture.recording import Recording
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.training import aggressive
from ppl_vae.training.aggressive import MOST, WINDOW, Aggression
from ppl_vae.training.step import Step
from ppl_vae.training.strides import Strides


@pytest.fixture(autouse=True)
def few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggressive, "TURNS", 3)


TURNS = 3
X = (torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(6) > 0).float()


def pair() -> tuple[VAE, MeanField]:
    torch.manual_seed(0)
    return VAE((6,), 2, MLP((8,))), MeanField((6,), 2, MLP((8,)))


def moves(losses: list[float]) -> str:
    """What each step moves: g, m or b."""
    state, found = Aggression(), ""
    for loss in losses:
        found += state.moves[0]
        state = state.after_step(loss)
    return found


def test_the_guide_moves_until_its_loss_no_longer_falls() -> None:
    falls = [10.0 - i for i in range(3 * WINDOW)]
    stays = [5.0] * WINDOW
    found = moves(
        [*falls, *stays, 5.0, 5.0]
    )  # the losses of `stays` are larger than the last of `falls`
    assert found == "g" * (4 * WINDOW) + "m" + "g"
    assert moves([float(-i) for i in range(MOST + 2)]) == "g" * MOST + "m" + "g"
    assert moves([math.nan] * (WINDOW + 1)) == "g" * WINDOW + "m"


def test_the_phase_ends_when_the_information_no_longer_grows() -> None:
    state = Aggression()
    for information in (0.1, 0.3, 0.5):
        assert state.after_epoch(0.0) == state  # the model has not moved
        for _ in range(TURNS):
            state = replace(state, models_turn=1.0).after_step(1.0)
        state = state.after_epoch(information)
        assert state.moves == "guide"
    state = replace(state, turns=float(TURNS)).after_epoch(0.505)
    assert state.moves == "both"
    assert state.after_epoch(9.0).after_step(1.0).moves == "both"
    assert replace(Aggression(), turns=float(TURNS)).after_epoch(math.nan).moves == "both"


def recorded(**options: Any) -> tuple[Any, list[Collection[str] | None]]:
    """A training, and the names of what its single steps have moved."""
    moved: list[Collection[str] | None] = []
    take = Step.__call__

    def noted(self: Step, *given: Any) -> Any:
        before = {name: leaf.detach().clone() for name, leaf in self.parameters.items()}
        found = take(self, *given)
        moved.append(given[-1])
        for name, leaf in self.parameters.items():
            if given[-1] is not None and name not in given[-1]:
                assert torch.equal(leaf, before[name]), name
        return found

    with patch.object(Step, "__call__", noted):
        fitted = fit(*pair(), X, aggressive=True, seed=0, progress=False, **options)
    return fitted, moved


def test_a_step_moves_one_program_alone_until_the_phase_ends() -> None:
    """With comparisons after each 3 steps of the model."""
    _, moved = recorded(batch_size=20, learning_rate=0.05, max_epochs=46)
    kinds = ["both" if m is None else {name.split(".")[0] for name in m} for m in moved]
    first = kinds.index("both")
    assert all(kind in ({"guide"}, {"model"}) for kind in kinds[:first])
    assert kinds[:first].count({"model"}) >= 6
    assert all(kind == "both" for kind in kinds[first:])
    assert first % 10 == 0  # ten steps are an epoch


def test_the_information_of_an_epoch_is_that_of_the_diagnosis() -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), 2, sigma=0.5)
    x = sample(model, 300, seed=0)
    guide = MeanField((4,), 2, MLP(()))
    fitted = fit(model, guide, x, validation=x, aggressive=True, max_epochs=3, seed=0)
    found = diagnose(model, guide, x, seed=0).mutual_information
    last = fitted.history[-1]["mutual_information"]
    assert last == pytest.approx(found.mean, abs=5 * found.standard_error)


def test_without_it_nothing_is_measured() -> None:
    fitted = fit(*pair(), X, max_epochs=1, seed=0, progress=False)
    assert "mutual_information" not in fitted.history[0]


@pytest.mark.slow(only=("7",))
@pytest.mark.parametrize(  # the phase ends after 18
    "epochs", [7, pytest.param(22, marks=pytest.mark.slow)]
)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, epochs: int) -> None:
    options: dict[str, Any] = {"batch_size": 20, "learning_rate": 0.05, "aggressive": True}
    options |= {"seed": 3, "progress": False}
    whole, _ = pair()
    guide = pair()[1]
    expected = fit(whole, guide, X, max_epochs=30, **options)
    model, other = pair()
    fit(model, other, X, max_epochs=epochs, run_dir=tmp_path, **options)
    model, other = pair()
    found = fit(model, other, X, max_epochs=30, run_dir=tmp_path, resume=True, **options)
    for name, value in {**whole.state_dict(), **guide.state_dict()}.items():
        assert torch.equal({**model.state_dict(), **other.state_dict()}[name], value), name
    names = ("elbo", "mutual_information")
    assert [[row[n] for n in names] for row in found.history] == [
        [row[n] for n in names] for row in expected.history
    ]
    with pytest.raises(ValueError, match="aggressive = True, now it is False"):
        fit(
            *pair(),
            X,
            max_epochs=30,
            run_dir=tmp_path,
            resume=True,
            **options | {"aggressive": False},
        )


@pytest.mark.slow
@compilers
def test_strides_wait_for_the_end_of_the_phase(
    compiler: Callable[[Recording], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "compile", compiler)
    options: dict[str, Any] = {"batch_size": 20, "learning_rate": 0.05, "compile": True}
    options |= {"aggressive": True, "seed": 0, "progress": False, "max_epochs": 52}
    model, guide = pair()
    fit(model, guide, X, **options)
    with patch.object(Strides, "of", return_value=None):
        single, other = pair()
        fit(single, other, X, **options)
    for name, value in {**single.state_dict(), **other.state_dict()}.items():
        assert torch.equal({**model.state_dict(), **guide.state_dict()}[name], value), name


def test_a_program_without_parameters_of_its_own_is_refused() -> None:
    model = ProbabilisticPCA((6,), 2)
    with pytest.raises(ValueError, match=r"in turn, and the guide has no parameters of its own"):
        fit(model, Exact(model), X, aggressive=True, max_epochs=1)

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + 0 * x, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="the model has no parameters of its own"):
        fit(fixed, MeanField((6,), 2, MLP(())), X, aggressive=True, max_epochs=1)


def test_parameters_by_name() -> None:
    """Programs that are functions with pyro.param."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + 0 * x, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x.mean(-1), 1.0))

    fitted = fit(model, guide, X, aggressive=True, batch_size=50, max_epochs=1, seed=0)
    trace: Any = poutine.trace(fitted.model).get_trace(X)
    assert trace.nodes["loc"]["value"].item() == 0.0  # four steps, of the guide
    trace = poutine.trace(fitted.guide).get_trace(X)
    assert trace.nodes["slope"]["value"].item() != 0.0
