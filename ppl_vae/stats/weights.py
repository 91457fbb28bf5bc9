"""Summaries of importance weights that arrive in chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.stats.moments import RunningVariance, widened
from ppl_vae.stats.pareto import khat_of_tail, tail_size


class StreamingWeights:
    """Summaries of K importance weights per row that arrive in chunks of samples.

    The memory is `O(n * tail)` with `tail = min(K / 5, 3 sqrt(K))`, for any size of the chunks. The
    results depend on the chunks only through float64 rounding, and k-hat does not depend on them.
    The results may be read at any time; they are those of the samples so far.

    With a row's weights w_s = exp(l_s):

    | property | value |
    | --- | --- |
    | `log_mean_exp` | log(1/K sum_s w_s): the importance-sampling estimate of log p(x) |
    | `monte_carlo_error` | its standard error by the delta method, sd(w) / (sqrt(K) mean(w)) |
    | `ess` | (sum_s w_s)^2 / sum_s w_s^2, in [1, K]; K for equal weights |
    | `khat` | see `pareto_khat` |
    | `mean_log_weight` | 1/K sum_s l_s: the ELBO |
    | `log_weight_variance` | unbiased variance of the l_s |

    A row whose weights are all zero (l = -inf) has `log_mean_exp = -inf`, `ess = 0` and NaN
    for `khat` and `monte_carlo_error`. A NaN among the l_s makes the whole row NaN.

    Args:
        num_samples: K, the total number of samples that will be added.

    Example:
        >>> weights = StreamingWeights(num_samples=4)
        >>> for chunk in torch.zeros(4, 3).split(2):
        ...     weights.update(chunk)
        >>> weights.ess, weights.log_mean_exp
        (tensor([4., 4., 4.]), tensor([0., 0., 0.]))
    """

    def __init__(self, num_samples: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples
        self._log_weights = RunningVariance()
        self._keep = min(tail_size(num_samples) + 1, num_samples)
        self._pending: list[Tensor] = []
        self._largest = self._smallest = self._sum = self._sum_of_squares = torch.zeros(0)

    @property
    def count(self) -> int:
        """The number of samples so far."""
        return self._log_weights.count

    def update(self, log_weights: Tensor) -> None:
        """Adds a chunk of log weights of shape `(k, n)`, samples first.

        Raises:
            ValueError: The chunk is not a matrix, its number of rows differs from that of earlier
                chunks, or there are more samples in all than `num_samples`.
        """
        if log_weights.dim() != 2:
            raise ValueError(
                "log weights must be a matrix of shape (samples, rows); "
                f"got the shape {tuple(log_weights.shape)}"
            )
        k, n = log_weights.shape
        if self.count + k > self.num_samples:
            raise ValueError(
                f"num_samples is {self.num_samples}, but there are {self.count + k} samples so far; "
                "the size of the Pareto tail depends on their number: construct "
                "StreamingWeights with num_samples = the total number"
            )
        if self.count and n != len(self._largest):
            raise ValueError(
                f"earlier chunks had {len(self._largest)} rows, this one has {n}: "
                "each chunk holds some of the samples, but of all rows"
            )
        if k == 0:
            return
        chunk = log_weights.detach()
        wide = widened(chunk)
        if not self.count:
            self._largest = torch.full_like(wide[0], -math.inf)
            self._smallest = torch.full_like(chunk[0], math.inf)
            self._sum = torch.zeros_like(wide[0])
            self._sum_of_squares = torch.zeros_like(wide[0])
        largest = torch.maximum(self._largest, wide.amax(0))
        # A row whose weights are all zero so far is kept relative to 0: exp(-inf - -inf) is NaN.
        origin = torch.where(largest == -math.inf, 0.0, largest)
        rescale = (self._largest - origin).exp()
        relative = (wide - origin).exp()
        self._sum = self._sum * rescale + relative.sum(0)
        self._sum_of_squares = self._sum_of_squares * rescale.square() + relative.square().sum(0)
        self._largest = largest
        self._smallest = torch.minimum(self._smallest, chunk.amin(0))
        self._log_weights.update(chunk)
        # Small chunks are collected until it is worth selecting the largest weights again.
        self._pending.append(chunk.T.clone())
        if sum(part.shape[1] for part in self._pending) >= 2 * self._keep:
            self._pending = [self._top(self._keep)]

    def _top(self, size: int) -> Tensor:
        """The `size` largest log weights of each row so far, descending: `(n, size)`."""
        candidates = torch.cat(self._pending, 1)
        return candidates.topk(min(size, candidates.shape[1]), dim=1).values

    def _started(self) -> None:
        if not self.count:
            raise RuntimeError("no importance weights yet: call update(log_weights) first")

    @property
    def log_mean_exp(self) -> Tensor:
        """log(1/K sum_s w_s), shape `(n,)`."""
        self._started()
        origin = torch.where(self._largest == -math.inf, 0.0, self._largest)
        result = origin + (self._sum / self.count).log()
        result = torch.where(self._largest == math.inf, math.inf, result)
        return result.to(self._smallest.dtype)

    @property
    def ess(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2, shape `(n,)`; 0 where all weights are zero."""
        self._started()
        ess = self._sum.square() / self._sum_of_squares
        return torch.where(self._sum == 0, 0.0, ess).to(self._smallest.dtype)

    @property
    def monte_carlo_error(self) -> Tensor:
        """Standard error of `log_mean_exp`, shape `(n,)`; NaN for a single sample."""
        self._started()
        if self.count < 2:
            return torch.full_like(self._smallest, math.nan)
        # Unbiased var(w) / (K mean(w)^2), written with K / ESS = mean(w^2) / mean(w)^2.
        excess = self.count * self._sum_of_squares / self._sum.square() - 1
        return (excess.clamp(min=0.0) / (self.count - 1)).sqrt().to(self._smallest.dtype)

    @property
    def khat(self) -> Tensor:
        """Pareto k-hat, shape `(n,)`; the special values are those of `pareto_khat`."""
        self._started()
        top = self._top(tail_size(self.count) + 1)
        return khat_of_tail(top, self._smallest, self.count)

    @property
    def mean_log_weight(self) -> Tensor:
        """1/K sum_s log w_s, shape `(n,)`; `-inf` where a weight is zero."""
        self._started()
        return self._log_weights.mean

    @property
    def log_weight_variance(self) -> Tensor:
        """Unbiased variance of the log weights over samples, shape `(n,)`."""
        self._started()
        return self._log_weights.variance
