"""zuko's normalizing flows as Pyro distributions, for guides and priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

_validates = Distribution._validate_args


# Importing zuko switches off the validation of all distributions of the program.
Distribution.set_default_validate_args(_validates)


__all__ = ["FlowDistribution", "shrink_to_identity", "zuko"]


class FlowDistribution(ZukoToPyro):
    """A flow of zuko as a Pyro distribution; the density of its last sample costs nothing.

    Pyro's wrapper has no support and no `rsample`, and it keeps the density of every sample that
    it ever drew, without gradients if there were none at the time.

    Args:
        flow: The distribution that a lazy flow of zuko returns; its events are vectors.

    Example:
        >>> q = FlowDistribution(zuko.flows.MAF(features=2)())
        >>> z = q.rsample((3,))
        >>> q.log_prob(z).shape
        torch.Size([3])
    """

    support = constraints.real_vector

    def __init__(self, flow: zuko.distributions.NormalizingFlow) -> None:
        super().__init__(flow)
        self._last: tuple[Tensor, Tensor, bool] | None = None

    @property
    def event_shape(self) -> torch.Size:
        """That of the noise; zuko's own includes the batch shape of an affine transform's location."""
        flow: Any = self.dist
        shape: torch.Size = flow.base.event_shape
        return shape

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws `(*sample_shape, *batch, d)`, differentiable."""
        flow: Any = self.dist
        z: Tensor
        z, log_prob = flow.rsample_and_log_prob(torch.Size(sample_shape))
        self._last = z, log_prob, torch.is_grad_enabled()
        return z

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, as `pyro.sample` does."""
        return self.rsample(sample_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), `(*batch,)`, in nats."""
        if self._last is not None:
            last, log_prob, with_gradient = self._last
            if z is last and (with_gradient or not torch.is_grad_enabled()):
                return log_prob
        scored: Tensor = self.dist.log_prob(z)
        return scored

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with another batch shape."""
        return type(self)(self.dist.expand(torch.Size(batch_shape)))


def shrink_to_identity(transform: nn.Module) -> None:
    """Brings zuko's autoregressive transforms near the identity, which outputs of 0 would give.

    Not exactly to it: a network whose last layer is zero passes no gradient to its other layers.
    """
    with torch.no_grad():
        for module in transform.modules():
            hyper = getattr(module, "hyper", None)
            if hyper is not None:
                for parameter in hyper[-1].parameters():
                    parameter.mul_(1e-3)
