"""Components that are matched to the slopes of the posterior: at draws of theirs, or at draws of it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ppl_vae.evaluation.hmc import GAIN, TARGET_ACCEPTANCE, Point, transition
from ppl_vae.evaluation.proposals import StudentMixture
from ppl_vae.evaluation.target import Target

SLOPES = (16, 1.5)
"""Draws of a component at which slopes are looked at: the number, and how many for each dimension."""

WALKERS = (160, 2)
"""Draws that walk to the posterior: the number, and the least number for each dimension."""

WALK = (4, 4)
"""Transitions of a round, and leapfrog steps of each."""

WALKERS_TO_MATCH = 2
"""A component is matched to the slopes at its walkers if there are so many for each dimension."""

SLOWEST = (0.05, 20.0)
"""A precision changes by no smaller and no larger factor in a round."""


def matched(target: Target, mixture: StudentMixture) -> tuple[StudentMixture, Tensor]:
    r"""The mixture with components whose slopes are those of the posterior, in least squares.

    The slope of the log density of N(m, P^-1) at z is -P (z - m). So the slopes g of the posterior at draws of
    a component are regressed on the draws. With normal draws the fit that does not change any more is that of
    variational inference with a full covariance, where E g = 0 and P = -E grad g (Bonnet's and Price's
    theorems; Opper and Archambeau, "The variational Gaussian approximation revisited", 2009); it takes a few
    rounds of three draws a dimension, as each draw says d numbers (Cai, Modi, Pillaud-Vivien, Margossian,
    Gower, Blei, Saul, "Batch and match: black-box variational inference with a score-based divergence",
    arXiv:2402.14758, match slopes, too).

    Args:
        target: The posterior.
        mixture: Where to begin.

    Returns:
        The mixture, and the rows of which a component would have changed more than it may in a round, `(n,)`.
    """
    n, components, d = mixture.mean.shape
    used = mixture.log_weight > -math.inf
    count = used.sum(-1)
    most = int(count.max())
    draws = int((SLOPES[0] + SLOPES[1] * d) * min(most, 2))
    draws += draws % 2
    # The draws of a row go to its components in turn, in pairs of opposite noise.
    order = used.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    turn = torch.arange(draws // 2, device=used.device).repeat_interleave(2)[:, None] % count
    picked = order.T.gather(0, turn)  # (S, n)
    half = torch.randn(draws // 2, n, d, dtype=mixture.mean.dtype, device=used.device)
    noise = torch.stack([half, -half], 1).flatten(0, 1)
    u = torch.empty_like(noise)
    for c in range(components):
        moved = mixture.mean[:, c] + torch.einsum("nij,snj->sni", mixture.scale[:, c], noise)
        u = moved if c == 0 else torch.where((picked == c)[..., None], moved, u)
    _, slopes = target.gradient(u)
    mean, scale = mixture.mean.clone(), mixture.scale.clone()
    held_back = torch.zeros(n, dtype=torch.bool, device=used.device)
    for c in range(components):
        if not bool(used[:, c].any()):
            continue
        share = (picked == c) & slopes.isfinite().all(-1)
        mean[:, c], scale[:, c], held = _matched_component(
            mixture.mean[:, c], mixture.scale[:, c], noise, slopes.nan_to_num(0.0, 0.0, 0.0), share
        )
        scale[:, c] = not_too_wide(scale[:, c], target.widest)
        held_back |= held & used[:, c]
    return replace(mixture, mean=mean, scale=scale), held_back


def walked(target: Target, mixture: StudentMixture, rounds: int) -> StudentMixture:
    r"""The mixture whose components are matched to the slopes at draws of the posterior.

    `matched` looks at slopes where a component is. If the posterior p is no normal, the fit has the precision
    -E_q grad grad log p, which may be far from the inverse covariance of p, and in tens of dimensions hardly
    any of its draws count: 14 of 1,000 for images that a network with ReLU makes of 40 latents, and 220 after
    three rounds of this. For draws of p itself, the regression of slopes on draws gives

        E_p[grad log p(z) (z - m)^T] = -I   (Stein's identity),   so P = Cov_p^-1,

    the precision of the normal with the smallest KL(p || q), from far fewer draws than their covariance needs,
    as each slope says d numbers. Draws get near to p by Hamiltonian Monte Carlo, in coordinates in which the
    largest component is round, and go on in the next round. Of the mixtures of all rounds, and the first, each
    row takes the one with the largest mean log q(z) at draws that have walked on.

    Args:
        target: The posterior.
        mixture: Where to begin.
        rounds: How often the draws move on, and the mixture after them.
    """
    d = mixture.mean.shape[-1]
    walkers = _Walkers(target, mixture.sample(max(WALKERS[0], WALKERS[1] * d)))
    found = [mixture]
    for _ in range(rounds):
        u, slopes = walkers.move(mixture)
        mixture = _matched_at(target, mixture, u, slopes)
        found.append(mixture)
    u, slopes = walkers.move(mixture)
    fine = slopes.isfinite().all(-1)
    fits = [torch.where(fine, each.log_prob(u), 0.0).nan_to_num(-1e9).mean(0) for each in found]
    best = torch.stack(fits).argmax(0)
    mean, scale = found[0].mean, found[0].scale
    for i, each in enumerate(found[1:], 1):  # one after the other, for the memory
        mean = torch.where((best == i)[:, None, None], each.mean, mean)
        scale = torch.where((best == i)[:, None, None, None], each.scale, scale)
    return replace(mixture, mean=mean, scale=scale)


class _Walkers:
    """Draws that walk to the posterior by Hamiltonian Monte Carlo.

    Their steps depend on their positions, which is no harm: they shape a proposal, and are not weighed.

    Args:
        target: The posterior.
        u: Where they begin, `(S, n, d)`.
    """

    def __init__(self, target: Target, u: Tensor) -> None:
        self.target, self.u = target, u
        self.log_step = torch.full_like(u[0, :, :1], -0.25 * math.log(u.shape[-1]))  # (n, 1)

    def move(self, mixture: StudentMixture) -> tuple[Tensor, Tensor]:
        """Where they have been after each transition but the first, and the slopes there.

        The slopes of draws without a density are NaN.
        """
        center, scale = mixture.frame()

        def there(v: Tensor) -> Point:
            at = (center + torch.einsum("nij,snj->sni", scale, v)).contiguous()
            value, slopes = self.target.gradient(at)
            slopes = torch.einsum("nji,snj->sni", scale, slopes)
            return Point(v, torch.zeros_like(value), value, torch.zeros_like(v), slopes)

        transitions, leapfrog = WALK
        point = there(whitened(self.u, center, scale).contiguous())
        places, slopes = [], []
        for i in range(transitions):
            step = self.log_step.exp().expand_as(center)
            point, acceptance = transition(there, point, 1.0, step, leapfrog)
            alive = point.ratio.isfinite()
            accepted = (acceptance * alive).sum(0) / alive.sum(0).clamp(min=1)
            change = GAIN * (accepted - TARGET_ACCEPTANCE)
            self.log_step = self.log_step + change.to(self.log_step)[:, None]
            if i:
                u = center + torch.einsum("nij,snj->sni", scale, point.u)
                slope = torch.linalg.solve_triangular(
                    scale.mT, point.ratio_gradient.permute(1, 2, 0), upper=True
                ).permute(2, 0, 1)
                places.append(u)
                slopes.append(torch.where(alive[..., None], slope, math.nan))
        self.u = places[-1]
        return torch.cat(places), torch.cat(slopes)


def _matched_at(
    target: Target, mixture: StudentMixture, u: Tensor, slopes: Tensor
) -> StudentMixture:
    """The mixture with each component matched to the slopes at those of the draws that are its own."""
    components, d = mixture.mean.shape[1:]
    nearest = mixture.of_components(u).argmax(-1)
    fine = slopes.isfinite().all(-1) & u.isfinite().all(-1)
    slopes = slopes.nan_to_num(0.0, 0.0, 0.0)
    means, scales = mixture.mean.clone(), mixture.scale.clone()
    for c in range(components):
        share = (nearest == c) & fine
        enough = share.sum(0) >= WALKERS_TO_MATCH * d
        if not bool(enough.any()):
            continue
        mean, scale = mixture.mean[:, c], mixture.scale[:, c]
        off = whitened(u, mean, scale).nan_to_num(0.0, 0.0, 0.0)
        found = _matched_component(mean, scale, off, slopes, share)
        means[:, c] = torch.where(enough[:, None], found[0], mean)
        new = not_too_wide(found[1], target.widest)
        scales[:, c] = torch.where(enough[:, None, None], new, scale)
    return replace(mixture, mean=means, scale=scales)


def _matched_component(
    mean: Tensor, scale: Tensor, noise: Tensor, slopes: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and scale of one component of each row, and whether they may not change as much as they would.

    `noise` are draws in units of the component; a share of them are its own.
    """
    d = mean.shape[-1]
    weight = share.to(noise.dtype) / share.sum(0).clamp(min=1)  # (S, n)
    slopes = torch.einsum("nji,snj->sni", scale, slopes)  # in units of the component
    center = torch.einsum("sn,snd->nd", weight, noise)
    off = (noise - center) * weight.sqrt()[..., None]
    mean_slope = torch.einsum("sn,snd->nd", weight, slopes)
    # What the component does not say yet: its own slopes are minus the noise.
    rest = (slopes - mean_slope) * weight.sqrt()[..., None] + off
    gram = torch.einsum("sni,snj->nij", off, off)
    identity = torch.eye(d, dtype=gram.dtype, device=gram.device)
    few = (d / share.sum(0).clamp(min=1)).clamp(max=1.0)[:, None, None]
    inverse = torch.linalg.inv(gram + 0.1 * few**4 * identity)
    change = torch.einsum("sni,snj->nij", rest, off) @ inverse
    change = inverse @ gram @ change  # with few draws: nothing in directions that none of them has
    values, vectors = torch.linalg.eigh(identity - 0.5 * (change + change.mT))
    clamped = values.clamp(*SLOWEST)
    held = (clamped != values).any(-1)
    values = clamped
    inverse = (vectors / values[..., None, :]) @ vectors.mT
    step = center + torch.einsum("nij,nj->ni", inverse, mean_slope)
    length = step.norm(dim=-1, keepdim=True)
    held |= length[:, 0] > math.sqrt(d)
    step = step * (math.sqrt(d) / length.clamp(min=math.sqrt(d)))
    new_scale = triangular(scale @ (vectors * values.rsqrt()[..., None, :]))
    new_mean = mean + torch.einsum("nij,nj->ni", scale, step)
    good = new_scale.isfinite().all(-1).all(-1) & new_mean.isfinite().all(-1)
    good &= share.sum(0) > 0
    return (
        torch.where(good[:, None], new_mean, mean),
        torch.where(good[:, None, None], new_scale, scale),
        held,
    )


def not_too_wide(scale: Tensor, widest: Tensor) -> Tensor:
    """Cholesky factors `(n, d, d)` of the same covariances, but none wider than one in units `(n, d)`."""
    root = scale / widest[..., None]
    covariance = root @ root.mT
    # No eigenvalue is above the largest sum of a row.
    wide = covariance.abs().sum(-1).amax(-1) > 1.0
    if not bool(wide.any()):
        return scale
    values, vectors = torch.linalg.eigh(covariance[wide])
    narrower = widest[wide][..., None] * vectors * values.clamp(1e-12, 1.0).sqrt()[..., None, :]
    too_wide = values[:, -1] > 1.0
    result = scale.clone()
    result[wide] = torch.where(too_wide[:, None, None], triangular(narrower), scale[wide])
    return result


def whitened(u: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    """Draws `(S, n, d)` in coordinates in which N(center, scale scale^T) is round."""
    off = (u - center).permute(1, 2, 0)
    whitened: Tensor = torch.linalg.solve_triangular(scale, off, upper=False).permute(2, 0, 1)
    return whitened


def triangular(root: Tensor) -> Tensor:
    """The lower Cholesky factor of R R^T, with a positive diagonal, from any square R."""
    _, upper = torch.linalg.qr(root.mT)
    lower: Tensor = upper.mT
    signs = lower.diagonal(dim1=-2, dim2=-1).sign()
    positive: Tensor = lower * torch.where(signs == 0, 1.0, signs)[..., None, :]
    return positive
