"""The Pareto shape k-hat of importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.stats.moments import widened

MIN_TAIL = 5
"""Minimum number of tail weights for estimating a Pareto shape, as in `loo` and ArviZ."""


NEARLY_EQUAL = 0.9
"""ESS, as a share of K, from which k-hat is not looked at."""

ENOUGH = 100
"""Samples from which such an ESS says something; fewer have to be equal within 1 %."""


def khat_limit(num_samples: int) -> float:
    """The Pareto shape above which K samples are not enough: min(1 - 1 / log10 K, 0.7).

    Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling* (arXiv:1507.02646).

    Example:
        >>> round(khat_limit(1000), 3), khat_limit(100_000)
        (0.667, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 2)), 0.7)


def bad_khat(khat: Tensor, ess: Tensor, num_samples: int) -> Tensor:
    """Which rows should not be trusted: k-hat is above the limit, or says nothing.

    With 100 samples or more, rows whose ESS is at least 0.9 K are not among them, unless k-hat is NaN. Their
    weights are nearly equal, and k-hat is then the shape of what little they differ in: two components of a
    proposal whose weights are 1 and 1.5 look like a heavy tail. For a normal proposal that is too narrow, such
    an ESS means a true k below 0.3.

    Args:
        khat: Pareto shapes, `(n,)`.
        ess: Effective sample sizes, `(n,)`.
        num_samples: K.

    Example:
        >>> bad_khat(torch.tensor([0.3, 0.9]), torch.tensor([500.0, 3.0]), 1000)
        tensor([False,  True])
    """
    share = NEARLY_EQUAL if num_samples >= ENOUGH else 0.99
    equal = (ess >= share * num_samples) & (num_samples > 1)
    return khat.isnan() | ((khat > khat_limit(num_samples)) & ~equal)


def tail_size(num_samples: int) -> int:
    """The number of largest weights that form the Pareto tail: ceil(min(K / 5, 3 sqrt(K)))."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def generalized_pareto_fit(exceedances: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    r"""Shape and scale of generalized Pareto distributions, fitted to all rows at once.

    The density is `sigma^-1 (1 + k x / sigma)^(-1/k - 1)` for x > 0. The estimator is the
    quasi-Bayesian one of Zhang & Stephens, "A New and Efficient Estimation Method for the
    Generalized Pareto Distribution" (Technometrics 2009), with the weak prior on k of Vehtari et
    al., "Pareto Smoothed Importance Sampling" (arXiv:1507.02646). This prior has the weight of ten
    observations and its center at 1/2. It acts on k alone, as in the R package `loo` and in ArviZ.

    Args:
        exceedances: Amounts by which draws exceed a threshold, > 0, in any order. Zeros are
            padding and are ignored, so that rows may hold different numbers of draws.
        dim: The dimension of the draws.

    Returns:
        `k` and `sigma`, shaped as `exceedances` without `dim`. A row with fewer than five
        draws cannot be fitted and has `k = inf`, `sigma = nan`. A row with a NaN gives NaN.

    Example:
        >>> uniform = (torch.arange(1000.0) + 0.5) / 1000
        >>> k, sigma = generalized_pareto_fit(2 / 0.5 * (uniform**-0.5 - 1))
        >>> bool(abs(k - 0.5) < 0.02), bool(abs(sigma - 2) < 0.05)
        (True, True)
    """
    dtype = exceedances.dtype
    x = widened(exceedances.detach()).movedim(dim, -1).sort(-1, descending=True).values
    count = (x > 0).sum(-1)
    n = count.clamp(min=1).to(x.dtype)
    if x.shape[-1] < MIN_TAIL:
        x = torch.nn.functional.pad(x, (0, MIN_TAIL - x.shape[-1]))

    # Zhang & Stephens' grid of b = -k / sigma depends on the largest draw and the first quartile,
    # the floor(n/4 + 1/2)-th smallest draw. Each row has its own n, and so its own number of points.
    floor = torch.finfo(x.dtype).tiny
    largest = x[..., 0].clamp(min=floor)
    quartile_index = (count - torch.floor(n / 4 + 0.5).long()).clamp(min=0, max=x.shape[-1] - 1)
    quartile = x.gather(-1, quartile_index[..., None])[..., 0].clamp(min=floor)
    points = 30 + torch.floor(torch.sqrt(n))
    j = torch.arange(1, int(30 + math.sqrt(x.shape[-1])) + 1, dtype=x.dtype, device=x.device)
    j = j.reshape(-1, *[1] * points.dim())
    b = 1 / largest + (1 - torch.sqrt(points / (j - 0.5))) / (3 * quartile)
    b = b.clamp(min=-0.1 * torch.finfo(x.dtype).max)

    def shape_given(b: Tensor) -> Tensor:
        return torch.log1p(-b[..., None] * x).sum(-1) / n

    # A loop over the grid (about 45 points), not over rows, limits the memory to that of x.
    k = torch.stack([shape_given(b_j) for b_j in b])
    ratio = -b / k
    profile = torch.where((ratio > 0) & (j <= points), n * (ratio.log() - k - 1), -math.inf)
    weights = torch.softmax(profile, 0)
    weights = torch.where(weights >= 10 * torch.finfo(x.dtype).eps, weights, 0.0)
    b_mean = (weights * b).sum(0) / weights.sum(0)
    k_mean = shape_given(b_mean)

    sigma = -k_mean / b_mean
    k_mean = (n * k_mean + 10 * 0.5) / (n + 10)
    short = (count < MIN_TAIL) & ~x.isnan().any(-1)
    k_mean = torch.where(short, math.inf, k_mean)
    sigma = torch.where(short, math.nan, sigma)
    return k_mean.to(dtype), sigma.to(dtype)


def khat_of_tail(top: Tensor, smallest: Tensor, num_samples: int) -> Tensor:
    """k-hat from the largest `tail_size + 1` log weights, descending along the last dimension."""
    dtype, top = top.dtype, widened(top)
    largest = top[..., 0]
    # Log weights that differ only by rounding are constant, as for an exact posterior. Without this
    # test, the few distinct values that float32 leaves would look like an unusable tail.
    magnitude = largest.abs().clamp(min=1.0)
    constant = (largest - widened(smallest)) <= 32 * torch.finfo(dtype).eps * magnitude
    # Weights below the smallest normal number, relative to the largest, carry no information.
    cutoff = torch.maximum(top[..., -1], largest + math.log(torch.finfo(top.dtype).tiny))
    # exp(top) - exp(cutoff), relative to the largest weight, without cancellation.
    relative = (top - largest[..., None]).exp()
    exceedances = -torch.expm1(cutoff[..., None] - top).clamp(max=0.0) * relative
    k, _ = generalized_pareto_fit(exceedances, dim=-1)
    k = torch.where(constant if num_samples > 1 else torch.zeros_like(constant), -math.inf, k)
    return torch.where(largest.isfinite(), k, math.nan).to(dtype)


def pareto_khat(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Pareto k-hat of importance weights: how heavy the right tail of their distribution is.

    A generalized Pareto distribution of shape k, which has 1/k finite moments, is fitted to the
    largest `M = ceil(min(K / 5, 3 sqrt(K)))` weights. For k-hat below 0.5 the variance of the
    weights is finite. For k-hat above 0.7 an estimate that uses them should not be trusted at
    practical K (Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling",
    arXiv:1507.02646).

    Args:
        log_weights: Logarithms of the weights, any shape; their scale does not matter.
        dim: The dimension of the K samples.

    Returns:
        k-hat, shaped as `log_weights` without `dim`. Special values:

        - `-inf`: all weights are equal up to rounding, as for an exact posterior. There is no tail.
        - `+inf`: fewer than five weights lie in the tail, so that k cannot be estimated. This is
          always so for K <= 20, and also if a few weights are much larger than all others. Do not
          trust the estimate.
        - NaN: all weights are zero (`-inf`), or one is infinite or NaN.

    Example:
        >>> pareto_khat(torch.zeros(100))
        tensor(-inf)
    """
    x = log_weights.detach().movedim(dim, -1)
    num_samples = x.shape[-1]
    top = x.topk(min(tail_size(num_samples) + 1, num_samples), dim=-1).values
    return khat_of_tail(top, x.amin(-1), num_samples)
