"""Data as batches: which rows come, in which order, to which process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.pairs import Batches, Pair, as_args


def of_one(x: Tensor) -> None: ...


def of_two(x: Tensor, y: Tensor) -> None: ...


def of_any(*args: Tensor) -> None: ...


ONE, TWO, ANY = Pair(of_one, of_one), Pair(of_two, of_two), Pair(of_any, of_any)
X = torch.arange(10.0)
LABELS = torch.arange(10)


def listed(batches: Any) -> list[list[float]]:
    return [batch.tolist() for batch in batches]


def flat(batches: Iterable[list[float]]) -> list[float]:
    return sorted(itertools.chain.from_iterable(batches))


def epoch(batches: Batches, *args: Any, **kwargs: Any) -> list[list[float]]:
    found: Any = batches.shuffled(*args, **kwargs)
    return [[] if b is None else b.tolist() for b, _ in found]


def test_rows_in_order() -> None:
    batches = Batches(X, ONE)
    assert batches.in_memory
    assert batches.num_batches(4) == 3
    assert listed(batches.ordered(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.equal(batches.first(3), X[:3])  # type: ignore[arg-type]


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    batches = Batches(X, ONE)
    first = epoch(batches, 4, 7, 0)
    assert [len(b) for b in first] == [4, 4, 2]
    assert flat(first) == X.tolist()
    torch.manual_seed(123)
    assert epoch(batches, 4, 7, 0) == first
    others = [epoch(batches, 4, 7, 1), epoch(batches, 4, 8, 0), [X[:4].tolist()]]
    assert first not in others
    before = torch.get_rng_state()
    epoch(batches, 4, 7, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_an_epoch_goes_on_at_any_step(start: int) -> None:
    batches = Batches(X, ONE)
    assert epoch(batches, 4, 7, 2, start=start) == epoch(batches, 4, 7, 2)[start:]


def test_a_batch_of_all_rows_keeps_their_order() -> None:
    assert epoch(Batches(X, ONE), 10, 7, 0) == [X.tolist()]
    assert epoch(Batches(X, ONE), 99, 7, 0) == [X.tolist()]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_divide_each_global_batch(world: int) -> None:
    batches = Batches(X, ONE)
    whole = epoch(batches, 3, 7, 0)  # three batches of 3, one of a single row
    parts = [epoch(batches, 3, 7, 0, rank, world) for rank in range(world)]
    for i, global_batch in enumerate(whole):
        assert flat(p[i] for p in parts) == sorted(global_batch)
    for rank in range(world):
        sizes = [n for _, n in batches.shuffled(3, 7, 0, rank, world)]
        assert sizes == [3, 3, 3, 1]
    assert parts[1][3] == []  # nothing left for the second process


def test_a_loader_that_shuffles_is_divided_without_loss_or_repetition() -> None:
    """The generators of processes differ, but the order of the loader must not."""
    loader: Any = DataLoader(X, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    batches = Batches(loader, ONE)
    parts = []
    for rank in range(2):
        torch.manual_seed(100 + rank)
        parts.append(epoch(batches, 0, 7, 0, rank, 2))
    assert flat(parts[0] + parts[1]) == X.tolist()
    assert epoch(batches, 0, 7, 1, 0, 2) != parts[0]


def test_several_arguments() -> None:
    batches = Batches((X, LABELS), TWO)
    x, y = next(batches.ordered(4))
    assert torch.equal(x, X[:4])
    assert torch.equal(y, LABELS[:4])
    for (x, y), _ in batches.shuffled(4, 0, 0):  # type: ignore[misc]
        assert torch.equal(x, y.float())


def test_labels_are_cut_where_the_model_takes_none() -> None:
    assert torch.equal(Batches((X, LABELS), ONE).rows, X)  # type: ignore[arg-type]
    assert len(Batches((X, LABELS), ANY).rows) == 2
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=4)
    assert listed(Batches(loader, ONE).ordered(0)) == [X[:4].tolist(), X[4:8].tolist(), [8.0, 9.0]]
    assert all(len(batch) == 2 for batch in Batches(loader, TWO).ordered(0))


def test_a_list_is_an_iterable_of_batches() -> None:
    batches = Batches([X[:3], X[3:]], ONE)
    assert not batches.in_memory
    assert listed(batches.ordered(99)) == [X[:3].tolist(), X[3:].tolist()]
    assert batches.num_batches(99) == 2


class Unsized:
    """Starts again each time, and does not know how long it is."""

    def __iter__(self) -> Iterator[Tensor]:
        yield X[:5]
        yield X[5:]


def test_iterables_bring_their_own_batches() -> None:
    batches = Batches(Unsized(), ONE)
    assert batches.num_batches(3) is None
    for _ in range(2):
        assert epoch(batches, 3, 0, 0) == [X[:5].tolist(), X[5:].tolist()]
    assert epoch(batches, 3, 0, 0, start=1) == [X[5:].tolist()]
    assert epoch(batches, 3, 0, 0, 1, 2) == [[1.0, 3.0], [6.0, 8.0]]


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (iter([X]), TypeError, "read only once"),
        ((b for b in [X]), TypeError, "generator.*read only once"),
        (3.0, TypeError, "x is a float"),
        (torch.tensor(1.0), ValueError, "no rows"),
        (torch.zeros(0, 3), ValueError, r"no rows.*\(0, 3\)"),
        ((X, X[:3]), ValueError, "different numbers of rows: 10, 3"),
    ],
)
def test_wrong_data_are_named(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Batches(x, TWO)


def test_wrong_batches_are_named() -> None:
    with pytest.raises(TypeError, match="x gives batches of type str"):
        Batches({"x"}, ONE).first(1)
    with pytest.raises(TypeError, match="x is a list of str"):
        Batches(["x"], ONE)
    with pytest.raises(ValueError, match="no batches"):
        Batches([], ONE).first(1)
    with pytest.raises(ValueError, match="no rows"):
        list(Batches([X, X[:0]], ONE).ordered(1))


def _with_option(x: Tensor, annealing: float = 1.0) -> None: ...


def _with_labels(x: Tensor, y: Tensor | None = None, annealing: float = 1.0) -> None: ...


def _with_option_before_labels(x: Tensor, scale: float = 1.0, y: Tensor | None = None) -> None: ...


def _all_optional(x: Tensor | None = None) -> None: ...


@pytest.mark.parametrize(
    ("model", "taken"),
    [(_with_option, 1), (_with_labels, 2), (_with_option_before_labels, 1), (_all_optional, 1)],
)
def test_labels_are_not_given_to_options(model: Any, taken: int) -> None:
    labels = torch.arange(len(X))
    pair = Pair(model, model)
    for x in ((X, labels), [(X, labels)]):
        batch = Batches(x, pair).first(4)
        assert len(as_args(batch)) == taken
