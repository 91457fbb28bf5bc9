"""Controllers of beta: the target is reached, beta is the exact one, and a resumed training goes on alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from catalogue import SMALL_NETWORK
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from trainings import compilers

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.capture.recording import Recording
from ppl_vae.checks import PairWarning
from ppl_vae.cli import main
from ppl_vae.objectives import ELBO, Controller, TargetDistortion, TargetRate
from ppl_vae.pairs import Pair
from ppl_vae.training.strides import Strides

SPECTRUM = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.3])
NOISE = 0.25  # s^2
ROWS = 1000


def rows() -> Tensor:
    """Rows whose covariance is diag(SPECTRUM), exactly."""
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    u, _, _ = torch.linalg.svd(x, full_matrices=False)
    found: Tensor = u * SPECTRUM.sqrt() * math.sqrt(ROWS)
    return found


class Diagonal(nn.Module):
    """x_i ~ N(w_i z_i, s^2): a linear VAE that need not find the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.ones(6))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.weight * z, NOISE**0.5).to_event(1), obs=x)


class Slopes(nn.Module):
    """q(z_i | x) = N(a_i x_i, s_i^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.log_scale = nn.Parameter(0.1 * torch.ones(6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.slope * x, self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


def rate_at(level: float) -> float:
    """Reverse water-filling: 1/2 sum log(l_i / level) over the l_i above it."""
    return float(0.5 * (SPECTRUM / level).log().clamp(min=0).sum())


def distortion_at(level: float) -> float:
    """-E log p(x | z) where the squared error of each dimension is min(level, l_i)."""
    error = SPECTRUM.clamp(max=level).sum() / NOISE
    return float(0.5 * (6 * math.log(2 * math.pi * NOISE) + error))


def trained(control: Controller, epochs: int = 200) -> Any:
    slower = partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=epochs)
    return fit(
        Diagonal(),
        Slopes(),
        rows(),
        objective=ELBO(beta=control),
        batch_size=ROWS // 10,
        max_epochs=epochs,
        learning_rate=0.01,
        lr_scheduler=slower,  # not to 0: then the rate would no longer follow beta
        seed=0,
        progress=False,
    )


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("rate", 0.2),
        pytest.param(*("distortion", 1.5), marks=pytest.mark.slow),
        pytest.param("rate", 1.5, marks=pytest.mark.slow),
        pytest.param("distortion", 0.2, marks=pytest.mark.slow),
    ],
)
def test_the_target_is_reached_and_beta_is_the_water_level(level: float, kind: str) -> None:
    """beta s^2 is the level at which the rate, or the distortion, is the target."""
    controls = {
        "rate": TargetRate(nats=rate_at(level)),
        "distortion": TargetDistortion(nats=distortion_at(level)),
    }
    fitted = trained(controls[kind])
    found = evaluate(fitted.model, fitted.guide, rows(), num_samples=100, method="guide", seed=0)
    close = {"rate": 0.01 if kind == "rate" else 0.03, "distortion": 0.03}
    assert found.rate.mean == pytest.approx(rate_at(level), rel=close["rate"])
    # In nats, the distortion may be near 0: what of it the noise does not explain.
    least = distortion_at(0.0)
    expected = pytest.approx(distortion_at(level) - least, rel=close["distortion"])
    assert found.distortion.mean - least == expected
    assert fitted.beta * NOISE == pytest.approx(level, rel=0.04)
    assert diagnose(fitted.model, fitted.guide, rows()[:100], fit=fitted).beta == fitted.beta


def test_beta_is_set_by_the_mean_of_twenty_steps() -> None:
    control = TargetRate(nats=10, start=2.0, proportional=0.3, integral=0.05)
    state = control.begin()
    for i in range(20):
        assert state.beta == 2.0
        state = control.after(state, rate=10.0 + i, distortion=0.0)
    error = 0.95
    assert state.beta == pytest.approx(2 * math.exp(0.35 * error))
    assert state.integral == pytest.approx(math.log(2) + 0.05 * error)
    assert (state.rate, state.distortion, state.steps) == (0.0, 0.0, 0)


def test_at_a_limit_it_does_not_wind_up() -> None:
    """A rate that cannot be reached for long: once it can, beta comes back within few settings."""
    control = TargetRate(nats=10, least=0.5, most=2.0)
    state = control.begin()
    for _ in range(20 * 500):
        state = control.after(state, rate=0.0, distortion=0.0)
    assert state.beta == 0.5
    for _ in range(20 * 3):
        state = control.after(state, rate=20.0, distortion=0.0)
    assert state.beta > 0.6
    for _ in range(20 * 500):
        state = control.after(state, rate=1000.0, distortion=0.0)
    assert state.beta == 2.0
    for _ in range(20 * 3):
        state = control.after(state, rate=5.0, distortion=0.0)
    assert state.beta < 1.7


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    control = TargetRate(nats=10)
    state = control.begin()
    for _ in range(20):
        state = control.after(state, rate=math.nan, distortion=0.0)
    assert state == control.begin()


@pytest.mark.slow
def test_early_stopping_does_not_keep_weights_that_miss_the_target() -> None:
    """The best ELBO comes before beta has pressed the rate down."""
    pair = Diagonal(), Slopes()
    target = ELBO(beta=TargetRate(nats=1.0))
    options: dict[str, Any] = {"objective": target, "batch_size": 100, "learning_rate": 0.02}
    fitted = fit(
        *pair,
        rows(),
        validation=rows(),
        patience=5,
        max_epochs=120,
        seed=0,
        progress=False,
        **options,
    )
    assert (fitted.epochs, fitted.best_epoch) == (120, 120)
    found = evaluate(*pair, rows(), num_samples=50, method="guide", seed=0)
    assert found.rate.mean == pytest.approx(1.0, rel=0.1)


@pytest.mark.filterwarnings("ignore:TargetRate")
@pytest.mark.parametrize("epochs", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, epochs: int) -> None:
    """Also where it is stopped between two settings of beta: an epoch has 8 steps."""

    def train(run_dir: Path | None, until: int, resume: bool = False) -> tuple[Any, Any]:
        pair = Diagonal(), Slopes()
        given: dict[str, Any] = {"objective": ELBO(beta=TargetRate(nats=2.0)), "batch_size": 128}
        given |= {"seed": 0, "progress": False, "run_dir": run_dir, "resume": resume}
        fitted = fit(*pair, rows(), max_epochs=until, **given)
        return fitted, {n: t.clone() for n, t in Pair(*pair).state().items()}

    whole, expected = train(None, 12)
    train(tmp_path, epochs)
    resumed, found = train(tmp_path, 12, resume=True)
    assert [row["beta"] for row in resumed.history] == [row["beta"] for row in whole.history]
    assert len({row["beta"] for row in whole.history}) > 3
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.filterwarnings("ignore:TargetRate")
@compilers
def test_strides_give_the_bits_of_single_steps(
    compiler: Callable[[Recording], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "compile", compiler)

    def train() -> tuple[list[float], Any]:
        pair = Diagonal(), Slopes()
        options: dict[str, Any] = {"objective": ELBO(beta=TargetRate(nats=2.0)), "compile": True}
        fitted = fit(
            *pair, rows(), max_epochs=30, batch_size=128, seed=0, progress=False, **options
        )
        return [r["beta"] for r in fitted.history], Pair(*pair).state()

    lengths: list[int] = []
    take = Strides.take

    def counted(self: Strides, *given: Any) -> Any:
        found = take(self, *given)
        lengths.append(len(found))
        return found

    with patch.object(Strides, "take", counted):
        betas, found = train()
    assert max(lengths) > 3
    with patch.object(Strides, "of", return_value=None):
        expected_betas, expected = train()
    assert betas == expected_betas
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TargetRate(nats=0), "TargetRate: nats must be positive, got 0"),
        (lambda: TargetRate(nats=1, start=-1), "TargetRate: start must be positive, got -1"),
        (
            lambda: TargetRate(nats=1, start=3, most=2),
            "start must be between least and most, got 3 with least = 0.0001 and most = 2",
        ),
        (lambda: TargetRate(nats=1, proportional=-1), "proportional must be at least 0, got -1"),
        (lambda: TargetDistortion(nats=math.inf), "TargetDistortion: nats must be finite, got inf"),
    ],
)
def test_wrong_settings(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("control", "epochs", "said"),
    [
        (TargetRate(nats=1000.0, least=0.5), 60, "has fallen to its limit, least=0.5: give z more"),
        (
            TargetRate(nats=1e-6, most=2.0),
            60,
            "has risen to its limit, most=2: give another target",
        ),
        (
            TargetRate(nats=5.0, integral=1e-3),
            10,
            "and still moves: train for more epochs, or give",
        ),
        (TargetRate(nats=5.0), 1, "Beta is set every 20 steps, and there were 10 in all"),
        (TargetDistortion(nats=-1000.0, least=0.5), 60, "has fallen to its limit, least=0.5"),
    ],
)
def test_a_target_that_is_missed_is_told(control: Controller, epochs: int, said: str) -> None:
    name = f"{type(control).__name__}(nats={control.nats:g})"  # type: ignore[attr-defined]
    with pytest.warns(PairWarning, match=re.escape(f"{name} has missed its target: in the end,")):
        fitted = trained(control, epochs)
    (text,) = fitted.warnings
    per_epoch = fitted.steps // fitted.epochs
    rows = fitted.history[-max(1, 20 // per_epoch) :]
    last = {name: sum(row[name] for row in rows) / len(rows) for name in ("rate", "distortion")}
    assert f"the rate is {last['rate']:.4g} and the distortion {last['distortion']:.4g}" in text
    assert said in text


def test_a_target_that_is_reached_is_not() -> None:
    assert trained(TargetRate(nats=4.0), epochs=60).warnings == ()


@dataclass(frozen=True, kw_only=True)
class OneOfMyOwn(Controller):
    """A controller whose error is whatever it is told."""

    told: Any

    def error(self, rate: float, distortion: float) -> float:
        return self.told  # type: ignore[no-any-return]


def test_an_error_of_ones_own_must_be_a_number() -> None:
    for told, kind, said in (
        (None, TypeError, r"OneOfMyOwn: error\(rate=.*\) must be a number, not None"),
        (math.nan, ValueError, r"OneOfMyOwn.error\(rate=.*\) is NaN: it must be a number"),
    ):
        with pytest.raises(kind, match=said):
            trained(OneOfMyOwn(told=told), 3)
    with pytest.warns(PairWarning, match="OneOfMyOwn has missed its target"):
        fitted = trained(OneOfMyOwn(told=math.inf), 4)
    assert fitted.beta == pytest.approx(math.exp(2 * 0.2 + 0.5))


@pytest.mark.filterwarnings("ignore:TargetRate")
def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_, **__: [])
    folder = tmp_path / "run"
    options = ["--max_rows", "60", "--num_samples", "5", "--batch_size", "5", "--max_epochs", "4"]
    options += SMALL_NETWORK
    options += ["--posterior", "never", "--report", "false"]
    options += [
        "--model.latent_dim",
        "2",
        "--objective.beta",
        "TargetRate",
        "--objective.beta.nats=3",
    ]
    assert main(["train", "--run_dir", str(folder), "--quiet", *options]) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    beta = config["objective"]["init_args"]["beta"]
    assert beta["class_path"] == "ppl_vae.objectives.TargetRate"
    assert beta["init_args"]["nats"] == 3
    assert main(["diagnose", str(folder), "--quiet", "--overwrite"]) == 0
    lines = (folder / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["beta"]) != 1.0
    diagnosis = yaml.safe_load((folder / "diagnosis.json").read_text())
    assert diagnosis["beta"] == float(last["beta"])
    again = tmp_path / "again"
    bare = ["--posterior", "never", "--report", "false", "--quiet"]
    assert main(["refit", str(folder), "--run_dir", str(again), *bare]) == 0
    refitted = yaml.safe_load((again / "config.yaml").read_text())["objective"]
    assert refitted["init_args"]["beta"] == float(last["beta"])
    epochs = (again / "metrics.csv").read_text().splitlines()
    column = epochs[0].split(",").index("beta")
    assert {float(row.split(",")[column]) for row in epochs[1:]} == {float(last["beta"])}
    other = ["--objective.beta", "0.5", "--overwrite"]
    assert main(["refit", str(folder), "--run_dir", str(again), *bare, *other]) == 0
    refitted = yaml.safe_load((again / "config.yaml").read_text())["objective"]
    assert refitted["init_args"]["beta"] == 0.5
