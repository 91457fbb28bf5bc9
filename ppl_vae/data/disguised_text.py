"""English text as a made-up language: other words in another order, from which the text comes back exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ppl_vae.data.plural_forms import plural_of, singular_of
from ppl_vae.data.sentences import checked_texts
from ppl_vae.data.word_cipher import WordCipher
from ppl_vae.data.word_order import (
    Order,
    adjectives_turned,
    class_of,
    in_clauses,
    prepositions_before,
    prepositions_behind,
    verbs_before,
    verbs_behind,
)
from ppl_vae.runtime import require_flags, require_number, require_seed

_TOKEN = re.compile("(.*?)([.,;:!?]*)", re.DOTALL)
_JOINT = "ë"
"""Joins a word and its ending; doubled where a text has it."""

_PLURAL = "ï"
"""The ending of plurals; doubled where a text has it."""


@dataclass(frozen=True)
class Disguise:
    """A made-up language for any English text, in which every sentence has a known translation.

    Four things are done to a sentence, in this order. Words are known by lists of articles, numbers,
    prepositions and the like; verbs are those of `invented_sentences` and the words in -ing.

    1. A verb goes behind its object: `a man plays the guitar` becomes `a man the guitar plays`, and `is playing
       the guitar` becomes `is the guitar playing`.
    2. A preposition goes behind what belongs to it: `in the park` becomes `the park in`.
    3. Adjectives go behind their noun: `small dog` becomes `dog small`.
    4. Each word becomes another one of its length that can be spoken as well; an article or a number becomes
       the ending of the word behind it. So does the -s of a plural, with `plurals`.

    Words stay between the commas and full stops where they were. Texts are taken in Unicode's NFC, in which an
    `é` is one character. No two of them become the same, so that log p of a disguised sentence is that of the
    sentence, and `undisguise` gives it back: the cipher exchanges words in pairs; an ending begins with `ë` or
    is `ï`, which are doubled where a text has them; and an order that rules 1 and 2 would give to two texts is
    given to one of them, and to the other one that is left.

    Some of the made-up words are English by chance, as `gift` is German.

    Args:
        difficulty: From 0, where the text stays as it is, to 1, where every word of letters from a to z is
            another one: the share of the words that are exchanged. Adjectives go behind nouns from 1/8 on,
            articles are endings from 3/8 on, verbs move from 5/8 on, and prepositions from 7/8 on.
        seed: Another seed gives other words.
        plurals: Whether a plural is the name of its singular with the ending `ï`, from difficulty 3/8 on. If
            not, it is a word with a name of its own. Plurals are known by their letters, so that `looks` is
            one, too, and `always`; some have a form of their own, such as `men`, `people` and `knives`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: `difficulty` is not from 0 to 1.

    Example:
        >>> disguise = Disguise()
        >>> disguise(["a young man plays the guitar in the park.", "two dogs sit."])
        ['zygëi oeyls hiowaqëkri shuot qollëkri og.', 'larfëtwe puq.']
        >>> disguise.undisguise(disguise(["two dogs sit."]))
        ['two dogs sit.']
        >>> Disguise(plurals=True)(["two dogs sit.", "a dog sits."])
        ['dyrïëtwe puq.', 'dyrëi cevh.']
    """

    difficulty: float = 1.0
    seed: int = 0
    plurals: bool = False

    def __post_init__(self) -> None:
        require_flags(**{"Disguise.plurals": self.plurals})
        require_number("Disguise.difficulty", self.difficulty)
        require_seed(self.seed)
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"Disguise.difficulty must be from 0 to 1, got {self.difficulty}")

    def __call__(self, sentences: Iterable[str]) -> list[str]:
        """The sentences in the made-up language.

        Raises:
            TypeError: They are no list of texts.
        """
        return [self._disguised(text) for text in checked_texts(sentences)]

    def undisguise(self, sentences: Iterable[str]) -> list[str]:
        """The sentences of which these are the disguise; something near where there is none.

        Raises:
            TypeError: They are no list of texts.
        """
        return [self._undisguised(text) for text in checked_texts(sentences)]

    def _disguised(self, text: str) -> str:
        tokens = _split(text)
        for order in self._orders:
            tokens = in_clauses(tokens, *order)
        fused: list[str] = []
        determiner = None
        for i, (word, marks) in enumerate(tokens):
            after = tokens[i + 1][0] if i + 1 < len(tokens) else ""
            if self._rules > 1 and not marks and class_of(word) == "D" and class_of(after) == "X":
                determiner = word
                continue
            singular = singular_of(word) if self._fuses_plurals else None
            said = self._escaped(self._cipher(singular or word)) + _PLURAL * (singular is not None)
            if determiner is not None:
                said += _JOINT + self._cipher(determiner)
                determiner = None
            fused.append(said + marks)
        return " ".join(fused)

    def _undisguised(self, text: str) -> str:
        tokens: list[tuple[str, str]] = []
        for said, marks in _split(text):
            word, is_plural, determiner = self._taken_apart(said)
            if determiner:
                tokens.append((self._cipher(determiner), ""))
            word = self._cipher(word)
            tokens.append((plural_of(word) if is_plural else word, marks))
        for there, back in self._orders[::-1]:
            tokens = in_clauses(tokens, back, there)
        return " ".join(word + marks for word, marks in tokens)

    @cached_property
    def _cipher(self) -> WordCipher:
        return WordCipher(self.difficulty, self.seed)

    @property
    def _rules(self) -> int:
        """How many of the four rules are in force."""
        return math.floor(4 * self.difficulty + 0.5)

    @property
    def _orders(self) -> list[tuple[Order, Order]]:
        """The rules of order in force, there and back."""
        moves = [
            (2, verbs_behind, verbs_before),
            (3, prepositions_behind, prepositions_before),
            (0, adjectives_turned, adjectives_turned),
        ]
        return [(there, back) for least, there, back in moves if self._rules > least]

    @property
    def _fuses_plurals(self) -> bool:
        return self.plurals and self._rules > 1

    @property
    def _endings(self) -> str:
        """The letters that endings begin with."""
        return (_JOINT if self._rules > 1 else "") + (_PLURAL if self._fuses_plurals else "")

    def _escaped(self, word: str) -> str:
        for letter in self._endings:
            word = word.replace(letter, 2 * letter)
        return word

    def _taken_apart(self, said: str) -> tuple[str, bool, str]:
        """A word, whether it has the ending of plurals, and its other ending."""
        if not self._endings:
            return said, False, ""
        parts = re.findall(
            "".join(f"{each}{each}?|" for each in self._endings) + ".", said, re.DOTALL
        )
        word, is_plural, is_behind, determiner = "", False, False, ""
        for part in parts:
            if is_behind:
                determiner += part[:1]
            elif part == _JOINT:
                is_behind = True
            elif part == _PLURAL and self._fuses_plurals:
                is_plural = True
            else:
                word += part[:1]
        return word, is_plural, determiner


def _split(text: str) -> list[tuple[str, str]]:
    """The words between spaces, each with the marks behind it."""
    tokens = []
    for token in text.split(" "):
        found = _TOKEN.fullmatch(token)
        assert found is not None
        tokens.append((found[1], found[2]))
    return tokens
