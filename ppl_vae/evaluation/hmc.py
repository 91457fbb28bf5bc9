"""Hamiltonian Monte Carlo along a path of densities; tensors only, all chains of all rows at once.

A path leads from f_0 to f_1 by log f_beta(u) = base(u) + beta ratio(u). `anneal` walks along it and
returns importance weights; `tune` finds the step sizes beforehand. Points are
`(chains, rows, dimensions)`, densities `(chains, rows)`, in nats; the two may have different dtypes.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TARGET_ACCEPTANCE = 0.65
"""The acceptance that step sizes are tuned to, from Beskos et al., "Optimal tuning of the hybrid Monte-Carlo
algorithm" (arXiv:1001.4460)."""

GAIN = 0.5
"""Change of the log step size when the acceptance is off by one."""

JITTER = 0.2
"""Step sizes vary by this fraction between trajectories, so that no trajectory length equals a period."""


@dataclass(frozen=True)
class Point:
    """A position of each chain, and the path's densities there.

    Attributes:
        u: Positions, `(chains, rows, dimensions)`.
        base: log f_0(u), `(chains, rows)`.
        ratio: log f_1(u) - log f_0(u), `(chains, rows)`.
        base_gradient: Gradient of `base`, shaped like `u`.
        ratio_gradient: Gradient of `ratio`, shaped like `u`.
    """

    u: Tensor
    base: Tensor
    ratio: Tensor
    base_gradient: Tensor
    ratio_gradient: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log f_beta(u), `(chains, rows)`."""
        return self.base + beta * self.ratio

    def gradient(self, beta: float) -> Tensor:
        """Gradient of log f_beta(u), shaped like `u`."""
        return self.base_gradient + beta * self.ratio_gradient

    def where(self, condition: Tensor, other: Point) -> Point:
        """This point where `condition`, `(chains, rows)`, holds, and `other` elsewhere."""
        wide = condition.unsqueeze(-1)
        return Point(
            torch.where(wide, self.u, other.u),
            torch.where(condition, self.base, other.base),
            torch.where(condition, self.ratio, other.ratio),
            torch.where(wide, self.base_gradient, other.base_gradient),
            torch.where(wide, self.ratio_gradient, other.ratio_gradient),
        )


Densities = Callable[[Tensor], Point]
"""Function from positions to the path's densities there."""


def leapfrog(
    densities: Densities,
    point: Point,
    momentum: Tensor,
    beta: float,
    step: Tensor,
    num_leapfrog: int,
) -> tuple[Point, Tensor]:
    """Integrates Hamilton's equations of log f_beta for `num_leapfrog` steps; reversible, preserves volume.

    Args:
        densities: The path.
        point: Starting point.
        momentum: Momentum there, shaped like `point.u`.
        beta: Position on the path.
        step: Step sizes, broadcast to `point.u`; one per dimension acts as a diagonal mass matrix.
        num_leapfrog: Number of steps.

    Returns:
        The end point, and the momentum there.
    """
    momentum = momentum + 0.5 * step * point.gradient(beta)
    for i in range(num_leapfrog):
        point = densities(point.u + step * momentum)
        share = 1.0 if i + 1 < num_leapfrog else 0.5
        momentum = momentum + share * step * point.gradient(beta)
    return point, momentum


def transition(
    densities: Densities, point: Point, beta: float, step: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """One step of Hamiltonian Monte Carlo that leaves f_beta invariant.

    Neal, "MCMC using Hamiltonian dynamics" (arXiv:1206.1901). The step sizes must not depend on current
    or past positions of the chains.

    Args:
        densities: The path.
        point: Current positions of the chains.
        beta: Position on the path.
        step: Step sizes, `(rows, dimensions)`; varied at random by `JITTER`.
        num_leapfrog: Leapfrog steps.

    Returns:
        The new positions, and the probability of acceptance, `(chains, rows)`: 0 where the trajectory
        became non-finite.
    """
    momentum = torch.randn_like(point.u)
    jitter = 1 + JITTER * (2 * torch.rand_like(point.u[..., :1]) - 1)
    new, end = leapfrog(densities, point, momentum, beta, step * jitter, num_leapfrog)
    kinetic = 0.5 * (momentum.square().sum(-1) - end.square().sum(-1))
    log_ratio = new.log_density(beta) - point.log_density(beta) + kinetic
    acceptance = log_ratio.clamp(max=0.0).exp().nan_to_num(nan=0.0)
    accepted = torch.rand_like(acceptance) < acceptance
    return new.where(accepted, point), acceptance


@dataclass(frozen=True)
class StepSizes:
    """Step sizes of each row along a path.

    Attributes:
        betas: Increasing temperatures at which the steps were tuned.
        log_steps: Logarithms of the steps at these, `(len(betas), rows)`.
        scale: Scale of each dimension, which multiplies the row's step, `(rows, dimensions)`.
    """

    betas: Sequence[float]
    log_steps: Tensor
    scale: Tensor

    def at(self, beta: float) -> Tensor:
        """The step sizes at any position on the path, `(rows, dimensions)`."""
        above = min(max(bisect.bisect(self.betas, beta), 1), len(self.betas) - 1)
        low, high = self.betas[above - 1], self.betas[above]
        share = min(max((beta - low) / (high - low), 0.0), 1.0)
        log_step = torch.lerp(self.log_steps[above - 1], self.log_steps[above], share)
        return log_step.exp().unsqueeze(-1) * self.scale


def anneal(
    densities: Densities,
    point: Point,
    betas: Sequence[float],
    steps: StepSizes | None,
    num_leapfrog: int,
    tick: Callable[[], object] = lambda: None,
    watch: Callable[[int, Tensor, Point], object] = lambda *_: None,
) -> tuple[Tensor, Tensor]:
    """Importance weights of annealed importance sampling from f at `betas[0]` to f at `betas[-1]`.

    log w = sum_t (beta_t - beta_{t-1}) ratio(u_{t-1}), where u_0 is a draw from f at `betas[0]` and u_t comes
    from u_{t-1} by a `transition` at beta_t (Neal, "Annealed Importance Sampling",
    arXiv:physics/9803008). E[w] is the ratio of the two normalizers, for any betas and step sizes.
    Decreasing betas anneal in the other direction.

    Args:
        densities: The path.
        point: Exact draws at `betas[0]`.
        betas: T + 1 temperatures: T weights and T - 1 transitions between them.
        steps: Step sizes of the transitions; may be None if T is 1.
        num_leapfrog: Leapfrog steps of a transition.
        tick: Called after each transition.
        watch: Called after each transition with its number t, the log weights so far, `(chains, rows)`, and the
            point u_t. With these weights, the points are properly weighted draws from f at `betas[t]`.

    Returns:
        log w, `(chains, rows)`, and the mean acceptance of each row, `(rows,)`: NaN without transitions.
    """
    wide = torch.float32 if point.u.device.type == "mps" else torch.float64
    log_weights = torch.zeros_like(point.base, dtype=wide)
    accepted = torch.zeros_like(point.base[0])
    last = len(betas) - 1
    for t in range(1, last + 1):
        log_weights = log_weights + (betas[t] - betas[t - 1]) * point.ratio.to(wide)
        if t < last:
            assert steps is not None
            step = steps.at(betas[t])
            point, acceptance = transition(densities, point, betas[t], step, num_leapfrog)
            accepted = accepted + acceptance.mean(0)
            watch(t, log_weights, point)
            tick()
    return log_weights, accepted / (last - 1) if last > 1 else accepted + math.nan


def tune(
    densities: Densities,
    point: Point,
    betas: Sequence[float],
    scale: Tensor,
    num_leapfrog: int,
    tick: Callable[[], object] = lambda: None,
) -> StepSizes:
    """Tunes step sizes for each row along a path, in a separate run that adapts them after each transition.

    log step += GAIN (mean acceptance of the row's chains - TARGET_ACCEPTANCE) after each transition: a
    stochastic approximation that follows the path. The draws of this run must be discarded: step sizes that
    depend on the chains that they move would bias the weights.

    Args:
        densities: The path.
        point: Draws at `betas[0]`.
        betas: Increasing temperatures, at least four, so that two are inner ones.
        scale: Scale of each dimension, which multiplies the row's step, `(rows, dimensions)`.
        num_leapfrog: Leapfrog steps of a transition.
        tick: Called after each transition.
    """
    log_step = torch.full_like(scale[:, 0], -0.25 * math.log(scale.shape[1]))
    found = []
    for beta in betas[1:-1]:
        step = log_step.exp().unsqueeze(-1) * scale
        point, acceptance = transition(densities, point, beta, step, num_leapfrog)
        change = GAIN * (acceptance.mean(0) - TARGET_ACCEPTANCE)
        # Positions keep their dtype, whatever densities have.
        log_step = log_step + change.to(log_step)
        found.append(log_step)
        tick()
    return StepSizes(betas[1:-1], torch.stack(found), scale)


def sigmoidal(num_steps: int, steepness: float = 4.0) -> list[float]:
    """`num_steps + 1` temperatures from 0 to 1, closely spaced at both ends.

    beta_t = (s(d (2 t / T - 1)) - s(-d)) / (s(d) - s(-d)) with the logistic function s and d = 4: Wu et al.,
    "On the Quantitative Analysis of Decoder-Based Generative Models" (arXiv:1611.04273).

    Example:
        >>> [round(beta, 3) for beta in sigmoidal(4)]
        [0.0, 0.105, 0.5, 0.895, 1.0]
    """

    def logistic(a: float) -> float:
        return 1 / (1 + math.exp(-a))

    low, high = logistic(-steepness), logistic(steepness)
    raw = [logistic(steepness * (2 * t / num_steps - 1)) for t in range(num_steps + 1)]
    return [0.0, *((b - low) / (high - low) for b in raw[1:-1]), 1.0]
