"""Codes on several grids that are drawn for a label or attributes."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from ppl_vae.codes import Quantizer
from ppl_vae.distributions import Given
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.codes.levels_decoder import LevelsDecoder
from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import Context, GridPyramid, Labels, require_object, require_one_each


class ConditionalVQVAE2(LevelsDecoder):
    """Codes of several grids from priors that are given what the row comes with, and a row decoded from them.

        z_L ~ p(z_L | c),    z_l ~ p(z_l | z_{l+1}, ..., z_L, c),    x ~ p(x | decoder(C_z1, ..., C_zL))

    It is a `VQVAE2`, except that the prior of each level sees a label or attributes c; encoder, codebooks and
    decoder do not. So pictures of a class are drawn in "Generating Diverse High-Fidelity Images with VQ-VAE-2"
    (arXiv:1906.00446). Model and guide, `HierarchicalQuantizingEncoder(model)`, run on `(x, c)`, and the ELBO
    bounds log p(x | c). With `UniformCodes()` the priors ignore c: train so first, then
    `refit_prior(model, guide, (x, c), PixelCNNPrior())` fits p(z_l | ..., c).

    The sites are those of a `VQVAE2`, and `context`, which holds c and adds nothing to the density.

    Args:
        data_shape: Shape of one row of the data.
        quantizers: The codes of each level, from the lowest; `VectorQuantizer()` each if none are given.
        network: What builds the decoder, and the grids.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z_l | ..., c) is built from: one for all levels, or a list with one for each from the
            lowest; `UniformCodes()` if none is given. `refit_prior` replaces it.
        context: What rows come with: `Labels(classes)`, `Attributes(count)`, or a `Context` of your own;
            `Labels(10)` if none is given.

    Attributes:
        grids: The shape of each grid, from the lowest.
        prior: The modules of p(z_l | ..., c), from the lowest; `prior.given(c=c)` is p(z_L | c), and
            `prior.given(z_L, c=c)` that of the level below.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: There is not one quantizer or prior for each level, or the network has no grids for such
            rows.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.models import PixelCNNPrior
        >>> network, prior = GridPyramid(channels=8, halvings=(1, 1)), PixelCNNPrior(channels=8, layers=2)
        >>> quantizers = [VectorQuantizer(8, 2), VectorQuantizer(4, 2)]
        >>> model = ConditionalVQVAE2((1, 8, 8), quantizers, network, prior=prior, context=Labels(3))
        >>> c = torch.tensor([0, 2])
        >>> z2 = model.prior.given(c=c).sample()
        >>> z1 = model.prior.given(z2, c=c).sample()
        >>> z2.shape, z1.shape, model.decode(z1, z2).mean.shape
        (torch.Size([2, 2, 2]), torch.Size([2, 4, 4]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizers: Sequence[Quantizer] | None = None,
        network: GridPyramid = GridPyramid(),  # frozen
        likelihood: Likelihood | None = None,
        prior: CodePrior | Sequence[CodePrior] | None = None,
        context: Context | None = None,
    ) -> None:
        context = Labels() if context is None else context
        require_object(self, "context", context, "size", "Labels(10)")
        super().__init__(data_shape, quantizers, network, likelihood, prior, context)
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
            self._rows(x, c)
