"""Mixtures of diagonal normals: a density by products of matrices, and samples that can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.special import ndtr


class NormalMixture(dist.MixtureSameFamily):  # type: ignore[misc]
    """A mixture whose density is fast if its components are diagonal normals that all values share.

    That of n values under K components in d dimensions takes n K d numbers if it is written as it is defined.
    Here it is a product of matrices,

        log N(z; m, s^2) = sum_i [-z_i^2 / (2 s_i^2) + z_i m_i / s_i^2] + c,

    which keeps n K. Its terms cancel, so it is done in double precision for values in single precision: the
    error is about 1e-16 (z / s)^2, where that of a value in single precision, by its rounding alone, is 1e-7
    z / s. Anything else is `MixtureSameFamily`: other components, those of each row, double precision,
    and devices without it.

    Args:
        mixture_distribution: The weights, `Categorical`.
        component_distribution: `Normal(...).to_event(1)` of batch shape `(K,)`, or any other components.

    Example:
        >>> normals = dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
        >>> mixture = NormalMixture(dist.Categorical(logits=torch.zeros(3)), normals)
        >>> mixture.log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """

    def __init__(
        self, mixture_distribution: Any, component_distribution: Any, validate_args: Any = None
    ) -> None:
        super().__init__(mixture_distribution, component_distribution, validate_args)
        self._shared = _normals(component_distribution)
        self._single: NormalMixture | None = None  # of which this repeats the one value

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NormalMixture:
        """As of any distribution; the components stay shared."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new._shared = self._shared
        new._single = self._single if self.batch_shape else self
        expanded: NormalMixture = super().expand(torch.Size(batch_shape), new)
        return expanded

    @property
    def mean(self) -> Tensor:
        """The mean, `(*batch, d)`; what `expand` has repeated is computed once."""
        whole: Tensor = super().mean if self._single is None else self._single.mean
        return whole.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each number, `(*batch, d)`; what `expand` has repeated is computed once."""
        whole: Tensor = super().variance if self._single is None else self._single.variance
        return whole.expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of values `(*batch, d)`: `batch`."""
        if self._shared is None or not _by_products(value, *self._shared):
            slow: Tensor = super().log_prob(value)
            return slow
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = (t.double() for t in self._shared)
        z, precision = value.double(), scale.square().reciprocal()
        constant = -0.5 * (loc.square() * precision).sum(-1) - scale.log().sum(-1)
        constant = constant - 0.5 * loc.shape[-1] * math.log(2 * math.pi)
        of_components = linear(
            torch.cat([z.square(), z], -1),
            torch.cat([-0.5 * precision, loc * precision], -1),
            constant,
        )
        weighted = of_components.to(value.dtype) + self.mixture_distribution.logits
        log_p: Tensor = weighted.logsumexp(-1)
        return log_p


def _normals(components: Any) -> tuple[Tensor, Tensor] | None:
    """Means and scales `(K, d)` of normals that have no other shape; else None."""
    normal = getattr(components, "base_dist", None)
    if type(components) is not dist.Independent or type(normal) is not dist.Normal:
        return None
    if len(components.batch_shape) != 1 or len(components.event_shape) != 1:
        return None
    return normal.loc, normal.scale


def _by_products(value: Tensor, loc: Tensor, scale: Tensor) -> bool:
    single = all(t.dtype == torch.float32 for t in (value, loc, scale))
    return single and value.device.type != "mps"  # which has no double precision


class DiagonalNormalMixture(NormalMixture):
    """A mixture of diagonal normals whose samples can be differentiated.

    The velocity dz/dp of a sample with respect to a parameter p has to carry the density along:
    d q / d p + div(q dz/dp) = 0. With r_k the probability of component k given z,

    - dz_i / d loc_ki = r_k and dz_i / d scale_ki = r_k (z_i - loc_ki) / scale_ki;
    - for the weights, dz / d log w = - (dF / dz)^-1 dF / d log w, with F_i the distribution
      function of z_i given z_1 .. z_(i-1) ("Implicit Reparameterization Gradients",
      arXiv:1805.08498); dF / dz is triangular.

    These gradients are unbiased, of second order too. Mass that moves from one component to another
    has to cross the gap between them: the variance of the weights' gradient grows like
    exp(s^2 / 8) with a gap of s standard deviations, as for every pathwise gradient.

    Pyro's `MixtureOfDiagNormals` is no substitute: the gradient of its weights is biased if scales
    differ from 1, is NaN in one dimension, and underflows in many dimensions.

    Args:
        mixture_distribution: The weights, `Categorical` of batch shape `batch`.
        component_distribution: `Normal(...).to_event(1)` of batch shape `(*batch, K)`.
    """

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws `(*sample_shape, *batch, d)`, differentiable."""
        normal = self.component_distribution.base_dist
        batch = torch.Size(sample_shape) + self.batch_shape
        which = self.mixture_distribution.sample(torch.Size(sample_shape))
        logits = self.mixture_distribution.logits.expand(*batch, -1)
        locs, scales = (t.expand(*batch, -1, -1) for t in (normal.loc, normal.scale))
        noise = torch.randn(batch + self.event_shape, dtype=locs.dtype, device=locs.device)
        z: Tensor = _Draw.apply(logits, locs, scales, which, noise)
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws `(*sample_shape, *batch, d)`."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class _Draw(torch.autograd.Function):
    """The sample of a given component and noise, with the velocities above as its derivative.

    Logits are normalized, `(*batch, K)`; locs and scales are `(*batch, K, d)`, the noise is
    `(*batch, d)`. The backward pass is made of differentiable operations on the sample itself, so
    that it can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, locs: Tensor, scales: Tensor, which: Tensor, noise: Tensor
    ) -> Tensor:
        index = which[..., None, None].expand(*noise.shape[:-1], 1, noise.shape[-1])
        loc, scale = (t.gather(-2, index).squeeze(-2) for t in (locs, scales))
        z = loc + scale * noise
        ctx.save_for_backward(z, logits, locs, scales)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, logits, locs, scales = ctx.saved_tensors
        noise = (z.unsqueeze(-2) - locs) / scales
        log_normal = -0.5 * noise.square() - scales.log() - 0.5 * math.log(2 * math.pi)
        posterior = torch.softmax(logits + log_normal.sum(-1), -1)
        by_loc = posterior.unsqueeze(-1) * grad.unsqueeze(-2)

        # log p(k | z_1 .. z_(i-1)) and log p(z_i | z_1 .. z_(i-1)): (*batch, K, d), (*batch, 1, d)
        joint = logits.unsqueeze(-1) + log_normal.cumsum(-1)
        log_weights = torch.log_softmax(joint - log_normal, -2)
        log_density = torch.logsumexp(log_weights + log_normal, -2, keepdim=True)
        # The smaller of the two tails: near 1 differences would be lost in rounding.
        weights = log_weights.exp()
        upper = (weights * ndtr(noise)).sum(-2, keepdim=True) > 0.5
        sign = torch.where(upper, -1.0, 1.0).to(z.dtype)
        tail = ndtr(sign * noise)
        tail = sign * (tail - (weights * tail).sum(-2, keepdim=True))
        slope = weights * tail * (-log_density).exp()  # dF_i / d log w_k over the density of z_i
        jacobian = (slope.mT @ (-noise / scales)).tril(-1)  # dF / dz; its diagonal is 1
        jacobian = jacobian + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        pulled = torch.linalg.solve_triangular(
            jacobian.mT, grad.unsqueeze(-1), upper=True, unitriangular=True
        )
        by_logit = -(slope @ pulled).squeeze(-1)
        return by_logit, by_loc, by_loc * noise, None, None
