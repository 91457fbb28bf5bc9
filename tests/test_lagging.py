"""analyses/lagging.py: the plane of posterior means is exact, and aggressive updates keep a latent alive."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch
from scripts import ROOT
from torch import nn

from ppl_vae.models import VAE
from ppl_vae.networks import MLP, AutoregressiveDecoder


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("lagging")


@pytest.mark.parametrize("reading", [False, True])
def test_posterior_means_are_those_of_gauss_and_hermite(lagging: ModuleType, reading: bool) -> None:
    torch.manual_seed(0)
    network = (
        AutoregressiveDecoder(MLP((8,)), channels=4, layers=1, window=5)
        if reading
        else MLP((8,), nn.Tanh)
    )
    model, x = VAE((1, 1, 5), 1, network), lagging.rows(4, 5, seed=0)
    found = lagging.posterior_means(model, x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = torch.tensor(nodes, dtype=torch.float32)[:, None]
    for row, mean in zip(x, found, strict=True):
        with torch.no_grad():
            likelihood = model.decode(z).log_prob(row.expand(80, *row.shape)).exp().double().numpy()
        mass = likelihood * weights
        assert float(mean) == pytest.approx(float((mass * nodes).sum() / mass.sum()), abs=1e-4)


def test_the_rows_have_the_stated_odds(lagging: ModuleType) -> None:
    """P(x_0 = 1 | s) and P(x_1 = 1 | x_0) by quadrature over s."""
    x = lagging.rows(40_000, 2, seed=0)[:, 0, 0]
    s = np.linspace(-8, 8, 4001)
    weight = np.exp(-(s**2) / 2)
    first = 1 / (1 + np.exp(-s))  # before the first bit there is none
    for before in (0, 1):
        seen = weight * (first if before else 1 - first)
        after = 1 / (1 + np.exp(-(s + 2 * before - 1)))
        exact = float((seen * after).sum() / seen.sum())
        there = x[x[:, 0] == before]
        assert float(there[:, 1].mean()) == pytest.approx(exact, abs=4 * 0.5 / len(there) ** 0.5)


def test_the_density_of_the_rows_sums_to_one(lagging: ModuleType) -> None:
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).reshape(-1, 1, 1, 6)
    assert float(lagging.log_density(bits).double().exp().sum()) == pytest.approx(1, abs=1e-5)
    x = lagging.rows(40_000, 6, seed=0)
    share = (x.flatten(1) == bits.flatten(1)[11]).all(1).float().mean()
    exact = float(lagging.log_density(bits[11:12]).exp())
    assert float(share) == pytest.approx(exact, abs=4 * (exact / 40_000) ** 0.5)


@pytest.mark.slow
def test_aggressive_updates_keep_a_latent_that_the_usual_ones_lose(lagging: ModuleType) -> None:
    """The numbers of the table in docs/collapse.md, with a tolerance."""
    x, test = lagging.rows(2_000, 24, seed=0), lagging.rows(100, 24, seed=1000)
    *_, usual = lagging.train(x, test, (10, 40), False, 24, 0)
    *_, aggressive = lagging.train(x, test, (10, 60), True, 24, 0)
    assert float(usual.model[-1].std()) < 0.3
    assert float(usual.guide[-1].std()) < 0.3
    assert float(aggressive.model[-1].std()) > 0.7
    error = (aggressive.model[-1] - aggressive.guide[-1]).square().mean().sqrt()
    assert float(error) < 0.3
