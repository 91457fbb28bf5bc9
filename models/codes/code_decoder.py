"""What models share whose latents are the codes of a quantizer."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.codes import Quantizer, VectorQuantizer
from ppl_vae.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.priors.codes import CodePrior, UniformCodes
from ppl_vae.networks import (
    Context,
    GridNetwork,
    Rebuildable,
    require_data_shape,
    require_object,
)


class CodeDecoder(Rebuildable, nn.Module, ABC):
    """A prior of a grid of codes, and p(x | decoder(C_z)).

    A model derives from this class and says in `forward` what p(z) depends on.

    Args:
        data_shape: Shape of one row of the data.
        quantizer: The codes; `VectorQuantizer()` if none is given.
        network: What builds the decoder, and the grid of positions.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z) is built from; `UniformCodes()` if none is given.
        context: What p(z | c) is given; None if it is p(z).

    Attributes:
        positions: Shape of z of a row.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: The network has no grid for such rows.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizer: Quantizer | None,
        network: GridNetwork,
        likelihood: Likelihood | None,
        prior: CodePrior | None,
        context: Context | None,
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_object(self, "network", network, "grid_decoder", "ConvolutionalGrid()")
        if quantizer is not None:
            require_object(self, "quantizer", quantizer, "nearest", "VectorQuantizer()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        if prior is not None:
            require_object(self, "prior", prior, "build_codes", "UniformCodes()")
        self.data_shape = tuple(data_shape)
        self.quantizer = VectorQuantizer() if quantizer is None else quantizer
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.grid = network.positions(self.data_shape)
        depth, codes = self.quantizer.depth, self.quantizer.codes
        self.positions = (*self.grid, depth) if depth > 1 else self.grid
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.grid_decoder(self.quantizer.dim, out_shape)
        prior = UniformCodes() if prior is None else prior
        self.prior = (
            prior.build_codes(self.positions, codes)
            if context is None
            else prior.build_codes(self.positions, codes, context)
        )

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for codes `(*batch, *positions)`: batch shape `batch`."""
        return self.decode_vectors(self.quantizer.embed(z))

    def decode_vectors(self, vectors: Tensor, x: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | vectors) for vectors `(*batch, *grid, dim)`: batch shape `batch`.

        Args:
            vectors: Of the codes.
            x: The rows if they are known, for a likelihood that is fitted to them, such as `OptimalGaussian`.
        """
        features = self.decoder(vectors)
        found: dist.TorchDistribution = self.likelihood(features, len(self.data_shape), x)
        return found

    def _rows(self, x: Tensor, prior: dist.TorchDistribution) -> None:
        """Samples codes and observes rows, inside of their plate, and lets the quantizer learn."""
        z = pyro.sample("z", prior)
        vectors = pyro.deterministic(
            "vectors", self.quantizer.embed(z), event_dim=len(self.grid) + 1
        )
        pyro.sample("x", self.decode_vectors(vectors, x), obs=x)
        self.quantizer.learn()
