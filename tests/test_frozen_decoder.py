"""The rate-distortion curve of a frozen decoder, against closed forms and quadrature."""

from __future__ import annotations

import json
import math
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import fitted_pca, gaussian_data
from torch import Tensor

from ppl_vae.evaluation import evaluate
from ppl_vae.guides import Exact
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.pairs import PairError
from ppl_vae.rate_distortion import frozen_decoder_curve, linear_optimum
from ppl_vae.stats import Estimate

SLOPES = [0.02, 0.3, 1.0, 8.0]


def exact(model: ProbabilisticPCA, x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Rate and distortion of each row: q_t is the posterior under the noise s^2 / t."""
    with torch.no_grad():
        weight, variance = model.weight.double(), (2 * model.log_sigma.double()).exp()
        size, latents = weight.shape
        identity = torch.eye(latents, dtype=torch.float64)
        covariance = torch.linalg.inv(identity + weight.T @ weight * slope / variance)
        residual = x.double() - model.mean.double()
        mean = residual @ weight @ covariance * slope / variance
        squares = mean.square().sum(1)
        rate = (covariance.trace() + squares - latents - covariance.logdet()) / 2
        error = (residual - mean @ weight.T).square().sum(1)
        error = error + (weight.T @ weight @ covariance).trace()
        distortion = size / 2 * (2 * math.pi * variance).log() + error / (2 * variance)
    return rate, distortion


def agrees(found: Estimate, truth: Tensor, sigmas: float = 4.0) -> None:
    """The mean over rows within its Monte-Carlo error, which is small."""
    miss = Estimate(found.values - truth)
    assert abs(miss.mean) < sigmas * miss.standard_error
    assert miss.standard_error < 0.05 * (1 + float(truth.abs().mean()))


@pytest.mark.slow
def test_the_curve_of_a_linear_decoder() -> None:
    model, x = programs.pca(n=20)
    curve = frozen_decoder_curve(model, x, slopes=SLOPES, num_chains=64, num_steps=500, seed=0)
    for slope, point in zip(SLOPES, curve, strict=True):
        assert point.slope == slope
        rate, distortion = exact(model, x, slope)
        agrees(point.rate, rate)
        agrees(point.distortion, distortion)
        assert (((point.rate.values - rate) / point.rate_error).abs() < 5).all()
        assert (((point.distortion.values - distortion) / point.distortion_error).abs() < 5).all()
    assert (curve.acceptance - 0.65).abs().max() < 0.15
    assert curve.warnings == ()


def test_with_few_temperatures_it_is_above_the_curve() -> None:
    """A bound: rate + slope distortion of any encoder is at least that of the curve."""
    model, x = programs.pca(n=100)
    curve = frozen_decoder_curve(model, x, slopes=SLOPES, num_steps=20, num_leapfrog=3, seed=0)
    for slope, point in zip(SLOPES, curve, strict=True):
        rate, distortion = exact(model, x, slope)
        excess = Estimate(point.rate.values - rate + slope * (point.distortion.values - distortion))
        assert excess.mean > -3 * excess.standard_error
    assert excess.mean > 10 * excess.standard_error


@pytest.mark.slow
def test_the_stated_errors_are_those_of_repetitions() -> None:
    model, x = programs.pca(n=1)
    rows = x.expand(225, -1)
    curve = frozen_decoder_curve(
        model, rows, slopes=[0.1, 0.5], num_chains=64, num_steps=100, num_leapfrog=4, seed=0
    )
    for point in curve:
        for values, error in (
            (point.rate.values, point.rate_error),
            (point.distortion.values, point.distortion_error),
        ):
            assert float(error.square().mean().sqrt() / values.std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_at_its_own_beta_a_trained_linear_decoder_touches_the_curve_of_the_data(
    beta: float,
) -> None:
    eigenvalues, noise = [5.0, 3.0, 1.5, 0.8, 0.3], 0.6
    x = gaussian_data(eigenvalues, n=300)
    model = fitted_pca(x, 4, noise**0.5, beta).float()
    curve = frozen_decoder_curve(
        model, x.float(), slopes=[0.1, 1 / beta, 10.0], num_steps=300, seed=0
    )
    best = linear_optimum(eigenvalues, noise, beta, latent_dim=4)
    point = curve.at(1 / beta)
    assert point.beta == pytest.approx(beta)
    for values, error, truth in (
        (point.rate.values, point.rate_error, best.rate),
        (point.distortion.values, point.distortion_error, best.distortion),
    ):
        of_mean = float(error.square().sum().sqrt()) / len(error)
        assert abs(float(values.mean()) - truth) < 4 * of_mean
        assert of_mean < 0.02 * truth
    for other in (curve.at(0.1), curve.at(10.0)):  # elsewhere it is above
        there = linear_optimum(eigenvalues, noise, other.beta, latent_dim=4)
        total = there.rate + other.slope * there.distortion
        assert other.rate.mean + other.slope * other.distortion.mean > total + 0.03


@pytest.mark.slow
def test_at_slope_1_it_is_log_p_and_the_exact_posterior() -> None:
    model, x = programs.pca(n=20)
    curve = frozen_decoder_curve(model, x, slopes=[1.0], num_chains=64, num_steps=150, seed=0)
    point = curve.at(1)
    agrees(point.elbo, model.log_evidence(x).detach())
    guide = evaluate(model, Exact(model), x, num_samples=4000, seed=0)
    agrees(point.rate, guide.rate.values)
    agrees(point.distortion, guide.distortion.values)


def half(x: Tensor) -> None:
    """A positive latent, and a likelihood that is not normal."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Poisson(2 * z), obs=x)


def test_a_latent_with_a_bound_against_quadrature() -> None:
    x = torch.tensor([0.0, 1.0, 6.0])
    curve = frozen_decoder_curve(half, x, slopes=SLOPES, num_chains=400, num_steps=60, seed=0)
    z = torch.linspace(0, 40, 400_001, dtype=torch.float64)[1:]
    likelihood = dist.Poisson(2 * z).log_prob(x.double().unsqueeze(1))
    for point in curve:
        log_q = -z + point.slope * likelihood
        log_normalizer = log_q.logsumexp(1) + math.log(1e-4)
        q = log_q.softmax(1)
        distortion = -(q * likelihood).sum(1)
        rate = -point.slope * distortion - log_normalizer
        assert (((point.rate.values - rate) / point.rate_error).abs() < 4).all()
        assert (((point.distortion.values - distortion) / point.distortion_error).abs() < 4).all()
        assert float(point.rate_error.max()) < 0.2


@pytest.mark.slow
def test_chains_in_parts_and_rows_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**14)
    model, x = programs.pca(n=2)
    curve = frozen_decoder_curve(
        model, x, slopes=[0.5, 1.0], num_chains=24, num_steps=30, num_leapfrog=4, seed=0
    )
    for point in curve:
        rate, distortion = exact(model, x, point.slope)
        assert (((point.rate.values - rate) / point.rate_error).abs() < 5).all()
        assert (((point.distortion.values - distortion) / point.distortion_error).abs() < 5).all()


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def only_discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


@pytest.mark.parametrize("model", [discrete, only_discrete])
def test_discrete_latents_are_refused(model: Any) -> None:
    with pytest.raises(PairError, match=r"latent site 'c' is discrete.*blahut_arimoto"):
        frozen_decoder_curve(model, torch.zeros(3), num_steps=5)


def test_latents_of_all_rows_are_refused() -> None:
    with pytest.raises(PairError, match="belongs to all rows"):
        frozen_decoder_curve(programs.shared_mean(1.0), torch.zeros(3), num_steps=5)


def test_what_it_says_of_itself() -> None:
    model, x = programs.pca()
    curve = frozen_decoder_curve(model, x, slopes=[1.0, 0.1, 1.0], num_steps=3, seed=0)
    assert [point.slope for point in curve] == [0.1, 1.0]
    assert any("fewer than a quarter of the 16 chains" in text for text in curve.warnings)
    assert str(curve).splitlines()[0].split()[:4] == ["slope", "beta", "rate", "distortion"]
    assert "over 20 rows" in str(curve)
    numbers = json.loads(json.dumps(curve.to_dict()))
    assert [point["slope"] for point in numbers["points"]] == [0.1, 1.0]
    assert set(curve.at(1.0).rows()) == {
        *("rate", "distortion", "elbo", "rate_error", "distortion_error", "ess")
    }
    assert "1 / beta" in str(curve.at(1.0))
    with pytest.raises(ValueError, match=r"no point has the slope 3, only 0.1, 1"):
        curve.at(3.0)
    single = frozen_decoder_curve(model, x, slopes=[1.0], num_chains=1, num_steps=3, seed=0)
    assert any("single chain" in text for text in single.warnings)
    assert single.at(1.0).rate_error.isnan().all()


@pytest.mark.parametrize(
    ("slopes", "kind", "told"),
    [
        ([], ValueError, "at least one"),
        ([0.0], ValueError, r"slopes\[0\] must be positive"),
        ([1.0, -1.0], ValueError, r"slopes\[1\] must be positive"),
        (1.0, TypeError, "slopes must be numbers"),
        (["a"], TypeError, r"slopes\[0\] must be a number"),
    ],
)
def test_wrong_slopes_are_named(slopes: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        frozen_decoder_curve(half, torch.zeros(2), slopes=slopes)


@pytest.mark.parametrize("name", ["num_chains", "num_steps", "num_leapfrog"])
def test_numbers_must_be_positive(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        frozen_decoder_curve(half, torch.ones(3), **options)
