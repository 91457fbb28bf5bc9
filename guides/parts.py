"""What several guides need: positive scales, and the latent site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.poutine.runtime import InferDict
from torch import Tensor
from torch.nn.functional import softplus

from ppl_vae.distributions import MarkovChain, sample_steps


def positive(outputs: Tensor) -> Tensor:
    """softplus(outputs) + 1e-6: it grows linearly, so it cannot overflow, and never reaches 0."""
    return softplus(outputs) + 1e-6


def independent_normal(outputs: Tensor) -> dist.Independent:
    """N(loc, diag(positive(s)^2)) for outputs (loc, s), `(*batch, 2 * latent_dim)`."""
    loc, scale = outputs.chunk(2, -1)
    return dist.Independent(dist.Normal(loc, positive(scale)), 1)


def sample_z(q: dist.TorchDistribution, n: int) -> None:
    """Samples the site `z` from q in a plate over rows; of a Markov chain the sites `z_0`, `z_1`, ...

    A latent with finitely many values is marked for enumeration, so that the ELBO can sum over it.

    Args:
        q: q(z | x) of the batch, of batch shape `(n,)`.
        n: Number of rows.
    """
    is_chain = isinstance(q, MarkovChain)
    infer: InferDict = {}
    if is_chain or q.has_enumerate_support:
        infer = {"enumerate": "parallel"}
    with pyro.plate("data", n, dim=-1):
        if is_chain:
            sample_steps("z", q, infer=infer)
        else:
            pyro.sample("z", q, infer=infer)
