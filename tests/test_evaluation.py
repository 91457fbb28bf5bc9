"""evaluate() against closed forms: probabilistic PCA, conjugate pairs, mixtures, hidden Markov models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae import diagnose, stats
from ppl_vae.capture import importance_weights as weighing
from ppl_vae.evaluation import Evaluation, evaluate, importance as evaluation
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError, sample_rows
from ppl_vae.stats import Estimate

LOG_2PI = programs.LOG_2PI


# -- probabilistic PCA -------------------------------------------------------------------------------------


def random_pca(seed: int, dtype: torch.dtype = torch.float32) -> tuple[ProbabilisticPCA, Tensor]:
    """Dimension 1..20, latent 1..8, sigma over three decades, and data from the model itself."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    size, latent = integer(1, 20), integer(1, 8)
    sigma = 10 ** float(3 * torch.rand((), generator=generator) - 2)
    model = ProbabilisticPCA((size,), latent, sigma=sigma).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(size, latent, generator=generator))
        model.mean.copy_(torch.randn(size, generator=generator))
        z = torch.randn(10, latent, generator=generator, dtype=dtype)
        noise = torch.randn(10, size, generator=generator, dtype=dtype)
        x = z @ model.weight.T + model.mean + sigma * noise
    return model, x


def evidence(model: ProbabilisticPCA, x: Tensor) -> Tensor:
    """log N(x; mu, W W^T + sigma^2 I) in float64: nothing of the model's own closed form."""
    w, mean = model.weight.detach().double(), model.mean.detach().double()
    covariance = w @ w.T + (2 * model.log_sigma.detach().double()).exp() * torch.eye(len(w))
    log_prob: Tensor = torch.distributions.MultivariateNormal(
        mean, covariance_matrix=covariance
    ).log_prob(x.double())
    return log_prob


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < 12 else pytest.mark.slow) for n in range(40)]
)
def test_with_the_exact_guide_every_row_gets_its_log_evidence(seed: int) -> None:
    model, x = random_pca(seed)
    found = evaluate(model, Exact(model), x, num_samples=50, seed=0)
    expected = evidence(model, x)
    torch.testing.assert_close(found.log_likelihood.values.double(), expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(found.elbo.values.double(), expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(found.ess, torch.full((10,), 50.0), atol=0.01, rtol=0.0)
    assert not bool(found.unreliable.any())  # k-hat of mere rounding is left out
    assert found.warnings == ()


def mean_field_of(model: ProbabilisticPCA, seed: int) -> MeanField:
    """A linear mean-field guide near its optimum: the posterior mean, and variances 1 / M_ii, blurred."""
    generator = torch.Generator().manual_seed(seed)
    guide = MeanField(model.data_shape, model.latent_dim, network=MLP(hidden=())).double()
    w, variance = model.weight, (2 * model.log_sigma).exp()
    with torch.no_grad():
        m = torch.eye(model.latent_dim, dtype=w.dtype) + w.T @ w / variance
        to_mean = torch.linalg.solve(m, w.T / variance)
        scale = m.diagonal().rsqrt() * 1.15
        guide.head.weight.zero_()
        guide.head.weight[: model.latent_dim] = to_mean
        shift = 0.3 * scale * torch.randn(model.latent_dim, generator=generator)
        guide.head.bias[: model.latent_dim] = shift - to_mean @ model.mean
        guide.head.bias[model.latent_dim :] = torch.log(torch.expm1(scale))
    return guide


@torch.no_grad()
def unrotate(model: ProbabilisticPCA) -> None:
    u, s, _ = torch.linalg.svd(model.weight, full_matrices=False)
    model.weight.zero_()
    model.weight[:, : len(s)] = u * s


def elbo_by_hand(
    model: ProbabilisticPCA, guide: MeanField, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rate, distortion and the variance of log w of each row.

    With z = m + S eps, log w = c + g . eps - 1/2 eps^T H eps, g = S (W^T r / s^2 - m), r = x - mu - W m and
    H = S (I + W^T W / s^2) S - I; its variance is |g|^2 + 1/2 tr H^2.
    """
    with torch.no_grad():
        q = guide.encode(x).base_dist
        m, s, w = q.loc, q.scale, model.weight
        variance = (2 * model.log_sigma).exp()
        residual = x - model.mean - m @ w.T
        rate = 0.5 * (s**2 + m**2 - 1 - 2 * s.log()).sum(-1)
        spread = (s**2 * w.square().sum(0)).sum(-1)
        distortion = 0.5 * (
            len(w) * (LOG_2PI + variance.log()) + (residual.square().sum(-1) + spread) / variance
        )
        g = s * (residual @ w / variance - m)
        precision = torch.eye(model.latent_dim, dtype=w.dtype) + w.T @ w / variance
        h = s[:, :, None] * precision * s[:, None, :] - torch.eye(model.latent_dim, dtype=w.dtype)
        return rate, distortion, g.square().sum(-1) + 0.5 * h.square().sum((-2, -1))


def test_a_mean_field_guide_stays_below_the_evidence_and_importance_sampling_reaches_it() -> None:
    """ELBO, rate and distortion by closed form; log p(x) within its own standard errors, row by row."""
    scores = []
    for seed in range(25):
        model, x = random_pca(seed, torch.float64)
        if (
            seed % 2
        ):  # in the rotation in which the dimensions are independent, so that weights are bounded
            unrotate(model)
        guide = mean_field_of(model, seed)
        found = evaluate(model, guide, x, num_samples=2000, method="guide", seed=seed)
        exact = evidence(model, x)
        rate, distortion, variance = elbo_by_hand(model, guide, x)
        assert bool((-(rate + distortion) <= exact + 1e-9).all())
        error = (variance / 2000).sqrt()
        assert bool(((found.elbo.values + rate + distortion).abs() < 5 * error + 1e-9).all())
        assert bool((found.elbo.values <= exact + 5 * error + 1e-9).all())
        assert bool((found.log_likelihood.values >= found.elbo.values).all())
        if seed % 2:
            assert bool((found.khat < 0.7).all())
            difference = found.log_likelihood.values - exact
            scores.append(difference / (found.log_likelihood_error + 1e-12))
    z = torch.cat(scores)
    assert float(z.abs().max()) < 4
    # And the errors are not merely large: the standardized deviations have unit variance.
    assert 0.7 < float(z.square().mean()) < 1.4


def test_rate_and_distortion_are_close_to_their_closed_forms() -> None:
    model, x = random_pca(3, torch.float64)
    guide = mean_field_of(model, 3)
    found = evaluate(model, guide, x, num_samples=20000, method="guide", seed=0)
    rate, distortion, variance = elbo_by_hand(model, guide, x)
    tolerance = 5 * float((variance / 20000).sqrt().max()) + 0.05
    torch.testing.assert_close(found.rate.values, rate, atol=tolerance, rtol=0.0)
    torch.testing.assert_close(found.distortion.values, distortion, atol=tolerance, rtol=0.0)
    torch.testing.assert_close(found.elbo.values, -(found.rate.values + found.distortion.values))


def test_bits_per_dimension_mean_and_standard_error() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    estimate = Estimate(values)
    assert estimate.mean == pytest.approx(3.0)
    assert estimate.standard_error == pytest.approx(math.sqrt(7 / 3))
    model, x = random_pca(5)
    found = evaluate(model, Exact(model), x, num_samples=2, seed=0)
    size = len(model.mean)
    assert found.num_values == size
    assert found.bits_per_dim.mean == pytest.approx(
        -found.log_likelihood.mean / size / math.log(2), rel=1e-6
    )
    assert found.bits_per_dim.standard_error == pytest.approx(
        found.log_likelihood.standard_error / size / math.log(2), rel=1e-6
    )
    assert found.num_rows == 10
    assert "bits per dimension" in str(found)
    plain = found.to_dict()
    assert plain["log_likelihood"]["mean"] == found.log_likelihood.mean
    assert plain["ess"]["median"] == float(found.ess.double().median())
    assert plain["unreliable"] == {"count": int(found.unreliable.sum())}
    assert torch.equal(found.rows()["elbo"], found.elbo.values)
    assert {len(values) for values in found.rows().values()} == {10}


def test_a_single_sample_is_the_elbo_and_says_that_it_knows_no_error() -> None:
    model, x = random_pca(4)
    found = evaluate(model, MeanField((len(model.mean),), model.latent_dim), x, num_samples=1)
    torch.testing.assert_close(found.log_likelihood.values, found.elbo.values)
    assert bool(found.log_likelihood_error.isnan().all())
    assert found.ess.tolist() == [1.0] * 10
    assert any("k-hat" in warning for warning in found.warnings)
    assert "log p(x), 1 samples" in str(found)


def test_senseless_arguments_are_refused() -> None:
    model, x = random_pca(4)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        evaluate(model, Exact(model), x, num_samples=0)
    with pytest.raises(ValueError, match="x has no rows"):
        evaluate(model, Exact(model), x[:0])


# -- chunks ------------------------------------------------------------------------------------------------


def record_chunks(monkeypatch: pytest.MonkeyPatch, budget: int) -> list[tuple[int, int]]:
    """Sets the memory budget; the (samples, rows) of every run are in the list."""
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", budget)
    sizes: list[tuple[int, int]] = []
    original = sample_rows

    def recorded(*args: Any, **kwargs: Any) -> Any:
        rows = original(*args, **kwargs)
        samples, n = rows.log_weights.shape
        sizes.append((samples, n))
        return rows

    monkeypatch.setattr("ppl_vae.checks.session.sample_rows", recorded)
    monkeypatch.setattr(evaluation, "sample_rows", recorded)
    monkeypatch.setattr(weighing, "sample_rows", recorded)
    return sizes


@pytest.mark.parametrize("budget", [1, 100_000])
def test_memory_stays_in_the_budget_and_chunks_do_not_change_the_result(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_chunks(monkeypatch, budget)
    model, x = random_pca(6, torch.float64)
    unrotate(model)
    guide = mean_field_of(model, 6)
    x = x.repeat(3, 1)[:25]
    found = evaluate(model, guide, x, num_samples=30, seed=0, capture=False)
    chunks = sizes[3:]  # after the description and the two measurements
    assert sum(k * n for k, n in chunks) == 30 * 25
    width = max(k * n for k, n in chunks)
    if budget == 1:
        assert width == 1
    else:
        assert 1 < width <= budget / (8 * model.latent_dim)
    z = (found.log_likelihood.values - evidence(model, x)) / found.log_likelihood_error
    assert float(z.abs().max()) < 5


def test_memory_does_not_grow_with_samples_or_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**20)
    model = VAE((20,), 5, MLP(hidden=(50,)))
    guide = MeanField((20,), 5, MLP(hidden=(50,)))
    largest = []
    for n, samples in ((64, 50), (300, 50), (64, 1500)):
        with programs.Memory() as memory:
            evaluate(model, guide, torch.ones(n, 20), num_samples=samples, method="guide", seed=0)
        largest.append(memory.largest)
    assert max(largest) < 2**20
    # All weights at once would be 64 x 1500 x 50 floats at the hidden layer: 19 MB.
    assert largest[2] < 2 * largest[0]


def test_a_guide_with_parameters_for_each_row_stays_in_the_budget_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows have to run at once, so fewer samples do."""
    sizes = record_chunks(monkeypatch, budget=2**18)
    x, guide = torch.randn(500), AutoNormal(scalar)
    found = evaluate(scalar, guide, x, num_samples=70, seed=0, capture=False)
    assert found.num_rows == 500
    chunks = sizes[3:]
    assert {n for _, n in chunks} == {500}
    # z, log p(z), log p(x | z) and log q(z | x) alone are four numbers of four bytes per sample.
    assert max(k * n for k, n in chunks) <= 2**18 / 16


# -- any pair ----------------------------------------------------------------------------------------------


scalar = programs.normal
scalar_guide = programs.normal_guide(0.5, 0.8)


def normal_evidence(x: Tensor, variance: float = 2.0) -> Tensor:
    log_prob: Tensor = dist.Normal(0.0, variance**0.5).log_prob(x)
    return log_prob


def assert_agrees(found: Evaluation, expected: Tensor, sigmas: float = 5.0) -> None:
    error = found.log_likelihood_error.nan_to_num(nan=1.0) + 1e-5
    z = (found.log_likelihood.values - expected) / error
    assert float(z.abs().max()) < sigmas
    assert float(error.max()) < 0.2


def test_a_decoder_that_needs_a_matrix_is_looped_over() -> None:
    w = torch.randn(2, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z.reshape(len(x), 2) @ w  # no samples dimension passes here
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            precision = torch.eye(2) + w @ w.T
            mean = x @ w.T @ torch.linalg.inv(precision)
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision))

    x = torch.randn(6, 3)
    expected = dist.MultivariateNormal(torch.zeros(3), w.T @ w + torch.eye(3)).log_prob(x)
    found = evaluate(model, guide, x, num_samples=7, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, expected, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.ess, torch.full((6,), 7.0), atol=1e-3, rtol=0.0)


def test_several_latent_sites_and_other_names() -> None:
    """u ~ N(0, 1), v ~ N(u, 1), x ~ N(v, 1): x ~ N(0, 3)."""

    def model(batch: Tensor) -> None:
        with pyro.plate("pictures", len(batch)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            v = pyro.sample("v", dist.Normal(u, 1.0))
            pyro.sample("pixels", dist.Normal(v, 1.0), obs=batch)

    def guide(batch: Tensor) -> None:
        with pyro.plate("pictures", len(batch)):
            v = pyro.sample("v", dist.Normal(2 * batch / 3, 0.9))
            pyro.sample("u", dist.Normal(v / 2, 0.8))

    x = torch.linspace(-3, 3, 9)
    found = evaluate(model, guide, x, num_samples=2000, seed=0, method="guide")
    assert_agrees(found, normal_evidence(x, 3.0))


@pytest.mark.parametrize(
    "n", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_plates_inside_of_the_rows(n: int) -> None:
    """z of a row, and a local v and an x for each of three pixels; also with three rows."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                v = pyro.sample("v", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(v, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True) * 0.6, 0.7))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("v", dist.Normal((z + x) / 2, 0.75))

    x = torch.randn(n, 3)
    expected = dist.MultivariateNormal(
        torch.zeros(3), torch.ones(3, 3) + 2 * torch.eye(3)
    ).log_prob(x)
    found = evaluate(model, guide, x, num_samples=3000, seed=0, method="guide")
    assert found.num_values == 3
    assert_agrees(found, expected)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_plates_outside_of_the_rows(n: int) -> None:
    """Three sensors to the left of the rows, also where there are three rows: the sizes do not tell."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("sensors", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.sum(-1) / 4, 0.5))  # exact

    x = torch.randn(n, 3)
    expected = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + torch.eye(3)).log_prob(x)
    found = evaluate(model, guide, x, num_samples=5, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, expected, atol=1e-4, rtol=0.0)


def test_masked_observations_do_not_count() -> None:
    """Pixels that are masked are marginalized out: their likelihood is 1."""
    seen = torch.tensor([[True, True], [True, False], [False, False]])

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 2, dim=-1), poutine.mask(mask=seen[: len(x)]):  # type: ignore[call-overload]
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        count = seen[: len(x)].sum(-1, keepdim=True)
        total = (x * seen[: len(x)]).sum(-1, keepdim=True)
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(total / (count + 1), (count + 1.0).rsqrt()))  # exact

    x = torch.tensor([[1.0, -0.5], [0.7, 99.0], [99.0, 99.0]])
    both = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2)).log_prob(x[0])
    expected = torch.stack([both, normal_evidence(x[1, 0]), torch.tensor(0.0)])
    found = evaluate(model, guide, x, num_samples=4, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, expected, atol=1e-5, rtol=0.0)


def test_scales_of_the_users_own_do_not_enter() -> None:
    """KL annealing by poutine.scale, or the weight of a subsampled plate, is no part of a density."""
    x = torch.randn(6)

    def annealed(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def annealed_guide(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))), poutine.scale(scale=0.1):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    ours = evaluate(annealed, annealed_guide, x, num_samples=20, seed=0)
    plain = evaluate(scalar, scalar_guide, x, num_samples=20, seed=0)
    torch.testing.assert_close(ours.log_likelihood.values, plain.log_likelihood.values)
    torch.testing.assert_close(ours.rate.values, plain.rate.values)


def test_discrete_latents_by_sampling() -> None:
    x = torch.linspace(-2, 2, 7)
    log_joint = torch.stack(
        [
            math.log(0.7) + dist.Normal(-1.0, 1.0).log_prob(x),
            math.log(0.3) + dist.Normal(1.0, 1.0).log_prob(x),
        ]
    )
    found = evaluate(programs.coin, programs.coin_guide(1.0), x, num_samples=3000, seed=0)
    assert_agrees(found, log_joint.logsumexp(0))


WEIGHTS, LOCS = programs.WEIGHTS, programs.LOCS


def nothing(x: Tensor) -> None:
    """A guide that leaves everything to the model's enumeration."""


def test_a_mixture_that_the_model_enumerates_is_exact() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            with pyro.plate("views", 2, dim=-2):
                pyro.sample("x", dist.Normal(LOCS[c], 1.0), obs=x.T)

    x = 3 * torch.randn(6, 2)
    log_joint = WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[..., None]).sum(1)
    found = evaluate(model, nothing, x, num_samples=3, seed=0)
    torch.testing.assert_close(
        found.log_likelihood.values, log_joint.logsumexp(-1), atol=1e-5, rtol=1e-5
    )
    assert found.ess.tolist() == [3.0] * 6
    torch.testing.assert_close(found.rate.values, torch.zeros(6), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_hidden_markov_model_against_the_forward_algorithm(num_samples: int) -> None:
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]])

    def model(x: Tensor) -> None:
        with pyro.plate("sequences", len(x)):
            state: Any = 0
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(
                    f"s{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"}
                )
                pyro.sample(f"x{t}", dist.Normal(LOCS[state], 1.0), obs=x[:, t])

    x = torch.randn(5, 6)
    alpha = transition[0].log().expand(5, 3)
    for t in range(6):
        if t:
            alpha = (alpha[:, :, None] + transition.log()).logsumexp(1)
        alpha = alpha + dist.Normal(LOCS, 1.0).log_prob(x[:, t, None])
    found = evaluate(model, nothing, x, num_samples=num_samples, seed=0)
    torch.testing.assert_close(
        found.log_likelihood.values, alpha.logsumexp(1), atol=1e-5, rtol=1e-5
    )
    assert found.num_values == 6


def test_a_mixture_prior_beside_a_sampled_latent() -> None:
    """z from an enumerated mixture, x ~ N(z, 1/4): marginally a mixture of N(loc, 1 + 1/4)."""
    model = programs.mixture_prior(WEIGHTS, LOCS, width=1.0, noise=0.5)
    guide = programs.normal_guide(1.0, 0.6)
    x = torch.linspace(-4, 5, 8)
    expected = (WEIGHTS.log() + dist.Normal(LOCS, 1.25**0.5).log_prob(x[:, None])).logsumexp(1)
    found = evaluate(model, guide, x, num_samples=3000, seed=0, method="guide")
    assert_agrees(found, expected)
    # D = E[(x - z)^2] / (2 / 4) + 1/2 log(2 pi / 4)
    distortion = 0.5 * 0.36 / 0.25 + 0.5 * math.log(2 * math.pi * 0.25)
    assert found.distortion.mean == pytest.approx(distortion, abs=0.05)


def test_a_latent_that_nobody_samples_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PairError, match="'code' is not sampled by the guide"):
        evaluate(model, nothing, torch.zeros(3))


def test_a_latent_of_all_rows_cannot_be_summed_out() -> None:
    def model(x: Tensor) -> None:
        c = pyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(LOCS[c], 1.0), obs=x)

    with pytest.raises(
        PairError, match="'c' is marked for enumeration, but is outside of plate 'data'"
    ):
        evaluate(model, nothing, torch.zeros(3))


def test_latents_of_all_rows_give_the_predictive_density() -> None:
    """mu ~ q = N(0.5, 0.3^2) and z exact given mu: log p(x) is log N(x; 0.5, 2 + 0.09)."""
    model, guide = programs.shared_mean(1.0), programs.shared_mean_guide(0.5, 0.3)
    x = torch.linspace(-2, 3, 6)
    found = evaluate(model, guide, x, num_samples=4000, seed=0)
    assert_agrees(found, dist.Normal(0.5, 2.09**0.5).log_prob(x))
    assert any("'mu' belong to all rows" in note for note in found.notes)


def test_autoguides_that_keep_rows_apart_are_evaluated() -> None:
    x = torch.linspace(-2, 2, 100)
    guide = AutoNormal(scalar, init_scale=0.8, init_loc_fn=pyro.infer.autoguide.init_to_mean)
    found = evaluate(scalar, guide, x, num_samples=1000, seed=0, method="guide")
    assert_agrees(found, normal_evidence(x), sigmas=6.0)


def test_an_autodelta_is_the_density_at_a_point() -> None:
    x = torch.linspace(-2, 2, 5)
    guide = AutoDelta(scalar, init_loc_fn=pyro.infer.autoguide.init_to_mean)
    found = evaluate(scalar, guide, x, num_samples=3, seed=0)
    at_zero = dist.Normal(0.0, 1.0)
    expected = at_zero.log_prob(torch.zeros(5)) + at_zero.log_prob(x)
    torch.testing.assert_close(found.elbo.values, expected)
    assert found.log_likelihood.values.isnan().all()  # a point is no density


def test_an_autoguide_that_ties_rows_together_is_refused() -> None:
    with pytest.raises(PairError, match="draws the latents of all rows jointly"):
        evaluate(scalar, AutoMultivariateNormal(scalar), torch.zeros(4))


def test_pairs_with_pyro_params_leave_nothing_behind() -> None:
    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5**0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    pyro.param("scale", torch.tensor(123.0))  # somebody else's
    x = torch.linspace(-2, 2, 5)
    found = evaluate(scalar, guide, x, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values, normal_evidence(x))
    assert float(pyro.param("scale").detach()) == 123.0
    pyro.clear_param_store()


# -- data, modes, seeds ------------------------------------------------------------------------------------


def batches_of(x: Tensor) -> Iterator[tuple[str, Any]]:
    yield "tensor", x
    yield "loader", DataLoader(TensorDataset(x), batch_size=4)
    yield "loader with labels", DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=4)
    yield "batches", [x[:3], x[3:4], x[4:]]


def test_every_kind_of_data_gives_every_row_once_and_in_order() -> None:
    model, _ = random_pca(8)
    x = model.mean.detach() + torch.randn(150, len(model.mean))
    expected = model.log_evidence(x).detach()
    for kind, data in batches_of(x):
        found = evaluate(model, Exact(model), data, num_samples=2, seed=0)
        assert found.num_rows == 150, kind
        torch.testing.assert_close(found.log_likelihood.values, expected, atol=1e-3, rtol=1e-5)


def test_an_iterator_is_refused() -> None:
    with pytest.raises(TypeError, match="read only once"):
        evaluate(scalar, scalar_guide, iter([torch.zeros(3)]))


def test_models_of_several_arguments() -> None:
    def model(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))

    x, shift = torch.randn(100), torch.randn(100)
    found = evaluate(model, guide, (x, shift), num_samples=2, seed=0)
    torch.testing.assert_close(
        found.log_likelihood.values, normal_evidence(x - shift), atol=1e-5, rtol=1e-5
    )


def test_float64_stays_float64() -> None:
    x = torch.randn(5, dtype=torch.float64)
    found = evaluate(scalar, scalar_guide, x, num_samples=9, seed=0)
    for values in (found.elbo.values, found.log_likelihood.values, found.ess, found.khat):
        assert values.dtype == torch.float64


def test_modules_are_in_evaluation_mode_meanwhile_and_nothing_in_them_changes() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    network[2].eval()  # the user's own choice, to be kept
    modes: list[bool] = []

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> None:
            modes.append(self.training or network[1].training or network[2].training)
            with pyro.plate("data", len(x)):
                loc, scale = self.network(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc[:, 0], scale[:, 0].exp()))

    def decoder(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z[..., None].expand(*z.shape, 3)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    guide = Encoder()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    evaluate(decoder, guide, torch.randn(20, 3), num_samples=5, seed=0)
    assert modes
    assert not any(modes)
    assert (guide.training, network[1].training, network[2].training) == (True, True, False)
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in guide.parameters())


def test_a_seed_makes_it_reproducible_and_leaves_the_global_generator_alone() -> None:
    x = torch.randn(6)
    state = torch.get_rng_state()
    first = evaluate(scalar, scalar_guide, x, num_samples=50, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    second = evaluate(scalar, scalar_guide, x, num_samples=50, seed=7)
    assert torch.equal(first.log_likelihood.values, second.log_likelihood.values)
    other = evaluate(scalar, scalar_guide, x, num_samples=50, seed=8)
    assert not torch.equal(first.log_likelihood.values, other.log_likelihood.values)


def test_without_a_seed_the_global_generator_is_used() -> None:
    x = torch.randn(6)
    torch.manual_seed(3)
    first = evaluate(scalar, scalar_guide, x, num_samples=50)
    second = evaluate(scalar, scalar_guide, x, num_samples=50)
    assert not torch.equal(first.log_likelihood.values, second.log_likelihood.values)
    torch.manual_seed(3)
    again = evaluate(scalar, scalar_guide, x, num_samples=50)
    assert torch.equal(first.log_likelihood.values, again.log_likelihood.values)


def test_diagnostics_are_those_of_the_weights() -> None:
    """With one chunk, ESS, k-hat and error recomputed from the weights themselves."""
    x = torch.randn(4)
    weights: list[Tensor] = []
    original: Callable[..., Any] = sample_rows

    def recorded(*args: Any, **kwargs: Any) -> Any:
        rows = original(*args, **kwargs)
        weights.append(rows.log_weights)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighing, "sample_rows", recorded)
        found = evaluate(scalar, scalar_guide, x, num_samples=400, seed=0)
    log_w = weights[-1].double()
    assert log_w.shape == (400, 4)
    w = log_w.exp()
    torch.testing.assert_close(found.ess.double(), w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.khat.double(), stats.pareto_khat(log_w), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.log_likelihood_error.double(), w.std(0) / w.mean(0) / 20, rtol=1e-4, atol=0
    )


def test_few_different_weights_are_no_alarm_if_the_latent_is_summed_over() -> None:
    """With few samples, as with discrete latents, k-hat gives no verdict; a sum over all values needs none."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))

    x = torch.linspace(-1, 2, 50)
    for num_samples in (1, 15, 200):
        found = evaluate(model, guide, x, num_samples=num_samples, seed=0)
        assert not found.unreliable.any()
        assert not found.warnings
        assert "log p(x), exact" in str(found)
        assert "samples" not in str(found.lines())


@pytest.mark.parametrize("function", [evaluate, diagnose])
def test_data_that_do_not_fit_are_refused_in_plain_words(function: Callable[..., Any]) -> None:
    model, guide = VAE((1, 4, 4), 2), MeanField((1, 4, 4), 2)
    with pytest.raises(PairError, match="the guide raised"):
        function(model, guide, torch.zeros(5, 1, 3, 4))
    with pytest.raises(PairError, match=r"'x' .*outside of the support of Bernoulli"):
        function(model, guide, torch.full((5, 1, 4, 4), 7.0))
    x = torch.zeros(5, 1, 4, 4)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(PairError, match="NaN"):
        function(model, guide, x)
