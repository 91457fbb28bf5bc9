"""Proposals for rows with many latents: only the directions in which the guide is wrong are fitted in full."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vae.evaluation.adaptation import (
    WIDEST,
    Effort,
    by_height,
    improved,
    modes,
    settled,
    widened,
)
from ppl_vae.evaluation.proposals import DEGREES, StudentMixture
from ppl_vae.evaluation.slopes import triangular
from ppl_vae.evaluation.target import Target

ACTIVE = 96
"""Dimensions of the subspace."""

LEAST_SLOPE = 0.03
"""Directions belong to it if the data change the slopes there by so much, in units of the prior's deviation."""

CLEAR_SLOPE = 0.5
"""The same, while the prior's deviations are not yet well known."""

DIAGONAL_ROUNDS = 4
"""Rounds in which the latents are fitted one by one."""

DRAWS = 192
"""Draws around the mode in each of them, and those that show the subspace."""

SLOWEST = 0.04, 25.0
"""A precision changes by no smaller and no larger factor in a round."""


@dataclass(frozen=True)
class SubspaceMixture:
    r"""A mixture in some directions of each row, and independent normals in all others.

    u = center + scale * (V a + (1 - V V^T) e) with a from the mixture and e from N(0, 1), where the columns of
    V are orthonormal. As the two parts do not overlap,

        log q(u) = log q_a(V^T w) + log N(w - V V^T w; 0, 1) - sum log scale,   w = (u - center) / scale.

    Attributes:
        center: `(n, d)`.
        scale: `(n, d)`.
        directions: V, `(n, d, k)`.
        active: The mixture of a.
    """

    center: Tensor
    scale: Tensor
    directions: Tensor
    active: StudentMixture

    def lift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Draws `(S, n, d)` at positions in the subspace, `(S, n, k)`, and the log densities of the rest."""
        n, d = self.center.shape
        noise = torch.randn(len(a), n, d, dtype=a.dtype, device=a.device)
        rest = noise - self._spread(self._active_part(noise))
        return self.center + self.scale * (self._spread(a) + rest), self._log_rest(rest)

    def sample(self, num_samples: int) -> Tensor:
        """Draws, `(num_samples, n, d)`."""
        return self.lift(self.active.sample(num_samples))[0]

    def frame(self) -> tuple[Tensor, Tensor]:
        """Center and scales, `(n, d)` each."""
        return self.center, self.scale

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at u, `(S, n, d)`: `(S, n)`."""
        w = (u - self.center) / self.scale
        a = self._active_part(w)
        return self.active.log_prob(a) + self._log_rest(w - self._spread(a))

    def _active_part(self, w: Tensor) -> Tensor:
        return torch.einsum("ndk,snd->snk", self.directions, w)

    def _spread(self, a: Tensor) -> Tensor:
        return torch.einsum("ndk,snk->snd", self.directions, a)

    def _log_rest(self, rest: Tensor) -> Tensor:
        """The log density of the other directions, with the determinant of the scales."""
        d, k = self.directions.shape[1:]
        constant = (d - k) / 2 * math.log(2 * math.pi) + self.scale.log().sum(-1)
        return -0.5 * rest.square().sum(-1) - constant


def adapt_in_subspace(target: Target, effort: Effort) -> SubspaceMixture:
    """As `adapt`, for rows with many latents: a full covariance would need as many draws.

    Data usually say something of few directions of many latents, and leave the others as they were under the
    prior. Modes are climbed, and the deviations around the best are fitted one by one, as in mean-field
    inference. The slopes of the likelihood at such draws span the directions that are informed by the data
    (Cui, Martin, Marzouk, Solonen, Spantini, "Likelihood-informed dimension reduction for nonlinear inverse
    problems", arXiv:1403.4680). A mixture is fitted in these; all others are drawn with the prior's deviations.

    Args:
        target: The posterior.
        effort: How much is done.
    """
    at, values = modes(target)
    center = at[0]
    scale = _one_by_one(target, center)
    bulk = target.bulk
    for _ in range(2):  # deviations of a few draws are too rough for hundreds of latents
        directions = _active_directions(target, center, scale, bulk, at, CLEAR_SLOPE)
        bulk = _corrected(target, center, scale, bulk, directions)
    directions = _active_directions(target, center, scale, bulk, at, LEAST_SLOPE)
    center = _centered_elsewhere(target, center, scale, bulk, directions)
    k = directions.shape[-1]
    means = torch.einsum("ndk,snd->nsk", directions, (at - center) / bulk)
    means[:, 0] = 0.0  # the first mode has moved to the center
    # The independent normals, in the subspace.
    spread = directions * (scale / bulk)[..., None]
    start = StudentMixture(
        by_height(values, at, scale),
        means,
        triangular(spread.mT)[:, None].expand(-1, len(at), -1, -1).contiguous(),
        max(DEGREES, k / 2),
    )
    frame = SubspaceMixture(center, bulk, directions, start)

    def log_density(a: Tensor) -> Tensor:
        u, log_rest = frame.lift(a)
        return target.log_density(u) - log_rest

    def gradient(a: Tensor) -> tuple[Tensor, ...]:
        u, log_rest = frame.lift(a)
        value, slopes = target.gradient(u.contiguous())
        return value - log_rest, torch.einsum("ndk,snd->snk", directions, slopes * bulk)

    one = torch.ones_like(means[:, 0])
    inside = Target(log_density, gradient, means.transpose(0, 1), one, one, one, WIDEST * one)
    mixture = settled(inside, start, effort.slopes)
    mixture = improved(inside, mixture, max(effort.draws, 12 * k))
    return replace(frame, active=widened(mixture))


def _one_by_one(target: Target, center: Tensor) -> Tensor:
    """Deviations of independent normals whose slopes are those of the posterior, `(n, d)`."""
    scale = target.scale
    for _ in range(DIAGONAL_ROUNDS):
        noise = _opposite(DRAWS, center)
        rest = _slopes(target, center, scale, noise) + noise
        slope = ((rest - rest.mean(0)) * noise).mean(0) / noise.square().mean(0)
        scale = scale * (1.0 - slope).clamp(*SLOWEST).rsqrt()
    return scale


def _rest(target: Target, center: Tensor, scale: Tensor, bulk: Tensor) -> tuple[Tensor, Tensor]:
    """Draws `(S, n, d)` and slopes that the prior does not explain, both in units of the bulk.

    If the data said nothing, slopes would be minus the draws.
    """
    noise = _opposite(DRAWS, center)
    slopes = _slopes(target, center, scale, noise) / scale * bulk
    draws = noise * scale / bulk
    return draws, slopes + draws


def _active_directions(
    target: Target, center: Tensor, scale: Tensor, bulk: Tensor, at: Tensor, least: float
) -> Tensor:
    """Orthonormal directions in units of the bulk, `(n, d, k)`: those to other modes first."""
    _, rest = _rest(target, center, scale, bulk)
    to_modes = ((at[1:] - center) / bulk).permute(1, 2, 0)  # (n, d, C - 1)
    to_modes = to_modes.nan_to_num(0.0, 0.0, 0.0)
    towards = to_modes / to_modes.norm(dim=1, keepdim=True).clamp(min=1e-12)
    # Of the S x S products of the differences: their d x d covariance would be larger.
    rest = (rest - rest.mean(0)).transpose(0, 1)  # (n, S, d)
    values, vectors = torch.linalg.eigh(rest @ rest.mT)
    clear = int((values / DRAWS > least**2).sum(-1).max())
    k = max(1, min(clear, ACTIVE - towards.shape[-1]))
    largest = rest.mT @ vectors[..., -k:]  # (n, d, k)
    largest = largest / values[:, None, -k:].clamp(min=1e-12).sqrt()
    # What is degenerate becomes some direction or other, which does no harm.
    tiny = 1e-5 * torch.randn_like(largest[..., :1])
    directions: Tensor = torch.linalg.qr(torch.cat([towards, largest], -1) + tiny)[0]
    return directions


def _corrected(
    target: Target, center: Tensor, scale: Tensor, bulk: Tensor, directions: Tensor
) -> Tensor:
    """The deviations of the other directions, as their slopes say."""
    draws, rest = _rest(target, center, scale, bulk)
    draws, rest = _outside(draws, directions), _outside(rest - rest.mean(0), directions)
    slope = (rest * draws).mean(0) / draws.square().mean(0).clamp(min=1e-12)
    return bulk * (1.0 - slope).clamp(0.25, 4.0).rsqrt()


def _centered_elsewhere(
    target: Target, center: Tensor, scale: Tensor, bulk: Tensor, directions: Tensor
) -> Tensor:
    """The center, moved to the top of all other directions, where the precisions are known: the prior's."""
    for _ in range(2):
        _, rest = _rest(target, center, scale, bulk)  # draws are in pairs of opposite sign
        center = center + bulk * _outside(rest.mean(0, keepdim=True), directions)[0]
    return center


def _outside(w: Tensor, directions: Tensor) -> Tensor:
    """The part of w, `(S, n, d)`, that is orthogonal to the directions."""
    inside = torch.einsum("ndk,snd->snk", directions, w)
    return w - torch.einsum("ndk,snk->snd", directions, inside)


def _opposite(draws: int, like: Tensor) -> Tensor:
    """Normal noise in pairs of opposite sign, `(draws, *like.shape)`."""
    half = torch.randn(draws // 2, *like.shape, dtype=like.dtype, device=like.device)
    return torch.cat([half, -half])


def _slopes(target: Target, center: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """The slopes at center + scale * noise, in units of the scale."""
    _, slopes = target.gradient((center + scale * noise).contiguous())
    return (slopes * scale).nan_to_num(0.0, 0.0, 0.0)
