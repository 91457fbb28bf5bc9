"""Rules for the order of words, each of which can be undone: what a word is, is known by lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ppl_vae.data.invented_languages import VERBS

_DETERMINERS = (
    "a an the some one two three four five six seven eight nine ten his her its their my your our"
)
_AUXILIARIES = "is are was were be been being am has have had will can"
_PREPOSITIONS = (
    "in on at of with by for from to into onto near over under behind through between across against around "
    "along beside above below during inside outside towards off up down"
)
_OTHERS = (
    "and or but as while who that which where when if than then not there it he she they i you we them him "
    "today again"
)
_NOUNS = "string spring morning evening building clothing something nothing everything wedding ceiling railing"


def _classes() -> dict[str, str]:
    verbs = " ".join(verb for kind in VERBS.values() for verb in kind)
    listed = {"V": verbs, "D": _DETERMINERS, "A": _AUXILIARIES, "R": _PREPOSITIONS}
    listed |= {"O": _OTHERS, "X": _NOUNS}
    return {word: kind for kind, words in listed.items() for word in words.split()}


_CLASSES = _classes()
_UNITS = re.compile("D+X+|X+|.")

_LONGEST_CLAUSE = 100
"""Most words that move together: the time grows with the square of their number."""

Order = Callable[[list[str]], list[str]]
"""Puts the words of a clause into another order."""


def class_of(word: str) -> str:
    """What kind of word it is: D(eterminer), V(erb), A(uxiliary), R: preposition, O(ther), or X: content."""
    small = word.lower()
    if small in _CLASSES:
        return _CLASSES[small]
    if small.endswith("ing") and len(small) > 5:
        return "V"
    return "X" if any(letter.isalnum() for letter in word) else "O"


def in_clauses(tokens: list[tuple[str, str]], there: Order, back: Order) -> list[tuple[str, str]]:
    """Moves words between the marks, which stay in their places."""
    found: list[str] = []
    clause: list[str] = []
    for word, marks in tokens:
        clause.append(word)
        if marks or len(clause) == _LONGEST_CLAUSE:
            found += one_to_one(clause, there, back)
            clause = []
    found += one_to_one(clause, there, back)
    return [(word, marks) for word, (_, marks) in zip(found, tokens, strict=True)]


def one_to_one(words: list[str], there: Order, back: Order) -> list[str]:
    """`there`, made one-to-one on all orders of some words; with the two exchanged, this is undone.

    Call orders s good where `back` undoes `there`, and t = there(s) what is made of them: as back(t) = s, no t
    is made of two. Good orders become what is made of them. From any other order, follow `back` to one that is
    made of none: the order becomes that. Such a path and its end belong to no other order, so that all
    orders are in rings, in which each has one that comes next and one that comes before.
    """
    if back(found := there(words)) == words:
        return found
    while there(before := back(words)) == words:
        words = before
    return words


def _units(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """A clause in parts, each with its class: N is a noun with what belongs to it, others are single words."""
    classes = "".join(map(class_of, words))
    return [
        ("N" if found[0][-1] == "X" else found[0], list(words[found.start() : found.end()]))
        for found in _UNITS.finditer(classes)
    ]


def _swapped(words: list[str], here: Callable[[str, str, str], bool]) -> list[str]:
    """Exchanges neighboring units where it is asked for: of the class before them, and those of the two."""
    units = _units(words)
    before, i = "", 0
    found: list[str] = []
    while i < len(units):
        kind, unit = units[i]
        after = units[i + 1][0] if i + 1 < len(units) else ""
        if here(before, kind, after):
            found += units[i + 1][1] + unit
            before, i = kind, i + 2
        else:
            found += unit
            before, i = kind, i + 1
    return found


def verbs_behind(words: list[str]) -> list[str]:
    """A verb behind its object: `plays the guitar` as `the guitar plays`."""
    return _swapped(words, lambda before, first, second: first + second == "VN")


def verbs_before(words: list[str]) -> list[str]:
    """`verbs_behind` undone: before an object stands the one who does it, or an auxiliary."""
    return _swapped(
        words, lambda before, first, second: before in ("N", "A") and first + second == "NV"
    )


def prepositions_behind(words: list[str]) -> list[str]:
    """A preposition behind what belongs to it: `in the park` as `the park in`."""
    return _swapped(words, lambda before, first, second: first + second == "RN")


def prepositions_before(words: list[str]) -> list[str]:
    """`prepositions_behind` undone."""
    return _swapped(words, lambda before, first, second: first + second == "NR")


def adjectives_turned(words: list[str]) -> list[str]:
    """Runs of content words turned around: `small dog` as `dog small`. It undoes itself."""
    classes = "".join(map(class_of, words))
    found = list(words)
    for run in re.finditer("X+", classes):
        found[run.start() : run.end()] = words[run.start() : run.end()][::-1]
    return found
