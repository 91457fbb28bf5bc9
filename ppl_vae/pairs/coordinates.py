"""Supports of distributions, and coordinates of their values that move freely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to


def support_of(fn: Any) -> Any:
    """The support of a distribution; None if it states none."""
    try:
        return fn.support
    except (NotImplementedError, AttributeError, ValueError):
        return None


def unconstrained(fn: Any, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of a value that move freely, as many as the value has degrees of freedom.

    They are the value itself, unless the support has fewer dimensions than numbers, as a simplex.

    Args:
        fn: A distribution with the support.
        value: A value of it, `(*batch, *event)`.

    Returns:
        The coordinates y, log|dz/dy| of the value z, and by how much that is off because z is rounded; the last
        two of shape `(*batch,)`, or 0.

    Raises:
        NotImplementedError: Torch has no coordinates for the support.

    Example:
        >>> import pyro.distributions as dist
        >>> value = torch.tensor([0.5, 0.25, 0.25])
        >>> unconstrained(dist.Dirichlet(torch.ones(3)), value)[0].shape
        torch.Size([2])
        >>> unconstrained(dist.LogNormal(0.0, 1.0), value)[:2]
        (tensor([0.5000, 0.2500, 0.2500]), tensor(0.))
    """
    nothing = value.new_zeros(())
    transform = biject_to(support_of(fn))
    if transform.inverse_shape(value.shape) == value.shape:
        return value, nothing, nothing

    def jacobian(z: Tensor) -> tuple[Tensor, Tensor]:
        y = transform.inv(z)
        return y, transform.log_abs_det_jacobian(y, z)

    y, log_det = jacobian(value)
    signs = 1 - 2 * (torch.arange(value.shape[-1], device=value.device) % 2)
    other = jacobian(value * (1 + 8 * torch.finfo(value.dtype).eps * signs))[1]
    return y, log_det, (other - log_det).detach().abs()
