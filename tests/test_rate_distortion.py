"""Exact rate-distortion curves (normal data, tables, Blahut and Arimoto), and pairs trained onto them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import fitted_pca, gaussian_data
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import evaluate, fit, rate_distortion as rd
from ppl_vae.guides import FullCovariance
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO

EIGENVALUES = [5.0, 3.0, 1.5, 0.8, 0.3, 0.0]
NOISE = 0.6


def entropy(p: Tensor) -> float:
    return -float(torch.xlogy(p, p).sum())


# -- normal data -----------------------------------------------------------------------------------------


def test_reverse_water_filling_by_hand() -> None:
    found = rd.reverse_water_filling([0.5, 4.0, 2.0], 1.0)
    assert found.active.tolist() == [False, True, True]
    assert found.squared_errors.tolist() == [0.5, 1.0, 1.0]
    assert found.rate == pytest.approx(math.log(8) / 2, abs=1e-12)
    assert found.slope == 0.5
    assert rd.reverse_water_filling([0.5, 4.0], 9.0).rate == 0.0
    assert rd.reverse_water_filling([0.5, 4.0], 9.0).slope == 0.0
    json.dumps(found.to_dict())
    assert "2 of 3 dimensions" in str(found)


@pytest.mark.parametrize("level", [0.01, 0.4, 1.0, 2.9])
def test_the_slope_of_water_filling_is_its_derivative(level: float) -> None:
    low, high = (
        rd.reverse_water_filling(EIGENVALUES, level * (1 + step)) for step in (-1e-6, 1e-6)
    )
    slope = (low.rate - high.rate) / (high.distortion - low.distortion)
    assert slope == pytest.approx(rd.reverse_water_filling(EIGENVALUES, level).slope, rel=1e-5)


@pytest.mark.parametrize("latent_dim", [None, 1, 3, 9])
@pytest.mark.parametrize("level", [0.05, 0.3, 0.9, 4.9])
def test_the_water_level_of_a_distortion(level: float, latent_dim: int | None) -> None:
    there = rd.reverse_water_filling(EIGENVALUES, level, latent_dim=latent_dim)
    back = rd.reverse_water_filling(EIGENVALUES, distortion=there.distortion, latent_dim=latent_dim)
    assert back.water_level == pytest.approx(level, rel=1e-9)
    assert back.rate == pytest.approx(there.rate, rel=1e-9)
    if latent_dim == 1:
        assert int(there.active.sum()) <= 1
        assert there.rate == pytest.approx(max(0.0, math.log(5 / level) / 2))


def test_the_ends_of_the_curve() -> None:
    total = sum(EIGENVALUES)
    assert rd.reverse_water_filling(EIGENVALUES, distortion=total).rate == 0.0
    for wrong in (total + 0.1, 0.0, -1.0):
        with pytest.raises(ValueError, match="distortion must be"):
            rd.reverse_water_filling(EIGENVALUES, distortion=wrong)
    with pytest.raises(ValueError, match=r"distortion must be above 5.6 and at most 10.6"):
        rd.reverse_water_filling(EIGENVALUES, distortion=5.0, latent_dim=1)


def beta_vae_loss(weight: Tensor, variance: float, beta: float, *guide: Tensor) -> tuple[Any, ...]:
    """Rate and distortion of x = W z + s eps for x of covariance diag(l), with q(z | x) = N(A x, S)."""
    covariance = torch.diag(torch.tensor(EIGENVALUES, dtype=torch.float64))
    size, latents = weight.shape
    encoder, root = guide
    spread = root @ root.T
    second = encoder @ covariance @ encoder.T + spread  # E z z^T
    log_det = 2 * root.diagonal().abs().log().sum()
    rate = (second.trace() - latents - log_det) / 2
    error = covariance.trace() - 2 * (weight @ encoder @ covariance).trace()
    error = error + (weight.T @ weight @ second).trace()
    distortion = size / 2 * math.log(2 * math.pi * variance) + error / (2 * variance)
    return rate, distortion, error


@pytest.mark.parametrize("beta", [0.4, 1.0, 2.0, 4.0])
def test_the_linear_optimum_is_the_least_beta_elbo(beta: float) -> None:
    """A numerical minimum over W, A and S, which share no formula with it."""
    best = rd.linear_optimum(EIGENVALUES, NOISE, beta, latent_dim=4)
    weight, encoder = (
        torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((6, 4), (4, 6))
    )
    root = torch.eye(4, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, encoder, root],
        max_iter=3000,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Any:
        optimizer.zero_grad()
        rate, distortion, _ = beta_vae_loss(weight, NOISE, beta, encoder, root.tril())
        total = distortion + beta * rate
        total.backward()
        return total

    for _ in range(3):
        optimizer.step(loss)
    with torch.no_grad():
        rate, distortion, error = beta_vae_loss(weight, NOISE, beta, encoder, root.tril())
    total = best.distortion + beta * best.rate
    assert float(distortion + beta * rate) == pytest.approx(total, abs=1e-6)
    assert float(rate) == pytest.approx(best.rate, abs=1e-4)
    assert float(distortion) == pytest.approx(best.distortion, abs=1e-4)
    assert float(error) == pytest.approx(best.squared_error, abs=1e-4)
    found = torch.linalg.eigvalsh((weight @ weight.T).detach()).flip(0)
    torch.testing.assert_close(found, best.weight_eigenvalues, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_linear_optimum_is_that_of_probabilistic_pca(beta: float) -> None:
    x = gaussian_data(EIGENVALUES[:5])
    model = fitted_pca(x, 3, NOISE**0.5, beta)
    variance = float(model.log_sigma.detach().mul(2).exp())  # sigma was rounded to single precision
    best = rd.linear_optimum(EIGENVALUES[:5], variance, beta, latent_dim=3)
    found = torch.linalg.eigvalsh((model.weight @ model.weight.T).detach()).flip(0)
    torch.testing.assert_close(found, best.weight_eigenvalues, atol=1e-9, rtol=1e-9)
    if beta == 1.0:  # with the posterior as the guide
        assert best.elbo == pytest.approx(float(model.log_evidence(x).mean().detach()), abs=1e-9)
    # The best guide is the posterior under the noise beta s^2.
    model.log_sigma.data.add_(math.log(beta) / 2)
    prior = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    rate = torch.distributions.kl_divergence(model.posterior(x), prior).mean()
    assert float(rate.detach()) == pytest.approx(best.rate, abs=1e-9)
    json.dumps(best.to_dict())
    assert f"{int(best.active.sum())} of 5 dimensions" in str(best)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_a_linear_vae_that_is_trained_lies_on_the_curve(beta: float) -> None:
    x = gaussian_data(EIGENVALUES[:5], n=500).float()
    torch.manual_seed(0)
    model = ProbabilisticPCA((5,), 4, sigma=NOISE**0.5, learn_sigma=False)
    guide = FullCovariance((5,), 4, MLP(hidden=()))
    fit(
        *(model, guide, x),
        max_epochs=250,
        batch_size=500,
        learning_rate=0.05,
        lr_scheduler=partial(CosineAnnealingLR, T_max=250),
        objective=ELBO(beta=beta, num_particles=8),
        seed=0,
    )
    found = evaluate(model, guide, x, num_samples=400, method="guide", seed=0)
    best = rd.linear_optimum(EIGENVALUES[:5], NOISE, beta, latent_dim=4)
    assert found.rate.mean == pytest.approx(best.rate, rel=0.01)
    assert found.distortion.mean == pytest.approx(best.distortion, rel=0.01)


# -- indeterminacy ---------------------------------------------------------------------------------------

POPULATION = torch.tensor([0.3, 0.25, 0.15, 0.1, 0.1, 0.05, 0.05, 0.0], dtype=torch.float64)


def channel(sharpness: float, k: int = 8, seed: int = 0) -> Tensor:
    """Q(z | y) that knows nothing of y (0) or all of it (infinity)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, k, generator=generator, dtype=torch.float64)
    scores = noise + torch.where(torch.eye(8, k, dtype=torch.bool), sharpness, 0.0)
    return scores.softmax(1)


@pytest.mark.parametrize("k", [1, 3, 8, 12])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0, 5.0, 800.0])
def test_the_best_model_of_any_encoder_has_the_elbo_of_the_entropy(
    sharpness: float, k: int
) -> None:
    found = rd.best_model(POPULATION, channel(sharpness, k))
    truth = entropy(POPULATION)
    assert abs(found.elbo + truth) < 1e-12
    assert found.entropy == pytest.approx(truth, abs=1e-12)
    assert -1e-12 <= found.rate <= truth + 1e-12
    if sharpness == 0.0:
        assert found.rate < 1e-12
    if sharpness == 800.0 and k >= 8:
        assert found.rate == pytest.approx(truth, abs=1e-12)
    assert found.loss(1.0) == pytest.approx(truth, abs=1e-12)
    assert found.loss(2.5) == pytest.approx(truth + 1.5 * found.rate, abs=1e-12)
    torch.testing.assert_close(found.decoder.sum(1), torch.ones(k).double())


class Table(nn.Module):
    """A discrete pair: tables of p(z), p(y | z) and q(z | y), of which any may be trained."""

    def __init__(self, prior: Tensor, decoder: Tensor, encoder: Tensor) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = (
            nn.Parameter(table.clamp_min(1e-300).log()) for table in (prior, decoder, encoder)
        )

    def model(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("y", dist.Categorical(logits=self.decoder[z]), obs=y)

    def guide(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            q = dist.Categorical(logits=self.encoder[y.long()])
            pyro.sample("z", q, infer={"enumerate": "parallel"})

    def point(self, population: Tensor) -> tuple[float, float]:
        """Rate and distortion, by sums over the tables."""
        with torch.no_grad():
            log_q = self.encoder.log_softmax(1)
            joint = population.unsqueeze(1) * log_q.exp()
            rate = (joint * (log_q - self.prior.log_softmax(0))).sum()
            distortion = -(joint * self.decoder.log_softmax(1).T).sum()
        return float(rate), float(distortion)


@pytest.mark.parametrize("sharpness", [0.0, 2.0])
def test_the_library_measures_that_elbo(sharpness: float) -> None:
    population = POPULATION[:7]
    q = channel(sharpness)[:7]
    best = rd.best_model(population, q)
    table = Table(best.prior, best.decoder, q)
    found = evaluate(table.model, table.guide, torch.arange(7), num_samples=20, seed=0)
    weighed = float((population * found.log_likelihood.values).sum())
    assert weighed == pytest.approx(-entropy(population), abs=1e-9)
    rate, distortion = table.point(population)
    assert rate == pytest.approx(best.rate, abs=1e-9)
    assert distortion == pytest.approx(best.distortion, abs=1e-9)


def test_beta_1_is_where_the_optimum_jumps() -> None:
    """Tables fitted with SVI know all of y just below beta = 1, and nothing just above."""
    rows = torch.arange(4).repeat_interleave(torch.tensor([4, 2, 1, 1]))
    population = torch.tensor([4, 2, 1, 1]).double() / 8
    for beta, limit in ((0.7, entropy(population)), (1.4, 0.0)):
        torch.manual_seed(1)
        # With as few codes as values, some runs end where two values share a code.
        table = Table(torch.ones(12), torch.rand(12, 4) + 0.5, torch.rand(4, 12) + 0.5).double()
        fit(
            *(table.model, table.guide, rows),
            max_epochs=100,
            learning_rate=0.3,
            objective=ELBO(beta=beta),
            seed=0,
        )
        rate, distortion = table.point(population)
        assert rate == pytest.approx(limit, abs=0.02)
        # Nothing is below H(y).
        assert entropy(population) - 1e-9 <= rate + distortion < entropy(population) + 0.02


# -- Blahut and Arimoto ----------------------------------------------------------------------------------


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("k", [2, 3, 8])
def test_the_curve_of_a_uniform_source_under_hamming_distortion(k: int, slope: float) -> None:
    found = rd.blahut_arimoto(torch.full((k,), 1 / k), 1 - torch.eye(k), slope)
    d = found.distortion
    assert d == pytest.approx((k - 1) / (k - 1 + math.exp(slope)), abs=1e-9)
    truth = math.log(k) - binary_entropy(d) - d * math.log(k - 1)
    assert found.rate == pytest.approx(truth, abs=1e-8)
    assert found.error < 1e-9
    assert found.lower_bound <= truth + 1e-12
    assert found.warnings == ()


@pytest.mark.parametrize("p", [0.5, 0.3, 0.1])
def test_the_curve_of_a_coin(p: float) -> None:
    d = 0.4 * p
    slope = math.log((1 - d) / d)  # -dR/dD of R = h(p) - h(D)
    found = rd.blahut_arimoto([p, 1 - p], 1 - torch.eye(2), slope)
    assert found.distortion == pytest.approx(d, abs=1e-6)
    assert found.rate == pytest.approx(binary_entropy(p) - binary_entropy(d), abs=1e-6)
    # Beyond D = p, nothing needs to be said.
    nothing = rd.blahut_arimoto([p, 1 - p], 1 - torch.eye(2), 0.5 * math.log((1 - p) / p) or 1e-3)
    assert nothing.rate < 1e-6 or p == 0.5


def random_source(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(6, generator=generator, dtype=torch.float64)
    return source / source.sum(), 3 * torch.rand(6, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bounds_hold_the_minimum_and_no_channel_is_below(seed: int) -> None:
    source, costs = random_source(seed)
    exact = rd.blahut_arimoto(source, costs, 2.0, tolerance=1e-10)
    for iterations in (1, 3, 10):
        with_error = rd.blahut_arimoto(source, costs, 2.0, max_iterations=iterations)
        least = exact.rate + 2.0 * exact.distortion
        total = with_error.rate + 2.0 * with_error.distortion
        assert total - with_error.error - 1e-9 <= least <= total + 1e-9
    assert (
        "raise max_iterations"
        in rd.blahut_arimoto(source, costs, 2.0, max_iterations=1).warnings[0]
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        q = torch.randn(6, 4, generator=generator, dtype=torch.float64).mul(3).softmax(1)
        joint = q * source.unsqueeze(1)
        rate = float((joint * (q / joint.sum(0)).log()).sum())
        assert rate + 2.0 * float((joint * costs).sum()) >= exact.lower_bound + 2 * exact.distortion


def test_what_must_not_be_said_and_what_never_is() -> None:
    costs = torch.tensor([[0.0, 1.0], [torch.inf, 0.5], [torch.inf, torch.inf]])
    found = rd.blahut_arimoto([0.4, 0.6, 0.0], costs, 1.5)
    assert found.channel[1].tolist() == [0.0, 1.0]
    assert bool(found.channel.isfinite().all())
    assert math.isfinite(found.distortion)
    with pytest.raises(ValueError, match="nothing describes that y"):
        rd.blahut_arimoto([0.4, 0.5, 0.1], costs, 1.5)


@pytest.mark.parametrize("slope", [1.3, pytest.param(2.5, marks=pytest.mark.slow)])
def test_a_pair_fitted_by_svi_lies_on_or_above_the_curve(slope: float) -> None:
    """A decoder that is right with 0.8: -log p(y | z) is a Hamming distortion, up to scale and shift."""
    k, right = 4, 0.8
    decoder = torch.full((k, k), (1 - right) / (k - 1)).fill_diagonal_(right).double()
    rows = torch.arange(k).repeat_interleave(torch.tensor([4, 2, 1, 1]))
    population = torch.tensor([4, 2, 1, 1]).double() / 8
    torch.manual_seed(0)
    table = Table(torch.ones(k) / k, decoder, torch.rand(k, k) + 0.5).double()
    table.decoder.requires_grad_(False)
    exact = rd.blahut_arimoto(population, -decoder.log().T, slope)
    gaps = []
    for epochs in (2, 300):
        fit(
            *(table.model, table.guide, rows),
            max_epochs=epochs,
            learning_rate=0.3,
            objective=ELBO(beta=1 / slope),
            seed=0,
        )
        rate, distortion = table.point(population)
        gaps.append(rate + slope * distortion - exact.rate - slope * exact.distortion)
    assert gaps[0] > 0.01
    assert -1e-9 < gaps[1] < 1e-3
    assert rate == pytest.approx(exact.rate, rel=0.02)


# -- arguments -------------------------------------------------------------------------------------------

HAMMING = 1 - torch.eye(2)


def test_eigenvalues_of_a_singular_covariance_are_zero() -> None:
    """Those of five rows of 20 numbers, of which rounding makes some negative."""
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    assert float(found.min()) < 0
    exact = rd.reverse_water_filling(found[:4], 0.1)
    water = rd.reverse_water_filling(found, 0.1)
    assert water.rate == pytest.approx(exact.rate)
    assert float(water.squared_errors.min()) >= 0
    with pytest.raises(ValueError, match="not negative"):
        rd.reverse_water_filling([1.0, -1e-3], 0.1)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no level": (lambda: rd.reverse_water_filling([1.0]), ValueError, "either water_level or"),
    "a text": (
        lambda: rd.reverse_water_filling("one", 1.0),
        TypeError,
        "eigenvalues must be an array of numbers",
    ),
    "a matrix": (
        lambda: rd.reverse_water_filling(torch.eye(2), 1.0),
        ValueError,
        r"eigenvalues must have the shape \(m,\)",
    ),
    "a negative variance": (
        lambda: rd.linear_optimum([1.0, -1.0], 1.0),
        ValueError,
        "not negative",
    ),
    "no noise": (lambda: rd.linear_optimum([1.0], 0.0), ValueError, "noise_variance must be"),
    "beta 0": (lambda: rd.linear_optimum([1.0], 1.0, 0.0), ValueError, "beta must be positive"),
    "no latents": (
        lambda: rd.linear_optimum([1.0], 1.0, latent_dim=0),
        ValueError,
        "latent_dim must be at least 1",
    ),
    "no probabilities": (
        lambda: rd.blahut_arimoto([0.5, 0.6], HAMMING, 1.0),
        ValueError,
        "source must hold probabilities",
    ),
    "other rows": (
        lambda: rd.blahut_arimoto([0.5, 0.2, 0.3], HAMMING, 1.0),
        ValueError,
        "a row for each of the 3 values of the source, got 2",
    ),
    "slope 0": (
        lambda: rd.blahut_arimoto([0.5, 0.5], HAMMING, 0.0),
        ValueError,
        "slope must be positive",
    ),
    "NaN": (
        lambda: rd.blahut_arimoto([0.5, 0.5], HAMMING * torch.nan, 1.0),
        ValueError,
        "no NaN",
    ),
    "an encoder of another size": (
        lambda: rd.best_model([1.0], [[0.5, 0.5], [1.0, 0.0]]),
        ValueError,
        "a row for each of the 1 values of the population, got 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    call, kind, told = WRONG[name]
    with pytest.raises(kind, match=told):
        call()
