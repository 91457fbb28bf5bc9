"""A small pair to train, and what the tests of a training do with it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import fit
from ppl_vae.capture.recording import Recording
from ppl_vae.pairs import Pair
from ppl_vae.training import Fit
from ppl_vae.training.held_out import HeldOut

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
HELD_OUT = torch.randn(20, 3, generator=torch.Generator().manual_seed(6))


class Model(nn.Module):
    """z ~ N(0, I_2), x ~ N(W z + b, 1/2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.decoder = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)


class Guide(nn.Module):
    """z ~ N(A x + a, S^2), with a diagonal S."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.encoder = nn.Linear(3, 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.encoder(x), self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


def weights(model: Any, guide: Any) -> dict[str, Tensor]:
    """A copy of all that the pair learns, and of its buffers."""
    return {n: t.clone() for n, t in Pair.of(model, guide).state().items()}


def train(x: Any = X, model: Any = None, guide: Any = None, **options: Any) -> tuple[Fit, Any]:
    """A fit of a fresh pair, and the weights that it ends with."""
    model, guide = model or Model(), guide or Guide()
    options = {"max_epochs": 3, "batch_size": 16, "seed": 1} | options
    fitted = fit(model, guide, x, **options)
    return fitted, weights(model, guide)


def as_if_compiled(self: Recording) -> None:
    """In the place of `Recording.compile`: changes the last bits, as Inductor does in ten seconds."""
    self.compiled = True
    self.run = lambda *inputs: [
        t if i == 0 or t is None else t * (1 + 1e-6)
        for i, t in enumerate(self.graph.forward(*inputs))
    ]


compilers = pytest.mark.parametrize(
    "compiler", [as_if_compiled, pytest.param(Recording.compile, marks=pytest.mark.slow)]
)
"""Both of them, for tests that a stand-in suits."""


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def seeded(x: Tensor) -> Tensor:
    """A transform that changes nothing and seeds what comes after it."""
    torch.manual_seed(7)
    return x


def scripted(monkeypatch: pytest.MonkeyPatch, elbos: list[float]) -> list[dict[str, Tensor]]:
    """Lets the held-out ELBOs of the epochs be these, and collects the weights at each of them."""
    seen: list[dict[str, Tensor]] = []
    measure = HeldOut.measure

    def found(self: HeldOut, seed: int, epoch: int) -> dict[str, float]:
        seen.append({n: t.clone() for n, t in self.pair.state().items()})
        return measure(self, seed, epoch) | {"validation_elbo": elbos[len(seen) - 1]}

    monkeypatch.setattr(HeldOut, "measure", found)
    return seen


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table by the names of its columns."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
