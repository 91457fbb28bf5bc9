"""The beta-binomial distribution on evenly spaced levels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.distributions.quantized_logistic import Levels


class QuantizedBetaBinomial(dist.TorchDistribution):
    """A beta-binomial count divided by its largest value, so that it is one of `levels` values on [0, 1].

    With n = levels - 1 and k = n x, the mass of a value x is

        C(n, k) B(k + alpha, n - k + beta) / B(alpha, beta),

    where B is the beta function: a binomial count whose probability was drawn from Beta(alpha, beta). Small
    alpha or beta put nearly all mass on 0 or 1, large ones make a bell as narrow as that of a binomial count.

    Log gammas cancel, so they are taken in double precision wherever the device has it.

    Args:
        concentration1: alpha, positive.
        concentration0: beta, positive.
        levels: Number of values.

    Example:
        >>> p = QuantizedBetaBinomial(torch.tensor(1.0), torch.tensor(2.0), levels=5)
        >>> p.log_prob(torch.arange(5) / 4).exp()
        tensor([0.3333, 0.2667, 0.2000, 0.1333, 0.0667])
    """

    arg_constraints = {  # noqa: RUF012
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }

    def __init__(
        self,
        concentration1: Tensor,
        concentration0: Tensor,
        levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration1, self.concentration0 = torch.broadcast_tensors(
            concentration1, concentration0
        )
        self.levels = levels
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The values k / (levels - 1)."""
        return Levels(self.levels)

    @property
    def mean(self) -> Tensor:
        """The expectation, alpha / (alpha + beta)."""
        found: Tensor = self.concentration1 / (self.concentration1 + self.concentration0)
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        """The log mass of each value, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        dtype = self.concentration1.dtype
        exact = dtype if self.concentration1.device.type == "mps" else torch.float64
        alpha, beta = self.concentration1.to(exact), self.concentration0.to(exact)
        n = self.levels - 1
        counts = torch.arange(self.levels, dtype=exact, device=value.device)
        coefficients = (
            -(counts + 1).lgamma() - (n - counts + 1).lgamma() + counts[-1].add(1).lgamma()
        )
        which = (value * n).round()
        k = which.to(exact)
        both = (alpha + k).lgamma() + (beta + (n - k)).lgamma() - (alpha + beta + n).lgamma()
        norm = alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()
        log_p: Tensor = coefficients[which.clamp(0, n).long()] + (both - norm)
        return log_p.to(dtype)

    def log_masses(self) -> Tensor:
        """The log masses of all values, `(levels, *batch_shape)`, in nats: by sums of logarithms."""
        n = self.levels - 1
        j = torch.arange(n, dtype=torch.float64, device=self.concentration1.device)
        j = j.reshape(-1, *[1] * len(self.batch_shape))
        alpha, beta = self.concentration1.double(), self.concentration0.double()
        begin = torch.zeros(1, *self.batch_shape, dtype=torch.float64, device=j.device)

        def rising(first: Tensor) -> Tensor:
            """log of first (first + 1) ... (first + k - 1), for k = 0, ..., n."""
            return torch.cat([begin, torch.log(first + j).cumsum(0)])

        choices = rising(torch.ones_like(begin[0]))  # log k!
        coefficients = choices[-1] - choices - choices.flip(0)
        return coefficients + rising(alpha) + rising(beta).flip(0) - rising(alpha + beta)[-1]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws values from the support, of shape `(*sample_shape, *batch_shape)`."""
        with torch.no_grad():
            beta = dist.Beta(self.concentration1, self.concentration0, validate_args=False)
            chances = beta.sample(torch.Size(sample_shape))
            n = self.levels - 1
            x: Tensor = torch.binomial(torch.full_like(chances, float(n)), chances) / n
            return x

    def expand(self, batch_shape: Any, _instance: Any = None) -> QuantizedBetaBinomial:
        """The same distribution for a larger batch shape."""
        alpha = self.concentration1.expand(batch_shape)
        beta = self.concentration0.expand(batch_shape)
        new = QuantizedBetaBinomial(alpha, beta, self.levels, validate_args=False)
        new._validate_args = self._validate_args
        return new
