"""What models share whose decoder reads a latent and a label or attributes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.likelihoods import Bernoulli, Likelihood, decoded
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.normal import StandardNormal
from ppl_vae.networks import (
    Context,
    Network,
    Rebuildable,
    require_at_least_one,
    require_data_shape,
    require_object,
)


class ContextDecoder(Rebuildable, nn.Module, ABC):
    """p(z) and p(x | decoder(z, c)), where c is a label or attributes.

    A model derives from this class and says in `forward` where c comes from.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of dimensions of z.
        network: What the decoder is built from: it reads z and the context's vector, one after the other.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z) is built from; `StandardNormal()` if none is given.
        context: What c is.

    Raises:
        TypeError: An argument is not what it must be, or the prior is made of the guide's q(z | x), which reads
            more than x here.
        ValueError: `latent_dim` is not positive.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        network: Network,
        likelihood: Likelihood | None,
        prior: Prior | None,
        context: Context,
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_at_least_one(self, latent_dim=latent_dim)
        require_object(self, "network", network, "decoder", "MLP()")
        require_object(self, "context", context, "size", "Labels(10)")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        if prior is not None:
            require_object(self, "prior", prior, "build", "StandardNormal()")
        self.data_shape = tuple(data_shape)
        self.latent_dim = latent_dim
        self.context = context
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.decoder(latent_dim + context.size, out_shape)
        self.prior = (prior or StandardNormal()).build(self.data_shape, latent_dim)
        if any(hasattr(part, "attach_guide") for part in self.prior.modules()):
            raise TypeError(
                f"{type(self).__name__}.prior: {type(prior).__name__} is made of a guide's q(z | x), but the "
                "guide of this model reads more than x: choose MixturePrior or FlowPrior"
            )

    def _likelihood(self, z: Tensor, c: Tensor, x: Tensor | None) -> dist.TorchDistribution:
        """p(x | z, c), of batch dimensions that are broadcast."""
        vector = self.context(c)
        batch = torch.broadcast_shapes(z.shape[:-1], vector.shape[:-1])
        both = (part.to(z.dtype).expand(*batch, part.shape[-1]) for part in (z, vector))
        joined = torch.cat([*both], -1)
        return decoded(self.decoder, self.likelihood, joined, self.data_shape, x)
