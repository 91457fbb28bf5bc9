"""Emissions of symbols: a table of probabilities, one row for each state."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.models.sequences.hidden_path import HiddenPath, Statistics
from ppl_vae.networks import require_at_least_one, require_room


class CategoricalEmissions(HiddenPath, ABC):
    """x_t | z_t ~ Categorical(B[z]): what models of paths with such emissions share.

    Attributes:
        symbols: Number of symbols. The data are the whole numbers 0, ..., symbols - 1.
    """

    symbols: int

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """The parameter: log B up to a constant per row, `(K, symbols)`."""

    def _set_symbols(self, symbols: int) -> None:
        """Checks the constructor's shape and number of symbols."""
        if len(self.data_shape) != 1:
            raise ValueError(
                f"{type(self).__name__}.data_shape must be (steps,), got {self.data_shape}"
            )
        require_at_least_one(self, symbols=symbols)
        require_room(self, "choose fewer states or symbols", self.states, symbols)
        self.symbols = symbols

    def decode(self, z: Tensor) -> dist.Categorical:
        """p(x_t | z_t) for states `(*batch)`: batch shape `batch`."""
        return dist.Categorical(logits=self.table[z])

    def observe(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        symbols = self._symbols(steps)
        return self.table.double().log_softmax(-1)[:, symbols], symbols

    def emission_statistics(self, features: Tensor, steps: Tensor, weights: Tensor) -> Statistics:
        table = weights.new_zeros((self.states, self.symbols))
        return {"symbols": table.index_add_(1, features, weights)}

    def maximize_emissions(self, statistics: Statistics) -> None:
        seen = statistics["counts"] > 0
        rows = statistics["symbols"][seen] / statistics["counts"][seen].unsqueeze(-1)
        self.table[seen] = rows.log().clamp_min(IMPOSSIBLE).to(self.table.dtype)

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
                f"{type(self).__name__} has symbols 0, ..., {self.symbols - 1}, but x goes from "
                f"{int(symbols.min())} to {int(symbols.max())}: pass their number as symbols, or another model "
                "for data that are no symbols"
            )
        return symbols
