"""The encoder of an autoencoder: a guide that gives a point."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.guides.amortized import Amortized
from ppl_vae.networks import MLP, Context, Network, require_at_least_one, require_switches


class DeltaEncoder(Amortized[dist.Delta]):
    """q(z | x) = delta(z - f(x)): all mass is on one code, which a network computes.

    It is the encoder of an `Autoencoder`. The point has no density, so that there is no log p(x) by importance
    sampling, and no ELBO: `evaluate` says so. What is trained is log p(x | f(x)) + log p(f(x)), where the last
    term is a penalty on the code (a `LaplacePrior` makes it sparse), or nothing (a `FlatPrior`). With the prior
    of a VAE, what it aims at is the most probable code.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of dimensions of the code, the model's.
        network: What the encoder is built from.
        context: See `Amortized`.
        linear: Whether f is one affine map of the data; the network is then not used.
        nonnegative: Whether the code is relu(f(x)), so that numbers of it can be exactly 0.
        top_k: How many numbers of the code stay, those of largest size in each row; the others are 0 ("k-Sparse
            Autoencoders", arXiv:1312.5663). None leaves all. They are also ranked while the pair is evaluated.

    Raises:
        TypeError: `linear` or `nonnegative` is neither True nor False, or `top_k` is no whole number.
        ValueError: `latent_dim` is not positive, or `top_k` is not from 1 to `latent_dim`.

    Example:
        >>> guide = DeltaEncoder((1, 8, 8), latent_dim=6, network=MLP(hidden=(32,)), top_k=2)
        >>> z = guide.encode(torch.rand(5, 1, 8, 8)).mean
        >>> z.shape, (z != 0).sum(1)
        (torch.Size([5, 6]), tensor([2, 2, 2, 2, 2]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        context: Context | None = None,
        linear: bool = False,
        nonnegative: bool = False,
        top_k: int | None = None,
    ) -> None:
        require_switches(self, linear=linear, nonnegative=nonnegative)
        if top_k is not None:
            require_at_least_one(self, top_k=top_k)
            if isinstance(latent_dim, int) and top_k > latent_dim:
                raise ValueError(
                    f"DeltaEncoder.top_k must be at most latent_dim = {latent_dim}, got {top_k}"
                )
        super().__init__(data_shape, latent_dim, MLP(hidden=()) if linear else network, context)
        self.linear = linear
        self.nonnegative = nonnegative
        self.top_k = top_k

    def family(self, outputs: Tensor) -> dist.Delta:
        """The point at the code of outputs `(*batch, latent_dim)`."""
        z = outputs.relu() if self.nonnegative else outputs
        if self.top_k is not None:
            kept = z.abs().topk(self.top_k, -1).indices
            z = torch.zeros_like(z).scatter(-1, kept, z.gather(-1, kept))
        return dist.Delta(z, event_dim=1)

    @property
    def num_outputs(self) -> int:
        """One per latent dimension."""
        return self.latent_dim
