"""Means, variances, standard errors and active units over rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype used for sums."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of `x`; the default dtype for integers and booleans, because their mean is not an integer."""
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the mean of `exp(x)` along `dim`, without overflow; differentiable.

    Args:
        x: Values of any shape; for `-inf`, `exp(x)` is zero.
        dim: The dimension to reduce.

    Returns:
        `log(mean(exp(x)))`, shaped as `x` without `dim`.

    Example:
        >>> log_mean_exp(torch.tensor([-1000.0, -1000.0]))
        tensor(-1000.)
    """
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over rows: unbiased standard deviation / sqrt(n).

    Args:
        values: Shape `(n, ...)`, one entry per row.

    Returns:
        Shape `(...)`; NaN for a single row, because one row has no spread.

    Example:
        >>> standard_error(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    n = values.shape[0]
    deviation = widened(values).std(0) if n > 1 else torch.full(values.shape[1:], math.nan)
    return (deviation / math.sqrt(max(n, 1))).to(values.device, result_dtype(values))


def active_units(posterior_means: Tensor, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
    r"""Finds the latent units that vary with the data: `Var_x(E_q[z_i | x]) > threshold`.

    The activity statistic of Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders"
    (arXiv:1509.00519), section 5.

    Args:
        posterior_means: `E_q[z | x]` of each row, shape `(n, *latent_shape)`.
        threshold: Units with a variance above it are active.

    Returns:
        The (unbiased) variances over rows and the mask of active units, both `latent_shape`.

    Raises:
        ValueError: There are fewer than two rows, so that there is no variance.

    Example:
        >>> active_units(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        (tensor([2., 0.]), tensor([ True, False]))
    """
    running = RunningVariance()
    running.update(posterior_means)
    if running.count < 2:
        raise ValueError(
            f"active_units needs the posterior means of at least 2 rows, got {running.count}"
        )
    variances = running.variance
    return variances, variances > threshold


class RunningVariance:
    """Mean and variance over rows that arrive in chunks; the memory does not depend on their number.

    Chunks are merged by the pairwise update of Chan, Golub & LeVeque, "Updating Formulae and a
    Pairwise Algorithm for Computing Sample Variances" (1979), which loses no digits when the mean
    is large compared with the spread.

    Example:
        >>> running = RunningVariance()
        >>> for chunk in torch.tensor([1.0, 2.0, 3.0, 6.0]).split(3):
        ...     running.update(chunk)
        >>> running.mean, running.variance
        (tensor(3.), tensor(4.6667))
    """

    def __init__(self) -> None:
        self.count = 0
        self._dtype = torch.get_default_dtype()
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, chunk: Tensor) -> None:
        """Adds rows of shape `(k, ...)`; an empty chunk changes nothing."""
        if (k := chunk.shape[0]) == 0:
            return
        wide = widened(chunk.detach())
        mean = wide.mean(0)
        squares = (wide - mean).square().sum(0)
        if self.count == 0:
            self._mean, self._squares, self._dtype = mean, squares, result_dtype(chunk)
        else:
            total = self.count + k
            delta = mean - self._mean
            # Once a mean is infinite, it stays infinite; the usual update would compute inf - inf.
            self._mean = torch.where(
                delta.isfinite(), self._mean + delta * (k / total), self._mean + mean
            )
            self._squares = self._squares + squares + delta.square() * (self.count * k / total)
        self.count += k

    @property
    def mean(self) -> Tensor:
        """Mean over the rows so far, shape `(...)`; NaN before the first row."""
        return (self._mean if self.count else self._mean * math.nan).to(self._dtype)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance over the rows so far, shape `(...)`; NaN for fewer than two rows."""
        return (self._squares / (self.count - 1 if self.count > 1 else math.nan)).to(self._dtype)
