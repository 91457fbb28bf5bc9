"""Rows of which some have a label, for classifiers that learn from those, and tests of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data import few_labels
from ppl_vae.pairs import (
    Batch,
    Batches,
    DataArguments,
    Pair,
    PairError,
    as_tensor,
    num_rows,
    take_rows,
    tensors_of,
)
from ppl_vae.runtime import (
    HIDDEN,
    classes_in_words,
    described,
    digest,
    empty_classes,
    require_count,
)


@dataclass(frozen=True)
class LabelledRows:
    """Rows for the programs of a pair, and their labels.

    Attributes:
        name: The argument that they were given as.
        x: The rows.
        labels: Whole numbers from 0, -1 where a label is hidden: `(n,)`.
    """

    name: str
    x: Batch
    labels: Tensor

    @classmethod
    def of(cls, name: str, given: Any, pair: Pair) -> LabelledRows:
        """What a user gave as rows and labels.

        Raises:
            TypeError: They are no rows and labels.
            ValueError: There is not one label for each row, or a label is none; or no row has one.
            PairError: The pair needs the labels to encode rows.
        """
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise TypeError(
                f"{name} must be rows and their labels, (x, y), got {described(given)}: with load_data, "
                "(data.train, data.train_labels)"
            )
        batches = Batches(given[0], pair, f"{name}[0]")
        x = batches.rows
        _require_rows_alone(pair, x)
        return cls(name, x, _labels(name, given[1], num_rows(x)))

    @property
    def known(self) -> Tensor:
        """Which rows have a label, `(n,)`."""
        return self.labels != HIDDEN

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + int(self.labels.max())

    def rows(self, which: Tensor) -> Batch:
        """Some of the rows."""
        device = tensors_of(self.x)[0].device
        return take_rows(self.x, which.to(device))

    def draws(self, num: int | None, draws: int, seed: int) -> list[Tensor]:
        """The numbers of the rows that keep their label, of each draw, in rising order.

        Args:
            num: How many of them; None: all that have one.
            draws: How many draws.
            seed: Of the first draw; those that follow have the next seeds.

        Raises:
            TypeError: A number is none.
            ValueError: There are not as many, or several draws of all; or they are all of one class.
        """
        require_count("draws", draws)
        if num is None:
            if draws > 1:
                raise ValueError(
                    f"draws={draws} of all labels are all the same: say how many labels are drawn, as in "
                    "labels=100"
                )
            found = [self.labels]
        else:
            require_count("labels", num)
            found = [few_labels(self.labels, num, seed + i, self.name) for i in range(draws)]
        chosen = [(labels != HIDDEN).nonzero().flatten() for labels in found]
        for which in chosen:
            if len(self.labels[which].unique()) < 2:
                raise ValueError(
                    f"{self.name}: all {len(which)} labels that the classifier learns from are "
                    f"{int(self.labels[which[0]])}, so that there is nothing to tell apart: give labels of two "
                    "classes or more"
                )
        return chosen

    def key(self, chosen: list[Tensor], test: LabelledRows | None) -> str:
        """A digest of all that another classifier must share to be compared: labelled rows and test rows."""
        parts = [t for which in chosen for t in (*tensors_of(self.rows(which)), self.labels[which])]
        if test is not None:
            parts += [*tensors_of(test.x), test.labels]
        return digest([part.cpu() for part in parts])


def cautions(train: LabelledRows, chosen: list[Tensor], test: LabelledRows | None) -> Iterator[str]:
    """What is to be said of labels before the numbers are known, one sentence each."""
    classes = max(train.classes, 0 if test is None else test.classes)
    lacking = [gaps for which in chosen if (gaps := empty_classes(train.labels[which], classes))]
    if lacking:
        times = "" if len(chosen) == 1 else f" in {len(lacking)} of {len(chosen)} draws"
        yield (
            f"no labelled row is of {classes_in_words(lacking[0])}{times}: no test row of it can be right"
        )


def _require_rows_alone(pair: Pair, x: Batch) -> None:
    """Refuses a pair that needs more than the rows.

    Raises:
        PairError: It does.
    """
    takes = DataArguments.of(pair)
    if takes.names is not None and takes.required > len(tensors_of(x)):
        needed = ", ".join(takes.names[len(tensors_of(x)) : takes.required])
        raise PairError(
            f"the guide also needs {needed} of each row to encode it; if that is the label, its encodings "
            "tell what is to be learned: give a pair of the rows alone, such as a VAE"
        )


def _labels(name: str, given: Any, n: int) -> Tensor:
    """The labels of n rows as int64 on the CPU.

    Raises:
        ValueError: There is not one for each row, one is no label, or all are hidden.
    """
    y = as_tensor(given, f"{name}[1]").cpu()
    if y.shape != (n,):
        hint = ": write y.argmax(-1) for one-hot vectors" if y.dim() == 2 else ""
        raise ValueError(
            f"{name}: {n} rows came with labels of shape {tuple(y.shape)}, expected one label for each row, "
            f"({n},){hint}"
        )
    if y.is_floating_point():
        y = y.nan_to_num(HIDDEN)
        if not torch.equal(y, y.round()):
            odd = float(y[y != y.round()][0])
            raise ValueError(
                f"{name}: labels must be whole numbers from 0, but one is {odd:g}: "
                "numpy.unique(y, return_inverse=True)[1] numbers any values"
            )
    y = y.long()
    if bool((y < HIDDEN).any()):
        raise ValueError(
            f"{name}: labels count from 0, and {HIDDEN} stands for a hidden one, but a label is {int(y.min())}"
        )
    if not bool((y != HIDDEN).any()):
        hint = (
            ": load_data(labels=...) hides those of test rows, data.test_labels has them"
            if name == "test"
            else ": give rows with labels"
        )
        raise ValueError(f"{name}: all {n} labels are hidden ({HIDDEN}){hint}")
    return y
