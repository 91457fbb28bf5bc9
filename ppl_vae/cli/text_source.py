"""A text that a user has named, line by line, as rows of numbers for a model of sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_vae.cli.output import warn
from ppl_vae.data import Vocabulary, each_sentence
from ppl_vae.runtime import END

STANDARD_INPUT = "-"
"""What is written for it in the place of a file."""

_NAMED = 10
"""Lines that a warning names."""


@dataclass
class Lines:
    """Lines of a text of which something is told.

    Attributes:
        first: The numbers of the first ones, counted from 1.
        count: How many there are.

    Example:
        >>> lines = Lines()
        >>> for number in range(7, 20):
        ...     lines.add(number)
        >>> str(lines)
        'lines 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 and 3 more'
    """

    first: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, number: int) -> None:
        """Counts one more."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(number)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        listed = ", ".join(map(str, self.first)) + (f" and {more:,} more" if more else "")
        return f"line{'' if self.count == 1 else 's'} {listed}"


@dataclass
class TextSource:
    """A text of any length, of which only a line is held in memory.

    Attributes:
        file: The path of a file, or `STANDARD_INPUT`.
        words: The vocabulary.
        longest: Most numbers of a row, with its end.
        cut: Whether longer rows lose their last words; otherwise they are an error.
        shortened: The lines that have lost them.
        unseen: The lines that are mostly of characters that the vocabulary was not learned from.
    """

    file: str
    words: Vocabulary
    longest: int
    cut: bool = False
    shortened: Lines = field(default_factory=Lines)
    unseen: Lines = field(default_factory=Lines)

    @property
    def is_input(self) -> bool:
        """Whether it is standard input, which can be read once."""
        return self.file == STANDARD_INPUT

    @property
    def is_typed(self) -> bool:
        """Whether somebody sits before it."""
        return self.is_input and sys.stdin.isatty()

    def rows(self) -> Iterator[Tensor | None]:
        """The row of each line, `(T,)`; None of a line without words.

        Raises:
            OSError: The file may not be read.
            ValueError: It is no text, or a line is too long.
        """
        self.shortened, self.unseen = Lines(), Lines()
        name = "standard input" if self.is_input else self.file
        text_file = sys.stdin.buffer if self.is_input else self.file
        texts = each_sentence(text_file, too_long="cut" if self.cut else "error")
        for number, text in enumerate(texts, 1):
            yield self._row(f"{name}, line {number}", number, text) if text.strip() else None

    def warn(self) -> None:
        """Tells of lines of which the model has not read what one might think."""
        if self.shortened.count:
            warn(
                f"{self.shortened}: longer than the {self.longest:,} tokens that the model reads, so that the "
                "last words were left out"
            )
        if self.unseen.count:
            warn(
                f"{self.unseen}: mostly of characters that were not there when the vocabulary was learned, so "
                "that the translation means nothing"
            )

    def _row(self, place: str, number: int, text: str) -> Tensor:
        row = self.words.rows([text])[0]
        if self.words.unseen_share(row[None]).item() > 0.5:
            self.unseen.add(number)
        if len(row) > self.longest:
            if not self.cut:
                raise ValueError(
                    f"{place} has {len(row):,} tokens including its end, and the model reads at most "
                    f"{self.longest:,}: split the sentence, leave it out, or pass --too_long cut"
                )
            self.shortened.add(number)
            row = torch.cat([row[: self.longest - 1], row.new_tensor([END])])
        return row
