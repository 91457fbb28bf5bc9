"""The generative half of a vector-quantized autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from ppl_vae.codes import Quantizer
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.codes.code_decoder import CodeDecoder
from ppl_vae.models.priors.codes import CodePrior
from ppl_vae.models.rows import require_shape
from ppl_vae.networks import ConvolutionalGrid, GridNetwork


class VQVAE(CodeDecoder):
    """A grid of codes from a prior, and a row decoded from their vectors.

        z ~ p(z),    x ~ p(x | decoder(C_z))

    independently for every row ("Neural Discrete Representation Learning", arXiv:1711.00937). Its guide is
    `QuantizingEncoder(model)`, which puts all of its mass on the codes that are nearest to an encoder's
    vectors. So the rate of a row is -log p(z), exactly, and the ELBO is

        log p(x | z) + log p(z)

    in nats, as of any VAE, with no noise. The sites are `z`, whole numbers `(n, *positions)`, and `x`, inside
    `pyro.plate("data", n, dim=-1)`; the deterministic site `vectors` is what the decoder reads.

    Args:
        data_shape: Shape of one row of the data.
        quantizer: The codes, such as `VectorQuantizer(codes=512)` or `FSQ()`; `VectorQuantizer()` if none is
            given. It learns with the model, which owns it.
        network: What builds the decoder, and the grid of positions.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z) is built from; `UniformCodes()` if none is given. `refit_prior` replaces it.

    Attributes:
        positions: Shape of z of a row.
        prior: The module that was built from the argument: `prior()` is p(z), of event shape `positions`.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: The network has no grid for such rows.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.networks import MLP, Slots
        >>> model = VQVAE((1, 8, 8), VectorQuantizer(codes=8, dim=2), Slots(4, MLP(hidden=(32,))))
        >>> model.decode(torch.zeros(5, 4, dtype=torch.long)).mean.shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizer: Quantizer | None = None,
        network: GridNetwork = ConvolutionalGrid(),  # frozen
        likelihood: Likelihood | None = None,
        prior: CodePrior | None = None,
    ) -> None:
        super().__init__(data_shape, quantizer, network, likelihood, prior, None)

    def forward(self, x: Tensor) -> None:
        """Runs the model on `x`, `(n, *data_shape)`.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        require_shape(self, x, *self.data_shape)
        with pyro.plate("data", x.shape[0], dim=-1):
            self._rows(x, self.prior())
