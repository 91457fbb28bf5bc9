"""Guides with a number for each row by its position: they need all rows at once, in `fit` and in `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import normal
from torch import Tensor, nn

import ppl_vae
from ppl_vae import evaluate, fit
from ppl_vae.checks import check
from ppl_vae.em import GradientSteps, fit_em
from ppl_vae.pairs import PairError

ROWS = 3 * torch.randn(100, generator=torch.Generator().manual_seed(0))
LOG_EVIDENCE = torch.distributions.Normal(0.0, 2**0.5).log_prob(ROWS)


def by_param(x: Tensor) -> None:
    """Starts at the exact posterior of each row."""
    loc = pyro.param("loc", lambda: x / 2)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


def inside_of_the_plate(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        loc = pyro.param("loc", lambda: x / 2, event_dim=0)
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


class ByModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(ROWS / 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.5**0.5))


GUIDES: list[Callable[[], Any]] = [lambda: by_param, lambda: inside_of_the_plate, ByModule]
NAMES = ["param", "param in the plate", "module"]


@pytest.mark.parametrize("make", GUIDES, ids=NAMES)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def test_all_rows_are_evaluated_at_once(make: Callable[[], Any], trained: bool) -> None:
    """Of 100 rows, the first 64 would be tried alone."""
    model, guide = normal, make()
    if trained:
        fitted = fit(model, guide, ROWS, max_epochs=1, batch_size=100, learning_rate=1e-9)
        model, guide = fitted.model, fitted.guide
    found = evaluate(model, guide, ROWS, num_samples=5)
    torch.testing.assert_close(found.elbo.values, LOG_EVIDENCE, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.log_likelihood.values, LOG_EVIDENCE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", GUIDES, ids=NAMES)
@pytest.mark.parametrize("batch_size", [50, 30], ids=["equal batches", "unequal batches"])
def test_batches_are_refused(make: Callable[[], Any], batch_size: int) -> None:
    """Rows of the second batch would get the parameters of the first."""
    with pytest.raises(
        PairError, match=r"keeps parameters for each row .* train with batch_size ="
    ):
        fit(normal, make(), ROWS, max_epochs=1, batch_size=batch_size)
    (problem,) = check(normal, make(), ROWS, batch_size=batch_size).errors
    assert "keeps parameters for each row" in problem.message


def test_a_loader_of_equal_batches_is_refused() -> None:
    loader = [ROWS[:50], ROWS[50:]]

    def by_param(x: Tensor) -> None:  # not the one that other tests have trained
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    with pytest.raises(PairError, match="cannot be given a part of them"):
        fit(normal, by_param, loader, max_epochs=1)
    with pytest.raises(ValueError, match="all rows are needed at once"):
        evaluate(normal, by_param, loader)
    step = GradientSteps(steps=1)
    with pytest.raises(PairError, match="cannot be given several batches"):
        fit_em(normal, loader, guide=by_param, m_step=step, max_iterations=1)


def test_other_rows_than_those_of_the_training_are_refused() -> None:
    fitted = fit(normal, by_param, ROWS, max_epochs=1, batch_size=100)
    with pytest.raises(
        PairError, match=r"'loc' is of shape \(100,\), and would be of shape \(20,\) for these rows"
    ):
        evaluate(fitted.model, fitted.guide, ROWS[:20])
    with pytest.raises(PairError, match=r"validation: .* would be of shape \(20,\) for these rows"):
        fit(normal, by_param, ROWS, validation=ROWS[:20], max_epochs=1, batch_size=100)


def test_parameters_of_the_size_of_a_batch_are_no_parameters_for_each_row() -> None:
    """A layer as wide as the batch: minibatches are right."""
    layer = nn.Linear(1, 50)

    def guide(x: Tensor) -> None:
        pyro.module("layer", layer)
        weights = pyro.param("weights", torch.full((50,), 0.01))
        wide = pyro.param("wide", torch.zeros(100))
        with pyro.plate("data", len(x)):
            loc = 0.0 * layer(x[:, None]).sum(1) + weights.sum() * x + wide.sum()
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    for batch_size in (50, 100):
        fitted = fit(normal, guide, ROWS, max_epochs=1, batch_size=batch_size, learning_rate=1e-9)
        found = evaluate(fitted.model, fitted.guide, ROWS[:70], num_samples=2)
        torch.testing.assert_close(found.elbo.values, LOG_EVIDENCE[:70], atol=1e-3, rtol=0)


def test_training_and_inference_with_all_rows() -> None:
    def start(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    fitted = fit(normal, start, ROWS, max_epochs=150, batch_size=100, learning_rate=0.2, seed=0)
    found = evaluate(fitted.model, fitted.guide, ROWS, num_samples=2000, seed=0, method="guide")
    torch.testing.assert_close(found.log_likelihood.values, LOG_EVIDENCE, atol=0.05, rtol=0)
    diagnosis = ppl_vae.diagnose(fitted.model, fitted.guide, ROWS, seed=0)
    assert diagnosis.active_units == 1


# -- a plate with the number of all rows ------------------------------------------------------------------


def test_a_plate_of_all_rows_gets_them_at_once_or_tells_what_to_write() -> None:
    rows = torch.randn(70)  # more than are checked first

    def model(x: Tensor) -> None:
        with pyro.plate("data", 70):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", 70):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    truth = dist.Normal(0.0, 2**0.5).log_prob(rows)
    found = evaluate(model, guide, rows, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-5, rtol=0)
    fitted = fit(model, guide, rows, batch_size=70, max_epochs=1, seed=0)
    assert fitted.epochs == 1
    line = r'plate \'data\' has 70 elements, .* given 35 rows: write pyro.plate\("data", len\(x\)\)'
    with pytest.raises(PairError, match=line):
        fit(model, guide, rows, batch_size=35, max_epochs=1)
    with pytest.raises(PairError, match="and the programs are given 64 rows"):
        evaluate(model, guide, rows[:69], num_samples=3)
