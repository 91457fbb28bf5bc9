"""Proposals for rows with many latents: only the directions in which the guide is wrong are fitted in full."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vae.evaluation.adaptation import (
    Effort,
    Target,
    by_height,
    improved,
    modes,
    settled,
    triangular,
    widened,
)
from ppl_vae.evaluation.proposals import DEGREES, StudentMixture

ACTIVE = 96
"""Dimensions of the subspace."""

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
    prior. Modes are climbed, and the latents are fitted one by one, as in mean-field inference. The slopes of
    the likelihood at such draws span the directions that are informed by the data (Cui, Martin, Marzouk, Solonen,
    Spantini, "Likelihood-informed dimension reduction for nonlinear inverse problems", arXiv:1403.4680). A
    mixture is fitted in these; all others are drawn with the prior's deviations.

    Args:
        target: The posterior.
        effort: How much is done.
    """
    at, values = modes(target)
    center, scale = _one_by_one(target, at[0])
    directions = _active_directions(target, center, scale, at)
    k = directions.shape[-1]
    means = torch.einsum("ndk,snd->nsk", directions, (at - center) / target.bulk)
    means[:, 0] = 0.0  # the first mode has moved to the center
    # The independent normals, in the subspace.
    spread = directions * (scale / target.bulk)[..., None]
    start = StudentMixture(
        by_height(values, at, scale),
        means,
        triangular(spread.mT)[:, None].expand(-1, len(at), -1, -1).contiguous(),
        max(DEGREES, k / 2),
    )
    frame = SubspaceMixture(center, target.bulk, directions, start)

    def log_density(a: Tensor) -> Tensor:
        u, log_rest = frame.lift(a)
        return target.log_density(u) - log_rest

    def gradient(a: Tensor) -> tuple[Tensor, ...]:
        u, log_rest = frame.lift(a)
        value, slopes = target.gradient(u.contiguous())
        return value - log_rest, torch.einsum("ndk,snd->snk", directions, slopes * target.bulk)

    one = torch.ones_like(means[:, 0])
    inside = Target(log_density, gradient, means.transpose(0, 1), one, one, one)
    mixture = settled(inside, start, effort.slopes)
    mixture = improved(inside, mixture, max(effort.draws, 12 * k))
    return replace(frame, active=widened(mixture))


def _one_by_one(target: Target, center: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of independent normals whose slopes are those of the posterior, `(n, d)`."""
    scale = target.scale
    for _ in range(DIAGONAL_ROUNDS):
        noise = _opposite(DRAWS, center)
        slopes = _slopes(target, center, scale, noise)
        mean_slope = slopes.mean(0)
        precision = 1.0 - ((slopes - mean_slope + noise) * noise).mean(0) / noise.square().mean(0)
        precision = precision.clamp(*SLOWEST)
        step = (mean_slope / precision).clamp(-2.0, 2.0)
        center, scale = center + scale * step, scale * precision.rsqrt()
    return center, scale


def _active_directions(target: Target, center: Tensor, scale: Tensor, at: Tensor) -> Tensor:
    """Orthonormal directions in units of the scale, `(n, d, k)`: those to other modes first."""
    d = center.shape[-1]
    noise = _opposite(DRAWS, center)
    slopes = _slopes(target, center, scale, noise)
    # In units of the bulk, where slopes would be minus the draws if the data said nothing.
    rest = (slopes / scale + noise * scale / target.bulk**2) * target.bulk
    to_modes = ((at[1:] - center) / target.bulk).permute(1, 2, 0)  # (n, d, C - 1)
    to_modes = to_modes.nan_to_num(0.0, 0.0, 0.0)
    towards = to_modes / to_modes.norm(dim=1, keepdim=True).clamp(min=1e-12)
    k = min(ACTIVE, d) - towards.shape[-1]
    # Of the S x S products of the differences: their d x d covariance would be larger.
    rest = (rest - rest.mean(0)).transpose(0, 1)  # (n, S, d)
    values, vectors = torch.linalg.eigh(rest @ rest.mT)
    k = min(k, DRAWS // 2)
    largest = rest.mT @ vectors[..., -k:]  # (n, d, k)
    largest = largest / values[:, None, -k:].clamp(min=1e-12).sqrt()
    # What is degenerate becomes some direction or other, which does no harm.
    tiny = 1e-4 * torch.randn_like(largest[..., :1])
    directions: Tensor = torch.linalg.qr(torch.cat([towards, largest], -1) + tiny)[0]
    return directions


def _opposite(draws: int, like: Tensor) -> Tensor:
    """Normal noise in pairs of opposite sign, `(draws, *like.shape)`."""
    half = torch.randn(draws // 2, *like.shape, dtype=like.dtype, device=like.device)
    return torch.cat([half, -half])


def _slopes(target: Target, center: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """The slopes at center + scale * noise, in units of the scale."""
    _, slopes = target.gradient((center + scale * noise).contiguous())
    return (slopes * scale).nan_to_num(0.0, 0.0, 0.0)
