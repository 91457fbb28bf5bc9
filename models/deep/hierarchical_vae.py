"""The variational autoencoder with two layers of latents."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppl_vae.likelihoods import Bernoulli, Likelihood, decoded
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import (
    MLP,
    Network,
    full_precision,
    require_latent_dims,
    require_object,
)


class HierarchicalVAE(RowModel):
    """z2 ~ N(0, I), z1 ~ N(loc(z2), diag(scale(z2)^2)), x ~ p(x | decoder(z1)), for every row.

    The model with two stochastic layers from "Importance Weighted Autoencoders" (arXiv:1509.00519) and
    "Ladder Variational Autoencoders" (arXiv:1602.02282). The scale is softplus(s) + 1e-6 for an
    unbounded output s of the inner decoder. The sites are `z2`, `z1` and `x`, in this order, inside
    `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at `dim=-2`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dims: Numbers of dimensions of z1, the layer next to the data, and of z2, the top.
        network: What the decoder from z1 to x is built from.
        latent_network: What the decoder from z2 to z1 is built from.
        likelihood: p(x | features); `Bernoulli()` if none is given. It must fit the data: see
            `ppl_vae.likelihoods`.

    Raises:
        ValueError: `latent_dims` are not two positive numbers.

    Example:
        >>> model = HierarchicalVAE((1, 8, 8), latent_dims=(4, 2), network=MLP(hidden=(32,)))
        >>> z1 = model.conditional(torch.zeros(5, 2)).sample()
        >>> z1.shape, model.decode(z1).mean.shape
        (torch.Size([5, 4]), torch.Size([5, 1, 8, 8]))
    """

    prior_loc: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (20, 10),
        network: Network = MLP(),  # frozen
        latent_network: Network = MLP(hidden=(64, 64)),  # frozen
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__(data_shape)
        require_latent_dims(self, latent_dims)
        for name, given in (("network", network), ("latent_network", latent_network)):
            require_object(self, name, given, "decoder", "MLP()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        self.latent_dims = tuple(latent_dims)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        below, top = self.latent_dims
        self.inner_decoder = latent_network.decoder(top, (2 * below,))
        self.decoder = network.decoder(below, (self.likelihood.num_params, *self.data_shape))
        self.register_buffer("prior_loc", torch.zeros(top), persistent=False)

    def _program(self, x: Tensor) -> None:
        z2 = pyro.sample("z2", self.prior())
        z1 = pyro.sample("z1", self.conditional(z2))
        pyro.sample("x", self._likelihood(z1, x), obs=x)

    def prior(self) -> dist.Independent:
        """p(z2), of event shape `(latent_dims[1],)`."""
        return dist.Independent(dist.Normal(self.prior_loc, 1.0), 1)

    def conditional(self, z2: Tensor) -> dist.Independent:
        """p(z1 | z2) for z2 of `(*batch, latent_dims[1])`: batch shape `batch`."""
        loc, scale = full_precision(self.inner_decoder(z2)).chunk(2, -1)
        return dist.Independent(dist.Normal(loc, softplus(scale) + 1e-6), 1)

    def decode(self, z1: Tensor) -> dist.TorchDistribution:
        """p(x | z1) for z1 of `(*batch, latent_dims[0])`: batch shape `batch`."""
        return self._likelihood(z1, None)

    def _likelihood(self, z1: Tensor, x: Tensor | None) -> dist.TorchDistribution:
        return decoded(self.decoder, self.likelihood, z1, self.data_shape, x)
