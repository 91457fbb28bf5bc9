"""Draws of data, and what is listed as data: models whose data depend on themselves, reparametrized latents."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import normal, normal_guide
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn

from ppl_vae import encode, evaluate, fit, sample, to_arviz
from ppl_vae.checks import PairWarning, check

ROWS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def teacher_forced(x: Tensor) -> None:
    """Each number of a row goes on from the one before it, as it is in the data."""
    before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], 1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(2 * before + z[..., None], 1.0).to_event(1), obs=x)


def scaled_by_counts(x: Tensor) -> None:
    """As for counts of genes: the rate is a share of the sum of the row."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        rate = torch.sigmoid(z)[..., None] * x.sum(1, keepdim=True) * torch.ones(3) / 3 + 0.1
        pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def covariates(x: Tensor, c: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, *others: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.7))


@pytest.mark.parametrize(
    ("model", "x"),
    [(teacher_forced, ROWS), (scaled_by_counts, torch.poisson(3 * torch.ones(6, 3)))],
    ids=["teacher forcing", "counts"],
)
def test_draws_that_follow_the_data_are_a_warning(model: Any, x: Tensor) -> None:
    found = evaluate(model, guide, x, num_samples=2)
    with pytest.warns(PairWarning, match="draws of data follow the rows given"):
        to_arviz(model, guide, x, evaluation=found, num_draws=2)
    with pytest.warns(PairWarning, match="draws of data follow the rows given"):
        sample(model, 3, like=x)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (normal, ROWS[:, 0]),
        (covariates, (ROWS[:, 0], ROWS[:, 1])),
        (covariates, (ROWS[:, 0], ROWS[:, 0].clone())),
    ],
    ids=["plain", "covariates", "the data are their own covariate"],
)
def test_other_draws_are_none(model: Any, x: Any) -> None:
    found = evaluate(model, guide, x, num_samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        to_arviz(model, guide, x, evaluation=found, num_draws=2)


def test_a_number_per_row_as_latent() -> None:
    x = ROWS[:, 0]
    draws, latents = sample(normal, 4000, like=x, return_latents=True, seed=0)
    assert latents["z"].shape == draws.shape == (4000,)
    assert float(draws.var()) == pytest.approx(2.0, abs=0.2)
    assert encode(normal, normal_guide(0.5, 0.5**0.5), x)["z"].shape == (6,)
    decoded = sample(normal, 3, like=x, given={"z": latents["z"][:3]}, means=True)
    torch.testing.assert_close(decoded, latents["z"][:3])


def centered(x: Tensor) -> None:
    """m ~ N(0, 1), z ~ N(m, 1/2), x ~ N(z, 1/2): x ~ N(0, 2)."""
    with pyro.plate("data", len(x)):
        m = pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        z = pyro.sample("z", dist.Normal(m, 0.5**0.5))
        pyro.sample("x", dist.Normal(z, 0.5**0.5), obs=x)


def test_a_reparametrized_latent_is_no_data() -> None:
    model = poutine.reparam(centered, {"z": LocScaleReparam(0.0)})

    def exact(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("z_decentered", dist.Normal((x - m) / 2**0.5, 0.5**0.5))

    x = ROWS[:, 0]
    wanted = torch.distributions.Normal(0.0, 2**0.5).log_prob(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        found = evaluate(model, exact, x, num_samples=3)
        data = to_arviz(model, exact, x, evaluation=found, num_draws=3)
        fitted = fit(model, exact, x, max_epochs=1, learning_rate=1e-9)
    torch.testing.assert_close(found.log_likelihood.values, wanted, atol=1e-5, rtol=0)
    assert found.num_values == 1
    assert list(data["observed_data"].data_vars) == ["x"]
    assert list(data["posterior_predictive"].data_vars) == ["x"]
    assert set(data["posterior"].data_vars) == {"m", "z_decentered"}
    assert fitted.warnings == ()


def test_a_guide_under_reparam_observes_nothing() -> None:
    config: Any = {"z": LocScaleReparam(0.0)}

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("z", dist.Normal((x + m) / 2, 0.5))

    model, reparametrized = poutine.reparam(centered, config), poutine.reparam(plain, config)
    x = ROWS[:, 0]
    assert check(model, reparametrized, x).ok
    assert not evaluate(model, reparametrized, x, num_samples=3).notes


def test_check_puts_back_weights_that_a_run_scales() -> None:
    embedding = nn.Embedding(5, 2, max_norm=0.1)
    before = embedding.weight.detach().clone()

    def model(x: Tensor) -> None:
        pyro.module("embedding", embedding)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(z + embedding(torch.arange(len(x)) % 5).sum(1), 1.0), obs=x
            )

    check(model, guide, ROWS[:, 0])
    assert torch.equal(embedding.weight.detach(), before)
