"""Sentences as rows of whole numbers: the numbers that are no words, and how long a sentence is."""

from __future__ import annotations

from torch import Tensor

PAD = 0
"""Fills up a row behind the end of its sentence. A row of these alone is no sentence."""

END = 1
"""Stands behind the last word of a sentence."""

UNKNOWN = 2
"""Stands for what a vocabulary cannot write."""

BLANK = 3
"""Stands for a word that noise has taken out of a sentence."""

FIRST_WORD = 4
"""The first number that is a word."""


def lengths_of(rows: Tensor) -> Tensor:
    """How many numbers each sentence has, with its end, without what fills up the row.

    Args:
        rows: Sentences, `(*batch, T)`.

    Returns:
        Whole numbers, `(*batch)`; 0 where there is no sentence.

    Example:
        >>> import torch
        >>> lengths_of(torch.tensor([[7, 5, END, PAD], [END, PAD, PAD, PAD], [PAD, PAD, PAD, PAD]]))
        tensor([3, 1, 0])
    """
    return (rows != PAD).sum(-1)


def trimmed(rows: Tensor) -> Tensor:
    """Sentences without the columns that fill up all of them; at least one column is kept.

    Args:
        rows: Sentences, `(*batch, T)`.

    Example:
        >>> import torch
        >>> trimmed(torch.tensor([[7, END, PAD, PAD], [END, PAD, PAD, PAD]]))
        tensor([[7, 1],
                [1, 0]])
    """
    lengths = lengths_of(rows)
    longest = int(lengths.max()) if lengths.numel() else 1
    return rows[..., : max(longest, 1)]
