"""Sums over all paths of a hidden Markov model, for a batch of sequences: posteriors and the E step.

Shapes: `initial` `(K,)` and `transition` `(K, K)` are normalized log-probabilities; `log_likelihood` holds
log p(x_t | z_t = k), `(n, T, K)`; `lengths`, `(n,)`, is the number of steps of each sequence that are data.
Beyond them the chain stays in its state, and nothing is observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain

_MOST_WORK = 250_000
"""Of n K^3 multiplications, which take about as long as the operations of a step take to begin."""

LEAST_TRANSITION = 1e-100
"""If all transitions are at least this probable, no path that matters underflows in float64."""


def steps_within(lengths: Tensor, steps: int) -> Tensor:
    """Which steps are data, `(n, T)`."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)


def transitions_of(transition: Tensor, steps: int, lengths: Tensor | None) -> Tensor:
    """log p(z_t | z_{t-1}) for t >= 1: `(T - 1, K, K)`, for given lengths `(n, T - 1, K, K)`."""
    if lengths is None:
        return transition.expand(steps - 1, -1, -1)
    stay = torch.full_like(transition, IMPOSSIBLE).fill_diagonal_(0.0)
    inside = steps_within(lengths, steps)[:, 1:, None, None]
    return torch.where(inside, transition, stay)


def posterior_chain(
    initial: Tensor,
    transition: Tensor,
    log_likelihood: Tensor,
    lengths: Tensor | None = None,
    whole: bool = False,
) -> tuple[MarkovChain, Tensor]:
    """p(z | x), of batch shape `(n,)` and event shape `(T,)`, and log p(x), `(n,)`; differentiable.

    By the backward messages log beta_t(i) = log p(x_{t+1}, ..., x_{T-1} | z_t = i), in log space:
    p(z_t = j | z_{t-1} = i, x) = p(j | i) p(x_t | j) beta_t(j) / beta_{t-1}(i). `whole` is the chain's.
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
    return MarkovChain(first, rest, whole=whole, validate_args=False), first.logsumexp(-1)


@dataclass(frozen=True)
class PathStatistics:
    """What the E step needs to know about all paths; zero beyond the lengths.

    Attributes:
        states: p(z_t = k | x), or the most probable path as one-hot vectors, `(n, T, K)`.
        transitions: Expected number of transitions i to j in all sequences, `(K, K)`.
        log_evidence: The sum of log p(x), or of max_z log p(x, z), over all sequences, `()`.
    """

    states: Tensor
    transitions: Tensor
    log_evidence: Tensor


@torch.no_grad()
def expected_paths(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> PathStatistics:
    """The statistics of all paths under p(z | x), in float64.

    It works with probabilities, scaled at every step ("A Tutorial on Hidden Markov Models", Rabiner
    1989, section V.A): some ten times faster than with logarithms, and as exact if no transition is
    nearly impossible. If one is, it works with logarithms.
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
    """The statistics of the most probable path of each sequence, by the Viterbi algorithm."""
    initial, transition = initial.double(), transition.double()
    log_likelihood = log_likelihood.double().clamp_min(IMPOSSIBLE)
    steps = log_likelihood.shape[1]
    if lengths is not None:
        inside = steps_within(lengths, steps).unsqueeze(-1)
        log_likelihood = torch.where(inside, log_likelihood, 0.0)
    moves = transitions_of(transition, steps, lengths).unbind(-3)
    observed = log_likelihood.unbind(1)
    best, pointers = initial + observed[0], []
    for move, log_b in zip(moves, observed[1:], strict=True):
        best, pointer = (best.unsqueeze(-1) + move).max(-2)
        best = best + log_b
        pointers.append(pointer)
    log_joint, last = best.max(-1)
    path = [last]
    for pointer in reversed(pointers):
        path.append(pointer.gather(-1, path[-1].unsqueeze(-1)).squeeze(-1))
    states = torch.nn.functional.one_hot(torch.stack(path[::-1], -1), len(initial)).to(initial)
    if lengths is not None:
        states = states * steps_within(lengths, states.shape[1]).unsqueeze(-1)
    # Beyond a sequence's length its states are zeros, and so are the pairs.
    transitions = torch.einsum("nti,ntj->ij", states[:, :-1], states[:, 1:])
    return PathStatistics(states, transitions, log_joint.sum())


def _scaled(
    initial: Tensor, transition: Tensor, log_likelihood: Tensor, lengths: Tensor | None
) -> PathStatistics:
    """All sequences at once, one step after the other; a few long ones are cut into parallel blocks.

    Arrays are `(steps of a block, K, blocks of all sequences)`, longest blocks first, so that those that have
    not ended are a slice.
    """
    n, steps, states = log_likelihood.shape
    blocks = _blocks_of_a_sequence(n, steps, states)
    size = -(-steps // blocks)
    ends = torch.full((n,), steps, device=log_likelihood.device) if lengths is None else lengths
    within = (ends.unsqueeze(1) - size * torch.arange(blocks, device=ends.device)).clamp(0, size)
    sizes, order = within.flatten().sort(descending=True, stable=True)
    inside = steps_within(sizes, size).T
    active = inside.sum(1).tolist()
    links = _Links(order, sizes, blocks)
    log_b = log_likelihood
    in_order = lengths is None and blocks == 1
    if not in_order:
        log_b = torch.nn.functional.pad(log_b, (0, 0, 0, blocks * size - steps))
        log_b = log_b.reshape(n * blocks, size, states)[order]
    # Always a copy: what follows works in place.
    log_b = log_b.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    # The first step includes the initial probabilities, in logarithms: they may be 0 where it is likely.
    log_b[0] += torch.where(links.first, initial.unsqueeze(1), 0.0)
    log_b.clamp_min_(IMPOSSIBLE)
    best = log_b.amax(1)
    b = log_b.sub_(best.unsqueeze(1)).exp_()

    matrix = transition.exp()
    before, after = links.around(matrix, b, active)
    alpha, scale = torch.empty_like(b), torch.ones_like(best)
    entering = torch.where(links.first, torch.ones_like(before), matrix.T @ before)
    for t, m in enumerate(active):
        now = alpha[t, :, :m]
        if t > 0:
            torch.mm(matrix.T, alpha[t - 1, :, :m], out=now)
        else:
            now.copy_(entering[:, :m])
        torch.sum(now.mul_(b[t, :, :m]), 0, out=scale[t, :m])
        now.div_(scale[t, :m])
        alpha[t, :, m:] = 0.0
    log_c = scale.log().add_(best)
    log_evidence = (log_c if in_order else torch.where(inside, log_c, 0.0)).sum()

    # beta is p(all after | z_t), scaled so that alpha_t beta_t is p(z_t | x).
    last, column = (sizes - 1).clamp_min(0), torch.arange(len(sizes), device=sizes.device)
    norm = (alpha[last, :, column].T * after).sum(0)
    beta = after / torch.where(norm > 0, norm, 1.0)
    pairs = torch.zeros_like(matrix)
    for t in range(size - 1, -1, -1):
        m = active[t]
        weighted = b[t, :, :m].mul_(beta[:, :m]).div_(scale[t, :m])
        earlier = alpha[t - 1, :, :m] if t > 0 else torch.where(links.first, 0.0, before)[:, :m]
        pairs.addmm_(earlier, weighted.T)
        alpha[t, :, :m].mul_(beta[:, :m])
        beta[:, :m] = matrix @ weighted
    posterior = alpha.permute(2, 0, 1)
    if not in_order:
        posterior = torch.empty_like(posterior).index_copy_(0, order, posterior)
        posterior = posterior.reshape(n, blocks * size, states)[:, :steps]
    return PathStatistics(posterior, pairs.mul_(matrix), log_evidence)


def _blocks_of_a_sequence(n: int, steps: int, states: int) -> int:
    """Into how many blocks to cut each sequence: enough to fill the machine, while the extra work pays.

    A block costs K times the work of its steps, K^3 for each. But steps run one after the other, blocks in
    parallel: it pays as long as a step of all sequences is over sooner than an operation begins.
    """
    if n * states**3 > _MOST_WORK:
        return 1
    blocks = min(1000 // n, math.isqrt(2 * steps))
    return blocks if blocks > 5 else 1


class _Links:
    """How the blocks of a sequence are linked: what enters each block from before and from after.

    Args:
        order: The block, counted through all sequences, in each column.
        sizes: The number of steps of each column.
        blocks: Number of blocks per sequence.
    """

    def __init__(self, order: Tensor, sizes: Tensor, blocks: int) -> None:
        self.order, self.sizes, self.blocks = order, sizes, blocks
        self.first = order % blocks == 0

    def around(self, matrix: Tensor, b: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        """What the steps outside of each block say about z at the last step before it, and at its end.

        p(z | all before), and p(all after | z) up to a factor, both `(K, columns)`, by transfer operators
        from the last step before a block to its end.
        """
        states = len(matrix)
        uniform = torch.full_like(b[0], 1 / states)
        if self.blocks == 1:
            return uniform, torch.ones_like(uniform)
        operators, log_scale = self._operators(matrix, b, active)
        operators.mul_((log_scale - log_scale.amax(0)).exp())
        # Block by block, `(blocks, K, K, sequences)`.
        by_block = torch.empty_like(operators).index_copy_(-1, self.order, operators)
        by_block = by_block.unflatten(-1, (-1, self.blocks)).movedim(-1, 0).contiguous()
        before = torch.empty_like(by_block[:, 0])
        after = torch.ones_like(before)
        before[0] = 1 / states
        for block in range(self.blocks - 1):
            passed = (by_block[block] * before[block]).sum(1)
            torch.div(passed, passed.sum(0), out=before[block + 1])
        for block in range(self.blocks - 1, 0, -1):
            passed = (by_block[block] * after[block].unsqueeze(1)).sum(0)
            torch.div(passed, passed.sum(0), out=after[block - 1])
        # Back into columns. Blocks without steps pass on their ones, divided by K.
        before, after = (v.movedim(0, -1).flatten(1)[:, self.order] for v in (before, after))
        return before, after

    def _operators(self, matrix: Tensor, b: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        """p(z at the end | z = i before the block), `(K, i, columns)`, and log p(block | i), `(i, columns)`.

        Nothing comes before a first block: for every i, it starts as the chain does.
        """
        states = len(matrix)
        eye = torch.eye(states, dtype=b.dtype, device=b.device).unsqueeze(-1)
        state = torch.where(self.first, torch.ones_like(eye), matrix.T.unsqueeze(-1))
        # Columns without steps pass on what they receive.
        state = torch.where(self.sizes > 0, state, eye).contiguous()
        log_scale = torch.zeros_like(state[0])
        period = _steps_without_scaling(float(matrix.min()))
        ended = torch.empty_like(state)
        for t, (m, later) in enumerate(zip(active, [*active[1:], -1], strict=True)):
            if m < state.shape[-1]:
                ended[:, :, m : state.shape[-1]] = state[:, :, m:]
                state = state[:, :, :m].contiguous()
            if t > 0:
                state = (matrix.T @ state.flatten(1)).view(states, states, m)
            state.mul_(b[t, :, :m].unsqueeze(1))
            if later < m or t % period == period - 1:
                scale = state.sum(0)
                log_scale[:, :m] += scale.log()
                state.div_(scale)
        ended[:, :, : state.shape[-1]] = state
        return ended, log_scale


def _steps_without_scaling(least: float) -> int:
    """For how many steps the sum over states stays above 1e-150 unscaled, 16 at most.

    In each step the likeliest state has the factor 1, and the transition to it a probability of at least
    `least`.
    """
    return max(1, min(16, int(-150 / min(math.log10(least), -1e-3))))
