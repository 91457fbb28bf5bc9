"""The importance-weighted bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    num_rows,
    row_log_prob,
    sample_rows,
    sum_to_rows,
)


@dataclass(frozen=True)
class ImportanceWeightedELBO(Objective):
    """The importance-weighted bound of Burda et al. (arXiv:1509.00519), row by row.

    L_K(x) = E log 1/K sum_k w_k with w_k = p(x | z_k) (p(z_k) / q(z_k | x))^beta and K = `num_particles`.
    The sum is within each row: scales and plates stay outside the log. Latents without a
    reparameterized sampler get the score-function gradient of the whole row's bound.

    Raises:
        PairError: The pair has latents outside the plate over rows.
        ValueError: free_bits is not 0.
    """

    num_particles: int = 5

    why_no_free_bits = (
        ", because the bound is not a KL plus other terms; use ELBO, TraceELBO or MeanFieldELBO"
    )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        if layout.shared:
            raise PairError(
                f"site '{layout.shared[0]}' is outside of plate '{layout.plate}': the importance-weighted "
                "bound is a sum over rows and cannot include a latent shared by all rows; use TraceELBO"
            )
        rows = sample_rows(pair, layout, batch, self.num_particles)
        ratio = rows.log_prior - rows.log_guide
        log_weights = rows.log_likelihood + beta * ratio
        bound = torch.logsumexp(log_weights, 0) - math.log(self.num_particles)
        surrogate = bound
        for name in layout.draws:
            site = rows.guide_trace.nodes[name]
            if not site["fn"].has_rsample:
                score = sum_to_rows(
                    row_log_prob(site, layout), layout, self.num_particles, num_rows(batch)
                ).sum(0)
                surrogate = surrogate + bound.detach() * (score - score.detach())
        with torch.no_grad():
            distortion, rate = -rows.log_likelihood.mean(), -ratio.mean()
        return Loss(
            loss=-surrogate.mean(),
            elbo=-(distortion + rate),
            rate=rate,
            distortion=distortion,
            traces=[(rows.model_trace, rows.guide_trace)],
        )
