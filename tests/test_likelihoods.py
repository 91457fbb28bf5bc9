"""What every likelihood has to do: add a row to LIKELIHOODS, with an oracle, and the tests come with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import catalogue
import mpmath  # type: ignore[import-untyped]
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.distributions import QuantizedLogistic
from ppl_vae.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Binomial,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    LearnedGaussian,
    Likelihood,
    OptimalGaussian,
)

Oracle = Callable[[Tensor, np.ndarray], np.ndarray]


def logistic_mass(f: Tensor, x: np.ndarray, levels: int) -> np.ndarray:
    """By differences of scipy's distribution function, good in the middle of the range."""
    location, log_scale = f.numpy()
    scale = np.exp(7 * np.tanh(log_scale / 7)) / 2
    logistic = scipy.stats.logistic((1 + location) / 2, scale)
    half = 0.5 / (levels - 1)
    above = np.where(x == 1, 1, logistic.cdf(x + half))
    mass: np.ndarray = above - np.where(x == 0, 0, logistic.cdf(x - half))
    log_mass: np.ndarray = np.log(mass)
    return log_mass


def beta_binomial_mass(f: Tensor, x: np.ndarray, levels: int) -> np.ndarray:
    """Scipy's."""
    alpha, beta = (7 * np.tanh(f.numpy() / 7) for f in f)
    log_mass: np.ndarray = scipy.stats.betabinom.logpmf(
        np.round(x * (levels - 1)), levels - 1, np.exp(alpha), np.exp(beta)
    )
    return log_mass


def category_mass(f: Tensor, x: np.ndarray) -> np.ndarray:
    """log softmax by scipy."""
    log_mass: np.ndarray = scipy.special.log_softmax(f.numpy(), 0)
    found: np.ndarray = np.take_along_axis(log_mass, x[None].astype(int), 0)[0]
    return found


# The constructor, and log p(x | features) from another library.
LIKELIHOODS: list[tuple[Callable[[], Likelihood], Oracle]] = [
    (Bernoulli, lambda f, x: scipy.stats.bernoulli.logpmf(x, f[0].sigmoid())),
    (Binomial, lambda f, x: scipy.stats.binom.logpmf(x, 16, f[0].sigmoid())),
    (lambda: Binomial(3), lambda f, x: scipy.stats.binom.logpmf(x, 3, f[0].sigmoid())),
    (lambda: Gaussian(0.3), lambda f, x: scipy.stats.norm.logpdf(x, f[0], 0.3)),
    (lambda: LearnedGaussian(2.5), lambda f, x: scipy.stats.norm.logpdf(x, f[0], 2.5)),
    (OptimalGaussian, lambda f, x: scipy.stats.norm.logpdf(x, f[0], 1.0)),
    (DiscretizedLogistic, lambda f, x: logistic_mass(f, x, 256)),
    (lambda: DiscretizedLogistic(5), lambda f, x: logistic_mass(f, x, 5)),
    (BetaBinomial, lambda f, x: beta_binomial_mass(f, x, 256)),
    (lambda: BetaBinomial(5), lambda f, x: beta_binomial_mass(f, x, 5)),
    (lambda: Categorical(4), category_mass),
]
likelihoods = pytest.mark.parametrize("make", [make for make, _ in LIKELIHOODS])


def test_every_likelihood_of_the_catalogue_has_an_oracle() -> None:
    assert {type(make()).__name__ for make, _ in LIKELIHOODS} == set(catalogue.LIKELIHOODS)


@likelihoods
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("data_shape", [(4,), (1, 5, 6)], ids=str)
def test_shapes(
    make: Callable[[], Likelihood], batch: tuple[int, ...], data_shape: tuple[int, ...]
) -> None:
    likelihood = make()
    features = torch.randn(*batch, likelihood.num_params, *data_shape)
    p = likelihood(features, len(data_shape))
    assert p.batch_shape == batch
    assert p.event_shape == data_shape
    assert p.mean.shape == (*batch, *data_shape)
    x = p.sample((7,))
    assert x.shape == (7, *batch, *data_shape)
    assert p.support.check(x).all()
    assert p.log_prob(x).shape == (7, *batch)
    wide = p.expand((2, *batch))
    torch.testing.assert_close(wide.log_prob(x[:2]), p.log_prob(x[:2]))


@pytest.mark.parametrize(("make", "oracle"), LIKELIHOODS)
def test_log_prob_equals_another_library(make: Callable[[], Likelihood], oracle: Oracle) -> None:
    likelihood = make().double().eval()
    features = 2 * torch.randn(50, likelihood.num_params, 4, dtype=torch.float64)
    p = likelihood(features, 1)
    x = p.sample()
    expected = oracle(features.movedim(1, 0), x.numpy()).sum(-1)
    np.testing.assert_allclose(p.log_prob(x).detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "values"),
    [
        (Bernoulli(), torch.arange(2.0)),
        (Binomial(16), torch.arange(17.0)),
        (DiscretizedLogistic(256), torch.arange(256) / 255),
        (DiscretizedLogistic(2), torch.arange(2.0)),
        (BetaBinomial(256), torch.arange(256) / 255),
        (BetaBinomial(2), torch.arange(2.0)),
    ],
)
def test_masses_sum_to_one_and_give_the_mean(likelihood: Likelihood, values: Tensor) -> None:
    features = 5 * torch.randn(100, likelihood.num_params, 1)
    p = likelihood(features, 1)
    log_masses = torch.stack([p.log_prob(value.expand(100, 1)) for value in values])
    torch.testing.assert_close(log_masses.logsumexp(0), torch.zeros(100), atol=3e-5, rtol=0)
    mean = (log_masses.exp() * values.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(p.mean.squeeze(-1), mean, atol=1e-5, rtol=1e-4)


@likelihoods
def test_gradients_reach_features_and_parameters(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    features = torch.randn(3, likelihood.num_params, 4, requires_grad=True)
    x = likelihood(features, 1).sample()
    likelihood(features, 1, x).log_prob(x).sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum((0, 2)) > 0).all()
    for name, parameter in likelihood.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad != 0, f"the gradient of {name} is zero"


@likelihoods
def test_half_precision_features_are_scored_in_float32(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    features = torch.randn(3, likelihood.num_params, 4, dtype=torch.bfloat16)
    p = likelihood(features, 1)
    assert p.log_prob(p.sample()).dtype == torch.float32


@likelihoods
@pytest.mark.parametrize("shape", [(4,), (3, 3, 4), (3, 4)], ids=str)
def test_wrong_features_are_named(make: Callable[[], Likelihood], shape: tuple[int, ...]) -> None:
    likelihood = make()
    name = type(likelihood).__name__
    with pytest.raises(ValueError, match=rf"{name} needs features of shape .*got \({shape[0]},"):
        likelihood(torch.zeros(shape), 1)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Binomial\.total_count must be at least 1, got 0"):
        Binomial(0)
    with pytest.raises(ValueError, match=r"\AGaussian\.sigma must be positive, got 0\.0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match=r"LearnedGaussian\.initial_sigma must be positive"):
        LearnedGaussian(-1.0)
    with pytest.raises(ValueError, match=r"DiscretizedLogistic\.levels must be at least 2"):
        DiscretizedLogistic(1)


def test_data_outside_the_support_are_refused() -> None:
    gray = torch.full((3, 4), 0.5)
    with pytest.raises(ValueError, match="support"):
        Bernoulli()(torch.zeros(3, 1, 4), 1).log_prob(gray)
    with pytest.raises(ValueError, match="support"):
        Binomial(16)(torch.zeros(3, 1, 4), 1).log_prob(torch.full((3, 4), 17.0))
    with pytest.raises(ValueError, match="support"):
        DiscretizedLogistic()(torch.zeros(3, 2, 4), 1).log_prob(gray)  # 127.5 / 255


@pytest.mark.parametrize("shape", [(3, 4), (5, 3, 4), (2, 5, 3, 4)], ids=str)
def test_binomial_equals_the_original_for_any_shape(shape: tuple[int, ...]) -> None:
    """Its shortcut for the coefficient: data with fewer, as many and more dimensions."""
    logits = 100 * torch.randn(5, 3, 4, dtype=torch.float64)
    x = torch.randint(0, 17, shape).double()
    p, original = Binomial(16)(logits.unsqueeze(-2), 1), dist.Binomial(16, logits=logits)
    expected = original.log_prob(x)
    torch.testing.assert_close(p.log_prob(x), expected.sum(-1))
    wide = p.expand((2, 5, 3))
    torch.testing.assert_close(wide.log_prob(x), expected.expand(2, 5, 3, 4).sum(-1))


class TestOptimalGaussian:
    """The formula: sigma*^2 is the mean squared error per dimension."""

    @pytest.mark.parametrize("particles", [(), (5,)], ids=str)
    def test_the_batch_optimum(self, particles: tuple[int, ...]) -> None:
        likelihood = OptimalGaussian().double()
        x = torch.randn(20, 3, dtype=torch.float64)
        mean = torch.randn(*particles, 20, 3, dtype=torch.float64)
        variance = ((x - mean) ** 2).mean()
        p = likelihood(mean.unsqueeze(-2), 1, x)
        torch.testing.assert_close(p.variance, variance.expand_as(mean))

        def total(log_sigma: Tensor) -> Tensor:
            score: Tensor = torch.distributions.Normal(mean, log_sigma.exp()).log_prob(x).sum()
            return score

        torch.testing.assert_close(p.log_prob(x).sum(), total(variance.log() / 2))
        slope = torch.autograd.functional.jacobian(total, variance.log() / 2)
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-10, rtol=0)

    def test_the_buffer_is_the_average_and_is_used_in_evaluation(self) -> None:
        likelihood = OptimalGaussian()
        batches = [torch.randn(4, 3) * scale for scale in (1.0, 2.0, 3.0)]
        for x in batches:
            likelihood(torch.zeros(4, 1, 3), 1, x)
        average = torch.stack([x.square().mean() for x in batches]).mean()
        torch.testing.assert_close(likelihood.variance, average)

        restored = OptimalGaussian().eval()
        restored.load_state_dict(likelihood.state_dict())
        features, x = torch.randn(4, 1, 3), torch.randn(4, 3)
        p = restored(features, 1, x)
        torch.testing.assert_close(p.variance, average.expand(4, 3))
        torch.testing.assert_close(restored.variance, average)
        rows = [restored(f, 1, row).log_prob(row) for f, row in zip(features, x, strict=True)]
        torch.testing.assert_close(p.log_prob(x), torch.stack(rows))

    def test_without_data_training_uses_the_buffer(self) -> None:
        likelihood = OptimalGaussian()
        likelihood(torch.zeros(4, 1, 3), 1, 2 * torch.ones(4, 3))
        torch.testing.assert_close(likelihood(torch.zeros(1, 3), 1).variance, 4 * torch.ones(3))

    def test_old_batches_are_forgotten(self) -> None:
        likelihood = OptimalGaussian()
        for x in [torch.zeros(1, 1)] * 200 + [torch.ones(1, 1)] * 1000:
            likelihood(torch.zeros(1, 1, 1), 1, x)
        expected = 1 - (1 - 1e-6) * 0.99**1000
        torch.testing.assert_close(likelihood.variance, torch.tensor(expected))

    def test_a_perfect_fit_stays_finite(self) -> None:
        x = torch.ones(4, 3)
        p = OptimalGaussian()(x.unsqueeze(-2), 1, x)
        torch.testing.assert_close(p.variance, torch.full((4, 3), 1e-6))


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_all_masses_of_a_beta_binomial_at_once(levels: int) -> None:
    features = 3 * torch.randn(20, 2, 4, dtype=torch.float64)
    p: Any = BetaBinomial(levels)(features, 1).base_dist
    values = (torch.arange(levels).double() / (levels - 1)).reshape(-1, 1, 1)
    torch.testing.assert_close(p.log_masses(), p.log_prob(values), rtol=1e-9, atol=1e-9)


class TestQuantizedLogistic:
    """Numbers that a difference of distribution functions gets wrong."""

    @pytest.mark.parametrize("k", [0, 1, 100, 254, 255])
    @pytest.mark.parametrize("loc", [-2.0, 0.4, 1.0, 3.0])
    @pytest.mark.parametrize("scale", [5e-4, 0.02, 500.0])
    def test_far_in_the_tails_in_float32(self, k: int, loc: float, scale: float) -> None:
        p = QuantizedLogistic(torch.tensor(loc), torch.tensor(scale), validate_args=True)
        value = p.log_prob(torch.tensor(k / 255))

        with mpmath.workdps(6000):

            def cdf(x: mpmath.mpf) -> mpmath.mpf:
                return 1 / (1 + mpmath.exp(-(x - mpmath.mpf(loc)) / mpmath.mpf(scale)))

            x, half = mpmath.mpf(k) / 255, mpmath.mpf(1) / 510
            above = mpmath.mpf(1) if k == 255 else cdf(x + half)
            below = mpmath.mpf(0) if k == 0 else cdf(x - half)
            expected = float(mpmath.log(above - below))
        # 1e-7 of x / scale is what float32 knows of the argument.
        torch.testing.assert_close(
            value, torch.tensor(expected), rtol=1e-5, atol=3e-7 * (1 + abs(loc)) / scale + 1e-6
        )

    def test_gradients_are_exact_and_stay_finite(self) -> None:
        x = torch.tensor([0.0, 1, 128, 254, 255], dtype=torch.float64) / 255

        def log_prob(loc: Tensor, log_scale: Tensor) -> Tensor:
            return QuantizedLogistic(loc, log_scale.exp()).log_prob(x)

        loc = torch.randn(5, dtype=torch.float64, requires_grad=True)
        log_scale = torch.randn(5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(log_prob, (loc, log_scale))

        features = torch.tensor([[-1e4, -1e4], [1e4, -1e4], [1e4, 1e4], [0.0, -50.0]])
        features.requires_grad_()
        for k in (0, 77, 255):
            value = torch.full((4, 1), k / 255)
            p = DiscretizedLogistic()(features.unsqueeze(-1), 1)
            p.log_prob(value).sum().backward()
            assert features.grad is not None
            assert features.grad.isfinite().all()

    def test_no_function_is_slow(self) -> None:
        """These take ten times as long on a CPU as those that torch vectorizes."""

        class Called(TorchDispatchMode):
            names: ClassVar[set[str]] = set()

            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                self.names.add(func.overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        with Called() as called:  # type: ignore[no-untyped-call]
            QuantizedLogistic(torch.rand(5), torch.rand(5)).log_prob(torch.ones(5))
        assert "tanh" in called.names
        assert not {"log_sigmoid_forward", "softplus", "expm1", "log1p"} & called.names

    def test_samples_follow_the_masses(self) -> None:
        p = QuantizedLogistic(torch.tensor(0.8), torch.tensor(0.2), levels=8)
        counts = torch.bincount((p.sample((20_000,)) * 7).round().long(), minlength=8)
        masses = p.log_prob(torch.arange(8) / 7).exp().double()
        test = scipy.stats.chisquare(counts, 20_000 * masses / masses.sum())
        assert test.pvalue > 1e-3

    def test_the_support_is_what_pictures_hold(self) -> None:
        p = QuantizedLogistic(torch.tensor(0.5), torch.tensor(0.1))
        pixels = torch.arange(256, dtype=torch.uint8)
        assert p.support.check(pixels / 255).all()
        assert p.support.check(pixels * (1 / 255)).all()
        wrong = torch.tensor([-1 / 255, 256 / 255, 0.5 / 255, 255.0, float("nan"), float("inf")])
        assert not p.support.check(wrong).any()
        assert not p.support.check(pixels[1:] / 256).any()  # a common slip
        assert constraints.is_dependent(QuantizedLogistic.support)

    def test_expanded(self) -> None:
        p = QuantizedLogistic(torch.tensor([0.2, 0.7]), torch.tensor(0.1), levels=4)
        wide = p.expand((3, 2))
        assert wide.batch_shape == (3, 2)
        assert wide.levels == 4
        x = wide.sample((5,))
        assert x.shape == (5, 3, 2)
        torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
        with pytest.raises(ValueError, match="support"):
            wide.log_prob(x + 0.1)

    def test_bad_parameters_are_refused(self) -> None:
        with pytest.raises(ValueError, match="scale"):
            QuantizedLogistic(torch.tensor(0.2), torch.tensor(0.0))
