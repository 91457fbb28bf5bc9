"""Can the classes be learned from generated rows? A classifier trained on them, and tested on real rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from progress import Table, chosen_rows, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import ppl_vae
from ppl_vae.codes import VectorQuantizer
from ppl_vae.data import Data
from ppl_vae.guides import MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Binomial, DiscretizedLogistic, Likelihood
from ppl_vae.models import (
    VAE,
    ConditionalVAE,
    ConditionalVQVAE,
    PixelCNNPrior,
    ProbabilisticPCA,
)
from ppl_vae.networks import MLP, Convolutional, ConvolutionalGrid, Labels
from ppl_vae.stats import CrossedEstimate
from ppl_vae.tasks import (
    ClassificationAccuracy,
    NetworkClassifier,
    class_conditional,
    model_per_class,
)

Labeled = tuple[Tensor, Tensor]


@dataclass
class Setting:
    """The data, how pairs are trained, and the pairs, each trained when it is first asked for."""

    data: Data[Labeled]
    classes: int
    latent_dim: int
    network: MLP
    codes: int
    grid: ConvolutionalGrid
    max_epochs: int
    batch_size: int
    seed: int

    @property
    def train(self) -> Labeled:
        """The training rows and their labels."""
        return self.data.train

    @property
    def held_out(self) -> Labeled:
        """Validation rows and their labels: a tenth as many at most, because each epoch looks at all of them.

        They are taken at equal distances, because those of a folder are in the order of their classes.
        """
        x, y = self.data.validation
        step = -(-10 * len(y) // len(self.train[1]))
        return x[::step], y[::step]

    @cached_property
    def vae(self) -> tuple[VAE, MeanField]:
        """A VAE that does not see the labels."""
        return self._vae(self.train[0], self.held_out[0])

    @cached_property
    def conditional(self) -> tuple[ConditionalVAE, MeanField]:
        """A VAE that is given the labels."""
        torch.manual_seed(self.seed)
        sizes: dict[str, Any] = {"latent_dim": self.latent_dim, "context": Labels(self.classes)}
        model = ConditionalVAE(
            self.data.shape, network=self.network, likelihood=self._likelihood(), **sizes
        )
        guide = MeanField(self.data.shape, network=self.network, **sizes)
        self._fit(model, guide, self.train, self.held_out)
        return model, guide

    @cached_property
    def vaes(self) -> list[VAE]:
        """A VAE for each class."""
        (x, y), (held_out, its_labels) = self.train, self.held_out
        each = range(self.classes)
        return [self._vae(x[y == c], held_out[its_labels == c])[0] for c in each]

    @cached_property
    def coded(self) -> tuple[ConditionalVQVAE, QuantizingEncoder]:
        """A VQ-VAE with a prior of codes that is given the labels, fitted afterwards."""
        torch.manual_seed(self.seed)
        model = ConditionalVQVAE(
            self.data.shape,
            VectorQuantizer(self.codes, dim=16),
            self.grid,
            self._likelihood(),
            context=Labels(self.classes),
        )
        guide = QuantizingEncoder(model, self.grid)
        self._fit(model, guide, self.train, self.held_out)
        learned = ppl_vae.refit_prior(
            *(model, guide, self.train, PixelCNNPrior(self.grid.channels)),
            validation=self.held_out,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=False,
        )
        return learned, guide

    def _vae(self, rows: Tensor, held_out: Tensor) -> tuple[VAE, MeanField]:
        torch.manual_seed(self.seed)
        shape, size = self.data.shape, self.latent_dim
        model = VAE(shape, size, self.network, self._likelihood())
        guide = MeanField(shape, size, self.network)
        self._fit(model, guide, rows, held_out if len(held_out) else None)
        return model, guide

    def _likelihood(self) -> Likelihood:
        """Of counts from 0, or of pictures with values k / 255."""
        levels = self.data.levels or 0
        counts = float(self.train[0].max()) > 1
        return Binomial(levels - 1) if counts else DiscretizedLogistic(levels)

    def _fit(self, model: Any, guide: Any, rows: Any, held_out: Any) -> None:
        """Trains; the weights with the best held-out ELBO are kept."""
        ppl_vae.fit(
            model,
            guide,
            rows,
            validation=held_out,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            lr_scheduler=partial(CosineAnnealingLR, T_max=self.max_epochs),
            patience=None if held_out is None else self.max_epochs,
            seed=self.seed,
            progress=False,
        )


def reconstructions(of: Setting) -> Any:
    """E[x | z] of each training row, with z from the guide, and its label."""
    x, y = of.train
    return ppl_vae.reconstruct(*of.vae, x, num_samples=1, seed=of.seed, progress=False), y


def coded_reconstructions(of: Setting) -> Any:
    """E[x | z] of each training row, with the codes nearest to it, and its label."""
    found = ppl_vae.reconstruct(*of.coded, of.train, num_samples=1, seed=of.seed, progress=False)
    return found, of.train[1]


def normals(of: Setting) -> Any:
    """Draws of probabilistic PCA, fitted to the rows of each class: what a normal distribution is good for."""
    x, y = of.train
    models = [ProbabilisticPCA(of.data.shape, of.latent_dim) for _ in range(of.classes)]
    for label, model in enumerate(models):
        ppl_vae.fit_em(model, x[y == label], max_iterations=30, seed=of.seed, progress=False)
    return model_per_class(models)


def shuffled(of: Setting) -> Any:
    """The training rows with labels of others."""
    x, y = of.train
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(of.seed))
    return x, y[order]


# Add a line here for other generators: what the classifier is trained on, and what makes it of the setting.
GENERATORS: dict[str, Callable[[Setting], Any]] = {
    "reconstructions, VAE": reconstructions,
    "draws, ConditionalVAE": lambda of: class_conditional(of.conditional[0]),
    "means, ConditionalVAE": lambda of: class_conditional(of.conditional[0], means=True),
    "reconstructions, VQ-VAE": coded_reconstructions,
    "draws, ConditionalVQVAE": lambda of: class_conditional(of.coded[0]),
    "means, ConditionalVQVAE": lambda of: class_conditional(of.coded[0], means=True),
    "draws, a VAE for each class": lambda of: model_per_class(of.vaes),
    "draws, PCA for each class": normals,
    "real rows, labels shuffled": shuffled,
}


def main(
    data: str = "digits",
    data_dir: Path = Path("data"),
    max_rows: int | None = None,
    max_epochs: int = 100,
    batch_size: int = 64,
    latent_dim: int = 16,
    hidden: tuple[int, ...] = (400, 400),
    codes: int = 128,
    grid: ConvolutionalGrid = ConvolutionalGrid(channels=32, halvings=2),  # frozen
    seeds: int = 5,
    num_steps: int = 1000,
    channels: tuple[int, ...] = (16, 32, 64),
    rows: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Trains a small convolutional classifier on what each model generates, one row for each label of
    the training rows, and on the real rows; prints the accuracies on the real test rows.

    Args:
        data: Pictures with labels: `digits`, `MNIST`, `CIFAR10`, `folder:PATH`, ...
        data_dir: Folder of the data, in torchvision's layout.
        max_rows: Maximum number of rows per split.
        max_epochs: Passes over the training rows for each VAE, of which the weights with the best held-out ELBO
            are kept.
        batch_size: Rows per step of a VAE.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the encoder of a VAE, and of the decoder backwards.
        codes: Number of codes of the VQ-VAE.
        grid: Its networks.
        seeds: Classifiers that are trained on each set of rows.
        num_steps: Steps of a classifier's training, of 128 rows.
        channels: Of the classifier's convolutions.
        rows: Which lines to print after the first, by their names; all by default.
        seed: Seed of all random numbers.
    """
    chosen = chosen_rows(rows, GENERATORS)
    loaded = ppl_vae.load_data(data, data_dir=data_dir, labels=True, max_rows=max_rows, seed=seed)
    train, test = loaded.train, loaded.test
    setting = Setting(
        loaded,
        1 + int(train[1].max()),
        latent_dim,
        MLP(hidden=hidden),
        codes,
        grid,
        max_epochs,
        batch_size,
        seed,
    )
    classifier = NetworkClassifier(Convolutional(channels), num_steps=num_steps)
    columns = ["trained on", "accuracy", "minus real rows", "by seed", "lowest (class)"]
    table = Table(columns, steps=len(chosen))
    table.head()
    found: ClassificationAccuracy | None = None
    warnings = []
    for name in chosen:
        first = found is None
        found = ppl_vae.classification_accuracy_score(
            GENERATORS[name](setting),
            train,
            test,
            classifier=classifier,
            seeds=seeds,
            seed=seed,
            reference=found,
            progress=False,
        )
        if first:
            table.row(["real rows", *_cells(found.real_accuracy, "", test[1])])
        difference = found.difference.numbers("+.2f")
        table.row([name, *_cells(found.accuracy, difference, test[1])])
        warnings += [f"{name}: {warning}" for warning in found.warnings]
        table.step(name)
    assert found is not None
    print(
        f"\n{len(train[1])} training rows, {len(test[1])} test rows; percent ± standard error over test rows "
        f"and the {seeds} seeds of the classifier.\nClassifier: {found.classifier}."
    )
    print("\n".join(warnings))


def _cells(accuracy: CrossedEstimate, difference: str, labels: Tensor) -> list[str]:
    """Accuracy, difference, the least and the largest of a seed, and the class with the lowest accuracy."""
    shares = (100 * accuracy.by_repeat).tolist()
    between = f"{min(shares):.1f} to {max(shares):.1f}"
    by_class = {
        c: 100 * float(accuracy.by_row[labels == c].mean()) for c in labels.unique().tolist()
    }
    worst = min(by_class, key=lambda c: by_class[c])
    return [accuracy.numbers(), difference, between, f"{by_class[worst]:.1f} ({worst})"]


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"max_rows": 200, "max_epochs": 2, "latent_dim": 2, "hidden": (16,)},
            **{"codes": 8, "grid.channels": 8},
            **{"seeds": 2, "num_steps": 20, "channels": (4, 8)},
        },
    )
