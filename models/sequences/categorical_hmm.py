"""The hidden Markov model for sequences of symbols."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.models.mixtures.components import split_logits
from ppl_vae.models.sequences.hidden_markov import HiddenMarkov, Statistics
from ppl_vae.networks import require_at_least_one, require_room


class CategoricalHMM(HiddenMarkov):
    """A hidden Markov model with x_t | z_t ~ Categorical(B[z]). See `HiddenMarkov`.

    Args:
        data_shape: Shape of one row of the data, `(T,)`; T may differ from call to call.
        states: Number K of states.
        symbols: Number of symbols. The data are the whole numbers 0, ..., symbols - 1.

    Attributes:
        emission_logits: log B up to a constant per row, `(K, symbols)`.

    Raises:
        ValueError: `states` or `symbols` is not positive, or `data_shape` is not `(T,)`.

    Example:
        >>> x = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]])
        >>> model = CategoricalHMM((6,), states=2, symbols=3)
        >>> model.log_evidence(x, torch.tensor([6, 5])).shape
        torch.Size([2])
    """

    def __init__(self, data_shape: Sequence[int], states: int = 2, symbols: int = 2) -> None:
        super().__init__(data_shape, states)
        if len(self.data_shape) != 1:
            raise ValueError(f"CategoricalHMM.data_shape must be (steps,), got {self.data_shape}")
        require_at_least_one(self, symbols=symbols)
        require_room(self, "choose fewer states or symbols", states, symbols)
        self.symbols = symbols
        # Equal states would stay equal: start apart.
        self.emission_logits = nn.Parameter(torch.randn(states, symbols))

    def decode(self, z: Tensor) -> dist.Categorical:
        """p(x_t | z_t) for states `(*batch)`: batch shape `batch`."""
        return dist.Categorical(logits=self.emission_logits[z])

    def observe(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        symbols = self._symbols(steps)
        return self.emission_logits.double().log_softmax(-1)[:, symbols], symbols

    def emission_statistics(self, features: Tensor, steps: Tensor, weights: Tensor) -> Statistics:
        table = weights.new_zeros((self.states, self.symbols))
        return {"symbols": table.index_add_(1, features, weights)}

    def maximize_emissions(self, statistics: Statistics) -> None:
        seen = statistics["counts"] > 0
        rows = statistics["symbols"][seen] / statistics["counts"][seen].unsqueeze(-1)
        self.emission_logits[seen] = rows.log().clamp_min(IMPOSSIBLE).to(self.emission_logits.dtype)

    def initialize_emissions(self, steps: Tensor, seed: int) -> Tensor:
        """Weights are random, one draw per symbol, so that all states differ."""
        generator = torch.Generator().manual_seed(seed)
        shares = torch.rand(self.symbols, self.states, generator=generator, dtype=torch.float64)
        shares = shares.clamp_min(1e-3) / shares.clamp_min(1e-3).sum(-1, keepdim=True)
        return shares.to(steps.device)[self._symbols(steps)].T

    def split_emissions(self, source: int, target: int) -> None:
        split_logits(self.emission_logits, source, target)

    def _posterior(self, x: Tensor, lengths: Tensor | None) -> tuple[MarkovChain, Tensor]:
        try:
            return super()._posterior(x, lengths)
        except (RuntimeError, IndexError):  # a look at all values first could not be captured
            self._symbols(self._check(x, lengths))
            raise

    def _symbols(self, steps: Tensor) -> Tensor:
        symbols = steps.long()
        if len(symbols) and not 0 <= int(symbols.min()) <= int(symbols.max()) < self.symbols:
            raise ValueError(
                f"CategoricalHMM has symbols 0, ..., {self.symbols - 1}, but x goes from "
                f"{int(symbols.min())} to {int(symbols.max())}: pass their number as symbols, or another model "
                "for data that are no symbols"
            )
        return symbols
