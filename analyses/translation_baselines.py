"""Translations without a network, for back_translation.py: copies, and words one by one.

Signs are words of their own here, as for BLEU, which splits a translation in the same way.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

Translate = Callable[[Sequence[str]], list[str]]


def words_of(sentence: str) -> list[str]:
    """Words and signs of a sentence."""
    return re.findall(r"[\w'-]+|[^\w\s]", sentence)


def sentence_of(words: Sequence[str]) -> str:
    """A sentence of words and signs, without spaces before most signs."""
    return re.sub(r" ([.,;:!?])", r"\1", " ".join(words))


def copied(sentences: Sequence[str]) -> list[str]:
    """The sentences as they are."""
    return list(sentences)


def identical_words(known: Sequence[str]) -> Translate:
    """Keeps the words that also come in sentences of the other language, and leaves out all others.

    Args:
        known: Sentences of the other language.
    """
    there = {word for sentence in known for word in words_of(sentence)}

    def translate(sentences: Sequence[str]) -> list[str]:
        return [
            sentence_of([w for w in words_of(sentence) if w in there]) for sentence in sentences
        ]

    return translate


def word_by_word(sources: Sequence[str], targets: Sequence[str], iterations: int = 10) -> Translate:
    """Each word by the one that goes with it in pairs, in the same order; words that are not known are copied.

    Which words go together is found by EM, as a latent alignment: IBM Model 1 ("The Mathematics of Statistical
    Machine Translation", Brown et al. 1993), p(t | s) = prod_j 1/(l + 1) sum_i p(t_j | s_i), s_0 being no word.

    Args:
        sources: Sentences.
        targets: Their translations.
        iterations: Of EM.
    """
    pairs = [
        (["", *words_of(s)], words_of(t))
        for s, t in zip(sources, targets, strict=True)
        if words_of(t)
    ]
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for source, target in pairs:
        for s in source:
            for t in target:
                table[s][t] = 1.0
    for _ in range(iterations):
        counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source, target in pairs:
            for t in target:
                total = sum(table[s][t] for s in source)
                for s in source:
                    counts[s][t] += table[s][t] / total
        for s, of in counts.items():
            total = sum(of.values())
            table[s] = {t: count / total for t, count in of.items()}
    best = {s: max(of, key=lambda t: of[t]) for s, of in table.items()}

    def translate(sentences: Sequence[str]) -> list[str]:
        return [sentence_of([best.get(w, w) for w in words_of(sentence)]) for sentence in sentences]

    return translate
