"""The generative half of the variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vae.likelihoods import Bernoulli, Likelihood, decoded
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.normal import StandardNormal
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import MLP, Network, require_at_least_one, require_object


class VAE(RowModel):
    """A latent from a prior, decoded by a network into the parameters of a likelihood.

    z ~ p(z), which is N(0, I) unless another prior is given, and x ~ p(x | decoder(z)),
    independently for every row ("Auto-Encoding Variational Bayes", arXiv:1312.6114). The sites are
    `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at `dim=-2`.
    The decoder of an `AutoregressiveDecoder` also reads the row: p(x | z) = prod_i p(x_i | x_<i, z).

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions.
        network: What builds the decoder.
        likelihood: p(x | features); `Bernoulli()` if none is given. It must fit the data: see
            `ppl_vae.likelihoods`.
        prior: What p(z) is built from; `StandardNormal()` if none is given.

    Attributes:
        prior: The module that was built from the argument: `prior()` is p(z), of event shape `(latent_dim,)`.

    Raises:
        ValueError: `latent_dim` is not positive.

    Example:
        >>> import torch
        >>> model = VAE((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> model.decode(torch.zeros(5, 2)).mean.shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, latent_dim=latent_dim)
        require_object(self, "network", network, "decoder", "MLP()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        if prior is not None:
            require_object(self, "prior", prior, "build", "StandardNormal()")
        self.latent_dim = latent_dim
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.decoder(latent_dim, out_shape)
        self.prior = (prior or StandardNormal()).build(self.data_shape, latent_dim)

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self._likelihood(z, x), obs=x)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for latents `(*batch, latent_dim)`: batch shape `batch`."""
        return self._likelihood(z, None)

    def _likelihood(self, z: Tensor, x: Tensor | None) -> dist.TorchDistribution:
        return decoded(self.decoder, self.likelihood, z, self.data_shape, x)
