"""Noise on sentences has the distribution that it says it has, and moves no word too far."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae.networks import WordNoise
from ppl_vae.runtime import BLANK, END, FIRST_WORD, PAD, holds_sentences, lengths_of

N = 20_000


def numbered(*lengths: int) -> Tensor:
    """Sentences of that many words, each word with the number of its place."""
    places = torch.arange(max(lengths) + 1)
    ends = torch.tensor(lengths)[:, None]
    rows = torch.where(places < ends, FIRST_WORD + places, PAD)
    return torch.where(places == ends, END, rows)


def places_of(row: list[int]) -> list[int]:
    """At which place each word of such a sentence was."""
    return [number - FIRST_WORD for number in row[: row.index(END)]]


LENGTHS = [0, 1, 2, 3, 7, 12, 30] * 40


@pytest.mark.parametrize("lengths", [[0], [0, 0], [5], LENGTHS])
def test_no_noise_changes_nothing(lengths: list[int]) -> None:
    rows = numbered(*lengths)
    state = torch.get_rng_state()
    assert torch.equal(WordNoise(drop=0.0, blank=0.0, shuffle=0)(rows), rows)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("noise", [WordNoise(), WordNoise(0.7, 0.5, 5), WordNoise(1.0, 1.0, 1)])
def test_what_comes_out_are_sentences(noise: WordNoise) -> None:
    rows = numbered(*LENGTHS)
    found = noise(rows)
    assert holds_sentences(found)
    assert found.dtype == rows.dtype
    assert found.shape == (len(rows), int(lengths_of(found).max()))
    for length, row in zip(LENGTHS, found.tolist(), strict=True):
        words = [number for number in row[: row.index(END)] if number != BLANK]
        assert len(set(words)) == len(words)
        assert all(FIRST_WORD <= word < FIRST_WORD + length for word in words)
        assert min(length, 1) <= row.index(END) <= length  # one word stays, if there was one
    assert noise(rows.int()).dtype == torch.int32
    assert torch.equal(rows, numbered(*LENGTHS))


@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("shuffle", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("extreme", [False, True])
def test_no_word_moves_too_far(
    monkeypatch: pytest.MonkeyPatch, shuffle: int, drop: float, extreme: bool
) -> None:
    """For any draws: with the least and the largest alone, words move as far as they can."""
    if extreme:
        largest = 1 - 2.0**-24
        monkeypatch.setattr(
            torch, "rand_like", lambda x: torch.randint(2, x.shape).float() * largest
        )
    rows = numbered(*LENGTHS, 400)
    farthest = 0
    for row, length in zip(
        WordNoise(drop, 0.0, shuffle)(rows).tolist(), [*LENGTHS, 400], strict=True
    ):
        found = places_of(row)
        kept = sorted(found)  # the sentence after words were left out
        assert len(kept) == length or drop
        moved = [abs(new - kept.index(word)) for new, word in enumerate(found)]
        farthest = max([farthest, *moved])
        for i, j in itertools.combinations(range(len(found)), 2):
            if found[i] > found[j]:
                assert kept.index(found[i]) - kept.index(found[j]) <= shuffle
    assert farthest == shuffle if extreme else farthest <= shuffle


def within(counts: Counter[Any], exact: dict[Any, float], n: int = N) -> None:
    """Each count is Binomial(n, p): 6 standard deviations and 6 off, it is with probability below 1e-7."""
    assert sum(exact.values()) == pytest.approx(1)
    assert counts.keys() <= {key for key, p in exact.items() if p > 0}
    for key, p in exact.items():
        assert abs(counts[key] - n * p) <= 6 * (n * p * (1 - p)) ** 0.5 + 6, key


def test_orders_of_three_words() -> None:
    """With u_i ~ U(0, 2): word 0 passes word 1 if u_0 > 1 + u_1, of probability 1/8; so does word 1 word 2, and
    not both, as u_1 is below 1 in the one case and above it in the other. Word 0 never passes word 2."""
    noise = WordNoise(drop=0.0, blank=0.0, shuffle=1)
    counts = Counter(tuple(places_of(row)) for row in noise(numbered(*[3] * N)).tolist())
    within(counts, {(0, 1, 2): 3 / 4, (1, 0, 2): 1 / 8, (0, 2, 1): 1 / 8})


@pytest.mark.parametrize(
    ("drop", "blank", "shuffle", "words"),
    [(0.3, 0.25, 1, 2), (0.6, 0.0, 0, 3), (1.0, 0.5, 1, 3), (0.5, 1.0, 0, 2)],
)
def test_all_that_can_come_of_a_sentence(
    drop: float, blank: float, shuffle: int, words: int
) -> None:
    """By enumeration: which words stay, their order, which are hidden."""
    exact: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for stay in itertools.product([True, False], repeat=words):
        p = (1 - drop) ** sum(stay) * drop ** (words - sum(stay))
        left = [i for i in range(words) if stay[i]]
        for kept in [left] if left else [[i] for i in range(words)]:
            of_kept = p if left else p / words
            orders = {tuple(kept): 1.0}
            if shuffle and len(kept) == 2:
                orders = {tuple(kept): 7 / 8, tuple(kept[::-1]): 1 / 8}
            if shuffle and len(kept) == 3:
                a, b, c = kept
                orders = {(a, b, c): 3 / 4, (b, a, c): 1 / 8, (a, c, b): 1 / 8}
            for order, q in orders.items():
                for hidden in itertools.product([True, False], repeat=len(kept)):
                    r = blank ** sum(hidden) * (1 - blank) ** (len(kept) - sum(hidden))
                    row = (
                        BLANK if h else FIRST_WORD + i for i, h in zip(order, hidden, strict=True)
                    )
                    exact[tuple(row)] += of_kept * q * r
    found = WordNoise(drop, blank, shuffle)(numbered(*[words] * N))
    within(Counter(tuple(row[: row.index(END)]) for row in found.tolist()), exact)


def test_words_are_left_out_independently_in_long_and_short_rows_together() -> None:
    """Shares of the words of 2000 sentences of each length; within 6 standard deviations, as above."""
    lengths = [1, 4, 20]
    found = WordNoise(drop=0.2, blank=0.3, shuffle=3)(numbered(*lengths * 2000))
    for i, length in enumerate(lengths):
        rows = found[i::3]
        n = 2000 * length
        kept = int((lengths_of(rows) - 1).sum())
        p = 0.8 if length > 1 else 1.0  # a single word stays
        assert (
            abs(kept - n * (p + (0.2**length if length > 1 else 0) / length))
            <= 6 * (n * 0.16) ** 0.5
        )
        assert abs(int((rows == BLANK).sum()) - kept * 0.3) <= 6 * (kept * 0.21) ** 0.5


def test_draws_are_from_the_global_generator() -> None:
    rows, noise = numbered(*LENGTHS), WordNoise()
    torch.manual_seed(3)
    first, second = noise(rows), noise(rows)
    torch.manual_seed(3)
    assert torch.equal(noise(rows), first)
    assert not torch.equal(first[:, :5], second[:, :5])
    assert noise == WordNoise(0.1, 0.2, 3)


def test_bfloat16_as_the_default_dtype_changes_nothing() -> None:
    """Its numbers are whole up to 256 alone."""
    rows = numbered(400)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = places_of(WordNoise(0.0, 0.0, 2)(rows)[0].tolist())
    finally:
        torch.set_default_dtype(torch.float32)
    assert max(abs(i - place) for i, place in enumerate(found)) == 2


def spelled(rows: Tensor, pieces: dict[int, list[int]]) -> Tensor:
    """Sentences with several numbers in place of a word."""
    made = [[piece for word in row for piece in pieces.get(word, [word])] for row in rows.tolist()]
    made = [row[: row.index(END) + 1] for row in made]
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in made], batch_first=True)


@pytest.mark.parametrize(
    "noise", [(0.0, 0.0, 3), (0.5, 0.0, 0), (0.0, 0.5, 0), (0.1, 0.2, 3), (1.0, 1.0, 2)]
)
@pytest.mark.parametrize("pad_starts", [False, True])
def test_pieces_of_a_word_go_together(noise: tuple[float, float, int], pad_starts: bool) -> None:
    """The noise of sentences in pieces is that of the same sentences in words, spelled out."""
    rows = numbered(*LENGTHS)
    words = range(FIRST_WORD, FIRST_WORD + max(LENGTHS))
    pieces = {word: [word, *[100 + word] * (word % 3)] for word in words}
    starts = torch.arange(200) < 100
    starts[PAD] = pad_starts
    torch.manual_seed(0)
    expected = WordNoise(noise[0], 0.0, noise[2])(rows)
    torch.manual_seed(0)
    found = WordNoise(noise[0], 0.0, noise[2], starts)(spelled(rows, pieces))
    if not pad_starts:  # as many words in a row, so that the draws are the same
        assert torch.equal(found, spelled(expected, pieces))
    hidden = WordNoise(*noise, starts)(spelled(rows, pieces))
    assert holds_sentences(hidden)
    for row in WordNoise(0.0, 0.5, 0, starts)(spelled(rows, pieces)).tolist():
        for place, number in enumerate(row):
            # What goes on with a word has its word before it; a hidden one is hidden as a whole.
            assert number < 100 or row[place - 1] in (number, number - 100)


def test_words_are_hidden_as_often_as_told_whatever_their_pieces() -> None:
    pieces = {FIRST_WORD: [FIRST_WORD], FIRST_WORD + 1: [FIRST_WORD + 1, 100, 101, 102]}
    rows = spelled(numbered(2).expand(N, -1), pieces)
    found = WordNoise(0.0, 0.3, 0, torch.arange(200) < 100)(rows)
    hidden = found[:, :5] == BLANK
    assert torch.equal(hidden[:, 1:].any(1), hidden[:, 1:].all(1))
    for share in hidden[:, :2].double().mean(0).tolist():
        assert abs(share - 0.3) < 4 * (0.3 * 0.7 / N) ** 0.5


def test_noises_are_equal_if_their_words_are() -> None:
    starts = torch.arange(20) < 10
    assert WordNoise(starts=starts) == WordNoise(starts=starts.clone())
    assert hash(WordNoise(starts=starts)) == hash(WordNoise(starts=starts.clone()))
    assert repr(WordNoise(starts=starts)) != repr(WordNoise(starts=~starts))
    assert WordNoise(starts=starts) not in (WordNoise(), WordNoise(starts=~starts), "another")
    assert WordNoise(drop=0) == WordNoise(drop=0.0)


@pytest.mark.parametrize("starts", [None, torch.ones(9).bool()])
def test_no_rows(starts: Tensor | None) -> None:
    assert len(WordNoise(starts=starts)(torch.zeros(0, 4).long())) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"drop": -0.1}, ValueError, r"WordNoise\.drop must be from 0 to 1, got -0\.1"),
        ({"drop": 1.1}, ValueError, r"WordNoise\.drop must be from 0 to 1"),
        ({"blank": float("nan")}, ValueError, r"WordNoise\.blank must be from 0 to 1, got nan"),
        ({"blank": True}, TypeError, r"WordNoise\.blank must be a number"),
        ({"shuffle": -1}, ValueError, r"WordNoise\.shuffle must be at least 0, got -1"),
        ({"shuffle": 1.5}, TypeError, r"WordNoise\.shuffle must be a whole number"),
        ({"starts": torch.ones(9)}, TypeError, r"WordNoise\.starts must be a tensor of bool"),
        ({"starts": [True]}, TypeError, r"WordNoise\.starts must be a tensor of bool"),
        (
            {"starts": torch.ones(9, 1).bool()},
            ValueError,
            r"WordNoise\.starts must have the shape \(words,\), got \(9, 1\)",
        ),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        WordNoise(**arguments)


@pytest.mark.parametrize(
    ("rows", "error", "told"),
    [
        (
            torch.tensor([[4.0, 1.0]]),
            TypeError,
            r"rows must hold whole numbers, got torch\.float32",
        ),
        (torch.tensor([4, 1]), ValueError, r"rows must have the shape \(n, T\), got \(2,\)"),
        (torch.tensor([[4, 1], [0, 0]]), ValueError, "row 1, counted from 0, is no sentence"),
        (torch.tensor([[4, 5]]), ValueError, "row 0, counted from 0, is no sentence"),
        (torch.tensor([[0, 1, 4]]), ValueError, "row 0, counted from 0, is no sentence"),
        (torch.zeros(2, 0).long(), ValueError, "row 0, counted from 0, is no sentence"),
    ],
)
def test_what_are_no_sentences(rows: Tensor, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        WordNoise()(rows)


def test_numbers_of_another_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"tells which of 5 numbers .* hold the number 9: give"):
        WordNoise(starts=torch.ones(5).bool())(torch.tensor([[9, END]]))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    rows = numbered(*LENGTHS).cuda()
    found = WordNoise()(rows)
    assert found.device == rows.device
    assert holds_sentences(found)
