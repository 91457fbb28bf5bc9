"""The texts of back_translation.py: sentences of two languages that are not paired, and a few that are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ppl_vae.data import Disguise, Vocabulary, invented_sentences, read_sentences
from ppl_vae.runtime import require_count

INVENTED = "invented"
DISGUISED = "disguised:"


@dataclass(frozen=True)
class Texts:
    """English sentences x, foreign sentences z, and their rows.

    Of invented ones, no z is the translation of an x, and the tests are new to both.

    Attributes:
        name: Of the texts.
        x: English sentences alone.
        z: Foreign sentences alone: no pair has one in each of the two.
        pairs: The first English sentences with their translations, for training with pairs.
        validation: Sentences and their translations.
        test: Others.
        words: The vocabulary of both languages, learned from `x` and `z`.
        length: The most numbers of a sentence.
    """

    name: str
    x: list[str]
    z: list[str]
    pairs: tuple[list[str], list[str]]
    validation: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]
    words: Vocabulary
    length: int

    @cached_property
    def digest(self) -> str:
        """Of all that is trained on."""
        told = repr((self.x, self.z, self.pairs, self.validation, self.words.merges, self.length))
        return hashlib.sha256(told.encode()).hexdigest()

    def rows(self, sentences: list[str]) -> Tensor:
        """Sentences as rows of this length; longer ones, which only the test can have, are cut."""
        rows = self.words.rows(sentences, self.length, too_long="cut")
        return torch.nn.functional.pad(rows, (0, self.length - rows.shape[1]))

    @classmethod
    def of(
        cls,
        data: str,
        size: int = 5000,
        vocabulary: int = 4000,
        test_rows: int | None = None,
        difficulty: float = 1.0,
        seed: int = 0,
        plurals: bool = False,
    ) -> Texts:
        """The texts of a folder, or invented ones.

        Args:
            data: A folder with train.en, train.de, val.en, ... as Multi30k has them; "invented" for sentences
                of a small grammar; "disguised:FOLDER" for the English ones of a folder. The foreign language is
                then a `Disguise` of English.
            size: Sentences of each language; the pairs are the first ones of both.
            vocabulary: Size of the vocabulary.
            test_rows: How many test sentences; None for all.
            difficulty: Of the disguise.
            seed: Of invented sentences and of the disguise.
            plurals: Of the disguise.

        Raises:
            ValueError: A number is out of its range, or the texts have not so many sentences.
        """
        require_count("--size", size)
        require_count("--vocabulary", vocabulary, len(Vocabulary(())))  # the bytes
        if test_rows is not None:
            require_count("--test_rows", test_rows)
        if not 0 <= difficulty <= 1:
            raise ValueError(f"--difficulty must be from 0 to 1, got {difficulty}")
        disguised = data.startswith(DISGUISED)
        folder = data.removeprefix(DISGUISED)
        if ":" in folder and not Path(folder).is_dir():
            raise ValueError(
                f"--data is {INVENTED!r}, a folder, or {DISGUISED}FOLDER, got {data!r}"
            )
        if data == INVENTED:
            found = invented_sentences(3 * size + 4000, seed=seed)
            texts, rest = found[:size], found[size:]
            seen = {*texts}
            others = [each for each in rest if each not in seen][:size]
            new = [each for each in dict.fromkeys(rest) if each not in seen | {*others}]
            parts = [[*texts, *others], new[:500], new[500:1000]]
        else:
            where = Path(folder)
            parts = [read_sentences(where / f"{name}.en") for name in ("train", "val", "test")]
        if data == INVENTED or disguised:
            disguise = Disguise(difficulty, seed, plurals)
            foreign = [disguise(part) for part in parts]
        else:
            foreign = [read_sentences(where / f"{name}.de") for name in ("train", "val", "test")]
        train, validation, test = zip(parts, foreign, strict=True)
        if len(train[0]) < 2 * size:
            raise ValueError(
                f"{data} has {len(train[0])} pairs of sentences, and 2 x {size} are asked for: lower --size"
            )
        x, z = train[0][:size], train[1][size : 2 * size]
        words = Vocabulary.learn([*x, *z], vocabulary)
        used = [*x, *z, *train[1][:size], *validation[0], *validation[1]]
        return cls(
            name=data,
            x=x,
            z=z,
            pairs=(x, train[1][:size]),
            validation=validation,
            test=(test[0][:test_rows], test[1][:test_rows]),
            words=words,
            length=words.rows(used).shape[1],
        )
