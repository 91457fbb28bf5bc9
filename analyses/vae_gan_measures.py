"""What is measured of one model: nats of its decoder, features, draws. It is kept, as it takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from autoencoder_pairs import Pair, Rows, reconstructed, spread_over, squared_errors
from torch import Tensor
from vae_gan_pairs import MODELS, Setting, fitted_to

from ppl_vae import classification_accuracy_score, evaluate
from ppl_vae.models import FullNormal
from ppl_vae.runtime import digest, read_tensors, write_tensors
from ppl_vae.stats import CrossedEstimate
from ppl_vae.tasks import ClassificationAccuracy, NetworkClassifier, prior_per_class, sample

SPREAD, DISTINCT = 0.5, 0.1
"""Below these, draws count as collapsed: the share of the variance of rows, the share of different rows."""

SHOWN = 10
"""Pictures of a line."""

DRAWS = 500
"""Draws whose spread is measured."""


@dataclass(frozen=True)
class Measured:
    """What is measured of a model and an encoder.

    Attributes:
        at: The test rows that ELBO and log p(x) are of.
        elbo: ELBO of each of them, nats.
        log_p: log p(x) of each of them, nats.
        unreliable: Whether that of a row is not to be trusted.
        errors: Squared error of each test row.
        distance: Squared distance of features, over the variance of those of rows.
        spread: Variance of the draws, over that of the test rows.
        distinct: How many different training rows are nearest to a draw, over as many as there could be.
        accuracy: Of classifiers from reconstructions, with its standard error, and from draws; or empty.
        seen: Reconstructions of the first test rows.
        drawn: The first draws.
    """

    at: Tensor
    elbo: Tensor
    log_p: Tensor
    unreliable: Tensor
    errors: Tensor
    distance: Tensor
    spread: Tensor
    distinct: Tensor
    accuracy: Tensor
    seen: Tensor
    drawn: Tensor

    @property
    def collapsed(self) -> bool:
        """Whether draws are of few kinds."""
        return bool(self.spread < SPREAD) or bool(self.distinct < DISTINCT)


def kept(file: Path, made_of: str, measure: Callable[[], Measured]) -> Measured:
    """What was measured, from its file; it is measured anew if that is of other settings.

    Args:
        file: The file.
        made_of: What it depends on.
        measure: Measures.
    """
    if file.exists():
        tensors, metadata = read_tensors(file)
        if metadata["made_of"] == made_of:
            return Measured(**tensors)
    found = measure()
    tensors = {each.name: getattr(found, each.name) for each in fields(Measured)}
    write_tensors(file, tensors, {"made_of": made_of})
    return found


def distance(judge: Any, x: Tensor, seen: Tensor) -> Tensor:
    """The squared distance of features of rows and reconstructions, over the variance of those of rows."""
    with torch.no_grad():
        real, false = (judge.eval()(part.float())[1].flatten(1) for part in (x, seen))
    share: Tensor = (real - false).square().sum() / (real - real.mean(0)).square().sum()
    return share


def variance(x: Tensor) -> Tensor:
    """The mean squared distance of rows from their mean."""
    flat = x.double().flatten(1)
    return (flat - flat.mean(0)).square().sum(1).mean()


def share_distinct(drawn: Tensor, train: Tensor) -> Tensor:
    """How many different training rows are nearest to a draw, over the smaller number of the two."""
    nearest = torch.cdist(drawn.flatten(1), train.to(drawn.dtype).flatten(1)).argmin(1)
    return torch.tensor(len(nearest.unique()) / min(len(drawn), len(train)))


@dataclass(frozen=True)
class Measures:
    """How models are measured.

    Attributes:
        judge: The discriminator of other weights whose features are compared.
        guide_epochs: Passes over the rows for the noise and a guide of a fixed decoder.
        test_rows: Test rows for ELBO and log p(x).
        num_samples: Importance samples per row.
        classifier_steps: Steps of the training of a classifier.
        accuracy: Whether there are classifiers.
    """

    judge: Any
    guide_epochs: int
    test_rows: int
    num_samples: int
    classifier_steps: int
    accuracy: bool

    def of(self, name: str, setting: Setting) -> Measured:
        """What is measured of a model and a seed, from its file if it is there."""
        model, own = MODELS[name](setting)
        numbers = [self.guide_epochs, self.test_rows, self.num_samples]
        numbers += [self.classifier_steps] if self.accuracy else []
        made_of = digest([*model.state_dict().values(), *own.state_dict().values()])
        judged = digest(self.judge.state_dict().values())
        folder = setting.runs / setting.rows.name / "measured"
        folder.mkdir(parents=True, exist_ok=True)
        return kept(
            folder / f"{name.replace('/', '_')}-{made_of[:16]}.safetensors",
            f"{numbers}, {judged}, {digest([setting.rows.train, setting.rows.test])}",
            partial(self._measured, name, setting, model, own),
        )

    def _measured(self, name: str, setting: Setting, model: Any, own: Any) -> Measured:
        rows = setting.rows
        model, guide = fitted_to(setting, model, self.guide_epochs)
        # A GAN has no encoder of its own: the one that is fitted to it stands for it.
        encoder = guide if name == "GAN" else own
        seen = reconstructed((model, encoder), rows.test)
        at = spread_over(len(rows.test), self.test_rows)
        found = evaluate(
            *(model, guide, rows.test[at]),
            num_samples=self.num_samples,
            method="auto",
            seed=0,
            progress=False,
        )
        drawn = sample(model, DRAWS, seed=0, means=True)
        accuracy = torch.empty(0)
        if self.accuracy:
            both = accuracies_of(rows, (model, encoder), (model, guide), self.classifier_steps)
            accuracy = torch.tensor([[each.mean, each.standard_error] for each in both]).flatten()
        return Measured(
            at=at,
            elbo=found.elbo.values,
            log_p=found.log_likelihood.values,
            unreliable=found.unreliable,
            errors=squared_errors(rows.test, seen),
            distance=distance(self.judge, rows.test, seen),
            spread=variance(drawn) / variance(rows.test),
            distinct=share_distinct(drawn, rows.train),
            accuracy=accuracy,
            seen=seen[spread_over(len(seen), SHOWN)],
            drawn=drawn[:SHOWN],
        )


def labels_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Labels of the training rows and of the test rows.

    Raises:
        ValueError: There are none.
    """
    if rows.train_labels is None or rows.test_labels is None:
        raise ValueError(
            f"--accuracy needs labels, and {rows.name} has none: leave it out, or choose data with labels, "
            "such as digits or MNIST"
        )
    return rows.train_labels, rows.test_labels


def accuracies_of(
    rows: Rows, pair: Pair, drawn_by: Pair, steps: int
) -> tuple[CrossedEstimate, CrossedEstimate]:
    """The accuracy on real test rows of classifiers that were trained on reconstructions, and on draws.

    Args:
        rows: The rows.
        pair: What reconstructs them.
        drawn_by: The model that draws, and the guide to whose codes of each class a normal density is fitted.
        steps: Of the training of a classifier.
    """
    labels, test_labels = labels_of(rows)
    train = rows.train, labels

    def score(
        generator: Any, reference: ClassificationAccuracy | None = None
    ) -> ClassificationAccuracy:
        return classification_accuracy_score(
            *(generator, train, (rows.test, test_labels)),
            classifier=NetworkClassifier(num_steps=steps),
            seeds=2,
            reference=reference,
            progress=False,
        )

    seen = score((reconstructed(pair, rows.train), labels))
    drawn = score(prior_per_class(*drawn_by, train, FullNormal(), means=True, seed=0), seen)
    return seen.accuracy, drawn.accuracy
