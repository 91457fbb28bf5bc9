"""A latent path of states behind a sequence: what models of it share, whatever they learn of the chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.models.rows import require_shape
from ppl_vae.models.sequences.forward_backward import (
    best_paths,
    expected_paths,
    posterior_chain,
    steps_within,
    transitions_of,
)
from ppl_vae.networks import Rebuildable, require_at_least_one, require_data_shape, require_room
from ppl_vae.pairs import shared

Statistics = dict[str, Tensor]


class HiddenPath(Rebuildable, nn.Module, ABC):
    """z_0 ~ pi, z_t ~ A[z_{t-1}] and x_t ~ p(x_t | z_t): log p(x), posterior and E step, by sums over paths.

    Whether pi and A are learned, and whether a path is one Pyro site or many, is for the models to say. They
    set `initial_logits`, `(K,)`, and `transition_logits`, `(K, K)`, as parameters or as buffers.

    Args:
        data_shape: Shape of one row of the data, `(T, *event)`.
        states: Number K of states.

    Raises:
        ValueError: `states` is not positive, or `data_shape` has no steps.
    """

    initial_logits: Tensor
    transition_logits: Tensor
    whole: ClassVar[bool] = False
    """Whether a path is one site, `z`; otherwise each of its steps is one, `z_0`, `z_1`, ..."""

    def __init__(self, data_shape: Sequence[int], states: int) -> None:
        super().__init__()
        require_at_least_one(self, states=states)
        require_data_shape(self, data_shape)
        require_room(self, "choose fewer states", states, states)
        if not data_shape:
            raise ValueError(
                f"{type(self).__name__}.data_shape must begin with the number of steps, got ()"
            )
        self.data_shape = tuple(data_shape)
        self.states = states

    # -- what the emissions implement ----------------------------------------------------------------------

    @abstractmethod
    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x_t | z_t) for states `(*batch)`: batch shape `batch`, event shape `event`."""

    @abstractmethod
    def observe(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_t | z_t = k) of single steps `(N, *event)`, and their features.

        The first is `(K, N)`, fast and not differentiable. The features are what `emission_statistics` needs.
        """

    @abstractmethod
    def emission_statistics(self, features: Tensor, steps: Tensor, weights: Tensor) -> Statistics:
        """The sufficient statistics of single steps, by their features, under weights `(K, N)`."""

    @abstractmethod
    def maximize_emissions(self, statistics: Statistics) -> None:
        """Sets the emissions' parameters to the maximizer; `statistics["counts"]`, `(K,)`, are the weights."""

    # -- sums over paths -----------------------------------------------------------------------------------

    def prior(self, steps: int, lengths: Tensor | None = None) -> MarkovChain:
        """p(z) of paths of a number of steps: batch shape `()`, or `(n,)` for given lengths."""
        transition = self.transition_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)
        moves = transitions_of(transition, steps, lengths)
        return MarkovChain(self.initial_logits, moves, whole=self.whole)

    def log_evidence(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(x) of every sequence, `(n,)`, in nats. Gradients flow into the parameters.

        Data that no path can produce have about -1e30 instead of minus infinity.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        return self._posterior(x, lengths)[1]

    def posterior(self, x: Tensor, lengths: Tensor | None = None) -> MarkovChain:
        """p(z | x), of batch shape `(n,)` and event shape `(T,)`; `.mode` is the Viterbi path.

        Gradients flow into the parameters.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        return self._posterior(x, lengths)[0]

    def _posterior(self, x: Tensor, lengths: Tensor | None) -> tuple[MarkovChain, Tensor]:
        """p(z | x) and log p(x), by one pass over the steps, which they share."""

        def compute() -> tuple[MarkovChain, Tensor]:
            of_steps = self._of_steps(self._check(x, lengths))
            return posterior_chain(*self._log_chain(), of_steps, lengths, self.whole)

        return shared(self, "posterior", (x,) if lengths is None else (x, lengths), compute)

    def _of_steps(self, x: Tensor) -> Tensor:
        """log p(x_t | z_t = k) of every step and state, `(n, T, K)`; differentiable."""
        every = torch.arange(self.states, device=self.initial_logits.device)
        return self.decode(every).log_prob(x.unsqueeze(2))

    def first_problem(self, x: Tensor, lengths: Tensor | None = None) -> tuple[str, int] | None:
        """What makes data unusable and the first such row, or None if all are usable.

        `fit_em` calls it in place of running the program, which has a site for every step.

        Args:
            x: Sequences, `(n, T, *event)`.
            lengths: Their steps, `(n,)`.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        x = self._check(x, lengths)
        every = torch.arange(self.states, device=self.initial_logits.device)
        support: Any = self.decode(every).support
        finite = x.isfinite().reshape(*x.shape[:2], -1).all(-1)
        bad = ~(finite & support.check(x))
        if lengths is not None:
            bad &= steps_within(lengths, x.shape[1])
        if not bool(bad.any()):
            return None
        row, step = bad.nonzero()[0].tolist()
        value = x[row, step]
        if bool(value.isfinite().all()):
            low, high = float(value.min()), float(value.max())
            at = f"is {low:g}" if low == high else f"goes from {low:g} to {high:g}"
            return f"step {step} {at}, outside of the support of the emissions, {support}", row
        what = "NaN" if bool(value.isnan().any()) else "infinite"
        return f"step {step} is {what}: cut the sequence there, or remove it", row

    @torch.no_grad()
    def expected_statistics(
        self, x: Tensor, lengths: Tensor | None = None, *, hard: bool = False
    ) -> Statistics:
        """The E step's sufficient statistics under p(z | x), summed over the sequences, in float64.

        Args:
            x: Sequences, `(n, T, *event)`.
            lengths: Their steps, `(n,)`.
            hard: Put all of a sequence's weight on its likeliest path (Viterbi training).

        Returns:
            "initial", `(K,)`, and "transitions", `(K, K)`, expected counts; "counts", `(K,)`, expected steps in
            each state, and the other statistics of the emissions; "num_rows", the number of sequences;
            "log_evidence", the sum of log p(x), or if `hard` of max_z log p(x, z).

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        x = self._check(x, lengths)
        steps, inside = data_steps(x, lengths)
        log_p, features = self.observe(steps)
        if lengths is None:
            log_likelihood = log_p.T.unflatten(0, x.shape[:2])
        else:
            log_likelihood = log_p.new_zeros((*x.shape[:2], self.states))
            log_likelihood[inside] = log_p.T
        paths = (best_paths if hard else expected_paths)(
            *self._log_chain(), log_likelihood, lengths
        )
        of_steps = paths.states.movedim(-1, 0)
        weights = of_steps.flatten(1) if lengths is None else of_steps[:, inside]
        return {
            "initial": paths.states[:, 0].sum(0),
            "transitions": paths.transitions,
            **self._emissions(features, steps, weights),
            "log_evidence": paths.log_evidence,
            "num_rows": weights.new_tensor(len(x)),
        }

    def _emissions(self, features: Tensor, steps: Tensor, weights: Tensor) -> Statistics:
        counts = weights.sum(1)
        return {"counts": counts, **self.emission_statistics(features, steps, weights)}

    def _log_chain(self) -> tuple[Tensor, Tensor]:
        """log pi and log A, normalized."""
        initial = self.initial_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)
        return initial, self.transition_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)

    def _check(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The sequences, set to zero beyond their lengths."""
        name, event = type(self).__name__, self.data_shape[1:]
        require_shape(self, x, "steps", *event)
        if lengths is None:
            return x
        if lengths.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: lengths must have shape ({len(x)},), one for each sequence, got "
                f"{tuple(lengths.shape)}"
            )
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(f"{name}: lengths must be whole numbers, got {lengths.dtype}")
        least, most = lengths.min().item(), lengths.max().item()
        if least < 1 or most > x.shape[1]:
            raise ValueError(
                f"{name}: lengths must lie between 1 and {x.shape[1]}, the steps of x, but go from {least} "
                f"to {most}"
            )
        inside = steps_within(lengths, x.shape[1])
        return x.masked_fill(~inside.reshape(*inside.shape, *(1 for _ in event)), 0)


def data_steps(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The steps that are data, `(N, *event)`, and where they are, `(n, T)`."""
    if lengths is None:
        return x.flatten(0, 1), torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    inside = steps_within(lengths, x.shape[1])
    return x[inside], inside
