"""Positive scales as functions of unbounded parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

_LEAST = 1e-6
"""The scale never reaches 0, where a density would become infinite."""


def scale_of_raw(raw: Tensor) -> Tensor:
    """A positive scale for any real number; it grows linearly, so it cannot overflow."""
    return softplus(raw) + _LEAST


def raw_of_scale(scale: Tensor) -> Tensor:
    """The inverse of `scale_of_raw`: log(exp(s) - 1) = s + log(1 - exp(-s))."""
    s = (scale - _LEAST).clamp_min(_LEAST)
    return s + (-torch.expm1(-s)).log()
