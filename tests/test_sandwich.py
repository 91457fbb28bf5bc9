"""The sandwich of bidirectional Monte Carlo against closed forms, on rows that the model makes."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import narrow_guide, pca
from torch import Tensor

from ppl_vae.evaluation import (
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.sandwich import Sandwich, simulate
from ppl_vae.guides import Exact
from ppl_vae.pairs import PairError
from ppl_vae.stats import Estimate


@pytest.mark.slow
@pytest.mark.parametrize("start", [pytest.param(narrow_guide, marks=pytest.mark.slow), None])
def test_the_sandwich_closes_on_the_evidence(start: Any) -> None:
    model, _ = pca()
    guide = None if start is None else start(model)
    gaps = []
    for num_steps in (15, 300):
        found = bidirectional_monte_carlo(
            model, guide, torch.zeros(60, 10), num_steps=num_steps, seed=0
        )
        truth = model.log_evidence(found.data).detach().double()  # type: ignore[arg-type]
        below, above = truth - found.lower.values, found.upper.values - truth
        assert Estimate(below).mean > -2 * Estimate(below).standard_error
        assert Estimate(above).mean > -2 * Estimate(above).standard_error
        gaps.append(found.gap.mean)
    assert gaps[0] > 0.5
    assert gaps[1] < 0.1
    assert found.meets(0.2)
    assert not found.meets(gaps[1] / 2)
    assert found.warnings == ()
    assert float(below.abs().mean()) < 0.3


def test_with_the_exact_guide_both_bounds_are_the_evidence() -> None:
    model, x = pca()
    found = bidirectional_monte_carlo(model, Exact(model), x, num_chains=2, num_steps=5, seed=0)
    truth = model.log_evidence(found.data).detach().double()  # type: ignore[arg-type]
    torch.testing.assert_close(found.lower.values, truth, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.upper.values, truth, atol=1e-3, rtol=0.0)


def test_simulated_rows_are_those_of_the_model() -> None:
    model, _ = pca()
    found = bidirectional_monte_carlo(
        model, Exact(model), torch.zeros(5000, 10), num_chains=1, num_steps=1, seed=0
    )
    assert isinstance(found.data, Tensor)
    covariance = (model.weight @ model.weight.T + 0.09 * torch.eye(10)).detach()
    scales = torch.outer(covariance.diagonal(), covariance.diagonal())
    error = ((scales + covariance.square()) / 5000).sqrt()
    assert (((found.data.T.cov() - covariance) / error).abs() < 4.5).all()


def test_a_sandwich_that_is_open_says_so() -> None:
    model, _ = pca()
    found = bidirectional_monte_carlo(model, None, torch.zeros(30, 10), num_steps=3, seed=0)
    assert not found.meets()
    assert "nats apart" in found.warnings[0]
    assert "do not meet" in str(found)
    assert "nats apart" in json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("gaps", "verdict", "words"),
    [
        ([0.01, 0.03, 0.02], "they meet", None),
        ([-0.03, 0.02, 0.0], "they meet", None),  # below 0 by chance
        ([-1e-5, -1e-5, -1e-5], "they meet", None),  # rounding
        ([2.0, 2.1, 1.9], "they do not meet", "nats apart"),
        ([-0.1, -0.5, -0.3], "they cross", "or it is rare chance"),  # 2.6 standard errors
        ([-3.0, -3.1, -2.9], "they cross", "more than chance explains"),
    ],
)
def test_three_verdicts(gaps: list[float], verdict: str, words: str | None) -> None:
    """An upper bound below the lower one is no good sign, however close they are."""
    lower, errors = torch.tensor([-40.0, -30.0, -20.0]), torch.zeros(3)
    upper = Estimate(lower + torch.tensor(gaps))
    found = Sandwich(Estimate(lower), upper, errors, errors, errors, lower, 2, 3, 4, True)
    assert f"({verdict})" in str(found)
    assert found.meets() == (verdict == "they meet")
    assert found.cross == (verdict == "they cross")
    assert len(found.warnings) == (words is not None)
    assert words is None or words in found.warnings[0]


def test_covariates_are_kept() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    y = torch.arange(40.0)
    found = bidirectional_monte_carlo(model, None, (torch.zeros(40), y), num_steps=200, seed=0)
    x, kept = found.data
    assert torch.equal(kept, y)
    truth = dist.Normal(y, 1.25**0.5).log_prob(x)
    torch.testing.assert_close(found.lower.values, truth.double(), atol=0.5, rtol=0.0)


def binarized(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        obs = (x > 0.5).float()
        pyro.sample("x", dist.Bernoulli(logits=z), obs=obs)


def test_data_that_the_model_makes_binary_itself() -> None:
    found = bidirectional_monte_carlo(binarized, None, torch.rand(20), num_steps=20, seed=0)
    assert isinstance(found.data, Tensor)
    assert set(found.data.tolist()) == {0.0, 1.0}


def standardized(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=2 * x + 1)


def teacher_forced(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = torch.stack([z, z + x[:, 0]], -1)
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


def tempered(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        pyro.factor("extra", -x.square())


def of_two(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x + y)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (standardized, torch.ones(4), "observes at site 'x'"),
        (teacher_forced, torch.ones(4, 2), "distribution at site 'x' depends on the data"),
        (tempered, torch.ones(4), "site 'extra' is a factor"),
        (of_two, (torch.ones(4), torch.ones(4)), "none of the model's arguments"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model: Any, x: Any, message: str) -> None:
    with pytest.raises(PairError, match=message):
        bidirectional_monte_carlo(model, None, x, num_steps=2, seed=0)


VALUES = torch.tensor(
    [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 2.0]]
).double()


def of_four_values(x: Tensor, one_by_one: bool = False) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.3, 0.2, 0.1]).double()))
        assert z.ndim == 1 or not one_by_one
        pyro.sample("x", dist.Categorical(logits=VALUES[z]), obs=x)


def rough(x: Tensor) -> None:
    logits = torch.tensor(
        [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    ).double()
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits[x]))


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("guide", [rough, None])
@pytest.mark.parametrize("num_chains", [1, 2, 5])
def test_importance_sampling_of_discrete_latents_is_right_from_both_sides(
    guide: Any, one_by_one: bool, num_chains: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[exp(lower)] = p(x) and E[exp(-upper)] = 1 / p(x), each within four standard errors."""
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**18)  # several chunks of draws

    def model(x: Tensor) -> None:
        of_four_values(x, one_by_one)

    x = torch.zeros(200 if one_by_one else 3000, dtype=torch.long)
    found = bidirectional_monte_carlo(model, guide, x, num_chains=num_chains, num_steps=1, seed=0)
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1]).double() @ VALUES.softmax(-1)
    assert isinstance(found.data, Tensor)
    seen = found.data.bincount(minlength=3) / len(x)
    error = (shares * (1 - shares) / len(x)).sqrt()
    assert ((seen - shares).abs() < 4.5 * error).all()
    truth = shares.log()[found.data]
    for ratio in ((found.lower.values - truth).exp(), (truth - found.upper.values).exp()):
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / len(x) ** 0.5
    below, above = Estimate(truth - found.lower.values), Estimate(found.upper.values - truth)
    for gap in (below, above):
        assert gap.mean > -2 * gap.standard_error
    assert found.acceptance.isnan().all()
    assert "acceptance" not in str(found)


def test_the_exact_draw_is_one_of_the_draws_of_the_upper_bound() -> None:
    """With one draw, the upper bound is log p(x, z) - log q(z | x) of the draw that made the row."""
    model, _ = pca()
    guide = narrow_guide(model)
    one = bidirectional_monte_carlo(
        model, guide, torch.zeros(40, 10), num_chains=1, num_steps=1, seed=3
    )
    assert isinstance(one.data, Tensor)
    truth = model.log_evidence(one.data).detach().double()
    # E over p(z | x) of that is log p(x) + KL(posterior, guide), the same for all rows of a linear pair but
    # for the means.
    q = dist.Normal(torch.full((4,), 0.7), 0.3).to_event(1)
    posterior = Exact(model).encode(one.data)
    kl = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(posterior.mean, posterior.covariance_matrix),
        torch.distributions.MultivariateNormal(q.mean, torch.diag(q.variance)),
    )
    over = Estimate(one.upper.values - truth - kl.detach().double())
    assert abs(over.mean) < 4 * over.standard_error
    many = bidirectional_monte_carlo(
        model, guide, torch.zeros(40, 10), num_chains=200, num_steps=1, seed=3
    )
    assert 0 < many.gap.mean < 0.6 * one.gap.mean
    assert "importance sampling by one draw may miss" in one.warnings[0]


def test_importance_sampling_says_what_it_cannot_do() -> None:
    def shared(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def of_shared(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with pytest.raises(PairError, match="'loc' belongs to all rows"):
        bidirectional_monte_carlo(shared, of_shared, torch.zeros(5), num_steps=1, seed=0)
    with pytest.raises(PairError, match=r"bidirectional_monte_carlo\(num_steps=1\)"):
        bidirectional_monte_carlo(of_four_values, rough, torch.zeros(5).long(), seed=0)


def test_simulate_gives_back_the_latents_that_made_the_rows() -> None:
    from ppl_vae.evaluation.path import PriorGuide
    from ppl_vae.pairs import Pair

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1e-6), obs=x)

    data, latents = simulate(Pair(model, PriorGuide(model)), torch.zeros(9))
    assert isinstance(data, Tensor)
    assert float(data.std()) > 0.3
    torch.testing.assert_close(latents["z"], data, atol=1e-4, rtol=0.0)
