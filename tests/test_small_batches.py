"""Batches that are smaller than the first one: a single row on which batch norm cannot train, for example."""

from __future__ import annotations

from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from trainings import Model

from ppl_vae import check, evaluate, fit
from ppl_vae.em import GradientSteps, fit_em
from ppl_vae.pairs import Batches, Pair, PairError

X = torch.randn(65, 3, generator=torch.Generator().manual_seed(2))
QUICK: dict[str, Any] = {"seed": 0, "progress": False}


class Normed(nn.Module):
    """A guide with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def loader(x: Tensor, size: int = 32, **options: Any) -> Any:
    return DataLoader(TensorDataset(x), batch_size=size, **options)


def by_sampler(sampler: Any) -> Any:
    return DataLoader(TensorDataset(X), batch_sampler=sampler)


class Halves(BatchSampler):
    """It makes batches of its own, whatever its attributes say."""

    def __iter__(self) -> Any:
        yield from (list(range(33)), list(range(33, 65)))


class Stream:
    """Its length and the sizes of its batches are not known beforehand."""

    def __iter__(self) -> Any:
        yield from X.split(32)


@pytest.mark.parametrize(
    ("x", "first"),
    [
        (loader(X), "runs on the first 32 rows but not"),
        (by_sampler(BatchSampler(range(65), 32, False)), "runs on the first 32 rows but not"),
        (list(X.split(32)), "runs on the first 32 rows but not"),
        (Stream(), "runs on the first 32 rows but not"),
        ([X[:1], X[1:]], "does not run"),
        (X[:1], "does not run"),
    ],
    ids=["loader", "batch-sampler", "list", "iterable", "first-of-list", "tensor"],
)
def test_a_batch_of_one_row_is_told_before_anything_moves(x: Any, first: str) -> None:
    guide = Normed()
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    words = (
        f"the pair {first} on the 1 row that the last batch .* in training .*Choose a batch_size"
    )
    with pytest.raises(PairError, match=words):
        fit_em(Model(), x, guide=guide, max_iterations=1, **QUICK)
    if not isinstance(x, Stream):
        with pytest.raises(PairError, match=words):
            fit(Model(), guide, x, max_epochs=1, batch_size=32, **QUICK)
    after = guide.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    evaluate(Model(), guide, x, num_samples=2, **QUICK)


def test_an_iterables_small_batch_is_named() -> None:
    """How many rows the batches of an iterable have is known only when they come."""
    words = (
        r"batch 2 of epoch 1 \(counted from 0\) has 1 row, .* in training \(Expected more than 1 value .*"
        "it runs on 32 rows. Choose another batch_size, or leave out"
    )
    with pytest.raises(PairError, match=words):
        fit(Model(), Normed(), Stream(), max_epochs=1, **QUICK)


def test_em_joins_a_single_last_row_in_memory() -> None:
    fitted = fit_em(Model(), X, guide=Normed(), max_iterations=1, batch_size=32, **QUICK)
    assert fitted.iterations == 1


def test_em_runs_where_the_last_row_is_dropped() -> None:
    data = loader(X, drop_last=True)
    assert fit_em(Model(), data, guide=Normed(), max_iterations=1, **QUICK).iterations == 1


def test_the_check_of_em_leaves_no_trace() -> None:
    """The statistics of batch norm count the steps alone, although the last batch of 2 rows was tried."""
    guide = Normed()
    data = loader(X[:34])
    fit_em(Model(), data, guide=guide, max_iterations=1, m_step=GradientSteps(steps=1), **QUICK)
    # Two batches; gradient and bound at the start and after the M step, the M step.
    runs = 2 * (2 + 2 + 1)
    assert int(guide.encoder[1].num_batches_tracked) == runs  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, 16, 32, 64, 128])
def test_the_check_names_the_rows_that_it_ran_on(size: int) -> None:
    """The check takes the first rows of a batch, 64 at most: also where all rows are fewer."""
    rows = 2 * size + 1
    report = check(Model(), Normed(), torch.randn(rows, 3), batch_size=size)
    ran_on = min(64, size)
    assert f"the pair runs on the first {ran_on} rows but not on the 1 row" in str(report)


@pytest.mark.parametrize(
    ("x", "size", "rows"),
    [
        (X, 32, 1),
        (X, 13, 13),
        (X, 100, 65),
        (X, 1, 1),
        (loader(X), 7, 1),
        (loader(X, 100), 7, 65),
        (loader(X, drop_last=True), 7, 32),
        (by_sampler(BatchSampler(range(65), 32, drop_last=False)), 7, 1),
        (by_sampler(BatchSampler(range(65), 32, drop_last=True)), 7, 32),
        (by_sampler([[0, 1, 2], [3, 4]]), 7, 2),
        (by_sampler(Halves(range(65), 32, drop_last=False)), 7, None),
        ([X[:3], X[3:5], X[5:]], 7, 2),
        (Stream(), 7, None),
    ],
)
def test_the_smallest_batch(x: Any, size: int, rows: int | None) -> None:
    pair = Pair(Model(), Normed())
    assert Batches(x, pair).smallest_batch(size) == rows


of_numbers = programs.normal


def test_em_gives_a_guide_of_each_row_all_rows() -> None:
    """Its posterior means are x / 2."""
    x = torch.randn(100)
    guide = AutoNormal(of_numbers)
    steps = GradientSteps(steps=20, learning_rate=0.05)
    fit_em(of_numbers, x, guide=guide, m_step=steps, max_iterations=20, tolerance=0.0, **QUICK)
    assert float((guide.locs.z.detach() - x / 2).abs().mean()) < 0.15
    for data, size in ((x, 30), (list(x.split(50)), None)):
        with pytest.raises(PairError, match="keeps parameters for each row"):
            fit_em(of_numbers, data, guide=AutoNormal(of_numbers), batch_size=size, **QUICK)
