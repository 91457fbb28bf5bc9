"""Supports of distributions: in words, and as ranges that can be compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import VonMises, constraints

from ppl_vae.pairs import of_numbers, support_of as support_of


def in_words(fn: Any) -> str:
    """The support of a distribution in words.

    Example:
        >>> import pyro.distributions as dist
        >>> in_words(dist.LogNormal(0.0, 1.0)), in_words(dist.Uniform(-1.0, 2.0))
        ('numbers above 0', 'numbers from -1 to 2')
        >>> in_words(dist.Poisson(1.0)), in_words(dist.Bernoulli(0.5))
        ('integers from 0', '0 and 1')
    """
    if is_periodic(fn):
        return "angles from -pi to pi"
    return constraint_in_words(support_of(fn))


def constraint_in_words(support: Any) -> str:
    """The values that a constraint allows, in words.

    Example:
        >>> constraint_in_words(constraints.positive)
        'numbers above 0'
    """
    base = of_numbers(support)
    fixed = _WORDS.get(type(base))
    if fixed is not None:
        return fixed
    ends = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    if all(end is None for end in ends) or isinstance(base, type(constraints.multinomial(1))):
        return str(support)
    low, high = (None if end is None else _number(end, i) for i, end in enumerate(ends))
    kind = "integers" if base.is_discrete else "numbers"
    strict = isinstance(base, (type(constraints.positive), type(constraints.less_than(0.0))))
    if high is None:
        return f"{kind} {'above' if strict else 'from'} {low}"
    if low is None:
        return f"{kind} {'below' if strict else 'up to'} {high}"
    return f"{kind} from {low} to {high}"


def range_of(fn: Any) -> tuple[Tensor, Tensor] | None:
    """The least and the largest number of a distribution over real numbers or integers; None for others.

    Torch calls all real numbers the support of VonMises, whose values are angles, and of a transformed
    distribution whose base may be bounded.

    Example:
        >>> import pyro.distributions as dist
        >>> range_of(dist.Gamma(1.0, 1.0))
        (tensor(0.), tensor(inf))
    """
    if is_periodic(fn):
        return torch.tensor(-math.pi), torch.tensor(math.pi)
    base = of_numbers(support_of(fn))
    if isinstance(base, type(constraints.boolean)):
        return torch.tensor(0.0), torch.tensor(1.0)
    if not isinstance(base, _RANGES):
        return None
    if isinstance(base, type(constraints.real)) and hasattr(_unwrapped(fn), "transforms"):
        return None
    low = getattr(base, "lower_bound", -math.inf)
    high = getattr(base, "upper_bound", math.inf)
    return torch.as_tensor(low), torch.as_tensor(high)


def is_periodic(fn: Any) -> bool:
    """Whether values of a distribution are angles."""
    return isinstance(_unwrapped(fn), VonMises)


def _unwrapped(fn: Any) -> Any:
    """The distribution inside of wrappers that change no value."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return fn


def _number(end: Any, which: int) -> str:
    """A bound; of several, the least lower one, or the largest upper one."""
    values = torch.as_tensor(end).flatten()
    value = float(values.max() if which else values.min())
    return f"{value:g}"


_WORDS = {
    type(constraints.real): "all real numbers",
    type(constraints.boolean): "0 and 1",
    type(constraints.simplex): "vectors of the simplex",
    type(constraints.one_hot): "one-hot vectors",
}

_RANGES = (
    *(type(constraints.real), type(constraints.positive), type(constraints.nonnegative)),
    *(type(constraints.unit_interval), type(constraints.half_open_interval(0.0, 1.0))),
    *(type(constraints.less_than(0.0)), type(constraints.nonnegative_integer)),
    type(constraints.integer_interval(0, 1)),
)
"""Supports that a least and a largest number describe."""
