"""The annealing path: latents of all kinds in unconstrained coordinates, and its recorded densities."""

from __future__ import annotations

import copy
import itertools
import logging
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import agrees, normal_normal, vae
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_vae.evaluation import (
    Annealed,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.path import Path
from ppl_vae.guides import MixtureOfGaussians
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, MixturePrior
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.stats import Estimate


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def gamma_poisson_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal((1 + x).log() / 2, 1.0))


def negative_binomial(x: Tensor) -> Tensor:
    """Its exact log p(x): a success probability of 1 / (1 + 0.5)."""
    log_prob: Tensor = dist.NegativeBinomial(2.0, probs=1 / 1.5 * torch.ones(len(x))).log_prob(x)
    return log_prob


def test_positive_latents_gamma_poisson() -> None:
    x = torch.tensor([0.0, 1.0, 4.0, 9.0])
    truth = negative_binomial(x)
    for start in (None, gamma_poisson_guide):
        found = annealed_importance_sampling(
            gamma_poisson, start, x, num_chains=200, num_steps=50, num_leapfrog=5, seed=0
        )
        agrees(found.log_likelihood, found.log_likelihood_error, truth)
        assert (found.log_likelihood_error < 0.07).all()


FROM = pytest.mark.parametrize("from_prior", [False, pytest.param(True, marks=pytest.mark.slow)])


@FROM
def test_the_sandwich_of_positive_latents(from_prior: bool) -> None:
    sandwich = bidirectional_monte_carlo(
        gamma_poisson,
        None if from_prior else gamma_poisson_guide,
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
            chain.model, guide, x, num_chains=100, num_steps=50, num_leapfrog=5, seed=0
        )
        agrees(found.log_likelihood, found.log_likelihood_error, chain.truth(x))


@pytest.mark.slow
@FROM
def test_the_sandwich_of_sites_in_nested_plates(from_prior: bool) -> None:
    chain, x = Chain(), torch.tensor([[1.0, 0.5, 2.0], [-1.0, 0.0, 1.0], [4.0, 3.0, 1.5]])
    guide = None if from_prior else chain.guide
    sandwich = bidirectional_monte_carlo(
        chain.model,
        guide,
        x.repeat(20, 1),
        num_steps=300 if from_prior else 150,
        num_leapfrog=5,
        seed=0,
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
            model, start, x, num_chains=300, num_steps=40, num_leapfrog=5, seed=0
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
    calls = []

    def guide(x: Tensor) -> None:
        calls.append(len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Unsupported(0.7 * x, 0.6))

    x = torch.tensor([-1.0, 0.3, 2.0])
    found = annealed_importance_sampling(
        normal_normal, guide, x, num_chains=100, num_steps=30, seed=0
    )
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(x)
    agrees(found.log_likelihood, found.log_likelihood_error, truth)
    assert len(calls) < 40  # all chains at once, recorded


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
        found = annealed_importance_sampling(model, guide, x, num_steps=80, num_leapfrog=5, seed=0)
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
        OneAtATime().model, None, x, num_chains=10, num_steps=25, num_leapfrog=4, seed=0
    )
    agrees(
        found.log_likelihood,
        found.log_likelihood_error,
        dist.Normal(0.0, 1.25**0.5).log_prob(x),
    )


class Counted(nn.Module):
    """A model that counts how often it is run."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model
        self._count = itertools.count()  # no number and no tensor: those may not change

    @property
    def calls(self) -> int:
        return next(copy.copy(self._count))

    def forward(self, x: Tensor) -> None:
        next(self._count)
        self.model(x)


@pytest.mark.parametrize("from_prior", [pytest.param(True, marks=pytest.mark.slow), False])
def test_pyro_runs_a_few_times_and_the_result_is_what_it_would_say(
    from_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide, x = vae()

    def run(num_steps: int = 21) -> Annealed:
        start = None if from_prior else guide
        return annealed_importance_sampling(
            counted, start, x, num_chains=4, num_steps=num_steps, num_leapfrog=5, seed=3
        )

    counted = Counted(model)
    recorded = run()
    few = float(counted.calls)
    run(42)
    assert float(counted.calls) == 2 * few
    assert few < 60
    monkeypatch.setattr(Path, "record", lambda self, u, check: self.densities)
    plain = run()
    assert float(counted.calls) > 2 * few + 200  # 20 + 20 transitions of 5 gradients
    torch.testing.assert_close(recorded.log_likelihood.values, plain.log_likelihood.values)
    torch.testing.assert_close(recorded.acceptance, plain.acceptance)


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


class _Casts(nn.Module):
    """Networks of float32 for rows of float64; log p(x) is that of a multivariate normal.

    The latent `z` is of float32, and `w` of float64, if there is one.
    """

    def __init__(self, two_latents: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 1), nn.Linear(1, 3)
        self.two_latents = two_latents

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            mean = self.decoder(z)
            if self.two_latents:
                zero = torch.zeros(len(x), 1, dtype=torch.float64)
                mean = mean + pyro.sample("w", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.float()), 1.0).to_event(1))
            if self.two_latents:
                pyro.sample("w", dist.Normal(x[:, :1], 1.0).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        weight, bias = self.decoder.weight.detach().double(), self.decoder.bias.detach().double()
        covariance = weight @ weight.T + torch.eye(3) + float(self.two_latents)
        log_prob: Tensor = dist.MultivariateNormal(bias, covariance).log_prob(x)
        return log_prob


DTYPES = [(True, False, 5), (True, True, 1), (False, False, 1)]
"""Each value of the three with each other one: the others take the same paths."""


@pytest.mark.slow(but=("True-False-5",))
@pytest.mark.parametrize(
    ("two_latents", "prior", "num_leapfrog"),  # one leapfrog step is run by Pyro, five are recorded
    [
        pytest.param(*case, marks=() if case in DTYPES else pytest.mark.slow)
        for case in itertools.product((False, True), (False, True), (1, 5))
    ],
)
def test_rows_of_another_dtype_than_the_networks(
    two_latents: bool, prior: bool, num_leapfrog: int
) -> None:
    pair, x = _Casts(two_latents), torch.randn(10, 3, dtype=torch.float64)
    guide = None if prior else pair.guide
    settings: Any = {"num_steps": 60, "num_leapfrog": num_leapfrog, "seed": 0}
    found = annealed_importance_sampling(pair.model, guide, x, **settings)
    agrees(found.log_likelihood, found.log_likelihood_error, pair.log_evidence(x))

    bounds = bidirectional_monte_carlo(pair.model, guide, x, **settings)
    assert isinstance(bounds.data, Tensor)
    assert bounds.data.dtype == torch.float64
    truth = pair.log_evidence(bounds.data)
    agrees(bounds.lower, bounds.lower_error, truth)
    assert abs(bounds.upper.mean - float(truth.mean())) < 0.2


def observes_its_cast(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.float())
        pyro.sample("y", dist.Normal(z, 1.0), obs=y.float())


def test_an_argument_that_the_model_casts_is_found() -> None:
    """Which argument a site observes is seen by its values, whatever their dtype."""
    x, y = torch.randn(2, 10, dtype=torch.float64)
    found = bidirectional_monte_carlo(observes_its_cast, None, (x, y), num_steps=100, seed=0)
    data = torch.stack(tuple(found.data), -1)
    assert data.dtype == torch.float64
    covariance = torch.eye(2, dtype=torch.float64) + 1
    truth = dist.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(data)
    agrees(found.lower, found.lower_error, truth)
