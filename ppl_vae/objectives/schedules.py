"""Schedules of beta, the weight of the KL, over the epochs of a training run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from torch import Tensor

from ppl_vae.runtime import described


class Schedule(ABC):
    """The weight beta of the KL as a function of training progress in epochs (1.5 is one and a half epochs)."""

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """beta after `epoch` epochs."""

    @property
    @abstractmethod
    def warmup_epochs(self) -> float:
        """The number of epochs during which early stopping and `ReduceLROnPlateau` must not act."""


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """beta rises linearly from `start` to `end` over `epochs`, then stays at `end`.

    Bowman et al., *Generating Sentences from a Continuous Space* (arXiv:1511.06349); Sonderby et al.,
    *Ladder Variational Autoencoders* (arXiv:1602.02282).

    Example:
        >>> beta = LinearWarmup(epochs=10)
        >>> beta(0.0), beta(5.0), beta(50.0)
        (0.0, 0.5, 1.0)
    """

    epochs: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        require_positive("LinearWarmup", "epochs", self.epochs)
        require_beta("LinearWarmup", "start", self.start)
        require_beta("LinearWarmup", "end", self.end)

    def __call__(self, epoch: float) -> float:
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)

    @property
    def warmup_epochs(self) -> float:
        return self.epochs


@dataclass(frozen=True)
class Cyclical(Schedule):
    """beta rises from `start` to `end` in the first share `rise` of each `period` of epochs.

    It stays at `end` for the rest of the period, and after `cycles` periods for all remaining epochs.
    Fu et al., *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing* (arXiv:1903.10145).

    Example:
        >>> beta = Cyclical(period=10, cycles=2)
        >>> beta(2.5), beta(7.0), beta(12.5), beta(30.0)
        (0.5, 1.0, 0.5, 1.0)
    """

    period: float
    cycles: int = 4
    rise: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        require_positive("Cyclical", "period", self.period)
        require_positive("Cyclical", "cycles", self.cycles)
        require_number("Cyclical", "rise", self.rise)
        if not 0.0 < self.rise <= 1.0:
            raise ValueError(f"Cyclical: rise is a share of the period in (0, 1], got {self.rise}")
        require_beta("Cyclical", "start", self.start)
        require_beta("Cyclical", "end", self.end)

    def __call__(self, epoch: float) -> float:
        if epoch >= self.period * self.cycles:
            return self.end
        share = (epoch % self.period) / self.period / self.rise
        return self.start + (self.end - self.start) * min(1.0, share)

    @property
    def warmup_epochs(self) -> float:
        return self.period * (self.cycles - 1 + self.rise)


def require_positive(owner: str, name: str, value: float) -> None:
    """Raises an error unless `value` is a positive number."""
    require_number(owner, name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{owner}: {name} must be positive, got {value}")


def require_beta(owner: str, name: str, value: float) -> None:
    """Raises an error unless `value` can be a weight of the KL."""
    require_number(owner, name, value)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{owner}: {name} is a weight of the KL and must be >= 0, not {value}")


def require_number(owner: str, name: str, value: object, expected: str = "a number") -> None:
    """Raises a `TypeError` that says what is `expected` unless `value` is a real number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return
    also = "; of a tensor with one number, .item() makes one" if isinstance(value, Tensor) else ""
    raise TypeError(f"{owner}: {name} must be {expected}, not {described(value)}{also}")


def require_whole(owner: str, name: str, value: object) -> None:
    """Raises a `TypeError` unless `value` is a whole number."""
    require_number(owner, name, value, "a whole number")
    if not isinstance(value, Integral):
        raise TypeError(f"{owner}: {name} must be a whole number, not {value}")


def require_bool(owner: str, name: str, value: object) -> None:
    """Raises a `TypeError` unless `value` is true or false."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{owner}: {name} must be True or False, not {described(value)}")
