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


def located(x: Tensor) -> None:
    """z ~ N(loc, 1), x ~ N(z, 1), where loc is a parameter that starts at 0."""
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def positive(x: Tensor) -> None:
    """z ~ Gamma(2, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(slope: float, scale: float, shift: float = 0.0) -> Program:
    """z ~ N(slope x + shift, scale^2)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + shift, scale))

    return guide


def shared_mean(scale: float) -> Program:
    """mu ~ N(0, scale^2) for all rows; z ~ N(mu, 1), x ~ N(z, 1)."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def shared_mean_guide(loc: float, scale: float) -> Program:
    """mu ~ N(loc, scale^2) for all rows; z ~ p(z | x, mu) = N((mu + x) / 2, 1 / 2)."""

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(loc), scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))

    return guide


def mixture_prior(weights: Tensor, locs: Tensor, width: float, noise: float) -> Program:
    """z ~ N(locs[c], width^2) with c ~ Categorical(weights), which is summed out; x ~ N(z, noise^2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[c], width))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    return model


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
