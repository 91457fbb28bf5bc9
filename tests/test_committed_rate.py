"""Rates below which a pair cannot go (delta-VAEs): closed forms, numerical minima, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import check, diagnose, evaluate, fit
from ppl_vae.checks import PairWarning
from ppl_vae.guides import FullCovariance, LowRank, MeanField, MixtureOfGaussians, PerRow
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, AutoregressivePrior, DiagonalNormal, MixturePrior, StandardNormal
from ppl_vae.models.priors import Prior
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, TargetRate
from ppl_vae.pairs import PairError

SHAPE = (3,)
NETWORK = MLP(hidden=(8,))


def model_of(prior: Prior, latent_dim: int = 4) -> Any:
    return VAE(SHAPE, latent_dim, NETWORK, Gaussian(0.5), prior)


# -- the prior -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.3, 0.95, -0.7])
@pytest.mark.parametrize(("chains", "steps"), [(1, 2), (1, 7), (3, 4)])
def test_the_committed_rate_is_the_least_kl_of_independent_normals(
    correlation: float, chains: int, steps: int
) -> None:
    """Against a numerical minimum over means and scales, of a density that is multiplied out by hand."""
    prior: Any = AutoregressivePrior(correlation, chains).build(SHAPE, chains * steps)
    p = prior()
    loc, raw = (torch.randn(chains, steps, dtype=torch.float64).requires_grad_() for _ in range(2))
    noise = 1 - correlation**2

    def kl() -> Tensor:
        """E log q - E log p, with E (z_t - a z_{t-1})^2 from the moments of q."""
        variance = (2 * raw).exp()
        step = (loc[:, 1:] - correlation * loc[:, :-1]).square()
        step = step + variance[:, 1:] + correlation**2 * variance[:, :-1]
        first = loc[:, 0].square() + variance[:, 0]
        log_p = -(first.sum() + (step / noise).sum() + chains * (steps - 1) * math.log(noise)) / 2
        return -raw.sum() - chains * steps / 2 - log_p

    optimizer = torch.optim.LBFGS(
        [loc, raw], max_iter=1000, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = kl()
        found.backward()
        return found

    optimizer.step(loss)
    assert prior.committed_rate == pytest.approx(float(kl().detach()), abs=1e-8)
    # What the library reports for this q.
    q = dist.Normal(loc.detach().flatten().float(), raw.detach().exp().flatten().float())
    assert float(kl_divergence(q.to_event(1), p)) == pytest.approx(prior.committed_rate, abs=1e-4)


def test_the_prior_is_a_stationary_chain() -> None:
    p = AutoregressivePrior(0.8, chains=2).build(SHAPE, 6)()
    step = torch.arange(3)
    one = 0.8 ** (step - step.unsqueeze(1)).abs()
    torch.testing.assert_close(p.covariance_matrix, torch.block_diag(one, one))
    z = torch.randn(5, 6)
    by_steps = sum(
        dist.Normal(0.0, 1.0).log_prob(part[:, 0])
        + dist.Normal(0.8 * part[:, :-1], 0.6).log_prob(part[:, 1:]).sum(1)
        for part in z.chunk(2, 1)
    )
    torch.testing.assert_close(p.log_prob(z), by_steps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoregressivePrior(0.0), "between -1 and 1, and not 0, got 0.0"),
        (lambda: AutoregressivePrior(1.0), "between -1 and 1"),
        (lambda: AutoregressivePrior(0.5, chains=0), "chains must be at least 1"),
        (lambda: AutoregressivePrior(0.5).build(SHAPE, 1), "got latent_dim 1"),
        (lambda: AutoregressivePrior(0.5, chains=2).build(SHAPE, 5), "a multiple of 2"),
        (lambda: MeanField(SHAPE, 2, committed_rate=-0.1), "from 0 to 10"),
        (lambda: MeanField(SHAPE, 2, committed_rate=math.nan), "from 0 to 10"),
    ],
)
def test_bad_numbers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match=r"correlation must be a number"):
        AutoregressivePrior("high")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"committed_rate must be a number"):
        MeanField(SHAPE, 2, committed_rate="high")  # type: ignore[arg-type]


# -- the guide -------------------------------------------------------------------------------------------


def exact_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(N(loc, scale^2) || N(0, 1)) of these numbers, in double precision."""
    loc, scale = loc.double(), scale.double()
    return (loc.square() + (scale - 1) * (scale + 1)) / 2 - scale.log()


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.1, 1.0, 10.0])
def test_no_output_of_an_encoder_has_a_lower_rate(rate: float) -> None:
    guide = MeanField(SHAPE, 1, NETWORK, committed_rate=rate)
    loc = torch.cat([torch.zeros(2000), torch.randn(2000)])
    raw = torch.cat([torch.linspace(-200, 200, 3000), 1e30 * torch.randn(1000)])
    raw[0], raw[1] = -torch.inf, torch.inf
    q = guide.family(torch.stack([loc, raw], -1)).base_dist
    kl = exact_kl(q.loc, q.scale)
    assert bool(kl.isfinite().all())
    assert float(kl.min()) >= rate
    # Which is reached, but for what is rounded.
    assert float(kl.min()) == pytest.approx(rate, rel=2e-4, abs=1e-6)


def test_without_a_commitment_nothing_changes() -> None:
    outputs = torch.randn(10, 4)
    torch.testing.assert_close(
        MeanField(SHAPE, 2, NETWORK).family(outputs).base_dist.scale,
        torch.nn.functional.softplus(outputs[:, 2:]) + 1e-6,
    )


# -- pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "rate"),
    [pytest.param(AutoregressivePrior(0.9), 0.0, marks=pytest.mark.slow), (StandardNormal(), 0.3)],
)
def test_a_decoder_that_ignores_z_still_pays(prior: Prior, rate: float) -> None:
    """With beta = 20 the rate goes to the committed one, and no report is below it.

    The rows are noise that this decoder cannot use z for: what is paid tells next to nothing.
    """
    model = model_of(prior)
    guide = MeanField(SHAPE, 4, NETWORK, committed_rate=rate)
    committed = 4 * rate or model.prior.committed_rate
    assert committed > 1
    x = torch.randn(200, 3)
    fitted = fit(
        *(model, guide, x),
        objective=ELBO(beta=20.0),
        max_epochs=60,
        batch_size=100,
        learning_rate=0.03,
        seed=0,
    )
    for row in fitted.history:  # of each epoch, of the first draws, and of single latents
        assert row["rate"] > committed - 0.6
        for name in (name for name in row if name.startswith("kl_z[") and rate):
            assert row[name] >= rate - 1e-5
    with torch.no_grad():
        exact = kl_divergence(guide.encode(x), model.prior())
    assert float(exact.min()) >= committed - 1e-4
    assert float(exact.mean()) < 1.2 * committed
    diagnosis = diagnose(model, guide, x, fit=fitted, seed=0)
    found = evaluate(model, guide, x, num_samples=200, method="guide", seed=0)
    for reported in (diagnosis.rate, found.rate):
        assert reported.mean >= committed - 2 * reported.standard_error - 1e-4
        assert reported.mean < 1.3 * committed
    # It is paid, and tells nothing.
    assert diagnosis.information_bounds[0] < 0.1


@pytest.mark.parametrize("guide", [FullCovariance, LowRank, MixtureOfGaussians])
def test_the_prior_refuses_guides_with_dependent_latents(guide: Any) -> None:
    model = model_of(AutoregressivePrior(0.9))
    with pytest.raises(PairError, match=r"site 'z': AutoregressivePrior commits .* take MeanField"):
        fit(model, guide(SHAPE, 4, NETWORK), torch.randn(20, 3), max_epochs=1)
    assert check(model_of(StandardNormal()), guide(SHAPE, 4, NETWORK), torch.randn(20, 3))


def test_the_prior_takes_the_autoguide_with_independent_latents() -> None:
    """It draws at a site of its own, and z is a Delta there: the least rate is that of any such q."""
    model = model_of(AutoregressivePrior(0.9))
    guide, x = AutoNormal(model), torch.randn(30, 3)
    how: dict[str, Any] = {"objective": ELBO(beta=20.0), "learning_rate": 0.05, "seed": 0}
    fit(model, guide, x, batch_size=30, max_epochs=200, **how)
    committed = model.prior.committed_rate
    found = evaluate(model, guide, x, num_samples=400, method="guide", seed=0).rate
    assert found.mean >= committed - 2 * found.standard_error
    assert found.mean == pytest.approx(committed, rel=0.15)


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_the_prior_refuses_autoguides_with_dependent_latents(kind: Any) -> None:
    model = model_of(AutoregressivePrior(0.9))
    with pytest.raises(PairError):
        fit(model, kind(model), torch.randn(20, 3), batch_size=20, max_epochs=1)


@pytest.mark.parametrize(
    ("prior", "rate"),
    [pytest.param(AutoregressivePrior(0.9), 0.0, marks=pytest.mark.slow), (StandardNormal(), 0.3)],
)
def test_a_target_below_the_committed_rate_is_said_to_be_out_of_reach(
    prior: Prior, rate: float
) -> None:
    model = model_of(prior)
    guide = MeanField(SHAPE, 4, NETWORK, committed_rate=rate)
    least = 4 * rate or model.prior.committed_rate
    how: dict[str, Any] = {"max_epochs": 30, "batch_size": 30, "learning_rate": 0.03, "seed": 0}
    x, target = torch.randn(30, 3), ELBO(beta=TargetRate(nats=0.3))
    with pytest.warns(PairWarning, match="has missed its target") as told:
        fit(model, guide, x, objective=target, **how)
    (text,) = (str(each.message) for each in told if "missed" in str(each.message))
    assert f"The pair commits to a rate of at least {least:.4g} nats per row" in text
    assert "train for more epochs" not in text
    with pytest.warns(PairWarning, match="has missed its target") as told:
        fit(model_of(StandardNormal()), MeanField(SHAPE, 4, NETWORK), x, objective=target, **how)
    assert not any("commits to" in str(each.message) for each in told)


@pytest.mark.parametrize(
    "prior", [AutoregressivePrior(0.5), DiagonalNormal(), MixturePrior(3)], ids=str
)
def test_the_guide_refuses_other_priors(prior: Prior) -> None:
    """A learned one, too, that starts as N(0, I)."""
    x = torch.randn(20, 3)
    guide = MeanField(SHAPE, 4, NETWORK, committed_rate=0.1)
    with pytest.raises(
        PairError, match=r"committed_rate = 0.1 holds for the prior N\(0, I\) alone"
    ):
        fit(model_of(prior), guide, x, max_epochs=1)
    told = check(model_of(prior), PerRow(guide, x), x, batch_size=20)
    assert "committed_rate" in str(told)
    assert check(model_of(prior), MeanField(SHAPE, 4, NETWORK), x)
