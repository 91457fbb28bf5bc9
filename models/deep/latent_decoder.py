"""What models share whose decoder reads one latent vector."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vae.likelihoods import Likelihood, decoded
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import Network, require_at_least_one, require_object


class LatentDecoder(RowModel, ABC):
    """z ~ p(z), and x ~ p(x | decoder(z)), independently for every row.

    A model derives from this class and says what its likelihood and its prior are if none is given.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions.
        network: What builds the decoder.
        likelihood: p(x | features).
        prior: What p(z) is built from.

    Attributes:
        prior: The module that was built from the argument: `prior()` is p(z), of event shape `(latent_dim,)`.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `latent_dim` is not positive.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        network: Network,
        likelihood: Likelihood,
        prior: Prior,
    ) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, latent_dim=latent_dim)
        require_object(self, "network", network, "decoder", "MLP()")
        require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        require_object(self, "prior", prior, "build", "StandardNormal()")
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.decoder(latent_dim, out_shape)
        self.prior = prior.build(self.data_shape, latent_dim)

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self._likelihood(z, x), obs=x)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for latents `(*batch, latent_dim)`: batch shape `batch`."""
        return self._likelihood(z, None)

    def _likelihood(self, z: Tensor, x: Tensor | None) -> dist.TorchDistribution:
        return decoded(self.decoder, self.likelihood, z, self.data_shape, x)
