"""Hidden Markov models: a latent path of states, summed out exactly."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.models.mixtures.components import EMPTY
from ppl_vae.models.rows import require_shape
from ppl_vae.models.sequences.forward_backward import (
    best_paths,
    expected_paths,
    posterior_chain,
    steps_within,
    transitions_of,
)
from ppl_vae.networks import Rebuildable, require_at_least_one, require_data_shape, require_room

Statistics = dict[str, Tensor]


class HiddenMarkov(Rebuildable, nn.Module, ABC):
    """z_0 ~ pi, z_t ~ A[z_{t-1}] and x_t ~ p(x_t | z_t): what the models share, whatever their emissions.

    log p(x), the posterior p(z | x) (itself a Markov chain) and the EM step are sums over all K^T paths,
    which take T K^2 operations (Rabiner 1989, "A Tutorial on Hidden Markov Models and Selected Applications in
    Speech Recognition"; the EM step is the Baum-Welch algorithm).

    Data are sequences `x`, `(n, T, *event)`, all of T steps, or a tuple `(x, lengths)` with the number of
    steps of each, at least 1. Values of `x` beyond a sequence's length are ignored; the latent chain stays in
    its last state there. T may differ from call to call.

    The sites are `z_0`, `x_0`, `z_1`, `x_1`, ... inside `pyro.plate("data", n, dim=-1)`; plates over samples
    go outside, at `dim=-2`. The latents are marked for enumeration, so that Pyro sums them out with an empty
    guide (`EnumELBO`).

    To write your own emissions, derive from this class and implement the abstract methods.

    Args:
        data_shape: Shape of one row of the data, `(T, *event)`.
        states: Number K of states.

    Attributes:
        initial_logits: log pi up to a constant, `(K,)`.
        transition_logits: log A up to a constant per row, from row to column, `(K, K)`.

    Raises:
        ValueError: `states` is not positive, or `data_shape` has no steps.
    """

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
        self.initial_logits = nn.Parameter(torch.zeros(states))
        self.transition_logits = nn.Parameter(torch.zeros(states, states))

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

    @abstractmethod
    def initialize_emissions(self, steps: Tensor, seed: int) -> Tensor:
        """Sets parameters to start from for single steps `(N, *event)`, and returns their weights `(K, N)`."""

    @abstractmethod
    def split_emissions(self, source: int, target: int) -> None:
        """Copies the emissions of a state to another, and moves the two slightly apart."""

    # -- the Pyro program ----------------------------------------------------------------------------------

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Runs the model on sequences `(n, T, *event)`, with their `lengths`, `(n,)`, if they differ.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        x = self._check(x, lengths)
        chain = self.prior(x.shape[1], lengths)
        z: Tensor | None = None
        with pyro.plate("data", x.shape[0], dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", chain.step(t, z), infer={"enumerate": "parallel"})
                inside: Any = True if lengths is None else t < lengths
                with poutine.mask(mask=inside):
                    pyro.sample(f"x_{t}", self.decode(z), obs=x[:, t])

    def prior(self, steps: int, lengths: Tensor | None = None) -> MarkovChain:
        """p(z) of paths of a number of steps: batch shape `()`, or `(n,)` for given lengths."""
        transition = self.transition_logits.clamp_min(IMPOSSIBLE).log_softmax(-1)
        return MarkovChain(self.initial_logits, transitions_of(transition, steps, lengths))

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
        x = self._check(x, lengths)
        every = torch.arange(self.states, device=self.initial_logits.device)
        log_likelihood = self.decode(every).log_prob(x.unsqueeze(2))
        return posterior_chain(*self._log_chain(), log_likelihood, lengths)

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

    # -- expectation maximization --------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, lengths: Tensor | None = None, *, seed: int) -> None:
        """Starts EM from the emissions' labels of single steps, and from how often these follow each other.

        Every transition counts once more than it is seen, so that none is impossible.

        Args:
            x: Sequences, `(n, T, *event)`.
            lengths: Their steps, `(n,)`.
            seed: Random seed of the start.

        Raises:
            ValueError: Shapes or lengths do not fit.
        """
        x = self._check(x, lengths)
        steps, inside = _data_steps(x, lengths)
        weights = self.initialize_emissions(steps, seed)
        labels = weights.new_zeros((*inside.shape, self.states))
        labels[inside] = weights.T
        initial = labels[:, 0].sum(0) + 1.0
        transition = torch.einsum("nti,ntj->ij", labels[:, :-1], labels[:, 1:]) + 1.0
        self.initial_logits.copy_((initial / initial.sum()).log())
        self.transition_logits.copy_((transition / transition.sum(-1, keepdim=True)).log())
        _, features = self.observe(steps)
        statistics = self._emissions(features, steps, weights)
        self.maximize_emissions(statistics)
        self._split_empty(statistics["counts"])

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
        steps, inside = _data_steps(x, lengths)
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

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """M step: sets the parameters to the maximizer of the expected log p(x, z).

        A state that nothing follows keeps its transitions. A state without steps is replaced by one split off
        from the state with the most steps, with a warning.

        Args:
            statistics: Those of an E step.
        """
        initial, transitions = statistics["initial"], statistics["transitions"]
        self.initial_logits.copy_((initial / initial.sum()).log().clamp_min(IMPOSSIBLE))
        leaving = transitions.sum(-1, keepdim=True)
        seen = (leaving > 0).squeeze(-1)
        rows = (transitions / leaving)[seen].log().clamp_min(IMPOSSIBLE)
        self.transition_logits[seen] = rows.to(self.transition_logits.dtype)
        self.maximize_emissions(statistics)
        self._split_empty(statistics["counts"])

    def _split_empty(self, counts: Tensor) -> None:
        """Gives every state without steps half of the largest one: its emissions and its transitions."""
        counts = counts.clone()
        for empty in (counts <= EMPTY * counts.sum()).nonzero().flatten().tolist():
            largest = int(counts.argmax())
            warnings.warn(
                f"state {empty} has no steps: it was split off from state {largest}, the largest",
                stacklevel=3,
            )
            self.split_emissions(largest, empty)
            for logits in (self.initial_logits, self.transition_logits):
                logits[..., largest] -= math.log(2)
                logits[..., empty] = logits[..., largest]
            self.transition_logits[empty] = self.transition_logits[largest]
            counts[largest] /= 2
            counts[empty] = counts[largest]

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


def _data_steps(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The steps that are data, `(N, *event)`, and where they are, `(n, T)`."""
    if lengths is None:
        return x.flatten(0, 1), torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    inside = steps_within(lengths, x.shape[1])
    return x[inside], inside
