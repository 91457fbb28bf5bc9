"""The held-out ELBO: early stopping by it, and that measuring it changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainings import HELD_OUT, Guide, Model, X, same, scripted, train

from ppl_vae import evaluate, fit
from ppl_vae.objectives import (
    ELBO,
    Cyclical,
    LinearWarmup,
    Schedule,
)
from ppl_vae.pairs import PairError


def test_early_stopping_restores_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [-9.0, -7.0, -8.0, -7.0, -7.5, -1.0])
    fitted, found = train(validation=HELD_OUT, patience=3, max_epochs=9)
    assert (fitted.epochs, fitted.best_epoch) == (5, 2)
    assert fitted.stopped == "no better held-out ELBO in 3 epochs"
    assert same(found, seen[1])
    assert not same(found, seen[4])


def test_early_stopping_at_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [-9.0, -7.0, -8.0])
    fitted, found = train(validation=HELD_OUT, patience=3, max_epochs=3)
    assert (fitted.epochs, fitted.best_epoch) == (3, 2)
    assert fitted.stopped == "reached max_epochs = 3"
    assert same(found, seen[1])


def test_without_patience_the_last_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [-1.0, -2.0, -3.0])
    fitted, found = train(validation=HELD_OUT)
    assert fitted.best_epoch == 3
    assert same(found, seen[2])


@pytest.mark.parametrize(
    "beta", [LinearWarmup(4), Cyclical(period=2, cycles=2, rise=1.0)], ids=["linear", "cyclical"]
)
def test_early_stopping_waits_for_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, beta: Schedule
) -> None:
    seen = scripted(monkeypatch, [-1.0, -2.0, -3.0, -7.0, -6.0, -8.0, -9.0, -9.0])
    fitted, found = train(validation=HELD_OUT, patience=2, max_epochs=8, objective=ELBO(beta=beta))
    assert (fitted.epochs, fitted.best_epoch) == (7, 5)
    assert same(found, seen[4])


def test_the_held_out_elbo_is_that_of_beta_1() -> None:
    """Whatever beta is trained with, early stopping sees -(rate + distortion) of the trained weights."""
    for beta in (0.0, 5.0):
        model, guide = Model(), Guide()
        options: dict[str, Any] = {"max_epochs": 3, "batch_size": 16, "seed": 0}
        fitted = fit(model, guide, X, validation=HELD_OUT, objective=ELBO(beta=beta), **options)
        evaluation = evaluate(model, guide, HELD_OUT, num_samples=500, method="guide", seed=1)
        row = fitted.history[-1]
        assert row["validation_elbo"] == pytest.approx(evaluation.elbo.mean, abs=0.35)
        assert row["validation_rate"] == pytest.approx(evaluation.rate.mean, abs=0.35)


def test_batch_statistics_are_those_of_training_alone() -> None:
    """Neither the check, nor the search for the layout, nor the held-out rows may move them."""

    class Normed(Guide):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                q = dist.Normal(self.encoder(self.norm(x)), self.log_scale.exp())
                pyro.sample("z", q.to_event(1))

    for capture in (True, False):
        guide = Normed().eval()
        train(guide=guide, validation=HELD_OUT, capture=capture)
        assert guide.norm.num_batches_tracked == 3 * 4
        assert not guide.training  # as it was
        guide = Normed()
        train(guide=guide, batch_size=50, max_epochs=1, validation=HELD_OUT + 9.0, capture=capture)
        assert guide.norm.running_mean is not None
        assert torch.allclose(guide.norm.running_mean, 0.1 * X.mean(0), atol=1e-6)
        assert guide.training


def test_dropout_is_off_while_validating() -> None:
    class Dropping(Guide):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                x = nn.functional.dropout(x, 0.999, self.training) if len(x) == 20 else x
                pyro.sample("z", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))

    fitted, _ = train(guide=Dropping(), validation=HELD_OUT, max_epochs=1)
    expected, _ = train(guide=Dropping(), validation=HELD_OUT[:19], max_epochs=1)
    difference = fitted.history[0]["validation_rate"] - expected.history[0]["validation_rate"]
    assert abs(difference) < 5.0  # inputs a thousand times as large would make it thousands


def test_held_out_rows_that_are_nan_are_refused() -> None:
    bad = torch.cat([HELD_OUT] * 40)
    bad[700, 1] = torch.nan
    with pytest.raises(PairError, match=r"row 700 of validation \(counted from 0\).*NaN"):
        train(validation=bad)


class Binary(Model):
    """Its likelihood takes only 0 and 1."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


GRAY = HELD_OUT.sigmoid()
HINT = "transform is applied to training batches only: .* as in validation=transform"


@pytest.mark.parametrize("kind", ["tensor", "loader", "list"])
def test_held_out_rows_that_only_the_transform_would_make_right(kind: str) -> None:
    makers: dict[str, Any] = {"tensor": Tensor.clone, "loader": loader, "list": lambda x: [x, x]}
    train_on: dict[str, Any] = {"x": X.sigmoid(), "model": Binary(), "transform": torch.bernoulli}
    words = rf"validation.* outside of the support of Bernoulli.*{HINT}"
    with pytest.raises(PairError, match=words):
        train(validation=makers[kind](GRAY), **train_on)
    fitted, _ = train(validation=makers[kind](GRAY.bernoulli()), max_epochs=1, **train_on)
    assert "validation_elbo" in fitted.history[0]


def test_the_transform_is_not_blamed_where_it_would_not_help() -> None:
    bad = torch.full_like(GRAY, math.nan)
    options: dict[str, Any] = {"x": X.sigmoid(), "model": Binary(), "transform": torch.bernoulli}
    for validation in (bad, loader(bad)):
        with pytest.raises(PairError, match="NaN") as caught:
            train(validation=validation, **options)
        assert "transform is applied" not in str(caught.value)
    with pytest.raises(PairError, match="outside of the support") as caught:
        train(X.sigmoid().bernoulli(), model=Binary(), validation=GRAY)
    assert "transform is applied" not in str(caught.value)


def loader(x: Tensor) -> Any:
    return DataLoader(TensorDataset(x), batch_size=8)


def test_batches_of_held_out_rows_are_looked_at_as_they_come() -> None:
    """The metrics would not fail: they are computed without validation, and grays have a density, too."""
    good = HELD_OUT.sigmoid().bernoulli()
    good[17] = 0.5
    words = r"^batch 2 of validation, row 1 in it \(counted from 0\).*outside of the support"
    with pytest.raises(PairError, match=words):
        train(X.sigmoid().bernoulli(), model=Binary(), validation=loader(good))


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        (HELD_OUT[:, :2], r"^validation: the guide raised RuntimeError .*\(20, 2\)"),
        (loader(HELD_OUT[:, :2]), r"^validation: the guide raised RuntimeError .*\(8, 2\)"),
        (HELD_OUT[0], "^validation: .*should be of shape"),
    ],
)
def test_held_out_rows_that_the_pair_cannot_run_on(validation: Any, words: str) -> None:
    with pytest.raises(PairError, match=words):
        train(validation=validation)


def test_held_out_rows_by_name_and_a_single_one() -> None:
    named: Any = [{"name": f"row {i}", "x": row, "index": i} for i, row in enumerate(HELD_OUT)]
    for rows in (20, 1):
        found, _ = train(validation=DataLoader(named[:rows], batch_size=8), max_epochs=1)
        expected, _ = train(validation=loader(HELD_OUT[:rows]), max_epochs=1)
        assert found.history[0]["validation_elbo"] == expected.history[0]["validation_elbo"]
