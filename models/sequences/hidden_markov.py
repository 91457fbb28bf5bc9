"""Hidden Markov models: a latent path of states, summed out exactly."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_vae.distributions import IMPOSSIBLE
from ppl_vae.models.mixtures.components import EMPTY
from ppl_vae.models.sequences.hidden_path import HiddenPath, Statistics, data_steps


class HiddenMarkov(HiddenPath):
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
        super().__init__(data_shape, states)
        self.initial_logits = nn.Parameter(torch.zeros(states))
        self.transition_logits = nn.Parameter(torch.zeros(states, states))

    # -- what the emissions implement, beside what `HiddenPath` asks for -------------------------------------

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
        steps, inside = data_steps(x, lengths)
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
