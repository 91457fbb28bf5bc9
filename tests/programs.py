"""Small pairs that many tests use, written for plain Pyro and with closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.pairs import Program


def normal(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): then x ~ N(0, 2), and p(z | x) = N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def positive(x: Tensor) -> None:
    """z ~ Gamma(2, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(slope: float, scale: float) -> Program:
    """z ~ N(slope x, scale^2)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return guide


def coin(x: Tensor) -> None:
    """c ~ Bernoulli(0.3), x ~ N(2 c - 1, 1)."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)


def coin_guide(slope: float) -> Program:
    """c ~ Bernoulli with the logit slope x."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x))

    return guide
