"""The amortized guide of a hidden Markov model: a Markov chain whose transitions come from a GRU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ppl_vae.distributions import IMPOSSIBLE, MarkovChain
from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import (
    Rebuildable,
    full_precision,
    require_at_least_one,
    require_data_shape,
    require_room,
    require_switches,
)


class Recurrent(Rebuildable, nn.Module):
    """q(z | x) = q(z_0 | x) prod_t q(z_t | z_{t-1}, x), the tables from a bidirectional GRU over x.

    The exact posterior of a hidden Markov model is such a chain: with a perfect network the gap would be 0.
    At the start all transitions are almost uniform.

    The sites are `z_0`, `z_1`, ..., inside `pyro.plate("data", n, dim=-1)`, and marked for enumeration: with
    `ELBO` or `EnumELBO` the bound and its gradient are exact, in T K^2 operations per row; with `TraceELBO`
    paths are sampled and the gradient is that of the score function. The GRU runs once per row, however
    many samples are drawn. For a model that draws the path at one site, so does the guide with `whole=True`.

    Args:
        data_shape: Shape of one row of the data, `(T, *event)`; T may differ from call to call.
        states: Number K of states, the model's.
        hidden: Width of the GRU, in each direction.
        symbols: For data of whole numbers 0, ..., symbols - 1, which enter as one-hot vectors; None for
            real numbers.
        whole: Whether the path is one site, `z`, as in `SubstitutionCipher`. `ELBO` is `ElementwiseELBO` then,
            as exact, and saves what a site for each step costs.

    Raises:
        ValueError: `states`, `hidden` or `symbols` is not positive.

    Example:
        >>> guide = Recurrent((20, 2), states=3, hidden=16)
        >>> q = guide.encode(torch.rand(5, 20, 2), torch.tensor([20, 3, 7, 20, 1]))
        >>> q.batch_shape, q.event_shape, q.marginals.shape
        (torch.Size([5]), torch.Size([20]), torch.Size([5, 20, 3]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        states: int = 2,
        hidden: int = 32,
        symbols: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        if not data_shape:
            raise ValueError("Recurrent.data_shape must begin with the number of steps, got ()")
        require_at_least_one(self, states=states, hidden=hidden)
        require_room(self, "choose a smaller hidden", 3 * hidden, hidden)
        require_room(self, "choose fewer states", 2 * hidden, states, states)
        if symbols is not None:
            require_at_least_one(self, symbols=symbols)
        require_switches(self, whole=whole)
        self.whole = whole
        self.states = states
        self.symbols = symbols
        size = math.prod(data_shape[1:]) if symbols is None else symbols
        self.gru = nn.GRU(size, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, states * states)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.zero_()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Runs the guide on sequences `(n, T, *event)`, with their `lengths` `(n,)` if they differ."""
        sample_z(self.encode(x, lengths), x.shape[0])

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> MarkovChain:
        """q(z | x), of batch shape `(n,)` and event shape `(T,)`."""
        return self.family(self.amortize(x, lengths))

    def amortize(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The GRU's outputs, `(n, T * K * K)`, which `family` turns into a chain."""
        steps = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
        if self.symbols is not None:
            steps = one_hot(steps.squeeze(-1).long(), self.symbols)
        steps = steps.to(self.head.weight.dtype)
        total = x.shape[1]
        if lengths is None:
            features, _ = self.gru(steps)
        else:
            packed = pack_padded_sequence(
                steps, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            features, _ = pad_packed_sequence(
                self.gru(packed)[0], batch_first=True, total_length=total
            )
        outputs = full_precision(self.head(features)).unflatten(-1, (self.states, self.states))
        if lengths is not None:
            # Beyond the length of its row the chain stays where it is, as the model's does.
            stay = torch.full_like(outputs[0, 0], IMPOSSIBLE).fill_diagonal_(0.0)
            inside = torch.arange(total, device=x.device) < lengths.unsqueeze(-1)
            outputs = torch.where(inside[:, :, None, None], outputs, stay)
        flat: Tensor = outputs.flatten(1)
        return flat

    def family(self, outputs: Tensor) -> MarkovChain:
        """The chain for any real outputs `(*batch, T * K * K)`.

        They are a table of logits from state to state per step; of the first only the first row counts.
        """
        tables = outputs.unflatten(-1, (-1, self.states, self.states))
        return MarkovChain(tables[..., 0, 0, :], tables[..., 1:, :, :], whole=self.whole)
