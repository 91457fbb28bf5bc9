"""Other gradients for a discrete latent with many elements: from draws, and from hard assignments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.elementwise import (
    OfElements,
    expected_likelihood,
    independent_elements,
    mean_of_elements,
    mean_over_rows,
)
from ppl_vae.pairs import Batch, Layout, Pair, element_tables, expected_value, num_rows


@dataclass(frozen=True, kw_only=True)
class ScoreFunctionELBO(OfElements):
    """The ELBO of a latent with many elements, its gradient by the score function of draws, element by element.

    With S = num_particles draws z^s from q, the gradient of E_q log p(x | z) by the guide is estimated by

        1/S sum_s sum_i (f_i(z_i^s) - 1/(S - 1) sum_(t != s) f_i(z_i^t)) grad log q(z_i^s | x),

    where f_i(z_i) is what element i adds to log p(x | z): each element has a reward of its own, and the mean of
    the other draws as its baseline ("Buy 4 REINFORCE Samples, Get a Baseline for Free!", Kool et al. 2019;
    VIMCO's baseline, arXiv:1602.06725). It is unbiased. The KL and the metrics are exact. `ElementwiseELBO` has
    the same gradient without noise at about the same cost; this objective is for comparison with it. For a
    guide with independent elements.

    Attributes:
        num_particles: S; 2 at least.

    Raises:
        PairError: The pair is no such pair, or the elements of its guide are not independent.
        ValueError: num_particles is below 2, or free_bits is not 0.

    Example:
        >>> ScoreFunctionELBO(num_particles=4)
        ScoreFunctionELBO(beta=1.0, free_bits=0.0, num_particles=4)
    """

    num_particles: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles < 2:
            raise ValueError(
                f"ScoreFunctionELBO: num_particles must be at least 2, got {self.num_particles}: "
                "the baseline of a draw is the mean of the others"
            )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        tables = element_tables(pair, layout, batch, self.elements(pair, layout, batch))
        n = num_rows(batch)
        log_q = independent_elements(tables.log_q, type(self).__name__)
        drawn = _drawn(log_q, self.num_particles)  # (S, K, *plates, *event), one-hot
        reward = expected_value(drawn, tables.log_likelihood.expand(drawn.shape), 1)
        fixed = reward.detach()
        baseline = (fixed.sum(0) - fixed) / (self.num_particles - 1)
        score = expected_value(drawn, log_q.expand(drawn.shape), 1)
        terms = (reward + (fixed - baseline) * (score - score.detach())).mean(0)
        rate = mean_over_rows(tables.kl, layout, n)
        loss = beta * rate - mean_of_elements(terms, layout, n)
        likelihood = expected_likelihood(tables, layout, n).detach()
        rate = rate.detach()
        return Loss(loss, likelihood - rate, rate, -likelihood, [tables.traces])


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
