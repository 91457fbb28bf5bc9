"""Fits a proposal to the posterior of each row: its modes, the curvature there, and weighted draws.

All rows at once, on tensors alone: `(starts, n, d)` and `(draws, n, d)` in unconstrained coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vae.evaluation.proposals import DEGREES, StudentMixture
from ppl_vae.evaluation.slopes import matched, triangular, walked
from ppl_vae.evaluation.target import Target

STEPS = 60
"""Steps towards a mode."""

STEP_SIZES = (0.3, 0.02)
"""The first step size of a coordinate, in units of its reach, and the last, in units of its scale."""

DIFFERENCE = 0.05
"""Half the distance of the two gradients of which a second derivative is made, in units of the scale."""

CURVATURES = (1e-3, 1e4)
"""Smallest and largest curvature that is believed, in units of the scale."""

FEWEST_TO_SHARE = 8
"""Rows from which modes of some are tried for others."""

SHARED = 24
"""Modes of other rows that are looked at; of these, the best ones of a row are climbed from."""

TRIED = 2
"""How many of them."""

MOST_MODES = 4
"""Most components of a mixture."""

LEAST_MASS = -15.0
"""Modes with a smaller share than exp of this, as far as height and curvature say, are left out."""

DIP = 0.2
"""Modes are different ones if the log density between them is lower by so many nats, at least."""

APART = 3.0
"""Modes are different ones from this distance on, in standard deviations."""

INFLATION = 1.1
"""Factor of the fitted covariances: too wide a proposal costs less than too narrow a one."""

MOST_WIDENING = 0.15
"""By how much all scales are widened at the end; less if there are many dimensions."""

FULL = 256
"""Up to so many dimensions, a full covariance is fitted; see `ppl_vae.evaluation.subspace` for more."""

CURVED = 64
"""Up to so many dimensions, it begins with the curvature at a mode, which takes two gradients for each."""

FEW_DIMENSIONS = 16
"""Up to so many, each mode gets its own curvature, and draws alone can show a covariance."""


WIDEST = 1.5
"""Largest deviation of a component in any direction, in units of the prior's: posteriors are rarely wider."""

MOSTLY_FREE = 0.02
"""Share of rows that may still be held back by that."""


@dataclass(frozen=True)
class Effort:
    """How much is done for each row.

    Attributes:
        guide_starts: Draws of the guide to look for modes from, besides its mean.
        prior_starts: Draws of the prior to look for modes from; more if there are few rows.
        draws: Draws by which the mixture is improved in a round; with many dimensions, there are more.
        rounds: How often it is improved.
        slopes: Rounds of fitting the slopes before.
        walks: Rounds of fitting the slopes at draws of the posterior, from 17 to 256 dimensions; half as many
            rounds of fitting the slopes before suffice then.
    """

    guide_starts: int
    prior_starts: int
    draws: int
    rounds: int
    slopes: int
    walks: int = 0


def adapt(target: Target, effort: Effort) -> StudentMixture:
    """A mixture that covers the posterior of each row.

    From each start a mode is climbed. Each becomes a component with the covariance of the curvature there and
    the weight of its Laplace approximation. Then each component is matched to the slopes of the posterior (see
    `matched`), which say d numbers a draw. Then draws are weighed, and weights, means and covariances of the
    components are made anew of them, a few times (population Monte Carlo; Cappe, Douc, Guillin, Marin, Robert,
    "Adaptive importance sampling in general mixture classes", arXiv:0710.4242). In many dimensions, where few
    of such draws count, others walk to the posterior before, if the effort asks for it (see `walked`). Draws
    from the result must be fresh ones.

    Args:
        target: The posterior.
        effort: How much is done.
    """
    d = target.scale.shape[-1]
    mixture = (laplace if d <= CURVED else around)(target, *modes(target))
    walks = effort.walks if d > FEW_DIMENSIONS else 0
    # Without the curvature it begins far off.
    slopes = effort.slopes if d <= CURVED else 2 * effort.slopes
    mixture = settled(target, mixture, slopes // 2 if walks else slopes)
    if walks:
        mixture = walked(target, mixture, walks)
    for _ in range(effort.rounds if d <= FEW_DIMENSIONS else 1):
        mixture = improved(target, mixture, max(effort.draws, 12 * d))
    return widened(mixture)


def widened(mixture: StudentMixture) -> StudentMixture:
    """With somewhat larger scales: too wide a proposal costs less than too narrow a one.

    A factor of 1 + e costs about exp(-2 e^2) of the ESS for each dimension.
    """
    factor = 1.0 + min(MOST_WIDENING, (0.25 / mixture.mean.shape[-1]) ** 0.5)
    return replace(mixture, scale=factor * mixture.scale)


def modes(target: Target) -> tuple[Tensor, Tensor]:
    """The highest modes that are found for each row, `(C, n, d)`, and the log densities there, `(C, n)`.

    Modes that were found for other rows are starts, too: where a model has several, because its prior is a
    mixture, say, the posteriors of many rows have them at about the same places.
    """
    at, value = climb(target, target.starts)
    n = at.shape[1]
    rows = torch.arange(n, device=at.device)
    # How far apart modes are is measured by the curvature at the highest one, if that has few numbers.
    if at.shape[-1] <= CURVED:
        metric = curvature(target, at[value.argmax(0), rows][None])[0]
    else:
        metric = target.scale**-2
    if n >= FEWEST_TO_SHARE:
        shared = _far_apart(at.flatten(0, 1), target.scale.mean(0), SHARED)
        there = target.log_density(shared[:, None].expand(-1, n, -1).contiguous()).to(value.dtype)
        there = there.nan_to_num(-math.inf, -math.inf, -math.inf)
        for mode in at:
            there = there.masked_fill(_distance(shared[:, None], mode, metric) < APART, -math.inf)
        best = there.topk(min(TRIED, len(shared)), 0).indices
        more, more_value = climb(target, shared[best].contiguous())
        at, value = torch.cat([at, more]), torch.cat([value, more_value])
    found, found_value = [], []
    left = value.clone()
    for _ in range(min(MOST_MODES, len(at))):
        best_one = left.argmax(0)
        found.append(at[best_one, rows])
        found_value.append(left[best_one, rows])
        same = _distance(at, found[-1], metric) < APART
        if at.shape[-1] > CURVED:  # where that is not known
            same |= ~_dips(target, at, value, found[-1], found_value[-1])
        left = left.masked_fill(same, -math.inf)
    return torch.stack(found), torch.stack(found_value)


def _dips(target: Target, at: Tensor, value: Tensor, mode: Tensor, height: Tensor) -> Tensor:
    """Whether the log density halfway from points `(S, n, d)` to a mode `(n, d)` is below both ends, `(S, n)`.

    Where it is not, the point lies on the slopes of the mode.
    """
    halfway = target.log_density((0.5 * (at + mode)).contiguous()).to(value)
    return ~(halfway >= torch.minimum(value, height) - DIP)


def _distance(a: Tensor, b: Tensor, precision: Tensor) -> Tensor:
    """The distance of points `(S, n, d)` from one of each row, `(n, d)`, in standard deviations: `(S, n)`.

    The precision is a matrix for each row, `(n, d, d)`, or its diagonal, `(n, d)`.
    """
    off = a - b
    if precision.dim() == 2:
        return (off.square() * precision).sum(-1).sqrt()
    return torch.einsum("sni,nij,snj->sn", off, precision, off).clamp(min=0.0).sqrt()


def _far_apart(points: Tensor, scale: Tensor, count: int) -> Tensor:
    """Points `(m, d)` of which each was the farthest from those before, at most so many."""
    points = points[points.isfinite().all(-1)] / scale
    chosen = [points[0]]
    distance = (points - chosen[0]).square().mean(-1)
    while len(chosen) < min(count, len(points)):
        chosen.append(points[distance.argmax()])
        distance = torch.minimum(distance, (points - chosen[-1]).square().mean(-1))
    return torch.stack(chosen) * scale


def curvature(target: Target, at: Tensor) -> Tensor:
    """The negative Hessians of the log densities at `(C, n, d)`, made positive: `(C, n, d, d)`."""
    c, n, d = at.shape
    found = torch.empty(c, n, d, d, dtype=at.dtype, device=at.device)
    for i in range(d):
        step = torch.zeros_like(target.scale)
        step[:, i] = DIFFERENCE * target.scale[:, i]
        _, ahead = target.gradient((at + step).contiguous())
        _, behind = target.gradient((at - step).contiguous())
        found[..., i] = (behind - ahead) * target.scale / (2 * DIFFERENCE)
    found = (0.5 * (found + found.mT)).nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(found)
    scaled = vectors / target.scale[:, :, None]
    result: Tensor = (scaled * values.clamp(*CURVATURES)[..., None, :]) @ scaled.mT
    return result


def climb(target: Target, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Where Adam ends from each start, `(S, n, d)`, and the log densities there, `(S, n)`; the best seen."""
    u = starts.clone()
    first = torch.zeros_like(u)
    second = torch.zeros_like(u)
    best, best_value = u.clone(), torch.full(u.shape[:2], -math.inf, dtype=u.dtype, device=u.device)
    for step in range(STEPS + 1):
        value, gradient = target.gradient(u)
        value = value.to(u.dtype).nan_to_num(-math.inf, neginf=-math.inf)
        better = value > best_value
        best = torch.where(better[..., None], u, best)
        best_value = torch.where(better, value, best_value)
        gradient = (gradient * target.scale).nan_to_num(0.0, 0.0, 0.0)
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient.square()
        share = step / STEPS
        size = (STEP_SIZES[0] * target.reach) ** (1 - share) * (
            STEP_SIZES[1] * target.scale
        ) ** share
        corrected = first / (1 - 0.8 ** (step + 1))
        root = (second / (1 - 0.95 ** (step + 1))).sqrt()
        u = u + size * corrected / (root + 1e-12)
    return best, best_value


def by_height(values: Tensor, modes: Tensor, scale: Tensor) -> Tensor:
    """Log weights of modes `(C, n, d)` by heights `(C, n)`: `(n, C)`; of those that coincide, one is used."""
    log_mass = values.nan_to_num(-math.inf, -math.inf, -math.inf)
    for i in range(1, len(modes)):
        for j in range(i):
            same = _distance(modes[i][None], modes[j], scale**-2)[0] < APART
            log_mass = torch.stack(
                [torch.where(same, -math.inf, v) if c == i else v for c, v in enumerate(log_mass)]
            )
    return _floored(log_mass.log_softmax(0).T, LEAST_MASS)


def around(target: Target, modes: Tensor, values: Tensor) -> StudentMixture:
    """Independent normals around the modes, as a mixture."""
    scale = torch.diag_embed(target.scale)[:, None].expand(-1, len(modes), -1, -1).contiguous()
    df = max(DEGREES, modes.shape[-1] / 2)
    return StudentMixture(
        by_height(values, modes, target.scale), modes.transpose(0, 1).contiguous(), scale, df
    )


def laplace(target: Target, modes: Tensor, values: Tensor) -> StudentMixture:
    """Normal approximations at the modes as a mixture; of modes that coincide, the best is kept."""
    d = modes.shape[-1]
    if d <= FEW_DIMENSIONS:
        precision = curvature(target, modes)
    else:
        precision = curvature(target, modes[:1]).expand(len(modes), -1, -1, -1)
    # With P = L L^T, the covariance is L^-T L^-1, and its Cholesky factor comes from a QR decomposition.
    lower = torch.linalg.cholesky_ex(precision)[0]
    identity = torch.eye(d, dtype=lower.dtype, device=lower.device).expand_as(lower)
    scale = triangular(torch.linalg.solve_triangular(lower.mT, identity, upper=True))
    log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_mass = values + log_det + d / 2 * math.log(2 * math.pi)
    log_mass = log_mass.nan_to_num(-math.inf, -math.inf, -math.inf)
    log_mass = torch.where(_repeated(modes, values, scale), -math.inf, log_mass)
    return StudentMixture(
        _floored(log_mass.log_softmax(0).T, LEAST_MASS),
        modes.transpose(0, 1),
        scale.transpose(0, 1),
        max(DEGREES, d / 2),
    )


def settled(target: Target, mixture: StudentMixture, rounds: int) -> StudentMixture:
    """The mixture after so many rounds of `matched`, counted from where nearly all rows move freely.

    A component that has moved onto another one is left out if its own mode is covered all the same, and goes
    back to its mode, to stay there, if it is not.

    Args:
        target: The posterior.
        mixture: Where to begin: components at modes.
        rounds: How many; as many are added at most, for proposals that begin far off.
    """
    left, added, first = rounds, 0, mixture
    stays = torch.zeros_like(mixture.log_weight, dtype=torch.bool)
    while left:
        moved, held_back = matched(target, mixture)
        moved = apart(_put_back(moved, first, stays))
        dropped = (mixture.log_weight > -math.inf) & (moved.log_weight == -math.inf)
        stays |= dropped & ~_covers(moved, first.mean)
        mixture = _put_back(moved, first, stays)
        left -= 1
        if added < rounds and float(held_back.double().mean()) > MOSTLY_FREE:
            left, added = left + 1, added + 1
    return mixture


def apart(mixture: StudentMixture) -> StudentMixture:
    """The mixture without components that others cover by now; of two that coincide, the likelier stays."""
    means, scale = mixture.mean.transpose(0, 1), mixture.scale.transpose(0, 1)
    again = _repeated(means, mixture.log_weight.T, scale).T
    log_weight = torch.where(again, -math.inf, mixture.log_weight)
    return replace(mixture, log_weight=_floored(log_weight.log_softmax(-1)))


def _put_back(mixture: StudentMixture, first: StudentMixture, which: Tensor) -> StudentMixture:
    """The mixture with some components as they were first, `which` being `(n, C)`."""
    if not bool(which.any()):
        return mixture
    log_weight = torch.where(which, first.log_weight, mixture.log_weight)
    return replace(
        mixture,
        log_weight=_floored(log_weight.log_softmax(-1)),
        mean=torch.where(which[..., None], first.mean, mixture.mean),
        scale=torch.where(which[..., None, None], first.scale, mixture.scale),
    )


def _covers(mixture: StudentMixture, points: Tensor) -> Tensor:
    """Whether one of the components is near to points `(n, C, d)`: `(n, C)`."""
    near = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for c in range(mixture.mean.shape[1]):
        off = (points - mixture.mean[:, c : c + 1]).mT
        away = torch.linalg.solve_triangular(mixture.scale[:, c], off, upper=False).norm(dim=1)
        near |= (away < APART) & (mixture.log_weight[:, c : c + 1] > -math.inf)
    return near


def improved(target: Target, mixture: StudentMixture, draws: int) -> StudentMixture:
    """The mixture with weights, means and covariances of draws from it that are weighed by the target."""
    d = mixture.mean.shape[-1]
    u = mixture.sample(draws)
    parts = mixture.of_components(u)
    log_q = parts.logsumexp(-1)
    log_w = target.log_density(u).to(u.dtype) - log_q
    log_w = log_w.nan_to_num(-math.inf, -math.inf, -math.inf)
    # Truncated at sqrt(S) times their mean, so that one draw does not decide (Ionides, 2008).
    mean = log_w.logsumexp(0) - math.log(draws)
    w = torch.minimum(log_w, mean + 0.5 * math.log(draws)).softmax(0).nan_to_num(0.0)
    share = (parts - log_q[..., None]).exp() * w[..., None]  # (S, n, C)
    weight = share.sum(0)
    ess = weight.square() / share.square().sum(0).clamp(min=1e-30)
    trust = (ess / (ess + 2 * d)).nan_to_num(0.0)
    trust_covariance = (ess / (ess + d * (d + 3) / 2)).nan_to_num(0.0)  # it has more numbers
    safe = weight.clamp(min=1e-30)
    moved = torch.einsum("snc,snd->ncd", share, u) / safe[..., None]
    center = torch.lerp(mixture.mean, moved, trust[..., None])
    old = mixture.scale @ mixture.scale.mT
    new = torch.empty_like(old)
    for c in range(mixture.mean.shape[1]):  # one after the other, for the memory
        off = (u - center[:, c]) * (share[..., c] / safe[:, c]).sqrt()[..., None]
        new[:, c] = INFLATION * torch.einsum("sni,snj->nij", off, off)
    covariance = torch.lerp(old, new, trust_covariance[..., None, None])
    scale, failed = torch.linalg.cholesky_ex(covariance)
    bad = (failed != 0) | ~scale.isfinite().all(-1).all(-1)
    scale = torch.where(bad[..., None, None], mixture.scale, scale)
    center = torch.where(bad[..., None], mixture.mean, center)
    log_weight = torch.lerp(
        mixture.log_weight.exp(), weight / weight.sum(-1, True).clamp(min=1e-30), 0.8
    )
    log_weight = torch.where(mixture.log_weight == -math.inf, 0.0, log_weight).log()
    return StudentMixture(_floored(log_weight), center, scale, mixture.df)


def _repeated(modes: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Which of the modes, `(C, n)`, are another one that is higher, or the same and earlier."""
    c = len(modes)
    result = torch.zeros(values.shape, dtype=torch.bool, device=modes.device)
    for i in range(c):
        for j in range(c):
            if i == j:
                continue
            off = (modes[i] - modes[j])[..., None]
            distance = (
                torch.linalg.solve_triangular(scale[j], off, upper=False).square().sum((-2, -1))
            )
            same = distance.sqrt() < APART
            higher = (values[j] > values[i]) | ((values[j] == values[i]) & (j < i))
            result[i] |= same & higher
    return result


def _floored(log_weight: Tensor, least: float = -math.inf) -> Tensor:
    """Weights of at least 2 % for the components in use, which sum to one; below `least`, none is used."""
    used = log_weight > least
    floored = torch.where(used, log_weight.clamp(min=math.log(0.02)), -math.inf)
    return floored - floored.logsumexp(-1, keepdim=True)
