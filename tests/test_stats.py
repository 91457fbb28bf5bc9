from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from ppl_vae.stats import (
    RunningVariance,
    StreamingWeights,
    active_units,
    generalized_pareto_fit,
    log_mean_exp,
    pareto_khat,
    standard_error,
    tail_size,
)

RESULTS = (
    "log_mean_exp",
    "ess",
    "khat",
    "mean_log_weight",
    "log_weight_variance",
    "monte_carlo_error",
)


def stream(log_weights: Tensor, chunks: list[int] | int) -> StreamingWeights:
    weights = StreamingWeights(len(log_weights))
    for chunk in log_weights.split(chunks):
        weights.update(chunk)
    return weights


def reference_khat(log_weights: Tensor, *, plain: bool) -> np.ndarray:
    """k-hat by ArviZ. Skips what ArviZ 1.x defines otherwise: it rounds the size of the tail down,
    and keeps ties with the cut-off and weights that underflow (not `plain`) in the tail.
    """
    K, rows = len(log_weights), log_weights.T.double().numpy().copy()
    import arviz

    psislw: Any = getattr(arviz, "psislw", None)
    if psislw is not None:
        return np.asarray(psislw(rows)[1])
    if not plain or tail_size(K) != int(min(K / 5, 3 * math.sqrt(K))):
        pytest.skip("ArviZ 1.x draws this tail otherwise")
    array_stats: Any = importlib.import_module("arviz_stats.base").array_stats
    return np.asarray(array_stats.psislw(-rows)[1])


def normal(scale: float) -> Callable[[int], Tensor]:
    return lambda K: scale * torch.randn(K, 3, dtype=torch.float64)


DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "nearly equal": normal(1e-3),
    "light": normal(0.1),
    "lognormal": normal(1.0),
    "heavy lognormal": normal(3.0),
    "one dominates": normal(30.0),
    "beyond float64's range": normal(150.0),
    "bounded": lambda K: torch.rand(K, 3, dtype=torch.float64).log(),
    "chi square": lambda K: 0.5 * torch.randn(K, 3, dtype=torch.float64).square(),
    "Cauchy": lambda K: torch.distributions.Cauchy(0.0, 1.0).sample((K, 3)).double(),
    "ties": lambda K: (3 * torch.randn(K, 3, dtype=torch.float64)).round(),
    "far from zero": lambda K: -1e5 + torch.randn(K, 3, dtype=torch.float64),
}


# --- log-mean-exp ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e300])
def test_log_mean_exp_agrees_with_arbitrary_precision(scale: float) -> None:
    torch.manual_seed(0)
    x = scale * torch.randn(30, 3, dtype=torch.float64)
    expected = []
    with mpmath.workdps(60):
        for column in x.T.tolist():
            largest = max(column)  # mpmath's exponents are unbounded, but 1e300 is slow
            total = sum(mpmath.exp(mpmath.mpf(v) - largest) for v in column if v >= largest - 200)
            expected.append(float(largest + mpmath.log(total / len(column))))
    for result in (log_mean_exp(x), stream(x, 7).log_mean_exp, log_mean_exp(x.T, dim=1)):
        torch.testing.assert_close(result.tolist(), expected, rtol=1e-14, atol=1e-14)


def test_log_mean_exp_has_the_softmax_as_gradient() -> None:
    x = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    log_mean_exp(x).backward()
    torch.testing.assert_close(x.grad, torch.softmax(x.detach(), 0))


def test_weights_of_zero_count_as_zeros() -> None:
    x = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf], [-math.inf, -math.inf]])
    weights = stream(x, 1)
    expected = torch.tensor([-math.log(3), -math.inf])
    torch.testing.assert_close(log_mean_exp(x), expected)
    torch.testing.assert_close(weights.log_mean_exp, expected)
    assert weights.ess.tolist() == [1.0, 0.0]
    assert weights.mean_log_weight.tolist() == [-math.inf, -math.inf]
    assert weights.khat[0] == math.inf
    assert weights.khat[1].isnan()
    assert weights.monte_carlo_error[1].isnan()


# --- streaming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 400])
def test_streaming_equals_the_whole_array(name: str, chunk: int) -> None:
    torch.manual_seed(1)
    x = DISTRIBUTIONS[name](400)
    weights = stream(x, chunk)
    w = (x - x.amax(0)).exp()
    assert weights.count == 400
    assert torch.equal(weights.khat, pareto_khat(x))
    torch.testing.assert_close(weights.log_mean_exp, log_mean_exp(x), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(weights.ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(weights.mean_log_weight, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.log_weight_variance, x.var(0), rtol=1e-10, atol=0)
    error = w.std(0) / (w.mean(0) * math.sqrt(400))
    torch.testing.assert_close(weights.monte_carlo_error, error, rtol=1e-7, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    chunks=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    scale=st.sampled_from([0.0, 0.01, 1.0, 20.0, 1e4]),
    zeros=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_no_chunking_changes_a_result(
    chunks: list[int], scale: float, zeros: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    K = sum(chunks)
    x = scale * torch.randn(K, 4, generator=generator)
    x[torch.rand(K, 4, generator=generator) < zeros] = -math.inf
    whole, parts = stream(x, K), stream(x, chunks)
    assert torch.equal(whole.khat.nan_to_num(1e9), parts.khat.nan_to_num(1e9))
    for name in RESULTS:
        result = getattr(parts, name)
        assert result.dtype == torch.float32
        torch.testing.assert_close(
            result, getattr(whole, name), rtol=1e-5, atol=1e-6, equal_nan=True, msg=name
        )


def test_results_may_be_read_before_all_samples_have_come() -> None:
    torch.manual_seed(2)
    x = 2 * torch.randn(500, 3, dtype=torch.float64)
    weights = StreamingWeights(5000)
    weights.update(x[:300])
    assert torch.equal(weights.khat, pareto_khat(x[:300]))
    weights.update(x[300:])
    assert torch.equal(weights.khat, pareto_khat(x))
    torch.testing.assert_close(weights.log_mean_exp, log_mean_exp(x))


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    K, n = 20_000, 2
    weights = StreamingWeights(K)
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(K // 100):
        weights.update(torch.randn(100, n, generator=generator))
        held = max(held, sum(part.untyped_storage().nbytes() for part in weights._pending))
    assert held <= 3 * (tail_size(K) + 1) * n * 4


def test_the_caller_may_reuse_its_chunk() -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    weights, buffer = StreamingWeights(100), torch.empty(10, 2)
    for chunk in x.split(10):
        buffer.copy_(chunk)
        weights.update(buffer)
    assert torch.equal(weights.khat, pareto_khat(x))


@pytest.mark.parametrize("value", [0.0, -543.21, 1e30])
@pytest.mark.parametrize("K", [2, 30, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_are_as_good_as_exact_draws(value: float, K: int, dtype: torch.dtype) -> None:
    weights = stream(torch.full((K, 3), value, dtype=dtype), 7)
    assert weights.ess.tolist() == [K] * 3
    assert weights.khat.tolist() == [-math.inf] * 3
    assert weights.monte_carlo_error.tolist() == [0.0] * 3
    torch.testing.assert_close(weights.log_mean_exp, torch.full((3,), value, dtype=dtype))


def test_weights_equal_up_to_float32_rounding_have_no_tail() -> None:
    torch.manual_seed(0)
    spacing = np.spacing(np.float32(600.0)).item()
    x = -600 + spacing * torch.randint(-2, 3, (1000, 4)).float()
    assert pareto_khat(x).tolist() == [-math.inf] * 4
    torch.testing.assert_close(stream(x, 100).ess, torch.full((4,), 1000.0))
    # The same spread is real in float64, and is not waved through there.
    assert pareto_khat(x.double()).tolist() == [math.inf] * 4


def test_ess_counts_the_weights_that_matter() -> None:
    x = torch.full((100, 2), -1e4, dtype=torch.float64)
    x[:10, 0] = 3.0
    x[50, 1] = 3.0
    torch.testing.assert_close(stream(x, 9).ess, torch.tensor([10.0, 1.0]).double())


def test_monte_carlo_error_is_the_spread_of_repeated_estimates() -> None:
    torch.manual_seed(3)
    K, repetitions = 2000, 4000
    x = 0.7 * torch.randn(K, repetitions, dtype=torch.float64)
    weights = stream(x, 500)
    # sd of the sample standard deviation of `repetitions` normal values: 1 / sqrt(2 * repetitions)
    spread = weights.log_mean_exp.std()
    tolerance = 4 / math.sqrt(2 * repetitions)
    assert abs(weights.monte_carlo_error.mean() / spread - 1) < tolerance
    closed_form = math.sqrt(math.expm1(0.7**2) / K)
    assert abs(spread / closed_form - 1) < tolerance


def test_a_nan_spoils_its_row_and_no_other() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    clean = stream(x, 7)
    x[20, 1] = math.nan
    spoilt = stream(x, 7)
    for name in RESULTS:
        values = getattr(spoilt, name)
        assert values.isnan().tolist() == [False, True, False], name
        assert torch.equal(values[::2], getattr(clean, name)[::2]), name


def test_an_infinite_weight_is_shown() -> None:
    x = torch.zeros(60, 1)
    x[3] = math.inf
    weights = stream(x, 7)
    assert weights.log_mean_exp.item() == math.inf
    assert weights.khat.isnan()
    assert weights.ess.isnan()


def test_one_sample_has_no_error_and_no_khat() -> None:
    weights = stream(torch.tensor([[-3.0, 2.0]]), 1)
    assert weights.log_mean_exp.tolist() == weights.mean_log_weight.tolist() == [-3.0, 2.0]
    assert weights.ess.tolist() == [1.0, 1.0]
    assert weights.khat.tolist() == [math.inf, math.inf]
    assert weights.monte_carlo_error.isnan().all()


def test_streaming_errors_say_what_to_do() -> None:
    weights = StreamingWeights(10)
    with pytest.raises(RuntimeError, match="call update"):
        _ = weights.khat
    with pytest.raises(ValueError, match=r"\(samples, rows\).*\(4,\)"):
        weights.update(torch.zeros(4))
    weights.update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="3 rows, this one has 2"):
        weights.update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="num_samples is 10, but there are 11"):
        weights.update(torch.zeros(7, 3))
    with pytest.raises(ValueError, match="at least 1"):
        StreamingWeights(0)


# --- Pareto k-hat ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("K", [26, 50, 225, 900, 1000, 5001])
def test_khat_agrees_with_arviz(name: str, K: int) -> None:
    torch.manual_seed(K)
    x = DISTRIBUTIONS[name](K)
    expected = reference_khat(x, plain=name not in ("ties", "Cauchy", "beyond float64's range"))
    np.testing.assert_allclose(pareto_khat(x).numpy(), expected, rtol=0, atol=1e-6)


def test_khat_reduces_the_named_dimension() -> None:
    x = torch.randn(4, 300, 2, generator=torch.Generator().manual_seed(0))
    result = pareto_khat(x, dim=1)
    assert result.shape == (4, 2)
    assert torch.equal(result[2], pareto_khat(x[2]))


def test_khat_does_not_depend_on_the_scale_of_the_weights() -> None:
    x = torch.randn(1000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pareto_khat(x + 1000), pareto_khat(x), rtol=0, atol=1e-9)


def test_khat_recovers_the_tail_index_of_pareto_weights() -> None:
    torch.manual_seed(0)
    for k in (0.2, 0.5, 0.7, 1.0):
        # Pareto draws are generalized Pareto of the same k above every threshold.
        x = -k * torch.rand(20_000, 200, dtype=torch.float64).log()
        m = tail_size(20_000)
        estimates = pareto_khat(x)
        expected = (m * k + 5) / (m + 10)  # the prior's pull, exactly known
        # Asymptotic standard deviation of the maximum-likelihood k: (1 + k) / sqrt(m).
        deviation = (1 + k) / math.sqrt(m)
        assert abs(estimates.mean() - expected) < 4 * deviation / math.sqrt(200) + 0.01
        assert abs(estimates.std() / deviation - 1) < 0.25


def test_fit_recovers_generalized_pareto_draws() -> None:
    torch.manual_seed(0)
    m, rows = 2000, 100
    for k, sigma in [(-0.4, 3.0), (0.1, 0.01), (0.5, 1.0), (0.9, 100.0)]:
        x = sigma / k * (torch.rand(m, rows, dtype=torch.float64) ** -k - 1)
        k_hat, sigma_hat = generalized_pareto_fit(x)
        assert (
            abs(k_hat.mean() - (m * k + 5) / (m + 10)) < 4 * (1 + k) / math.sqrt(m * rows) + 0.005
        )
        relative = sigma_hat.mean() / sigma - 1
        assert abs(relative) < 4 * math.sqrt(2 * (1 + k) / (m * rows)) + 0.01


def test_rows_of_different_length_are_fitted_as_if_alone() -> None:
    torch.manual_seed(0)
    x = torch.distributions.Exponential(1.0).sample((300, 6)).double()
    lengths = [300, 100, 17, 5, 4, 0]
    for row, length in enumerate(lengths):
        x[length:, row] = 0.0
    x = x[torch.randperm(300)]
    k, sigma = generalized_pareto_fit(x)
    for row, length in enumerate(lengths):
        alone = generalized_pareto_fit(x[x[:, row] > 0, row])
        torch.testing.assert_close((k[row], sigma[row]), alone, rtol=1e-12, atol=0, equal_nan=True)
        assert (k[row] == math.inf) == (length < 5)


@pytest.mark.parametrize("K", [2, 5, 20])
def test_too_few_samples_for_a_tail_are_not_trusted(K: int) -> None:
    x = torch.randn(K, 3, generator=torch.Generator().manual_seed(0))
    assert pareto_khat(x).tolist() == [math.inf] * 3


# --- variances over rows -----------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3, 100, [0, 90, 0, 10]])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_running_variance_equals_the_direct_one(chunks: int | list[int], offset: float) -> None:
    x = torch.randn(100, 2, 3, generator=torch.Generator().manual_seed(0)) + offset
    running = RunningVariance()
    for chunk in x.split(chunks):
        running.update(chunk)
    assert running.count == 100
    assert running.mean.dtype == running.variance.dtype == torch.float32
    torch.testing.assert_close(running.mean, x.double().mean(0).float())
    torch.testing.assert_close(running.variance, x.double().var(0).float())


def test_running_variance_of_nothing_and_of_one_row_is_nan() -> None:
    running = RunningVariance()
    assert running.mean.isnan()
    assert running.variance.isnan()
    running.update(torch.tensor([[1.0, 2.0]]))
    assert running.mean.tolist() == [1.0, 2.0]
    assert running.variance.isnan().all()


def test_active_units_are_those_whose_means_vary() -> None:
    # Means 0 and 2a have the unbiased variance 2 a^2: 0.0098 and 0.0128 about the threshold.
    means = torch.tensor([[0.0, 0.0, 5.0], [0.14, 0.16, 5.0]])
    variances, active = active_units(means)
    torch.testing.assert_close(variances, torch.tensor([0.0098, 0.0128, 0.0]))
    assert active.tolist() == [False, True, False]
    assert active_units(means, threshold=0.005)[1].tolist() == [True, True, False]
    assert active_units(torch.randn(5, 2, 3))[1].shape == (2, 3)


def test_active_units_need_two_rows() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        active_units(torch.zeros(1, 4))


def test_standard_error_is_sd_over_sqrt_n() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]])
    expected = [math.sqrt((4 + 1 + 9) / 2 / 3), 0.0]
    torch.testing.assert_close(standard_error(values), torch.tensor(expected))
    assert standard_error(values[:1]).isnan().all()
    assert standard_error(torch.tensor([True, False])).item() == pytest.approx(0.5)
