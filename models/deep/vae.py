"""The generative half of the variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_vae.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.deep.latent_decoder import LatentDecoder
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.normal import StandardNormal
from ppl_vae.networks import MLP, Network


class VAE(LatentDecoder):
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
        super().__init__(
            data_shape,
            latent_dim,
            network,
            Bernoulli() if likelihood is None else likelihood,
            StandardNormal() if prior is None else prior,
        )
