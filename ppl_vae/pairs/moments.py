"""Center and spread of distributions, also of those without a mean or a variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import StudentT

from ppl_vae.pairs.traces import elementwise

QUARTILES = 1.3489795003921634
"""The distance between the quartiles of the standard normal."""

DRAWS = 1000
"""Most draws for quartiles that a distribution does not state."""

MOST_NUMBERS = 1_000_000
"""Numbers that such draws may hold, unless 100 draws hold more."""


def center(fn: Any) -> Tensor:
    """The mean; the median where there is no finite mean (Cauchy), or else the mode.

    Raises:
        NotImplementedError or AttributeError: The distribution states no mean.

    Example:
        >>> import pyro.distributions as dist
        >>> center(dist.Cauchy(2.0, 1.0)), center(dist.HalfCauchy(3.0)), center(dist.StudentT(1.0, 2.0))
        (tensor(2.), tensor(3.), tensor(2.))
    """
    mean: Tensor = fn.mean
    if all_finite(mean):
        return mean
    _require_density(fn)
    median = _quantiles(fn, (0.5,), otherwise=lambda: fn.mode.unsqueeze(0))
    return torch.where(mean.isfinite(), mean, median[0])


def spread(fn: Any) -> Tensor:
    """The variance; where it is not finite, that of the normal with the same distance between the quartiles.

    Raises:
        NotImplementedError or AttributeError: The distribution states no variance.

    Example:
        >>> import pyro.distributions as dist
        >>> spread(dist.Normal(0.0, 2.0)), spread(dist.Cauchy(0.0, 2.0))
        (tensor(4.), tensor(8.7924))
    """
    variance: Tensor = fn.variance
    if all_finite(variance):
        return variance
    _require_density(fn)
    low, high = _quantiles(fn, (0.25, 0.75), otherwise=lambda: _drawn(fn, (0.25, 0.75)))
    return torch.where(variance.isfinite(), variance, ((high - low) / QUARTILES).square())


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite; of numbers that are repeated by `expand`, one is looked at.

    Example:
        >>> all_finite(torch.zeros(3).expand(1000, 3)), all_finite(torch.tensor([0.0, math.nan]))
        (True, False)
    """
    if values.dim():
        values = values[tuple(slice(0, 1) if s == 0 else slice(None) for s in values.stride())]
    if not values.numel():
        return True
    low, high = values.detach().aminmax()  # both are NaN if a number is
    return float(low) > -math.inf and float(high) < math.inf


def over_draws(values: Tensor, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and variance over the first dimension, in double precision.

    In two passes: torch's own variance takes several times as long over a few draws, which is felt after each
    epoch. Draws that only repeat the first one vary by 0, whatever their number.

    Example:
        >>> over_draws(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        (tensor([2., 5.], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """
    if len(values) > 1 and values.stride(0) == 0:
        same = values[0].double()
        return same, torch.zeros_like(same)
    values = values.double()
    mean = values.mean(0)
    rest = len(values) - unbiased
    variance: Tensor = (
        (values - mean).square().sum(0) / rest if rest else mean.new_full(mean.shape, math.nan)
    )
    return mean, variance


def has_moments(fn: Any) -> bool:
    """Whether mean and variance are finite, as far as the distribution states them."""
    if fn.has_enumerate_support:
        return True
    try:
        return all_finite(fn.mean) and all_finite(fn.variance)
    except (NotImplementedError, AttributeError):
        return True


def _require_density(fn: Any) -> None:
    """Categorical distributions have NaN for moments, which means that they state none."""
    if fn.has_enumerate_support:
        raise NotImplementedError


def _quantiles(
    fn: Any, levels: tuple[float, ...], otherwise: Callable[[], Tensor]
) -> tuple[Tensor, ...]:
    single = elementwise(fn)
    try:
        if single is None:
            raise NotImplementedError
        if isinstance(single, StudentT):  # torch has no icdf of it
            import scipy.stats  # here, because it takes a second

            kinds, which = single.df.double().cpu().unique(return_inverse=True)
            found = torch.as_tensor(scipy.stats.t.ppf([[level] for level in levels], kinds.numpy()))
            return tuple(single.loc + single.scale * q[which].to(single.loc) for q in found)
        return tuple(single.icdf(torch.full_like(single.mean, level)) for level in levels)
    except (NotImplementedError, AttributeError):
        return tuple(otherwise())


def _drawn(fn: Any, levels: tuple[float, ...]) -> Tensor:
    """Quantiles of draws, the same ones every time; of fewer draws where there are many numbers."""
    numbers = (fn.batch_shape + fn.event_shape).numel()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws: Tensor = fn.sample((max(100, min(DRAWS, MOST_NUMBERS // max(1, numbers))),))
    return torch.quantile(draws, torch.tensor(levels, dtype=draws.dtype, device=draws.device), 0)
