"""Bounds on the mutual information of x and z, beside the exact value of probabilistic PCA."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose, sample
from ppl_vae.guides import Exact
from ppl_vae.models import ProbabilisticPCA


def pca(latent_dim: int, nats: float) -> ProbabilisticPCA:
    """A model with this mutual information: log(1 + w^2 / sigma^2) / 2 for each dimension."""
    torch.manual_seed(0)
    model = ProbabilisticPCA((12,), latent_dim, sigma=1.0, learn_sigma=False)
    with torch.no_grad():
        directions, _ = torch.linalg.qr(torch.randn(12, latent_dim))
        model.weight.copy_(math.sqrt(math.expm1(2 * nats / latent_dim)) * directions)
    return model


@pytest.mark.slow(only=("2-3.0",))
@pytest.mark.parametrize(
    ("latent_dim", "nats"),
    [
        pytest.param(1, 0.0, marks=pytest.mark.slow),
        (2, 3.0),
        pytest.param(8, 9.0, marks=pytest.mark.slow),
    ],
)
def test_the_exact_value_is_between_the_bounds(latent_dim: int, nats: float) -> None:
    model = pca(latent_dim, nats)
    inside, seeds = 0, range(20 if nats else 7)  # the search for a cause takes longest
    for seed in seeds:
        x = sample(model, 400, seed=seed)
        found = diagnose(model, Exact(model), x, seed=seed, progress=False)
        low, high = found.information_bounds
        inside += low <= nats <= high
        assert found.mutual_information.mean <= math.log(400)
        assert high <= nats + 0.8
    assert inside >= len(seeds) * 6 // 7  # each end has two standard errors


def test_both_estimates_are_those_of_their_definitions() -> None:
    """By densities of all rows' posteriors, with other draws."""
    model = pca(2, 3.0)
    x = sample(model, 200, seed=1)
    found = diagnose(model, Exact(model), x, seed=0)
    with torch.no_grad():
        q = model.posterior(x)
        z = q.sample((50,))
        log_q = dist.MultivariateNormal(q.mean, q.covariance_matrix).log_prob(z.unsqueeze(2))
    own = log_q.diagonal(dim1=1, dim2=2)
    others = log_q.masked_fill(torch.eye(200) > 0, -math.inf).logsumexp(2) - math.log(199)
    for estimate, by_hand in (
        (found.mutual_information, own - log_q.logsumexp(2) + math.log(200)),
        (found.leave_one_out, own - others),
    ):
        assert estimate.mean == pytest.approx(
            float(by_hand.mean()), abs=4 * estimate.standard_error
        )
    assert found.leave_one_out.mean > found.mutual_information.mean
    assert found.rate.mean == pytest.approx(
        float(
            torch.distributions.kl_divergence(
                q, dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
            ).mean()
        ),
        abs=0.02,
    )


def test_few_nats_are_printed_with_their_bounds() -> None:
    model = pca(2, 3.0)
    found = diagnose(model, Exact(model), sample(model, 400, seed=0), seed=0)
    low, high = found.information_bounds
    assert ("of the population", f"between {low:.2f} and {high:.2f} nats") in found.lines()
    assert found.to_dict()["information_bounds"] == [low, high]


def test_one_row_bounds_nothing_from_above_but_by_the_rate() -> None:
    model = pca(2, 3.0)
    found = diagnose(model, Exact(model), sample(model, 1, seed=0), seed=0)
    low, high = found.information_bounds
    assert low == 0.0
    assert high == pytest.approx(found.rate.mean)


def test_where_the_estimates_are_not_known_the_rate_is_the_bound() -> None:
    """A guide that computes a latent from its draw in a way of its own for each row."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(0 * x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 2 + 0.5**0.5 * noise, log_density=0.5 * math.log(2)))

    found = diagnose(model, guide, torch.randn(50), seed=0)
    assert math.isnan(found.mutual_information.mean)
    low, high = found.information_bounds
    assert low == 0.0
    assert high == pytest.approx(found.rate.mean + 2 * found.rate.standard_error)
