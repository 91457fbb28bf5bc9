"""A quantity of each row, its mean and its standard error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ppl_vae import stats


@dataclass(frozen=True)
class Estimate:
    """A quantity of each row, its mean over rows, and the mean's standard error.

    Attributes:
        values: Per-row values, ``(n,)``.
        unit: The unit of a value.

    Example:
        >>> print(Estimate(torch.tensor([-1.0, -3.0])))
        -2.000 ± 1.000 nats
    """

    values: Tensor
    unit: str = "nats"

    @property
    def mean(self) -> float:
        """Mean over rows."""
        return float(self.values.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows: standard deviation / sqrt(n)."""
        return float(stats.standard_error(self.values.double()))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.standard_error:.3f} {self.unit}"
