"""A text that a user has named, line by line, as rows of numbers for a model of sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ppl_vae.cli.output import warn
from ppl_vae.data import Data, Vocabulary, each_sentence
from ppl_vae.runs import VOCABULARY, Run
from ppl_vae.runtime import END, PAD

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
        blank: The lines without words.
        shortened: The lines that have lost their last words.
        unseen: The lines that are mostly of characters that the vocabulary was not learned from.
    """

    file: str
    words: Vocabulary
    longest: int
    cut: bool = False
    blank: Lines = field(default_factory=Lines)
    shortened: Lines = field(default_factory=Lines)
    unseen: Lines = field(default_factory=Lines)

    @property
    def name(self) -> str:
        """As messages call it."""
        return "standard input" if self.is_input else self.file

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
        self.blank, self.shortened, self.unseen = Lines(), Lines(), Lines()
        text_file = sys.stdin.buffer if self.is_input else self.file
        texts = each_sentence(text_file, too_long="cut" if self.cut else "error")
        for number, text in enumerate(texts, 1):
            if text.strip():
                yield self._row(f"{self.name}, line {number}", number, text)
            else:
                self.blank.add(number)
                yield None

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
                "that what the model makes of them means nothing"
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


def vocabulary_of(run: Run) -> Vocabulary:
    """The vocabulary of a run.

    Raises:
        ValueError: It was saved without one.
    """
    if run.vocabulary is None:
        raise ValueError(
            f"{run.path} has no {VOCABULARY}, which says which text its numbers are: save the run with the "
            "vocabulary that made its rows, save_run(..., vocabulary=words), or put that into the folder, "
            f"words.save('{run.path / VOCABULARY}')"
        )
    return run.vocabulary


def read_test_rows(run: Run, file: str, *, cut: bool = False) -> Data[Tensor]:
    """A text as the test rows of a run whose rows are sentences; of training rows there are none.

    Lines without words are left out, of which it is said.

    Args:
        run: The run, with its vocabulary.
        file: See `TextSource`.
        cut: See `TextSource`.

    Raises:
        OSError: The file may not be read.
        ValueError: The rows of the run are no sentences, it has no vocabulary, the file is no text, a line is
            too long, or no line has words.
    """
    words = vocabulary_of(run)
    shape = getattr(run.model, "data_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 1 and hasattr(run.model, "words")):
        raise ValueError(
            f"{run.path} holds a {type(run.model).__name__}, whose rows are no sentences: leave out --text"
        )
    source = TextSource(file, words, shape[0], cut)
    rows = [row for row in source.rows() if row is not None]
    if not rows:
        raise ValueError(f"{source.name}: no line of it has words, so that there is no row")
    source.warn()
    if source.blank.count:
        warn(f"{source.blank}: without words, left out")
    x = pad_sequence(rows, batch_first=True, padding_value=PAD)
    return Data(name=source.name, train=x[:0], validation=x[:0], test=x)
