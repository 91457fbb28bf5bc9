"""The mixture of PCAs against a dense mixture of Gaussians and sums over its components."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.em import fit_em
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import MixtureOfPCA
from ppl_vae.networks import MLP

SHAPE = (2, 2)


def made(components: int = 3, seed: int = 0) -> MixtureOfPCA:
    torch.manual_seed(seed)
    model = MixtureOfPCA(SHAPE, 2, components).double()
    with torch.no_grad():
        model.logits.copy_(torch.randn(components))
        model.log_sigma.copy_(0.5 * torch.randn(components))
        model.centre.copy_(torch.randn(4))
    return model


def data(n: int = 300, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(3, (n,), generator=generator)
    spread = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    centers = 5 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return (centers[k] + torch.einsum("nij,nj->ni", spread[k], noise)).reshape(n, *SHAPE)


def dense(model: MixtureOfPCA, x: Tensor) -> Tensor:
    """log p(x, k), `(n, K)`."""
    identity = torch.eye(4, dtype=torch.float64)
    columns = []
    for k in range(model.components):
        noise = (2 * model.log_sigma[k]).exp() * identity
        p = MultivariateNormal(model.mean[k], model.weight[k] @ model.weight[k].T + noise)
        columns.append(p.log_prob(x.flatten(1)) + model.logits.log_softmax(0)[k])
    return torch.stack(columns, 1)


def test_log_evidence_and_responsibilities_are_the_dense_mixtures() -> None:
    model, x = made(), data(20)
    joint = dense(model, x)
    torch.testing.assert_close(model.log_evidence(x), joint.logsumexp(1))
    torch.testing.assert_close(model.responsibilities(x).probs, joint.softmax(1))


def test_posterior_is_bayes_rule() -> None:
    model, x = made(), data(20)
    q = model.posterior(x)
    z = q.sample()
    assert (q.batch_shape, q.event_shape) == ((20,), (2,))
    k = torch.arange(3).unsqueeze(1)
    log_likelihood = model.decode(z, k).log_prob(x) + model.logits.log_softmax(0).unsqueeze(1)
    joint = model.prior().log_prob(z) + log_likelihood.logsumexp(0)
    torch.testing.assert_close(joint - q.log_prob(z), model.log_evidence(x))


@pytest.mark.parametrize("num_samples", [1, 5])
def test_the_bound_with_the_exact_guide_is_log_p(num_samples: int) -> None:
    """Pyro sums k out of the program; the guide samples z."""
    model, x = made(), data(30)
    result = evaluate(model, Exact(model), x, num_samples=num_samples, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(result.elbo.values, model.log_evidence(x))


def test_diagnose_takes_a_latent_that_is_summed_out() -> None:
    model, x = made(), data(60)
    found = diagnose(model, Exact(model), x)
    assert len(found.names) == model.latent_dim
    assert torch.isfinite(found.kl).all()


def test_svi_trains_the_program_as_it_is() -> None:
    model, x = made(), data(60)
    guide = MeanField(SHAPE, 2, MLP(hidden=(8,))).double()
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(
            model,
            guide,
            pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3}),
            pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
        )
        loss = svi.step(x)
    assert math.isfinite(loss)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, guide, x, max_epochs=1, batch_size=30, seed=0)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("hard", [False, True])
def test_e_and_m_step_are_stationary(hard: bool) -> None:
    """No gradient is left of the expected complete log-likelihood, by autograd."""
    model, x = made(), data(50)
    with torch.no_grad():
        joint = dense(model, x)
        weights = joint.softmax(1)
        total = joint.logsumexp(1).sum()
        if hard:
            weights = torch.nn.functional.one_hot(joint.argmax(1), 3).double()
            total = joint.max(1).values.sum()
        parts = model.posterior(x).component_distribution
    statistics = model.expected_statistics(x, hard=hard)
    torch.testing.assert_close(statistics["log_evidence"], total)
    for name, value in statistics.items():
        parts_of = [model.expected_statistics(rows, hard=hard)[name] for rows in x.split(20)]
        torch.testing.assert_close(torch.stack(parts_of).sum(0), value)
    model.maximize(statistics)
    k = torch.arange(3)
    expected = model.decode(parts.mean, k.expand(50, 3)).log_prob(x.unsqueeze(1))
    spread = torch.einsum("kdi,nkij,kdj->nk", model.weight, parts.covariance_matrix, model.weight)
    expected = expected - 0.5 * spread * (-2 * model.log_sigma).exp()
    expected = (weights * (expected + model.logits.log_softmax(0))).sum()
    for gradient in torch.autograd.grad(expected, list(model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)


def test_em_never_falls_and_finds_the_clusters() -> None:
    x = data(600)
    model = MixtureOfPCA(SHAPE, 2, 3).double()
    model.initialize(x, seed=0)
    values = []
    for _ in range(50):
        statistics = model.expected_statistics(x)
        values.append(statistics["log_evidence"].item())
        model.maximize(statistics)
    assert all(b >= a - 1e-9 * abs(a) for a, b in itertools.pairwise(values)), values
    # what generated the data: three dense Gaussians; a PCA of each has one direction less
    assert values[-1] > values[0]


def test_all_directions_make_it_one_gaussian_mixture() -> None:
    """With one component and q = D - 1 the optimum is the sample covariance (Tipping & Bishop)."""
    x = data(200)
    model = MixtureOfPCA(SHAPE, 3, 1).double()
    model.initialize(x, seed=0)
    rows = x.flatten(1)
    p = MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    # the start is the optimum already, and EM stays there
    torch.testing.assert_close(model.log_evidence(x), p.log_prob(rows))
    model.maximize(model.expected_statistics(x))
    torch.testing.assert_close(model.log_evidence(x), p.log_prob(rows))


def test_tiny_clusters_and_empty_components_stay_finite() -> None:
    x = torch.cat([data(50), 100 + torch.zeros(1, *SHAPE, dtype=torch.float64)])
    model = MixtureOfPCA(SHAPE, 2, 4, min_scale=0.1).double()
    model.initialize(x, seed=0)
    for _ in range(10):
        with pytest.warns(UserWarning, match="raised to it"):
            model.maximize(model.expected_statistics(x))
    assert torch.isfinite(model.log_evidence(x)).all()
    assert model.log_sigma.exp().min().item() == pytest.approx(0.1)


def test_a_component_without_rows_is_split_off_and_comes_back() -> None:
    x = data(200)
    model = MixtureOfPCA(SHAPE, 2, 3).double()
    model.initialize(x, seed=0)
    with torch.no_grad():
        model.mean[0] = 1e6
    with pytest.warns(
        UserWarning, match=r"component 0 has no rows: it was split off from component"
    ):
        model.maximize(model.expected_statistics(x))
    twin = 1 + int((model.logits[1:] == model.logits[0]).float().argmax())
    assert torch.equal(model.weight[0], model.weight[twin])
    torch.testing.assert_close(model.logits.exp().sum().item(), 1.0, atol=1e-6, rtol=0)
    # The means are half of one standard deviation apart.
    p = torch.distributions.LowRankMultivariateNormal(
        torch.zeros(4).double(),
        model.weight[0].detach(),
        (2 * model.log_sigma[0].detach()).exp().expand(4),
    )
    apart = (model.mean[0] - model.mean[twin]).detach()
    distance = (apart @ p.precision_matrix @ apart).sqrt().item()
    assert 0.05 < distance <= 0.5 + 1e-9
    fitted = fit_em(model, x, initialize=False, max_iterations=20, device="cpu")
    assert not fitted.notes
    assert (model.responsibilities(x).probs.mean(0) > 0.02).all()


def test_fewer_different_rows_than_components_are_survived() -> None:
    for x in (torch.ones(20, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).repeat(10, 1)):
        for hard in (False, True):
            fitted = fit_em(MixtureOfPCA((3,), 1, 4), x, seed=0, hard=hard, max_iterations=5)
            assert math.isfinite(fitted.history[-1]["bound"])
            assert any("has no rows" in note for note in fitted.notes), fitted.notes


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"MixtureOfPCA\.components must be at least 1, got 0"):
        MixtureOfPCA((3,), 1, 0)
    with pytest.raises(ValueError, match=r"MixtureOfPCA\.latent_dim must be at least 1, got 0"):
        MixtureOfPCA((3,), 0, 1)
    with pytest.raises(
        ValueError, match="3 components need at least as many rows to start from, got 2"
    ):
        MixtureOfPCA((3,), 1, 3).initialize(torch.zeros(2, 3), seed=0)
