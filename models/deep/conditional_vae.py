"""The VAE that is given a label or attributes of each row."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vae.distributions import Given
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.deep.context_decoder import ContextDecoder
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import MLP, Context, Labels, Network, require_one_each


class ConditionalVAE(ContextDecoder):
    """p(x | c): a latent z ~ p(z), decoded together with what the row comes with, x ~ p(x | decoder(z, c)).

    c is a label or attributes ("Learning Structured Output Representation using Deep Conditional Generative
    Models", NeurIPS 2015; "Semi-Supervised Learning with Deep Generative Models", arXiv:1406.5298, model M2
    with all labels). z has the same prior for each c, so it is left with what c does not say: the style of a
    digit, for example. The model runs on `(x, c)`, and so must its guide: build that with the same context,
    `MeanField(..., context=Labels(10))`. The ELBO bounds log p(x | c).

    The sites are `z`, `x`, and `context`, which holds c and adds nothing to the density; they are inside
    `pyro.plate("data", n, dim=-1)`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions.
        network: What the decoder is built from: it reads z and the context's vector, one after the other.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z) is built from; `StandardNormal()` if none is given. No `VampPrior`, which is made of
            a q(z | x).
        context: What rows come with: `Labels(classes)`, `Attributes(count)`, or a `Context` of your own;
            `Labels(10)` if none is given.

    Raises:
        TypeError: An argument is not what it must be, or the prior is made of the guide.
        ValueError: `latent_dim` is not positive.

    Example:
        >>> import torch
        >>> model = ConditionalVAE((1, 8, 8), latent_dim=2, context=Labels(10))
        >>> model.decode(torch.zeros(10, 2), torch.arange(10)).mean.shape
        torch.Size([10, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        context: Context | None = None,
    ) -> None:
        context = Labels() if context is None else context
        super().__init__(data_shape, latent_dim, network, likelihood, prior, context)

    def forward(self, x: Tensor, c: Tensor) -> None:
        """Runs the model on rows and what they come with.

        Args:
            x: `(n, *data_shape)`.
            c: `(n,)` labels, or `(n, count)` attributes.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`, or c not the context's.
        """
        require_shape(self, x, *self.data_shape)
        require_one_each(self, self.context, c, x.shape[0])
        given = Given(c, self.context.support)
        with pyro.plate("data", x.shape[0], dim=-1):
            c = pyro.sample("context", given, obs=c)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self._likelihood(z, c, x), obs=x)

    def decode(self, z: Tensor, c: Tensor) -> dist.TorchDistribution:
        """p(x | z, c) for latents `(*batch, latent_dim)` and contexts `(*batch, ...)`: batch shape `batch`."""
        return self._likelihood(z, c, None)
