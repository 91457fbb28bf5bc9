"""The pairs of `vq_vae.py`, and how they are trained and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_pairs import has_begun, keep, kept
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit, load_data, refit_prior
from ppl_vae.codes import VectorQuantizer
from ppl_vae.data import Data
from ppl_vae.guides import HierarchicalQuantizingEncoder, MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Bernoulli, Binomial, Likelihood
from ppl_vae.models import (
    VAE,
    VQVAE,
    VQVAE2,
    Autoregressive,
    IndependentCodes,
    PixelCNNPrior,
)
from ppl_vae.networks import MLP, ConvolutionalGrid, GridPyramid
from ppl_vae.runtime import digest

Pair = tuple[Any, Any]


def nothing(x: Tensor) -> None:
    """The guide of a model without latents."""


@dataclass(frozen=True)
class Sizes:
    """How large networks are, and how long they are trained.

    Attributes:
        codes: Number K of codes.
        dim: Size of their vectors.
        channels: Channels of the networks of codes.
        latent_dim: Latents of the Gaussian VAE.
        hidden: Widths of its networks, and of the autoregressive model.
        components: Components of a mixture that is fitted to its codes.
        max_epochs: Passes over the training rows.
        prior: What the learned prior is built from.
        prior_epochs: Most passes of the prior over the codes.
        prior_rows: Number of training rows whose codes it sees, the first ones.
        batch_size: Rows of a step.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        max_rows: Maximum number of rows per split; None takes all.
        seed: Seed of all random numbers.
    """

    codes: int = 64
    dim: int = 8
    channels: int = 32
    latent_dim: int = 40
    hidden: tuple[int, ...] = (400, 400)
    components: int = 50
    max_epochs: int = 12
    prior: PixelCNNPrior = PixelCNNPrior(channels=32, layers=3, window=6)  # noqa: RUF009 (frozen)
    prior_epochs: int = 8
    prior_rows: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    max_rows: int | None = None
    seed: int = 0


USUAL = Sizes()
"""For the table and the samples."""

MANY = Sizes(codes=256, max_epochs=4, max_rows=10_000)
"""For the sweep and the ablation, which train many."""


@dataclass(frozen=True)
class Setting:
    """Data, sizes, and the folder that keeps what is trained.

    Attributes:
        data: MNIST, with pixels that are drawn again for each batch; or the digits, which are counts.
        sizes: See `Sizes`.
        runs: The folder.
    """

    data: Data[Tensor]
    sizes: Sizes
    runs: Path

    @classmethod
    def of(cls, name: str, data_dir: Path, sizes: Sizes, runs: Path) -> Setting:
        """Loads the data."""
        names = {"mnist": "MNIST", "digits": "digits"}
        if name.lower() not in names:
            raise ValueError(
                f"data must be MNIST or digits, whose values are 0 or 1 or counts, got {name!r}"
            )
        name = names[name.lower()]
        binarize: Any = "dynamic" if name == "MNIST" else None
        data = load_data(
            name, data_dir=data_dir, binarize=binarize, max_rows=sizes.max_rows, seed=sizes.seed
        )
        return cls(data, sizes, runs)

    @property
    def likelihood(self) -> Likelihood:
        """Of pixels that are 0 or 1, or of counts."""
        levels = self.data.levels or 2
        return Bernoulli() if levels == 2 else Binomial(levels - 1)

    @property
    def train(self) -> Tensor:
        """The training rows, with pixels drawn once."""
        torch.manual_seed(self.sizes.seed)
        x, transform = self.data.train, self.data.transform
        return x if transform is None else transform(x)

    @property
    def grid(self) -> ConvolutionalGrid:
        """The networks of a VQ-VAE: a code for 4 x 4 pixels."""
        return ConvolutionalGrid(self.sizes.channels, halvings=2)

    def quantizer(self, **options: Any) -> VectorQuantizer:
        """A codebook."""
        return VectorQuantizer(self.sizes.codes, self.sizes.dim, **options)

    def trained(self, name: str, make: Callable[[], Pair], **options: Any) -> Pair:
        """A pair, from its folder if it is there; a training that was stopped goes on."""
        folder = self.runs / name
        torch.manual_seed(self.sizes.seed)
        model, guide = make()
        fit(
            *(model, guide, options.pop("rows", self.data.train)),
            validation=options.pop("validation", self.data.validation),
            transform=options.pop("transform", self.data.transform),
            batch_size=self.sizes.batch_size,
            max_epochs=self.sizes.max_epochs,
            learning_rate=self.sizes.learning_rate,
            lr_scheduler=partial(CosineAnnealingLR, T_max=self.sizes.max_epochs),
            seed=self.sizes.seed,
            run_dir=folder,
            resume=has_begun(folder),
            **options,
        )
        return model, guide

    def with_prior(
        self, name: str, pair: Pair, prior: Any, rows: Any = None, held_out: Any = None
    ) -> Any:
        """The model with a prior that is fitted to its codes, from its folder if it is there."""
        folder, sizes = self.runs / name, self.sizes
        weights = [
            t for part in pair if isinstance(part, nn.Module) for t in part.state_dict().values()
        ]
        made_of = f"{prior}, {sizes}, {self.data.name}, weights {digest(weights)}"
        if (found := kept(folder, made_of)) is not None:
            return found[0]
        of_codes = hasattr(prior, "build_codes")
        by_steps = of_codes and not isinstance(prior, IndependentCodes)
        count = sizes.prior_rows if by_steps else None
        chosen: Any = self.train if rows is None else rows
        chosen = tuple(p[:count] for p in chosen) if isinstance(chosen, tuple) else chosen[:count]
        others = self.data.validation if held_out is None else held_out
        options: dict[str, Any] = {"validation": others} if of_codes else {}
        model = refit_prior(
            *(*pair, chosen, prior),
            **options,
            max_epochs=sizes.prior_epochs,
            batch_size=sizes.batch_size,
            seed=sizes.seed,
        )
        keep(folder, model, pair[1], made_of)
        return model

    # -- pairs ---------------------------------------------------------------------------------------------

    def vqvae(self) -> Pair:
        """A VQ-VAE with a uniform prior."""
        model = VQVAE(self.data.shape, self.quantizer(), self.grid, self.likelihood)
        return model, QuantizingEncoder(model, self.grid)

    def vqvae2(self) -> Pair:
        """One with two levels: a code for 4 x 4 pixels, and one with a sixteenth as many values for 2 x 2.

        With 64 for 2 x 2 pixels, which have 16 patterns, the lower level would say all of the picture.
        """
        network = GridPyramid(self.sizes.channels, halvings=(1, 1))
        few = max(2, self.sizes.codes // 16)
        quantizers = [VectorQuantizer(few, self.sizes.dim), self.quantizer()]
        model = VQVAE2(self.data.shape, quantizers, network, self.likelihood)
        return model, HierarchicalQuantizingEncoder(model, network)

    def vae(self) -> Pair:
        """A Gaussian VAE."""
        shape, size, network = self.data.shape, self.sizes.latent_dim, MLP(self.sizes.hidden)
        return VAE(shape, size, network, self.likelihood), MeanField(shape, size, network)

    def autoregressive(self) -> Pair:
        """p(x) of each pixel given those before it, without a latent."""
        hidden = (2 * self.sizes.hidden[0],)
        return Autoregressive(self.data.shape, self.data.levels or 2, hidden), nothing


@torch.no_grad()
def uses(model: Any, guide: Any, x: Tensor) -> Tensor:
    """How often each code is used for these rows, `(K,)`."""
    z = torch.cat([guide.codes(part) for part in x.split(500)])
    return z.flatten().bincount(minlength=model.quantizer.codes)
