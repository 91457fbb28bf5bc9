"""The generative models: their traces, and probabilistic PCA against the closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from catalogue import LIKELIHOODS
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_vae.likelihoods import Bernoulli, OptimalGaussian
from ppl_vae.models import (
    VAE,
    Autoregressive,
    BernoulliMixture,
    FactorAnalysis,
    GaussianMixture,
    HierarchicalVAE,
    MixtureOfPCA,
    ProbabilisticPCA,
)
from ppl_vae.networks import MLP, Convolutional

SHAPE = (1, 5, 4)
SMALL = MLP(hidden=(8,))
MakeModel = Callable[[], VAE | ProbabilisticPCA]


def vae(likelihood: str) -> MakeModel:
    return lambda: VAE(SHAPE, 3, SMALL, LIKELIHOODS[likelihood].make())


# Three latent dimensions, data of shape SHAPE.
MODELS: dict[str, MakeModel] = {
    **{f"VAE-{likelihood}": vae(likelihood) for likelihood in LIKELIHOODS},
    "VAE-Convolutional": lambda: VAE(SHAPE, 3, Convolutional((4, 6), 8)),
    "ProbabilisticPCA": lambda: ProbabilisticPCA(SHAPE, 3),
    "ProbabilisticPCA-fixed": lambda: ProbabilisticPCA(SHAPE, 3, sigma=0.5, learn_sigma=False),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def data_for(model: VAE | ProbabilisticPCA, n: int) -> Tensor:
    with torch.no_grad():
        x: Tensor = model.decode(model.prior().sample((n,))).sample()
    return x


@models
def test_trace(make: MakeModel) -> None:
    model = make().eval()
    x = data_for(model, 6)
    trace: Any = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    assert set(trace.stochastic_nodes) == {"data", "z"}
    assert trace.observation_nodes == ["x"]
    z = trace.nodes["z"]["value"]
    assert z.shape == (6, 3)
    expected_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected_z)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], model.decode(z).log_prob(x))


@models
def test_trace_inside_a_plate_of_samples(make: MakeModel) -> None:
    model = make().eval()
    x = data_for(model, 6)
    with pyro.plate("samples", 4, dim=-2):
        trace: Any = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (4, 6, 3)
    log_prob = trace.nodes["x"]["log_prob"]
    assert log_prob.shape == (4, 6)
    by_hand = torch.stack([model.decode(one).log_prob(x) for one in z])
    torch.testing.assert_close(log_prob, by_hand)


@models
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_decode(make: MakeModel, batch: tuple[int, ...]) -> None:
    model = make().eval()
    p = model.decode(torch.randn(*batch, 3))
    assert p.batch_shape == batch
    assert p.event_shape == SHAPE
    assert model.prior().event_shape == (3,)
    assert (model.data_shape, model.latent_dim) == (SHAPE, 3)


@models
def test_every_parameter_gets_a_gradient(make: MakeModel) -> None:
    model = make()
    x = data_for(model, 6)
    trace: Any = poutine.trace(model).get_trace(x)
    (-trace.log_prob_sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


@models
def test_state_and_precision(make: MakeModel) -> None:
    model, other = make().eval(), make().eval()
    x = data_for(model, 6)
    other.load_state_dict(model.state_dict())
    z = torch.randn(6, 3)
    assert torch.equal(model.decode(z).log_prob(x), other.decode(z).log_prob(x))
    model.double()
    assert model.prior().sample().dtype == torch.float64
    assert model.decode(z.double()).log_prob(x.double()).dtype == torch.float64


@models
def test_wrong_data_are_named(make: MakeModel) -> None:
    with pytest.raises(
        ValueError, match=r"data of shape \(n, 1, 5, 4\), but x has shape \(6, 20\)"
    ):
        make()(torch.zeros(6, 20))


@pytest.mark.parametrize(
    "model",
    [
        *(Autoregressive, BernoulliMixture, FactorAnalysis, GaussianMixture),
        *(HierarchicalVAE, MixtureOfPCA, ProbabilisticPCA, VAE),
    ],
)
def test_every_model_names_itself_and_the_shape_it_was_built_for(model: Any) -> None:
    words = (
        rf"{model.__name__} was built for data of shape \(n, 2, 3\), but x has shape \(5, 3, 2\)"
    )
    with pytest.raises(ValueError, match=words):
        model((2, 3))(torch.zeros(5, 3, 2))


def test_linear_models_save_what_older_runs_have_saved() -> None:
    saved = ["weight", "mean", "log_sigma"]
    assert list(ProbabilisticPCA(SHAPE).state_dict()) == saved
    assert list(ProbabilisticPCA(SHAPE, learn_sigma=False).state_dict()) == saved
    assert list(FactorAnalysis(SHAPE).state_dict()) == [*saved, "centre"]


def test_bernoulli_is_the_default() -> None:
    assert isinstance(VAE(SHAPE).likelihood, Bernoulli)


def test_sigma_star_is_the_batch_optimum_inside_the_model() -> None:
    model = VAE(SHAPE, 3, SMALL, OptimalGaussian())
    x = torch.randn(6, *SHAPE)
    with pyro.plate("samples", 4, dim=-2):
        trace: Any = poutine.trace(model).get_trace(x)
    p = trace.nodes["x"]["fn"]
    torch.testing.assert_close(p.variance[0, 0, 0, 0, 0], (x - p.mean).square().mean())


# Probabilistic PCA ---------------------------------------------------------------------------


def random_pca(seed: int) -> tuple[ProbabilisticPCA, Tensor]:
    """A random instance in float64, of dimension 1..20, latent 1..8, sigma over three decades."""
    torch.manual_seed(seed)
    size = int(torch.randint(1, 21, ()))
    latent = int(torch.randint(1, 9, ()))
    sigma = 10 ** float(torch.empty(()).uniform_(-2, 1))
    model = ProbabilisticPCA((size,), latent, sigma, learn_sigma=bool(seed % 2)).double()
    with torch.no_grad():
        model.mean.normal_()
        if seed % 3 == 0:
            model.weight[:, -1] = 0  # a collapsed dimension
    return model, data_for(model, 7)


def marginal(model: ProbabilisticPCA) -> MultivariateNormal:
    covariance = model.weight @ model.weight.T
    covariance = covariance + (2 * model.log_sigma).exp() * torch.eye(len(model.mean)).double()
    return MultivariateNormal(model.mean, covariance)


@pytest.mark.parametrize("seed", range(60))
def test_log_evidence_equals_the_marginal(seed: int) -> None:
    model, x = random_pca(seed)
    expected = marginal(model).log_prob(x)
    torch.testing.assert_close(model.log_evidence(x), expected, rtol=1e-8, atol=1e-8)
    # And in float32, where W W^T / sigma^2 would have lost all digits.
    single = model.float().log_evidence(x.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", range(60))
def test_posterior_equals_gaussian_conditioning(seed: int) -> None:
    """Of the joint covariance [[I, W^T], [W, C]], by a D x D inverse."""
    model, x = random_pca(seed)
    gain = torch.linalg.solve(marginal(model).covariance_matrix, model.weight).T
    mean = (x - model.mean) @ gain.T
    covariance = torch.eye(model.latent_dim).double() - gain @ model.weight
    p = model.posterior(x)
    assert p.batch_shape == (7,)
    torch.testing.assert_close(p.mean, mean, rtol=1e-6, atol=1e-8)
    expected = covariance.expand(7, -1, -1)
    torch.testing.assert_close(p.covariance_matrix, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(10))
def test_bayes_rule(seed: int) -> None:
    """p(z) p(x | z) / p(z | x) is log p(x), whatever z."""
    model, x = random_pca(seed)
    p = model.posterior(x)
    for z in p.sample((3,)):
        ratio = model.prior().log_prob(z) + model.decode(z).log_prob(x) - p.log_prob(z)
        torch.testing.assert_close(ratio, model.log_evidence(x), rtol=1e-8, atol=1e-8)


def test_closed_forms_are_differentiable() -> None:
    model, x = random_pca(1)
    names = ("weight", "mean", "log_sigma")
    values = [getattr(model, name).detach().clone().requires_grad_() for name in names]

    def closed_forms(*parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = dict(zip(names, parameters, strict=True))

        def call(method: str) -> object:
            return torch.func.functional_call(_Method(model, method), _prefixed(state), (x,))

        p = call("posterior")
        evidence = call("log_evidence")
        assert isinstance(p, MultivariateNormal)
        assert isinstance(evidence, Tensor)
        return evidence, p.mean, p.scale_tril

    assert torch.autograd.gradcheck(closed_forms, values)


class _Method(nn.Module):
    """A method of a model as a module, for functional_call."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> object:
        return getattr(self.model, self.method)(x)


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in state.items()}


def test_pictures_are_flattened() -> None:
    model = ProbabilisticPCA(SHAPE, 3)
    flat = ProbabilisticPCA((20,), 3)
    flat.load_state_dict(model.state_dict())
    x = data_for(model, 6)
    torch.testing.assert_close(model.log_evidence(x), flat.log_evidence(x.reshape(6, 20)))
    torch.testing.assert_close(model.posterior(x).mean, flat.posterior(x.reshape(6, 20)).mean)


# The optimum of the beta-ELBO ----------------------------------------------------------------


def spectrum(x: Tensor) -> Tensor:
    """Eigenvalues of the sample covariance, falling."""
    values: Tensor = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    return values


def beta_elbo(
    model: ProbabilisticPCA, x: Tensor, beta: float, gain: Tensor, shift: Tensor, factor: Tensor
) -> Tensor:
    """Mean beta-ELBO of the guide N(gain (x - shift), factor factor^T), from its definition."""
    z = (x - shift) @ gain.T
    covariance = factor @ factor.T
    variance = (2 * model.log_sigma).exp()
    error = (x - model.mean - z @ model.weight.T).square().sum(-1)
    error = error + (model.weight @ covariance @ model.weight.T).trace()
    distortion = 0.5 * (error / variance + x.shape[1] * (math.tau * variance).log())
    rate = 0.5 * (z.square().sum(-1) + covariance.trace() - z.shape[1] - covariance.logdet())
    elbo: Tensor = (-distortion - beta * rate).mean()
    return elbo


def best_guide(model: ProbabilisticPCA, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """q proportional to p(z) p(x | z)^(1 / beta): the posterior for noise beta sigma^2."""
    variance = beta * (2 * model.log_sigma).exp()
    identity = torch.eye(model.latent_dim).double()
    covariance = torch.linalg.inv(identity + model.weight.T @ model.weight / variance)
    gain = covariance @ model.weight.T / variance
    return gain, model.mean, torch.linalg.cholesky(covariance)


def spread_data(seed: int, n: int, size: int) -> Tensor:
    torch.manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(size, size).double()).Q
    scales = torch.logspace(0.7, -0.7, size).double()
    x: Tensor = torch.randn(n, size).double() * scales @ mixing + torch.randn(size).double()
    return x


@pytest.mark.slow(but=("1.0-True",))
@pytest.mark.parametrize(
    ("beta", "learn_sigma"),
    [
        *((1.0, True), (1.5, False), (4.0, True)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0.3, True), (0.3, False), (1.0, False), (1.5, True), (4.0, False))
        ),
    ],
)
def test_optimum_equals_the_numerical_one(beta: float, learn_sigma: bool) -> None:
    """Every parameter of model and guide is free; nothing of the closed form is used."""
    x = spread_data(seed=3, n=40, size=5)
    model = ProbabilisticPCA((5,), 3, sigma=0.6, learn_sigma=learn_sigma).double()
    closed = ProbabilisticPCA((5,), 3, sigma=0.6, learn_sigma=learn_sigma).double()
    closed.maximum_likelihood(x, beta)
    best = beta_elbo(closed, x, beta, *best_guide(closed, beta))

    gain = nn.Parameter(0.1 * torch.randn(3, 5).double())
    shift = nn.Parameter(torch.zeros(5).double())
    factor = nn.Parameter(torch.eye(3).double())
    optimizer = torch.optim.LBFGS(
        [*model.parameters(), gain, shift, factor],
        max_iter=1000,
        max_eval=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-11,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -beta_elbo(model, x, beta, gain, shift, factor)
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = beta_elbo(model, x, beta, gain, shift, factor)
    assert reached <= best + 1e-9, "the closed form is not the optimum"
    torch.testing.assert_close(reached, best, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.log_sigma, closed.log_sigma, rtol=0, atol=1e-3)
    closed_values = torch.linalg.svdvals(closed.weight)
    torch.testing.assert_close(torch.linalg.svdvals(model.weight), closed_values, rtol=0, atol=0.02)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_optimum_has_the_eigenvalues(seed: int, learn_sigma: bool) -> None:
    torch.manual_seed(seed)
    size = int(torch.randint(2, 21, ()))
    latent = int(torch.randint(1, min(size, 8) + 1, ()))
    beta = float(torch.empty(()).uniform_(0.2, 3)) if seed % 2 else 1.0
    x = spread_data(seed, 3 * size, size)
    values = spectrum(x)
    model = ProbabilisticPCA((size,), latent, sigma=0.7, learn_sigma=learn_sigma).double()
    if learn_sigma and latent == size and beta < 1:
        with pytest.raises(ValueError, match="sigma has no optimum"):
            model.maximum_likelihood(x, beta)
        return
    model.maximum_likelihood(x, beta)
    variance = (2 * model.log_sigma.detach()).exp()
    if learn_sigma:
        # The stationarity condition of the docstring, for beta = 1 the classical mean.
        kept, discarded = values[:latent] / variance, values[latent:] / variance
        left = kept.clamp_max(beta).sum() + discarded.sum()
        torch.testing.assert_close(left, torch.tensor(float(size)).double())
        if beta == 1 and latent < size:
            torch.testing.assert_close(variance, values[latent:].mean())
    else:
        torch.testing.assert_close(variance, torch.tensor(0.49).double())
    columns = model.weight.detach().norm(dim=0)
    expected = (values[:latent] - beta * variance).clamp_min(0).sqrt()
    torch.testing.assert_close(columns, expected, rtol=1e-6, atol=1e-6)
    assert ((columns == 0) == (values[:latent] <= beta * variance + 1e-12)).all()
    torch.testing.assert_close(model.mean.detach(), x.mean(0))
    gram = model.weight.T @ model.weight
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-8)


def test_optimum_is_stationary_for_the_evidence() -> None:
    x = spread_data(seed=5, n=60, size=6)
    model = ProbabilisticPCA((6,), 3).double().maximum_likelihood(x)
    model.log_evidence(x).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-10, name


def test_the_table_of_closed_forms() -> None:
    """KL, guide variance, variance of posterior means, as in the table of the literature."""
    x = spread_data(seed=6, n=60, size=6)
    model = ProbabilisticPCA((6,), 3).double().maximum_likelihood(x)
    values, variance = spectrum(x)[:3], (2 * model.log_sigma).exp()
    p = model.posterior(x)
    torch.testing.assert_close(p.variance[0], variance / values)
    torch.testing.assert_close(p.mean.var(0, correction=0), 1 - variance / values)
    moments = p.variance + p.mean.square() - 1 - p.variance.log()
    torch.testing.assert_close(0.5 * moments.mean(0), 0.5 * (values / variance).log())


def test_without_discarded_variance() -> None:
    x = spread_data(seed=7, n=4, size=6)  # rank 3
    model = ProbabilisticPCA((6,), 3).double()
    with pytest.raises(ValueError, match="sigma has no optimum: 3 latent dimensions hold all"):
        model.maximum_likelihood(x)
    fixed = ProbabilisticPCA((6,), 5, sigma=0.1, learn_sigma=False).double()
    fixed.maximum_likelihood(x)
    assert (fixed.weight.norm(dim=0) > 0).tolist() == [True] * 3 + [False] * 2

    full = ProbabilisticPCA((4,), 4).double()
    x = spread_data(seed=8, n=30, size=4)
    full.maximum_likelihood(x)  # beta = 1: C is the sample covariance
    covariance = torch.cov(x.T, correction=0)
    torch.testing.assert_close(marginal(full).covariance_matrix, covariance)
    with pytest.raises(ValueError, match="sigma has no optimum"):
        full.maximum_likelihood(x, beta=0.5)


@pytest.mark.parametrize("kind", [VAE, ProbabilisticPCA])
@pytest.mark.parametrize("latent_dim", [0, -3])
def test_a_latent_needs_a_dimension(kind: type[VAE | ProbabilisticPCA], latent_dim: int) -> None:
    message = rf"^{kind.__name__}\.latent_dim must be at least 1, got {latent_dim}$"
    with pytest.raises(ValueError, match=message):
        kind((3,), latent_dim)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ProbabilisticPCA\.sigma must be positive, got 0\.0"):
        ProbabilisticPCA((3,), sigma=0.0)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        ProbabilisticPCA((3,)).maximum_likelihood(torch.randn(9, 3), beta=0)
