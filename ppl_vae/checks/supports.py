"""Supports of distributions: in words, and as ranges that can be compared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints


def support_of(fn: Any) -> Any:
    """The support of a distribution; None if it states none."""
    try:
        return fn.support
    except (NotImplementedError, AttributeError, ValueError):
        return None


def in_words(support: Any) -> str:
    """A support in words.

    Example:
        >>> from torch.distributions import constraints
        >>> in_words(constraints.positive), in_words(constraints.interval(-1.0, 2.0))
        ('numbers above 0', 'numbers from -1 to 2')
        >>> in_words(constraints.nonnegative_integer), in_words(constraints.boolean)
        ('integers from 0', '0 and 1')
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


def range_of(support: Any) -> tuple[Tensor, Tensor] | None:
    """The least and the largest single number of a support over real numbers or integers; None for others.

    Example:
        >>> from torch.distributions import constraints
        >>> range_of(constraints.positive)
        (tensor(0.), tensor(inf))
    """
    base = of_numbers(support)
    if isinstance(base, type(constraints.boolean)):
        return torch.tensor(0.0), torch.tensor(1.0)
    if not isinstance(base, _RANGES):
        return None
    low = getattr(base, "lower_bound", -math.inf)
    high = getattr(base, "upper_bound", math.inf)
    return torch.as_tensor(low), torch.as_tensor(high)


def of_numbers(support: Any) -> Any:
    """The support of single numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


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
