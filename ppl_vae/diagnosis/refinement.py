"""Per-row posteriors of a frozen model: what inference could reach without amortization."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.diagnosis.families import RowFamily, normal_family
from ppl_vae.distributions import rebuilt
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    RowDensities,
    Site,
    elementwise,
    elementwise_kl,
    inner_scale,
    num_rows,
    row_log_prob,
    rows_first,
    sample_rows,
    sum_to_rows,
    unscaled,
)

ROUND = 50
"""Gradient steps per round; the bound of each round is compared with that of the round before."""

FINEST = 1e-2
"""The step size, relative to the first one, below which a maximization ends."""

NUM_DRAWS = 256
"""Samples used to compare the start and the end of a maximization."""

SHORT_ROUND = 20
"""Gradient steps per round of `refine_rows`, which ends as soon as it is clear what the posteriors tell."""

FEW_SAMPLES = 4
"""Its samples per row and step."""

FEW_DRAWS = 64
"""Its samples to compare start and end."""

MOST_STEPS = 600
"""Its gradient steps at most."""


@dataclass(frozen=True)
class Maximized:
    """Outcome of a maximization.

    Attributes:
        steps: Gradient steps taken.
        converged: Whether the rows' bounds had stopped improving.
    """

    steps: int
    converged: bool


def maximize(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    family: RowFamily,
    *,
    beta: float = 1.0,
    num_samples: int = 8,
    learning_rate: float = 0.1,
    tolerance: float = 1e-3,
    max_steps: int = 2000,
    num_draws: int = NUM_DRAWS,
    length: int | None = None,
    settled: Callable[[list[Tensor]], bool] | None = None,
) -> Maximized:
    r"""Maximizes each row's own beta-ELBO over a family, with a frozen model, until it stops improving.

    Adam on E_q[log p(x | z) + beta (log p(z) - log q(z))], with the pathwise derivative of log q through z
    only. The omitted term has expectation zero, and without it the gradient has no noise where q is the
    posterior ("Sticking the Landing", arXiv:1703.09194). Latents without a reparameterized sampler get the
    score-function gradient, with the mean over the other samples as baseline.

    The step size is divided by 3 whenever the rows' mean bound over `ROUND` steps is no better than before
    and no single row's bound is clearly better. Once it is below `FINEST` of the first, the maximization has
    converged. The numbers are then averaged over the last round, and rows that are worse than at their start
    (by fresh samples) are reset to it. About 1e-3 nats may be left to gain, more where the posterior is
    ill-conditioned.

    Args:
        pair: The pair, inside of `pair.scope()`.
        layout: Its layout.
        batch: n rows.
        family: The family to search; its numbers are changed in place.
        beta: Weight of the KL.
        num_samples: Samples per row and step.
        learning_rate: Adam's first step size.
        tolerance: Smallest improvement in a round that counts, in nats per row, for the mean over rows; for a
            single row, ten times as much, beyond its noise.
        max_steps: Maximum number of gradient steps.
        num_draws: Samples used to compare the start and the end.
        length: Steps per round; None for `ROUND`.
        settled: Told the mean numbers of each round, it says whether they are good enough: then two rounds
            with smaller steps are the last ones.
    """
    length = ROUND if length is None else length
    free = family.pair(pair)
    leaves = list(family.numbers)
    start = [leaf.detach().clone() for leaf in leaves]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate, betas=(0.9, 0.99))
    rate, steps = learning_rate, 0
    ending, finest = False, FINEST * learning_rate
    before: Tensor | None = None

    def smaller() -> None:
        nonlocal rate
        rate /= 3
        for group in optimizer.param_groups:
            group["lr"] = rate

    with torch.enable_grad(), pyro.validation_enabled(False):
        while rate >= finest and steps < max_steps:
            bounds = []
            sums = [torch.zeros_like(leaf) for leaf in leaves]
            for _ in range(min(length, max_steps - steps)):
                bound, gradients = _step(free, layout, batch, leaves, beta, num_samples)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                optimizer.step()
                bounds.append(bound.double())
                for sum_of, leaf in zip(sums, leaves, strict=True):
                    sum_of.add_(leaf.detach())
                steps += 1
            values = torch.stack(bounds)
            if ending or (settled is not None and settled([part / len(bounds) for part in sums])):
                ending, finest = True, max(finest, learning_rate / 10)
                smaller()
            elif before is not None:
                gain, error = values.mean(0) - before, values.std(0) / math.sqrt(len(values) / 2)
                late = (gain > 10 * tolerance + 4 * error).any()
                if not late and gain.mean() <= tolerance:
                    smaller()
            before = values.mean(0)
    with torch.no_grad():
        for leaf, sum_of in zip(leaves, sums, strict=True):
            leaf.copy_(sum_of / len(bounds))
    _keep_the_better(pair, layout, batch, family, start, beta, num_draws)
    return Maximized(steps, converged=rate < finest)


def _step(
    pair: Pair, layout: Layout, batch: Batch, leaves: list[Tensor], beta: float, num_samples: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rows' bounds, `(n,)`, and the gradients of minus their sum."""
    if layout.vectorizes:
        draws = [sample_rows(pair, layout, batch, num_samples)]
    else:  # one by one, so that each has a trace of its own
        draws = [sample_rows(pair, layout, batch, 1) for _ in range(num_samples)]
    weights, scores = zip(*(_weights_and_scores(d, layout, beta) for d in draws), strict=True)
    weight, score = torch.cat(weights), torch.cat(scores)
    surrogate = weight
    if score.requires_grad and num_samples > 1:
        others = (weight.sum(0) - weight) / (num_samples - 1)
        surrogate = weight + (weight - others).detach() * score
    gradients = torch.autograd.grad(
        -surrogate.sum() / num_samples, leaves, allow_unused=True, materialize_grads=True
    )
    return weight.detach().mean(0), gradients


def _weights_and_scores(rows: RowDensities, layout: Layout, beta: float) -> tuple[Tensor, Tensor]:
    """log p(x | z) + beta (log p(z) - log q(z)), differentiable through z only, and log q of the latents
    without a reparameterized sampler; both `(samples, n)`.
    """
    samples, n = rows.log_guide.shape
    log_guide, score = rows.log_guide, torch.zeros_like(rows.log_guide)
    for name in layout.draws:
        site = rows.guide_trace.nodes[name]
        own = sum_to_rows(row_log_prob(site, layout), layout, samples, n)
        if not site["fn"].has_rsample:
            log_guide = log_guide - own + own.detach()
            score = score + sum_to_rows(unscaled(site), layout, samples, n)
            continue
        try:
            fixed = rebuilt(site["fn"], lambda value, _: value.detach())
            along = {k: v for k, v in site.items() if k != "unscaled_log_prob"} | {"fn": fixed}
            same = sum_to_rows(row_log_prob(along, layout), layout, samples, n)
        except (
            TypeError,
            ValueError,
            AttributeError,
        ):  # cannot be rebuilt, or a flow has no inverse
            continue
        if torch.allclose(same, own, rtol=1e-3, atol=1e-3):
            log_guide = log_guide - own + same
    return rows.log_likelihood + beta * (rows.log_prior - log_guide), score


def _keep_the_better(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    family: RowFamily,
    start: list[Tensor],
    beta: float,
    num_draws: int,
) -> None:
    end = [leaf.detach().clone() for leaf in family.numbers]
    everything = torch.ones(num_rows(batch), dtype=torch.bool, device=end[0].device)
    after = _bound(pair, layout, batch, family, beta, num_draws)
    family.put_back(everything, start)
    before = _bound(pair, layout, batch, family, beta, num_draws)
    family.put_back(~(before > after), end)


@torch.no_grad()
def _bound(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    family: RowFamily,
    beta: float,
    num_draws: int,
    at_once: int = 8,
) -> Tensor:
    free = family.pair(pair)
    total: Any = 0.0
    for _ in range(num_draws // at_once):
        rows = sample_rows(free, layout, batch, at_once)
        weights = rows.log_likelihood + beta * (rows.log_prior - rows.log_guide)
        total = total + weights.double().sum(0)
    bound: Tensor = total / num_draws
    return bound


@dataclass(frozen=True)
class Refined:
    """Diagonal Gaussians fitted to the posterior of each row.

    Attributes:
        mean: Mean of each dimension, `(n, dimensions)`.
        variance: Its variance, as many.
        of_prior: Mean of each dimension under the row's prior, as many; 0 where that depends on other latents.
        bound: E_q log p(x | z) - beta KL of each row, nats, `(n,)`.
    """

    mean: Tensor
    variance: Tensor
    of_prior: Tensor
    bound: Tensor

    @property
    def information(self) -> Tensor:
        """What each dimension tells of its row, nats: log(1 + Var(mean) / E variance) / 2, `(dimensions,)`.

        It is exact for a Gaussian that has the same variance in all rows. Means are counted from those of the
        row's prior: what a label says of z is not told by z.
        """
        return _information(self.mean - self.of_prior, self.variance)


def _information(mean: Tensor, variance: Tensor) -> Tensor:
    if len(mean) < 2:
        return torch.zeros_like(mean[0])
    return 0.5 * (mean.var(0) / variance.mean(0)).log1p()


def can_refine(pair: Pair, layout: Layout, model_trace: object) -> bool:
    """Whether all latents of a row are real vectors that the guide draws, and none belongs to all rows.

    Their masks must depend on the row alone: the trace of several samples shows others.
    """
    nodes = model_trace.nodes  # type: ignore[attr-defined]
    return (
        bool(layout.latents)
        and layout.vectorizes
        and not layout.enumerated
        and not layout.shared
        and not pair.keeps_rows
        and all(
            nodes[name]["fn"].has_rsample
            and elementwise(nodes[name]["fn"]) is not None
            and is_real(nodes[name]["fn"])
            and inner_scale(nodes[name], layout) == 1.0
            and not _is_masked_by_draws(nodes[name], layout)
            for name in layout.latents
        )
    )


def _is_masked_by_draws(site: Site, layout: Layout) -> bool:
    """Whether a mask has a dimension of samples, or is inside of the distribution, where it may have one."""
    fn, mask = site["fn"], site["mask"]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return isinstance(mask, Tensor) and mask.dim() > layout.nesting


def is_real(fn: object) -> bool:
    """Whether a distribution is one over all real numbers or vectors."""
    support = fn.support  # type: ignore[attr-defined]
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__ == "_Real"


class _Settled:
    """Whether it is clear what some dimensions tell: for three rounds nearly the same; see `refine_rows`."""

    def __init__(self, unused: Tensor) -> None:
        self.unused = unused
        self.seen: list[Tensor] = []

    def __call__(self, numbers: list[Tensor]) -> bool:
        mean, log_scale = numbers
        told = _information(mean, (2 * log_scale).exp())[self.unused]
        self.seen = [*self.seen[-2:], told]
        if len(self.seen) < 3 or len(mean) < 2:
            return False
        return all(bool(((told - of).abs() <= 0.1 * told + 0.005).all()) for of in self.seen)


def refine_rows(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    start: Tensor,
    *,
    beta: float = 1.0,
    unused: Tensor,
) -> Refined:
    """Maximizes each row's own beta-ELBO over diagonal Gaussians, with a frozen model.

    It ends as soon as it is clear what the dimensions tell that are asked about, however far others may be from
    their optimum.

    Args:
        pair: The pair, inside of `pair.scope()`.
        layout: Its layout; `can_refine` must hold.
        batch: n rows.
        start: Means to start from, `(n, dimensions)`, sites in the order of `layout.latents`.
        beta: Weight of the KL.
        unused: The dimensions that are asked about, `(dimensions,)`.
    """
    with torch.no_grad():
        trace = sample_rows(pair, layout, batch, 1).model_trace
    family = normal_family({n: trace.nodes[n] for n in layout.latents}, layout, start, 0.5)
    layout = replace(layout, guide_sites=layout.latents, draws=layout.latents)
    maximize(
        pair,
        layout,
        batch,
        family,
        beta=beta,
        num_samples=FEW_SAMPLES,
        max_steps=MOST_STEPS,
        num_draws=FEW_DRAWS,
        length=SHORT_ROUND,
        settled=_Settled(unused),
    )
    free = family.pair(pair)
    with torch.no_grad():
        parts = [_moments(free, layout, batch) for _ in range(4)]
    mean, variance, of_prior, bound, kl = (
        torch.stack(of).mean(0) for of in zip(*parts, strict=True)
    )
    return Refined(mean, variance, of_prior, bound - beta * kl)


def _moments(free: Pair, layout: Layout, batch: Batch, draws: int = 8) -> tuple[Tensor, ...]:
    """Mean, variance, prior mean of each dimension, `(n, dimensions)`, E_q log p(x | z) and the KL, `(n,)`."""
    n = num_rows(batch)
    rows = sample_rows(free, layout, batch, draws)
    kl = torch.zeros_like(rows.log_likelihood[0])
    moments: list[tuple[Tensor, ...]] = []
    for name in layout.latents:
        q, p = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
        each = elementwise_kl(q, p)
        assert each is not None  # can_refine
        shape = q["value"].shape
        of_rows = [
            rows_first({**q, "value": value.reshape(shape)}, layout, draws, n)
            .mean(0)
            .reshape(n, -1)
            for value in (each, q["fn"].mean.expand(shape), q["fn"].variance.expand(shape))
        ]
        kl = kl + of_rows[0].sum(-1)
        centers = rows_first({**p, "value": p["fn"].mean.expand(shape)}, layout, draws, n)
        of_prior = centers[0].reshape(n, -1)
        if not torch.allclose(centers, centers[:1].expand_as(centers)):
            of_prior = torch.zeros_like(of_prior)
        moments.append((of_rows[1].double(), of_rows[2].double(), of_prior.double()))
    of_rows = [torch.cat(parts, -1) for parts in zip(*moments, strict=True)]
    return *of_rows, rows.log_likelihood.mean(0), kl
