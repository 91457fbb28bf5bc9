"""Values that a distribution over finitely many gives probabilities, and their tables."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.pairs import elementwise

MOST = 2**16
"""Most values of a number."""


class Finite:
    """The table of a distribution whose single numbers, or vectors of fixed size, have finitely many values.

    Args:
        base: The distribution of each, of batch shape S and event shape V.
        values: All values, `(K, *V)`.
    """

    def __init__(self, base: Any, values: Tensor) -> None:
        self._base, self.values = base, values

    def log_tables(self) -> Tensor:
        """Their log-probabilities, `(S.numel(), K)`, float64."""
        count, ones = len(self.values), [1] * len(self._base.batch_shape)
        if hasattr(self._base, "log_masses"):
            known: Tensor = self._base.log_masses()
            return known.reshape(count, -1).T.double()
        each = self.values.reshape(count, *ones, *self._base.event_shape)
        log_p: Tensor = self._base.log_prob(each)
        return log_p.expand(count, *self._base.batch_shape).reshape(count, -1).T.double()

    def numbers(self, value: Tensor) -> Tensor:
        """Which of the values some values are, `(S.numel(),)`; -1 for those that are none of them."""
        values = self.values.double()
        if values.dim() == 1:
            flat = value.reshape(-1).double().contiguous()
            ordered, order = values.contiguous().sort()
            place = torch.searchsorted(ordered, flat).clamp(1, max(1, len(values) - 1))
            low, high = ordered[place - 1], ordered[place.clamp_max(len(values) - 1)]
            place = torch.where(flat - low < high - flat, place - 1, place)
            place = place.clamp_max(len(values) - 1)
            gap = (ordered[place] - flat).abs()
            steps = ordered.diff().amin() if len(values) > 1 else torch.tensor(1.0)
            return order[place].where(gap < 1e-3 * steps, -1)
        events = value.double().reshape(-1, *values.shape[1:])
        same = (events.unsqueeze(1) == values).flatten(2).all(-1)
        return same.long().argmax(1).where(same.any(1), -1)

    def taken(self, numbers: Tensor, shape: torch.Size) -> Tensor:
        """The values of numbers, of the shape of the site's value."""
        return self.values[numbers].reshape(shape)


def finite_of(fn: Any) -> Finite | None:
    """The values and tables of a distribution; None if its numbers have too many, or depend on each other."""
    base = elementwise(fn)
    if base is None:  # vectors that are one value, such as those that are one-hot
        base, shape = fn, fn.batch_shape
        while isinstance(base, torch.distributions.Independent):
            shape, base = base.base_dist.batch_shape, base.base_dist
        if isinstance(base, dist.ExpandedDistribution | dist.Delta):
            return None
        if not getattr(base, "has_enumerate_support", False) or base.batch_shape != shape:
            return None
    values = _values(base)
    return None if values is None else Finite(base, values)


def _values(base: Any) -> Tensor | None:
    if getattr(base, "has_enumerate_support", False):
        try:
            found: Tensor = base.enumerate_support(expand=False)
        except NotImplementedError:  # counts of which each has another largest one
            return None
        return found.reshape(len(found), *base.event_shape)
    try:
        support = base.support
    except NotImplementedError:
        return None
    if isinstance(support, constraints.integer_interval):
        low, high = (torch.as_tensor(each) for each in (support.lower_bound, support.upper_bound))
        if bool((low == low.min()).all() and (high == high.max()).all()):
            least, most = int(low.min()), int(high.max())
            return torch.arange(least, most + 1) if most - least < MOST else None
    levels = getattr(base, "levels", None)
    if isinstance(levels, int) and getattr(support, "steps", None) == levels - 1:
        return torch.arange(levels, dtype=_dtype_of(base)) / (levels - 1)
    return None


def _dtype_of(base: Any) -> torch.dtype:
    """That of a distribution's arguments, and so of its draws."""
    found = (t.dtype for t in vars(base).values() if isinstance(t, Tensor))
    return next((dtype for dtype in found if dtype.is_floating_point), torch.float64)
