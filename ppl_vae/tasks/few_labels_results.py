"""The results of classifiers that learned from a few labels: which test rows they give their label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.runtime import HIDDEN
from ppl_vae.stats import CrossedEstimate, Result


@dataclass(frozen=True)
class LabelAccuracy(Result):
    """Accuracy of classifiers that learned from a few labels: shares from 0 to 1, printed in percent.

    The standard errors are those of means over test rows and over draws of labels, both of which are random
    (`ppl_vae.stats.CrossedEstimate`).

    Attributes:
        predicted: The label that each test row gets, from the classifier of each draw of labels: `(draws, n)`.
        labels: Labels of the test rows, `(n,)`, -1 where they are hidden: such rows do not count.
        num_labels: Labels that a classifier learned from.
        method: How it learned, in words.
        seeds: The seeds of the draws.
        compared_with: A digest of the labelled rows and the test rows.
    """

    predicted: Tensor
    labels: Tensor
    num_labels: int
    method: str
    seeds: tuple[int, ...]
    compared_with: str

    @property
    def num_rows(self) -> int:
        """The number of test rows n."""
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Whether each test row with a label gets it from the classifier of each draw: `(draws, rows)`."""
        known = self.labels != HIDDEN
        return self.predicted[:, known] == self.labels[known]

    @property
    def accuracy(self) -> CrossedEstimate:
        """Share of the test rows that get their label."""
        return CrossedEstimate(self.correct.double(), "%", 100)

    def minus(self, other: LabelAccuracy) -> CrossedEstimate:
        """The accuracy minus that of another classifier, paired by test row and draw of labels.

        Raises:
            ValueError: The other one learned from other labels, or has other test rows.
        """
        if other.compared_with != self.compared_with:
            raise ValueError(
                "the two learned from other labels, or have other test rows: use the same train, test, labels, "
                "draws and seed for both"
            )
        return CrossedEstimate(self.correct.double() - other.correct.double(), "%", 100)

    def rows(self) -> dict[str, Tensor]:
        """Values of each test row by name, `(n,)`; the accuracy is the share of draws, NaN without a label."""
        share = (self.predicted == self.labels).double().mean(0)
        return {"label": self.labels, "accuracy": share.where(self.labels != HIDDEN, torch.nan)}

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        found = [("labels", str(self.num_labels)), ("classifier", self.method)]
        if not self.num_rows:
            return found
        by_draw = ", ".join(f"{100 * share:.1f}" for share in self.accuracy.by_repeat.tolist())
        return [
            ("accuracy", str(self.accuracy)),
            *([("by draw of labels", f"{by_draw} %")] if len(self.seeds) > 1 else []),
            *found,
            ("test rows", str(self.correct.shape[1])),
        ]

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        if not self.num_rows:
            return
        if len(self.seeds) == 1:
            yield (
                "with one draw of labels, the error leaves out how much other labels would change; use labels "
                "and draws=10"
            )
        known = self.labels[self.labels != HIDDEN]
        most = float(known.bincount().max()) / len(known)
        if self.accuracy.mean + 2 * self.accuracy.standard_error < most < 1:
            yield (
                f"the largest class is {100 * most:.1f} % of the test rows: to name it always would be right "
                "more often"
            )

    def summary_numbers(self) -> dict[str, Any]:
        """Settings, the accuracy with its error, then by draw."""
        return {
            "num_rows": self.num_rows,
            "num_labels": self.num_labels,
            "method": self.method,
            "seeds": list(self.seeds),
            "accuracy": self.accuracy.to_dict(),
            "by_draw": self.accuracy.by_repeat.tolist(),
        }


@dataclass(frozen=True)
class Probe(LabelAccuracy):
    """Result of `probe`; see `LabelAccuracy`.

    Attributes:
        C: The weight of the labels that was chosen for each draw.
        dimensions: Numbers of a row that the classifier reads.
    """

    C: tuple[float, ...]
    dimensions: int

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        low, high = min(self.C), max(self.C)
        chosen = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return [*super().lines(), ("C, chosen on the labelled rows", chosen)]

    def summary_numbers(self) -> dict[str, Any]:
        """Settings, the accuracy with its error, then by draw."""
        own = {"dimensions": self.dimensions, "C": list(self.C)}
        return super().summary_numbers() | own


@dataclass(frozen=True)
class FineTuned(LabelAccuracy):
    """Result of `fine_tune`; see `LabelAccuracy`. Without test rows there is no accuracy.

    Attributes:
        classifiers: One for each draw of labels: modules that map rows `(n, *shape)` to logits `(n, classes)`.
        losses: Cross entropy of the labelled rows at the end, in nats per row, for each draw.
        steps: The step whose weights each classifier has.
    """

    classifiers: tuple[nn.Module, ...]
    losses: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def classifier(self) -> nn.Module:
        """That of the first draw."""
        return self.classifiers[0]

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        mean = sum(self.losses) / len(self.losses)
        return [*super().lines(), ("cross entropy of the labelled rows", f"{mean:.3g} nats")]

    def summary_numbers(self) -> dict[str, Any]:
        """Settings, the accuracy with its error, then by draw."""
        return super().summary_numbers() | {
            "losses": list(self.losses),
            "steps": list(self.steps),
        }
