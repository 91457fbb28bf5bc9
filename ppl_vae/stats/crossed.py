"""A quantity of repeats and rows, with the standard error of its mean over both."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, repr=False)
class CrossedEstimate:
    """A quantity measured on the same rows by several repeats, such as trainings with other seeds.

    Rows and repeats are both random: v_si = m + a_s + b_i + e_si. The mean over both has the variance

        var(a) / S + var(b) / n + var(e) / (S n),

    estimated by the mean squares of a two-way table, of which that of the rows has the last two terms:
    MS_rows / (S n) + max(0, MS_repeats - MS_residual) / (S n). To take the S n values for independent would
    leave out that all repeats share the rows, and that all rows share the repeats.

    Attributes:
        values: `(S, n)`, one line for each repeat.
        unit: The unit of a value.
        scale: What values are multiplied by where they are printed: 100 for percent.

    Example:
        >>> import torch
        >>> right = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
        >>> print(CrossedEstimate(right, unit="%", scale=100))
        62.50 ± 23.94 %
        >>> CrossedEstimate(right).by_repeat
        tensor([0.7500, 0.5000], dtype=torch.float64)
    """

    values: Tensor
    unit: str = ""
    scale: float = 1.0

    @property
    def mean(self) -> float:
        """Mean over repeats and rows; NaN without rows."""
        return float(self.values.double().mean())

    @property
    def by_repeat(self) -> Tensor:
        """Mean over rows of each repeat, `(S,)`."""
        return self.values.double().mean(1)

    @property
    def by_row(self) -> Tensor:
        """Mean over repeats of each row, `(n,)`."""
        return self.values.double().mean(0)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; that over rows alone if there is one repeat, NaN for a single row."""
        values = self.values.double()
        repeats, n = values.shape
        if n < 2:
            return math.nan
        of_rows = float(values.mean(0).var()) / n
        if repeats == 1:
            return math.sqrt(of_rows)
        of_repeats = float(values.mean(1).var()) / repeats
        rest = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
        residual = float(rest.square().sum()) / ((repeats - 1) * (n - 1)) / (repeats * n)
        return math.sqrt(of_rows + max(0.0, of_repeats - residual))

    def numbers(self, spec: str = ".2f") -> str:
        """Mean ± standard error in printed units, each in the format `spec`; see `Estimate.numbers`.

        The mean alone, if there is a single row, or if all values are the same: they say nothing of a spread.
        """
        sign = spec[: spec.startswith("+")]
        mean = format(self.scale * self.mean, f"{sign}z{spec[len(sign) :]}")
        if self.values.shape[1] < 2 or bool((self.values == self.values[0, 0]).all()):
            return mean
        return f"{mean} ± {format(self.scale * self.standard_error, spec.lstrip('+'))}"

    def to_dict(self) -> dict[str, float]:
        """Mean and standard error as plain numbers."""
        return {"mean": self.mean, "standard_error": self.standard_error}

    def __str__(self) -> str:
        return f"{self.numbers()} {self.unit}".rstrip()

    def __repr__(self) -> str:
        repeats, n = self.values.shape
        return f"CrossedEstimate({self}, {repeats} repeat{'' if repeats == 1 else 's'}, {n} rows)"

    def _repr_html_(self) -> str:
        return html.escape(str(self))
