"""Likelihoods p(x | features): small modules that return a distribution.

A decoder network ends in features of shape `(*batch, num_params, *data_shape)`; a likelihood turns
them into a distribution over one row, of event shape `data_shape`.

| likelihood | data |
| --- | --- |
| `Bernoulli` | 0 or 1 |
| `Binomial` | counts 0, 1, ..., `total_count` |
| `Gaussian`, fixed sigma | real numbers |
| `LearnedGaussian`, one learned sigma | real numbers |
| `OptimalGaussian`, the best sigma | real numbers |
| `DiscretizedLogistic` | 0, 1/255, ..., 1 |
| `BetaBinomial` | 0, 1/255, ..., 1, with most values at one of the ends |
| `Categorical` | categories, such as tokens: 0, 1, ..., `categories - 1`, in no order |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ppl_vae.distributions import Ancestral, QuantizedBetaBinomial, QuantizedLogistic
from ppl_vae.networks import (
    ReadingDecoder,
    Rebuildable,
    full_precision,
    require_at_least,
    require_at_least_one,
    require_positive,
)

LEAST_SIGMA = 1e-3
"""The smallest noise that is found: a decoder that fits exactly has no finite optimum."""


class Likelihood(Rebuildable, nn.Module, ABC):
    """p(x | features), one independent distribution per value of a row.

    To write your own, derive from this class, set `num_params` and write `per_value`.

    Attributes:
        num_params: Number of features that each value of the data needs.
    """

    num_params: int = 1

    @abstractmethod
    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.TorchDistribution:
        """The distribution of single values.

        Args:
            parameters: `num_params` tensors of shape `(*batch, *data_shape)`, any real numbers.
            x: The data if they are known, `(n, *data_shape)`. Only a likelihood that is fitted
                to them (`OptimalGaussian`) needs them.

        Returns:
            A distribution of batch shape `(*batch, *data_shape)` and event shape `()`.
        """

    def forward(
        self, features: Tensor, event_dim: int, x: Tensor | None = None
    ) -> dist.Independent:
        """p(x | features), of batch shape `batch` and event shape `data_shape`.

        Args:
            features: `(*batch, num_params, *data_shape)`, any real numbers.
            event_dim: Number of dimensions of a row, `len(data_shape)`.
            x: The data if they are known, `(n, *data_shape)`.

        Raises:
            ValueError: The features do not have `num_params` entries in the dimension before the
                data dimensions.
        """
        params_dim = features.ndim - event_dim - 1
        if params_dim < 0 or features.shape[params_dim] != self.num_params:
            raise ValueError(
                f"{type(self).__name__} needs features of shape (*batch, {self.num_params}, "
                f"*data_shape) with {event_dim} data dimensions, got {tuple(features.shape)}: "
                f"build the decoder with out_shape=(likelihood.num_params, *data_shape)"
            )
        parameters = full_precision(features).unbind(params_dim)
        return dist.Independent(self.per_value(*parameters, x=x), event_dim)


def decoded(
    decoder: nn.Module,
    likelihood: Likelihood,
    z: Tensor,
    data_shape: Sequence[int],
    x: Tensor | None = None,
) -> dist.TorchDistribution:
    """p(x | z), from a decoder that reads z alone, or from one that reads the row, too.

    Args:
        decoder: What `Network.decoder(latent_dim, (likelihood.num_params, *data_shape))` has built.
        likelihood: p(x | features).
        z: Latents, `(*batch, latent_dim)`.
        data_shape: Shape of one row of the data.
        x: The data if they are known, `(n, *data_shape)`, for a likelihood that is fitted to them.

    Returns:
        A distribution of batch shape `batch` and event shape `data_shape`: one `Independent`, or, for a
        `ReadingDecoder`, an `Ancestral`.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> decoder = MLP(hidden=(8,)).decoder(2, (1, 3))
        >>> decoded(decoder, Bernoulli(), torch.zeros(5, 2), (3,)).mean.shape
        torch.Size([5, 3])
    """
    event_dim = len(data_shape)
    if not isinstance(decoder, ReadingDecoder):
        p: dist.Independent = likelihood(decoder(z), event_dim, x)
        return p

    def draw(batch: torch.Size, values_of: Callable[[dist.TorchDistribution], Tensor]) -> Tensor:
        latents = z.expand(*batch, z.shape[-1])
        kinds = {z.dtype}

        def values(part: Tensor) -> Tensor:
            drawn = values_of(likelihood(part, event_dim))
            kinds.add(drawn.dtype)
            return drawn

        rows = decoder.ancestral(latents, values)
        # The network reads real numbers while they are drawn; tokens are whole ones.
        return rows.long() if torch.long in kinds else rows

    def support() -> constraints.Constraint:
        found: constraints.Constraint = likelihood(
            z.new_zeros(likelihood.num_params, *data_shape), event_dim
        ).support
        return found

    return Ancestral(
        lambda rows: likelihood(decoder(z, rows), event_dim, x),
        draw,
        support,
        z.shape[:-1],
        torch.Size(data_shape),
    )


class Bernoulli(Likelihood):
    """Binary data: x is 0 or 1, with log odds from the decoder.

    Gray values between 0 and 1 are not binary: binarize them, or use another likelihood.

    Example:
        >>> Bernoulli()(torch.zeros(5, 1, 8, 8), event_dim=2).log_prob(torch.ones(5, 8, 8))[0]
        tensor(-44.3614)
    """

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Bernoulli:
        """See `Likelihood.per_value`."""
        return dist.Bernoulli(logits=parameters[0])


class Binomial(Likelihood):
    """Counts: x is one of 0, 1, ..., `total_count`, with log odds from the decoder.

    Args:
        total_count: The largest possible count, 16 for scikit-learn's digits.

    Raises:
        ValueError: `total_count` is not positive.

    Example:
        >>> Binomial(16)(torch.zeros(5, 1, 8, 8), event_dim=2).mean.unique()
        tensor([8.])
    """

    def __init__(self, total_count: int = 16) -> None:
        super().__init__()
        require_at_least_one(self, total_count=total_count)
        self.total_count = total_count

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Binomial:
        """See `Likelihood.per_value`."""
        return _Binomial(self.total_count, logits=parameters[0])


def counts_of(value: Tensor, total: int) -> str:
    """What to do about data that are not counts from 0 to `total`.

    Example:
        >>> counts_of(torch.tensor([0.0, 0.25, 1.0]), 16)
        'they are counts divided by 16: multiply them by 16'
    """
    low, high = float(value.min()), float(value.max())
    whole = bool((value == value.round()).all())
    if low < 0 or math.isnan(low):
        return f"{_OF_REALS}, or give counts"
    if whole:
        return f"give the likelihood total_count={high:.0f} (--model.likelihood.total_count {high:.0f})"
    if high <= 1 and torch.allclose(total * value, (total * value).round(), atol=1e-3):
        return f"they are counts divided by {total}: multiply them by {total}"
    if high <= 1:
        return f"{_OF_REALS}, or multiply them by {total} and round them"
    return f"{_OF_REALS}, or round them"


_OF_REALS = "take a likelihood of real numbers, such as LearnedGaussian (--model.likelihood LearnedGaussian)"


class _Binomial(dist.Binomial):
    """Pyro's, but it computes the binomial coefficient once per row, not once per sample of z.

    The three log gammas of the coefficient cost as much as a decoder.
    """

    def _validate_sample(self, value: Tensor) -> None:
        try:
            super()._validate_sample(value)
        except ValueError as error:  # which prints the count of each value
            total = int(self.total_count.max())
            low, high = float(value.min()), float(value.max())
            raise ValueError(
                f"the data ({low:g} to {high:g}) are outside of the support, counts from 0 to {total}: "
                f"{counts_of(value, total)}"
            ) from error

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The count is the same everywhere, so the dimensions that the data do not have can be dropped.
        count = self.total_count[(0,) * (self.total_count.ndim - value.ndim)]
        coefficient = (count + 1).lgamma() - (value + 1).lgamma() - (count - value + 1).lgamma()
        log_p: Tensor = value * self.logits + count * logsigmoid(-self.logits) + coefficient
        return log_p


class Gaussian(Likelihood):
    """Real numbers with fixed noise: N(x; mean, sigma^2), with the mean from the decoder.

    Args:
        sigma: Standard deviation, in units of the data.

    Raises:
        ValueError: `sigma` is not positive.

    Example:
        >>> Gaussian(0.5)(torch.zeros(5, 1, 3), event_dim=1).stddev[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        require_positive(self, sigma=sigma)
        self.sigma = sigma

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Normal:
        """See `Likelihood.per_value`."""
        return dist.Normal(parameters[0], self.sigma)


class LearnedGaussian(Likelihood):
    """Real numbers with one learned noise: N(x; mean, sigma^2), with log sigma a parameter.

    Args:
        initial_sigma: Standard deviation before training, in units of the data.

    Raises:
        ValueError: `initial_sigma` is not positive.

    Example:
        >>> [name for name, _ in LearnedGaussian().named_parameters()]
        ['log_sigma']
    """

    def __init__(self, initial_sigma: float = 1.0) -> None:
        super().__init__()
        require_positive(self, initial_sigma=initial_sigma)
        self.log_sigma = nn.Parameter(torch.tensor(float(initial_sigma)).log())

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Normal:
        """See `Likelihood.per_value`."""
        return dist.Normal(parameters[0], self.log_sigma.exp())

    @property
    def sigma(self) -> Tensor:
        """Standard deviation, in units of the data."""
        return self.log_sigma.detach().exp()

    def set_sigma(self, sigma: float) -> None:
        """Sets it, as `refit_guide(..., fit_noise=True)` does; below 1e-3 it is 1e-3."""
        with torch.no_grad():
            self.log_sigma.fill_(math.log(max(sigma, LEAST_SIGMA)))


class OptimalGaussian(Likelihood):
    """Real numbers with the noise that maximizes the likelihood of the batch.

    N(x; mean, sigma*^2), where sigma*^2 is the mean of (x - mean)^2 over all rows, dimensions and
    samples of the batch ("Simple and Effective VAE Training with Calibrated Decoders",
    arXiv:2006.13202).

    In training mode, and with `x` given, the batch's own sigma*^2 is used. The buffer `variance`
    keeps its average: a plain one over the first hundred batches, then an exponential one that gives
    each new batch a weight of 1/100. In evaluation mode, or without `x`, the buffer is used, so
    that rows are independent of each other. Gradients flow through sigma*; for the ELBO they are
    0, because sigma* is its optimum.

    Squared errors below 1e-6 count as 1e-6: a decoder that fits exactly has no finite optimum.

    Example:
        >>> likelihood = OptimalGaussian()
        >>> p = likelihood(torch.zeros(2, 1, 2), event_dim=1, x=torch.tensor([[0.0, 2], [2, 0]]))
        >>> p.variance[0], likelihood.variance
        (tensor([2.0000, 2.0000]), tensor(2.))
    """

    fitted_to_rows = True
    """In training it reads the rows beside their means: draws from the prior must not be shown to it."""

    variance: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0))

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Normal:
        """See `Likelihood.per_value`."""
        (mean,) = parameters
        if x is None or not self.training:
            return dist.Normal(mean, self.variance.sqrt())
        variance = (x - mean).square().mean().clamp_min(LEAST_SIGMA**2)
        with torch.no_grad():
            # In place, and without reading a value: works on any device, also in a recorded graph.
            self.batches.add_(1)
            self.variance.add_((variance - self.variance) / self.batches.clamp_max(100))
        return dist.Normal(mean, variance.sqrt())

    @property
    def sigma(self) -> Tensor:
        """Standard deviation in evaluation mode, in units of the data."""
        return self.variance.sqrt()

    def set_sigma(self, sigma: float) -> None:
        """Sets it, as `refit_guide(..., fit_noise=True)` does; below 1e-3 it is 1e-3."""
        self.variance.fill_(max(sigma, LEAST_SIGMA) ** 2)


class DiscretizedLogistic(Likelihood):
    """Quantized pictures: x is one of k / (levels - 1), for k = 0, ..., levels - 1.

    Every value has its own location and log scale (`num_params` is 2). From the features
    f0 and f1, the location is (1 + f0) / 2 and the scale exp(7 tanh(f1 / 7)) / 2, so that a fresh
    decoder starts in the middle of the range and no feature makes the scale overflow or vanish.
    The distribution is `QuantizedLogistic`.

    Args:
        levels: Number of values, 256 for 8-bit pictures divided by 255.

    Raises:
        ValueError: `levels` is less than 2.

    Example:
        >>> p = DiscretizedLogistic()(torch.zeros(5, 2, 3, 8, 8), event_dim=3)
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([3, 8, 8]))
    """

    num_params = 2

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        require_at_least(self, 2, levels=levels)
        self.levels = levels

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> QuantizedLogistic:
        """See `Likelihood.per_value`."""
        location, log_scale = parameters
        scale = (7 * (log_scale / 7).tanh()).exp() / 2
        return QuantizedLogistic((1 + location) / 2, scale, self.levels)


class BetaBinomial(Likelihood):
    """Quantized pictures of which many values are black or white: x is one of k / (levels - 1).

    The count k of each value is beta-binomial, with alpha and beta from the features f0 and f1 (`num_params`
    is 2): exp(7 tanh(f / 7)), so that no feature makes them overflow or vanish. Nearly all mass may be on 0 or
    on 1. It is the likelihood of "Practical Lossless Compression with Latent Variables using Bits Back Coding"
    (arXiv:1901.04866) for MNIST. The distribution is `QuantizedBetaBinomial`.

    Args:
        levels: Number of values, 256 for 8-bit pictures divided by 255.

    Raises:
        ValueError: `levels` is less than 2.

    Example:
        >>> p = BetaBinomial(5)(torch.zeros(1, 2, 3), event_dim=1)  # alpha = beta = 1: all values alike
        >>> p.log_prob(torch.tensor([0.0, 0.25, 1.0])).exp()
        tensor([0.0080])
    """

    num_params = 2

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        require_at_least(self, 2, levels=levels)
        self.levels = levels

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> QuantizedBetaBinomial:
        """See `Likelihood.per_value`."""
        alpha, beta = ((7 * (each / 7).tanh()).exp() for each in parameters)
        return QuantizedBetaBinomial(alpha, beta, self.levels)


class Categorical(Likelihood):
    """Categories in no order, such as the tokens of a text: x is one of 0, 1, ..., `categories - 1`.

    Each value has a logit for each category (`num_params` is `categories`). There is no mean.

    Args:
        categories: Number of categories.

    Raises:
        ValueError: `categories` is less than 2.

    Example:
        >>> p = Categorical(3)(torch.zeros(5, 3, 10), event_dim=1)
        >>> p.log_prob(torch.full((10,), 2.0))[0]
        tensor(-10.9861)
    """

    def __init__(self, categories: int) -> None:
        super().__init__()
        require_at_least(self, 2, categories=categories)
        self.categories = categories
        self.num_params = categories

    def per_value(self, *parameters: Tensor, x: Tensor | None) -> dist.Categorical:
        """See `Likelihood.per_value`."""
        return dist.Categorical(logits=torch.stack(parameters, -1))
