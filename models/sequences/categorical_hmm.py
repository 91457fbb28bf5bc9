"""The hidden Markov model for sequences of symbols."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_vae.models.mixtures.components import split_logits
from ppl_vae.models.sequences.categorical_emissions import CategoricalEmissions
from ppl_vae.models.sequences.hidden_markov import HiddenMarkov


class CategoricalHMM(CategoricalEmissions, HiddenMarkov):
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
        self._set_symbols(symbols)
        # Equal states would stay equal: start apart.
        self.emission_logits = nn.Parameter(torch.randn(states, symbols))

    @property
    def table(self) -> Tensor:
        """See `CategoricalEmissions`."""
        return self.emission_logits

    def initialize_emissions(self, steps: Tensor, seed: int) -> Tensor:
        """Weights are random, one draw per symbol, so that all states differ."""
        generator = torch.Generator().manual_seed(seed)
        shares = torch.rand(self.symbols, self.states, generator=generator, dtype=torch.float64)
        shares = shares.clamp_min(1e-3) / shares.clamp_min(1e-3).sum(-1, keepdim=True)
        return shares.to(steps.device)[self._symbols(steps)].T

    def split_emissions(self, source: int, target: int) -> None:
        split_logits(self.emission_logits, source, target)
