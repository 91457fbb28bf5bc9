"""Optimizers and schedules of the learning rate, of torch and of the user."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch.optim import lr_scheduler as schedules
from trainings import HELD_OUT, Guide, Model, X, seeded, train, weights

from ppl_vae import fit
from ppl_vae.objectives import (
    TraceELBO,
)
from ppl_vae.pairs import Pair
from ppl_vae.training.held_out import HeldOut


def test_the_default_is_adam() -> None:
    _, expected = train(optimizer=torch.optim.Adam, learning_rate=1e-3)
    _, found = train()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6)
    _, other = train(learning_rate=1e-2)
    assert not torch.allclose(other["model.decoder.weight"], expected["model.decoder.weight"])


def test_sgd_takes_the_step_that_one_computes_by_hand() -> None:
    model, guide = Model(), Guide()
    before = weights(model, guide)
    objective = TraceELBO()
    pair = Pair(model, guide)
    torch.manual_seed(1)  # the random state of the first step, as fit's seed makes it
    fitted = fit(
        model,
        guide,
        X,
        objective=objective,
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        batch_size=50,
        max_epochs=1,
        seed=1,
        transform=seeded,
        capture=False,
    )
    after = weights(model, guide)
    pair.load_state(before)
    torch.manual_seed(7)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, X) / 50
    loss.backward()
    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in pair.parameters(X).items():
        assert parameter.grad is not None
        expected = before[name] - 0.1 * parameter.grad
        assert torch.allclose(after[name], expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_of_torch(optimizer: Any) -> None:
    made: list[Any] = []

    def make(parameters: Any, lr: float = 1e-3) -> Any:
        made.append(optimizer(parameters, lr=lr))
        return made[-1]

    train(optimizer=make)
    assert made[-1].param_groups[0]["lr"] == 1e-3
    train(optimizer=make, learning_rate=0.05)
    assert made[-1].param_groups[0]["lr"] == 0.05
    assert len(made[-1].param_groups[0]["params"]) == 5


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda o: schedules.StepLR(o, 2, 0.1), [1.0, 1.0, 0.1, 0.1]),
        (lambda o: schedules.ExponentialLR(o, 0.5), [1.0, 0.5, 0.25, 0.125]),
        (lambda o: schedules.LambdaLR(o, lambda e: 1 / (1 + e)), [1.0, 1 / 2, 1 / 3, 1 / 4]),
    ],
)
def test_schedules_step_after_every_epoch(make: Any, rates: list[float]) -> None:
    fitted, _ = train(lr_scheduler=make, learning_rate=1e-2, max_epochs=4)
    assert [r["learning_rate"] for r in fitted.history] == pytest.approx([1e-2 * r for r in rates])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_one_of_the_held_out_elbo(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    elbos = iter([-5.0, -4.0, -4.5, -4.2, -4.1])
    measure = HeldOut.measure

    def scripted(self: HeldOut, seed: int, epoch: int) -> dict[str, float]:
        return measure(self, seed, epoch) | {"validation_elbo": next(elbos)}

    monkeypatch.setattr(HeldOut, "measure", scripted)
    fitted, _ = train(
        validation=HELD_OUT,
        max_epochs=5,
        learning_rate=1.0e-3,
        lr_scheduler=lambda o: schedules.ReduceLROnPlateau(o, mode, patience=1, factor=0.1),
    )
    rates = [row["learning_rate"] for row in fitted.history]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-4])


def test_clipping_bounds_the_whole_gradient() -> None:
    """With plain gradient descent of step size 1, an update is no longer than the bound, and not shorter."""
    lengths = []
    for clip in (1e-3, None):
        model, guide = Model(), Guide()
        before = weights(model, guide)
        options: dict[str, Any] = {"optimizer": torch.optim.SGD, "learning_rate": 1.0}
        fit(model, guide, X, batch_size=50, max_epochs=1, clip_grad_norm=clip, seed=0, **options)
        after = weights(model, guide)
        lengths.append(math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in before)))
    assert lengths[0] == pytest.approx(1e-3, rel=1e-2)
    assert lengths[1] > 0.1
