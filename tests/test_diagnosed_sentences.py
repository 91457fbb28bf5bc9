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

from ppl_vae import diagnose, fit
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.diagnosis.sentences import _doubts
from ppl_vae.diagnosis.use_of_sentences import UseOfSentences, margin
from ppl_vae.distributions import Sentences
from ppl_vae.guides import Translator
from ppl_vae.models import LatentTranslation
from ppl_vae.networks import EncoderDecoder
from ppl_vae.objectives import KnownLatents
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


def language(first: int, others: float = 1e-3) -> Tensor:
    """The end with probability about 1/4, five words, and others now and then, `(1, LENGTH, WORDS)`."""
    probs = torch.full((WORDS,), others)
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
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    prior: Tensor | None = None,
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Programs whose tables are functions of what they read."""

    def of(rows: Tensor, tables: Callable[[Tensor], Tensor]) -> Sentences:
        flat = rows.reshape(-1, LENGTH)
        return Sentences(
            Written(tables(flat).expand(len(flat), -1, -1)), WORDS, LENGTH, rows.shape[:-1]
        )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            own = language(9) if prior is None else prior
            z = pyro.sample("z", Sentences(Written(own), WORDS, LENGTH))
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


def found(decode: Any, encode: Any, x: Any = None, prior: Tensor | None = None) -> Diagnosis:
    rows = sentences(4, 0) if x is None else x
    return diagnose(*pair(decode, encode, prior), rows, seed=0)


def test_a_translation_is_no_collapse() -> None:
    diagnosis = found(back, translating)
    use = diagnosis.of_sentences
    assert use is not None
    assert diagnosis.cause == "none"
    assert diagnosis.active.tolist() == [True]
    assert "No collapse: z is worth" in str(diagnosis)
    assert use.copied.mean < 0.1
    assert use.worth_per_word.mean > 1.0
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
    assert diagnosis.to_dict()["of_sentences"]["words"]["mean"] > 1


def copying_some(rows: Tensor) -> Tensor:
    """A third of the words are those of x, the others of the right language."""
    return (0.35 * word_by_word(rows, 0, 1.0).exp() + 0.65 * language(9).exp()).log()


def copied_back(rows: Tensor) -> Tensor:
    return word_by_word(rows, 0, 0.5)


@pytest.mark.parametrize(("others", "cause"), [(1e-3, "none"), (1e-6, "copied sentence")])
def test_a_mixture_of_both_languages_is_a_copy_if_it_is_foreign_enough(
    others: float, cause: str
) -> None:
    """What is less likely by log(0.15 / others) for each copied word, about a quarter of all."""
    diagnosis = found(copied_back, copying_some, prior=language(9, others))
    use = diagnosis.of_sentences
    assert use is not None
    assert use.worth_per_word.mean > 0.1
    assert 0.2 < use.surplus < 0.4
    assert use.foreign == pytest.approx(0.23 * math.log(0.15 / others), rel=0.15)
    assert diagnosis.cause == cause
    assert diagnosis.remedy.startswith("begin again") == (cause != "none")


def test_stock_phrases_are_told() -> None:
    """All z are nearly the likeliest sentence, of which one word says whether x begins with 4 or 5."""
    prior = language(9).clone()
    prior[..., 9] += math.log(3.0)  # 0.45, and the other four words 0.075
    prior[..., 10:] -= math.log(2.0)

    def stock(rows: Tensor) -> Tensor:
        z = torch.tensor([9, 9, 9, 9, 10, END]).repeat(len(rows), 1)
        z[rows[:, 0] <= 5, -2] = 9
        return word_by_word(z, 0, 1 - 1e-6)

    def decode(z: Tensor) -> Tensor:
        said = z[:, -2] == 9
        probs = language(4).exp().repeat(len(z), 1, 1)
        probs[said, 0, 6:9] = 1e-3
        probs[~said, 0, 4:6] = 1e-3
        return probs.log()

    diagnosis = found(decode, stock, prior=prior)
    use = diagnosis.of_sentences
    assert use is not None
    assert diagnosis.cause == "none"
    assert use.words.mean == 6.0
    # The last word is 9 in two of five sentences that have a word; the end of the longest is certain.
    log_z = 4 * math.log(0.45) + 0.4 * math.log(0.45) + 0.6 * math.log(0.075)
    assert use.log_prior.mean * 6 == pytest.approx(log_z, rel=0.1)
    (note,) = (note for note in diagnosis.notes if "stock phrases" in note)
    assert f"{-use.foreign:.1f} nats per word likelier" in note
    assert "6.0 words where those have 3." in note
    assert not any("stock phrases" in note for note in found(back, translating).notes)


def test_rows_in_the_order_of_their_words_are_worth_as_much() -> None:
    """Neighbors in a sorted file are alike: the other row is far away."""
    x = sentences(4, 0)
    order = [*range(len(x))]
    order.sort(key=lambda i: x[i].tolist())
    mixed, ordered = (found(back, translating, each).of_sentences for each in (x, x[order]))
    assert mixed is not None
    assert ordered is not None
    assert ordered.worth.mean == pytest.approx(mixed.worth.mean, rel=0.1)
    assert ordered.told.mean == pytest.approx(mixed.told.mean, rel=0.1)


@pytest.mark.parametrize(
    ("lesson", "causes"),
    [
        ("copies", {"copied sentence"}),
        ("others", {"sentence of the prior", "constant posterior"}),
        pytest.param("translations", {"none"}, marks=pytest.mark.slow),
    ],
)
def test_trained_collapses_are_named(lesson: str, causes: set[str]) -> None:
    """One network was taught to copy, one that z has nothing to do with x, and one what is right."""
    torch.manual_seed(0)
    network = EncoderDecoder(width=16, layers=1, heads=2, dropout=0.0)
    model = LatentTranslation((LENGTH,), WORDS, network)
    guide = Translator(model)
    x, z = torch.cat([sentences(4, i) for i in range(3)]), sentences(9, 7)
    model.count_words(x, z)
    model.prior.requires_grad_(False)
    inside = ((x == PAD) | (x == END) | (x >= 4) & (x <= 8)).all(1)
    x = x[inside]
    taught = {
        "copies": x,
        "others": sentences(9, 8)[torch.randint(N, (len(x),))],
        "translations": torch.where(x > END, x + FOREIGN, x),
    }[lesson]
    objective = KnownLatents((x, taught), learn_prior=False, elbo_rows=0)
    options: dict[str, Any] = {"max_epochs": 8, "batch_size": 32, "learning_rate": 0.02, "seed": 0}
    fit(model, guide, x, objective=objective, **options)
    diagnosis = diagnose(model, guide, sentences(4, 9), seed=0)
    assert diagnosis.cause in causes, diagnosis


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
    assert diagnosis.of_sentences.copied.mean > 0.8
    assert diagnosis.cause == "none"


def test_the_numbers_are_those_of_the_tables() -> None:
    """Expectations by hand: independent words, so that each number is a mean over places."""
    diagnosis, x = found(english, copying), sentences(4, 0)
    use = diagnosis.of_sentences
    assert use is not None
    assert use.worth.mean == pytest.approx(0.0, abs=1e-5)  # the decoder does not look at z
    # -log p of what p(z) draws: its entropy per word, as each word is drawn from one table.
    probs = Written(language(9)).tables[0, 0].softmax(0)
    own = -float(torch.xlogy(probs, probs).sum())
    going = 1 - float(probs[END])
    certain = going ** (LENGTH - 1)  # sentences of the largest length have an end that is certain
    drawn = (1 - certain) / (1 - going)  # mean number of draws: until the end, at most LENGTH - 1
    words = drawn + certain
    assert -use.log_prior_of_own.mean == pytest.approx(own * drawn / words, rel=0.05)
    assert (
        0.94 < use.copied.mean < 1.0
    )  # a word is repeated with 0.98; few come behind the end of x
    shared = torch.tensor([[5, 6, 5, END, PAD, PAD]]), torch.tensor([[5, 7, END, PAD, PAD, PAD]])
    from ppl_vae.diagnosis.sentences import _shared

    assert _shared(*shared).tolist() == pytest.approx([1 / 3])
    assert _shared(shared[1], shared[0]).tolist() == pytest.approx([1 / 2])
    assert math.isnan(float(_shared(torch.tensor([[END, PAD]]), torch.tensor([[5, END]]))))
    assert diagnosis.num_rows == len(x)


def hardly_back(rows: Tensor) -> Tensor:
    """Looks at z with a weight of 0.3 percent."""
    return (0.003 * back(rows).exp() + 0.997 * language(4).exp()).log()


def hardly_copying(rows: Tensor) -> Tensor:
    """Half of the words are those of x, beyond chance, give or take what few rows say."""
    return (0.57 * word_by_word(rows, 0, 1.0).exp() + 0.43 * language(9).exp()).log()


@pytest.mark.parametrize(
    ("decode", "encode", "rows", "told"),
    [
        (hardly_back, translating, 8, "a word of 'z' is worth"),
        (copied_back, hardly_copying, 12, "whether that is a copy"),
        (english, translating, 2, "whether the guide looks at x"),
        (english, english, 400, ""),
        (back, translating, 400, ""),
        (copying, copying, 400, ""),
    ],
)
def test_a_verdict_of_few_rows_is_doubted(decode: Any, encode: Any, rows: int, told: str) -> None:
    x = sentences(4, 0)
    many = torch.cat([sentences(4, i) for i in range(4)])[:rows] if rows > len(x) else x[:rows]
    diagnosis = found(decode, encode, many)
    doubts = [each for each in diagnosis.warnings if "more rows would tell" in each]
    assert len(doubts) == bool(told), diagnosis
    assert told in "".join(doubts)


def test_a_row_that_comes_alone_does_not_count() -> None:
    """Its z has no other row: worth is that of the rows that came together, in any batches."""
    x = sentences(4, 0)
    whole = found(back, translating, [x[:50]]).of_sentences
    diagnosis = found(back, translating, [x[:50], x[50:51]])
    use = diagnosis.of_sentences
    assert whole is not None
    assert use is not None
    assert diagnosis.cause == "none"
    assert diagnosis.num_rows == 51
    assert use.worth.mean == pytest.approx(whole.worth.mean, rel=1e-5)
    assert use.worth.standard_error == pytest.approx(whole.worth.standard_error, rel=1e-5)
    assert use.worth_per_word.mean == pytest.approx(whole.worth_per_word.mean, rel=1e-5)
    alone = found(back, translating, [x[:1], x[1:2]])
    assert "Batches of one row were given" in str(alone)
    assert not bool(alone.collapsed.any())
    assert alone.causes == {}


def test_a_z_without_words_is_told_from_an_x_that_is_no_sentence() -> None:
    def silent(rows: Tensor) -> Tensor:
        return word_by_word(
            torch.full_like(rows, PAD).index_fill(1, torch.tensor([0]), END), 0, 1 - 1e-9
        )

    diagnosis = found(english, silent)
    assert "not defined: z has no words" in str(diagnosis)


def test_a_single_row_with_words_is_doubted() -> None:
    some, one = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([torch.nan, torch.nan, 0.5])
    use = UseOfSentences.of(
        **{"words": some, "worth": some, "told": some, "copied": one, "by_chance": one / 2},
        **{"log_prior": -some, "own_words": some, "log_own": -some},
    )
    assert any("a single row has words" in each for each in _doubts("z", use))
    assert math.isnan(margin(use.copied))


def test_errors_are_those_of_the_mean() -> None:
    """Of many diagnoses of 20 rows, their spread is what each says."""
    x = torch.cat([sentences(4, i) for i in range(20)])
    programs = pair(back, translating)
    uses = [
        diagnose(*programs, part, seed=seed).of_sentences
        for seed, part in enumerate(x.split(20)[:100])
    ]
    for name in ("words", "worth", "worth_per_word", "told", "copied", "log_prior", "words_of_own"):
        each = [getattr(use, name) for use in uses]
        spread = float(torch.tensor([of.mean for of in each]).std())
        said = float(torch.tensor([of.standard_error for of in each]).square().mean().sqrt())
        assert said == pytest.approx(spread, rel=0.35), name


def test_one_row_says_little() -> None:
    diagnosis = found(back, translating, sentences(4, 0)[:1])
    assert "One row was given: whether a sentence z is used" in str(diagnosis)
    assert "collapsed" not in str(diagnosis)
    assert diagnosis.causes == {}
    assert not bool(diagnosis.collapsed.any())
    assert not bool(diagnosis.active.any())
