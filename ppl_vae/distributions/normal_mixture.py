"""A mixture of diagonal normals whose samples can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.special import ndtr


class DiagonalNormalMixture(dist.MixtureSameFamily):  # type: ignore[misc]
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
