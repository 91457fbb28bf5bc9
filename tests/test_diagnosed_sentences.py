"""A latent that is a sentence: planted collapses are found, and numbers are those of the tables behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.distributions import Sentences
from ppl_vae.runtime import END, PAD

WORDS, LENGTH, N = 14, 6, 200
FOREIGN = 5
"""Word w of x is word w + 5 of z: x has the words 4 to 8, z those from 9 to 13."""

NEVER = -1e9


class Written:
    """A `WritesWords` in which the words of a row are independent of each other.

    Args:
        tables: The logits at each place, `(n, LENGTH, WORDS)`; one row stands for all.
    """

    def __init__(self, tables: Tensor, place: int = 0) -> None:
        self.tables = tables.clone()
        self.tables[..., [PAD, 3]] = NEVER

    def of_rows(self, index: Tensor) -> Written:
        return Written(self.tables[index]) if len(self.tables) > 1 else self

    def as_drawn(self) -> Written:
        return self

    def states(self, rows: Tensor) -> Tensor:
        return self.tables[:, : rows.shape[1]].expand(len(rows), -1, -1)

    def logits(self, states: Tensor) -> Tensor:
        return states

    def begun(self, n: int) -> Written:
        return Written(self.tables.expand(n, -1, -1))

    def step(self, words: Tensor | None, i: int) -> Tensor:
        return self.tables[:, i]


def language(first: int) -> Tensor:
    """The end with probability about 1/4, five words, and others now and then, `(1, LENGTH, WORDS)`."""
    probs = torch.full((WORDS,), 1e-3)
    probs[END] = 0.25
    probs[first : first + 5] = 0.15
    return probs.log().expand(1, LENGTH, WORDS)


def word_by_word(rows: Tensor, moved: int, sure: float) -> Tensor:
    """At each place the word of a row, moved by so many, with probability `sure`; otherwise any."""
    target = torch.where(rows > END, rows + moved, rows).clamp(END, WORDS - 1)
    probs = torch.nn.functional.one_hot(target, WORDS) * sure + (1 - sure) / WORDS
    return probs.log()


def sentences(first: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return Sentences(Written(language(first)), WORDS, LENGTH).sample((N,))


def pair(
    decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor]
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Programs whose tables are functions of what they read."""

    def of(rows: Tensor, tables: Callable[[Tensor], Tensor]) -> Sentences:
        flat = rows.reshape(-1, LENGTH)
        return Sentences(
            Written(tables(flat).expand(len(flat), -1, -1)), WORDS, LENGTH, rows.shape[:-1]
        )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Sentences(Written(language(9)), WORDS, LENGTH))
            pyro.sample("x", of(z, decode), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", of(x, encode))

    return model, guide


def translating(rows: Tensor) -> Tensor:
    return word_by_word(rows, FOREIGN, 0.9)


def back(rows: Tensor) -> Tensor:
    return word_by_word(rows, -FOREIGN, 0.9)


def copying(rows: Tensor) -> Tensor:
    return word_by_word(rows, 0, 0.98)


def english(rows: Tensor) -> Tensor:
    return language(4)


def german(rows: Tensor) -> Tensor:
    return language(9)


def found(decode: Any, encode: Any, x: Any = None, **options: Any) -> Diagnosis:
    rows = sentences(4, 0) if x is None else x
    return diagnose(*pair(decode, encode), rows, seed=0, **options)


def test_a_translation_is_no_collapse() -> None:
    diagnosis = found(back, translating)
    use = diagnosis.of_sentences
    assert use is not None
    assert diagnosis.cause == "none"
    assert diagnosis.active.tolist() == [True]
    assert "No collapse: z is worth" in str(diagnosis)
    assert use.copied < 0.1
    assert use.worth_per_word > 1.0
    # Under p(z), a word of z that was translated rightly has log 0.15, as p(z) says of its own.
    assert abs(use.foreign) < 0.5


@pytest.mark.parametrize(
    ("decode", "encode", "cause"),
    [
        (copying, copying, "copied sentence"),
        (english, translating, "ignored sentence"),
        (english, german, "sentence of the prior"),
        (english, english, "constant posterior"),
    ],
)
def test_planted_collapses_are_named(decode: Any, encode: Any, cause: str) -> None:
    diagnosis = found(decode, encode)
    assert diagnosis.cause == cause
    assert diagnosis.active.tolist() == [False]
    printed = str(diagnosis)
    assert printed.count("Collapse: z is worth") == 1
    assert f"Remedy: {diagnosis.remedy}" in printed
    assert ("count_words" in diagnosis.remedy) == (cause == "copied sentence")
    assert diagnosis.to_dict()["of_sentences"]["words"] > 1


def test_rows_that_are_the_same_have_nothing_to_tell() -> None:
    same = sentences(4, 0)[:1].expand(20, -1)
    assert found(english, german, same).cause == "identical rows"
    assert found(english, german, [same, same]).cause == "identical rows"


def test_batches_of_several_widths() -> None:
    x = sentences(4, 0)
    wide = found(back, translating, [x[:100], x[100:]])
    assert wide.cause == "none"
    short = x[(x != PAD).sum(1) <= 3]
    model, guide = pair(back, translating)

    def filled(program: Any) -> Any:
        def run(x: Tensor) -> None:
            program(torch.nn.functional.pad(x, (0, LENGTH - x.shape[1])))

        return run

    assert len(short) > 20
    trimmed = [short[:, :3], x[:50]]
    assert diagnose(filled(model), filled(guide), trimmed, seed=0).cause == "none"


def test_x_may_be_no_sentence() -> None:
    """A caption of numbers: it has worth, and no word of it can be copied."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Sentences(Written(language(9)), WORDS, LENGTH))
            loc = (z == 9).sum(-1, keepdim=True).float().expand(*z.shape[:-1], 3)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            count = x.mean(1).round().clamp(0, 4)
            row = torch.where(torch.arange(LENGTH) < count[:, None], 9, 0).long()
            row = row + (torch.arange(LENGTH) == count[:, None]).long()
            tables = word_by_word(row, 0, 0.95)
            pyro.sample("z", Sentences(Written(tables), WORDS, LENGTH, (len(x),)))

    torch.manual_seed(0)
    x = torch.randint(0, 4, (60, 1)).float().expand(60, 3) + 0.1 * torch.randn(60, 3)
    diagnosis = diagnose(model, guide, x, seed=0)
    assert diagnosis.cause == "none"
    assert "not defined: x is no sentence" in str(diagnosis)


def test_words_that_both_languages_have_are_not_copied() -> None:
    """If z is likely under p(z), repeating x is the right translation."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Sentences(Written(language(4)), WORDS, LENGTH))
            table = copying(z.reshape(-1, LENGTH))
            pyro.sample("x", Sentences(Written(table), WORDS, LENGTH, z.shape[:-1]), obs=x)

    _, guide = pair(copying, copying)
    diagnosis = diagnose(model, guide, sentences(4, 0), seed=0)
    assert diagnosis.of_sentences is not None
    assert diagnosis.of_sentences.copied > 0.8
    assert diagnosis.cause == "none"


def test_the_numbers_are_those_of_the_tables() -> None:
    """Expectations by hand: independent words, so that each number is a mean over places."""
    diagnosis, x = found(english, copying), sentences(4, 0)
    use = diagnosis.of_sentences
    assert use is not None
    assert use.worth == pytest.approx(0.0, abs=1e-5)  # the decoder does not look at z
    # -log p of what p(z) draws: its entropy per word, as each word is drawn from one table.
    probs = Written(language(9)).tables[0, 0].softmax(0)
    own = -float(torch.xlogy(probs, probs).sum())
    going = 1 - float(probs[END])
    certain = going ** (LENGTH - 1)  # sentences of the largest length have an end that is certain
    drawn = (1 - certain) / (1 - going)  # mean number of draws: until the end, at most LENGTH - 1
    words = drawn + certain
    assert -use.log_prior_of_own == pytest.approx(own * drawn / words, rel=0.05)
    assert 0.94 < use.copied < 1.0  # a word is repeated with 0.98; few come behind the end of x
    shared = torch.tensor([[5, 6, 5, END, PAD, PAD]]), torch.tensor([[5, 7, END, PAD, PAD, PAD]])
    from ppl_vae.diagnosis.sentences import _shared

    assert _shared(*shared).tolist() == pytest.approx([1 / 3])
    assert _shared(shared[1], shared[0]).tolist() == pytest.approx([1 / 2])
    assert math.isnan(float(_shared(torch.tensor([[END, PAD]]), torch.tensor([[5, END]]))))
    assert diagnosis.num_rows == len(x)


def test_one_row_says_little() -> None:
    diagnosis = found(back, translating, sentences(4, 0)[:1])
    assert "One row was given" in str(diagnosis)
    assert diagnosis.causes == {}
