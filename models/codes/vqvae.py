"""The generative half of a vector-quantized autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_vae.codes import Quantizer, VectorQuantizer
from ppl_vae.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.priors.codes import CodePrior, UniformCodes
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import ConvolutionalGrid, GridNetwork, require_object


class VQVAE(RowModel):
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
        super().__init__(data_shape)
        require_object(self, "network", network, "grid_decoder", "ConvolutionalGrid()")
        if quantizer is not None:
            require_object(self, "quantizer", quantizer, "nearest", "VectorQuantizer()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        if prior is not None:
            require_object(self, "prior", prior, "build_codes", "UniformCodes()")
        self.quantizer = VectorQuantizer() if quantizer is None else quantizer
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.grid = network.positions(self.data_shape)
        depth = self.quantizer.depth
        self.positions = (*self.grid, depth) if depth > 1 else self.grid
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.grid_decoder(self.quantizer.dim, out_shape)
        self.prior = (prior or UniformCodes()).build_codes(self.positions, self.quantizer.codes)

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        vectors = pyro.deterministic(
            "vectors", self.quantizer.embed(z), event_dim=len(self.grid) + 1
        )
        pyro.sample("x", self.decode_vectors(vectors), obs=x)
        self.quantizer.learn()

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for codes `(*batch, *positions)`: batch shape `batch`."""
        return self.decode_vectors(self.quantizer.embed(z))

    def decode_vectors(self, vectors: Tensor) -> dist.TorchDistribution:
        """p(x | vectors) for vectors `(*batch, *grid, dim)`: batch shape `batch`."""
        found: dist.TorchDistribution = self.likelihood(self.decoder(vectors), len(self.data_shape))
        return found
