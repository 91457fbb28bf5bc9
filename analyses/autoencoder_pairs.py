"""The autoencoders of the scripts, how they are trained and kept, and PCA beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_pairs import has_begun
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit, load_data
from ppl_vae.guides import DeltaEncoder
from ppl_vae.models import Autoencoder
from ppl_vae.networks import MLP, Convolutional, Network
from ppl_vae.tasks import reconstruct

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """How large networks are, and how long they are trained.

    Attributes:
        hidden: Widths of the encoder's layers; the decoder goes through them backwards.
        channels: With some, convolutional networks in place of these layers.
        sigmoid: Whether the decoder ends in a sigmoid, so that means are from 0 to 1, as the rows are.
        max_epochs: Passes over the training rows.
        batch_size: Rows of a step.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        max_rows: Maximum number of rows per split; None takes all.
        seed: Seed of all random numbers.
    """

    hidden: tuple[int, ...] = (1000, 500, 250)
    channels: tuple[int, ...] = ()
    sigmoid: bool = True
    max_epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    max_rows: int | None = None
    seed: int = 0

    @property
    def network(self) -> Network:
        """Of encoder and decoder."""
        output = nn.Sigmoid if self.sigmoid else None
        if self.channels:
            return Convolutional(self.channels, self.hidden[0], output=output)
        return MLP(hidden=self.hidden, activation=nn.GELU, output=output)


SMALL = Sizes(hidden=(500, 250), max_epochs=20)
"""For scripts that train many."""


@dataclass(frozen=True)
class Rows:
    """Rows whose values are from 0 to 1.

    Attributes:
        name: What they are called.
        train: All rows that are not for the test, `(n, *shape)`.
        test: The rows of the test.
        train_labels: A label for each training row; None if the data have none.
        test_labels: The same for the test.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None

    @classmethod
    def of(cls, name: str, data_dir: Path, sizes: Sizes) -> Rows:
        """Loads them. Nothing is held out, as nothing is chosen: the number of epochs is fixed."""
        data = load_data(name, data_dir=data_dir, max_rows=sizes.max_rows, seed=sizes.seed)
        # Pictures are k / 255 already; the digits are counts.
        most = data.levels - 1 if data.levels and float(data.train.max()) > 1 else 1
        train, labels = torch.cat([data.train, data.validation]), None
        if data.train_labels is not None and data.validation_labels is not None:
            labels = torch.cat([data.train_labels, data.validation_labels])
        # Of a folder its last part: names are parts of paths here.
        called = Path(data.name).name
        return cls(called, train / most, data.test / most, labels, data.test_labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return tuple(self.train.shape[1:])


def trained(
    runs: Path, name: str, make: Callable[[], Pair], rows: Rows, sizes: Sizes, **options: Any
) -> Pair:
    """A pair, from its folder if it is there; a training that was stopped goes on."""
    folder = runs / name
    torch.manual_seed(sizes.seed)
    model, guide = make()
    fit(
        *(model, guide, options.pop("x", rows.train)),
        batch_size=sizes.batch_size,
        max_epochs=sizes.max_epochs,
        learning_rate=sizes.learning_rate,
        lr_scheduler=partial(CosineAnnealingLR, T_max=sizes.max_epochs),
        seed=sizes.seed,
        run_dir=folder,
        resume=has_begun(folder),
        **options,
    )
    return model, guide


def autoencoder(rows: Rows, latent_dim: int, sizes: Sizes, linear: bool = False) -> Pair:
    """An autoencoder of squared errors."""
    network = sizes.network
    return (
        Autoencoder(rows.shape, latent_dim, network, linear=linear),
        DeltaEncoder(rows.shape, latent_dim, network, linear=linear),
    )


class PCA:
    """The best linear autoencoder: its code is the first principal components.

    Args:
        x: Rows, `(n, *shape)`.
    """

    def __init__(self, x: Tensor) -> None:
        flat = x.flatten(1).double()
        self.mean = flat.mean(0)
        covariance = (flat - self.mean).T @ (flat - self.mean) / len(flat)
        values, vectors = torch.linalg.eigh(covariance)
        self.variances, self.directions = values.flip(0), vectors.flip(1)

    def reconstruct(self, x: Tensor, components: int) -> Tensor:
        """Rows, of their first components."""
        centered = x.flatten(1).double() - self.mean
        kept = self.directions[:, :components]
        found: Tensor = centered @ kept @ kept.T + self.mean
        return found.reshape(x.shape)


def spread_over(number: int, most: int) -> Tensor:
    """At most so many of some rows, at equal distances from the first to the last one."""
    return torch.linspace(0, number - 1, min(number, most)).round().long()


def squared_errors(x: Tensor, found: Tensor) -> Tensor:
    """The squared error of each row, summed over its numbers, `(n,)`."""
    return (x.double() - found.double()).flatten(1).square().sum(1)


def reconstructed(pair: Pair, x: Tensor) -> Tensor:
    """What an autoencoder makes of rows."""
    found: Tensor = reconstruct(*pair, x, num_samples=1, seed=0)
    return found


def picture_of_rows(sheet: dict[str, Tensor]) -> Figure:
    """Pictures in rows with names: each entry is `(n, 1 or 3, height, width)`, or without channels."""
    count = len(next(iter(sheet.values())))
    *_, height, width = next(iter(sheet.values())).shape
    size = (0.62 * count * width / height + 1.6, 0.62 * len(sheet))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(sheet), count, squeeze=False)
    for line, (name, pictures) in zip(axes, sheet.items(), strict=True):
        for place, picture in zip(line, pictures, strict=True):
            shown = picture.movedim(0, -1) if picture.dim() == 3 else picture
            place.imshow(shown.clamp(0, 1).float().squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    return figure
