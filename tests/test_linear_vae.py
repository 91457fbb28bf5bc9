"""Trained linear VAEs reach the maximum likelihood of probabilistic PCA, and collapse where they must.

Lucas et al., *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse* (arXiv:1911.02469): with
eigenvalues l_i of the data's covariance, a dimension is used iff l_i > beta sigma^2.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from ppl_vae.diagnosis import diagnose
from ppl_vae.evaluation import evaluate
from ppl_vae.guides import Exact, FullCovariance, MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, Objective
from ppl_vae.training import fit

SPECTRUM = [8.0, 4.0, 1.6, 0.8, 0.35, 0.1]
EPOCHS = 60
LINEAR = MLP(hidden=())


@functools.cache
def data() -> Tensor:
    """1,024 rows whose sample covariance has exactly the eigenvalues of the spectrum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 6, generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x)))
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    scales = torch.tensor(SPECTRUM, dtype=torch.float64).sqrt()
    rows: Tensor = x @ whiten.T * scales @ basis.T + 1.0
    return rows


def train(model: nn.Module, guide: nn.Module, objective: Objective, epochs: int = EPOCHS) -> None:
    fit(
        model,
        guide,
        data(),
        objective=objective,
        max_epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs),
        seed=0,
    )


def best_beta_elbo(latent_dim: int, variance: float, beta: float) -> float:
    """The largest mean of -(D + beta R), in closed form from the eigenvalues alone.

    A direction of variance l is either noise, worth -1/2 (log 2 pi s^2 + l / s^2), or has a dimension of its
    own with w^2 = l - beta s^2 and q's variance beta s^2 / l: then D = 1/2 (log 2 pi s^2 + beta) and
    R = 1/2 log(l / (beta s^2)).
    """
    total = 0.0
    for i, eigenvalue in enumerate(SPECTRUM):
        noise = math.log(2 * math.pi * variance)
        if i < latent_dim and eigenvalue > beta * variance:
            total -= 0.5 * (noise + beta + beta * math.log(eigenvalue / (beta * variance)))
        else:
            total -= 0.5 * (noise + eigenvalue / variance)
    return total


@torch.no_grad()
def beta_elbo(model: ProbabilisticPCA, guide: MeanField, beta: float) -> float:
    """The mean of -(D + beta R) of a trained pair, without sampling."""
    x = data()
    q = guide.encode(x).base_dist
    variance = (2 * model.log_sigma).exp()
    residual = x - model.mean - q.loc @ model.weight.T
    spread = (q.scale**2 * model.weight.square().sum(0)).sum(-1)
    rate = 0.5 * (q.scale**2 + q.loc**2 - 1 - 2 * q.scale.log()).sum(-1)
    distortion = 0.5 * (
        6 * (2 * math.pi * variance).log() + (residual.square().sum(-1) + spread) / variance
    )
    return -float((distortion + beta * rate).mean())


@pytest.mark.parametrize(
    "beta",
    [
        pytest.param(1.0, marks=pytest.mark.slow),
        4.0,
        *(pytest.param(beta, marks=pytest.mark.slow) for beta in (0.5, 2.0)),
    ],
)
def test_a_linear_vae_reaches_the_optimum_and_collapses_exactly_where_it_must(beta: float) -> None:
    """Fixed sigma^2 = 1/2 and five dimensions: 5, 4, 3 and 2 of them have l_i > beta sigma^2."""
    torch.manual_seed(0)
    model = ProbabilisticPCA((6,), 5, sigma=0.5**0.5, learn_sigma=False).double()
    guide = MeanField((6,), 5, LINEAR).double()
    # The KL alone turns the latents towards the principal directions: slowly, where beta is small.
    train(model, guide, ELBO(beta=beta, num_particles=2), EPOCHS if beta >= 1 else 5 * EPOCHS)
    best = best_beta_elbo(5, 0.5, beta)
    assert best - 0.01 < beta_elbo(model, guide, beta) < best + 1e-6
    if beta == 1.0:  # where the bound is tight, the optimum is the maximum likelihood itself
        evidence = float(model.log_evidence(data()).mean().detach())
        assert best - 0.01 < evidence < best + 1e-6
    found = diagnose(model, guide, data(), beta=beta, seed=0)
    used = sum(eigenvalue > beta * 0.5 for eigenvalue in SPECTRUM[:5])
    assert int((~found.collapsed).sum()) == used == {0.5: 5, 1.0: 4, 2.0: 3, 4.0: 2}[beta]
    assert found.active_units == used
    expected = [0.5 * math.log(max(1.0, v / (beta * 0.5))) for v in SPECTRUM[:5]]
    assert found.kl.sort(descending=True).values.tolist() == pytest.approx(expected, abs=0.05)
    assert found.cause == {0.5: "none", 1.0: "decoder noise"}.get(beta, "large beta")


def maximum_likelihood(latent_dim: int) -> tuple[float, float]:
    """log p(x) per row and sigma^2 at the maximum: sigma^2 is the mean of the discarded eigenvalues."""
    discarded = SPECTRUM[latent_dim:]
    variance = sum(discarded) / len(discarded)
    return best_beta_elbo(latent_dim, variance, 1.0), variance


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "mean field",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("importance weighted", "full covariance", "exact")
        ),
    ],
)
def test_a_linear_vae_that_learns_its_noise_reaches_the_maximum_likelihood(kind: str) -> None:
    torch.manual_seed(1)
    model = ProbabilisticPCA((6,), 2, sigma=1.5).double()
    guide: nn.Module
    if kind == "exact":
        guide = Exact(model)
    elif kind == "full covariance":
        guide = FullCovariance((6,), 2, LINEAR).double()
    else:
        guide = MeanField((6,), 2, LINEAR).double()
    objective = ImportanceWeightedELBO() if kind == "importance weighted" else ELBO(num_particles=2)
    train(model, guide, objective)
    best, variance = maximum_likelihood(2)
    evidence = float(model.log_evidence(data()).mean().detach())
    assert best - 0.01 < evidence < best + 1e-6
    assert float((2 * model.log_sigma).exp().detach()) == pytest.approx(variance, rel=0.02)
    found = evaluate(model, guide, data(), num_samples=100, seed=0)
    assert found.log_likelihood.mean == pytest.approx(best, abs=0.01)
    assert found.elbo.mean == pytest.approx(best, abs=0.02)


@pytest.mark.slow
def test_a_vae_of_linear_networks_is_the_same_model() -> None:
    torch.manual_seed(2)
    model = VAE((6,), 2, LINEAR, LearnedGaussian(initial_sigma=1.5)).double()
    guide = MeanField((6,), 2, LINEAR).double()
    train(model, guide, ELBO(num_particles=2))
    best, _ = maximum_likelihood(2)
    found = evaluate(model, guide, data(), num_samples=200, seed=0)
    assert best - 0.01 < found.log_likelihood.mean < best + 0.005
