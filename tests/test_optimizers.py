"""Optimizers and schedules of the learning rate, of torch and of the user."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.optim
import pytest
import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from torch.optim import lr_scheduler as schedules
from trainings import HELD_OUT, Guide, Model, X, read_csv, same, scripted, seeded, train, weights

from ppl_vae import fit
from ppl_vae.objectives import ELBO, LinearWarmup, Schedule, TargetRate, TraceELBO
from ppl_vae.pairs import Pair
from ppl_vae.training.optimizers import make_optimizer, make_scheduler

OPTIM: Any = pyro.optim  # which makes its functions at run time


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
    scripted(monkeypatch, [-5.0, -4.0, -4.5, -4.2, -4.1])
    fitted, _ = train(
        validation=HELD_OUT,
        max_epochs=5,
        learning_rate=1.0e-3,
        lr_scheduler=lambda o: schedules.ReduceLROnPlateau(o, mode, patience=1, factor=0.1),
    )
    rates = [row["learning_rate"] for row in fitted.history]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize(("warmup", "rates"), [(2, [1, 1, 1, 0.1, 0.01]), (3, [1, 1, 1, 1, 1])])
def test_a_plateau_does_not_see_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, warmup: int, rates: list[float]
) -> None:
    """While beta still grows, a falling ELBO is no sign that a step is too long."""
    scripted(monkeypatch, [-1.0, -4.0, -4.5, -4.2, -4.1])
    fitted, _ = train(
        objective=ELBO(beta=LinearWarmup(epochs=warmup)),
        validation=HELD_OUT,
        max_epochs=5,
        learning_rate=1.0e-3,
        lr_scheduler=lambda o: schedules.ReduceLROnPlateau(o, patience=0, factor=0.1),
    )
    found = [row["learning_rate"] for row in fitted.history]
    assert found == pytest.approx([1e-3 * rate for rate in rates])


def test_a_plateau_of_training_rows_waits_until_beta_has_been_the_last_one() -> None:
    """Without held-out rows the ELBO is a mean over an epoch: in the first one beta rises to 1."""
    objective = ELBO(beta=LinearWarmup(epochs=1))
    how: dict[str, Any] = {"max_epochs": 3, "objective": objective, "learning_rate": 1e-3}

    # Everything is worse than infinitely good: each epoch that counts makes a step shorter.
    def never(optimizer: torch.optim.Optimizer) -> Any:
        made = schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
        made.best = -math.inf
        return made

    fitted, _ = train(lr_scheduler=never, **how)
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx([1e-3, 1e-3, 1e-4])
    fitted, _ = train(lr_scheduler=never, validation=HELD_OUT, **how)
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx([1e-3, 1e-4, 1e-5])


class Restless(Schedule):
    """Has no last value."""

    warmup_epochs = math.inf

    def __call__(self, epoch: float) -> float:
        return 1 - 1 / (1 + epoch)


def test_a_plateau_that_would_never_act_is_refused() -> None:
    with pytest.raises(ValueError, match="a higher ELBO is not what Restless is after"):
        train(objective=ELBO(beta=Restless()), lr_scheduler=schedules.ReduceLROnPlateau)


def test_a_plateau_of_what_is_no_aim_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a higher ELBO is not what TargetRate is after: give a sch"
    ):
        train(objective=ELBO(beta=TargetRate(nats=3.0)), lr_scheduler=schedules.ReduceLROnPlateau)


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


# -- from Pyro -------------------------------------------------------------------------------------------

PYROS: list[tuple[Any, Any]] = [
    (lambda: OPTIM.Adam({"lr": 0.01}), lambda p: torch.optim.Adam(p, lr=0.01)),
    (lambda: OPTIM.SGD({"lr": 0.1, "momentum": 0.9}), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    (
        lambda: OPTIM.PyroOptim(torch.optim.AdamW, {"weight_decay": 0.1}),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    ),
    (
        lambda: OPTIM.ClippedAdam({"lr": 0.01, "clip_norm": 0.05, "lrd": 0.9}),
        lambda p: ClippedAdam(p, lr=0.01, clip_norm=0.05, lrd=0.9),
    ),
    (lambda: OPTIM.AdagradRMSProp({"eta": 0.1}), lambda p: AdagradRMSProp(p, eta=0.1)),
]


@pytest.mark.parametrize(("theirs", "ours"), PYROS)
def test_optimizers_of_pyro(theirs: Any, ours: Any) -> None:
    """They train as torch's do, and the recorded steps, whose gradients they may change, as Pyro's."""
    _, expected = train(optimizer=ours, max_epochs=8)
    _, found = train(optimizer=theirs(), max_epochs=8)
    _, by_pyro = train(optimizer=theirs(), max_epochs=8, capture=False)
    assert same(found, expected)
    assert same(found, by_pyro)


@pytest.mark.parametrize(("theirs", "ours"), PYROS)
def test_one_optimizer_does_what_pyros_optimizers_of_each_parameter_do(
    theirs: Any, ours: Any
) -> None:
    start = [torch.randn(3, 2), torch.randn(4)]
    mine = [value.clone().requires_grad_() for value in start]
    names = ["a", "b"]
    with pyro.get_param_store().scope():
        yours = [pyro.param(name, value.clone()) for name, value in zip(names, start, strict=True)]
        optimizer, each = make_optimizer(mine, theirs(), None), theirs()
        for _ in range(5):
            for leaf, other in zip(mine, yours, strict=True):
                leaf.grad = torch.randn(leaf.shape)
                other.grad = leaf.grad.clone()
            optimizer.step()
            each(yours)
        for leaf, other in zip(mine, yours, strict=True):
            assert torch.equal(leaf, other)


def test_learning_rate_is_the_lr_of_an_optimizer_of_pyro() -> None:
    _, found = train(optimizer=OPTIM.ClippedAdam({"clip_norm": 0.1}), learning_rate=0.02)
    _, expected = train(optimizer=OPTIM.ClippedAdam({"clip_norm": 0.1, "lr": 0.02}))
    assert same(found, expected)


def test_an_optimizer_of_pyro_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def options(folder: str) -> dict[str, Any]:
        made = OPTIM.ClippedAdam({"lr": 0.01, "clip_norm": 0.05, "lrd": 0.9})
        return {"optimizer": made, "run_dir": tmp_path / folder}

    fitted, expected = train(**options("a"), max_epochs=5)
    train(**options("b"), max_epochs=2)
    resumed, found = train(**options("b"), max_epochs=5, resume=True)
    assert same(found, expected)
    assert resumed.history[-1]["learning_rate"] == fitted.history[-1]["learning_rate"]
    assert fitted.history[-1]["learning_rate"] == pytest.approx(0.01 * 0.9**20)


def test_an_optimizer_without_lr_leaves_its_column_empty(tmp_path: Path) -> None:
    fitted, _ = train(optimizer=OPTIM.AdagradRMSProp({"eta": 0.1}), run_dir=tmp_path)
    assert "learning_rate" not in fitted.history[0]
    assert [row["learning_rate"] for row in read_csv(tmp_path / "metrics.csv")] == ["", "", ""]


# -- wrong arguments -------------------------------------------------------------------------------------


def leaves() -> list[torch.Tensor]:
    return [torch.ones(3, 2, requires_grad=True), torch.ones(3, requires_grad=True)]


def used() -> Any:
    optimizer = OPTIM.Adam({"lr": 0.2})
    with pyro.get_param_store().scope():
        parameter = pyro.param("a", torch.ones(2))
        parameter.grad = torch.ones(2)
        optimizer([parameter])
    return optimizer


def decayed() -> Any:
    both = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}, "gamma": 0.8}
    return OPTIM.ExponentialLR(both)


APART = (
    r"pyro.optim's ExponentialLR.* two apart: write optimizer=lambda parameters: torch.optim.SGD\(parameters, "
    r"lr=0.1, momentum=0.9\), lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR\("
    r"optimizer, gamma=0.8\)"
)
WRONG_OPTIMIZERS: list[tuple[Any, float | None, str]] = [
    (OPTIM.Adam({"lr": 0.1}), 0.2, "Adam with lr=0.1, and learning_rate=0.2: give one of the two"),
    (
        OPTIM.Adam(lambda name: {"lr": 0.1}),
        None,
        "depend on the parameter's name; .*'params': guide",
    ),
    (
        OPTIM.AdamW({"lr": 0.1}, {"clip_norm": 3.0}),
        None,
        "clip_args.*write optimizer=torch.optim.AdamW, learning_rate=0.1, clip_grad_norm=",
    ),
    (
        used(),
        None,
        r"state of an earlier training.* again: optimizer=pyro.optim.Adam\({'lr': 0.2}\)",
    ),
    (OPTIM.AdagradRMSProp({"eta": 0.1}), 0.1, "keyword argument 'lr'; leave out learning_rate"),
    (
        OPTIM.HorovodOptimizer(OPTIM.Adam({})),
        None,
        "an object of HorovodOptimizer; give a function",
    ),
    (
        OPTIM.Adam({"beta": 0.1}),
        None,
        "partial of the class Adam, which raised TypeError: .*'beta'",
    ),
    (decayed(), None, APART),
    (
        OPTIM.RMSprop,
        0.1,
        "the function RMSprop of pyro.optim.*; write optimizer=torch.optim.RMSprop",
    ),
    (
        OPTIM.ClippedAdam,
        None,
        r"function ClippedAdam of pyro.* optimizer=pyro.optim.ClippedAdam\({",
    ),
    (
        torch.optim.SGD(leaves(), lr=0.3),
        None,
        "an object of SGD; fit makes its own: write optimizer=torch.optim.SGD, learning_rate=0.3$",
    ),
    (
        torch.optim.AdamW(leaves(), betas=(0.5, 0.9), weight_decay=0.2),
        None,
        r"write optimizer=lambda parameters: torch.optim.AdamW\(parameters, lr=0.001, betas=\(0.5, 0.9\), "
        r"weight_decay=0.2\)$",
    ),
    ("adam", None, "the string 'adam'; write optimizer=torch.optim.Adam$"),
    ("torch.optim.rmsprop", None, "write optimizer=torch.optim.RMSprop$"),
    ("lion", None, "the string 'lion'; give a function that .* optimizer=torch.optim.AdamW"),
    (torch.optim, None, "the module torch.optim; give a function"),
    (0.1, None, "is 0.1; give a function"),
    (schedules.StepLR, None, "the class StepLR; give a function"),
    (torch.optim.LBFGS, None, "an object of LBFGS, which evaluates the loss several times"),
    (torch.optim.SparseAdam, None, "an object of SparseAdam, which needs sparse gradients"),
    (torch.optim.SGD, -0.1, "the class SGD, which raised ValueError: Invalid learning rate: -0.1$"),
    (lambda p: torch.optim.SGD(p, lr=1.0), 0.1, "a lambda.*lr=0.1.*leave out learning_rate"),
    (
        lambda p, lr: torch.optim.SGD(p, lr=lr),
        None,
        "a lambda.*give learning_rate, which optimizer",
    ),
    (
        lambda: torch.optim.SGD(leaves()),
        None,
        "a lambda, which cannot be called with .parameters.: too",
    ),
    (lambda p: torch.optim.SGD(leaves()), None, "an optimizer of other tensors than the pair's"),
    (lambda p: OPTIM.Adam({}), None, "made an object of PyroOptim; give a function"),
    (lambda p: p.foo, None, "a lambda, which raised AttributeError: .* give a function"),
    (sum, None, "the function sum of builtins, which raised"),
]


@pytest.mark.parametrize(("given", "learning_rate", "words"), WRONG_OPTIMIZERS)
def test_wrong_optimizers(given: Any, learning_rate: float | None, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^optimizer .*{words}"):
        make_optimizer(leaves(), given, learning_rate)


OWN = torch.optim.SGD(leaves(), lr=0.1)
OTHER = torch.optim.SGD(leaves(), lr=0.1)
WRONG_SCHEDULES: list[tuple[Any, str]] = [
    (
        schedules.StepLR,
        r"the class StepLR.* 'step_size'; write lr_scheduler=lambda optimizer: "
        r"torch.optim.lr_scheduler.StepLR\(optimizer, step_size=\.\.\.\)$",
    ),
    (
        functools.partial(schedules.StepLR, gamma=0.2),
        r"a partial of the class StepLR.*\.StepLR\(optimizer, step_size=\.\.\., gamma=0.2\)$",
    ),
    (schedules.ExponentialLR(OTHER, 0.9), r"own: write .*\.ExponentialLR\(optimizer, gamma=0.9\)$"),
    (schedules.StepLR(OTHER, 3), r"an object of StepLR; .*\.StepLR\(optimizer, step_size=3\)$"),
    (schedules.LambdaLR(OTHER, lambda epoch: 1.0), r"\.LambdaLR\(optimizer, lr_lambda=\.\.\.\)$"),
    (schedules.ReduceLROnPlateau(OTHER, "max"), r"ReduceLROnPlateau\(optimizer, mode='max'\)$"),
    (lambda o: schedules.StepLR(OTHER, 3), "made a schedule of another optimizer"),
    (
        lambda o: schedules.OneCycleLR(o, 0.1),
        "raised ValueError: .*total_steps.* whose steps are epochs",
    ),
    (lambda epoch: 0.9**epoch, "a lambda, which raised TypeError: .*; give a function"),
    (lambda: None, "a lambda, which cannot be called with .optimizer.: too many"),
    (lambda o: None, "made None; give a function"),
    (decayed(), APART),
    (
        OPTIM.ExponentialLR,
        r"function ExponentialLR of pyro.*\.ExponentialLR\(optimizer, gamma=\.\.\.\)$",
    ),
    (OPTIM.Adam({}), "an object of PyroOptim; give a function"),
    ("CosineAnnealingLR", r"the string .*\.CosineAnnealingLR\(optimizer, T_max=\.\.\.\)$"),
    (torch.optim.Adam, "the class Adam; give a function that makes a schedule"),
]


@pytest.mark.parametrize(("given", "words"), WRONG_SCHEDULES)
def test_wrong_schedules(given: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^lr_scheduler .*{words}"):
        make_scheduler(OWN, given)


def test_a_schedule_needs_a_learning_rate() -> None:
    optimizer = make_optimizer(leaves(), OPTIM.AdagradRMSProp({}), None)
    with pytest.raises(ValueError, match="lr_scheduler is given, but AdagradRMSProp has no lr"):
        make_scheduler(optimizer, lambda o: schedules.StepLR(o, 3))
