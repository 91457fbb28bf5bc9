"""Likelihoods with another location, or with another scale; and the scale that would suit the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions import QuantizedLogistic, arguments_of

WRAPPERS = (torch.distributions.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
"""Distributions around that of each number."""

NORMAL = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)
"""Normal numbers that depend on each other."""

FACTORS = (1e-4, 1e2)
"""Between which the factor of a scale is looked for."""

_PRECISION = 0.01  # of its logarithm

Arguments = Mapping[str, Any]


def moved(fn: Any, by: Tensor) -> Any:
    """The same distribution with another location of each number; None if it has none that is known here.

    The location is `loc` in units of `scale`, log odds, or the logarithm of a rate or of a concentration.
    """

    def change(given: Arguments) -> dict[str, Any]:
        changes: dict[str, Callable[[Any], Any]] = {
            "loc": lambda value: value + given.get("scale", 1.0) * by,
            "logits": lambda value: value + by,
        }
        for name in ("rate", "concentration1", "scale", "concentration"):
            changes[name] = lambda value: value * by.exp()
        found = [name for name in changes if isinstance(given.get(name), Tensor)]
        return {name: changes[name](given[name]) for name in found[:1]}

    return _changed(fn, change)


def stretched(fn: Any, factor: float) -> Any:
    """The same distribution with so many times the scale; None if it has none beside a location.

    Example:
        >>> stretched(dist.Laplace(1.0, 2.0), 0.25)
        Laplace(loc: 1.0, scale: 0.5)
        >>> stretched(dist.Poisson(torch.tensor(1.0)), 0.25) is None
        True
    """
    if isinstance(fn, QuantizedLogistic):  # `levels` is no parameter
        return QuantizedLogistic(fn.loc, factor * fn.scale, fn.levels)

    def change(given: Arguments) -> dict[str, Any]:
        both = all(isinstance(given.get(name), Tensor) for name in ("loc", "scale"))
        return {"scale": factor * given["scale"]} if both else {}

    return _changed(fn, change)


def _changed(fn: Any, change: Callable[[Arguments], dict[str, Any]]) -> Any:
    """The distribution of each number with other arguments; None if there are none to change."""
    if fn.event_shape or isinstance(fn, dist.Delta):
        return None
    if isinstance(fn, torch.distributions.TransformedDistribution) and not fn.arg_constraints:
        base = fn.base_dist
        while isinstance(base, WRAPPERS):
            base = base.base_dist
        inner = None if base.event_shape else _changed(base, change)
        return None if inner is None else dist.TransformedDistribution(inner, fn.transforms)
    given = {name: value for name, (value, _) in arguments_of(fn)}
    if "base_dist" in given:  # with more zeros, for example
        inner = _changed(given["base_dist"], change)
        return None if inner is None else type(fn)(**(given | {"base_dist": inner}))
    changes = change(given)
    return type(fn)(**(given | changes)) if changes else None


def suited(fn: Any, x: Tensor, there: Tensor) -> float | None:
    """By what the scale would have to be multiplied for the highest mean log p(x).

    The locations are as they are. None if the likelihood has no scale beside its location, or masks leave
    nothing in.

    Args:
        fn: The distribution of each number.
        x: The numbers.
        there: Which of them masks leave in, of the shape of `x`.

    Example:
        >>> x = torch.tensor([-3.0, 1.0, 2.0])
        >>> round(suited(dist.Laplace(torch.zeros(3), 1.0), x, x < 9), 2)  # the mean of |x|
        2.0
    """
    from scipy.optimize import minimize_scalar  # here, because it takes a while

    if isinstance(fn, NORMAL) or not bool(there.any()):
        return None
    try:
        known = stretched(fn, 1.0) is not None
    except (TypeError, ValueError):
        known = False
    if not known:
        return None

    def loss(log_factor: float) -> float:
        with torch.no_grad(), pyro.validation_enabled(False):
            density = stretched(fn, math.exp(log_factor)).log_prob(x).double()
            density, left_in = torch.broadcast_tensors(density, there)
            return -float(density[left_in].mean())

    bounds = (math.log(FACTORS[0]), math.log(FACTORS[1]))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": _PRECISION})
    return math.exp(found.x)
