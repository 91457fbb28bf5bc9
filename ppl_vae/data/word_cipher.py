"""A cipher of words: each becomes another one of its length that can be spoken as well."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_VOWELS = "aeiouy"
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_DIGITS = "0123456789"
_RUNS = re.compile(f"[{_VOWELS}]+|[{_CONSONANTS}]+|[0-9]")
_WORDS = re.compile("[A-Za-z]+|[0-9]+")

_SPOKEN = {
    "first": "bl br ch cl cr dr dw fl fr gl gr kl kn kr ph pl pr qu sc sch scr shr sh sk sl sm sn "
    "sp spl spr squ st str sw th thr tr tw wh wr",
    "amid": "bb bl br ck cr ct dd dg dl dr ff fl ft gg gl gn gr kl ld lf ll lk lm lp ls lt lv mb "
    "mbl mm mp mpl nc nd ndr ng ngl nk nkl nn ns nsp nst nt ntr pl pp pr pt rb rc rch rd "
    "rf rg rk rl rm rn rp rr rs rst rt rth rv sh sk sl sm sp spl ss st str tch th tl tr tt "
    "zz",
    "last": "cks ck ct cts ff ft fts gs lch ld lds lf lk lks ll lls lm lp ls lt lts mb mp mps ms "
    "nch nd nds ng ngs nk nks nn ns nt nts ps pt rch rd rds rf rk rks rl rls rm rms rn rns "
    "rp rs rt rth rts sh sk sp ss st sts th ths ds tch tt",
    "vowels": "ai ay au ea ee ei eu ey ia ie io oa oe oi oo ou oy ue ui uo",
}
"""Letters that are spoken together at the beginning, amid and at the end of a word, and vowels."""

_FEW = 1000
"""Up to so many texts of a kind have an order of their own for each seed."""


@dataclass(frozen=True)
class _Spellings:
    """Texts that may stand for each other, numbered from 0; there is an even number of them.

    Attributes:
        letters: What they consist of.
        length: How many letters.
        left_out: The numbers of texts that are another kind, sorted.
        these: The texts, if they are those in a list; otherwise all but the ones that are left out.
    """

    letters: str
    length: int
    left_out: tuple[int, ...] = ()
    these: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.these) or len(self.letters) ** self.length - len(self.left_out)

    def number(self, text: str) -> int:
        if self.these:
            return self.these.index(text)
        number = self._place(text)
        return number - sum(left < number for left in self.left_out)

    def text(self, number: int) -> str:
        if self.these:
            return self.these[number]
        for left in self.left_out:
            number += left <= number
        found = ""
        for _ in range(self.length):
            number, place = divmod(number, len(self.letters))
            found = self.letters[place] + found
        return found

    def _place(self, text: str) -> int:
        number = 0
        for letter in text:
            number = number * len(self.letters) + self.letters.index(letter)
        return number


@lru_cache(maxsize=4096)
def _kind(letters: str, where: str, length: int, spoken: bool) -> _Spellings:
    listed = [text for text in _SPOKEN.get(where, "").split() if len(text) == length]
    these = tuple(text for text in listed if set(text) <= {*letters})
    these = these[: len(these) // 2 * 2]
    if spoken:
        return _Spellings(letters, length, these=these)
    plain = _Spellings(letters, length)
    return _Spellings(letters, length, tuple(sorted(map(plain.number, these))))


def _kind_of(text: str, first: bool, last: bool) -> _Spellings:
    if text[0] in _DIGITS:
        return _Spellings(_DIGITS, 1)
    vowels = text[0] in _VOWELS
    where = "vowels" if vowels else "first" if first else "last" if last else "amid"
    letters = _VOWELS if vowels else _CONSONANTS
    spoken = _kind(letters, where, len(text), True)
    return spoken if text in spoken.these else _kind(letters, where, len(text), False)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=1024)
def _order(seed: int, kind: _Spellings) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An order of the texts of a kind, and the place of each in it."""
    order = sorted(range(len(kind)), key=lambda number: _hash(seed, len(kind), number))
    places = sorted(range(len(kind)), key=order.__getitem__)
    return tuple(order), tuple(places)


@dataclass(frozen=True)
class WordCipher:
    """Words in pairs, each of which stands for the other: the cipher of the cipher is the word.

    A word of letters from a to z, or of digits, becomes another one, in which vowels and consonants
    stand where they stood, and letters that are spoken together are again such ones. Each letter depends on all
    others, so that words that are alike become words that are not. Large letters stay large, and all that is
    not a letter from a to z or a digit stays as it is. So does a letter with an accent behind it: another
    letter with this accent could be one character, as n and ~ are ñ.

    Runs of vowels or consonants are numbers v_i below an even m_i. A Feistel network F, two rounds with a keyed
    hash, maps them one-to-one; with J: v_i -> v_i + m_i / 2 mod m_i, which is its own inverse and leaves
    nothing in place, the cipher is F^-1 J F, which is its own inverse and leaves nothing in place, too.

    Args:
        share: The share of all pairs that are exchanged, from 0 to 1; which ones depends on the seed. Pairs of
            a smaller share are among those of a larger one.
        seed: The key.

    Example:
        >>> cipher = WordCipher()
        >>> cipher("a small dog"), cipher(cipher("a small dog"))
        ('i skact dyr', 'a small dog')
    """

    share: float = 1.0
    seed: int = 0

    def __call__(self, text: str) -> str:
        """The text with each of its words exchanged."""

        def exchanged(found: re.Match[str]) -> str:
            word, kept = found[0], ""
            if unicodedata.combining(text[found.end() : found.end() + 1] or " "):
                word, kept = word[:-1], word[-1]
            return _cased(word, self.of_word(word.lower())) + kept if word else kept

        return _WORDS.sub(exchanged, text)

    def of_word(self, word: str) -> str:
        """What stands for a word in small letters, or for a number."""
        other = _partner(self.seed, word)
        lot = _hash(self.seed, "exchanged", *sorted((word, other))) / 2**64
        return other if lot < self.share else word


def _cased(pattern: str, word: str) -> str:
    """A word with large letters where the pattern has them."""
    if pattern.islower():
        return word
    return "".join(b.upper() if a.isupper() else b for a, b in zip(pattern, word, strict=True))


@lru_cache(maxsize=2**16)
def _partner(seed: int, word: str) -> str:
    runs = _RUNS.findall(word)
    kinds = [_kind_of(run, i == 0, i == len(runs) - 1) for i, run in enumerate(runs)]
    values = [kind.number(run) for kind, run in zip(kinds, runs, strict=True)]
    values = _mixed(seed, kinds, values, 1)
    values = [(v + len(kind) // 2) % len(kind) for kind, v in zip(kinds, values, strict=True)]
    values = _mixed(seed, kinds, values, -1)
    return "".join(kind.text(value) for kind, value in zip(kinds, values, strict=True))


def _mixed(seed: int, kinds: list[_Spellings], values: list[int], way: int) -> list[int]:
    """The Feistel network, or with way -1 its inverse."""
    sizes = [len(kind) for kind in kinds]
    found = values if way == -1 else _exchanged(seed, kinds, values, 0)
    for part in (0, 1)[::way]:
        fixed = [value for i, value in enumerate(found) if i % 2 != part]
        if fixed:
            found = [
                (v + way * _hash(seed, part, i, sizes, fixed)) % sizes[i] if i % 2 == part else v
                for i, v in enumerate(found)
            ]
    return _exchanged(seed, kinds, found, 1) if way == -1 else found


def _exchanged(seed: int, kinds: list[_Spellings], values: list[int], way: int) -> list[int]:
    """Numbers in the order of the seed, or back."""
    return [
        _order(seed, kind)[1 - way][value] if len(kind) <= _FEW else value
        for kind, value in zip(kinds, values, strict=True)
    ]
