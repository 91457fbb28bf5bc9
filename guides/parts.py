"""What several guides need: positive scales, and the latent site."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
from pyro.poutine.runtime import InferDict
from torch import Tensor
from torch.nn.functional import softplus

from ppl_vae.distributions import MarkovChain, sample_steps

LEAST = 1e-6
"""The least scale of a normal."""


def positive(outputs: Tensor) -> Tensor:
    """softplus(outputs) + 1e-6: it grows linearly, so it cannot overflow, and never reaches 0."""
    return softplus(outputs) + LEAST


def committed_scale(rate: float) -> float:
    """The largest scale s of a normal whose KL to N(0, 1) is at least `rate` nats for every mean.

    The root below 1 of (s^2 - 1) / 2 - log s = rate, to the last digit but six: never above it.

    Example:
        >>> round(committed_scale(0.1), 4)
        0.7023
    """
    low, high = math.exp(-rate - 0.5), 1.0  # where the KL is above the rate, and not above it
    for _ in range(200):
        middle = (low + high) / 2
        if (middle - 1) * (middle + 1) / 2 - math.log(middle) > rate:
            low = middle
        else:
            high = middle
    return low * (1 - 1e-6)


def independent_normal(outputs: Tensor, largest: float | None = None) -> dist.Independent:
    """N(loc, diag(scale^2)) for outputs (loc, s), `(*batch, 2 * latent_dim)`.

    Args:
        outputs: Any real numbers.
        largest: The scale is positive(s), or, with this, 1e-6 + (largest - 1e-6) sigmoid(s).
    """
    loc, raw = outputs.chunk(2, -1)
    scale = positive(raw) if largest is None else LEAST + (largest - LEAST) * raw.sigmoid()
    return dist.Independent(dist.Normal(loc, scale), 1)


def sample_z(q: dist.TorchDistribution, n: int) -> None:
    """Samples the site `z` from q in a plate over rows.

    Of a Markov chain it samples the sites `z_0`, `z_1`, ..., if it is not `whole`. A latent with finitely
    many values is marked for enumeration, so that the ELBO can sum over it.

    Args:
        q: q(z | x) of the batch, of batch shape `(n,)`.
        n: Number of rows.
    """
    chain = q if isinstance(q, MarkovChain) and not q.whole else None
    infer: InferDict = {}
    if chain is not None or q.has_enumerate_support:
        infer = {"enumerate": "parallel"}
    with pyro.plate("data", n, dim=-1):
        if chain is not None:
            sample_steps("z", chain, infer=infer)
        else:
            pyro.sample("z", q, infer=infer)
