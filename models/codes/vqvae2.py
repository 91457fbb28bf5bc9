"""Codes on several grids, each coarser than the one below."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.codes import Quantizer, VectorQuantizer
from ppl_vae.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.priors.codes import CodePrior, UniformCodes
from ppl_vae.models.priors.levels import LevelPriors
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import GridPyramid, require_object


class VQVAE2(RowModel):
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
        super().__init__(data_shape)
        require_object(self, "network", network, "grids", "GridPyramid()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        self.grids = network.grids(self.data_shape)
        levels = len(self.grids)
        if quantizers is not None and not isinstance(quantizers, Sequence):
            raise TypeError(
                f"VQVAE2.quantizers must be a list with one for each level, got {quantizers!r:.80}: write "
                "[VectorQuantizer(), ...]"
            )
        given = [VectorQuantizer() for _ in self.grids] if quantizers is None else list(quantizers)
        if len(given) != levels:
            raise ValueError(
                f"VQVAE2.quantizers must be one for each of the {levels} levels of the network, got "
                f"{len(given)}"
            )
        for each in given:
            require_object(self, "quantizers", each, "nearest", "[VectorQuantizer(), ...]")
            if each.depth > 1:
                raise ValueError(
                    "VQVAE2.quantizers must have one code per vector, but "
                    f"{type(each).__name__} has {each.depth}"
                )
        self.quantizers = nn.ModuleList(given)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.decoder([each.dim for each in given], out_shape)
        sites = [f"z{i + 1}" for i in range(levels)]
        codes = [each.codes for each in given]
        self.prior = LevelPriors.built(self._priors(prior), self.grids, codes, sites)

    def _priors(self, prior: CodePrior | Sequence[CodePrior] | None) -> list[CodePrior]:
        """What the prior of each level is built from.

        Raises:
            TypeError: It is no prior of codes.
            ValueError: There is not one for each level.
        """
        levels = len(self.grids)
        listed = isinstance(prior, Sequence) and not isinstance(prior, str)
        given = [*prior] if isinstance(prior, Sequence) else [prior or UniformCodes()] * levels
        for each in given:
            require_object(self, "prior", each, "build_codes", "UniformCodes()")
        if listed and len(given) != levels:
            raise ValueError(
                f"VQVAE2.prior must be one prior, or a list with one for each of the {levels} levels, got "
                f"{len(given)}"
            )
        return given

    def _program(self, x: Tensor) -> None:
        vectors: list[Tensor] = []
        above: list[Tensor] = []
        for i in reversed(range(len(self.grids))):
            z = pyro.sample(f"z{i + 1}", self.prior.given(*above))
            above.insert(0, z)
            embedded = self.quantizer(i).embed(z)
            vectors.insert(0, pyro.deterministic(f"vectors{i + 1}", embedded, event_dim=3))
        pyro.sample("x", self.decode_vectors(*vectors), obs=x)
        for i in range(len(self.grids)):
            self.quantizer(i).learn()

    def quantizer(self, level: int) -> Quantizer:
        """The codes of a level; 0 is the lowest."""
        found = self.quantizers[level]
        assert isinstance(found, Quantizer)
        return found

    def decode(self, *z: Tensor) -> dist.TorchDistribution:
        """p(x | z_1, ..., z_L) for codes `(*batch, *grid)` of each level from the lowest."""
        return self.decode_vectors(*(self.quantizer(i).embed(each) for i, each in enumerate(z)))

    def decode_vectors(self, *vectors: Tensor) -> dist.TorchDistribution:
        """p(x | vectors) for vectors `(*batch, *grid, dim)` of each level from the lowest."""
        found: dist.TorchDistribution = self.likelihood(
            self.decoder(*vectors), len(self.data_shape)
        )
        return found
