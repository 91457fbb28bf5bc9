"""Sums over all paths of a hidden Markov model, batched over sequences: posteriors and the E step.

Shapes: `initial` `(K,)` and `transition` `(K, K)` are normalised log-probabilities; `log_likelihood` holds
log p(x_t | z_t = k), `(n, T, K)`; `lengths`, `(n,)`, says how many steps of each sequence are data. Beyond
them the chain stays where it is, and nothing is observed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.markov_chain import IMPOSSIBLE, MarkovChain

LEAST_TRANSITION = 1e-100
"""Where all transitions are at least as probable, no path that underflows in float64 could matter."""


def steps_within(lengths: Tensor, steps: int) -> Tensor:
    """Which steps are data, `(n, T)`."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)


def transitions_of(transition: Tensor, steps: int, lengths: Tensor | None) -> Tensor:
    """log p(z_t | z_{t-1}) of every step t >= 1: `(T - 1, K, K)`, for given lengths `(n, T - 1, K, K)`."""
    if lengths is None:
        return transition.expand(steps - 1, -1, -1)
    stay = torch.full_like(transition, IMPOSSIBLE).fill_diagonal_(0.0)
    inside = steps_within(lengths, steps)[:, 1:, None, None]
    return torch.where(inside, transition, stay)


def posterior_chain(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> tuple[MarkovChain, Tensor]:
    """p(z | x), of batch shape `(n,)` and event shape `(T,)`, and log p(x), `(n,)`; differentiable.

    By the backward messages log beta_t(i) = log p(x_{t+1}, ..., x_{T-1} | z_t = i), in log space:
    p(z_t = j | z_{t-1} = i, x) = p(j | i) p(x_t | j) beta_t(j) / beta_{t-1}(i).
    """
    steps = log_likelihood.shape[1]
    log_likelihood = log_likelihood.clamp_min(IMPOSSIBLE)
    if lengths is not None:
        inside = steps_within(lengths, steps).unsqueeze(-1)
        log_likelihood = torch.where(inside, log_likelihood, 0.0)
    prior = transitions_of(transition.clamp_min(IMPOSSIBLE), steps, lengths).unbind(-3)
    observed = log_likelihood.unbind(1)
    beta = torch.zeros_like(observed[0])
    backwards = []
    for t in range(steps - 1, 0, -1):
        joint = prior[t - 1] + (observed[t] + beta).unsqueeze(-2)
        backwards.append(joint)
        beta = joint.logsumexp(-1)
    first = initial.clamp_min(IMPOSSIBLE) + observed[0] + beta
    one_step = first.new_zeros((len(first), 0, *transition.shape))
    rest = torch.stack(backwards[::-1], 1) if backwards else one_step
    return MarkovChain(first, rest, validate_args=False), first.logsumexp(-1)


@dataclass(frozen=True)
class PathStatistics:
    """What the E step needs of all paths; zero beyond the lengths.

    Attributes:
        states: p(z_t = k | x), or one-hot the most probable path, `(n, T, K)`.
        transitions: expected number of transitions i to j in all sequences, `(K, K)`.
        log_evidence: the sum of log p(x), or of max_z log p(x, z), over all sequences, `()`.
    """

    states: Tensor
    transitions: Tensor
    log_evidence: Tensor


@torch.no_grad()
def expected_paths(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> PathStatistics:
    """The statistics of all paths under p(z | x), in float64.

    In probabilities, scaled at every step ("A Tutorial on Hidden Markov Models", Rabiner 1989, section
    V.A): some ten times faster than in logarithms, and as exact where no transition is nearly
    impossible. Where one is, in logarithms.
    """
    initial, transition = initial.double(), transition.double()
    if float(transition.exp().min()) >= LEAST_TRANSITION:
        return _scaled(initial, transition, log_likelihood.double(), lengths)
    chain, log_evidence = posterior_chain(initial, transition, log_likelihood.double(), lengths)
    states, pairs = chain.marginals, chain.pair_marginals
    if lengths is not None:
        inside = steps_within(lengths, states.shape[1])
        states = states * inside.unsqueeze(-1)
        pairs = pairs * inside[:, 1:, None, None]
    return PathStatistics(states, pairs.sum((0, 1)), log_evidence.sum())


@torch.no_grad()
def best_paths(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> PathStatistics:
    """The same under the most probable path of each sequence."""
    initial, transition = initial.double(), transition.double()
    chain, log_evidence = posterior_chain(initial, transition, log_likelihood.double(), lengths)
    path = chain.mode
    states = torch.nn.functional.one_hot(path, chain.states).to(initial)
    if lengths is not None:
        states = states * steps_within(lengths, states.shape[1]).unsqueeze(-1)
    # Beyond its length a state is all zeros, and so is the pair.
    transitions = torch.einsum("nti,ntj->ij", states[:, :-1], states[:, 1:])
    return PathStatistics(states, transitions, (log_evidence + chain.log_prob(path)).sum())


def _scaled(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None
) -> PathStatistics:
    n, steps, _ = log_likelihood.shape
    # Long sequences first, so that those that have ended are a slice; time first, so that steps are
    # contiguous.
    order = None if lengths is None else lengths.argsort(descending=True)
    ordered = log_likelihood if order is None else log_likelihood[order]
    active = [n] * steps if lengths is None else steps_within(lengths, steps).sum(0).tolist()
    log_b = ordered.transpose(0, 1).clamp_min(IMPOSSIBLE)
    best = log_b.amax(-1, keepdim=True)
    b = (log_b - best).exp()
    # The first step in logarithms: initial probabilities may be 0 where the likelihood is 1.
    first = initial.clamp_min(IMPOSSIBLE) + log_b[0]
    log_scale = first.logsumexp(-1)
    matrix = transition.exp()
    alpha, scale = torch.zeros_like(b), torch.ones_like(best)
    alpha[0] = (first - log_scale.unsqueeze(-1)).exp()
    for t in range(1, steps):
        m = active[t]
        now = torch.mm(alpha[t - 1, :m], matrix, out=alpha[t, :m]).mul_(b[t, :m])
        now.div_(torch.sum(now, -1, keepdim=True, out=scale[t, :m]))
    inside = None if lengths is None else steps_within(lengths, steps)[order].T
    log_c = scale[1:, :, 0].log() + best[1:, :, 0]
    log_evidence = log_scale.sum() + (log_c if inside is None else log_c[inside[1:]]).sum()
    # weighted_t = b_t beta_t / scale_t; alpha_t beta_t is the posterior of z_t.
    beta = torch.ones_like(alpha)
    weighted = b.div_(scale)
    for t in range(steps - 1, 0, -1):
        m = active[t]
        torch.mm(weighted[t, :m].mul_(beta[t, :m]), matrix.T, out=beta[t - 1, :m])
    if inside is not None:
        weighted.mul_(inside.unsqueeze(-1))
    pairs = alpha[:-1].flatten(0, 1).T @ weighted[1:].flatten(0, 1)
    states = alpha.mul_(beta).transpose(0, 1)
    if order is not None:
        states = torch.empty_like(states).index_copy_(0, order, states)
    return PathStatistics(states, pairs.mul_(matrix), log_evidence)
