"""A per-row quantity with its mean and standard error."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from torch import Tensor

from ppl_vae.stats.moments import standard_error

_NO_COUNT = "not defined, because a pyro.factor does not say how many numbers it scores"


@dataclass(frozen=True, repr=False)
class Estimate:
    """A per-row quantity, its mean over rows, and the standard error of the mean.

    Attributes:
        values: Per-row values, `(n,)`.
        unit: The unit of a value.
        weights: How much each row counts in the mean, `(n,)`; None counts all alike. Rows of weight 0 are left
            out, whatever their values.
        missing: What is printed in place of numbers that are not known or not defined, with the reason; else
            empty.

    Example:
        >>> import torch
        >>> estimate = Estimate(torch.tensor([-1.0, -3.0]))
        >>> print(estimate)
        -2.000 ± 1.000 nats
        >>> estimate
        Estimate(-2.000 ± 1.000 nats, 2 rows)
        >>> print(Estimate(torch.full((2,), torch.nan), missing="not defined: z is a point"))
        not defined: z is a point
    """

    values: Tensor
    unit: str = "nats"
    weights: Tensor | None = None
    missing: str = ""

    @property
    def mean(self) -> float:
        """Mean over rows; sum_i w_i v_i / sum_i w_i with weights."""
        values, weights = self._counted()
        if weights is None:
            return float(values.mean())
        return float((weights * values).sum() / weights.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows: standard deviation / sqrt(n); NaN for a single row.

        With weights, it is that of a ratio of two means, to first order: that of the mean of
        w_i (v_i - mean), divided by the mean weight.
        """
        values, weights = self._counted()
        if weights is None:
            return float(standard_error(values))
        return float(standard_error(weights * (values - self.mean)) / weights.mean())

    def numbers(self, spec: str = ".3f") -> str:
        """Mean ± standard error, each in the format `spec`; the mean alone if there is a single row.

        Example:
            >>> import torch
            >>> Estimate(torch.tensor([1.0, 3.0])).numbers("+.2f"), Estimate(torch.ones(1)).numbers()
            ('+2.00 ± 1.00', '1.000')
            >>> Estimate(torch.tensor([-1e-9])).numbers()
            '0.000'
        """
        sign = spec[: spec.startswith("+")]
        mean = format(self.mean, f"{sign}z{spec[len(sign) :]}")  # no -0.000
        if len(self._counted()[0]) == 1:
            return mean
        return f"{mean} ± {format(self.standard_error, spec.lstrip('+'))}"

    def to_dict(self) -> dict[str, float]:
        """Mean and standard error as plain numbers; NaN is null in the files of a run."""
        return {"mean": self.mean, "standard_error": self.standard_error}

    def _counted(self) -> tuple[Tensor, Tensor | None]:
        """The values and weights of the rows that count, float64."""
        if self.weights is None:
            return self.values.double(), None
        counts = self.weights > 0
        return self.values[counts].double(), self.weights[counts].double()

    def __str__(self) -> str:
        return self.missing or f"{self.numbers()} {self.unit}"

    def __repr__(self) -> str:
        n = len(self.values)
        return f"Estimate({self}, {n} row{'' if n == 1 else 's'})"

    def _repr_html_(self) -> str:
        return html.escape(str(self))


def bits_per_dim(
    log_likelihood: Estimate, num_values: int | Tensor, counted: str = "dimension"
) -> Estimate:
    """Bits per dimension: - log2 p(x_i) / D_i for row i of D_i numbers.

    If rows differ in their numbers, the mean is that over all numbers, sum_i - log2 p(x_i) / sum_i D_i: a row
    counts by its size. A row without numbers has none (NaN) and does not count.

    Args:
        log_likelihood: log p(x) of each row, nats.
        num_values: D, the same for all rows, or one for each, `(n,)`; 0 for all rows if it is not known, which
            gives NaN.
        counted: What a number is called in the unit: "token" of sentences.

    Example:
        >>> import torch
        >>> log_likelihood = Estimate(torch.tensor([-8.0, -8.0]))
        >>> print(bits_per_dim(log_likelihood, num_values=8))
        1.443 ± 0.000 bits per dimension
        >>> found = bits_per_dim(log_likelihood, torch.tensor([8, 2]))
        >>> found.values, round(found.mean, 3)  # 16 nats for 10 numbers
        (tensor([1.4427, 5.7708]), 2.308)
    """
    unit, missing = f"bits per {counted}", log_likelihood.missing
    if isinstance(num_values, int):
        if num_values == 0:
            missing = missing or _NO_COUNT
        values = log_likelihood.values * (-1.0 / ((num_values or math.nan) * math.log(2.0)))
        return Estimate(values, unit, missing=missing)
    sizes = num_values.to(log_likelihood.values)
    sizes = sizes.masked_fill(sizes == 0, math.nan)
    values = -log_likelihood.values / (sizes * math.log(2.0))
    return Estimate(values, unit, num_values, missing)
