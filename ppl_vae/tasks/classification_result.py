"""The result of a classification accuracy score: how often classifiers are right, by seed, row and class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.runtime import classes_in_words, empty_classes
from ppl_vae.stats import CrossedEstimate, Result

_MOST_CLASSES = 20
"""Classes that are printed."""


@dataclass(frozen=True)
class ClassificationAccuracy(Result):
    """Result of `classification_accuracy_score`. Accuracies are shares from 0 to 1; percent is what is printed.

    Attributes:
        correct: Whether the classifier of each seed that was trained on generated rows gives each test row its
            label, `(seeds, n)`.
        real_correct: The same for classifiers trained on the real rows, with the same seeds.
        labels: Labels of the test rows, `(n,)`.
        counts: Generated rows of each class, as many as real ones, `(classes,)`.
        seeds: The seeds of the classifiers.
        classifier: The classifier and the length of its training, in words.
        compared_with: A digest of all that the accuracy of the real rows depends on.
    """

    correct: Tensor
    real_correct: Tensor
    labels: Tensor
    counts: Tensor
    seeds: tuple[int, ...]
    classifier: str
    compared_with: str

    @property
    def num_rows(self) -> int:
        """The number of test rows n."""
        return len(self.labels)

    @property
    def accuracy(self) -> CrossedEstimate:
        """Accuracy of classifiers trained on generated rows: the classification accuracy score."""
        return _share(self.correct)

    @property
    def real_accuracy(self) -> CrossedEstimate:
        """Accuracy of classifiers trained on as many real rows."""
        return _share(self.real_correct)

    @property
    def difference(self) -> CrossedEstimate:
        """The score minus that of real rows, paired by test row and by seed."""
        return CrossedEstimate(self.correct.double() - self.real_correct.double(), "%", 100)

    def of_class(self, label: int) -> tuple[CrossedEstimate, CrossedEstimate, CrossedEstimate]:
        """Accuracy, that of real rows and their difference, over the test rows of a class.

        Raises:
            ValueError: No test row is of this class.
        """
        of = self.labels == label
        if not bool(of.any()):
            raise ValueError(
                f"no test row is of class {label}: expected one of "
                f"{', '.join(map(str, self.labels.unique().tolist()))}"
            )
        right, real = self.correct[:, of], self.real_correct[:, of]
        return (
            _share(right),
            _share(real),
            CrossedEstimate(right.double() - real.double(), "%", 100),
        )

    def rows(self) -> dict[str, Tensor]:
        """Values of each test row by name, `(n,)`; accuracies are means over seeds."""
        return {
            "label": self.labels,
            "accuracy": self.accuracy.by_row,
            "real_accuracy": self.real_accuracy.by_row,
        }

    def table(self) -> list[list[str]]:
        """One line for each class that test rows have, or for those that lose most."""
        there = self.labels.unique().tolist()
        found = {label: self.of_class(label) for label in there}
        if len(there) > _MOST_CLASSES:
            there = sorted(there, key=lambda label: found[label][2].mean)[:_MOST_CLASSES]
        header = ["class", "test rows", "generated, %", "real, %", "difference"]
        body = []
        for label in there:
            score, real, difference = found[label]
            cells = [score.numbers(".1f"), real.numbers(".1f"), difference.numbers("+.1f")]
            body.append([f"{label}", f"{int((self.labels == label).sum())}", *cells])
        return [header, *body]

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        by_seed = (
            ", ".join(f"{100 * share:.1f}" for share in each.by_repeat.tolist()) + " %"
            for each in (self.accuracy, self.real_accuracy)
        )
        return [
            ("accuracy", str(self.accuracy)),
            ("accuracy of real rows", str(self.real_accuracy)),
            ("difference", f"{self.difference.numbers('+.2f')} %"),
            *zip(("by seed", "by seed, real rows"), by_seed, strict=True),
            ("training rows, test rows", f"{int(self.counts.sum())}, {self.num_rows}"),
            ("classifier", self.classifier),
        ]

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        if len(self.seeds) == 1:
            yield (
                "with one seed, nothing is known of how much the training of the classifier varies: the errors "
                "leave it out; use seeds=5"
            )
        real, most = self.real_accuracy, float(self.labels.bincount().max()) / self.num_rows
        if real.mean - 2 * real.standard_error <= most < 1:
            yield (
                f"classifiers trained on real rows are right on {100 * real.mean:.1f} % of the test rows, and "
                f"the largest class is {100 * most:.1f} % of them: that is too little for a score; "
                "give a classifier that suits the rows, or train it for longer"
            )

    def caption(self) -> list[str]:
        """Which classes no test row has."""
        missing = empty_classes(self.labels, len(self.counts))
        return [f"No test row is of {classes_in_words(missing)}."] if missing else []

    def summary_numbers(self) -> dict[str, Any]:
        """Settings, accuracies with errors, then by seed and by class, where None has no test rows."""
        there = set(self.labels.unique().tolist())
        by_class = [
            self.of_class(c)[0].to_dict() if c in there else None for c in range(len(self.counts))
        ]
        return {
            "num_rows": self.num_rows,
            "num_training_rows": int(self.counts.sum()),
            "classes": len(self.counts),
            "classifier": self.classifier,
            "seeds": list(self.seeds),
            "accuracy": self.accuracy.to_dict(),
            "real_accuracy": self.real_accuracy.to_dict(),
            "difference": self.difference.to_dict(),
            "by_seed": self.accuracy.by_repeat.tolist(),
            "real_by_seed": self.real_accuracy.by_repeat.tolist(),
            "by_class": by_class,
        }


def _share(correct: Tensor) -> CrossedEstimate:
    return CrossedEstimate(correct.double(), "%", 100)
