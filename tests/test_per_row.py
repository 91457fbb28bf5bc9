"""The guide without amortization reaches the best of its family, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_vae import evaluate, fit
from ppl_vae.guides import CategoricalEncoder, Exact, FullCovariance, MeanField, PerRow, Recurrent
from ppl_vae.models import GaussianHMM, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import EnumELBO, MeanFieldELBO
from ppl_vae.pairs import Pair

D, Q, ROWS = 4, 2, 5


def made(family: Callable[..., Any]) -> tuple[ProbabilisticPCA, PerRow, Tensor]:
    """With a correlated posterior, of precision I + W^T W."""
    torch.manual_seed(1)
    model = ProbabilisticPCA((D,), Q).requires_grad_(False)
    model.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, 1.0], [-0.5, 0.0]]))
    x = torch.randn(ROWS, D)
    return model, PerRow(family((D,), Q, MLP(hidden=())), x), x


def trained(model: nn.Module, guide: PerRow, x: Tensor) -> None:
    objective = MeanFieldELBO(num_particles=100)
    for learning_rate in (0.1, 0.01, 0.001):
        options: dict[str, Any] = {"objective": objective, "learning_rate": learning_rate}
        fit(model, guide, x, max_epochs=100, batch_size=ROWS, seed=0, progress=False, **options)


@pytest.mark.slow
def test_full_covariance_reaches_the_posterior() -> None:
    model, guide, x = made(FullCovariance)
    posterior = model.posterior(x)
    assert (kl_divergence(guide.encode(x), posterior) > 0.05).all()
    trained(model, guide, x)
    gap = kl_divergence(guide.encode(x), posterior).detach()
    assert (gap >= -1e-6).all()
    assert (gap < 1e-3).all()
    torch.testing.assert_close(guide.encode(x).mean, posterior.mean, atol=0.02, rtol=0)


@pytest.mark.slow
def test_mean_field_reaches_the_closed_gap() -> None:
    """min KL(q || N(m, M^-1)) over factorized q = 1/2 (sum log M_ii - log det M), with the means m."""
    model, guide, x = made(MeanField)
    posterior = model.posterior(x)
    precision = posterior.precision_matrix[0]
    expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    assert expected > 0.05  # a correlated posterior
    trained(model, guide, x)
    q = guide.encode(x)
    as_full = dist.MultivariateNormal(q.mean, scale_tril=torch.diag_embed(q.stddev))
    gap = kl_divergence(as_full, posterior).detach()
    torch.testing.assert_close(gap, expected.expand(ROWS), atol=1e-3, rtol=0)
    torch.testing.assert_close(q.mean, posterior.mean, atol=0.02, rtol=0)


def test_it_starts_from_the_guide_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, D)
    other = MeanField((D,), Q, MLP(hidden=(8,)))
    guide = PerRow(other, x)
    assert torch.equal(guide.outputs, other.amortize(x))
    assert torch.equal(guide.encode(x).mean, other.encode(x).mean)
    assert [name for name, _ in guide.named_parameters()] == ["outputs"]
    assert guide.outputs.is_leaf
    with torch.no_grad():
        guide.outputs.zero_()
    assert other.amortize(x).abs().min() > 0
    with torch.no_grad():
        PerRow(guide, x).outputs.fill_(1.0)
    assert guide.outputs.eq(0).all()


def test_rows_are_kept() -> None:
    model, guide, x = made(MeanField)
    assert Pair(model, guide).keeps_rows
    with pytest.raises(ValueError, match="made for 5 rows, but x has 3"):
        guide.encode(x[:3])
    with torch.no_grad():
        guide.outputs.copy_(torch.cat([model.posterior(x).mean, torch.zeros(ROWS, Q)], -1))
    found = evaluate(model, guide, x, num_samples=4000, seed=0, progress=False, method="guide")
    expected = model.log_evidence(x)
    torch.testing.assert_close(found.log_likelihood.values, expected, atol=0.05, rtol=0)


def test_a_guide_without_the_two_methods_is_refused() -> None:
    model = ProbabilisticPCA((D,), Q)
    guide: Any = Exact(model)
    with pytest.raises(TypeError, match="Exact has no amortize"):
        PerRow(guide, torch.zeros(3, D))


@pytest.mark.slow
def test_a_discrete_family_reaches_bayes_rule() -> None:
    locs = torch.tensor([-1.0, 0.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    torch.manual_seed(0)
    x = torch.tensor([-1.0, 0.5, 1.5])
    guide = PerRow(CategoricalEncoder((), 3, MLP(hidden=())), x)
    options: dict[str, Any] = {"objective": EnumELBO(), "batch_size": 3, "learning_rate": 0.1}
    fit(model, guide, x, max_epochs=300, seed=0, progress=False, **options)
    weights = torch.tensor([0.2, 0.3, 0.5]) * (-0.5 * (x.unsqueeze(-1) - locs).square()).exp()
    q: Any = guide.encode(x)
    torch.testing.assert_close(q.probs, weights / weights.sum(-1, keepdim=True), atol=1e-3, rtol=0)


def test_a_family_of_chains_holds_the_posterior_of_a_hidden_markov_model() -> None:
    model, x = GaussianHMM((4, 2), 3), torch.randn(ROWS, 4, 2)
    guide = PerRow(Recurrent((4, 2), 3, hidden=2), x)
    posterior = model.posterior(x)
    with torch.no_grad():
        tables = guide.outputs.view(ROWS, 4, 3, 3)
        tables[:, 0, 0] = posterior.initial_logits
        tables[:, 1:] = posterior.transition_logits
    found = evaluate(model, guide, x, num_samples=4, seed=0, progress=False)
    torch.testing.assert_close(found.elbo.values, model.log_evidence(x), atol=1e-4, rtol=0)
