"""Summaries of importance weights that arrive in chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.stats.moments import (
    RunningVariance,
    widened,
)
from ppl_vae.stats.pareto import (
    khat_of_tail,
    tail_size,
)


class StreamingWeights:
    """Summaries of K importance weights per row that arrive in chunks of samples.

    The memory is `O(n * tail)` with `tail = min(K / 5, 3 sqrt(K))`, whatever the chunks. The
    results do not depend on the chunking beyond the rounding of float64, and k-hat not at all.
    They may be read at any time, for the samples so far.

    With a row's weights w_s = exp(l_s):

    ==================== =================================================================
    `log_mean_exp`     log(1/K sum_s w_s): the importance-sampling estimate of log p(x)
    `monte_carlo_error` its standard error by the delta method, sd(w) / (sqrt(K) mean(w))
    `ess`              (sum_s w_s)^2 / sum_s w_s^2, in [1, K]; K for equal weights
    `khat`             see `pareto_khat`
    `mean_log_weight`  1/K sum_s l_s: the ELBO
    `log_weight_variance` unbiased variance of the l_s
    ==================== =================================================================

    A row whose weights are all zero (l = -inf) has `log_mean_exp = -inf`, `ess = 0` and NaN
    for `khat` and `monte_carlo_error`. A NaN among the l_s makes the whole row NaN.

    Args:
        num_samples: K, the number of samples that will come in all.

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
        """Samples taken in so far."""
        return self._log_weights.count

    def update(self, log_weights: Tensor) -> None:
        """Take in a chunk of log weights of shape `(k, n)`, samples first.

        Raises:
            ValueError: The chunk is not a matrix, its rows are not those of earlier chunks, or
                more samples come than were announced.
        """
        if log_weights.dim() != 2:
            raise ValueError(
                "log weights come as (samples, rows), a matrix; "
                f"got the shape {tuple(log_weights.shape)}"
            )
        k, n = log_weights.shape
        if self.count + k > self.num_samples:
            raise ValueError(
                f"{self.num_samples} samples were announced, but {self.count + k} have come; "
                "the size of the Pareto tail hangs on their number: construct "
                "StreamingWeights with it"
            )
        if self.count and n != len(self._largest):
            raise ValueError(
                f"earlier chunks had {len(self._largest)} rows, this one has {n}: "
                "the chunks are over samples, all rows come in each"
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
        # A row of zeros so far is kept relative to 0, for exp(-inf - -inf) is not a number.
        origin = torch.where(largest == -math.inf, 0.0, largest)
        rescale = (self._largest - origin).exp()
        relative = (wide - origin).exp()
        self._sum = self._sum * rescale + relative.sum(0)
        self._sum_of_squares = self._sum_of_squares * rescale.square() + relative.square().sum(0)
        self._largest = largest
        self._smallest = torch.minimum(self._smallest, chunk.amin(0))
        self._log_weights.update(chunk)
        # Small chunks wait until a merge is worth its selection of the largest.
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
        """Effective sample size (sum w)^2 / sum w^2, shape `(n,)`; 0 where all weights are."""
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
