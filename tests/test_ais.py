"""Annealed importance sampling and the sandwich against closed forms and quadrature."""

from __future__ import annotations

import gc
import json
import logging
import math
import weakref
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.evaluation import (
    Annealed,
    Densities,
    Point,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    evaluate,
    hmc,
)
from ppl_vae.evaluation.hmc import leapfrog, sigmoidal, transition
from ppl_vae.evaluation.path import Path
from ppl_vae.evaluation.sandwich import simulate
from ppl_vae.guides import Exact, FullCovariance, MeanField, MixtureOfGaussians
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, MixturePrior, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.stats import Estimate

# -- Hamiltonian Monte Carlo -----------------------------------------------------------------------------

PRECISION = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
CENTRE = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gaussian_path(u: Tensor) -> Point:
    """From N(0, I) to N(CENTRE, PRECISION^-1); not normalized."""
    away = u - CENTRE
    end, d_end = -0.5 * ((away @ PRECISION) * away).sum(-1), -away @ PRECISION
    base, d_base = -0.5 * u.square().sum(-1), -u
    return Point(u, base, end - base, d_base, d_end - d_base)


def double_well(u: Tensor) -> Point:
    """A density with two modes, whose leapfrog map is not linear."""
    zero = torch.zeros_like(u)
    return Point(u, -(u.square() - 1).square().sum(-1), zero[..., 0], -4 * u * (u**2 - 1), zero)


@pytest.mark.parametrize("densities", [gaussian_path, double_well])
def test_leapfrog_goes_back_the_way_it_came(densities: Densities) -> None:
    u = torch.randn(50, 3, 2, dtype=torch.float64)
    momentum = torch.randn_like(u)
    step = torch.tensor([[0.1, 0.2], [0.05, 0.1], [0.15, 0.02]], dtype=torch.float64)
    end, turned = leapfrog(densities, densities(u), momentum, 0.7, step, 10)
    assert float((end.u - u).abs().min(0).values.max()) > 1e-3
    back, restored = leapfrog(densities, end, -turned, 0.7, step, 10)
    torch.testing.assert_close(back.u, u, atol=1e-10, rtol=0.0)
    torch.testing.assert_close(restored, -momentum, atol=1e-10, rtol=0.0)


def test_leapfrog_keeps_volume_and_nearly_energy() -> None:
    def flow(state: Tensor) -> Tensor:
        u, momentum = state.reshape(2, 1, 1, 2)
        end, new = leapfrog(double_well, double_well(u), momentum, 1.0, torch.tensor(0.05), 10)
        return torch.cat([end.u.flatten(), new.flatten()])

    state = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow, state)
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-9)

    def energy(state: Tensor) -> float:
        potential = -double_well(state[:2].reshape(1, 1, 2)).base
        return float(potential + 0.5 * state[2:].square().sum())

    assert abs(energy(flow(state)) - energy(state)) < 0.05


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_transitions_leave_a_gaussian_as_it_is(beta: float) -> None:
    precision = beta * PRECISION + (1 - beta) * torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (beta * PRECISION @ CENTRE)
    exact = dist.MultivariateNormal(mean, covariance)
    point = gaussian_path(exact.sample((20_000, 1)))
    step = torch.tensor(
        [[0.9, 1.3]], dtype=torch.float64
    )  # large: without rejection it would be wrong
    total = 0.0
    for _ in range(15):
        point, acceptance = transition(gaussian_path, point, beta, step, 3)
        total += float(acceptance.mean()) / 15
    assert 0.3 < total < 0.9
    u = point.u[:, 0]
    error = covariance.diagonal().sqrt() / math.sqrt(len(u))
    assert (((u.mean(0) - mean) / error).abs() < 4).all()
    # Var of a sample covariance entry: (s_ii s_jj + s_ij^2) / n.
    scales = torch.outer(covariance.diagonal(), covariance.diagonal())
    error = ((scales + covariance.square()) / len(u)).sqrt()
    assert (((u.T.cov() - covariance) / error).abs() < 4).all()
    # E[u'Au] = number of dimensions; its fourth moment sees tails that a covariance does not.
    radius = (((u - mean) @ precision) * (u - mean)).sum(-1)
    assert float(radius.square().mean()) == pytest.approx(8.0, abs=4 * math.sqrt(320 / len(u)))


def test_transitions_move_away_from_where_they_were() -> None:
    point = gaussian_path(torch.full((4000, 1, 2), 5.0, dtype=torch.float64))
    for _ in range(60):
        point, _ = transition(gaussian_path, point, 1.0, torch.full((1, 2), 0.4), 5)
    error = torch.linalg.inv(PRECISION).diagonal().sqrt() / math.sqrt(4000)
    assert (((point.u[:, 0].mean(0) - CENTRE) / error).abs() < 5).all()


def test_a_trajectory_that_leaves_the_numbers_is_refused() -> None:
    point = double_well(torch.full((3, 2, 2), 50.0))
    new, acceptance = transition(double_well, point, 1.0, torch.full((2, 2), 1e3), 10)
    assert torch.equal(new.u, point.u)
    assert torch.equal(acceptance, torch.zeros(3, 2))


def test_steps_are_tuned_to_each_row() -> None:
    scales = torch.tensor([0.01, 1.0, 30.0]).reshape(1, 3, 1)

    def widths(u: Tensor) -> Point:
        zero = torch.zeros_like(u)
        return Point(u, -0.5 * (u / scales).square().sum(-1), zero[..., 0], -u / scales**2, zero)

    start = widths(scales * torch.randn(16, 3, 5))
    steps = hmc.tune(widths, start, sigmoidal(60), torch.ones(3, 5), 10)
    relative = steps.at(1.0)[:, 0] / scales.flatten()
    assert float(relative.max() / relative.min()) < 1.5
    accepted: Any = 0.0
    point = start
    for _ in range(50):
        point, acceptance = transition(widths, point, 1.0, steps.at(1.0), 10)
        accepted = accepted + acceptance.mean(0) / 50
    assert ((accepted - hmc.TARGET_ACCEPTANCE).abs() < 0.15).all()


def test_steps_between_temperatures_are_interpolated_and_beyond_them_kept() -> None:
    log_steps = torch.tensor([[0.0], [2.0], [4.0]])
    steps = hmc.StepSizes([0.2, 0.4, 0.8], log_steps, torch.ones(1, 1))
    for beta, expected in ((0.0, 0.0), (0.2, 0.0), (0.3, 1.0), (0.6, 3.0), (0.8, 4.0), (1.0, 4.0)):
        assert float(steps.at(beta).log()) == pytest.approx(expected, abs=1e-5)


def test_the_schedule_rises_from_0_to_1_like_a_logistic_function() -> None:
    betas = torch.tensor(sigmoidal(100), dtype=torch.float64)
    assert len(betas) == 101
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    steps = betas.diff()
    assert (steps > 0).all()
    torch.testing.assert_close(steps, steps.flip(0))
    assert steps[50] / steps[0] == pytest.approx(0.25 / (0.9820137 * 0.0179862), rel=0.05)
    assert sigmoidal(1) == [0.0, 1.0]


# -- probabilistic PCA, with poor guides ------------------------------------------------------------------


def pca(seed: int = 0, n: int = 20) -> tuple[ProbabilisticPCA, Tensor]:
    """Ten dimensions, four latents, and rows from the model itself."""
    generator = torch.Generator().manual_seed(seed)
    model = ProbabilisticPCA((10,), 4, sigma=0.3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(10, 4, generator=generator) / 2)
        z = torch.randn(n, 4, generator=generator)
        x = z @ model.weight.T + 0.3 * torch.randn(n, 10, generator=generator)
    return model, x


def narrow_guide(model: ProbabilisticPCA) -> MeanField:
    """A linear guide that is off by a prior's standard deviation, and too sure."""
    guide = MeanField((10,), 4, network=MLP(hidden=()))
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias[:4] = 0.7
        guide.head.bias[4:] = math.log(math.expm1(0.3))
    return guide


def wide_guide(model: ProbabilisticPCA) -> FullCovariance:
    """An untrained guide."""
    return FullCovariance((10,), 4)


def agrees(found: Estimate, error: Tensor, truth: Tensor, sigmas: float = 4.5) -> None:
    """Every row within its own error, and the mean over rows within that of the mean."""
    miss = found.values.double() - truth.detach().double()
    assert ((miss / error.double()).abs() < sigmas).all()
    # log E w > E log w: the log of a mean over chains is low by about half its variance.
    bias = -0.5 * float(error.double().square().mean())
    mean_error = float(error.double().square().sum().sqrt()) / len(miss)
    assert abs(float(miss.mean()) - bias) < 3.5 * mean_error


@pytest.mark.parametrize("start", [narrow_guide, wide_guide, None])
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
        plain = evaluate(model, guide, x, num_samples=1000, seed=0)
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


def normal_normal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


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


# -- latents of all kinds --------------------------------------------------------------------------------


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def negative_binomial(x: Tensor) -> Tensor:
    """Its exact log p(x): a success probability of 1 / (1 + 0.5)."""
    log_prob: Tensor = dist.NegativeBinomial(2.0, probs=1 / 1.5 * torch.ones(len(x))).log_prob(x)
    return log_prob


def test_positive_latents_gamma_poisson() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((1 + x).log() / 2, 1.0))

    x = torch.tensor([0.0, 1.0, 4.0, 9.0])
    truth = negative_binomial(x)
    for start in (None, guide):
        found = annealed_importance_sampling(
            gamma_poisson, start, x, num_chains=200, num_steps=50, num_leapfrog=5, seed=0
        )
        agrees(found.log_likelihood, found.log_likelihood_error, truth)
        assert (found.log_likelihood_error < 0.07).all()
        sandwich = bidirectional_monte_carlo(
            gamma_poisson,
            start,
            torch.zeros(200),
            num_chains=20,
            num_steps=100,
            num_leapfrog=5,
            seed=1,
        )
        data = sandwich.data
        assert isinstance(data, Tensor)
        truth_of_data = negative_binomial(data)
        below = Estimate(truth_of_data - sandwich.lower.values)
        above = Estimate(sandwich.upper.values - truth_of_data)
        assert -3 * below.standard_error < below.mean < 0.05
        assert -3 * above.standard_error < above.mean < 0.05


def test_latents_on_a_simplex_dirichlet_multinomial() -> None:
    concentration = torch.tensor([0.7, 1.5, 3.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(concentration))
            pyro.sample("x", dist.Multinomial(10, p, validate_args=False), obs=x)

    x = torch.tensor([[10.0, 0.0, 0.0], [1.0, 3.0, 6.0]])
    found = annealed_importance_sampling(
        model, None, x, num_chains=200, num_steps=50, num_leapfrog=5, seed=0
    )
    truth = dist.DirichletMultinomial(concentration, 10).log_prob(x)
    agrees(found.log_likelihood, found.log_likelihood_error, truth)


def test_a_support_that_depends_on_another_latent() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(0.0, 2.0))
            b = pyro.sample("b", dist.Uniform(-a, a))
            pyro.sample("x", dist.Normal(b, 0.3), obs=x)

    x = torch.tensor([0.0, 1.2])
    a = (torch.arange(4000, dtype=torch.float64) + 0.5) / 2000
    normal = dist.Normal(torch.zeros((), dtype=torch.float64), 0.3)
    inside = normal.cdf(x[:, None] + a) - normal.cdf(x[:, None] - a)
    truth = (inside / (2 * a)).mean(-1).log()  # b integrated out in closed form, a by quadrature
    found = annealed_importance_sampling(
        model, None, x, num_chains=300, num_steps=50, num_leapfrog=5, seed=0
    )
    agrees(found.log_likelihood, found.log_likelihood_error, truth)


class Chain:
    """x_t ~ N(b z_t + c, s), z_t ~ N(a, 0.5) for three times, a ~ N(0, 1): sites of two shapes."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(a, 0.5))
                pyro.sample("x", dist.Normal(2 * z + 1, 0.4), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("a", dist.Normal(torch.zeros(len(x), 1), 2.0))
            with pyro.plate("time", 3, dim=-1):
                pyro.sample("z", dist.Normal(x / 3, 0.7))

    def truth(self, x: Tensor) -> Tensor:
        covariance = 4 * (torch.ones(3, 3) + 0.25 * torch.eye(3)) + 0.16 * torch.eye(3)
        log_prob: Tensor = dist.MultivariateNormal(torch.ones(3), covariance).log_prob(x)
        return log_prob


def test_sites_in_nested_plates() -> None:
    chain, x = Chain(), torch.tensor([[1.0, 0.5, 2.0], [-1.0, 0.0, 1.0], [4.0, 3.0, 1.5]])
    for guide in (None, chain.guide):
        found = annealed_importance_sampling(
            chain.model, guide, x, num_chains=200, num_steps=200, num_leapfrog=5, seed=0
        )
        agrees(found.log_likelihood, found.log_likelihood_error, chain.truth(x))
        sandwich = bidirectional_monte_carlo(
            chain.model, guide, x.repeat(20, 1), num_steps=300, num_leapfrog=5, seed=0
        )
        assert sandwich.gap.mean < 0.15
        truth = chain.truth(sandwich.data).double()  # type: ignore[arg-type]
        assert Estimate(sandwich.upper.values - truth).mean > -0.1
        assert Estimate(truth - sandwich.lower.values).mean > -0.1


def test_a_latent_that_the_model_sums_out() -> None:
    weights, places = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0])
    model = programs.mixture_prior(weights, places, width=0.5, noise=0.3)
    guide = programs.normal_guide(0.5, 0.8)
    x = torch.tensor([-2.2, 0.0, 1.3])
    truth = dist.Normal(places, 0.34**0.5).log_prob(x[:, None]).exp().mv(weights).log()
    for start in (None, guide):
        found = annealed_importance_sampling(
            model, start, x, num_chains=300, num_steps=100, num_leapfrog=5, seed=0
        )
        agrees(found.log_likelihood, found.log_likelihood_error, truth)


def test_a_guide_with_parameters_for_each_row() -> None:
    guide = AutoNormal(gamma_poisson)  # draws a real number, of which the rate is a function
    x = torch.tensor([0.0, 1.0, 4.0])
    guide(x)
    pyro.clear_param_store()
    found = annealed_importance_sampling(
        gamma_poisson, guide, x, num_chains=200, num_steps=60, num_leapfrog=5, seed=0
    )
    agrees(found.log_likelihood, found.log_likelihood_error, negative_binomial(x))
    with pytest.raises(PairError, match="'rate_unconstrained', which the model does not have"):
        bidirectional_monte_carlo(gamma_poisson, guide, x, num_steps=2)


class Unsupported(dist.Normal):
    """A distribution that states no support, as flows do not."""

    @property
    def support(self) -> Any:  # type: ignore[override]
        raise NotImplementedError


def test_a_site_without_a_support_is_real() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Unsupported(0.7 * x, 0.6))

    x = torch.tensor([-1.0, 0.3, 2.0])
    found = annealed_importance_sampling(
        normal_normal, guide, x, num_chains=100, num_steps=30, seed=0
    )
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(x)
    agrees(found.log_likelihood, found.log_likelihood_error, truth)


def test_mixtures_as_guide_and_as_prior() -> None:
    torch.manual_seed(0)
    model: Any = VAE((3,), 2, MLP(hidden=()), Gaussian(0.5), MixturePrior(components=3))
    x = torch.randn(6, 3)
    prior = model.prior()
    of_z = prior.component_distribution.base_dist
    with torch.no_grad():  # the decoder is linear, so that p(x) is a mixture of normals
        origin = model.decode(torch.zeros(2)).mean
        weight = model.decode(torch.eye(2)).mean - origin
        covariance = weight.mT @ of_z.variance.diag_embed() @ weight + 0.25 * torch.eye(3)
        of_x = dist.MultivariateNormal(of_z.mean @ weight + origin, covariance)
        truth = dist.MixtureSameFamily(prior.mixture_distribution, of_x).log_prob(x)
    for guide in (None, MixtureOfGaussians((3,), 2, MLP(hidden=(4,)), components=2)):
        found = annealed_importance_sampling(model, guide, x, num_steps=100, seed=0)
        agrees(found.log_likelihood, found.log_likelihood_error, truth)
        assert found.warnings == ()


def test_a_mixture_whose_components_have_bounds_of_their_own_is_refused() -> None:
    def guide(x: Tensor) -> None:
        ends = torch.tensor([[1.0, 2.0]]).expand(len(x), 2)
        parts = dist.Uniform(-ends, ends)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=ends), parts))

    with pytest.raises(PairError, match=r"site 'z' has the support MixtureSameFamily"):
        annealed_importance_sampling(normal_normal, guide, torch.zeros(3), num_steps=2)


class OneAtATime(nn.Module):
    """A pair that does not run with a dimension of samples."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            assert z.dim() == 2
            pyro.sample("x", dist.Normal(z[:, 0], 0.5), obs=x)


def test_a_pair_that_does_not_vectorize() -> None:
    x = torch.tensor([-1.0, 0.3, 2.0])
    found = annealed_importance_sampling(
        OneAtATime().model, None, x, num_chains=10, num_steps=60, num_leapfrog=4, seed=0
    )
    agrees(
        found.log_likelihood,
        found.log_likelihood_error,
        dist.Normal(0.0, 1.25**0.5).log_prob(x),
    )


# -- recording, memory, seeds ----------------------------------------------------------------------------


def vae() -> tuple[VAE, MeanField, Tensor]:
    model = VAE((1, 4, 4), 3, network=MLP(hidden=(8,)))
    guide = MeanField((1, 4, 4), 3, network=MLP(hidden=(8,)))
    return model, guide, (torch.rand(6, 1, 4, 4) < 0.4).float()


class Counted(nn.Module):
    """A model that counts how often it is run."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        self.calls = torch.zeros(())  # no plain number: those may not change

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        self.model(x)


@pytest.mark.parametrize("from_prior", [True, False])
def test_pyro_runs_a_few_times_and_the_result_is_what_it_would_say(
    from_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide, x = vae()

    def run(num_steps: int = 30) -> Annealed:
        start = None if from_prior else guide
        return annealed_importance_sampling(
            counted, start, x, num_chains=4, num_steps=num_steps, num_leapfrog=5, seed=3
        )

    counted = Counted(model)
    recorded = run()
    few = float(counted.calls)
    run(60)
    assert float(counted.calls) == 2 * few
    assert few < 60
    monkeypatch.setattr(Path, "record", lambda self, u, check: self.densities)
    plain = run()
    assert float(counted.calls) > 2 * few + 290  # 29 + 29 transitions of 5 gradients
    for a, b in ((recorded, plain), (run(), plain)):
        torch.testing.assert_close(a.log_likelihood.values, b.log_likelihood.values)
        torch.testing.assert_close(a.acceptance, b.acceptance)


def test_programs_that_cannot_be_recorded_are_run(caplog: pytest.LogCaptureFixture) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 0.5 if float(z.detach().sum()) < 1e6 else 1.0
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.tensor([-1.0, 0.3, 2.0])
    caplog.set_level(logging.INFO)
    found = annealed_importance_sampling(
        model, None, x, num_chains=16, num_steps=40, num_leapfrog=4, seed=0
    )
    assert "cannot be recorded" in caplog.text
    expected = annealed_importance_sampling(
        normal_normal, None, x, num_chains=16, num_steps=40, num_leapfrog=4, seed=0
    )
    assert torch.equal(found.log_likelihood.values, expected.log_likelihood.values)


def test_a_recording_that_does_not_agree_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def model(x: Tensor) -> None:
        if torch.is_grad_enabled():  # not while it is surveyed
            calls.append(1)
        scale = 0.5 if len(calls) // 2 % 2 else 0.6  # the start and the model run it once each
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    caplog.set_level(logging.INFO)
    annealed_importance_sampling(model, None, torch.ones(2), num_steps=30, num_leapfrog=4)
    assert "differ from Pyro's" in caplog.text


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                self.now += size
                weakref.finalize(tensor, self._gone, size)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def test_memory_does_not_grow_with_temperatures_or_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**21)
    model, guide, x = vae()
    most = []
    for rows, num_steps in ((60, 50), (60, 200), (600, 20)):
        gc.collect()  # what cycles hold of the run before is not this one's
        with Alive() as alive:
            annealed_importance_sampling(
                model, guide, x[:1].expand(rows, 1, 4, 4), num_steps=num_steps, num_leapfrog=1
            )
        most.append(alive.most)
    # Of a temperature, each row's step size and what it is tuned by are kept, but no state of its chains,
    # which would be 60 rows x 16 chains x latents.
    assert most[1] - most[0] < (200 - 50) * 60 * 24
    # Ten times the rows come in chunks.
    assert max(most) < 2**21
    assert most[2] < 5 * most[0]


@pytest.mark.parametrize("budget", [1, 2**14])
def test_chains_and_rows_in_parts(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", budget)
    model, x = pca(n=5)
    guide = Exact(model)
    found = annealed_importance_sampling(
        model, guide, x, num_chains=7, num_steps=3, num_leapfrog=2, seed=0
    )
    truth = model.log_evidence(x).detach().double()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.ess, torch.full_like(truth, 7.0), atol=0.01, rtol=0.0)
    assert ((found.acceptance > 0) & (found.acceptance <= 1)).all()
    sandwich = bidirectional_monte_carlo(model, guide, x, num_chains=7, num_steps=3, seed=0)
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
    found = annealed_importance_sampling(model, Exact(model), loader, num_chains=2, num_steps=3)
    truth = model.log_evidence(x).detach().double()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-3, rtol=0.0)


def test_float64() -> None:
    model, x = pca(n=3)
    model, x = model.double(), x.double()
    found = annealed_importance_sampling(model, Exact(model), x, num_chains=2, num_steps=60, seed=0)
    truth = model.log_evidence(x).detach()
    torch.testing.assert_close(found.log_likelihood.values, truth, atol=1e-9, rtol=0.0)


# -- the sandwich ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [narrow_guide, None])
def test_the_sandwich_closes_on_the_evidence(start: Any) -> None:
    model, _ = pca()
    guide = None if start is None else start(model)
    gaps = []
    for num_steps in (15, 500):
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
    assert found.meets(0.15)
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
        (teacher_forced, torch.ones(4, 2), "observes at site 'x'"),
        (tempered, torch.ones(4), "site 'extra' is a factor"),
        (of_two, (torch.ones(4), torch.ones(4)), "none of the model's arguments"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model: Any, x: Any, message: str) -> None:
    with pytest.raises(PairError, match=message):
        bidirectional_monte_carlo(model, None, x, num_steps=2, seed=0)


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


# -- what is refused, and what is said -------------------------------------------------------------------


def test_discrete_latents_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(PairError, match="latent site 'c' is discrete"):
        annealed_importance_sampling(model, None, torch.ones(3))


def test_latents_of_all_rows_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    with pytest.raises(PairError, match="'w' belongs to all rows"):
        annealed_importance_sampling(model, None, torch.ones(3))


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
