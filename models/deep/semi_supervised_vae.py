"""The VAE whose latents are a class and a style, for rows of which some have labels."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions import Revealed
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.deep.context_decoder import ContextDecoder
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import MLP, Labels, Network, require_one_each


class SemiSupervisedVAE(ContextDecoder):
    """Model M2: a class y ~ Cat(1/classes), a style z ~ p(z), and x ~ p(x | decoder(z, y)).

    "Semi-Supervised Learning with Deep Generative Models" (arXiv:1406.5298). The model runs on `(x, labels)`:
    a row's label is its class, or -1 where that is not known, and both kinds of rows may be mixed. Without
    labels, `model(x)`, none is known. The ELBO bounds log p(x, y) of rows with a label, and log p(x) of rows
    without one. Its guide is `SemiSupervised`.

    The sites are `y` (a latent with few values, over which the objectives sum), `z`, `x`, and `label`, the
    observed label: see `ppl_vae.distributions.Revealed`; they are inside `pyro.plate("data", n, dim=-1)`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of dimensions of z.
        classes: Number of classes.
        network: What the decoder is built from: it reads z and the one-hot y, one after the other.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z) is built from; `StandardNormal()` if none is given. No `VampPrior`.

    Raises:
        TypeError: An argument is not what it must be, or the prior is made of the guide.
        ValueError: `latent_dim` is not positive, or `classes` is less than 2.

    Example:
        >>> model = SemiSupervisedVAE((1, 8, 8), latent_dim=2, classes=10)
        >>> model.decode(torch.zeros(10, 2), torch.arange(10)).mean.shape
        torch.Size([10, 1, 8, 8])
    """

    logits: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        classes: int = 10,
        network: Network = MLP(),  # frozen
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(data_shape, latent_dim, network, likelihood, prior, Labels(classes))
        self.classes = classes
        self.register_buffer("logits", torch.zeros(classes), persistent=False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Runs the model on rows and their labels.

        Args:
            x: `(n, *data_shape)`.
            labels: `(n,)`, -1 where a row has none; None if no row has one.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`, or there is not one label for each.
        """
        require_shape(self, x, *self.data_shape)
        if labels is not None:
            require_one_each(self, self.context, labels, x.shape[0])
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            if labels is not None:
                pyro.sample("label", Revealed(y, self.classes), obs=labels)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self._likelihood(z, y, x), obs=x)

    def decode(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        """p(x | z, y) for styles `(*batch, latent_dim)` and classes `(*batch)`: batch shape `batch`."""
        return self._likelihood(z, y, None)
