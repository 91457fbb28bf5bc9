"""zuko's normalizing flows as Pyro distributions, for guides and priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.utils.weak import WeakTensorKeyDictionary

_validates = Distribution._validate_args


# Importing zuko switches off the validation of all distributions of the program.
Distribution.set_default_validate_args(_validates)


__all__ = ["FlowDistribution", "MonotonicSpline", "shrink_to_identity", "zuko"]


class FlowDistribution(ZukoToPyro):
    """A flow of zuko as a Pyro distribution; the density of its own draws costs nothing.

    The density of a draw z = T(u) is log p(u) - log |dT/du|, found with the draw and kept as long as z. To
    find u again from z is slower and, where T or its inverse is steep, wrong: points far apart round to the
    same z. In float32, splines with large weights can be off by tens of nats. Any other value, also a copy of
    a draw, can only be scored that way.

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
        # The density of each draw that is still in use, and whether it has gradients.
        self._drawn = WeakTensorKeyDictionary()

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
        self._drawn[z] = log_prob, torch.is_grad_enabled()
        return z

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, as `pyro.sample` does."""
        return self.rsample(sample_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), `(*batch,)`, in nats."""
        known, with_gradient = self._drawn.get(z, (None, False))
        density: Tensor
        if known is not None and (with_gradient or not torch.is_grad_enabled()):
            density = known
        else:
            density = self.dist.log_prob(z)
            if known is not None:
                # Drawn without gradients: the value is that of the draw, the gradients those of a given z.
                density = known + (density - density.detach()).nan_to_num()
        return density

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with another batch shape."""
        return type(self)(self.dist.expand(torch.Size(batch_shape)))


class MonotonicSpline(zuko.transforms.MonotonicRQSTransform):  # type: ignore[misc]
    """zuko's rational-quadratic spline, whose inverse rounding cannot make NaN, or leave its piece.

    The inverse solves a quadratic equation. Where a piece is so steep that its points cannot be told apart,
    rounding may make its discriminant negative.
    """

    def _inverse(self, y: Tensor) -> Tensor:
        mask, x0, x1, y0, y1, d0, d1, s = self.bin(self.searchsorted(self.vertical, y) - 1)
        height, above = y1 - y0, mask * (y - y0)
        bend = above * (d0 + d1 - 2 * s)
        a = height * (s - d0) + bend
        b = height * d0 - bend
        c = -s * above
        root = (b**2 - 4 * a * c).clamp(min=1e-30).sqrt()  # not 0, where it has no gradient
        share = (2 * c / (-b - root)).clamp(max=1)
        x: Tensor = torch.where(mask, x0 + share * (x1 - x0), y)
        return x


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
