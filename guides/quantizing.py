"""The guides of codes: an encoder, and the codes nearest to what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.distributions import PointMass
from ppl_vae.networks import (
    ConvolutionalGrid,
    GridNetwork,
    GridPyramid,
    Rebuildable,
    full_precision,
    require_numbers,
    require_object,
    straight_through,
)


def _mark(vectors: str) -> Any:
    """The mark that `QuantizedELBO` looks for: Pyro's type of `infer` knows no keys but its own."""
    return {"quantizes": vectors}


class QuantizingEncoder(Rebuildable, nn.Module):
    """q(z | x): each vector L of an encoder becomes the nearest code, or a code near it.

        temperature = 0:    q(z = k | x) = 1 for the k that minimizes |L - C_k|^2
        temperature T > 0:  q(z = k | x) proportional to exp(-|L - C_k|^2 / T)

    The first is vector quantization (arXiv:1711.00937), with the rate -log p(z) exactly. The second is its soft
    relative, with an entropy that counts in the ELBO; it becomes the first as T goes to 0, as EM becomes hard
    EM. The codes are the model's.

    The site `z` is drawn inside `pyro.plate("data", n, dim=-1)` and marked `infer={"quantizes": "vectors"}`:
    it stands for what the deterministic site `vectors` holds, and `QuantizedELBO`, which `ELBO` then chooses,
    passes the decoder's gradient there.

    Args:
        model: A model of codes, such as `VQVAE`.
        network: What builds the encoder; its grid must be the model's.
        temperature: T, in squared units of the vectors.

    Raises:
        TypeError: The model has no quantizer, or an argument is not what it must be.
        ValueError: The grids of model and network differ, or `temperature` is negative.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.models import VQVAE
        >>> from ppl_vae.networks import MLP, Slots
        >>> network = Slots(4, MLP(hidden=(32,)))
        >>> model = VQVAE((1, 8, 8), VectorQuantizer(codes=8, dim=2), network)
        >>> guide = QuantizingEncoder(model, network)
        >>> guide.codes(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        network: GridNetwork = ConvolutionalGrid(),  # frozen
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        require_object(self, "network", network, "grid_encoder", "ConvolutionalGrid()")
        require_numbers(self, temperature=temperature)
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(
                f"QuantizingEncoder.temperature must be finite and at least 0, got {temperature}"
            )
        quantizer: Any = getattr(model, "quantizer", None)
        data_shape = getattr(model, "data_shape", None)
        if not callable(getattr(quantizer, "nearest", None)) or data_shape is None:
            raise TypeError(
                "QuantizingEncoder needs a model with a quantizer and a data_shape, such as VQVAE, but "
                f"{type(model).__name__} has none"
            )
        grid, own = getattr(model, "grid", None), network.positions(data_shape)
        if grid != own:
            raise ValueError(
                f"the model has codes on a grid of {grid}, but the guide's network one of {own}: give both the "
                "same network"
            )
        if temperature and quantizer.depth > 1:
            raise ValueError(
                f"{type(quantizer).__name__} has {quantizer.depth} codes per vector, each given those before "
                "it: choose temperature=0"
            )
        self.temperature = temperature
        # In a tuple: as an attribute it would be registered, and so would the model's parameters.
        self._quantizer: tuple[Any, ...] = (quantizer,)
        self.encoder = network.grid_encoder(data_shape, quantizer.dim)
        self.event_dim = len(own) + 1

    def vectors(self, x: Tensor) -> Tensor:
        """The encoder's vectors L where the codes are, `(*batch, *grid, dim)`."""
        projected: Tensor = self._quantizer[0].project(full_precision(self.encoder(x)))
        return projected

    def codes(self, x: Tensor) -> Tensor:
        """The nearest code of each vector, `(*batch, *positions)`."""
        z: Tensor = self._quantizer[0].nearest(self.vectors(x))
        return z

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`, event shape `positions`."""
        return self._family(self.vectors(x))[0]

    def forward(self, x: Tensor, c: Tensor | None = None) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`.

        Args:
            x: The rows.
            c: What they come with, for a `ConditionalVQVAE`: it is p(z | c) that sees it, not q(z | x).
        """
        quantizer = self._quantizer[0]
        vectors = self.vectors(x)
        q, nearest = self._family(vectors)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.deterministic("vectors", vectors, event_dim=self.event_dim)
            z = pyro.sample("z", q, infer=_mark("vectors"))
            penalty = quantizer.regularizer(vectors)
            if penalty is not None:
                # Its value is 0: it only adds the gradient.
                pyro.factor("regularizer", penalty - penalty.detach(), has_rsample=True)
        quantizer.gather(vectors, z if nearest is None else nearest)

    def _family(self, vectors: Tensor) -> tuple[dist.TorchDistribution, Tensor | None]:
        """q(z | x), and the codes if they are certain."""
        quantizer = self._quantizer[0]
        if self.temperature:
            logits = quantizer.log_weights(vectors, self.temperature)
            return dist.Independent(dist.Categorical(logits=logits), self.event_dim - 1), None
        z = quantizer.nearest(vectors)
        event_dim = self.event_dim - 1 + (quantizer.depth > 1)
        return dist.Independent(PointMass(z, quantizer.codes), event_dim), z


class HierarchicalQuantizingEncoder(Rebuildable, nn.Module):
    """q(z_L | x) ... q(z_1 | z_2, ..., z_L, x): at each level the code nearest to a vector of the encoder.

    All mass is on one code each. The encoder goes up from the picture to the coarsest grid, and down again: the
    vectors of a level are computed from the picture and from the codes above, straight through which their
    gradient passes ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446).

    The sites are `z2` and `z1` for two levels, in this order, inside `pyro.plate("data", n, dim=-1)`, marked
    as in `QuantizingEncoder`; the deterministic sites `vectors2` and `vectors1` hold the vectors.

    Args:
        model: A model with codes on several grids, such as `VQVAE2`.
        network: What builds the encoder; its grids must be the model's.

    Raises:
        TypeError: The model has no quantizers, or an argument is not what it must be.
        ValueError: The grids of model and network differ.

    Example:
        >>> import torch
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.models import VQVAE2
        >>> network = GridPyramid(channels=8, halvings=(1, 1))
        >>> model = VQVAE2((1, 8, 8), [VectorQuantizer(8, 2), VectorQuantizer(4, 2)], network)
        >>> z1, z2 = HierarchicalQuantizingEncoder(model, network).codes(torch.rand(5, 1, 8, 8))
        >>> z1.shape, z2.shape
        (torch.Size([5, 4, 4]), torch.Size([5, 2, 2]))
    """

    def __init__(self, model: nn.Module, network: GridPyramid = GridPyramid()) -> None:  # frozen
        super().__init__()
        require_object(self, "network", network, "grids", "GridPyramid()")
        quantizers: Any = getattr(model, "quantizers", None)
        data_shape = getattr(model, "data_shape", None)
        if quantizers is None or data_shape is None:
            raise TypeError(
                "HierarchicalQuantizingEncoder needs a model with quantizers and a data_shape, such as VQVAE2, "
                f"but {type(model).__name__} has none"
            )
        grids, own = getattr(model, "grids", None), network.grids(data_shape)
        if grids != own:
            raise ValueError(
                f"the model has codes on grids of {grids}, but the guide's network of {own}: give both the "
                "same network"
            )
        # In a tuple: as an attribute it would be registered, and so would the model's parameters.
        self._quantizers: tuple[Any, ...] = tuple(quantizers)
        self.encoder = network.encoder(data_shape, [each.dim for each in quantizers])

    def codes(self, x: Tensor) -> tuple[Tensor, ...]:
        """The code of each vector, `(n, *grid)`, for each level from the lowest, of data `(n, *data_shape)`."""
        return tuple(z for _, z in reversed(list(self._levels(x))))

    def forward(self, x: Tensor, c: Tensor | None = None) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`.

        Args:
            x: The rows.
            c: What they come with, for a `ConditionalVQVAE2`: its priors see it, and the guide does not.
        """
        with pyro.plate("data", x.shape[0], dim=-1):
            level = len(self._quantizers)
            for vectors, z in self._levels(x):
                name, quantizer = f"vectors{level}", self._quantizers[level - 1]
                pyro.deterministic(name, vectors, event_dim=3)
                q = dist.Independent(PointMass(z, quantizer.codes), 2)
                pyro.sample(f"z{level}", q, infer=_mark(name))
                quantizer.gather(vectors, z)
                level -= 1

    def _levels(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The vectors of each level and their codes, from the highest."""
        features = self.encoder.features(x)
        above: Tensor | None = None
        for i in reversed(range(len(features))):
            quantizer = self._quantizers[i]
            vectors = quantizer.project(full_precision(self.encoder.vectors(i, features, above)))
            z = quantizer.nearest(vectors)
            yield vectors, z
            if i:
                embedded = straight_through(vectors, quantizer.embed(z))
                above = self.encoder.context(i, embedded, above)
