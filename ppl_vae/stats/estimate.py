"""A per-row quantity with its mean and standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ppl_vae.stats.moments import standard_error


@dataclass(frozen=True, repr=False)
class Estimate:
    """A per-row quantity, its mean over rows, and the standard error of the mean.

    Attributes:
        values: Per-row values, `(n,)`.
        unit: The unit of a value.

    Example:
        >>> import torch
        >>> estimate = Estimate(torch.tensor([-1.0, -3.0]))
        >>> print(estimate)
        -2.000 ± 1.000 nats
        >>> estimate
        Estimate(-2.000 ± 1.000 nats, 2 rows)
    """

    values: Tensor
    unit: str = "nats"

    @property
    def mean(self) -> float:
        """Mean over rows."""
        return float(self.values.double().mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows: standard deviation / sqrt(n); NaN for a single row."""
        return float(standard_error(self.values.double()))

    def numbers(self, spec: str = ".3f") -> str:
        """Mean ± standard error, each in the format `spec`; the mean alone if there is a single row.

        Example:
            >>> import torch
            >>> Estimate(torch.tensor([1.0, 3.0])).numbers("+.2f"), Estimate(torch.ones(1)).numbers()
            ('+2.00 ± 1.00', '1.000')
        """
        mean = format(self.mean, spec)
        if len(self.values) == 1:
            return mean
        return f"{mean} ± {format(self.standard_error, spec.lstrip('+'))}"

    def to_dict(self) -> dict[str, float]:
        """Mean and standard error as plain numbers; NaN is null in the files of a run."""
        return {"mean": self.mean, "standard_error": self.standard_error}

    def __str__(self) -> str:
        return f"{self.numbers()} {self.unit}"

    def __repr__(self) -> str:
        n = len(self.values)
        return f"Estimate({self}, {n} row{'' if n == 1 else 's'})"

    def _repr_html_(self) -> str:
        return str(self)


def bits_per_dim(log_likelihood: Estimate, num_values: int) -> Estimate:
    """Bits per dimension: - log2 p(x) / D for rows of D numbers.

    Example:
        >>> import torch
        >>> print(bits_per_dim(Estimate(torch.tensor([-8.0, -8.0])), num_values=8))
        1.443 ± 0.000 bits per dimension
    """
    scale = -1.0 / (num_values * math.log(2.0))
    return Estimate(log_likelihood.values * scale, "bits per dimension")
