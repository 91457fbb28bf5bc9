"""Factor analysis against the dense Gaussian density, conditioning by hand, and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.decomposition import FactorAnalysis as Reference
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_vae import evaluate
from ppl_vae.guides import Exact
from ppl_vae.models import FactorAnalysis

SHAPE = (2, 3)


def made(latent_dim: int = 2, seed: int = 0) -> FactorAnalysis:
    torch.manual_seed(seed)
    model = FactorAnalysis(SHAPE, latent_dim).double()
    with torch.no_grad():
        model.mean.copy_(torch.randn(6))
        model.log_sigma.copy_(0.5 * torch.randn(6))
        model.centre.copy_(torch.randn(6))
    return model


def data(n: int = 400, factors: int = 2, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(factors, 6, generator=generator, dtype=torch.float64)
    z = torch.randn(n, factors, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    scales = torch.linspace(0.5, 1.0, 6, dtype=torch.float64)
    return (3.0 + z @ loadings + noise * scales).reshape(n, *SHAPE)


def dense(model: FactorAnalysis) -> MultivariateNormal:
    covariance = model.weight @ model.weight.T + (2 * model.log_sigma).exp().diag()
    return MultivariateNormal(model.mean, covariance)


def test_log_evidence_is_the_dense_gaussian() -> None:
    model, x = made(), data(20)
    torch.testing.assert_close(model.log_evidence(x), dense(model).log_prob(x.flatten(1)))


def test_posterior_is_the_conditional_of_the_joint() -> None:
    model, x = made(), data(20)
    gain = model.weight.T @ torch.linalg.inv(dense(model).covariance_matrix)
    q = model.posterior(x)
    torch.testing.assert_close(q.mean, (x.flatten(1) - model.mean) @ gain.T)
    covariance = torch.eye(2, dtype=torch.float64) - gain @ model.weight
    torch.testing.assert_close(q.covariance_matrix, covariance.expand(20, 2, 2))
    z = q.sample()
    joint = model.prior().log_prob(z) + model.decode(z).log_prob(x)
    torch.testing.assert_close(joint - q.log_prob(z), model.log_evidence(x))


def test_little_noise_costs_no_digits_in_float32() -> None:
    model = FactorAnalysis((6,), 2)
    with torch.no_grad():
        model.log_sigma.fill_(math.log(1e-4))
        x = model.decode(torch.randn(50, 2)).sample()
    expected = model.double().log_evidence(x.double())
    torch.testing.assert_close(model.float().log_evidence(x).double(), expected, rtol=1e-3, atol=1)


def test_the_bound_with_the_exact_guide_is_log_p() -> None:
    model, x = made(), data(30)
    result = evaluate(model, Exact(model), x, num_samples=4, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(result.elbo.values, model.log_evidence(x))


def test_the_e_step_is_the_expectation_under_the_posterior() -> None:
    model, x = made(), data(50)
    statistics = model.expected_statistics(x)
    with torch.no_grad():
        q = model.posterior(x)
        rows = x.flatten(1) - model.centre
        u = torch.cat([q.mean, torch.ones(50, 1)], 1)
        uu = torch.einsum("ni,nj->ij", u, u)
        uu[:2, :2] += q.covariance_matrix.sum(0)
        torch.testing.assert_close(statistics["uu"], uu)
        torch.testing.assert_close(statistics["xu"], torch.einsum("nd,ni->di", rows, u))
        torch.testing.assert_close(statistics["log_evidence"], model.log_evidence(x).sum())
        mode = model.expected_statistics(x, hard=True)
        joint = model.prior().log_prob(q.mean) + model.decode(q.mean).log_prob(x)
        torch.testing.assert_close(mode["log_evidence"], joint.sum())
    assert statistics["num_rows"] == 50
    first, second = model.expected_statistics(x[:20]), model.expected_statistics(x[20:])
    for name, value in statistics.items():
        torch.testing.assert_close(first[name] + second[name], value)


@pytest.mark.parametrize("hard", [False, True])
def test_the_m_step_is_stationary(hard: bool) -> None:
    """No gradient is left of the expected complete log-likelihood, by autograd."""
    model, x = made(), data(50)
    q = model.posterior(x)
    loc, covariance = q.mean.detach(), q.covariance_matrix[0].detach()
    model.maximize(model.expected_statistics(x, hard=hard))
    expected = model.decode(loc).log_prob(x).sum()
    if not hard:
        spread = (model.weight @ covariance * model.weight).sum(1)
        expected = expected - 25 * (spread * (-2 * model.log_sigma).exp()).sum()
    for gradient in torch.autograd.grad(expected, [model.weight, model.mean, model.log_sigma]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_em_reaches_scikit_learns_optimum_and_never_falls() -> None:
    x = data()
    rows = x.flatten(1).numpy()
    reference = Reference(2, tol=1e-6, max_iter=10_000, svd_method="lapack").fit(rows)
    model = FactorAnalysis(SHAPE, 2).double()
    model.initialize(x, seed=0)
    before = -math.inf
    for _ in range(500):
        statistics = model.expected_statistics(x)
        now = statistics["log_evidence"].item()
        assert now >= before - 1e-9 * abs(now)
        model.maximize(statistics)
        before = now
    assert model.log_evidence(x).mean().item() == pytest.approx(reference.score(rows), abs=1e-4)


def test_one_step_from_scikit_learns_solution_stays() -> None:
    x = data()
    reference = Reference(2, tol=1e-6, max_iter=10_000, svd_method="lapack").fit(
        x.flatten(1).numpy()
    )
    model = FactorAnalysis(SHAPE, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(reference.components_.T))
        model.mean.copy_(torch.tensor(reference.mean_))
        model.log_sigma.copy_(torch.tensor(reference.noise_variance_).log() / 2)
    weight = model.weight.detach().clone()
    model.maximize(model.expected_statistics(x))
    torch.testing.assert_close(model.weight.detach(), weight, atol=1e-6, rtol=1e-4)


def test_a_value_that_never_varies_is_held_at_the_least_sigma() -> None:
    x = data()
    x[:, 0, 0] = 1.0
    model = FactorAnalysis(SHAPE, 2, min_scale=0.01).double()
    model.initialize(x, seed=0)
    for _ in range(5):
        with pytest.warns(UserWarning, match="noise of 1 of 6 values"):
            model.maximize(model.expected_statistics(x))
    assert torch.isfinite(model.log_evidence(x)).all()
    assert model.log_sigma[0].exp().item() == pytest.approx(0.01)
    assert (model.log_sigma[1:].exp() > 0.1).all()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"FactorAnalysis\.latent_dim must be at least 1, got 0"):
        FactorAnalysis((3,), 0)
    with pytest.raises(ValueError, match=r"FactorAnalysis\.min_scale must be positive, got 0"):
        FactorAnalysis((3,), 1, min_scale=0.0)
    with pytest.raises(ValueError, match=r"data of shape \(n, 2, 3\), but x has shape \(5, 6\)"):
        made().log_evidence(torch.zeros(5, 6))
