"""The encoders of `few_labels.py`: how they are trained without labels, and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from kept_pairs import keep, kept
from sklearn.decomposition import PCA
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit
from ppl_vae.codes import VectorQuantizer
from ppl_vae.data import Data
from ppl_vae.guides import DeltaEncoder, MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Binomial, Likelihood, OptimalGaussian
from ppl_vae.models import VAE, VQVAE, Autoencoder, ProbabilisticPCA
from ppl_vae.networks import MLP, Convolutional, ConvolutionalGrid, Denoising, Network
from ppl_vae.runtime import digest

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """How large networks are, and how long they are trained without labels.

    Attributes:
        latent_dim: Numbers of a row that an encoder gives; a VQ-VAE gives vectors of `dim` on a grid.
        hidden: Widths of the encoder, and of the decoder backwards.
        channels: Of convolutions in their place; None: there are none.
        codes: Number of codes of a VQ-VAE.
        dim: Size of their vectors.
        grid: Networks of a VQ-VAE.
        max_epochs: Passes over the rows.
        batch_size: Rows of a step.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        unlabelled: Number of training rows to train on without labels, the first ones; None: all.
        seed: Seed of all random numbers.
    """

    latent_dim: int = 32
    hidden: tuple[int, ...] = (400, 400)
    channels: tuple[int, ...] | None = None
    codes: int = 64
    dim: int = 8
    grid: ConvolutionalGrid = ConvolutionalGrid(channels=32, halvings=2)
    max_epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    unlabelled: int | None = None
    seed: int = 0

    @property
    def network(self) -> Network:
        """What encoders but those of codes are built from."""
        if self.channels is None:
            return MLP(hidden=self.hidden)
        return Convolutional(self.channels, hidden=self.hidden[-1])


@dataclass(frozen=True)
class Setting:
    """Data, sizes, and the folder that keeps what is trained."""

    data: Data[Tensor]
    sizes: Sizes
    runs: Path

    @property
    def rows(self) -> Tensor:
        """The rows that are seen without labels."""
        return self.data.train[: self.sizes.unlabelled]

    def likelihood(self) -> Likelihood:
        """Of counts from 0, or of pictures with values from 0 to 1."""
        counts = float(self.data.train.max()) > 1
        return Binomial((self.data.levels or 0) - 1) if counts else OptimalGaussian()

    @cached_property
    def of(self) -> str:
        """What scores depend on, beside the classifiers."""
        data = self.data
        parts = [data.train, data.test, data.validation, *_labels(data)]
        return f"{self.sizes}, rows {digest(parts)}"

    def pair(self, name: str) -> Pair:
        """A pair by its name, from its folder if it is there."""
        chosen, made_of = ENCODERS[name], f"{name}, {self.of}"
        folder = self.runs / name.replace(" ", "_")
        if (found := kept(folder, made_of)) is not None:
            return found
        torch.manual_seed(self.sizes.seed)
        model, guide = chosen.make(self)
        if chosen.trained:
            self.fit(model, guide, self.rows, self.data.validation, self.sizes.max_epochs)
        keep(folder, model, guide, made_of)
        return model, guide

    def fit(
        self, model: Any, guide: Any, rows: Any, validation: Any, max_epochs: int, **how: Any
    ) -> None:
        """Trains a pair; with validation rows, the weights with their best ELBO are kept."""
        sizes = self.sizes
        fit(
            *(model, guide, rows),
            validation=validation,
            patience=None if validation is None else max_epochs,
            batch_size=sizes.batch_size,
            max_epochs=max_epochs,
            learning_rate=sizes.learning_rate,
            lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
            **({"seed": sizes.seed, "progress": False} | how),
        )


def _labels(data: Data[Tensor]) -> tuple[Tensor, Tensor]:
    if data.train_labels is None or data.test_labels is None:
        raise ValueError(f"{data.name} has no labels: choose data that have some, such as digits")
    return data.train_labels, data.test_labels


def vae(of: Setting) -> Pair:
    """A VAE with a normal guide."""
    shape, size, network = of.data.shape, of.sizes.latent_dim, of.sizes.network
    return VAE(shape, size, network, of.likelihood()), MeanField(shape, size, network)


def vq_vae(of: Setting) -> Pair:
    """A VQ-VAE."""
    quantizer = VectorQuantizer(of.sizes.codes, of.sizes.dim)
    model = VQVAE(of.data.shape, quantizer, of.sizes.grid, of.likelihood())
    return model, QuantizingEncoder(model, of.sizes.grid)


def pca(of: Setting) -> Pair:
    """A linear encoder whose means are the scores of scikit-learn's PCA."""
    shape, size = of.data.shape, of.sizes.latent_dim
    found = PCA(size, random_state=of.sizes.seed).fit(of.rows.flatten(1).numpy())
    guide = MeanField(shape, size, MLP(hidden=()))
    weight = torch.from_numpy(found.components_).float()
    with torch.no_grad():
        guide.head.weight[:size] = weight
        guide.head.bias[:size] = -weight @ torch.from_numpy(found.mean_).float()
    return ProbabilisticPCA(shape, size).maximum_likelihood(of.rows), guide


def autoencoder(of: Setting, wrap: Callable[[Network], Network] = lambda network: network) -> Pair:
    """An autoencoder, with a network that is made of the others' network."""
    shape, size, network = of.data.shape, of.sizes.latent_dim, wrap(of.sizes.network)
    return Autoencoder(shape, size, network, of.likelihood()), DeltaEncoder(shape, size, network)


def denoising(of: Setting) -> Pair:
    """One whose encoder reads rows of which a quarter of the numbers is 0."""
    return autoencoder(of, partial(Denoising, masking=0.25))


def sparse(of: Setting) -> Pair:
    """One of whose code a quarter is not 0, as wide as four codes.

    The largest numbers stay, as a penalty needs a decoder without batch norm.
    """
    shape, size, network = of.data.shape, of.sizes.latent_dim, of.sizes.network
    guide = DeltaEncoder(shape, 4 * size, network, top_k=size)
    return Autoencoder(shape, 4 * size, network, of.likelihood()), guide


@dataclass(frozen=True)
class Encoder:
    """An encoder of the table.

    Attributes:
        make: Makes the pair with new weights.
        trained: Whether it is trained on rows without labels.
        beside: The encoder from scratch that it is compared with: one of the same kind.
    """

    make: Callable[[Setting], Pair]
    trained: bool = True
    beside: str = "from scratch"


# Add a line here for other encoders.
ENCODERS = {
    "from scratch": Encoder(vae, trained=False),
    "PCA": Encoder(pca, trained=False),
    "AE": Encoder(autoencoder),
    "denoising AE": Encoder(denoising),
    "sparse AE": Encoder(sparse),
    "VAE": Encoder(vae),
    "from scratch, VQ-VAE": Encoder(vq_vae, trained=False, beside="from scratch, VQ-VAE"),
    "VQ-VAE": Encoder(vq_vae, beside="from scratch, VQ-VAE"),
}
