"""Distributions rebuilt with changed arguments, including their wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

Change = Callable[[Tensor, Constraint], Tensor]
"""Makes a new argument of a distribution from the old one and its constraint."""

_WRAPPED = (
    torch.distributions.Independent,
    dist.ExpandedDistribution,
    dist.MaskedDistribution,
    torch.distributions.TransformedDistribution,
    torch.distributions.MixtureSameFamily,
)


# Arguments that say the same: the one to change, and those it replaces.
_SUPERSEDED = {
    "logits": ("probs",),
    "gate_logits": ("gate",),
    "scale_tril": ("covariance_matrix", "precision_matrix"),
}


def rebuilt(fn: Any, change: Change, batch_shape: torch.Size | None = None) -> Any:
    """A distribution of the same kind with changed arguments, in the same wrappers.

    Args:
        fn: The distribution.
        change: Called with each real argument (all except counts and those whose range depends on
            another), of shape `(*batch_shape, *event)`, and its constraint, always in the same order.
        batch_shape: The batch shape of the arguments; that of `fn` if None.

    Raises:
        TypeError: The distribution does not list its arguments in `arg_constraints`.

    Example:
        >>> normal = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> moved = rebuilt(normal, lambda value, constraint: value + 1)
        >>> moved.mean, moved.stddev
        (tensor([1., 1., 1.]), tensor([2., 2., 2.]))
    """
    batch_shape = fn.batch_shape if batch_shape is None else batch_shape
    if not getattr(fn, "arg_constraints", {}) and isinstance(fn, _WRAPPED):
        return _rebuilt_wrapper(fn, change, batch_shape)
    arguments = dict(arguments_of(fn))
    for name, (value, constraint) in arguments.items():
        if isinstance(value, Tensor) and constraint is not None and _is_free(constraint):
            event = value.shape[value.dim() - constraint.event_dim :]
            arguments[name] = (change(value.expand(*batch_shape, *event), constraint), constraint)
    return type(fn)(**{name: value for name, (value, _) in arguments.items()})


def _rebuilt_wrapper(fn: Any, change: Change, batch_shape: torch.Size) -> Any:
    if isinstance(fn, torch.distributions.Independent):
        shape = batch_shape + fn.base_dist.batch_shape[len(fn.batch_shape) :]
        inner = rebuilt(fn.base_dist, change, shape)
        return dist.Independent(inner, fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return rebuilt(fn.base_dist, change, batch_shape)
    if isinstance(fn, dist.MaskedDistribution):
        return rebuilt(fn.base_dist, change, batch_shape).mask(fn._mask)
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        components = fn.component_distribution
        return dist.MixtureSameFamily(
            rebuilt(fn.mixture_distribution, change, batch_shape),
            rebuilt(components, change, batch_shape + components.batch_shape[-1:]),
        )
    base = fn.base_dist
    widened = batch_shape + base.batch_shape[len(fn.batch_shape) :]
    return dist.TransformedDistribution(rebuilt(base, change, widened), fn.transforms)


def arguments_of(fn: Any) -> Iterator[tuple[str, tuple[Any, Constraint | None]]]:
    """The arguments of a distribution's constructor by name, each with its constraint.

    Args:
        fn: The distribution.

    Raises:
        TypeError: The distribution does not list its arguments in `arg_constraints`.

    Example:
        >>> {name: value for name, (value, _) in arguments_of(dist.Bernoulli(logits=torch.tensor(2.0)))}
        {'logits': tensor(2.)}
    """
    known = fn.arg_constraints
    left_out = {name for chosen in _SUPERSEDED if chosen in known for name in _SUPERSEDED[chosen]}
    parameters = inspect.signature(type(fn).__init__).parameters
    if not set(known) & set(parameters):
        raise TypeError(f"{type(fn).__name__} does not list its arguments in arg_constraints")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and name != "self"
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if name not in left_out and named and (name in known or required):
            yield name, (getattr(fn, name), known.get(name))


def _is_free(constraint: Constraint) -> bool:
    if constraint.is_discrete or constraint is constraints.dependent:
        return False
    try:
        biject_to(constraint)
    except NotImplementedError:
        return False
    return True
