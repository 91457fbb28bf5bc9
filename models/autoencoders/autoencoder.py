"""The decoder of an autoencoder, as a generative model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_vae.likelihoods import Gaussian, LearnedGaussian, Likelihood, OptimalGaussian
from ppl_vae.models.deep.latent_decoder import LatentDecoder
from ppl_vae.models.linear.linear_gaussian import LinearGaussian
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.flat import FlatPrior
from ppl_vae.models.priors.normals import normals_of
from ppl_vae.models.rows import as_vectors
from ppl_vae.networks import MLP, Network, require_switches


class Autoencoder(LatentDecoder):
    """A code without a density, and a row decoded from it: p(x | z) alone.

    With the guide `DeltaEncoder`, z = f(x), what `fit` minimizes is the distortion -log p(x | f(x)). With
    `Gaussian(sigma=1)`, the default, that is |x - decoder(f(x))|^2 / 2, half of the squared error, and a
    constant ("Reducing the Dimensionality of Data with Neural Networks", Science 313, 2006). `evaluate` finds
    the distortion, and says that there is neither an ELBO nor log p(x).

    A density of the codes is fitted afterwards, `refit_prior(model, guide, x, MixturePrior(20))`: then there is
    a p(x) that rows can be drawn from. With a penalty from the start, `prior=LaplacePrior(scale=0.1)`, the
    autoencoder is sparse.

    The limit of a VAE: with a noise sigma -> 0 the rate costs nothing beside the distortion, and so it is with
    a weight beta -> 0 of the rate, and the best q(z | x) becomes a point.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of dimensions of the code.
        network: What builds the decoder.
        likelihood: p(x | features); `Gaussian(sigma=1)` if none is given.
        prior: What p(z) is built from; `FlatPrior()` if none is given.
        linear: Whether the decoder is one affine map, x = W z + b; the network is then not used. With a guide
            `DeltaEncoder(..., linear=True)`, the best W spans the first principal components of the data.

    Attributes:
        prior: The module that was built from the argument: `prior()` is p(z), of event shape `(latent_dim,)`.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `latent_dim` is not positive.

    Example:
        >>> model = Autoencoder((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
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
        linear: bool = False,
    ) -> None:
        require_switches(self, linear=linear)
        super().__init__(
            data_shape,
            latent_dim,
            MLP(hidden=()) if linear else network,
            Gaussian() if likelihood is None else likelihood,
            FlatPrior() if prior is None else prior,
        )
        self.linear = linear

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of each row, `(n,)`, nats, of a linear decoder and codes from normals.

        With p(z) = sum_k pi_k N(m_k, L_k L_k^T) it is a mixture, too:

            p(x) = sum_k pi_k N(x; W m_k + b, W L_k (W L_k)^T + sigma^2 I).

        Args:
            x: `(n, *data_shape)`.

        Raises:
            ValueError: The decoder is not linear, the likelihood no Gaussian with one noise, or the prior
                neither a normal nor a mixture of some: there is no closed form.
        """
        rows = as_vectors(self, x)
        layer = getattr(self.decoder, "net", None)
        layer = layer[0] if isinstance(layer, nn.Sequential) and len(layer) == 1 else None
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                "log p(x) of an Autoencoder has a closed form only if its decoder is linear: build it with "
                "linear=True, or use annealed_importance_sampling"
            )
        if not isinstance(self.likelihood, Gaussian | LearnedGaussian | OptimalGaussian):
            raise ValueError(
                "log p(x) of a linear Autoencoder has a closed form only if its likelihood is Gaussian, "
                f"LearnedGaussian or OptimalGaussian, not {type(self.likelihood).__name__}"
            )
        log_weights, means, roots = normals_of(self.prior())
        sigma = self.decode(means.new_zeros(1, self.latent_dim)).stddev.reshape(-1)[:1]
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        parts = LinearGaussian(layer.weight @ roots, means @ layer.weight.T + bias, sigma)
        log_p: Tensor = (log_weights[:, None] + parts.log_evidence(rows)).logsumexp(0)
        return log_p
