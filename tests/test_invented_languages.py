"""The grammar's probabilities are exact, and a disguise can be taken off every text."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import unicodedata
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from ppl_vae.data import Disguise, invented_entropy, invented_log_prob, invented_sentences
from ppl_vae.data.invented_languages import RULES
from ppl_vae.data.word_cipher import WordCipher
from ppl_vae.data.word_order import (
    Order,
    adjectives_turned,
    one_to_one,
    prepositions_before,
    prepositions_behind,
    verbs_before,
    verbs_behind,
)

SENTENCES = invented_sentences(4000, seed=1)
WORDS = {
    word for rules in RULES.values() for rule in rules for word in rule.split() if word not in RULES
}


# -- the grammar -------------------------------------------------------------------------------------------


def kinds_of(symbol: str) -> dict[tuple[str, ...], float]:
    """All rows of kinds of words that a symbol becomes, and the probability of each way to make one.

    A kind is a symbol that becomes single words alone, or a word that stands in a rule.
    """
    if symbol not in RULES or all(
        rule and rule not in RULES and " " not in rule for rule in RULES[symbol]
    ):
        return {(symbol,): 1.0}
    found: dict[tuple[str, ...], float] = {}
    for rule, p in RULES[symbol].items():
        for parts in itertools.product(*(kinds_of(part).items() for part in rule.split())):
            kinds = tuple(kind for row, _ in parts for kind in row)
            assert kinds not in found, f"{kinds} is made in two ways"
            found[kinds] = p * math.prod(q for _, q in parts)
    return found


KINDS = kinds_of("SENTENCE")


def words_of(kind: str) -> dict[str, float]:
    return RULES.get(kind, {kind: 1.0})


def test_probabilities_sum_to_one() -> None:
    for symbol, rules in RULES.items():
        assert sum(rules.values()) == pytest.approx(1), symbol
        assert all(p > 0 for p in rules.values())
    assert sum(KINDS.values()) == pytest.approx(1)
    assert 100 < len(WORDS) < 130


def test_there_is_one_way_to_make_a_sentence() -> None:
    """No two rows of kinds have a sentence in common: somewhere, no word is of both kinds."""
    by_length: dict[int, list[tuple[str, ...]]] = {}
    for row in KINDS:
        by_length.setdefault(len(row), []).append(row)
    apart = {
        pair: not (words_of(pair[0]).keys() & words_of(pair[1]).keys())
        for pair in itertools.product({kind for row in KINDS for kind in row}, repeat=2)
    }
    for rows in by_length.values():
        for a, b in itertools.combinations(rows, 2):
            assert any(apart[pair] for pair in zip(a, b, strict=True)), (a, b)


def test_the_probability_of_a_sentence() -> None:
    """By hand: a person, who rests, nowhere and at no time; a, man, sits."""
    exact = 0.40 * 0.55 * 0.65 * 0.30 * 0.35 * 0.40 * 0.4 * 0.85
    assert float(invented_log_prob(["a man sits."])) == pytest.approx(math.log(exact))
    for row, p in [*KINDS.items()][:: len(KINDS) // 50]:
        words = [max(words_of(kind), key=words_of(kind).__getitem__) for kind in row]
        q = math.prod(max(words_of(kind).values()) for kind in row)
        found = float(invented_log_prob([" ".join(words) + "."]))
        assert found == pytest.approx(math.log(p * q), rel=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", ".", "a man sits", "a man sits..", "A man sits.", "a  man sits.", " a man sits.", "a man sit.",
     "two man sit.", "a man sits on the park.", "a dog sits.", "a man plays a guitar."],
)  # fmt: skip
def test_what_the_grammar_does_not_make(text: str) -> None:
    assert invented_log_prob([text]).tolist() == [-math.inf]


def test_the_entropy() -> None:
    """Of the rows of kinds, and of the words in them; and the mean of -log p of draws, within 5 errors."""
    of_kind = {
        kind: -sum(p * math.log(p) for p in words_of(kind).values())
        for row in KINDS
        for kind in row
    }
    exact = sum(p * (sum(map(of_kind.__getitem__, row)) - math.log(p)) for row, p in KINDS.items())
    assert invented_entropy() == pytest.approx(exact)
    information = -invented_log_prob(SENTENCES)
    error = float(information.std()) / len(SENTENCES) ** 0.5
    assert abs(float(information.mean()) - exact) < 5 * error < 0.3


def test_draws_have_these_probabilities() -> None:
    """The 12 rows of kinds that are drawn most often, within 6 standard deviations: by chance below 1e-7."""
    patterns = {
        row: re.compile(" ".join(f"({'|'.join(words_of(k))})" for k in row) + r"\.")
        for row in KINDS
    }
    frequent = sorted(KINDS, key=KINDS.__getitem__)[-12:]
    for row in frequent:
        p, n = KINDS[row], len(SENTENCES)
        count = sum(patterns[row].fullmatch(text) is not None for text in SENTENCES)
        assert abs(count - n * p) <= 6 * (n * p * (1 - p)) ** 0.5
    first = Counter(text.split(" ")[0] for text in SENTENCES)
    assert first.keys() == {"a", "the", "two", "three", "four"}


def test_draws_of_a_seed() -> None:
    assert invented_sentences(5, seed=1) == SENTENCES[:5]
    assert invented_sentences(5, seed=2) != SENTENCES[:5]
    assert all(3 <= len(text.split(" ")) <= 11 for text in SENTENCES)
    assert {len(text.split(" ")) for text in SENTENCES} == {*range(3, 12)}
    assert invented_log_prob([]).shape == (0,)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        invented_sentences(0)
    with pytest.raises(TypeError, match="sentences must be a list of texts"):
        invented_log_prob("a man sits.")


# -- the cipher --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_words_are_exchanged_in_pairs(seed: int) -> None:
    """Of words of up to three letters, and of the grammar: none stays, and all come back."""
    cipher = WordCipher(seed=seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(w) for n in (1, 2, 3) for w in itertools.product(letters, repeat=n)][
        :: 3 - 2 * (seed == 0)
    ]
    for word in [*words, *WORDS, *"0123456789", "strengths", "bcdfghjklm", "aeiouyaei", "x2y33"]:
        other = cipher(word)
        assert other != word
        assert cipher(other) == word
        assert len(other) == len(word)


def test_vowels_and_consonants_stay_where_they_were() -> None:
    def pattern(word: str) -> str:
        return re.sub("[^aeiouy]", "c", re.sub("[aeiouy]", "v", word))

    for word in WORDS:
        assert pattern(WordCipher()(word)) == pattern(word)


def test_large_letters_and_other_signs_stay() -> None:
    cipher = WordCipher()
    found = cipher("The man's T-SHIRT, naïve: 10%!")
    small = cipher("the man's t-shirt, naïve: 10%!")
    assert found.lower() == small
    assert re.sub("[A-Z]", "A", re.sub("[a-z]", "a", found))[:-4] == "Aaa aaa'a A-AAAAA, aaïaa: "
    assert re.fullmatch("[0-9]{2}%!", found[-4:])
    assert cipher("日本 ß — é") == "日本 ß — é"


def test_words_that_are_alike_become_unlike() -> None:
    """A word and the same with an s share few letters at the same places, as others of their pattern do."""
    cipher = WordCipher()
    shared = [
        sum(a == b for a, b in zip(cipher(word), cipher(word + "s"), strict=False)) / len(word)
        for word in sorted(WORDS)
        if len(word) > 3
    ]
    assert sum(shared) / len(shared) < 0.35


def test_the_share_of_words() -> None:
    """Words of a smaller share are among those of a larger one; the share is met within 6 deviations."""
    words = [*map("".join, itertools.product("bdgk", "aeou", "lmnr", "aeio")), *WORDS]
    before: set[str] = set()
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        cipher = WordCipher(share, seed=3)
        changed = {word for word in words if cipher(word) != word}
        assert before <= changed
        assert all(cipher(cipher(word)) == word for word in words)
        off = abs(len(changed) - share * len(words))
        assert off <= 6 * (len(words) * share * (1 - share)) ** 0.5
        before = changed


def test_the_made_up_words_of_the_grammar_are_no_words_of_it() -> None:
    cipher = WordCipher()
    said = {cipher(word) for word in WORDS}
    assert len(said) == len(WORDS)
    assert not said & WORDS
    assert {WordCipher(seed=1)(word) for word in WORDS} != said


# -- the order of words ------------------------------------------------------------------------------------

ORDERS: list[tuple[Order, Order]] = [
    (verbs_behind, verbs_before),
    (prepositions_behind, prepositions_before),
    (adjectives_turned, adjectives_turned),
]


@pytest.mark.parametrize(("there", "back"), ORDERS)
def test_orders_are_one_to_one(there: Order, back: Order) -> None:
    """Of all clauses of up to five words, of each class one."""
    for n in range(6):
        clauses = [*itertools.product(["the", "dog", "plays", "is", "in", "and"], repeat=n)]
        found = [tuple(one_to_one([*clause], there, back)) for clause in clauses]
        assert len({*found}) == len(clauses)
        for clause, moved in zip(clauses, found, strict=True):
            assert sorted(moved) == sorted(clause)
            assert tuple(one_to_one([*moved], back, there)) == clause


@pytest.mark.parametrize(
    ("there", "text", "moved"),
    [
        (verbs_behind, "a man plays the guitar", "a man the guitar plays"),
        (verbs_behind, "a man is playing the guitar", "a man is the guitar playing"),
        (verbs_behind, "a man sits", "a man sits"),
        (
            verbs_behind,
            "men in two hats play the guitar on the beach",
            "men in two hats the guitar play on the beach",
        ),
        (prepositions_behind, "a man in a red hat on the beach", "a man a red hat in the beach on"),
        (prepositions_behind, "a man sits in the park", "a man sits the park in"),
        (adjectives_turned, "the big red dog and a small cat", "the dog red big and a cat small"),
    ],
)
def test_phrases(there: Order, text: str, moved: str) -> None:
    back = dict(ORDERS)[there]
    assert " ".join(one_to_one(text.split(), there, back)) == moved
    assert " ".join(one_to_one(moved.split(), back, there)) == text


# -- the disguise ------------------------------------------------------------------------------------------

DIFFICULTIES = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]


@pytest.mark.parametrize("plurals", [False, True])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_invented_sentence_comes_back(difficulty: float, plurals: bool) -> None:
    disguise = Disguise(difficulty, seed=2, plurals=plurals)
    found = disguise(SENTENCES)
    assert disguise.undisguise(found) == SENTENCES
    assert len({*found}) == len({*SENTENCES})
    same = sum(a == b for a, b in zip(found, SENTENCES, strict=True))
    assert same == len(SENTENCES) if difficulty == 0 else same < len(SENTENCES)


WORDS_AND_OTHERS = [
    *(
        [
            "a",
            "the",
            "two",
            "man",
            "dog",
            "small",
            "red",
            "plays",
            "playing",
            "is",
            "in",
            "on",
            "and",
        ]
    ),
    *(["ë", "ëë", "aë", "Ö", "x-ray", "10", "The", "MAN", ".", ",", "'"]),
    *(
        [
            "dogs",
            "Women",
            "people",
            "ladies",
            "glasses",
            "t-shirts",
            "GIRLS",
            "1990s",
            "naïves",
            "dogï",
        ]
    ),
    "",
    "\n",
    "\t",
]
TEXTS = st.text() | st.lists(
    st.tuples(st.sampled_from(WORDS_AND_OTHERS), st.sampled_from(["", "", "", ".", ",!"])).map(
        "".join
    ),
    max_size=12,
).map(" ".join)


@given(TEXTS, st.sampled_from(DIFFICULTIES), st.booleans())
@example("the ë, a ëë dog. an ëdog two dogë", 1.0, False)
@example("the ïs, a ïï dogs. an ëdogs two dogïës ïëï", 1.0, True)
@example("a man" + " the in" * 150, 1.0, False)
@example("a cafe\u0301, noe\u0308l e\u0301e \u0301e", 1.0, False)
@example(" ".join(f"{c}{a}s" for c in "abcdnopzAN1" for a in "\u0301\u0303\u0323"), 1.0, True)
@example(" ".join(f"{c}{a}" for c in "abcdnopzAN1" for a in "\u0301\u0303\u0323"), 1.0, False)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_every_text_comes_back(text: str, difficulty: float, plurals: bool) -> None:
    disguise = Disguise(difficulty, plurals=plurals)
    composed = unicodedata.normalize("NFC", text)
    (said,) = disguise([text])
    # What a vocabulary writes of it is what it is, so that no two become the same there.
    assert unicodedata.is_normalized("NFC", said)
    assert disguise.undisguise([said]) == [composed]
    if difficulty == 0:
        assert said == composed
    if difficulty == 1 and re.search("[a-zA-Z0-9](?![\u0300-\u036f])", composed):
        assert said != composed
    disguise.undisguise([text])  # something, also for what is no disguise


def test_nothing_is_as_it_was() -> None:
    for text, said in zip(SENTENCES, Disguise()(SENTENCES), strict=True):
        before = re.findall("[a-z]+", text)
        after = re.findall("[a-z]+", said)
        assert len(before) == len(after)
        assert not any(a == b for a, b in zip(before, after, strict=True))


def test_what_is_done_at_which_difficulty() -> None:
    """The words are undone by the cipher, which leaves the order and the endings."""
    text = "a young man plays the guitar in the park, today."

    def order(difficulty: float) -> str:
        disguise = Disguise(difficulty)
        (said,) = disguise([text])
        return WordCipher(difficulty)(said)

    assert order(0.0) == text
    assert order(0.12) == text
    assert order(0.13) == "a man young plays the guitar in the park, today."
    assert order(0.38) == "manëa young plays guitarëthe in parkëthe, today."
    assert order(0.63) == "manëa young guitarëthe plays in parkëthe, today."
    assert order(0.88) == order(1.0) == "manëa young guitarëthe plays parkëthe in, today."


def test_plurals_are_their_singulars_with_an_ending() -> None:
    words = (
        "dog man woman child person foot lady glass shoe beach horse box key toy t-shirt knife bus"
    )
    many = (
        "dogs men women children people feet ladies glasses shoes beaches horses boxes keys toys t-shirts "
        "knives buses"
    )
    words, many = f"{words} human", f"{many} humans"
    no_plurals = (
        "grass bus man's tennis this his is wears eats as its has dress gas was PARKS mans s ss es"
    )
    disguise = Disguise(plurals=True)
    assert disguise(many.split()) == [f"{one}ï" for one in disguise(words.split())]
    assert disguise(no_plurals.split()) == Disguise()(no_plurals.split())
    (said,) = disguise(["the two dogs, some dogs"])
    name = WordCipher()("dog")
    assert said.split()[1:] == [
        f"{name}ïë{WordCipher()('two')},",
        f"{name}ïë{WordCipher()('some')}",
    ]
    for difficulty, ends in ((0.37, False), (0.38, True)):
        assert ("ï" in Disguise(difficulty, plurals=True)(["dogs"])[0]) == ends


def test_marks_stay_in_their_places() -> None:
    (said,) = Disguise()(["a man, red; plays the guitar: two dogs! why?"])
    assert re.findall("[^ëa-z]", said) == re.findall("[^a-z]", "man, red; guitar plays: dogs! why?")


def test_log_prob_of_a_disguised_sentence() -> None:
    disguise = Disguise()
    said = disguise(SENTENCES[:50])
    assert invented_log_prob(said).max() == -math.inf
    assert torch.equal(
        invented_log_prob(disguise.undisguise(said)), invented_log_prob(SENTENCES[:50])
    )


def test_a_disguise_is_its_settings() -> None:
    disguise = Disguise(0.5, seed=4)
    disguise(SENTENCES[:1])
    assert disguise == Disguise(0.5, seed=4) != Disguise(0.5)
    assert repr(disguise) == "Disguise(difficulty=0.5, seed=4, plurals=False)"
    for other in (copy.deepcopy(disguise), pickle.loads(pickle.dumps(disguise))):
        assert other(SENTENCES[:9]) == disguise(SENTENCES[:9])
    assert Disguise(seed=1)(SENTENCES[:9]) != Disguise(seed=2)(SENTENCES[:9])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"difficulty": 1.1}, ValueError, r"Disguise\.difficulty must be from 0 to 1, got 1\.1"),
        (
            {"difficulty": math.nan},
            ValueError,
            r"Disguise\.difficulty must be from 0 to 1, got nan",
        ),
        (
            {"difficulty": "hard"},
            TypeError,
            r"Disguise\.difficulty must be a number, got the string 'hard'",
        ),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"plurals": "yes"}, TypeError, r"Disguise\.plurals must be True or False"),
    ],
)
def test_bad_settings(arguments: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Disguise(**arguments)


def test_what_is_no_text() -> None:
    for call in (Disguise(), Disguise().undisguise):
        with pytest.raises(
            TypeError, match="sentences must be a list of texts, got the string 'a dog'"
        ):
            call("a dog")
        with pytest.raises(TypeError, match="sentence 1, counted from 0, is no text but 3"):
            call(["a dog", 3])  # type: ignore[list-item]
