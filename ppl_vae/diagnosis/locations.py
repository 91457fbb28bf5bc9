"""Likelihoods with another location, or with another scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions import QuantizedLogistic, arguments_of

WRAPPERS = (torch.distributions.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
"""Distributions around that of each number."""

NORMAL = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)
"""Normal numbers that depend on each other."""

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


def scale_of(fn: Any) -> Tensor | None:
    """The scale of each number; None if there is none beside a location.

    Example:
        >>> scale_of(dist.LogNormal(torch.zeros(2), torch.tensor([1.0, 2.0]))).tolist()
        [1.0, 2.0]
        >>> scale_of(dist.Poisson(torch.tensor(1.0))) is None
        True
    """
    if isinstance(fn, QuantizedLogistic):
        scale: Tensor = fn.scale
        return scale
    found: list[Tensor] = []

    def look(given: Arguments) -> dict[str, Any]:
        found.extend([given["scale"]] if _has_scale(given) else [])
        return {}

    _changed(fn, look)
    return found[0] if found else None


def stretched(fn: Any, factor: float | Tensor) -> Any:
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
        return {"scale": factor * given["scale"]} if _has_scale(given) else {}

    return _changed(fn, change)


def _has_scale(given: Arguments) -> bool:
    return all(isinstance(given.get(name), Tensor) for name in ("loc", "scale"))


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
