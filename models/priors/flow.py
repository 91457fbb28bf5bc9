"""A prior that is a normalizing flow."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ppl_vae.distributions import (
    FlowDistribution,
    MonotonicSpline,
    shrink_to_identity,
    zuko,
)
from ppl_vae.models.priors.base import Prior
from ppl_vae.networks import full_precision, require_at_least_one, require_widths

_BINS = 8
"""Pieces of a spline."""

_STEPS, _LOOK_EVERY, _PATIENCE = 2000, 100, 3
"""Of `fit_to`: Adam steps at most, steps between two looks at held-out rows, looks without a gain."""

_BATCH, _JUDGED = 256, 2000
"""Of `fit_to`: draws per step, and held-out draws to judge by."""


@dataclass(frozen=True)
class FlowPrior(Prior):
    """p(z) = N(f((z - m) / s); 0, I) |det df/dz|, with f a neural spline flow, and m and s learned.

    "Neural Spline Flows" (arXiv:1906.04032), autoregressive, from zuko. f maps z to the noise.
    The density of the guide's samples, which training needs, takes one pass; a sample from p(z)
    takes `latent_dim` passes per transform. Beyond 5 standard deviations the splines are the
    identity. At the start f is close to the identity, and p(z) to the standard normal.

    Args:
        transforms: Number of autoregressive transforms, in alternating orders.
        hidden: Widths of the hidden layers of each transform.

    Raises:
        ValueError: `transforms` or a width is not positive, or `hidden` is empty.

    Example:
        >>> p = FlowPrior(transforms=2, hidden=(16,)).build((3,), latent_dim=2)()
        >>> p.sample((5,)).shape, p.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([5, 2]), torch.Size([3]))
    """

    transforms: int = 3
    hidden: Sequence[int] = (64, 64)

    def __post_init__(self) -> None:
        # YAML and the command line give lists, which cannot be hashed and never equal a tuple.
        require_at_least_one(self, transforms=self.transforms)
        require_widths(self, hidden=self.hidden)
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _FlowModule(latent_dim, self.transforms, tuple(self.hidden))


class _FlowModule(nn.Module):
    def __init__(self, latent_dim: int, transforms: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        self.flow = zuko.flows.MAF(
            latent_dim,
            transforms=transforms,
            hidden_features=hidden,
            univariate=_spline,
            shapes=[(_BINS,), (_BINS,), (_BINS - 1,)],
        )
        shrink_to_identity(self.flow.transform)
        if latent_dim == 1:  # zuko then has no networks; splines of zeros are the identity
            for parameter in self.flow.parameters():
                nn.init.zeros_(parameter)

    def forward(self) -> FlowDistribution:
        flow = self.flow()
        standardize = AffineTransform(self.loc, self.log_scale.exp(), event_dim=1).inv
        transform = zuko.transforms.ComposedTransform(standardize, flow.transform)
        return FlowDistribution(zuko.distributions.NormalizingFlow(transform, flow.base))

    @torch.enable_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Maximizes E_q log p(z) by Adam, and keeps the parameters that are best on held-out rows.

        Args:
            mean: Mean of each row's q(z | x), `(n, latent_dim)`.
            variance: Variance of each row's q(z | x), `(n, latent_dim)`.
            draws: Draws from each row's q(z | x), `(num_draws, n, latent_dim)`.
        """
        with torch.no_grad():
            self.loc.copy_(mean.mean(0))
            total = variance.mean(0) + mean.var(0, unbiased=False)
            self.log_scale.copy_(total.clamp_min(1e-12).log() / 2)  # a dead dimension has none
        rows = draws[:, torch.randperm(draws.shape[1], device=draws.device)]
        held_out = rows.shape[1] // 10
        unseen, seen = rows[:, :held_out].flatten(0, 1), rows[:, held_out:].flatten(0, 1)
        unseen = unseen[:_JUDGED] if held_out else seen[:_JUDGED]
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        best, since, kept = -math.inf, 0, copy.deepcopy(self.state_dict())
        for step in range(_STEPS + 1):
            if step % _LOOK_EVERY == 0:
                with torch.no_grad():
                    found = float(self().log_prob(unseen).mean())
                since += 1
                if found > best:
                    best, since, kept = found, 0, copy.deepcopy(self.state_dict())
                elif since == _PATIENCE:
                    break
            some = seen[torch.randint(len(seen), (_BATCH,), device=seen.device)]
            optimizer.zero_grad()
            loss: Any = -self().log_prob(some).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.load_state_dict(kept)


def _spline(*parameters: Tensor) -> Any:
    # Under autocast the flow's networks return bfloat16.
    return MonotonicSpline(*map(full_precision, parameters))
