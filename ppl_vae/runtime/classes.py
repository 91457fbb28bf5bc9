"""Classes that no row has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_MOST_NAMED = 4
"""Runs of classes that are named."""


def empty_classes(labels: Tensor, classes: int) -> list[range]:
    """The classes from 0 to `classes - 1` that no label is, as runs of them.

    Args:
        labels: Whole numbers, `(n,)`; others than the classes do not count.
        classes: How many classes there are.

    Example:
        >>> import torch
        >>> empty_classes(torch.tensor([-1, 2, 5, 2]), 8)
        [range(0, 2), range(3, 5), range(6, 8)]
    """
    there = [label for label in labels.unique().tolist() if 0 <= label < classes]
    ends = zip([-1, *there], [*there, classes], strict=True)
    return [range(int(a) + 1, int(b)) for a, b in ends if b - a > 1]


def classes_in_words(runs: Sequence[range]) -> str:
    """Runs of classes in words.

    Example:
        >>> classes_in_words([range(0, 1)]), classes_in_words([range(0, 2), range(3, 9)])
        ('class 0', 'classes 0, 1 and 3 to 8')
    """
    parts = [
        part
        for run in runs
        for part in (map(str, run) if len(run) < 3 else [f"{run[0]} to {run[-1]}"])
    ]
    if len(parts) == 1 and len(runs[0]) == 1:
        return f"class {parts[0]}"
    if len(parts) > _MOST_NAMED:
        left = sum(map(len, runs))
        return f"{left} classes ({', '.join(parts[:_MOST_NAMED])}, ...)"
    return "classes " + " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
