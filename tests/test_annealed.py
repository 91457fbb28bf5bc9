"""Annealed importance sampling against closed forms, and what it says of itself."""

from __future__ import annotations

import gc
import json
import math
from typing import Any

import programs
import pyro.distributions as dist
import pytest
import torch
from programs import agrees, narrow_guide, normal_normal, pca, vae
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.evaluation import (
    Annealed,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    evaluate,
    hmc,
)
from ppl_vae.guides import Exact, FullCovariance
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.pairs import PairError
from ppl_vae.stats import Estimate


def wide_guide(model: ProbabilisticPCA) -> FullCovariance:
    """An untrained guide."""
    return FullCovariance((10,), 4)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(narrow_guide, marks=pytest.mark.slow),
        pytest.param(wide_guide, marks=pytest.mark.slow),
        None,
    ],
)
def test_it_finds_the_evidence_where_importance_sampling_is_caught_by_its_khat(start: Any) -> None:
    model, x = pca()
    guide = None if start is None else start(model)
    truth = model.log_evidence(x).detach()
    found = annealed_importance_sampling(model, guide, x, num_steps=400, seed=0)
    agrees(found.log_likelihood, found.log_likelihood_error, truth)
    assert float(found.log_likelihood_error.mean()) < 0.2
    assert found.from_prior == (guide is None)
    assert (found.acceptance - hmc.TARGET_ACCEPTANCE).abs().max() < 0.12
    assert found.warnings == ()
    if guide is not None:
        plain = evaluate(model, guide, x, num_samples=1000, method="guide", seed=0)
        assert float(plain.unreliable.double().mean()) > 0.6
        assert any("k-hat" in w for w in plain.warnings)
        worse = (plain.log_likelihood.values - truth).abs().mean()
        assert worse > 5 * (found.log_likelihood.values - truth).abs().mean()


@pytest.mark.parametrize("num_steps", [1, 2, 40])
def test_from_the_exact_posterior_every_weight_is_the_evidence(num_steps: int) -> None:
    model, x = pca()
    found = annealed_importance_sampling(
        model, Exact(model), x, num_chains=3, num_steps=num_steps, seed=0
    )
    truth = model.log_evidence(x).detach().double()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 3.0), atol=1e-3, rtol=0.0)


def test_a_single_temperature_is_importance_sampling() -> None:
    model, x = pca(n=200)
    guide = wide_guide(model)
    one = annealed_importance_sampling(model, guide, x, num_chains=20, num_steps=1, seed=0)
    other = evaluate(model, guide, x, num_samples=20, seed=1)
    difference = one.log_likelihood.values - other.log_likelihood.values
    assert abs(float(difference.mean())) < 3 * float(Estimate(difference).standard_error)
    assert one.acceptance.isnan().all()
    json.dumps(one.to_dict())


@pytest.mark.parametrize("guide", [None, programs.normal_guide(0.4, 0.6)], ids=["prior", "wrong"])
@pytest.mark.parametrize("num_steps", [2, 5])
def test_the_mean_weight_of_short_runs_is_the_evidence(guide: Any, num_steps: int) -> None:
    # Unbiased for any number of temperatures: log of the mean over 20 000 chains, without annealing's help.
    x = torch.tensor([-1.0, 0.3, 2.0])
    found = annealed_importance_sampling(
        normal_normal, guide, x, num_chains=20_000, num_steps=num_steps, num_leapfrog=3, seed=0
    )
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(x).double()
    relative = (found.log_likelihood.values - truth).exp() - 1
    assert (found.log_likelihood_error < 0.02).all()
    assert ((relative / found.log_likelihood_error).abs() < 3.5).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_temperatures_or_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**21)
    model, guide, x = vae()
    most = []
    for rows, num_steps in ((30, 20), (30, 80), (120, 5)):
        gc.collect()  # what cycles hold of the run before is not this one's
        with programs.Memory() as memory:
            annealed_importance_sampling(
                model, guide, x[:1].expand(rows, 1, 4, 4), num_steps=num_steps, num_leapfrog=1
            )
        most.append(memory.most)
    # Of a temperature, each row's step size and what it is tuned by are kept, but no state of its chains,
    # which would be 30 rows x 16 chains x latents.
    assert most[1] - most[0] < (80 - 20) * 30 * 24
    # Four times the rows come in chunks. Each row more has its results and 5 temperatures, but no chains: their
    # latents alone would be 16 x 3 x 4 bytes.
    assert max(most) < 2**21
    assert most[2] - most[0] < (120 - 30) * 250


@pytest.mark.parametrize(("budget", "n"), [(1, 2), pytest.param(2**14, 3, marks=pytest.mark.slow)])
def test_chains_and_rows_in_parts(budget: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", budget)
    model, x = pca(n=n)
    guide = Exact(model)
    found = annealed_importance_sampling(
        model, guide, x, num_chains=3, num_steps=3, num_leapfrog=2, seed=0
    )
    truth = model.log_evidence(x).detach().double()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.ess, torch.full_like(truth, 3.0), atol=0.01, rtol=0.0)
    assert ((found.acceptance > 0) & (found.acceptance <= 1)).all()
    sandwich = bidirectional_monte_carlo(
        model, guide, x, num_chains=3, num_steps=3, num_leapfrog=2, seed=0
    )
    truth = model.log_evidence(sandwich.data).detach().double()  # type: ignore[arg-type]
    torch.testing.assert_close(sandwich.upper.values, truth, atol=1e-3, rtol=0.0)


def test_seeds() -> None:
    model, guide, x = vae()

    def values(seed: int | None) -> Tensor:
        return annealed_importance_sampling(
            model, guide, x, num_chains=2, num_steps=12, num_leapfrog=2, seed=seed
        ).log_likelihood.values

    state = torch.get_rng_state()
    first = values(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, values(1))
    assert not torch.equal(first, values(2))
    assert not torch.equal(values(None), values(None))


def test_the_pair_stays_as_it_was() -> None:
    model, guide, x = vae()
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    annealed_importance_sampling(model, guide, x, num_chains=2, num_steps=60, num_leapfrog=2)
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_batches_of_a_loader() -> None:
    model, x = pca(n=7)
    loader = DataLoader(TensorDataset(x), batch_size=3)
    found = annealed_importance_sampling(
        model, Exact(model), loader, num_chains=2, num_steps=3, num_leapfrog=2
    )
    truth = model.log_evidence(x).detach().double()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0.0)


def test_float64() -> None:
    model, x = pca(n=3)
    model, x = model.double(), x.double()
    found = annealed_importance_sampling(model, Exact(model), x, num_chains=2, num_steps=60, seed=0)
    truth = model.log_evidence(x).detach()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("name", ["num_chains", "num_steps", "num_leapfrog"])
def test_numbers_must_be_positive(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    for function in (annealed_importance_sampling, bidirectional_monte_carlo):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            function(normal_normal, None, torch.ones(3), **options)


def test_data_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(PairError, match="NaN"):
        annealed_importance_sampling(normal_normal, None, torch.tensor([1.0, math.nan]))


def test_too_few_temperatures_are_warned_of() -> None:
    model, x = pca()
    found = annealed_importance_sampling(model, None, x, num_steps=2, seed=0)
    assert any("fewer than a quarter of the 16 chains" in w for w in found.warnings)
    single = annealed_importance_sampling(model, None, x, num_chains=1, num_steps=2, seed=0)
    assert any("single chain" in w for w in single.warnings)


def test_the_result_as_text_and_as_numbers() -> None:
    rows = torch.tensor([1.0, 3.0])
    found = Annealed(
        log_likelihood=Estimate(-rows),
        log_likelihood_error=0.1 * rows,
        ess=torch.tensor([16.0, 2.0]),
        acceptance=torch.tensor([0.65, 0.2]),
        num_chains=16,
        num_steps=1000,
        num_leapfrog=10,
        num_values=2,
        from_prior=True,
    )
    text = str(found)
    assert "annealed from the prior" in text
    assert "-2.000 ± 1.000 nats" in text
    assert "0.42 (0.20)" in text
    assert found.unreliable.tolist() == [False, True]
    assert "on 1 of 2 rows" in found.warnings[1]
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["log_likelihood"]["mean"] == -2.0
    assert found.rows()["log_likelihood"].tolist() == [-1.0, -3.0]
    assert numbers["bits_per_dim"]["mean"] == pytest.approx(2 / (2 * math.log(2)))
    assert numbers["from_prior"] is True
    assert len(numbers["warnings"]) == 2
