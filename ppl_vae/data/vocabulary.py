"""Sentences as rows of whole numbers: pieces of words, learned from text by byte-pair encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.data.byte_pairs import LETTERS, bytes_of, encoder_of, learned_merges
from ppl_vae.data.opening import open_to_read
from ppl_vae.data.sentences import checked_texts, require_too_long
from ppl_vae.data.sizes import available_memory
from ppl_vae.runtime import (
    BLANK,
    END,
    FIRST_WORD,
    MOST_JSON,
    PAD,
    UNKNOWN,
    CorruptFileError,
    described,
    load_json,
    read_text,
    require_count,
    write_bytes,
)

LEAST_SIZE = FIRST_WORD + 256
"""Numbers that every vocabulary has: those that are no words, and one for each byte."""

_KIND, _VERSION = "ppl_vae vocabulary", 1
"""At the beginning of a file."""


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """Pieces of words, each a whole number; any text can be written with them, and comes back.

    Byte-pair encoding ("Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909): a
    sentence is its bytes in UTF-8, and pairs of neighbors that were frequent where the pieces were learned are
    joined, the earlier learned ones first. A piece does not reach from one word into the next; it has the
    space before its word, also at the beginning of a sentence. Learn it from the texts of both
    languages: words that they share are then the same numbers.

    A row is the pieces of a sentence, then `END`, then `PAD` (`ppl_vae.runtime`). The numbers below
    `FIRST_WORD` are no pieces, and no text becomes one of them: `</s>` in a text is nothing but these letters.

    Texts are taken in Unicode's NFC, in which `é` is one character. An `e` with an accent behind it looks the
    same, and has the same numbers: it comes back as `é`. What is in NFC comes back exactly.

    `learn` and `rows` need the library tokenizers: `pip install 'ppl_vae[text]'`.

    Args:
        merges: Pairs of pieces that are joined, in the order in which they were learned. A piece is written
            with a printable letter for each byte.

    Raises:
        ValueError: A pair is no pair, comes twice, or is of pieces that are not there.

    Example:
        >>> words = Vocabulary.learn(["a dog and a dog", "the dog"], size=264)
        >>> words.rows(["a dog", "dogs"])
        tensor([[261, 263,   1],
                [263, 119,   1]])
        >>> words.sentences(words.rows(["a dog", "Hundε"]))
        ['a dog', 'Hundε']
        >>> words.sentences(words.rows(["cafe\\u0301"])) == ["caf\\u00e9"]
        True
        >>> words.words_of(words.rows(["the dog"])[0])
        [' ', 't', 'h', 'e', ' dog']
    """

    merges: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        _ = self._pieces  # which checks the merges

    @classmethod
    def learn(cls, sentences: Iterable[str], size: int = 4000) -> Vocabulary:
        """Learns the pieces: pairs are joined, the most frequent first, until there are enough.

        The same sentences give the same pieces, in any order.

        Args:
            sentences: Texts of all languages that are to be written.
            size: Numbers of the vocabulary, with those that are no words. At 260, the least, pieces are bytes.
                There are fewer if the texts have no more pairs that come twice.

        Raises:
            ModuleNotFoundError: tokenizers is not installed.
            TypeError: `sentences` are no texts, or `size` is no whole number.
            ValueError: `size` is below 260, or a text cannot be written in UTF-8.
        """
        require_count("size", size, None)
        if size < LEAST_SIZE:
            raise ValueError(
                f"size must be at least {LEAST_SIZE}, got {size}: there are {FIRST_WORD} numbers that are no "
                "words, and 256 bytes, with which any text can be written"
            )
        texts = (" " + text for text in _texts(sentences))
        return cls(learned_merges(texts, size - FIRST_WORD))

    def __len__(self) -> int:
        """Numbers that a row may hold: as many as an embedding of its words needs."""
        return FIRST_WORD + len(self._pieces)

    def __repr__(self) -> str:
        return f"<Vocabulary of {len(self)} numbers>"

    def rows(
        self,
        sentences: Sequence[str],
        max_length: int | None = None,
        *,
        too_long: Literal["error", "cut"] = "error",
    ) -> Tensor:
        """Sentences as rows.

        Args:
            sentences: n texts.
            max_length: Most numbers of a sentence, with its end; None for any number.
            too_long: What happens to longer ones: "error" refuses them, "cut" leaves out their last pieces.

        Returns:
            Whole numbers, int64, `(n, T)`, as wide as the longest sentence needs.

        Raises:
            ModuleNotFoundError: tokenizers is not installed.
            TypeError: `sentences` are no texts.
            ValueError: A sentence is too long, or cannot be written in UTF-8; or an option is unknown.
        """
        require_too_long(too_long)
        if max_length is not None:
            require_count("max_length", max_length, 1)
        encode = self._encoder.encode
        found = [
            [FIRST_WORD + i for i in encode(" " + text).ids] if text else []
            for text in _texts(sentences)
        ]
        lengths = [len(numbers) + 1 for numbers in found]
        if max_length is not None and max(lengths, default=0) > max_length:
            if too_long == "error":
                raise _too_long(lengths, max_length)
            found = [numbers[: max_length - 1] for numbers in found]
            lengths = [len(numbers) + 1 for numbers in found]
        return _filled_up([[*numbers, END] for numbers in found], lengths)

    def sentences(self, rows: Tensor) -> list[str]:
        """The texts of rows, each up to its first `END` or `PAD`.

        They are those that the rows were made of, in Unicode's NFC. Other rows may be no UTF-8: what is none is
        shown as �. `UNKNOWN` and `BLANK` are shown as words, `<unknown>` and `<blank>`.

        Args:
            rows: `(n, T)`.

        Raises:
            TypeError: They are no whole numbers.
            ValueError: They have another shape, or hold a number that is not in the vocabulary.
        """
        texts = [b"".join(parts).decode(errors="replace") for parts in self._parts("rows", rows, 2)]
        return [text.removeprefix(" ") for text in texts]

    def words_of(self, row: Tensor) -> list[str]:
        """The pieces of a row, each with the space that belongs to it; bytes that are no letters as `\\xe2`.

        Args:
            row: A sentence, `(T,)`.

        Raises:
            TypeError: They are no whole numbers.
            ValueError: It has another shape, or holds a number that is not in the vocabulary.
        """
        (parts,) = self._parts("row", row, 1)
        return [part.decode(errors="backslashreplace") for part in parts]

    @property
    def word_starts(self) -> Tensor:
        """Which numbers begin a word, `(words,)`: a space or punctuation at the beginning, or no piece at all.

        Spaces and punctuation are those of ASCII. A text in a script without spaces is one long word.

        Example:
            >>> words = Vocabulary.learn(["a dog and a dog"], size=264)
            >>> words.word_starts[words.rows(["a dogs."])]  # " a", " dog", "s", ".", the end
            tensor([[ True,  True, False,  True,  True]])
        """
        inside = {*range(0x80, 0x100), *map(ord, ascii_letters + digits)}
        return torch.tensor([not part or part[0] not in inside for part in self._shown])

    def unseen_share(self, rows: Tensor) -> Tensor:
        """How much of each sentence the texts did not have from which the pieces were learned.

        It is the share of its pieces that are single bytes of such characters: of those that are not ASCII,
        which would be a piece if they had come often, and letters and digits that are in no longer piece. Text
        in another script, or of emoji, has a share near 1. Without longer pieces nothing is known, and it is 0.

        Args:
            rows: `(n, T)`.

        Returns:
            Shares, `(n,)`; 0 of an empty sentence.

        Raises:
            TypeError: They are no whole numbers.
            ValueError: They have another shape, or hold a number that is not in the vocabulary.

        Example:
            >>> words = Vocabulary.learn(["ein Hündchen", "ein Hündchen"])
            >>> words.unseen_share(words.rows(["ein Hund", "собака"]))
            tensor([0.1667, 0.9231])
        """
        parts = list(self._parts("rows", rows, 2))
        unseen = [
            sum(map(self._unseen_bytes.__contains__, row)) / max(1, len(row)) for row in parts
        ]
        return torch.tensor(unseen, dtype=torch.get_default_dtype())

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary to a file of JSON, a text of one merge in a line.

        Raises:
            OSError: It cannot be written.
            ValueError: It would be larger than what `load` reads.
        """
        merges = [" ".join(pair) for pair in self.merges]
        content = {"kind": _KIND, "version": _VERSION, "merges": merges}
        data = (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
        if len(data) > MOST_JSON:
            raise ValueError(
                f"{path} would take more than the {MOST_JSON // 2**20} MiB that are read"
            )
        write_bytes(path, data)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads what `save` wrote; nothing in the file is run.

        Raises:
            OSError: The file is not there, or may not be read.
            CorruptFileError: It is damaged, or no vocabulary; a `ValueError`.
        """
        path = Path(path)
        with open_to_read(path, "the file of a vocabulary"):
            try:
                content = load_json(read_text(path, MOST_JSON))
            except ValueError as error:
                raise CorruptFileError(path, f"cannot be read as a vocabulary: {error}") from error
        if content.get("kind") != _KIND:
            raise CorruptFileError(path, "is no vocabulary that Vocabulary.save wrote")
        if content.get("version") != _VERSION:
            raise CorruptFileError(
                path,
                f"is a vocabulary of version {content.get('version')!r:.20}, and this version of ppl_vae reads "
                f"version {_VERSION}",
            )
        merges = content.get("merges")
        if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
            raise CorruptFileError(path, "cannot be read as a vocabulary: its merges are no texts")
        try:
            return cls(tuple(tuple(merge.split(" ")) for merge in merges))
        except ValueError as error:
            raise CorruptFileError(path, f"cannot be read as a vocabulary: {error}") from error

    @cached_property
    def _pieces(self) -> dict[str, int]:
        """Each piece and its number, less `FIRST_WORD`."""
        pieces = {letter: byte for byte, letter in enumerate(LETTERS)}
        told = set()
        for number, pair in enumerate(self.merges):
            if len(pair) != 2 or pair in told or not all(part in pieces for part in pair):
                raise ValueError(
                    f"merge {number}, counted from 0, is {pair!r:.80}: expected two pieces that are letters "
                    "or come from merges before it, and each pair once"
                )
            told.add(pair)
            pieces.setdefault("".join(pair), len(pieces))
        return pieces

    @cached_property
    def _shown(self) -> list[bytes]:
        """What each number stands for."""
        special = {UNKNOWN: b" <unknown>", BLANK: b" <blank>"}
        return [
            *(special.get(number, b"") for number in range(FIRST_WORD)),
            *map(bytes_of, self._pieces),
        ]

    @cached_property
    def _unseen_bytes(self) -> frozenset[bytes]:
        """The pieces of one byte that stand for no character of the texts of which longer ones were learned."""
        seen = bytes_of("".join(chain.from_iterable(self.merges)))
        if not seen:
            return frozenset()
        ours = {ord(c) for c in ascii_letters + digits if ord(c) not in seen}
        return frozenset(bytes([byte]) for byte in {*range(0x80, 0x100), *ours})

    @cached_property
    def _encoder(self) -> Any:
        return encoder_of(self._pieces, self.merges)

    def _parts(self, name: str, rows: Tensor, dims: int) -> Iterator[list[bytes]]:
        """The bytes of the pieces of each sentence."""
        if not isinstance(rows, Tensor) or rows.is_floating_point() or rows.is_complex():
            kind = f"one of {rows.dtype}" if isinstance(rows, Tensor) else described(rows)
            raise TypeError(
                f"{name} must be a tensor of whole numbers, as Vocabulary.rows makes it, got {kind}"
            )
        if rows.dim() != dims:
            shape = "(n, T)" if dims == 2 else "(T,)"
            raise ValueError(f"{name} must have the shape {shape}, got {tuple(rows.shape)}")
        for row in (rows if dims == 2 else rows[None]).tolist():
            ends = [i for i, number in enumerate(row) if number in (END, PAD)]
            words = row[: ends[0]] if ends else row
            if wrong := [number for number in words if not 0 <= number < len(self)]:
                raise ValueError(
                    f"{name}: the number {wrong[0]} is not in the vocabulary, which has those below "
                    f"{len(self)}; give the vocabulary that wrote the sentence"
                )
            yield [self._shown[number] for number in words]


def _filled_up(found: list[list[int]], lengths: list[int]) -> Tensor:
    """Sentences as rows of one length."""
    most = max(lengths, default=1)
    if 8 * len(found) * most > max(2**30, available_memory()):
        raise ValueError(
            f"{len(found):,} rows of {most:,} numbers do not fit into the memory: leave out the longest "
            f"sentence, {lengths.index(most)}, counted from 0, or give max_length and too_long='cut'"
        )
    here = torch.arange(most) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    numbers = torch.tensor([*chain.from_iterable(found)], dtype=torch.int64)
    return torch.full(here.shape, PAD).masked_scatter_(here, numbers)


def _too_long(lengths: list[int], most: int) -> ValueError:
    first, *others = (i for i, length in enumerate(lengths) if length > most)
    return ValueError(
        f"{1 + len(others)} of {len(lengths)} sentences have more than max_length={most} numbers, with the "
        f"end: the first is sentence {first}, counted from 0, with {lengths[first]}; the longest has "
        f"{max(lengths)}. Leave them out, give a larger max_length, or too_long='cut'"
    )


def _texts(sentences: Iterable[str]) -> Iterator[str]:
    """Sentences, each checked as it comes."""
    for number, text in enumerate(checked_texts(sentences)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"sentence {number}, counted from 0, cannot be written in UTF-8: {error}"
            ) from error
        yield text
