"""The importance-weighted bound against quadrature, enumeration, and the ELBO of one sample."""

from __future__ import annotations

import math

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from programs import (
    GAUSSIAN_PAIRS,
    LOCS,
    LOG_2PI,
    WEIGHTS,
    Conjugate,
    own_store,
    run,
    subsampled,
    subsampled_guide,
    with_global,
    with_global_guide,
)
from torch import Tensor

from ppl_vae.objectives import (
    ImportanceWeightedELBO,
    TraceELBO,
)
from ppl_vae.pairs import Pair, PairError, find_layout


@pytest.mark.parametrize("name", ["several sites", "subsampled", "plates inside"])
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_one_importance_sample_is_the_elbo(name: str, beta: float) -> None:
    model, guide = GAUSSIAN_PAIRS[name]
    x = torch.randn(6, 3)

    def grad(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, [pyro.get_param_store()._params["a"]])[0]

    pair = Pair(model, guide)
    with pair.scope():
        layout = find_layout(pair, x)
        pyro.set_rng_seed(1)
        ours = ImportanceWeightedELBO(num_particles=1)(pair, layout, x, beta)
        pyro.set_rng_seed(1)
        elbo = TraceELBO()(pair, layout, x, beta)
        assert float(ours.loss.detach()) == pytest.approx(float(elbo.loss.detach()), rel=1e-5)
        assert float(ours.elbo) == pytest.approx(float(elbo.elbo), rel=1e-5)
        assert float(ours.rate) == pytest.approx(float(elbo.rate), rel=1e-4)
        assert float(grad(ours.loss)) == pytest.approx(float(grad(elbo.loss)), rel=1e-4)


def quadrature(pair: Conjugate, x: float, beta: float, nodes: int = 60) -> Tensor:
    """E log 1/2 (w_1 + w_2) over two standard normals by Gauss-Hermite; differentiable."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    eps = torch.tensor(points)
    probability = torch.tensor(weights / weights.sum())
    w, log_s, a, c, t = pair.leaves.values()
    z = a * x + c + t.exp() * eps
    log_q = -0.5 * eps**2 - t - 0.5 * LOG_2PI
    log_prior = -0.5 * z**2 - 0.5 * LOG_2PI
    log_x = -0.5 * ((x - w * z) / log_s.exp()) ** 2 - log_s - 0.5 * LOG_2PI
    log_w = log_x + beta * (log_prior - log_q)
    both = torch.logaddexp(log_w[:, None], log_w[None, :]) - math.log(2)
    return (probability[:, None] * probability[None, :] * both).sum()


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "looped"])
def test_importance_weighted_bound_and_gradient_against_quadrature(
    vectorized: bool, beta: float
) -> None:
    pair = Conjugate()
    exact = quadrature(pair, 0.8, beta)
    expected = {"loss": -float(exact.detach()), **{n: -g for n, g in pair.grad(exact).items()}}
    x = torch.full((2000,), 0.8, dtype=torch.float64)
    draws = []
    for _ in range(20):
        loss = run(
            ImportanceWeightedELBO(num_particles=2), pair.model, pair.guide, x, beta, vectorized
        ).loss
        draws.append({"loss": float(loss.detach()), **pair.grad(loss)})
    for name, value in expected.items():
        values = np.array([draw[name] for draw in draws])
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert error < 0.05
        assert abs(values.mean() - value) < 4 * error, name


def test_importance_weighted_bound_rises_to_the_evidence() -> None:
    pair = Conjugate()
    x = torch.linspace(-2, 2, 500, dtype=torch.float64).repeat(4)
    s2 = math.exp(2 * -0.4) + 1.3**2
    evidence = float((-0.5 * x**2 / s2 - 0.5 * math.log(2 * math.pi * s2)).mean())
    bounds = [
        -float(
            run(ImportanceWeightedELBO(num_particles=k), pair.model, pair.guide, x).loss.detach()
        )
        for k in (1, 2, 4, 16, 64, 1000)
    ]
    assert bounds == sorted(bounds)
    rate, distortion = pair.rate_and_distortion(x)
    assert bounds[0] == pytest.approx(-(rate + distortion), abs=0.1)
    assert bounds[-1] < evidence + 0.002
    assert bounds[-1] == pytest.approx(evidence, abs=0.01)


@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_score_function_gradient_of_the_bound_by_enumeration(vectorized: bool, beta: float) -> None:
    """A Bernoulli latent and K = 2: the bound is a sum over four cases."""
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(shift * (2 * c - 1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=logit * x))

    at = torch.tensor(1.2, dtype=torch.float64)
    c = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_q = dist.Bernoulli(logits=logit * at).log_prob(c)
    log_p = dist.Bernoulli(at.new_tensor(0.3)).log_prob(c)
    log_w = dist.Normal(shift * (2 * c - 1), 1.0).log_prob(at) + beta * (log_p - log_q)
    pairs = log_q[:, None] + log_q[None, :]
    bound = torch.logaddexp(log_w[:, None], log_w[None, :]) - math.log(2)
    exact = -(pairs.exp() * bound).sum()
    expected = [float(g) for g in torch.autograd.grad(exact, [logit, shift])]

    x = torch.full((3000,), 1.2, dtype=torch.float64)
    losses, draws = [], []
    for _ in range(20):
        loss = run(ImportanceWeightedELBO(num_particles=2), model, guide, x, beta, vectorized).loss
        losses.append(float(loss.detach()))
        draws.append([float(g) for g in torch.autograd.grad(loss, [logit, shift])])
    for values, value in [
        (np.array(losses), float(exact.detach())),
        (np.array(draws)[:, 0], expected[0]),
        (np.array(draws)[:, 1], expected[1]),
    ]:
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert error < 0.02
        assert abs(values.mean() - value) < 4 * error


def test_importance_weighting_refuses_latents_of_all_rows() -> None:
    with own_store(), pytest.raises(PairError, match="'mu' is outside of plate 'data'"):
        run(ImportanceWeightedELBO(), with_global, with_global_guide, torch.randn(4, 3))


def test_importance_weighting_ignores_the_weight_of_a_subsampled_plate() -> None:
    """100 / n stays outside of the log: the bound of a row is that of the pair without subsampling."""
    x = torch.randn(6, 3)

    def plain(x: Tensor) -> None:
        programs.normal(x[:, 0])

    def plain_guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x[:, 0], 0.8))

    losses = []
    for model, guide in ((subsampled, subsampled_guide), (plain, plain_guide)):
        pyro.set_rng_seed(4)
        losses.append(float(run(ImportanceWeightedELBO(), model, guide, x).loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("particles", [1, 5])
def test_rate_and_distortion_under_a_mixture_prior(particles: int) -> None:
    """log p(z) is that of the mixture, and log p(x | z) that of the decoder; beta weighs the former."""
    x = torch.tensor([-1.0, 0.0, 2.5, 7.0])
    beta = 0.3
    model = programs.mixture_prior(WEIGHTS, LOCS, width=1.0, noise=0.5)
    guide = programs.normal_guide(1.0, 0.5)
    found = run(ImportanceWeightedELBO(num_particles=particles), model, guide, x, beta)
    z = found.traces[0][1].nodes["z"]["value"].reshape(particles, 4)
    log_prior = (WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(z[..., None])).logsumexp(-1)
    ratio = log_prior - dist.Normal(x, 0.5).log_prob(z)
    log_x = dist.Normal(z, 0.5).log_prob(x)
    assert float(found.rate) == pytest.approx(float(-ratio.mean().detach()), abs=1e-4)
    assert float(found.distortion) == pytest.approx(float(-log_x.mean()), abs=1e-4)
    bound = (log_x + beta * ratio).logsumexp(0) - math.log(particles)
    assert float(found.loss.detach()) == pytest.approx(-float(bound.mean().detach()), abs=1e-4)
