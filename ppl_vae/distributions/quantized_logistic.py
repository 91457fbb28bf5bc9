"""The logistic distribution on evenly spaced levels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class Levels(constraints.Constraint):
    """The numbers k / (levels - 1), up to rounding."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.steps = levels - 1

    def check(self, value: Tensor) -> Tensor:
        k = value * self.steps
        # Wide enough for rounding, too narrow for pictures that were divided by `levels`.
        rounding = 1e-3 + 4 * self.steps * torch.finfo(value.dtype).eps
        within: Tensor = (k > -0.5) & (k < self.steps + 0.5)
        return within & ((k - k.round()).abs() < rounding)

    def __repr__(self) -> str:
        return f"values k / {self.steps} for k = 0, ..., {self.steps}"


class QuantizedLogistic(dist.TorchDistribution):
    """A logistic distribution rounded to the nearest of `levels` values on [0, 1].

    With h = 1 / (2 (levels - 1)) and the logistic function s, the mass of a value x is
    s((x + h - loc) / scale) - s((x - h - loc) / scale); the values 0 and 1 take the tails, so the
    masses sum to one ("PixelCNN++", arXiv:1701.05517). The mass is evaluated as
    log s(b) + log s(-a) + log(1 - exp(a - b)), which is exact at any distance from `loc`.

    Args:
        loc: Location, any real number.
        scale: Scale, positive.
        levels: Number of values.

    Example:
        >>> p = QuantizedLogistic(torch.tensor(0.2), torch.tensor(0.1), levels=5)
        >>> p.log_prob(torch.arange(5) / 4).exp()
        tensor([0.3208, 0.5311, 0.1340, 0.0129, 0.0012])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The values k / (levels - 1)."""
        return Levels(self.levels)

    @property
    def mean(self) -> Tensor:
        """The exact expectation, the sum of P(x >= k / (levels - 1)) over k >= 1."""
        steps = self.levels - 1
        total = torch.zeros_like(self.loc)
        # One level after another: all at once would take `levels` times the memory.
        for k in range(1, self.levels):
            total = total + torch.sigmoid((self.loc - (k - 0.5) / steps) / self.scale)
        return total / steps

    def log_prob(self, value: Tensor) -> Tensor:
        """The log mass of each value, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        below = log_sigmoid((value + half - self.loc) / self.scale)
        above = log_sigmoid((self.loc - value + half) / self.scale)
        both = below + above + log_one_minus_exp(2 * half / self.scale)
        return torch.where(value < half, below, torch.where(value > 1 - half, above, both))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws values from the support, of shape `(*sample_shape, *batch_shape)`."""
        steps = self.levels - 1
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            k = (self.loc + self.scale * uniform.logit()) * steps
            x: Tensor = k.round().clamp(0, steps) / steps
            return x

    def expand(self, batch_shape: Any, _instance: Any = None) -> QuantizedLogistic:
        """The same distribution for a larger batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new = QuantizedLogistic(loc, scale, self.levels, validate_args=False)
        new._validate_args = self._validate_args
        return new


# Torch's logsigmoid, expm1 and log1p take ten times as long on a CPU as exp, log and tanh, which it
# vectorizes.


def log_sigmoid(u: Tensor) -> Tensor:
    """log sigmoid(u), to within rounding of 1."""
    return torch.minimum(u, torch.zeros_like(u)) - torch.log(1 + torch.exp(-u.abs()))


def log_one_minus_exp(d: Tensor) -> Tensor:
    """log(1 - exp(-d)) for d > 0: 1 - exp(-d) = tanh(d / 2) (1 + exp(-d)), of which neither cancels."""
    return torch.log(torch.tanh(d / 2)) + torch.log(1 + torch.exp(-d))
