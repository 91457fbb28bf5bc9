"""Checks of the arguments that the functions of this room share."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_vae.runtime import described, require_number


def numbers_of(name: str, given: ArrayLike | Tensor, dims: int | None) -> Tensor:
    """A tensor or an array as doubles on the CPU.

    Args:
        name: The argument, for the message.
        given: The numbers.
        dims: How many dimensions it must have, 1 or 2; None: any number of them from 1 on.

    Raises:
        TypeError: They are no numbers.
        ValueError: It has other dimensions, or there are none.
    """
    try:
        if given is None:
            raise TypeError
        found = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {described(given)}") from error
    fits = found.dim() > 0 if dims is None else found.dim() == dims
    if not fits or not found.numel():
        shape = {None: "(m_1, ..., m_T)", 1: "(m,)", 2: "(m, k)"}[dims]
        raise ValueError(f"{name} must have the shape {shape}, without a 0, got {(*found.shape,)}")
    return found


def require_positive(name: str, given: Any) -> float:
    """A number, which must be positive and finite.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive, or not finite.
    """
    require_number(name, given)
    value = float(given)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {given}")
    return value


def probabilities(name: str, given: Tensor) -> Tensor:
    """Probabilities along the last dimension, made to add up to 1 exactly.

    Raises:
        ValueError: One is negative or not finite, or they do not add up to 1.
    """
    total = given.sum(-1, keepdim=True)
    if not (bool((given >= 0).all()) and bool(((total - 1).abs() < 1e-4).all())):
        raise ValueError(
            f"{name} must hold probabilities that add up to 1 along its last dimension"
        )
    return given / total
