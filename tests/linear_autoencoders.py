"""Rows with exact moments, and linear autoencoders of them, for the tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import (
    fit,
)

VARIANCES = torch.tensor([5.0, 3.0, 2.0, 0.8, 0.5, 0.2], dtype=torch.float64)
"""Of the principal components of the rows."""


D, SIZE = len(VARIANCES), 3


def exact_rows(n: int = 64) -> tuple[Tensor, Tensor]:
    """Centered rows `(n, D)` whose covariance has exactly these eigenvalues; and its eigenvectors, `(D, D)`."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(n, D, generator=generator, dtype=torch.float64)
    white = white - white.mean(0)
    left, _, _ = torch.linalg.svd(white, full_matrices=False)
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    return math.sqrt(n) * left * VARIANCES.sqrt() @ basis.T, basis


class Again:
    """A loader that gives all rows at once, many times: an epoch with so many steps."""

    def __init__(self, x: Tensor, steps: int = 50) -> None:
        self.x, self.steps = x, steps

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.x] * self.steps)


def train(model: Any, guide: Any, x: Tensor, steps: int, **options: Any) -> None:
    """Steps on all rows, smaller and smaller."""
    epochs = steps // 50
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    options = {"learning_rate": 0.02, "seed": 0, "progress": False} | options
    fit(model, guide, Again(x), max_epochs=epochs, lr_scheduler=schedule, **options)
