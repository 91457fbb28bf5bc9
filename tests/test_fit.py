"""fit(): what every option promises, how it stops, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae import evaluate, fit
from ppl_vae.checks import PairWarning
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    Cyclical,
    ImportanceWeightedELBO,
    LinearWarmup,
    MeanFieldELBO,
    Objective,
    Schedule,
    TraceELBO,
)
from ppl_vae.pairs import Pair, PairError
from ppl_vae.runtime import make_fabric, read_tensors
from ppl_vae.training import DivergenceError, Fit, checkpoints, load_checkpoint
from ppl_vae.training.checkpoints import checkpoint_files
from ppl_vae.training.held_out import HeldOut
from ppl_vae.training.metrics import METRICS

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
HELD_OUT = torch.randn(20, 3, generator=torch.Generator().manual_seed(6))


class Model(nn.Module):
    """z ~ N(0, I_2), x ~ N(W z + b, 1/2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.decoder = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.encoder = nn.Linear(3, 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.encoder(x), self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


def weights(model: Any, guide: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in Pair.of(model, guide).state().items()}


def train(x: Any = X, model: Any = None, guide: Any = None, **options: Any) -> tuple[Fit, Any]:
    """A fit of a fresh pair, and the weights that it ends with."""
    model, guide = model or Model(), guide or Guide()
    options = {"max_epochs": 3, "batch_size": 16, "seed": 1} | options
    fitted = fit(model, guide, x, **options)
    return fitted, weights(model, guide)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


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
        assert set(row) == set(METRICS)
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


def seeded(x: Tensor) -> Tensor:
    torch.manual_seed(7)
    return x


# -- data ------------------------------------------------------------------------------------------------


class OneBatchAtATime:
    def __iter__(self) -> Iterator[Tensor]:
        yield from X.split(16)


@pytest.mark.parametrize(
    "x",
    [
        DataLoader(X, batch_size=16),  # type: ignore[arg-type]
        DataLoader(TensorDataset(X, torch.arange(50)), batch_size=16),
        list(X.split(16)),
        OneBatchAtATime(),
    ],
    ids=["loader", "labeled-loader", "list", "iterable"],
)
def test_all_kinds_of_iterables_train_alike(x: Any) -> None:
    fitted, found = train(x, transform=seeded)
    _, expected = train(list(X.split(16)), transform=seeded)
    assert fitted.steps == 12
    assert same(found, expected)


def test_labels_are_left_out() -> None:
    _, expected = train(X)
    _, found = train((X, torch.arange(50)))
    assert same(found, expected)


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(TypeError, match=r"generator.*only once"):
        train(batch for batch in X.split(16))
    with pytest.raises(TypeError, match="only once"):
        train(X, validation=iter([HELD_OUT]))

    class Exhausted:
        def __init__(self) -> None:
            self.batches = iter([*X.split(16), *X.split(16)])

        def __iter__(self) -> Iterator[Tensor]:
            return self.batches

    with pytest.raises(ValueError, match=r"no batches in epoch \d.*read only once"):
        train(Exhausted())


def test_a_last_batch_of_one_row() -> None:
    fitted, _ = train(X[:33], validation=HELD_OUT[:1])
    assert fitted.steps == 9


def test_a_transform_is_applied_to_training_batches_alone() -> None:
    seen: list[float] = []

    def add(x: Tensor) -> Tensor:
        seen.append(float(x.max()))
        return x + 100.0

    fitted, _ = train(transform=add, validation=HELD_OUT, capture=False)
    assert max(seen) == float(X.max())  # never twice
    assert fitted.history[0]["distortion"] > 1000
    assert fitted.history[0]["validation_distortion"] < 1000


def test_rows_are_checked_as_the_transform_makes_them() -> None:
    class Binary(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    gray = X.sigmoid()
    with pytest.raises(PairError, match=r"'x'.*outside of the support of Bernoulli"):
        train(gray, model=Binary())
    fitted, _ = train(gray, model=Binary(), transform=torch.bernoulli)
    assert fitted.epochs == 3
    with pytest.raises(PairError, match=r"'x'.*outside of the support"):
        train(gray.bernoulli(), model=Binary(), transform=lambda x: x / 2)


class Binary(Model):
    """Its data are observed as they come, or computed from what comes."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            seen = x + 0.0 if self.computed else x
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=seen)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize(
    ("bad", "words"), [(7.0, "outside of the support of Bernoulli"), (math.nan, "NaN in 1 of")]
)
def test_every_row_is_looked_at_before_the_training(computed: bool, bad: float, words: str) -> None:
    x = torch.zeros(1100, 3)
    assert train(x, model=Binary(computed), max_epochs=1)[0].epochs == 1
    x[1030, 1] = bad
    with pytest.raises(PairError, match=rf"^row 1030 of x \(counted from 0\).*'x'.*{words}"):
        train(x, model=Binary(computed))


@pytest.mark.parametrize("computed", [False, True])
def test_batches_are_looked_at_as_they_come(computed: bool) -> None:
    batches = [torch.zeros(4, 3), torch.ones(5, 3), torch.zeros(6, 3)]
    seeds = [train(b, model=Binary(computed))[1] for b in (batches, list(batches))]
    assert same(*seeds)
    batches[2][5, 0] = 7.0
    words = r"^batch 2 of x, row 5 in it \(counted from 0\).*outside of the support of Bernoulli"
    with pytest.raises(PairError, match=words):
        train(batches, model=Binary(computed))


def test_what_a_mask_hides_is_not_looked_at() -> None:
    class Masked(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                likelihood = dist.Bernoulli(logits=self.decoder(z)).mask(x != 9.0).to_event(1)
                pyro.sample("x", likelihood, obs=x)

    x = torch.zeros(50, 3)
    x[40:, 1] = 9.0
    assert train(x, model=Masked(), max_epochs=1)[0].epochs == 1


def test_counts_are_looked_at_against_their_total() -> None:
    class Counts(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Binomial(16, logits=self.decoder(z)).to_event(1), obs=x)

    x = torch.full((50, 3), 16.0)
    assert train(x, model=Counts(), max_epochs=1)[0].epochs == 1
    x[49, 2] = 17.0
    with pytest.raises(PairError, match=r"^row 49 of x.*the integers 0 to 16"):
        train(x, model=Counts())


# -- optimizers and schedules ----------------------------------------------------------------------------


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


# -- early stopping --------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, elbos: list[float]) -> list[dict[str, Tensor]]:
    """Lets the held-out ELBOs of the epochs be these, and collects the weights at each of them."""
    seen: list[dict[str, Tensor]] = []
    measure = HeldOut.measure

    def found(self: HeldOut, seed: int, epoch: int) -> dict[str, float]:
        seen.append({n: t.clone() for n, t in self.pair.state().items()})
        return measure(self, seed, epoch) | {"validation_elbo": elbos[len(seen) - 1]}

    monkeypatch.setattr(HeldOut, "measure", found)
    return seen


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
        evaluation = evaluate(model, guide, HELD_OUT, num_samples=4000, seed=1)
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


# -- divergence ------------------------------------------------------------------------------------------


class BadScale(Guide):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (1000.0 - x.abs().max()).sqrt() / 30.0  # the root of a negative number
            q = dist.Normal(self.encoder(x), scale * self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


class LogOfNegative(Model):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.log(1000.0 - x.abs().max()) * self.decoder(z)
            pyro.sample("pixels", dist.Normal(loc, 0.7).to_event(1), obs=x)


class SteepGradient(Model):
    """Its loss is finite everywhere; its gradient is infinite at a weight of zero."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.decoder.weight[0, 0] = 0.0

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            root = self.decoder.weight[0, 0].abs().sqrt()
            pyro.sample("x", dist.Normal(self.decoder(z) + root, 0.7).to_event(1), obs=x)


def after(calls: int, factor: float) -> Callable[[Tensor], Tensor]:
    """Leaves so many batches alone, then multiplies them."""

    def transform(x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        return x if calls >= 0 else x * factor

    return transform


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize(
    ("model", "guide", "site", "words"),
    [
        (Model, BadScale, "z", "'z' in the guide"),
        (LogOfNegative, Guide, "pixels", "'pixels' in the model"),
        (SteepGradient, Guide, None, "gradient of parameter 'model.decoder.weight'"),
    ],
)
def test_divergence_names_the_site(
    tmp_path: Path, model: Any, guide: Any, site: str | None, words: str, capture: bool
) -> None:
    m, g = model(), guide()
    before = weights(m, g)
    transform = after(1, 1e4)  # the check sees the batch as it was
    with pytest.raises(DivergenceError, match=words) as caught:
        train(model=m, guide=g, run_dir=tmp_path, capture=capture, transform=transform)
    assert caught.value.step == 0
    assert caught.value.site == site
    assert "at step 1 (epoch 1)" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert same(weights(m, g), before)
    state, _ = load_checkpoint(tmp_path / "checkpoints")
    assert same(state["pair"], before)


def test_divergence_names_the_step(tmp_path: Path) -> None:
    model, guide = Model(), Guide()
    with pytest.raises(DivergenceError, match=r"step 7 \(epoch 2\).*'x' in the model") as caught:
        train(
            model=model,
            guide=guide,
            # the check of the first batch and of all rows, the steps, the active units
            transform=after(2 + 6 + 1, math.nan),
            run_dir=tmp_path,
        )
    assert (caught.value.step, caught.value.site) == (6, "x")
    assert "in rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... of the batch" in str(caught.value)
    assert "learning rate" not in str(caught.value)
    assert all(torch.isfinite(t).all() for t in weights(model, guide).values())
    state, facts = load_checkpoint(tmp_path / "checkpoints")
    assert facts["progress"]["step"] in (0, 4)
    assert all(torch.isfinite(t).all() for t in state["pair"].values())


@pytest.mark.parametrize("capture", [True, False])
def test_an_exploding_learning_rate_leaves_finite_parameters(tmp_path: Path, capture: bool) -> None:
    model, guide = Model(), Guide()
    with pytest.raises(DivergenceError, match="smaller learning rate") as caught:
        train(
            model=model,
            guide=guide,
            optimizer=torch.optim.SGD,
            learning_rate=1e3,
            max_epochs=50,
            run_dir=tmp_path,
            capture=capture,
        )
    assert caught.value.step > 0
    assert all(torch.isfinite(t).all() for t in weights(model, guide).values())


def test_a_gradient_too_long_to_measure() -> None:
    """Every entry is finite, but the sum of squares is not."""

    class Huge(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)
                pyro.factor("huge", (1e25 * self.decoder.bias.sum()).expand(len(x)))

    with pytest.raises(DivergenceError, match="gradient's norm"):
        train(model=Huge(), capture=False)


# -- on disk ---------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_is_the_history(tmp_path: Path) -> None:
    fitted, _ = train(run_dir=tmp_path, validation=HELD_OUT)
    rows = read_csv(tmp_path / "metrics.csv")
    assert [tuple(row) for row in rows] == [METRICS] * 3
    assert [{n: float(v) for n, v in row.items()} for row in rows] == fitted.history
    fitted, _ = train(run_dir=tmp_path / "other")
    rows = read_csv(tmp_path / "other" / "metrics.csv")
    assert [{n: float(v) for n, v in row.items() if v} for row in rows] == fitted.history


def test_tensorboard_on_request(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted, _ = train(run_dir=tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("elbo")]
    assert found == [(row["epoch"], pytest.approx(row["elbo"])) for row in fitted.history]
    train(run_dir=tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "other")) == ["checkpoints", "metrics.csv"]


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(run_dir=tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    files = {f: f.read_bytes() for f in checkpoint_files(tmp_path / "checkpoints")}
    with pytest.raises(FileExistsError, match="resume=True"):
        train(run_dir=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert {f: f.read_bytes() for f in checkpoint_files(tmp_path / "checkpoints")} == files


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
        ({"objective": "elbo"}, TypeError, "objective is a str"),
        ({"objective": pyro.infer.RenyiELBO()}, TypeError, "RenyiELBO.*Trace_ELBO"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "LBFGS.*several times"),
        (
            {"optimizer": pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 0.1})},
            TypeError,
            "torch.optim.AdamW",
        ),
        ({"optimizer": "Adam"}, TypeError, "optimizer is a str"),
        ({"optimizer": lambda p: None}, TypeError, "made a NoneType"),
        (
            {"optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)])},
            TypeError,
            "optimizer is a Adam object",
        ),
        ({"lr_scheduler": lambda o: 0.1}, TypeError, "lr_scheduler made a float"),
    ],
)
def test_wrong_arguments(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        train(**options)


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

    with pytest.raises(ValueError, match="no parameters to train"):
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
    def fail(x: Tensor) -> Tensor:
        raise KeyError("mine")

    class Failing(Guide):
        calls = 0

        def forward(self, x: Tensor) -> None:
            if self.training:
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
    assert fitted.history[-1]["elbo"] == pytest.approx(exact.history[-1]["elbo"], rel=0.05)


def test_double_precision() -> None:
    fitted, found = train(X.double(), model=Model().double(), guide=Guide().double())
    assert all(t.dtype == torch.float64 for t in found.values())
    assert math.isfinite(fitted.history[-1]["elbo"])


# -- resuming --------------------------------------------------------------------------------------------


def everything(folder: Path, model: Any, guide: Any) -> tuple[Any, Any, Any]:
    rows = [
        {n: v for n, v in r.items() if n != "seconds"} for r in read_csv(folder / "metrics.csv")
    ]
    state, facts = load_checkpoint(folder / "checkpoints")
    return weights(model, guide), rows, (facts["progress"]["step"], state["optimizer"])


class Stop(Exception):
    pass


def stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    def transform(x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Stop
        return x + 0.1 * torch.randn(x.shape)

    return transform


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("calls", [3, 9, 14])
def test_a_stopped_run_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, capture: bool
) -> None:
    """A checkpoint after every step; stopped amid an epoch, and gone on with from fresh modules."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    options: dict[str, Any] = {
        "max_epochs": 4,
        "validation": HELD_OUT,
        "patience": 2,
        "lr_scheduler": lambda o: schedules.StepLR(o, 2, 0.5),
        "objective": ELBO(beta=LinearWarmup(2)),
        "capture": capture,
        "seed": None,
    }
    model, guide = Model(), Guide()
    torch.manual_seed(3)
    train(model=model, guide=guide, run_dir=tmp_path / "a", transform=stop_after(999), **options)
    expected = everything(tmp_path / "a", model, guide)

    model, guide = Model(), Guide()
    torch.manual_seed(3)
    with pytest.raises(Stop):
        train(
            model=model, guide=guide, run_dir=tmp_path / "b", transform=stop_after(calls), **options
        )
    model, guide = Model(), Guide()
    torch.manual_seed(77)
    before = torch.get_rng_state()
    torch.manual_seed(77)
    options |= {"resume": True, "transform": stop_after(999), "run_dir": tmp_path / "b"}
    train(model=model, guide=guide, **options)
    del before
    found = everything(tmp_path / "b", model, guide)
    assert same(found[0], expected[0])
    assert found[1] == expected[1]
    assert json.dumps(found[2], default=Tensor.tolist) == json.dumps(
        expected[2], default=Tensor.tolist
    )


def test_max_epochs_can_be_extended(tmp_path: Path) -> None:
    _, expected = train(run_dir=tmp_path / "a", max_epochs=5)
    train(run_dir=tmp_path / "b", max_epochs=2)
    fitted, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)
    assert same(found, expected)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4, 5]
    again, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)  # nothing left to do
    assert same(found, expected)
    assert again.history == fitted.history
    assert (again.steps, again.stopped) == (20, "reached max_epochs = 5")


def test_a_loader_is_resumed_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))

    def loader() -> Any:
        return DataLoader(TensorDataset(X), batch_size=16, shuffle=True)

    _, expected = train(loader(), run_dir=tmp_path / "a", transform=stop_after(999))
    with pytest.raises(Stop):
        train(loader(), run_dir=tmp_path / "b", transform=stop_after(8))
    files = checkpoint_files(tmp_path / "b" / "checkpoints")
    assert {int(f.stem.split("-")[1]) % 4 for f in files} == {0}
    _, found = train(loader(), run_dir=tmp_path / "b", transform=stop_after(999), resume=True)
    assert same(found, expected)


def test_the_best_weights_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch lies before the stop; what is damaged after it does not matter."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))
    seen = scripted(monkeypatch, [-9.0, -5.0, -6.0, -7.0, -8.0, -9.0])
    train(run_dir=tmp_path, validation=HELD_OUT, patience=4, max_epochs=3)
    newest = checkpoint_files(tmp_path / "checkpoints")[0]
    fitted, found = train(
        run_dir=tmp_path, validation=HELD_OUT, patience=4, max_epochs=9, resume=True
    )
    assert (fitted.epochs, fitted.best_epoch) == (6, 2)
    assert same(found, seen[1])
    assert not newest.exists()


def test_a_damaged_checkpoint_costs_no_more_than_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))
    _, expected = train(run_dir=tmp_path / "a", max_epochs=5)
    train(run_dir=tmp_path / "b", max_epochs=3)
    newest = checkpoint_files(tmp_path / "b" / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=newest.name):
        _, found = train(run_dir=tmp_path / "b", max_epochs=5, resume=True)
    assert same(found, expected)


class Unnamed(Schedule):
    """A schedule of the user's, whose repr is its address."""

    def __call__(self, epoch: float) -> float:
        return 0.5

    @property
    def warmup_epochs(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 10}, "batch_size = 16, now it is 10"),
        ({"x": X[:40]}, "rows = 50, now it is 40"),
        ({"objective": ImportanceWeightedELBO()}, r"objective = ELBO\(.*now it is Importance"),
        ({"optimizer": torch.optim.SGD, "learning_rate": 0.1}, "optimizer = Adam, now it is SGD"),
        ({"lr_scheduler": lambda o: schedules.StepLR(o, 1)}, "lr_scheduler = NoneType, now"),
    ],
)
def test_a_resumed_run_must_be_the_same(tmp_path: Path, changed: Any, words: str) -> None:
    train(run_dir=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=words):
        train(**({"x": X, "run_dir": tmp_path, "resume": True} | changed))


def test_objects_without_a_name_of_their_own_can_be_resumed(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=1, objective=ELBO(beta=Unnamed()))
    keep = [Unnamed() for _ in range(9)]  # other addresses
    fitted, _ = train(run_dir=tmp_path, objective=ELBO(beta=keep[-1]), resume=True)
    assert fitted.epochs == 3


def test_another_pair_cannot_be_resumed(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=1)
    model = Model()
    model.extra = nn.Linear(2, 2)
    with pytest.warns(PairWarning), pytest.raises(ValueError, match="parameters ="):
        train(model=model, run_dir=tmp_path, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(run_dir=tmp_path, resume=True)


# -- killed ----------------------------------------------------------------------------------------------

KILLED = """
import sys, time
import pyro, pyro.distributions as dist, torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from ppl_vae import fit
from ppl_vae.training import checkpoints
from ppl_vae.runtime import write_tensors
from ppl_vae.pairs import Pair

torch.set_num_threads(1)
checkpoints.CHECKPOINT_SECONDS = (0.0, 0.02)
folder, resume, pause = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])

class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)
        )
    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.body(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

decoder = nn.Linear(2, 6)

def model(x):
    pyro.module("decoder", decoder)
    bias = pyro.param("bias", lambda: torch.zeros(6))
    prior = pyro.param("prior", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), prior).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z) + bias).to_event(1), obs=x)

def binarize(x):
    time.sleep(pause)
    return torch.bernoulli(x)

torch.manual_seed(0)
x = torch.rand(90, 6)
torch.manual_seed(1)
guide = Guide()
for parameter in decoder.parameters():
    nn.init.normal_(parameter)
print("ready", flush=True)
fitted = fit(
    model, guide, x, validation=torch.bernoulli(torch.rand(40, 6)), max_epochs=12, batch_size=20,
    patience=8, lr_scheduler=lambda o: schedules.CosineAnnealingLR(o, 12), learning_rate=0.02,
    transform=binarize, run_dir=folder, resume=resume, seed=None if resume else 4,
)
state = Pair.of(model, guide).state()
assert "param.bias" in state and len(state) == 13, sorted(state)
write_tensors(folder + "/final", state, {"best": fitted.best_epoch, "steps": fitted.steps})
"""


def start(folder: Path, resume: bool, pause: float) -> subprocess.Popen[str]:
    script = folder.parent / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), "resume" if resume else "new", str(pause)]
    path = str(Path(ppl_vae.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> bool:
    """Whether a process ended by itself rather than having been killed."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0


def kill(folder: Path, resume: bool, seconds: float) -> bool:
    """Runs the script, and kills it so long after it has begun. Whether it had already ended."""
    process = start(folder, resume, 0.01)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    while not list((folder / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.005)  # something to go on with
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return end(process)


@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_as_one_that_never_was(tmp_path: Path, kills: int) -> None:
    whole = start(tmp_path / "whole", False, 0.0)
    moments = random.Random(int(time.time()))  # others each time: none of them may matter
    folder = tmp_path / "killed"
    ended = kill(folder, False, moments.uniform(0.0, 0.3))
    for _ in range(kills - 1):
        ended = ended or kill(folder, True, moments.uniform(0.1, 6.0 / kills))
    assert ended or end(start(folder, True, 0.0))
    assert end(whole)
    expected, facts = read_tensors(tmp_path / "whole" / "final")
    found, found_facts = read_tensors(folder / "final")
    assert found_facts == facts
    assert same(found, expected)
    rows = [
        [{n: v for n, v in row.items() if n != "seconds"} for row in read_csv(f / "metrics.csv")]
        for f in (tmp_path / "whole", folder)
    ]
    assert rows[0] == rows[1]


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
