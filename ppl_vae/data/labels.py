"""Labels of rows: what is a class and what an attribute, which are told, and classes that no row has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from ppl_vae.runtime import HIDDEN, classes_in_words, empty_classes


def as_classes(labels: Sequence[Tensor]) -> list[Tensor]:
    """The labels of all parts of a file as what they are: classes, int64 `(n,)`, or attributes as they came.

    Whole numbers `(n,)` are classes, also if they are stored as real numbers, among which NaN is a hidden label
    (so pandas stores labels with some missing), unless there would be more classes than rows. One-hot vectors
    are classes, and so is a column of integers, `(n, 1)`. A column of real numbers is one attribute, whatever
    its values.

    Args:
        labels: Of each part, int64 or float32, `(n, ...)`.

    Example:
        >>> as_classes([torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, torch.nan])])
        [tensor([0, 1, 1]), tensor([ 1, -1])]
        >>> as_classes([torch.tensor([[0, 1, 0], [1, 0, 0]])])
        [tensor([1, 0])]
        >>> as_classes([torch.tensor([0.5, 1.0])]), as_classes([torch.tensor([[1.0], [0.0]])])
        ([tensor([0.5000, 1.0000])], [tensor([[1.],
                [0.]])])
    """
    if all(_is_one_hot(part) for part in labels):
        return [part.argmax(-1) for part in labels]
    if all(part.shape[1:] == (1,) and not part.is_floating_point() for part in labels):
        return [part[:, 0] for part in labels]
    if not all(part.dim() == 1 for part in labels):
        return list(labels)
    known = torch.cat([part[~part.isnan()].double() for part in labels])
    whole = bool((known == known.round()).all()) and bool((known >= HIDDEN).all())
    if not len(known) or not whole or known.max() >= sum(map(len, labels)):
        return list(labels)
    return [part.nan_to_num(HIDDEN).long() for part in labels]


def _is_one_hot(labels: Tensor) -> bool:
    return (
        labels.dim() == 2
        and labels.shape[1] > 1
        and bool(((labels == 0) | (labels == 1)).all())
        and bool((labels.sum(1) == 1).all())
    )


def with_labels(
    name: str,
    rows: Sequence[Tensor],
    found: Sequence[Tensor | None],
    told: bool | int,
    generator: Generator,
) -> list[tuple[Tensor, Tensor]]:
    """Rows and labels of each split: all labels, or so many of the training rows.

    Args:
        name: Of the data.
        rows: Of the splits, the training rows first.
        found: Their labels.
        told: True, or how many.
        generator: For the choice.

    Raises:
        ValueError: There are no labels, or not as many.
    """
    labels = [each for each in found if each is not None]
    if len(labels) < len(found):
        raise ValueError(
            f"{name} has no labels: leave out `labels`, or use data that have some (digits, MNIST, pictures in "
            "a folder for each class, an .npz file with x and y)"
        )
    if isinstance(told, bool | np.bool_):
        # A single number of each row is a vector of one attribute.
        shaped = [y[:, None] if y.dim() == 1 and y.is_floating_point() else y for y in labels]
        return list(zip(rows, shaped, strict=True))
    train = labels[0]
    if train.dim() > 1 or train.is_floating_point():
        kind = "real numbers" if train.dim() == 1 else "vectors"
        raise ValueError(
            f"labels={told}: the labels of {name} are {kind} ({tuple(train.shape)}, {train.dtype}), not "
            "classes of which some could be hidden. Save one whole number from 0 for each row as y "
            "(numpy.unique(y, return_inverse=True)[1] numbers any values), or ask for labels=True, which gives "
            "them as attributes to a ConditionalVAE"
        )
    hidden = [few_labels(train, int(told), generator, name)]
    hidden += [torch.full_like(each, HIDDEN) for each in labels[1:]]
    return list(zip(rows, hidden, strict=True))


def few_labels(
    labels: Tensor, num: int, seed: int | Generator = 0, name: str = "the data"
) -> Tensor:
    """Labels of which all but some are hidden: as many of each class as of any other, chosen at random.

    They are chosen in turns from each class, as long as it has some left. `load_data(labels=num)` tells
    the labels that this chooses among those of its training rows with the same seed.

    Args:
        labels: Whole numbers from 0, `(n,)`; -1 where a label is hidden already.
        num: How many stay.
        seed: Of the choice, or a generator for it.
        name: What the rows are called in the error.

    Returns:
        The labels, -1 where they are hidden, `(n,)`.

    Raises:
        ValueError: There are not as many.

    Example:
        >>> few_labels(torch.tensor([0, 0, 0, 1, 1, 1]), 2, seed=1)
        tensor([-1,  0, -1, -1, -1,  1])
    """
    known = int((labels != HIDDEN).sum())
    if num > known:
        with_label = "" if known == len(labels) else " with a label"
        raise ValueError(f"labels={num}: {name} has only {known} training rows{with_label}")
    generator = seed if isinstance(seed, Generator) else Generator().manual_seed(int(seed))
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty_like(order)  # of a row among those of its class
    order = order[labels[order] != HIDDEN]
    for each in labels.unique():
        of_class = order[labels[order] == each]
        rank[of_class] = torch.arange(len(of_class))
    turns = (rank[order] * len(labels)).argsort(stable=True)
    chosen = order[turns[:num]]
    hidden = torch.full_like(labels, HIDDEN)
    hidden[chosen] = labels[chosen]
    return hidden


def oversample_labelled(
    x: ArrayLike, labels: ArrayLike, share: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Rows and labels of which those with a label are repeated, until they make up a share of all.

    With 100 labels among 54,000 rows most batches have none, and those that have one move the classifier in
    jumps. Each row with a label occurs r times, with the whole number r for which their share is about what is
    asked for. So the ELBO of these rows counts r times as much.

    Args:
        x: Rows, `(n, ...)`, a tensor or an array.
        labels: Of each row, -1 where it is hidden, `(n,)`.
        share: Of the rows with a label among all that are returned, from 0 to below 1. No row is left out: if
            more have a label, they stay as they are.

    Returns:
        The rows with their repetitions, `(m, ...)`, and their labels, `(m,)`.

    Raises:
        ValueError: `share` is not from 0 to below 1, there is not one label for each row, or all are hidden.

    Example:
        >>> x = torch.arange(20.0)
        >>> labels = torch.full((20,), -1)
        >>> labels[3] = 7
        >>> repeated, told = oversample_labelled(x, labels, share=0.25)
        >>> len(repeated), int((told == 7).sum()), float(repeated[told == 7].unique())
        (25, 6, 3.0)
    """
    if not 0 <= share < 1:
        raise ValueError(f"oversample_labelled: share must be from 0 to below 1, got {share}")
    x, labels = torch.as_tensor(x), torch.as_tensor(labels)
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"oversample_labelled: expected one label for each of {len(x)} rows, got shape "
            f"{tuple(labels.shape)}"
        )
    known = (labels != HIDDEN).nonzero().squeeze(1)
    if not len(known):
        raise ValueError("oversample_labelled: no row has a label, all are -1")
    times = max(1, round(share / (1 - share) * (len(x) - len(known)) / len(known)))
    again = known.repeat(times - 1)
    return torch.cat([x, x[again]]), torch.cat([labels, labels[again]])


def warn_of_empty_classes(
    name: str, told: Tensor, every: Sequence[Tensor], asked: bool | int
) -> None:
    """Warns of classes of which no training row is told: the labels have gaps, or too few are told.

    Args:
        name: Of the data.
        told: The labels that the training rows come with.
        every: The labels of all rows of the source.
        asked: True, or how many were asked for.
    """
    if told.dim() > 1 or told.is_floating_point():
        return
    numbers = torch.cat([*every])
    classes = 1 + int(numbers.max())
    if gaps := empty_classes(numbers, classes):
        first = int(numbers[numbers != HIDDEN].min())
        if gaps == [range(first)]:
            remedy = f"subtract {first} from all labels"
        else:
            shift = " - 1" if bool((numbers == HIDDEN).any()) else ""
            remedy = f"number them anew, numpy.unique(y, return_inverse=True)[1]{shift}"
        text = (
            f"no row of {name} is of {classes_in_words(gaps)}, which a model of {classes} classes has: labels "
            f"count from 0 without gaps; {remedy}. If they are no classes, save them as a column of real "
            "numbers"
        )
    elif gaps := empty_classes(told, classes):
        given = isinstance(asked, bool | np.bool_)
        asks = "labels=True" if given else f"labels={asked}"
        remedy = "take more rows (max_rows)"
        if not given and asked < classes:
            remedy = f"ask for {classes} labels or more"
        text = f"{asks} tells no training row of {name} of {classes_in_words(gaps)}: {remedy}"
    else:
        return
    warnings.warn(text, UserWarning, stacklevel=3)
