"""A VQ-VAE whose codes are drawn for a label or attributes."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from ppl_vae.codes import Quantizer
from ppl_vae.distributions import Given
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.codes.code_decoder import CodeDecoder
from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import (
    Context,
    ConvolutionalGrid,
    GridNetwork,
    Labels,
    require_object,
    require_one_each,
)


class ConditionalVQVAE(CodeDecoder):
    """A grid of codes from a prior that is given what the row comes with, and a row decoded from them.

        z ~ p(z | c),    x ~ p(x | decoder(C_z))

    It is a `VQVAE`, except that its prior sees a label or attributes c. Encoder, codebook and decoder do not,
    so c can only say which codes there are ("Generating Diverse High-Fidelity Images with VQ-VAE-2",
    arXiv:1906.00446). Model and guide, `QuantizingEncoder(model)`, run on `(x, c)`, and the ELBO bounds
    log p(x | c). With `UniformCodes()` the prior ignores c: train so first, then
    `refit_prior(model, guide, (x, c), PixelCNNPrior())` fits p(z | c).

    The sites are those of a `VQVAE`, and `context`, which holds c and adds nothing to the density.

    Args:
        data_shape: Shape of one row of the data.
        quantizer: The codes, as for `VQVAE`; `VectorQuantizer()` if none is given.
        network: What builds the decoder, and the grid of positions.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z | c) is built from; `UniformCodes()` if none is given.
        context: What rows come with: `Labels(classes)`, `Attributes(count)`, or a `Context` of your own;
            `Labels(10)` if none is given.

    Attributes:
        positions: Shape of z of a row.
        prior: The module that was built from the argument: `prior(c)` is p(z | c).

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: The network has no grid for such rows.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.models import PixelCNNPrior
        >>> from ppl_vae.networks import MLP, Slots
        >>> network = Slots(4, MLP(hidden=(32,)))
        >>> quantizer, prior = VectorQuantizer(codes=8, dim=2), PixelCNNPrior(channels=8, layers=2)
        >>> model = ConditionalVQVAE((1, 8, 8), quantizer, network, prior=prior, context=Labels(3))
        >>> z = model.prior(torch.tensor([0, 2])).sample()
        >>> z.shape, model.decode(z).mean.shape
        (torch.Size([2, 4]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizer: Quantizer | None = None,
        network: GridNetwork = ConvolutionalGrid(),  # frozen
        likelihood: Likelihood | None = None,
        prior: CodePrior | None = None,
        context: Context | None = None,
    ) -> None:
        context = Labels() if context is None else context
        require_object(self, "context", context, "size", "Labels(10)")
        super().__init__(data_shape, quantizer, network, likelihood, prior, context)
        self.context = context

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
            self._rows(x, self.prior(c))
