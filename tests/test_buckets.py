"""Batches of sentences of like length: every row once, in an order that a resumed training goes on with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from trainings import same, weights

from ppl_vae import evaluate, fit
from ppl_vae.data import Buckets
from ppl_vae.guides import Exact, Recurrent
from ppl_vae.models import SubstitutionCipher
from ppl_vae.pairs import Batches, Pair
from ppl_vae.runtime import END, FIRST_WORD, PAD, lengths_of
from ppl_vae.training import checkpoints

WORDS = 9


def sentences(*lengths: int, start: int = 0) -> Tensor:
    """Rows that can be told apart, with that many numbers, and one column that none needs."""
    rows = torch.full((len(lengths), max(lengths) + 1), PAD)
    for i, length in enumerate(lengths):
        rows[i, : length - 1] = FIRST_WORD + start + i
        rows[i, length - 1] = END
    return rows


LENGTHS = [5, 2, 2, 9, 3, 2, 4, 3, 3, 7, 2, 5, 3, 2]
X = sentences(*LENGTHS)


def texts(batch: Any) -> list[tuple[int, ...]]:
    """Its sentences without what fills them up."""
    return [tuple(n for n in row if n != PAD) for row in batch.tolist()]


def epoch(batches: Buckets, seed: int | None = None) -> list[list[tuple[int, ...]]]:
    if seed is not None:
        torch.manual_seed(seed)
    return [texts(batch) for batch in batches]


ALL = sorted(texts(X))


@pytest.mark.parametrize(
    "options",
    [{}, {"tokens": 9}, {"tokens": 12}, {"batch_size": 4}, {"batch_size": 1}, {"batch_size": 99}],
)
def test_every_row_comes_once_in_an_epoch(options: dict[str, Any]) -> None:
    batches = Buckets(X, **options)
    for seed in range(20):
        found = epoch(batches, seed)
        assert len(found) == len(batches)
        assert sorted(itertools.chain.from_iterable(found)) == ALL
    for batch in batches:
        assert isinstance(batch, Tensor)
        longest = int(lengths_of(batch).max())
        assert batch.shape[1] == longest
        assert batch.numel() <= options.get("tokens", 2048)
        assert len(batch) <= options.get("batch_size", 99)


def test_lengths_are_alike() -> None:
    """Sorted, the batches follow each other: no length of one lies between those of another."""
    all_options: list[dict[str, Any]] = [{"tokens": 12}, {"batch_size": 3}]
    for options in all_options:
        ranges = sorted((min(map(len, b)), max(map(len, b))) for b in epoch(Buckets(X, **options)))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_sizes_are_those_by_hand() -> None:
    """The longest first, at most 12 numbers: 9; 7; 5 5; 4 3 3; 3 3 2 2; 2 2 2."""
    shapes = sorted(tuple(batch.shape) for batch in Buckets(X, tokens=12))
    assert shapes == [(1, 7), (1, 9), (2, 5), (3, 2), (3, 4), (4, 3)]
    assert len(Buckets(X)) == 1  # 14 rows of at most 9 numbers


def test_no_row_is_left_alone_where_two_can_share_it() -> None:
    seven = sentences(*[3] * 7)
    assert sorted(len(b) for b in Buckets(seven, batch_size=3)) == [2, 2, 3]
    assert sorted(len(b) for b in Buckets(seven, tokens=9)) == [2, 2, 3]
    assert sorted(len(b) for b in Buckets(seven, batch_size=2)) == [1, 2, 2, 2]
    assert sorted(len(b) for b in Buckets(sentences(*[3] * 4), batch_size=3)) == [2, 2]
    assert [len(b) for b in Buckets(sentences(3), batch_size=3)] == [1]


def test_epochs_differ_in_their_order_and_in_what_comes_together() -> None:
    batches = Buckets(X, batch_size=4)
    torch.manual_seed(0)
    found = [epoch(batches) for _ in range(10)]
    assert len({str(e) for e in found}) == 10
    assert len({str(sorted(map(sorted, e))) for e in found}) > 5
    torch.manual_seed(0)
    assert [epoch(batches) for _ in range(10)] == found
    assert epoch(Buckets(X, batch_size=4), 3) == epoch(batches, 3)
    assert epoch(Buckets(X, batch_size=4, seed=1), 3) != epoch(batches, 3)


def test_an_epoch_draws_one_number_whatever_the_number_of_rows() -> None:
    torch.manual_seed(0)
    epoch(Buckets(X))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    epoch(Buckets(X[:2]))
    assert torch.equal(torch.get_rng_state(), state)
    next(iter(Buckets(X, batch_size=2)))  # all of the order is drawn before the first batch
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for i, _ in enumerate(Buckets(X, batch_size=2)):
        if i == 0:
            state = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_one_length_come_together_with_equal_probability() -> None:
    """Four rows in batches of two: each of the three pairings has probability 1/3.

    The number of one of them in 600 epochs is Binomial(600, 1/3): 200 +- 5 * 11.5 fails by chance with
    probability below 3 * 6e-7.
    """
    batches = Buckets(sentences(3, 3, 3, 3), batch_size=2)
    torch.manual_seed(0)
    counts = Counter(str(sorted(map(sorted, epoch(batches)))) for _ in range(600))
    assert len(counts) == 3
    assert all(142 <= count <= 258 for count in counts.values())


# -- more tensors ------------------------------------------------------------------------------------------


def test_other_sentences_are_trimmed_and_other_tensors_are_not() -> None:
    y = sentences(*LENGTHS[::-1], start=100)
    labels = torch.arange(len(X))
    numbers = torch.nn.functional.one_hot(labels % 3, 4)  # whole numbers, but no sentences
    batches = Buckets(X, y, labels, numbers, tokens=20)
    seen: list[int] = []
    for batch in batches:
        a, b, i, hot = batch
        assert a.shape[1] == int(lengths_of(a).max())
        assert b.shape[1] == int(lengths_of(b).max())
        assert max(a.numel(), b.numel()) <= 20
        assert torch.equal(hot, numbers[i])
        assert texts(a) == texts(X[i])
        assert texts(b) == texts(y[i])
        seen += i.tolist()
    assert sorted(seen) == labels.tolist()


def test_batches_are_alike_in_the_longer_of_two_sentences() -> None:
    x, y = sentences(2, 9, 2, 9), sentences(9, 2, 2, 9)
    shapes = sorted((tuple(a.shape), tuple(b.shape)) for a, b in Buckets(x, y, tokens=18))
    assert shapes == [((2, 2), (2, 9)), ((2, 9), (2, 9))]


# -- draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 13, 14])
def test_each_row_is_drawn_with_equal_probability(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """All starts, and in the mean over them each group has its share: m n of the N draws.

    Which rows of a group are drawn is a set of k that is any with equal probability; with a permutation that
    turns, in place of `torch.randperm`, each row comes equally often over m turns.
    """
    batches = Buckets(X)
    rows = len(X)
    groups: Counter[int] = Counter()
    for start in range(rows):
        monkeypatch.setattr(torch, "randint", lambda *args, start=start: torch.tensor(start))
        drawn = batches.draw(n)
        assert drawn.shape == (n, max(lengths_of(drawn)))
        assert len(set(texts(drawn))) == n
        groups.update(map(len, texts(drawn)))
    assert groups == {length: n * count for length, count in Counter(LENGTHS).items()}
    turned, turns = Counter[tuple[int, ...]](), 5 * 4 * 2  # of groups of 5, 4, 2 and 1
    for start in range(rows):
        monkeypatch.setattr(torch, "randint", lambda *args, start=start: torch.tensor(start))
        for turn in range(turns):
            monkeypatch.setattr(torch, "randperm", lambda m, turn=turn: torch.arange(m).roll(turn))
            turned.update(texts(batches.draw(n)))
    assert turned == dict.fromkeys(texts(X), n * turns)


def test_more_rows_than_there_are() -> None:
    """All twice, and four neighbors besides."""
    drawn = Counter(texts(Buckets(X).draw(2 * len(X) + 4)))
    assert drawn.keys() == {*texts(X)}
    assert Counter(drawn.values()) == {2: len(X) - 4, 3: 4}
    assert len(Buckets(X).draw(3 * len(X))) == 3 * len(X)


def test_draws_are_of_like_length() -> None:
    """n neighbors among the sorted rows, behind the longest the shortest again."""
    ordered = sorted(LENGTHS)
    windows = {
        tuple(sorted((ordered + ordered)[start : start + 4])) for start in range(len(ordered))
    }
    batches = Buckets(X, torch.arange(len(X)))
    torch.manual_seed(0)
    found = set()
    for _ in range(300):
        rows, numbers = batches.draw(4)
        assert torch.equal(
            rows, X[numbers][:, : rows.shape[1]]
        )  # what belongs to them comes with them
        found.add(tuple(sorted(map(len, texts(rows)))))
    assert found == windows  # missed by chance with probability below 14 (13/14)^300 < 1e-8


def test_all_sets_of_rows_of_one_length_are_drawn_equally_often() -> None:
    """Two of three rows: 300 +- 5 * 14.2 of 900 for each; by chance outside with probability below 2e-6."""
    batches = Buckets(sentences(3, 3, 3))
    torch.manual_seed(0)
    counts = Counter(str(sorted(texts(batches.draw(2)))) for _ in range(900))
    assert len(counts) == 3
    assert all(229 <= count <= 371 for count in counts.values())


def test_draws_are_from_the_global_generator() -> None:
    batches = Buckets(X)
    torch.manual_seed(5)
    first, second = batches.draw(3), batches.draw(3)
    torch.manual_seed(5)
    assert torch.equal(batches.draw(3), first)
    assert torch.equal(batches.draw(3), second)


# -- trainings ---------------------------------------------------------------------------------------------


class Speaker(nn.Module):
    """z ~ N(0, I_2), and each number of a sentence ~ Categorical(softmax(W z + b))."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Linear(2, WORDS + len(X))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("sentences", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = self.words(z)[:, None].expand(*x.shape, -1)
            words = dist.Categorical(logits=logits).mask(x != PAD).to_event(1)
            pyro.sample("x", words, obs=x)


class Listener(nn.Module):
    """z ~ N(mean of the embedded numbers, S^2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = nn.Embedding(WORDS + len(X), 2)
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        here = (x != PAD)[..., None]
        mean = (self.embedding(x) * here).sum(1) / here.sum(1)
        with pyro.plate("sentences", len(x)):
            pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))


class Stop(Exception):
    pass


def stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    def transform(x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Stop
        return x

    return transform


def train(**options: Any) -> dict[str, Tensor]:
    model, guide = Speaker(), Listener()
    options = {"seed": 1, "max_epochs": 4, "learning_rate": 0.1} | options
    fit(model, guide, Buckets(X, batch_size=4), **options)
    return weights(model, guide)


@pytest.mark.parametrize("calls", [7, 10])
def test_a_stopped_training_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    whole = train(transform=stop_after(999))
    with pytest.raises(Stop):
        train(run_dir=tmp_path, transform=stop_after(calls))
    assert same(train(run_dir=tmp_path, resume=True, transform=stop_after(999)), whole)
    assert not same(train(transform=stop_after(999), seed=2), whole)


def test_a_training_goes_on_with_more_epochs(tmp_path: Path) -> None:
    train(run_dir=tmp_path, max_epochs=2)
    assert same(train(run_dir=tmp_path, resume=True), train())


def test_processes_read_the_same_batches() -> None:
    """Their generators differ; each row is taken by one of them."""
    model, guide = Speaker(), Listener()
    buckets = Buckets(X, batch_size=4)
    parts: list[tuple[int, ...]] = []
    for rank in range(2):
        torch.manual_seed(100 + rank)
        batches = Batches(buckets, Pair(model, guide), in_batches=True)
        for batch, rows in batches.shuffled(0, 7, 0, rank, 2):
            assert rows in (2, 4)
            parts += texts(batch)
    assert sorted(parts) == ALL


def test_evaluation_of_all_rows() -> None:
    """With p(x | z) = p(x) and q(z | x) = p(z), log p(x) is a sum over the numbers of a sentence."""
    model, guide = Speaker(), Listener()
    nn.init.zeros_(model.words.weight)
    nn.init.zeros_(guide.embedding.weight)
    found = evaluate(model, guide, Buckets(X, batch_size=4), num_samples=3, seed=0)
    of_words = model.words.bias.detach().log_softmax(0)
    exact = (of_words[X] * (X != PAD)).sum(1)
    values = found.log_likelihood.values
    torch.testing.assert_close(values, exact)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: Buckets(X.float()), TypeError, r"x must hold whole numbers, got torch\.float32"),
        (lambda: Buckets([[4, 1]]), TypeError, "x must be a tensor, got an object of list"),  # type: ignore[arg-type]
        (lambda: Buckets(X[0]), ValueError, r"x must have the shape \(n, T\), got \(10,\)"),
        (lambda: Buckets(X[:0]), ValueError, "at least one"),
        (lambda: Buckets(torch.zeros(2, 3).long()), ValueError, "x: row 0, .* is no sentence"),
        (lambda: Buckets(torch.tensor([[4, 1], [4, 5]])), ValueError, "x: row 1,"),
        (lambda: Buckets(torch.tensor([[4, 1, 5]])), ValueError, "x: row 0,"),
        (lambda: Buckets(torch.tensor([[0, 4, 1]])), ValueError, "x: row 0,"),
        (lambda: Buckets(torch.tensor([[4, 1, 1]])), ValueError, "x: row 0,"),
        (lambda: Buckets(torch.tensor([[0, 1, 4]])), ValueError, "x: row 0,"),
        (lambda: Buckets(torch.tensor([[4, 1, 0, 1]])), ValueError, "x: row 0,"),
        (lambda: Buckets(X, X[:3]), ValueError, "tensor 1 must have as many rows as x"),
        (lambda: Buckets(X, [1]), TypeError, "tensor 1 must be a tensor"),  # type: ignore[arg-type]
        (lambda: Buckets(X, tokens=8), ValueError, "row 3, .* has 9 numbers, .* tokens=8"),
        (lambda: Buckets(X, tokens=9, batch_size=2), ValueError, "tokens, .* or batch_size"),
        (lambda: Buckets(X, tokens=0), ValueError, "tokens must be at least 1, got 0"),
        (lambda: Buckets(X, batch_size=2.0), TypeError, "batch_size must be a whole number"),  # type: ignore[arg-type]
        (lambda: Buckets(X, seed="a"), TypeError, "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: Buckets(X).draw(0), ValueError, "n must be at least 1, got 0"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make()


def test_an_empty_sentence_is_one() -> None:
    (batch,) = Buckets(torch.tensor([[END, 0, 0], [END, 0, 0]]))
    assert batch.tolist() == [[END], [END]]


def test_draws_are_bounded_and_their_mean_is_right() -> None:
    """Over all windows, the mean over a draw is that over all rows, although few long rows fit."""
    x = sentences(*range(1, 9), 8, 8)
    batches = Buckets(x, tokens=24)
    means = []
    for start in range(len(x)):
        each = []
        for seed in range(200):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "randint", lambda *args, start=start: torch.tensor(start))
                torch.manual_seed(seed)
                drawn = batches.draw(6)
            assert drawn.numel() <= 24
            each.append(float(lengths_of(drawn).double().mean()))
        means.append(sum(each) / len(each))
    assert sum(means) / len(means) == pytest.approx(float(lengths_of(x).double().mean()), abs=0.1)
    assert len(Buckets(x, batch_size=3).draw(6)) == 6


# -- sequences that say their lengths --------------------------------------------------------------------


STEPS = torch.tensor([5, 2, 2, 7, 3, 2, 4, 3, 3, 7])
FRAMES = torch.randn(
    10, 8, 3, generator=torch.Generator().manual_seed(0)
)  # the last step is nobody's
THERE = torch.arange(8) < STEPS[:, None]


def test_sequences_with_lengths_are_trimmed_with_what_ends_where_they_do() -> None:
    """Of the others, those with nothing but zeros behind the lengths; noise there may mean something."""
    rows = torch.arange(10)
    square = torch.ones(10, 8)
    kept: dict[int, tuple[int, ...]] = {}
    for x, there, lengths, own, i, back in Buckets(
        FRAMES, THERE, STEPS, square, rows, FRAMES * THERE[..., None], lengths=STEPS, tokens=14
    ):
        longest = int(STEPS[i].max())
        assert x.shape == back.shape == (len(i), longest, 3)
        assert x.shape[0] * longest <= 14
        assert torch.equal(x, FRAMES[i, :longest])
        assert torch.equal(there, THERE[i, :longest])
        assert torch.equal(lengths, STEPS[i])
        assert torch.equal(own, square[i])
        kept |= {int(row): tuple(x.shape) for row in i}
    assert sorted(kept) == rows.tolist()
    whole = Buckets(FRAMES, lengths=STEPS, batch_size=3, trim=False)
    assert {tuple(x.shape[1:]) for x in whole} == {(8, 3)}
    assert repr(whole) != repr(
        Buckets(FRAMES, lengths=STEPS.clamp(max=6), batch_size=3, trim=False)
    )


class Walk(nn.Module):
    """Frames around a level: z ~ N(0, I_3), each frame ~ N(z, I_3), as many as the row has."""

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            there = torch.arange(x.shape[1]) < lengths[:, None]
            frames = dist.Normal(z[:, None].expand(x.shape), 1.0).mask(there[..., None])
            pyro.sample("x", frames.to_event(2), obs=x)


class Level(nn.Module):
    """q(z | x) = N(a times the sum of the frames, S^2 / (1 + length))."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.a = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        there = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        precision = 1.0 + lengths[:, None]
        mean = self.a * (x * there).sum(1) / precision
        scale = (self.log_scale.exp() / precision.sqrt()).expand(len(x), 3)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))


def test_a_pair_of_a_stranger_with_lengths() -> None:
    """The posterior is N(sum / (1 + n), 1 / (1 + n)): the guide finds a = S = 1, and log p(x) is known."""
    model, guide = Walk(), Level()
    rows = Buckets(FRAMES, STEPS, lengths=STEPS, batch_size=3)
    fit(model, guide, rows, max_epochs=300, learning_rate=0.01, seed=0)
    assert guide.a.item() == pytest.approx(1, abs=0.1)
    assert guide.log_scale.item() == pytest.approx(0, abs=0.1)
    with torch.no_grad():
        guide.a.fill_(1)
        guide.log_scale.fill_(0)
    found = evaluate(model, guide, rows, num_samples=2, seed=0)
    exact = []
    for x, n in zip(FRAMES, STEPS.tolist(), strict=True):
        normal = dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + torch.ones(n, n))
        exact.append(normal.log_prob(x[:n].T).sum())
    torch.testing.assert_close(found.log_likelihood.values, torch.stack(exact))


def test_ciphers_of_unlike_lengths_are_trained_in_batches() -> None:
    plain = torch.randint(3, (10, 8), generator=torch.Generator().manual_seed(1))
    model = SubstitutionCipher((8,), *SubstitutionCipher.bigrams_of(plain, letters=3))
    guide = Recurrent((8,), 3, hidden=4, symbols=3, whole=True)
    rows = Buckets(plain * THERE, STEPS, lengths=STEPS, batch_size=3)
    before = evaluate(model, Exact(model), rows, num_samples=1, seed=0).log_likelihood.mean
    fit(model, guide, rows, max_epochs=3, learning_rate=0.05, seed=0)
    found = evaluate(model, Exact(model), rows, num_samples=1, seed=0)
    alone = [
        evaluate(model, Exact(model), row[None, :n], num_samples=1, seed=0).log_likelihood.values
        for row, n in zip(plain, STEPS.tolist(), strict=True)
    ]
    torch.testing.assert_close(found.log_likelihood.values, torch.cat(alone))
    assert found.log_likelihood.mean > before


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.uint16, torch.int32])
def test_lengths_of_small_types(kind: torch.dtype) -> None:
    lengths = torch.tensor([127, 5])
    shapes = [
        tuple(x.shape) for x in Buckets(torch.zeros(2, 300), lengths=lengths.to(kind), tokens=300)
    ]
    assert shapes == [(2, 127)]


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (
            lambda: Buckets(FRAMES, lengths=STEPS, tokens=6),
            ValueError,
            "row 3, .* has 7 steps, .* long rows",
        ),
        (lambda: Buckets(FRAMES), TypeError, "For other sequences, give lengths="),
        (lambda: Buckets(FRAMES, lengths=[5]), TypeError, "lengths must be a tensor"),  # type: ignore[arg-type]
        (lambda: Buckets(FRAMES, lengths=STEPS.float()), TypeError, "lengths must hold whole"),
        (lambda: Buckets(STEPS, lengths=STEPS), ValueError, r"x must have the shape \(n, T, \*\)"),
        (
            lambda: Buckets(FRAMES, lengths=STEPS[:3]),
            ValueError,
            r"lengths must .* \(10,\).* \(3,\)",
        ),
        (lambda: Buckets(FRAMES, lengths=STEPS * 2), ValueError, "from 1 to the 8 .* row 0, .* 10"),
        (lambda: Buckets(FRAMES, lengths=STEPS - 2), ValueError, "from 1 to .* row 1, .* has 0"),
        (lambda: Buckets(FRAMES[:0], lengths=STEPS[:0]), ValueError, "at least one row, got"),
        (lambda: Buckets(torch.tensor(1)), ValueError, "x must have rows, got a single number"),
    ],
)
def test_what_is_refused_of_lengths(
    make: Callable[[], Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        make()
