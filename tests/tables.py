"""Pairs whose latent and rows have few values: all their densities are tables, all expectations are sums."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn


class Table(nn.Module):
    """z and x are categories: p(z), p(x | z) are tables of logits."""

    def __init__(
        self, values: int = 3, symbols: int = 4, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.prior = nn.Parameter(torch.randn(values, generator=generator, dtype=dtype))
        self.rows = nn.Parameter(torch.randn(values, symbols, generator=generator, dtype=dtype))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Categorical(logits=self.rows[z]), obs=x)

    def joint(self) -> Tensor:
        """log p(z, x), `(values, symbols)`."""
        return self.prior.log_softmax(0)[:, None] + self.rows.log_softmax(1)


class Reader(nn.Module):
    """q(z | x) is a table of logits."""

    def __init__(
        self,
        values: int = 3,
        symbols: int = 4,
        dtype: torch.dtype = torch.float32,
        summed: bool = False,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = nn.Parameter(torch.randn(symbols, values, generator=generator, dtype=dtype))
        self.infer: InferDict = {"enumerate": "parallel"} if summed else {}

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.logits[x]), infer=self.infer)


class Listed(dist.Categorical):
    """A `Categorical` whose draw is given, so that sums over all draws can be taken."""

    listed: Tensor

    @classmethod
    def of(cls, logits: Tensor, listed: Tensor) -> Listed:
        made = cls(logits=logits)
        made.listed = listed
        return made

    def expand(self, batch_shape: Any, _instance: Any = None) -> Listed:
        made: Listed = super().expand(batch_shape, _instance)  # type: ignore[no-untyped-call]
        made.listed = self.listed
        return made

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.listed


class CopiedPair:
    """The pair of a `Table` and a `Reader` with a copy of their tables for each row, and draws that are given.

    The gradient of a mean over rows by the copy of row r is that of row r, so that sums over all rows and draws
    can have any weights.

    Args:
        table: The model.
        reader: The guide.
        z: What the guide draws, a value for each row.
        x: What the model draws where x is not observed, likewise.
    """

    def __init__(self, table: Table, reader: Reader, z: Tensor, x: Tensor) -> None:
        def copies(tensor: Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.detach().expand(len(x), *tensor.shape).clone())

        prior, tables, logits = (copies(t) for t in (table.prior, table.rows, reader.logits))
        each = torch.arange(len(x))

        def model(given: Tensor) -> None:
            with pyro.plate("data", len(x)):
                found = pyro.sample("z", dist.Categorical(logits=prior))
                p = Listed.of(tables[each, found], x)
                pyro.sample("x", p, obs=given)

        def guide(given: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", Listed.of(logits[each, given], z))

        self.programs = model, guide
        self.leaves = {"prior": prior, "rows": tables, "q": logits}

    def gradients(self, loss: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of each table, of the sum of the rows' losses with these weights, `(n,)`."""
        names, leaves = zip(*self.leaves.items(), strict=True)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        n = len(weights)
        return {
            name: torch.zeros_like(leaf[0]) if g is None else n * torch.tensordot(weights, g, 1)
            for name, leaf, g in zip(names, leaves, found, strict=True)
        }
