"""Codes on several grids, each coarser than the one below."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from ppl_vae.codes import Quantizer
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.codes.levels_decoder import LevelsDecoder
from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import GridPyramid


class VQVAE2(LevelsDecoder):
    """Codes of a coarse grid, codes of finer grids given those above, and a row decoded from all of them.

        z_L ~ p(z_L),    z_l ~ p(z_l | z_{l+1}, ..., z_L),    x ~ p(x | decoder(C_z1, ..., C_zL))

    Two levels or three ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446): the grid of
    z_L is the coarsest, for what concerns the whole picture, and z_1 has the details. The guide is
    `HierarchicalQuantizingEncoder(model)`, which chooses z_1 given those above. The rate is the sum of
    -log p(z_l | z_{l+1}, ..., z_L), exactly. Train with `UniformCodes()`, which ignore what is above; then
    `refit_prior(model, guide, x, PixelCNNPrior())` fits the prior of each level.

    The sites are `z2`, `z1` and `x` for two levels, in this order, inside `pyro.plate("data", n, dim=-1)`; the
    deterministic sites `vectors2` and `vectors1` are what the decoder reads.

    Args:
        data_shape: Shape of one row of the data.
        quantizers: The codes of each level, from the lowest; `VectorQuantizer()` each if none are given.
        network: What builds the decoder, and the grids.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z_l | ...) is built from: one for all levels, or a list with one for each from the lowest;
            `UniformCodes()` if none is given. `refit_prior` replaces it.

    Attributes:
        grids: The shape of each grid, from the lowest.
        prior: The modules of p(z_l | ...), from the lowest; `prior.given()` is p(z_L), and `prior.given(z_L)`
            that of the level below.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: There is not one quantizer or prior for each level, or the network has no grids for such
            rows.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> network = GridPyramid(channels=8, halvings=(1, 1))
        >>> model = VQVAE2((1, 8, 8), [VectorQuantizer(8, 2), VectorQuantizer(4, 2)], network)
        >>> z1, z2 = torch.zeros(5, 4, 4, dtype=torch.long), torch.zeros(5, 2, 2, dtype=torch.long)
        >>> model.decode(z1, z2).mean.shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizers: Sequence[Quantizer] | None = None,
        network: GridPyramid = GridPyramid(),  # frozen
        likelihood: Likelihood | None = None,
        prior: CodePrior | Sequence[CodePrior] | None = None,
    ) -> None:
        super().__init__(data_shape, quantizers, network, likelihood, prior, None)

    def forward(self, x: Tensor) -> None:
        """Runs the model on `x`, `(n, *data_shape)`.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        require_shape(self, x, *self.data_shape)
        with pyro.plate("data", x.shape[0], dim=-1):
            self._rows(x)
