"""Sentences of a small grammar, whose probability is known."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from ppl_vae.data.sentences import checked_texts
from ppl_vae.runtime import require_count, require_seed

_ENDS_WITH = "."


def _shares(weights: str) -> dict[str, float]:
    """Words and their weights, `dog 2 cat 1`, as probabilities."""
    words, numbers = weights.split()[::2], [float(n) for n in weights.split()[1::2]]
    return {word: number / sum(numbers) for word, number in zip(words, numbers, strict=True)}


def _forms(words: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Other forms of the words, with the same probabilities."""
    return dict(zip(words.split(), weights.values(), strict=True))


_PERSON = _shares("man 30 woman 25 boy 15 girl 10 child 8 doctor 5 farmer 4 teacher 3")
_ANIMAL = _shares("dog 40 cat 25 horse 15 bird 10 cow 6 duck 4")
_FOOD = _shares("sandwich 40 cake 30 banana 20 tomato 10")
_RESTS = _shares("sits 40 stands 30 waits 15 laughs 10 sings 5")
_WEARS = _shares("wears 80 washes 20")
_EATS = _shares("eats 60 cuts 25 buys 15")
_SEES = _shares("sees 40 holds 30 feeds 20 follows 10")
_MOVES = _shares("runs 50 jumps 35 swims 15")
_CHASES = _shares("chases 65 watches 35")

VERBS = {
    **{"RESTS": _RESTS, "REST": _forms("sit stand wait laugh sing", _RESTS)},
    **{"WEARS": _WEARS, "WEAR": _forms("wear wash", _WEARS)},
    **{"PLAYS": {"plays": 1.0}, "PLAY": {"play": 1.0}},
    **{"EATS": _EATS, "EAT": _forms("eat cut buy", _EATS)},
    **{"SEES": _SEES, "SEE": _forms("see hold feed follow", _SEES)},
    **{"MOVES": _MOVES, "MOVE": _forms("run jump swim", _MOVES)},
    **{"CHASES": _CHASES, "CHASE": _forms("chase watch", _CHASES)},
}
"""Kinds of verbs, for one and for many."""

RULES: dict[str, dict[str, float]] = {
    "SENTENCE": {
        "ONE_PERSON DOES WHERE WHEN": 0.40,
        "MANY_PEOPLE DO WHERE WHEN": 0.25,
        "ONE_ANIMAL GOES WHERE WHEN": 0.22,
        "MANY_ANIMALS GO WHERE WHEN": 0.13,
    },
    "DOES": {
        "RESTS": 0.35,
        "WEARS GARMENT": 0.20,
        "PLAYS the INSTRUMENT": 0.15,
        "EATS MEAL": 0.15,
        "SEES SOME_ANIMAL": 0.15,
    },
    "DO": {
        "REST": 0.45,
        "WEAR GARMENT": 0.05,
        "PLAY the INSTRUMENT": 0.20,
        "EAT MEAL": 0.15,
        "SEE SOME_ANIMAL": 0.15,
    },
    "GOES": {"MOVES": 0.6, "CHASES SOME_ANIMAL": 0.25, "CHASES ONE_PERSON": 0.15},
    "GO": {"MOVE": 0.7, "CHASE SOME_ANIMAL": 0.2, "CHASE ONE_PERSON": 0.1},
    "WHERE": {"": 0.4, "IN the ROOM": 0.35, "on the GROUND": 0.25},
    "WHEN": {"": 0.85, "today": 0.09, "again": 0.06},
    "ONE_PERSON": {"ONE PERSON": 0.55, "ONE TRAIT PERSON": 0.45},
    "MANY_PEOPLE": {"MANY PEOPLE": 0.7, "MANY TRAIT PEOPLE": 0.3},
    "SOME_ANIMAL": {"ONE_ANIMAL": 0.7, "MANY_ANIMALS": 0.3},
    "ONE_ANIMAL": {"ONE ANIMAL": 0.4, "ONE LOOK ANIMAL": 0.6},
    "MANY_ANIMALS": {"MANY ANIMALS": 0.5, "MANY LOOK ANIMALS": 0.5},
    "GARMENT": {"a COLOR CLOTH": 0.8, "the COLOR CLOTH": 0.2},
    "MEAL": {"ONE FOOD": 0.7, "MANY FOODS": 0.3},
    "LOOK": {"COLOR": 0.6, "SIZE": 0.4},
    "ONE": _shares("a 65 the 35"),
    "MANY": _shares("two 50 three 22 four 8 the 20"),
    "PERSON": _PERSON,
    "PEOPLE": _forms("men women boys girls children doctors farmers teachers", _PERSON),
    "ANIMAL": _ANIMAL,
    "ANIMALS": _forms("dogs cats horses birds cows ducks", _ANIMAL),
    "FOOD": _FOOD,
    "FOODS": _forms("sandwiches cakes bananas tomatoes", _FOOD),
    "TRAIT": _shares("young 40 tall 25 happy 15 tired 12 busy 8"),
    "COLOR": _shares("red 28 black 22 white 18 blue 14 brown 10 green 8"),
    "SIZE": _shares("small 60 big 40"),
    "CLOTH": _shares("shirt 40 hat 25 jacket 20 dress 15"),
    "INSTRUMENT": _shares("guitar 50 piano 25 drums 15 violin 10"),
    "IN": _shares("in 70 near 30"),
    "ROOM": _shares("park 40 garden 25 house 20 kitchen 15"),
    "GROUND": _shares("street 45 beach 25 grass 20 bridge 10"),
    **VERBS,
}
"""What a symbol becomes, and with which probability: symbols, and words in small letters."""


def invented_sentences(n: int, seed: int = 0) -> list[str]:
    """English-like sentences of people and animals, drawn from a grammar of some hundred words.

    The grammar is ours. Words of a kind differ in their probabilities, and kinds of verbs in what they go
    with, so that the meaning of a word shows in where it stands. Sentences have 3 to 11 words.

    Args:
        n: How many.
        seed: Seed of the draws; the first sentences of a seed are the same for every n.

    Raises:
        TypeError: An argument is no whole number.
        ValueError: `n` is below 1.

    Example:
        >>> for sentence in invented_sentences(3):
        ...     print(sentence)
        a white cat chases the black horse in the kitchen again.
        a big horse runs in the kitchen again.
        two tired women wait.
    """
    require_count("n", n, 1)
    require_seed(seed)
    generator = random.Random(int(seed))
    return [" ".join(_drawn("SENTENCE", generator)) + _ENDS_WITH for _ in range(n)]


def invented_log_prob(sentences: Iterable[str]) -> Tensor:
    """log p(sentence) of the grammar of `invented_sentences`, exactly.

    It is the product over the rules that make the sentence: there is one way to make each.

    Args:
        sentences: n texts.

    Returns:
        In nats, `(n,)`; minus infinity where the grammar does not make the sentence.

    Raises:
        TypeError: They are no list of texts.

    Example:
        >>> invented_log_prob(["a man sits.", "a man sits on the dog."])
        tensor([-6.1938,    -inf])
    """
    found = []
    for text in checked_texts(sentences):
        words = tuple(text.removesuffix(_ENDS_WITH).split(" ")) if text.endswith(_ENDS_WITH) else ()
        p = _beginnings(words).get(len(words), 0.0)
        found.append(math.log(p) if p else -math.inf)
    return torch.tensor(found, dtype=torch.get_default_dtype())


def invented_entropy() -> float:
    """The mean of -log p over the sentences of `invented_sentences`, exactly, in nats per sentence.

    No model of these sentences has a higher expected log p(x) than minus this.

    Example:
        >>> round(invented_entropy(), 3)
        11.84
    """
    return _entropy("SENTENCE")


def _drawn(symbol: str, generator: random.Random) -> list[str]:
    """Words that a symbol becomes."""
    if symbol not in RULES:
        return [symbol]
    (chosen,) = generator.choices(*zip(*RULES[symbol].items(), strict=True))
    return [word for part in chosen.split() for word in _drawn(part, generator)]


def _beginnings(words: tuple[str, ...]) -> dict[int, float]:
    """The probability that the grammar makes the first k of the words and stops, for each k where it can."""

    @cache
    def of(symbol: str, start: int) -> dict[int, float]:
        if symbol not in RULES:
            return {start + 1: 1.0} if words[start : start + 1] == (symbol,) else {}
        found: dict[int, float] = {}
        for rule, p in RULES[symbol].items():
            ends = {start: p}
            for part in rule.split():
                after: dict[int, float] = {}
                for end, q in ends.items():
                    for last, r in of(part, end).items():
                        after[last] = after.get(last, 0.0) + q * r
                ends = after
            for end, q in ends.items():
                found[end] = found.get(end, 0.0) + q
        return found

    return of("SENTENCE", 0)


@cache
def _entropy(symbol: str) -> float:
    """That of the rules that a symbol is made by, which is that of the words, as these tell the rules."""
    if symbol not in RULES:
        return 0.0
    rules = RULES[symbol].items()
    return sum(p * (sum(map(_entropy, rule.split())) - math.log(p)) for rule, p in rules)
