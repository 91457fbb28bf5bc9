"""log p(x) of rows by proposals of their own, where the guide is no good one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ppl_vae.evaluation.adaptation import FULL, WIDEST, Effort, adapt
from ppl_vae.evaluation.chains import FEWEST_CHAINS, AnnealingSchedule
from ppl_vae.evaluation.hmc import Point, anneal, tune
from ppl_vae.evaluation.path import Path, PriorGuide
from ppl_vae.evaluation.proposals import StudentMixture
from ppl_vae.evaluation.subspace import SubspaceMixture, adapt_in_subspace
from ppl_vae.evaluation.target import Target, in_parts
from ppl_vae.pairs import Batch, Layout, Pair, PairError, find_layout
from ppl_vae.stats import StreamingWeights

_logger = logging.getLogger(__name__)

GUIDE_DRAWS = 64
"""Draws of the guide that show its center and its spread."""

FEW_STARTS = 4
"""Starts of a row, of which gradients are computed together."""

LEAST_STARTS = 32
"""Draws of the prior to look for modes from, of all rows together."""

DEFENSE = 0.1
"""Share of the samples that are drawn from the guide, so that weights stay bounded where it was right."""

NARROWEST = 0.05
"""Smallest scale of a coordinate, in units of its standard deviation under the prior."""

EFFORTS = (
    Effort(guide_starts=1, prior_starts=2, draws=500, rounds=5, slopes=4),
    Effort(guide_starts=3, prior_starts=4, draws=1000, rounds=12, slopes=8, walks=3),
)
"""What is done for all rows that the guide does not reach, and for those that are left then."""


def numbers_of_row(coordinates: int) -> int:
    """About how many numbers are kept at once for a row of so many coordinates.

    The peak of the memory was measured with 64 to 1,000: up to `FULL`, it is that of draws that walk, twice as
    many as there are coordinates, and of several mixtures; with more, that of some 200 draws.
    """
    if coordinates <= FULL:
        return 100 * coordinates * max(coordinates, 100)
    return 4500 * coordinates


@dataclass(eq=False)
class Refinement:
    """Rows whose posteriors are looked at by climbing to their modes.

    Use it in the pair's scope, without gradients.

    Attributes:
        pair: The pair.
        layout: The layout of the rows.
        batch: n rows.
        at_once: How many draws of all rows may run at once.
        effort: How much is done.

    Raises:
        PairError: The latents cannot be moved: they are discrete with many values, belong to all rows, or are
            functions of the draws of a guide that cannot score what it has not drawn.
    """

    pair: Pair
    layout: Layout
    batch: Batch
    at_once: int
    effort: Effort = EFFORTS[0]

    def __post_init__(self) -> None:
        self.path = Path(self.pair, self.layout, self.batch)
        if self.path.summed is not None:  # each draw is one for each of their values
            self.at_once = max(1, self.at_once // self.path.summed.count)
        drawn = self.path.draw(GUIDE_DRAWS)
        from_prior = self._from_prior()
        try:
            self.path.scores(0.9 * drawn[:1] + 0.1 * drawn[1:2])
        except PairError:
            own = None if from_prior is None else from_prior[0].in_order_of(self.path, drawn)
            if from_prior is None or own is None:
                raise
            # Such a guide is no part of the proposal: the prior takes its place.
            self.path, drawn = from_prior[0], own
        center, spread = drawn.mean(0), drawn.std(0)
        prior = None if from_prior is None else self.path.in_order_of(*from_prior)
        least = 1e-3 * (1.0 + center.abs()) if prior is None else NARROWEST * prior.std(0)
        least = torch.where(least.isfinite() & (least > 0), least, torch.ones_like(least))
        self.scale = torch.where((spread > least) & spread.isfinite(), spread, least)
        self.bulk = self.scale if prior is None else prior.std(0)
        self.bulk = torch.where(self.bulk.isfinite() & (self.bulk > 0), self.bulk, self.scale)
        self.widest = WIDEST * self.bulk
        if prior is None:
            self.widest = torch.full_like(self.bulk, math.inf)
        self.scale = torch.minimum(self.scale, self.bulk)  # a guide may be far too wide
        self.reach = 3.0 * self.scale
        if prior is None:
            prior = center + self.reach * torch.randn_like(drawn)
        else:
            far = (prior.std(0) ** 2 + (prior.mean(0) - center) ** 2).sqrt()
            self.reach = torch.where(far.isfinite(), torch.maximum(far, self.scale), self.reach)
        num_prior = max(self.effort.prior_starts, LEAST_STARTS // center.shape[0])
        near = torch.cat([center[None], drawn[: self.effort.guide_starts]])
        self.starts = torch.cat(
            [near, _representatives(prior, near, self.bulk, num_prior)]
        ).contiguous()
        self._example = drawn[: min(self.at_once, GUIDE_DRAWS)].contiguous()

    def _from_prior(self) -> tuple[Path, Tensor] | None:
        """Draws of the prior; None where the coordinates of the guide's path are not the model's latents."""
        prior = Pair(self.pair.model, PriorGuide(self.pair.model))
        try:
            path = Path(prior, find_layout(prior, self.batch), self.batch)
            drawn = path.draw(GUIDE_DRAWS)
        except PairError as error:
            _logger.info("modes are looked for around the guide alone: %s", error)
            return None
        return None if self.path.in_order_of(path, drawn) is None else (path, drawn)

    @cached_property
    def _scores(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """log q and log p(x, z) of draws, with the Jacobian of the coordinates: `(S, n)` each."""
        most = len(self._example)
        return in_parts(lambda size: self.path.record_scores(*self._examples(size)), most)

    @cached_property
    def _target(self) -> Target:
        most = max(1, len(self._example) // 4)  # gradients take more memory
        gradient = in_parts(
            lambda size: self.path.record_end(*self._examples(size)), min(FEW_STARTS, most), most
        )
        return Target(
            lambda u: self._scores(u)[1],
            gradient,
            self.starts,
            self.scale,
            self.reach,
            self.bulk,
            self.widest,
        )

    def _examples(self, size: int) -> tuple[Tensor, Tensor]:
        """So many draws, and others near them."""
        draws = self._example[:size].contiguous()
        return draws, (draws + 0.1 * self.scale).contiguous()

    def _mixture(self) -> StudentMixture | SubspaceMixture:
        few = self.starts.shape[-1] <= FULL
        return (adapt if few else adapt_in_subspace)(self._target, self.effort)

    def anneal(self, schedule: AnnealingSchedule) -> dict[str, Tensor]:
        """Annealed importance sampling from a mixture that is fitted to the posterior of each row.

        Its chains move in coordinates in which the largest component is round.

        Args:
            schedule: Numbers of chains and steps.

        Returns:
            As `estimate`; k-hat is NaN.
        """
        mixture = self._mixture()
        center, scale = mixture.frame()

        def spread(v: Tensor) -> Tensor:
            moved = scale * v if scale.dim() == 2 else torch.einsum("nij,snj->sni", scale, v)
            return (center + moved).contiguous()

        def pulled(slopes: Tensor) -> Tensor:
            return (
                scale * slopes if scale.dim() == 2 else torch.einsum("nji,snj->sni", scale, slopes)
            )

        def densities(v: Tensor) -> Point:
            u = spread(v)
            end, slopes = self._target.gradient(u)
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                own = mixture.log_prob(u)
                (own_slopes,) = torch.autograd.grad(own.sum(), u)
            own, own_slopes = own.detach().to(end.dtype), pulled(own_slopes)
            return Point(v, own, end - own, own_slopes, pulled(slopes) - own_slopes)

        def start(chains: int) -> Point:
            off = mixture.sample(chains) - center
            if scale.dim() == 2:
                return densities(off / scale)
            solved = torch.linalg.solve_triangular(scale, off.permute(1, 2, 0), upper=False)
            return densities(solved.permute(2, 0, 1).contiguous())

        leapfrog = schedule.num_leapfrog
        steps = tune(
            densities,
            start(FEWEST_CHAINS),
            schedule.tuning_betas,
            torch.ones_like(center),
            leapfrog,
        )
        weights = StreamingWeights(schedule.num_chains)
        log_w, _ = anneal(densities, start(schedule.num_chains), schedule.betas, steps, leapfrog)
        weights.update(log_w.nan_to_num(-math.inf, math.inf, -math.inf))
        return {
            "log_likelihood": weights.log_mean_exp,
            "error": weights.monte_carlo_error,
            "ess": weights.ess,
            "khat": torch.full_like(weights.ess, math.nan),
        }

    def estimate(self, num_samples: int) -> dict[str, Tensor]:
        """Importance sampling from a mixture that is fitted to the posterior of each row, and from the guide.

        A share of the samples is the guide's, the rest the mixture's, and each is weighed by the density of
        both together (the balance heuristic; Veach and Guibas, 1995). They are fresh: none of them has shaped
        the mixture.

        Args:
            num_samples: K.

        Returns:
            "log_likelihood", "error", "ess" and "khat" of each row, `(n,)`.
        """
        mixture = self._mixture()
        from_guide = round(DEFENSE * num_samples)
        shares = (from_guide / num_samples, 1 - from_guide / num_samples)
        log_shares = [math.log(share) if share else -math.inf for share in shares]
        weights = StreamingWeights(num_samples)
        size = len(self._example)
        for draw, count in (
            (self.path.draw, from_guide),
            (mixture.sample, num_samples - from_guide),
        ):
            for done in range(0, count, size):
                u = draw(min(size, count - done))
                base, end = self._scores(u)
                own = mixture.log_prob(u).to(base.dtype)
                weights.update(end - torch.logaddexp(base + log_shares[0], own + log_shares[1]))
        return {
            "log_likelihood": weights.log_mean_exp,
            "error": weights.monte_carlo_error,
            "ess": weights.ess,
            "khat": weights.khat,
        }


def _representatives(draws: Tensor, near: Tensor, scale: Tensor, count: int) -> Tensor:
    """Some of the draws that stand for all others as well as can be, `(count, n, d)`.

    Each is the one that brings the draws nearest to those that are taken, in sum, which takes one of each
    cluster, the largest first, and none because it is far out. Else the few starts of a row would miss parts of
    a prior that are far apart.

    Args:
        draws: Those to choose from, `(S, n, d)`.
        near: Those that are taken already, `(T, n, d)`.
        scale: Units of distances, `(n, d)`.
        count: How many to choose.
    """
    there = (draws / scale).transpose(0, 1)
    apart = torch.cdist(there, there).nan_to_num(math.inf)
    left = torch.cdist((near / scale).transpose(0, 1), there).nan_to_num(math.inf).amin(1)
    rows = torch.arange(len(there), device=draws.device)
    found = []
    for _ in range(min(count, len(draws))):
        best = torch.minimum(apart, left[:, None]).sum(-1).argmin(-1)
        left = torch.minimum(left, apart[rows, best])
        found.append(draws[best, rows])
    return torch.stack(found)
