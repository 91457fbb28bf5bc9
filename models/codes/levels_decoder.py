"""What models share whose latents are codes on several grids."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.codes import Quantizer, VectorQuantizer
from ppl_vae.likelihoods import Bernoulli, Likelihood
from ppl_vae.models.priors.codes import CodePrior, UniformCodes
from ppl_vae.models.priors.levels import LevelPriors
from ppl_vae.networks import (
    Context,
    GridPyramid,
    Rebuildable,
    require_data_shape,
    require_object,
)


class LevelsDecoder(Rebuildable, nn.Module, ABC):
    """Priors of the codes of several grids, each given those above, and p(x | decoder(C_z1, ..., C_zL)).

    A model derives from this class and says in `forward` what the priors are given besides.

    Args:
        data_shape: Shape of one row of the data.
        quantizers: The codes of each level, from the lowest; `VectorQuantizer()` each if none are given.
        network: What builds the decoder, and the grids.
        likelihood: p(x | features); `Bernoulli()` if none is given.
        prior: What p(z_l | ...) is built from: one for all levels, or a list with one for each from the lowest;
            `UniformCodes()` if none is given.
        context: What p(z_l | ..., c) is given; None if rows come alone.

    Attributes:
        grids: The shape of each grid, from the lowest.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: There is not one quantizer or prior for each level, or the network has no grids for such
            rows.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        quantizers: Sequence[Quantizer] | None,
        network: GridPyramid,
        likelihood: Likelihood | None,
        prior: CodePrior | Sequence[CodePrior] | None,
        context: Context | None,
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_object(self, "network", network, "grids", "GridPyramid()")
        if likelihood is not None:
            require_object(self, "likelihood", likelihood, "num_params", "Bernoulli()")
        self.data_shape = tuple(data_shape)
        self.grids = network.grids(self.data_shape)
        given = self._one_for_each(quantizers)
        self.quantizers = nn.ModuleList(given)
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        out_shape = (self.likelihood.num_params, *self.data_shape)
        self.decoder = network.decoder([each.dim for each in given], out_shape)
        sites = [f"z{i + 1}" for i in range(len(self.grids))]
        codes = [each.codes for each in given]
        self.prior = LevelPriors.built(self._priors(prior), self.grids, codes, sites, context)

    def _one_for_each(self, quantizers: Sequence[Quantizer] | None) -> list[Quantizer]:
        """The quantizer of each level.

        Raises:
            TypeError: They are no list of quantizers.
            ValueError: There is not one for each level, or one has several codes per vector.
        """
        name, levels = f"{type(self).__name__}.quantizers", len(self.grids)
        if quantizers is not None and not isinstance(quantizers, Sequence):
            raise TypeError(
                f"{name} must be a list with one for each level, got {quantizers!r:.80}: write "
                "[VectorQuantizer(), ...]"
            )
        given: list[Quantizer] = [*(quantizers or [])]
        if quantizers is None:
            given = [VectorQuantizer() for _ in self.grids]
        if len(given) != levels:
            raise ValueError(
                f"{name} must be one for each of the {levels} levels of the network, got {len(given)}"
            )
        for each in given:
            require_object(self, "quantizers", each, "nearest", "[VectorQuantizer(), ...]")
            if each.depth > 1:
                raise ValueError(
                    f"{name} must have one code per vector, but {type(each).__name__} has {each.depth}"
                )
        return given

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
                f"{type(self).__name__}.prior must be one prior, or a list with one for each of the {levels} "
                f"levels, got {len(given)}"
            )
        return given

    def quantizer(self, level: int) -> Quantizer:
        """The codes of a level; 0 is the lowest."""
        found = self.quantizers[level]
        assert isinstance(found, Quantizer)
        return found

    def decode(self, *z: Tensor) -> dist.TorchDistribution:
        """p(x | z_1, ..., z_L) for codes `(*batch, *grid)` of each level from the lowest."""
        return self.decode_vectors(*(self.quantizer(i).embed(each) for i, each in enumerate(z)))

    def decode_vectors(self, *vectors: Tensor, x: Tensor | None = None) -> dist.TorchDistribution:
        """p(x | vectors) for vectors `(*batch, *grid, dim)` of each level from the lowest.

        Args:
            vectors: Of the codes.
            x: The rows if they are known, for a likelihood that is fitted to them, such as `OptimalGaussian`.
        """
        features = self.decoder(*vectors)
        found: dist.TorchDistribution = self.likelihood(features, len(self.data_shape), x)
        return found

    def _rows(self, x: Tensor, c: Tensor | None = None) -> None:
        """Samples codes and observes rows, inside of their plate, and lets the quantizers learn."""
        vectors: list[Tensor] = []
        above: list[Tensor] = []
        for i in reversed(range(len(self.grids))):
            z = pyro.sample(f"z{i + 1}", self.prior.given(*above, c=c))
            above.insert(0, z)
            embedded = self.quantizer(i).embed(z)
            vectors.insert(0, pyro.deterministic(f"vectors{i + 1}", embedded, event_dim=3))
        pyro.sample("x", self.decode_vectors(*vectors, x=x), obs=x)
        for i in range(len(self.grids)):
            self.quantizer(i).learn()
