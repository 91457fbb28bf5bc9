"""Per-row posteriors of a frozen model: what inference could reach without amortisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.handlers import Substitute, elementwise, unscaled
from ppl_vae.pairs import Batch, Pair, as_args, num_rows
from ppl_vae.rows import Layout, many_samples, rows_first, sum_to_rows


@dataclass(frozen=True)
class Refined:
    """Diagonal Gaussians fitted to the posterior of each row.

    Attributes:
        mean: ``(n, dimensions)``.
        scale: Standard deviations, likewise.
        kl: KL of each dimension against the model's prior, nats, ``(n, dimensions)``.
        bound: E_q log p(x | z) - beta KL of each row, nats, ``(n,)``.
    """

    mean: Tensor
    scale: Tensor
    kl: Tensor
    bound: Tensor


def can_refine(pair: Pair, layout: Layout, model_trace: object) -> bool:
    """Whether all latents of a row are real vectors that the guide draws, without latents of all rows."""
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
            and _is_real(nodes[name]["fn"])
            and _plates(nodes[name], layout) == [layout.plate]
            for name in layout.latents
        )
    )


def _plates(site: Any, layout: Layout) -> list[str]:
    """The pair's own plates around a site."""
    return [f.name for f in site["cond_indep_stack"] if f.vectorized and f.dim >= -layout.nesting]


def _is_real(fn: object) -> bool:
    support = fn.support  # type: ignore[attr-defined]
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__ == "_Real"


def refine_rows(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    start: Tensor,
    *,
    beta: float = 1.0,
    steps: int = 300,
    num_samples: int = 8,
    learning_rate: float = 0.05,
) -> Refined:
    """Maximises each row's own beta-ELBO over diagonal Gaussians, the model frozen, by Adam.

    Args:
        pair: The pair, inside of ``pair.scope()``.
        layout: Its layout; :func:`can_refine` must hold.
        batch: n rows.
        start: Means to start from, ``(n, dimensions)``, sites in the order of ``layout.latents``.
        beta: Weight of the KL.
        steps: Gradient steps.
        num_samples: Samples a step.
        learning_rate: Adam's step size, annealed to zero.
    """
    n = num_rows(batch)
    with torch.no_grad(), many_samples(layout, num_samples):
        trace: Any = poutine.trace(
            poutine.replay(pair.model, trace=poutine.trace(pair.guide).get_trace(*as_args(batch)))
        ).get_trace(*as_args(batch))
    shapes = {name: trace.nodes[name]["fn"].event_shape for name in layout.latents}
    sizes = [math.prod(shape) for shape in shapes.values()]
    with torch.enable_grad():
        mean = start.detach().clone().requires_grad_()
        log_scale = torch.full_like(mean, math.log(0.5)).requires_grad_()
        optimizer = torch.optim.Adam([mean, log_scale], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        bounds: list[Tensor] = []
        kls: list[Tensor] = []
        for step in range(steps):
            noise = torch.randn(num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
            z = mean + log_scale.exp() * noise
            log_likelihood, log_prior = _densities(
                pair, layout, batch, z, shapes, sizes, num_samples, n
            )
            log_q = -(0.5 * noise.square() + log_scale + 0.5 * math.log(2 * math.pi))
            kl = (log_q - log_prior).mean(0)
            bound = log_likelihood.mean(0) - beta * kl.sum(-1)
            mean.grad, log_scale.grad = torch.autograd.grad(-bound.sum(), [mean, log_scale])
            optimizer.step()
            schedule.step()
            if step >= steps - 20:
                bounds.append(bound.detach())
                kls.append(kl.detach())
    return Refined(
        mean.detach(),
        log_scale.detach().exp(),
        torch.stack(kls).mean(0),
        torch.stack(bounds).mean(0),
    )


def _densities(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    z: Tensor,
    shapes: dict[str, torch.Size],
    sizes: list[int],
    num_samples: int,
    n: int,
) -> tuple[Tensor, Tensor]:
    """log p(x | z), ``(samples, n)``, and log p of each number of z, ``(samples, n, dimensions)``."""
    values = {}
    inner = (1,) * (-layout.dim - 1)  # dimensions of plates to the right of the rows'
    outer = (1,) * (layout.nesting + layout.dim)
    for (name, shape), part in zip(shapes.items(), z.split(sizes, -1), strict=True):
        values[name] = part.reshape(num_samples, *outer, n, *inner, *shape)
    with many_samples(layout, num_samples):
        trace = poutine.trace(Substitute(values)(pair.model)).get_trace(*as_args(batch))
    log_likelihood = [
        sum_to_rows(unscaled(trace.nodes[name]), layout, num_samples, n) for name in layout.observed
    ]
    log_prior = []
    for name in layout.latents:
        site = trace.nodes[name]
        single = elementwise(site["fn"]).log_prob(site["value"])  # type: ignore[union-attr]
        shaped = rows_first({**site, "value": single}, layout, num_samples, n)
        log_prior.append(shaped.reshape(num_samples, n, -1))
    return torch.stack(log_likelihood).sum(0), torch.cat(log_prior, -1)
