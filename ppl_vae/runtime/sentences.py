"""Sentences as rows of whole numbers: the special tokens, and how long a sentence is."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.runtime.descriptions import described

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
        >>> lengths_of(torch.tensor([[7, 5, END, PAD], [END, PAD, PAD, PAD], [PAD, PAD, PAD, PAD]]))
        tensor([3, 1, 0])
    """
    return (rows != PAD).sum(-1)


def trimmed(rows: Tensor) -> Tensor:
    """Sentences without the columns that fill up all of them; at least one column is kept.

    Args:
        rows: Sentences, `(*batch, T)`.

    Example:
        >>> trimmed(torch.tensor([[7, END, PAD, PAD], [END, PAD, PAD, PAD]]))
        tensor([[7, 1],
                [1, 0]])
    """
    lengths = lengths_of(rows)
    longest = int(lengths.max()) if lengths.numel() else 1
    return rows[..., : max(longest, 1)]


def as_words(name: str, rows: Tensor, words: int | None = None) -> Tensor:
    """The numbers of sentences as int64; floating-point numbers are taken if they are whole.

    Args:
        name: What they are, for the message.
        rows: Of any shape.
        words: Size of the vocabulary; None if it is not known.

    Raises:
        TypeError: They are no tensor, or one of something else than numbers.
        ValueError: A number is not whole, or not in the vocabulary.

    Example:
        >>> as_words("x", torch.tensor([5.0, 1.0]))
        tensor([5, 1])
        >>> as_words("x", torch.tensor([5, 1]), words=5)
        Traceback (most recent call last):
        ValueError: x must hold numbers from 0 to 4, as the vocabulary has 5, got 5
    """
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{name} must be a tensor of whole numbers, as Vocabulary.rows makes it, got {described(rows)}"
        )
    if rows.is_complex() or rows.dtype == torch.bool:
        raise TypeError(f"{name} must hold whole numbers, got {rows.dtype}")
    found = rows.long()
    if rows.is_floating_point() and bool((wrong := found != rows).any()):
        raise ValueError(f"{name} must hold whole numbers, got {float(rows[wrong][0]):g}")
    if words is not None and found.numel():
        least, most = torch.stack(found.aminmax()).tolist()  # at once: a GPU is waited for
        if least < 0 or most >= words:
            raise ValueError(
                f"{name} must hold numbers from 0 to {words - 1:,}, as the vocabulary has {words:,}, got "
                f"{least if least < 0 else most:,}"
            )
    return found


def require_sentences(name: str, rows: Tensor) -> None:
    """Raises an error unless all rows are sentences: words, `END`, then `PAD`.

    Args:
        name: What they are, for the message.
        rows: `(n, T)`.

    Raises:
        TypeError: They are no tensor of whole numbers.
        ValueError: They have another shape, or a row is no sentence.

    Example:
        >>> require_sentences("x", torch.tensor([[4, END, PAD], [4, 5, 6]]))
        Traceback (most recent call last):
        ValueError: x: row 1, counted from 0, is no sentence: expected words, then END = 1, then PAD = 0
    """
    if isinstance(rows, Tensor) and rows.is_floating_point():
        raise TypeError(f"{name} must hold whole numbers, got {rows.dtype}")
    as_words(name, rows)
    if rows.dim() != 2:
        raise ValueError(f"{name} must have the shape (n, T), got {tuple(rows.shape)}")
    wrong = (~are_sentences(rows)).nonzero()[:, 0]
    if len(wrong):
        least = int(rows[wrong[0]].min()) if rows.shape[1] else 0
        raise ValueError(
            f"{name}: row {int(wrong[0])}, counted from 0, "
            + (f"holds {least}, which is no word" if least < 0 else "is no sentence")
            + f": expected words, then END = {END}, then PAD = {PAD}"
        )


def holds_sentences(rows: Tensor) -> bool:
    """Whether all rows of a tensor are sentences.

    Example:
        >>> holds_sentences(torch.tensor([[4, END, PAD], [END, PAD, PAD]])), holds_sentences(torch.ones(3, 2))
        (True, False)
    """
    whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    return whole and rows.dim() == 2 and bool(are_sentences(rows).all())


def are_sentences(rows: Tensor) -> Tensor:
    """Which rows are sentences: words, `END`, then `PAD`. A word is any other number above 0.

    Args:
        rows: Whole numbers, `(*batch, T)`.

    Returns:
        Of bool, `(*batch)`.

    Example:
        >>> are_sentences(torch.tensor([[4, END, PAD], [4, PAD, END], [PAD, PAD, PAD]]))
        tensor([ True, False, False])
    """
    places = torch.arange(rows.shape[-1], device=rows.device)
    lengths = lengths_of(rows)[..., None]
    filled = ((rows != PAD) == (places < lengths)).all(-1)
    ended = ((rows == END) == (places == lengths - 1)).all(-1)
    return filled & ended & (lengths[..., 0] > 0) & (rows >= 0).all(-1)
