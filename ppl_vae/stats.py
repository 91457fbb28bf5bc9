"""Statistics on plain tensors: importance weights, Pareto k-hat, active units, standard errors.

Nothing here knows Pyro. Functions take and return tensors of one dtype and device; sums run in
float64 (float32 on devices without it) and are cast back at the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_TAIL = 5
"""Fewest tail weights from which a Pareto shape is estimated; the rule of ``loo`` and ArviZ."""


def _wide(x: Tensor) -> Tensor:
    """``x`` in the dtype used for sums."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of ``x``; for integers and booleans, whose mean is none, the default one."""
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the mean of ``exp(x)`` along ``dim``, without overflow; differentiable.

    Args:
        x: Values of any shape; ``-inf`` is an ``exp`` of zero.
        dim: The dimension to reduce.

    Returns:
        ``log(mean(exp(x)))``, shaped as ``x`` without ``dim``.

    Example:
        >>> log_mean_exp(torch.tensor([-1000.0, -1000.0]))
        tensor(-1000.)
    """
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def standard_error(values: Tensor) -> Tensor:
    """Standard error of the mean over rows: unbiased standard deviation / sqrt(n).

    Args:
        values: Shape ``(n, ...)``, one entry per row.

    Returns:
        Shape ``(...)``; NaN for a single row, which says nothing about its spread.

    Example:
        >>> standard_error(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    n = values.shape[0]
    deviation = _wide(values).std(0) if n > 1 else torch.full(values.shape[1:], math.nan)
    return (deviation / math.sqrt(max(n, 1))).to(values.device, _result_dtype(values))


def active_units(posterior_means: Tensor, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
    r"""Which latent units vary with the data: ``Var_x(E_q[z_i | x]) > threshold``.

    The activity statistic of Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders"
    (arXiv:1509.00519), section 5.

    Args:
        posterior_means: ``E_q[z | x]`` of each row, shape ``(n, *latent_shape)``.
        threshold: Units with a variance above it are active.

    Returns:
        The (unbiased) variances over rows and the mask of active units, both ``latent_shape``.

    Raises:
        ValueError: With fewer than two rows there is no variance.

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
    """Mean and variance over rows that arrive in chunks, in memory independent of their number.

    Chunks are merged by the pairwise update of Chan, Golub & LeVeque, "Updating Formulae and a
    Pairwise Algorithm for Computing Sample Variances" (1979), which loses no digits when the mean
    is large beside the spread.

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
        """Take in rows of shape ``(k, ...)``; an empty chunk changes nothing."""
        if (k := chunk.shape[0]) == 0:
            return
        wide = _wide(chunk.detach())
        mean = wide.mean(0)
        squares = (wide - mean).square().sum(0)
        if self.count == 0:
            self._mean, self._squares, self._dtype = mean, squares, _result_dtype(chunk)
        else:
            total = self.count + k
            delta = mean - self._mean
            # Once a mean is infinite it stays so; the usual step would compute inf - inf.
            self._mean = torch.where(
                delta.isfinite(), self._mean + delta * (k / total), self._mean + mean
            )
            self._squares = self._squares + squares + delta.square() * (self.count * k / total)
        self.count += k

    @property
    def mean(self) -> Tensor:
        """Mean over the rows so far, shape ``(...)``; NaN before the first."""
        return (self._mean if self.count else self._mean * math.nan).to(self._dtype)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance over the rows so far, shape ``(...)``; NaN for fewer than two."""
        return (self._squares / (self.count - 1 if self.count > 1 else math.nan)).to(self._dtype)


def khat_limit(num_samples: int) -> float:
    """Pareto shape above which K samples do not suffice: min(1 - 1 / log10 K, 0.7).

    Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling* (arXiv:1507.02646).

    Example:
        >>> round(khat_limit(1000), 3), khat_limit(100_000)
        (0.667, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(max(num_samples, 2)), 0.7)


def tail_size(num_samples: int) -> int:
    """Number of largest weights that make the Pareto tail: ceil(min(K / 5, 3 sqrt(K)))."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def generalized_pareto_fit(exceedances: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    r"""Shape and scale of generalised Pareto distributions, one fit per row, all at once.

    The density is :math:`\sigma^{-1} (1 + k x / \sigma)^{-1/k - 1}` for x > 0. The estimator is the
    quasi-Bayesian one of Zhang & Stephens, "A New and Efficient Estimation Method for the
    Generalized Pareto Distribution" (Technometrics 2009), with the weak prior on k of Vehtari et
    al., "Pareto Smoothed Importance Sampling" (arXiv:1507.02646): worth ten observations, centred
    at 1/2. It acts on k alone, as in the R package ``loo`` and in ArviZ.

    Args:
        exceedances: Amounts by which draws exceed a threshold, > 0, in any order. Zeros are
            padding and ignored, so that rows may hold different numbers of draws.
        dim: The dimension of the draws.

    Returns:
        ``k`` and ``sigma``, shaped as ``exceedances`` without ``dim``. A row with fewer than five
        draws cannot be fitted: ``k = inf``, ``sigma = nan``. A row with a NaN gives NaN.

    Example:
        >>> uniform = (torch.arange(1000.0) + 0.5) / 1000
        >>> k, sigma = generalized_pareto_fit(2 / 0.5 * (uniform**-0.5 - 1))
        >>> bool(abs(k - 0.5) < 0.02), bool(abs(sigma - 2) < 0.05)
        (True, True)
    """
    dtype = exceedances.dtype
    x = _wide(exceedances.detach()).movedim(dim, -1).sort(-1, descending=True).values
    count = (x > 0).sum(-1)
    n = count.clamp(min=1).to(x.dtype)
    if x.shape[-1] < MIN_TAIL:
        x = torch.nn.functional.pad(x, (0, MIN_TAIL - x.shape[-1]))

    # Zhang & Stephens' grid of b = -k / sigma hangs on the largest draw and the first quartile,
    # the floor(n/4 + 1/2)-th smallest. Rows have their own n, and so their own number of points.
    floor = torch.finfo(x.dtype).tiny
    largest = x[..., 0].clamp(min=floor)
    quartile_index = (count - torch.floor(n / 4 + 0.5).long()).clamp(min=0, max=x.shape[-1] - 1)
    quartile = x.gather(-1, quartile_index[..., None])[..., 0].clamp(min=floor)
    points = 30 + torch.floor(torch.sqrt(n))
    j = torch.arange(1, int(30 + math.sqrt(x.shape[-1])) + 1, dtype=x.dtype, device=x.device)
    j = j.reshape(-1, *[1] * points.dim())
    b = 1 / largest + (1 - torch.sqrt(points / (j - 0.5))) / (3 * quartile)
    b = b.clamp(min=-0.1 * torch.finfo(x.dtype).max)

    def shape_given(b: Tensor) -> Tensor:
        return torch.log1p(-b[..., None] * x).sum(-1) / n

    # A loop over the grid (some 45 points), not over rows: it bounds the memory to that of x.
    k = torch.stack([shape_given(b_j) for b_j in b])
    ratio = -b / k
    profile = torch.where((ratio > 0) & (j <= points), n * (ratio.log() - k - 1), -math.inf)
    weights = torch.softmax(profile, 0)
    weights = torch.where(weights >= 10 * torch.finfo(x.dtype).eps, weights, 0.0)
    b_mean = (weights * b).sum(0) / weights.sum(0)
    k_mean = shape_given(b_mean)

    sigma = -k_mean / b_mean
    k_mean = (n * k_mean + 10 * 0.5) / (n + 10)
    short = (count < MIN_TAIL) & ~x.isnan().any(-1)
    k_mean = torch.where(short, math.inf, k_mean)
    sigma = torch.where(short, math.nan, sigma)
    return k_mean.to(dtype), sigma.to(dtype)


def _khat_of_tail(top: Tensor, smallest: Tensor, num_samples: int) -> Tensor:
    """k-hat from the largest ``tail_size + 1`` log weights, descending along the last dimension."""
    dtype, top = top.dtype, _wide(top)
    largest = top[..., 0]
    # Log weights that differ by rounding alone are constant: an exact posterior's. Taken at face
    # value, the few distinct values that float32 leaves would look like an unusable tail.
    magnitude = largest.abs().clamp(min=1.0)
    constant = (largest - _wide(smallest)) <= 32 * torch.finfo(dtype).eps * magnitude
    # Weights below the smallest normal number, relative to the largest, carry no information.
    cutoff = torch.maximum(top[..., -1], largest + math.log(torch.finfo(top.dtype).tiny))
    # exp(top) - exp(cutoff), relative to the largest weight, without cancellation.
    relative = (top - largest[..., None]).exp()
    exceedances = -torch.expm1(cutoff[..., None] - top).clamp(max=0.0) * relative
    k, _ = generalized_pareto_fit(exceedances, dim=-1)
    k = torch.where(constant if num_samples > 1 else torch.zeros_like(constant), -math.inf, k)
    return torch.where(largest.isfinite(), k, math.nan).to(dtype)


def pareto_khat(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Pareto k-hat of importance weights: how heavy the right tail of their distribution is.

    The largest ``M = ceil(min(K / 5, 3 sqrt(K)))`` weights are compared with a generalised Pareto
    distribution of shape k, which has 1/k finite moments. Below 0.5 the variance of the weights is
    finite; above 0.7 an estimate that uses them should not be trusted at practical K (Vehtari,
    Simpson, Gelman, Yao & Gabry, "Pareto Smoothed Importance Sampling", arXiv:1507.02646).

    Args:
        log_weights: Logarithms of the weights, any shape; their scale does not matter.
        dim: The dimension of the K samples.

    Returns:
        k-hat, shaped as ``log_weights`` without ``dim``. Special values:

        - ``-inf``: all weights are equal up to rounding, as under an exact posterior. No tail.
        - ``+inf``: fewer than five weights lie in the tail, so that k cannot be estimated (always
          so for K <= 20, and where a few weights dwarf all others). Do not trust the estimate.
        - NaN: all weights are zero (``-inf``), or one is infinite or NaN.

    Example:
        >>> pareto_khat(torch.zeros(100))
        tensor(-inf)
    """
    x = log_weights.detach().movedim(dim, -1)
    num_samples = x.shape[-1]
    top = x.topk(min(tail_size(num_samples) + 1, num_samples), dim=-1).values
    return _khat_of_tail(top, x.amin(-1), num_samples)


class StreamingWeights:
    """Summaries of K importance weights per row that arrive in chunks of samples.

    The memory is ``O(n * tail)`` with ``tail = min(K / 5, 3 sqrt(K))``, whatever the chunks. The
    results do not depend on the chunking beyond the rounding of float64, and k-hat not at all.
    They may be read at any time, for the samples so far.

    With a row's weights w_s = exp(l_s):

    ==================== =================================================================
    ``log_mean_exp``     log(1/K sum_s w_s): the importance-sampling estimate of log p(x)
    ``monte_carlo_error`` its standard error by the delta method, sd(w) / (sqrt(K) mean(w))
    ``ess``              (sum_s w_s)^2 / sum_s w_s^2, in [1, K]; K for equal weights
    ``khat``             see :func:`pareto_khat`
    ``mean_log_weight``  1/K sum_s l_s: the ELBO
    ``log_weight_variance`` unbiased variance of the l_s
    ==================== =================================================================

    A row whose weights are all zero (l = -inf) has ``log_mean_exp = -inf``, ``ess = 0`` and NaN
    for ``khat`` and ``monte_carlo_error``. A NaN among the l_s makes the whole row NaN.

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
        """Take in a chunk of log weights of shape ``(k, n)``, samples first.

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
        wide = _wide(chunk)
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
        """The ``size`` largest log weights of each row so far, descending: ``(n, size)``."""
        candidates = torch.cat(self._pending, 1)
        return candidates.topk(min(size, candidates.shape[1]), dim=1).values

    def _started(self) -> None:
        if not self.count:
            raise RuntimeError("no importance weights yet: call update(log_weights) first")

    @property
    def log_mean_exp(self) -> Tensor:
        """log(1/K sum_s w_s), shape ``(n,)``."""
        self._started()
        origin = torch.where(self._largest == -math.inf, 0.0, self._largest)
        result = origin + (self._sum / self.count).log()
        result = torch.where(self._largest == math.inf, math.inf, result)
        return result.to(self._smallest.dtype)

    @property
    def ess(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2, shape ``(n,)``; 0 where all weights are."""
        self._started()
        ess = self._sum.square() / self._sum_of_squares
        return torch.where(self._sum == 0, 0.0, ess).to(self._smallest.dtype)

    @property
    def monte_carlo_error(self) -> Tensor:
        """Standard error of ``log_mean_exp``, shape ``(n,)``; NaN for a single sample."""
        self._started()
        if self.count < 2:
            return torch.full_like(self._smallest, math.nan)
        # Unbiased var(w) / (K mean(w)^2), written with K / ESS = mean(w^2) / mean(w)^2.
        excess = self.count * self._sum_of_squares / self._sum.square() - 1
        return (excess.clamp(min=0.0) / (self.count - 1)).sqrt().to(self._smallest.dtype)

    @property
    def khat(self) -> Tensor:
        """Pareto k-hat, shape ``(n,)``; the special values are those of :func:`pareto_khat`."""
        self._started()
        top = self._top(tail_size(self.count) + 1)
        return _khat_of_tail(top, self._smallest, self.count)

    @property
    def mean_log_weight(self) -> Tensor:
        """1/K sum_s log w_s, shape ``(n,)``; ``-inf`` where a weight is zero."""
        self._started()
        return self._log_weights.mean

    @property
    def log_weight_variance(self) -> Tensor:
        """Unbiased variance of the log weights over samples, shape ``(n,)``."""
        self._started()
        return self._log_weights.variance
