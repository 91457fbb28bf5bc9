"""Other gradients for discrete latents: from draws, and from hard assignments of many elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.elbo import TraceELBO
from ppl_vae.objectives.elementwise import (
    OfElements,
    expected_likelihood,
    independent_elements,
    known_elements,
    mean_of_elements,
    mean_over_rows,
)
from ppl_vae.objectives.importance_weighted import beside_the_rows
from ppl_vae.objectives.judged_rows import gradient_of
from ppl_vae.pairs import (
    Batch,
    ElementTables,
    Layout,
    Pair,
    PairError,
    element_tables,
    expected_value,
    is_weighted,
    num_rows,
    sample_rows,
    sample_sites,
    scores_of_draws,
)


@dataclass(frozen=True, kw_only=True)
class ScoreFunctionELBO(Objective):
    """The ELBO of discrete latents, its gradient by the score function of draws, with a baseline.

    With S = num_particles draws z^s from q, the gradient of the ELBO by the guide is estimated by

        1/S sum_s (f(z^s) - 1/(S - 1) sum_(t != s) f(z^t)) grad log q(z^s | x),

    where f(z) = log p(x | z) + beta (log p(z) - log q(z | x)) of a row is the reward, and the mean of the other
    draws its baseline ("Buy 4 REINFORCE Samples, Get a Baseline for Free!", Kool et al. 2019; VIMCO's baseline,
    arXiv:1602.06725). It is unbiased, for any pair whose draws are of a row: a sentence, say. Latents with a
    reparameterized sampler keep their pathwise gradient. Where `poutine.scale` weighs a site, which no density
    of a row has, it is `TraceELBO`, without a baseline. A row with many draws in plates of its own has one
    reward for all of them here, and `TraceELBO` may have less noise.

    Of one latent z_1, ..., z_m, of which guide and likelihood take one element at a time, such as a segment per
    pixel, each element has a reward of its own, f_i(z_i), which is what it adds to log p(x | z), and the KL and
    the metrics are exact. `ElementwiseELBO` has the same gradient without noise at about the same cost; there
    this objective is for comparison with it.

    Attributes:
        num_particles: S; 2 at least.

    Raises:
        PairError: The pair has latents outside the plate over rows.
        ValueError: num_particles is below 2, or free_bits is not 0.

    Example:
        >>> ScoreFunctionELBO(num_particles=4)
        ScoreFunctionELBO(beta=1.0, free_bits=0.0, num_particles=4)
    """

    loss_is_elbo = True
    why_no_free_bits = " for discrete latents; set free_bits=0"

    num_particles: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles < 2:
            raise ValueError(
                f"ScoreFunctionELBO: num_particles must be at least 2, got {self.num_particles}: "
                "the baseline of a draw is the mean of the others"
            )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        elements = known_elements(pair, layout, batch)
        if elements is not None:
            tables = element_tables(pair, layout, batch, elements)
            if tables.log_q is not None:
                return self._of_elements(tables, tables.log_q, layout, num_rows(batch), beta)
        return self._of_rows(pair, layout, batch, beta)

    def _of_elements(
        self, tables: ElementTables, log_q: Tensor, layout: Layout, n: int, beta: float
    ) -> Loss:
        drawn = _drawn(log_q, self.num_particles)  # (S, K, *plates, *event), one-hot
        reward = expected_value(drawn, tables.log_likelihood.expand(drawn.shape), 1)
        score = expected_value(drawn, log_q.expand(drawn.shape), 1)
        terms = (reward + _without_others(reward) * gradient_of(score)).mean(0)
        rate = mean_over_rows(tables.kl, layout, n)
        loss = beta * rate - mean_of_elements(terms, layout, n)
        likelihood = expected_likelihood(tables, layout, n).detach()
        rate = rate.detach()
        return Loss(loss, likelihood - rate, rate, -likelihood, [tables.traces])

    def _of_rows(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        if layout.shared:
            raise PairError(
                f"site '{layout.shared[0]}' is outside of plate '{layout.plate}': ScoreFunctionELBO has a "
                "reward for each row, and cannot give one to a latent shared by all; use TraceELBO"
            )
        n = num_rows(batch)
        rows = sample_rows(pair, layout, batch, self.num_particles)
        sites = [*sample_sites(rows.model_trace).values(), *sample_sites(rows.guide_trace).values()]
        if any(is_weighted(site) for site in sites):  # densities of rows are without such weights
            plain = TraceELBO(
                beta=self.beta, free_bits=self.free_bits, num_particles=self.num_particles
            )
            return plain(pair, layout, batch, beta)
        score = scores_of_draws(rows)
        # Of draws without a path, the gradient of log q itself is 0 on average.
        log_guide = rows.log_guide - gradient_of(score)
        reward = rows.log_likelihood + beta * (rows.log_prior - log_guide)
        terms = reward + _without_others(reward) * gradient_of(score)
        loss = beside_the_rows(rows, n) - terms.mean()
        with torch.no_grad():
            distortion = -rows.log_likelihood.mean()
            rate = (rows.log_guide - rows.log_prior).mean()
        traces = [(rows.model_trace, rows.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)


def _without_others(reward: Tensor) -> Tensor:
    """Rewards of draws, less the mean of those of the others; draws come first."""
    fixed = reward.detach()
    return fixed - (fixed.sum(0) - fixed) / (len(fixed) - 1)


@dataclass(frozen=True, kw_only=True)
class StraightThroughELBO(OfElements):
    """The ELBO of hard assignments of many elements, with straight-through gradients.

    Each element gets its most probable value, z_i = argmax_k q(z_i = k | x). For the guide that is sure of
    these, which has no entropy,

        ELBO = log p(x | z) - beta (- log p(z)),

    the bound of classification EM, and of vector quantization with a learned prior. It is below log p(x). The
    derivative of the one-hot vector of z_i is taken to be that of q(z_i | x) (arXiv:1308.3432): the gradient of
    the guide is biased, that of the model is not. The metrics are those of the hard assignments.

    Raises:
        PairError: The pair is no such pair, or the elements are not independent under guide or prior.
        ValueError: free_bits is not 0.

    Example:
        >>> StraightThroughELBO()
        StraightThroughELBO(beta=1.0, free_bits=0.0, num_particles=1)
    """

    loss_is_elbo = False

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        tables = element_tables(pair, layout, batch, self.elements(pair, layout, batch))
        n, name = num_rows(batch), type(self).__name__
        log_prior = independent_elements(tables.log_prior, name, "prior")
        q = independent_elements(tables.log_q, name).exp()
        hard = one_hot(q.argmax(0), len(q)).movedim(-1, 0).to(q)
        y = hard + q - q.detach()
        likelihood = mean_of_elements((y * tables.log_likelihood).sum(0), layout, n)
        rate = -mean_of_elements((y * log_prior).sum(0), layout, n)
        loss = beta * rate - likelihood
        likelihood, rate = likelihood.detach(), rate.detach()
        return Loss(loss, likelihood - rate, rate, -likelihood, [tables.traces])


@torch.no_grad()
def _drawn(log_q: Tensor, num_particles: int) -> Tensor:
    """One-hot draws of each element, `(num_particles, K, *plates, *event)`."""
    noise = -torch.empty(num_particles, *log_q.shape, device=log_q.device).exponential_().log()
    chosen = (log_q + noise.to(log_q)).argmax(1)
    return one_hot(chosen, len(log_q)).movedim(-1, 1).to(log_q)
