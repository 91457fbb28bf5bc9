"""While a pair is trained: what each latent dimension carries, and a word when one of them dies."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import diagnose, fit
from ppl_vae.guides import FullCovariance, InverseAutoregressive
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO
from ppl_vae.plots import learning_curves
from ppl_vae.training import Fit, latents
from ppl_vae.training.deaths import DEAD_EPOCHS, Deaths, dead_dimensions, kl_of_epoch

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Two of three latents reach x, under sites of the user's own names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            code = pyro.sample("code", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("idle", dist.Normal(x.new_zeros(()), 2.0))
            pyro.sample("x", dist.Normal(code @ self.weight, 0.5).to_event(1), obs=x)


class Guide(nn.Module):
    """N(a x, s^2) for each latent."""

    def __init__(self, slope: float = 0.7, idle: float = 0.0) -> None:
        super().__init__()
        self.slope, self.idle = nn.Parameter(torch.tensor(slope)), idle
        self.scale = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("code", dist.Normal(self.slope * x[:, :2], self.scale).to_event(1))
            pyro.sample("idle", dist.Normal(self.idle * x[:, 0], 2.0))


def still(model: Any, guide: Any, **options: Any) -> Any:
    """A training that moves nothing."""
    frozen: dict[str, Any] = {"learning_rate": 1e-30, "max_epochs": 1, "seed": 0, "progress": False}
    return fit(model, guide, X, **(frozen | options))


def test_the_kl_of_each_dimension_is_the_exact_one() -> None:
    fitted = still(Model(), Guide(idle=0.3), validation=HELD_OUT)
    mean, scale = 0.7 * HELD_OUT[:, :2], 0.4
    code = 0.5 * (scale**2 + mean.square() - 1) - torch.tensor(scale).log()
    idle = 0.5 * (0.3 * HELD_OUT[:, 0] / 2).square()
    found = kl_of_epoch(fitted.history[0])
    assert list(found) == ["code[0]", "code[1]", "idle"]
    exact = [*code.mean(0).tolist(), float(idle.mean())]
    assert list(found.values()) == pytest.approx(exact, rel=1e-5)
    assert fitted.history[0]["validation_rate"] == pytest.approx(sum(exact), abs=0.3)


def test_without_held_out_rows_it_is_that_of_training_rows() -> None:
    found = kl_of_epoch(still(Model(), Guide()).history[0])
    mean = 0.7 * X[:, 0]
    exact = (0.5 * (0.4**2 + mean.square() - 1) - torch.tensor(0.4).log()).mean()
    assert found["code[0]"] == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize("kind", [FullCovariance, InverseAutoregressive])
def test_guides_that_do_not_factorize(kind: Any) -> None:
    """As diagnose has it, which takes more draws."""
    torch.manual_seed(0)
    network = MLP(hidden=(8,))
    model, guide = VAE((3,), 2, network), kind((3,), 2, network)
    x = (X > 0).float()
    fitted = fit(model, guide, x, validation=x, max_epochs=3, seed=0, progress=False)
    found = torch.tensor(list(kl_of_epoch(fitted.history[-1]).values()), dtype=torch.float64)
    torch.testing.assert_close(found, diagnose(model, guide, x, seed=0).kl, atol=0.15, rtol=0.2)


class Unstated(nn.Module):
    """q = N(slope x, 0.8^2) and N(0, 1) as flows of a normal, so that no mean is stated."""

    def __init__(self, slope: float = 0.6) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            mean = torch.stack([self.slope * x[:, 0], 0 * x[:, 0]], -1)
            move = dist.transforms.AffineTransform(mean, torch.tensor([0.8, 1.0]), event_dim=1)
            base = dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, move))


def of_two(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)


def test_a_guide_that_states_no_mean_is_not_known_by_few_draws() -> None:
    """Four draws of 40 rows: the KLs have their error with them, and active units would be a guess."""
    epoch = still(of_two, Unstated(), validation=HELD_OUT).history[0]
    assert "active_units" not in epoch
    assert 0.3 / 40**0.5 < epoch["error_of_kl"] < 0.33 / 40**0.5
    fitted = still(of_two, Unstated(), validation=HELD_OUT, max_epochs=DEAD_EPOCHS)
    assert fitted.dead_dimensions == ()
    assert "error_of_kl" not in still(Model(), Guide(), validation=HELD_OUT).history[0]


def test_many_rows_make_up_for_few_draws() -> None:
    many = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(2))
    guide = Unstated()
    fitted = still(of_two, guide, validation=many, max_epochs=DEAD_EPOCHS)
    epoch = fitted.history[-1]
    assert epoch["active_units"] == 1
    mean = 0.6 * many[:, 0]
    exact = (0.5 * (0.64 + mean.square() - 1) - torch.tensor(0.8).log()).mean()
    assert epoch["error_of_kl"] < 0.0025
    assert epoch["kl_z[0]"] == pytest.approx(float(exact), abs=3 * epoch["error_of_kl"])
    assert epoch["kl_z[1]"] == pytest.approx(0.0, abs=3 * epoch["error_of_kl"])
    assert fitted.dead_dimensions == ("z[1]",)


def test_the_error_of_a_kl_is_its_spread_over_draws() -> None:
    """Over 24 seeds, of a dimension that carries nothing."""
    found = torch.tensor(
        [
            [epoch["kl_z[1]"], epoch["error_of_kl"]]
            for seed in range(24)
            for epoch in still(of_two, Unstated(), validation=HELD_OUT, seed=seed).history
        ]
    )
    spread, error = found[:, 0].std(), found[0, 1]
    assert 0.6 < float(spread / error) < 1.4
    assert abs(float(found[:, 0].mean())) < 3 * float(error) / 24**0.5


def above(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z1 = pyro.sample("z1", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("z2", dist.Normal(z1, 1.0))
        pyro.sample("x", dist.Normal(z1[..., None].expand(*z1.shape, 3), 1.0).to_event(1), obs=x)


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.loc.expand(len(x)), 1.0))
            pyro.sample("z2", dist.Normal(z1, 1.0))


def test_a_mean_that_depends_on_another_latent_is_noisy_too() -> None:
    """z2 follows z1: its mean in a row is known to 1 / 4 of the variance of z1, though it is stated."""
    assert "active_units" not in still(above, Above(), validation=HELD_OUT).history[0]
    many = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(2))
    epoch = still(above, Above(), validation=many).history[0]
    assert epoch["active_units"] == 0
    assert epoch["kl_z2"] == 0.0
    assert "error_of_kl" not in epoch


def masked(x: Tensor, z: Tensor | None = None) -> None:
    """The second latent is there in the rows whose first number is positive."""
    there = torch.stack([torch.ones(len(x)), (x[:, 0] > 0).float()], -1).bool()
    with pyro.plate("rows", len(x)):
        p = dist.Normal(torch.zeros(len(x), 2), 1.0) if z is None else dist.Normal(z, 0.5)
        pyro.sample("z", p.mask(there).to_event(1))
        if z is None:
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)


class MaskedGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        masked(x, self.slope * x[:, 1:])


def test_rows_without_a_dimension_do_not_count() -> None:
    found = kl_of_epoch(still(masked, MaskedGuide(), validation=HELD_OUT).history[0])
    kl = 0.5 * (0.25 + HELD_OUT[:, 1:].square() - 1) - torch.tensor(0.5).log()
    there = HELD_OUT[:, 0] > 0
    exact = [float(kl[:, 0].mean()), float(kl[there, 1].mean())]
    assert list(found.values()) == pytest.approx(exact, rel=1e-5)


def test_a_dimension_that_no_row_has_leaves_no_nan(tmp_path: Path) -> None:
    nowhere = HELD_OUT[HELD_OUT[:, 0] < 0]
    fitted = still(masked, MaskedGuide(), validation=nowhere, run_dir=tmp_path)
    assert list(kl_of_epoch(fitted.history[0])) == ["z[0]"]
    assert fitted.history[0]["active_units"] == 1
    assert "nan" not in (tmp_path / "metrics.csv").read_text()
    assert learning_curves(fitted.history).axes


def test_active_units_are_not_defined_for_one_row(tmp_path: Path) -> None:
    fitted = still(Model(), Guide(), validation=HELD_OUT[:1], run_dir=tmp_path)
    assert "active_units" not in fitted.history[0]
    assert len(kl_of_epoch(fitted.history[0])) == 3
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["active_units"] for row in csv.DictReader(file)] == [""]


def test_metrics_csv_keeps_them_when_a_training_is_resumed(tmp_path: Path) -> None:
    still(Model(), Guide(), max_epochs=2, run_dir=tmp_path)
    fitted = still(Model(), Guide(), max_epochs=3, run_dir=tmp_path, resume=True)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[n[3:] for n in row if n.startswith("kl_")] for row in rows] == 3 * [
        ["code[0]", "code[1]", "idle"]
    ]
    for row, epoch in zip(rows, fitted.history, strict=True):
        assert float(row["kl_code[0]"]) == epoch["kl_code[0]"] > 0.1
        assert float(row["learning_rate"]) == 1e-30


def test_many_dimensions_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "MOST_DIMENSIONS", 2)
    assert kl_of_epoch(still(Model(), Guide()).history[0]) == {}


def test_it_is_said_once_that_a_dimension_dies(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    fitted = still(Model(), Guide(), max_epochs=DEAD_EPOCHS - 1, run_dir=tmp_path)
    assert fitted.dead_dimensions == ()
    assert caplog.messages == []
    fitted = still(Model(), Guide(), max_epochs=7, run_dir=tmp_path, resume=True)
    assert fitted.dead_dimensions == ("idle",)
    text = "epoch 5: idle has carried less than 0.01 nats for 5 epochs; diagnose() and "
    (message,) = caplog.messages
    assert message.startswith(text)
    still(Model(), Guide(), max_epochs=12, run_dir=tmp_path, resume=True)
    assert len(caplog.messages) == 1


def test_the_dead_are_those_of_the_weights_that_are_kept() -> None:
    alive = {"epoch": 1, "kl_z[0]": 1.0}
    options: dict[str, Any] = {
        "model": Model(),
        "guide": Guide(),
        "objective": ELBO(),
        "seconds": 1.0,
    }
    options |= {"history": [alive] * 5 + [alive | {"kl_z[0]": 0.0}] * 5, "steps": 10, "stopped": ""}
    assert Fit(**options, epochs=10, best_epoch=10).dead_dimensions == ("z[0]",)
    assert Fit(**options, epochs=10, best_epoch=6).dead_dimensions == ()


def test_beta_and_dead_dimensions_are_printed() -> None:
    """In a notebook, too."""
    dead = {f"kl_z[{i}]": 0.0 for i in range(10)} | {"epoch": 1}
    options: dict[str, Any] = {"model": Model(), "guide": Guide(), "seconds": 1.0, "steps": 10}
    options |= {"epochs": 5, "best_epoch": 5, "stopped": ""}
    found = Fit(**options, objective=ELBO(beta=4.0), history=[dead] * 5)
    names = ", ".join(f"z[{i}]" for i in range(8)) + ", and 2 more"
    assert repr(found).endswith(f"beta=4, stopped='', dead dimensions: {names})")
    for name, value in (("beta, in the end", "4"), ("dead dimensions", names)):
        assert f'{name}</th><td style="text-align:left">{value}</td>' in found._repr_html_()
    alive = Fit(**options, objective=ELBO(), history=[{"epoch": 1, "kl_z[0]": 1.0}] * 5)
    assert "beta" not in repr(alive)
    assert "dead" not in repr(alive) + alive._repr_html_()


def history(*kls: list[float]) -> list[dict[str, float]]:
    """Epochs with these KLs of two dimensions."""
    return [{"epoch": i, "kl_z[0]": a, "kl_z[1]": b} for i, (a, b) in enumerate(kls, 1)]


def test_what_counts_as_dead() -> None:
    alive, dead = [1.0, 1.0], [1.0, 0.009]
    assert dead_dimensions(history(*5 * [dead])) == ("z[1]",)
    assert dead_dimensions(history(*4 * [dead])) == ()
    assert dead_dimensions(history(alive, *4 * [dead])) == ()
    assert dead_dimensions(history(*5 * [dead], alive)) == ()  # it has come back
    assert dead_dimensions(history(*5 * [[1.0, float("nan")]])) == ()
    unsure = [{"error_of_kl": 0.001, **row} for row in history(*5 * [dead])]
    assert dead_dimensions(unsure) == ()
    assert dead_dimensions([{"epoch": 1}] * 5) == ()


def test_deaths_come_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Those of the next five epochs are told together."""
    caplog.set_level(logging.WARNING)
    epochs = [{f"kl_z[{d}]": float(epoch < 3 * d) for d in range(6)} for epoch in range(30)]
    deaths = Deaths([])
    for end in range(1, len(epochs) + 1):
        deaths.look(epochs[:end], end)
    said = [message.split(" have")[0].split(" has")[0] for message in caplog.messages]
    assert said == [
        "epoch 5: z[0]",
        "epoch 10: z[1]",
        "epoch 15: z[2], z[3]",
        "epoch 20: z[4], z[5]",
    ]
    caplog.clear()
    again = Deaths(epochs[:12])
    for end in range(13, len(epochs) + 1):
        again.look(epochs[:end], end)
    assert len(caplog.messages) == 2  # the first two have been told
    caplog.clear()
    together = Deaths([])
    together.look([{f"kl_z[{d}]": 0.0 for d in range(7)}] * 5, 5)
    assert caplog.messages[0].startswith("epoch 5: all 7 latent dimensions have carried less")


def test_it_costs_one_search_for_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which analytic KLs are right is found once, not after each epoch."""
    asked: list[Any] = []

    def counted(*given: Any) -> dict[str, set[str]]:
        asked.append(given)
        return {}

    monkeypatch.setattr(latents, "mean_field_violations", counted)
    still(above, Above(), validation=HELD_OUT, max_epochs=4)
    assert len(asked) == 1


def test_the_picture_has_a_line_for_each_dimension() -> None:
    figure = learning_curves(history([1.0, 0.5], [1.2, 0.2], [1.3, 0.001]))
    (axes,) = figure.axes
    assert axes.get_ylabel() == "KL by dimension\n(nats)"
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    assert drawn == [[1.0, 1.2, 1.3], [0.5, 0.2, 0.001]]
    alive, dead = (line.get_color() for line in axes.lines)
    assert alive != dead
