"""The rows of a training: what kinds come alike, and what is said of those that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainings import HELD_OUT, Model, X, same, seeded, train

from ppl_vae.pairs import PairError


class OneBatchAtATime:
    def __iter__(self) -> Iterator[Tensor]:
        yield from X.split(16)


@pytest.mark.parametrize(
    "x",
    [
        DataLoader(X, batch_size=16),  # type: ignore[arg-type]
        DataLoader(TensorDataset(X, torch.arange(50)), batch_size=16),
        list(X.split(16)),
        OneBatchAtATime(),
    ],
    ids=["loader", "labeled-loader", "list", "iterable"],
)
def test_all_kinds_of_iterables_train_alike(x: Any) -> None:
    fitted, found = train(x, transform=seeded)
    _, expected = train(list(X.split(16)), transform=seeded)
    assert fitted.steps == 12
    assert same(found, expected)


def test_labels_are_left_out() -> None:
    _, expected = train(X)
    _, found = train((X, torch.arange(50)))
    assert same(found, expected)


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(TypeError, match=r"generator.*only once"):
        train(batch for batch in X.split(16))
    with pytest.raises(TypeError, match="only once"):
        train(X, validation=iter([HELD_OUT]))

    class Exhausted:
        def __init__(self) -> None:
            self.batches = iter([*X.split(16), *X.split(16)])

        def __iter__(self) -> Iterator[Tensor]:
            return self.batches

    with pytest.raises(ValueError, match=r"no batches in epoch \d.*read only once"):
        train(Exhausted())


def test_a_last_batch_of_one_row() -> None:
    fitted, _ = train(X[:33], validation=HELD_OUT[:1])
    assert fitted.steps == 9


def test_a_transform_is_applied_to_training_batches_alone() -> None:
    seen: list[float] = []

    def add(x: Tensor) -> Tensor:
        seen.append(float(x.max()))
        return x + 100.0

    fitted, _ = train(transform=add, validation=HELD_OUT, capture=False)
    assert max(seen) == float(X.max())  # never twice
    assert fitted.history[0]["distortion"] > 1000
    assert fitted.history[0]["validation_distortion"] < 1000


def test_rows_are_checked_as_the_transform_makes_them() -> None:
    class Binary(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    gray = X.sigmoid()
    with pytest.raises(PairError, match=r"'x'.*outside of the support of Bernoulli"):
        train(gray, model=Binary())
    fitted, _ = train(gray, model=Binary(), transform=torch.bernoulli)
    assert fitted.epochs == 3
    with pytest.raises(PairError, match=r"'x'.*outside of the support"):
        train(gray.bernoulli(), model=Binary(), transform=lambda x: x / 2)


class Binary(Model):
    """Its data are observed as they come, or computed from what comes."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            seen = x + 0.0 if self.computed else x
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=seen)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize(
    ("bad", "words"), [(7.0, "outside of the support of Bernoulli"), (math.nan, "NaN in 1 of")]
)
def test_every_row_is_looked_at_before_the_training(computed: bool, bad: float, words: str) -> None:
    x = torch.zeros(1100, 3)
    assert train(x, model=Binary(computed), max_epochs=1)[0].epochs == 1
    x[1030, 1] = bad
    with pytest.raises(PairError, match=rf"^row 1030 of x \(counted from 0\).*'x'.*{words}"):
        train(x, model=Binary(computed))


@pytest.mark.parametrize("computed", [False, True])
def test_batches_are_looked_at_as_they_come(computed: bool) -> None:
    batches = [torch.zeros(4, 3), torch.ones(5, 3), torch.zeros(6, 3)]
    seeds = [train(b, model=Binary(computed))[1] for b in (batches, list(batches))]
    assert same(*seeds)
    batches[2][5, 0] = 7.0
    words = r"^batch 2 of x, row 5 in it \(counted from 0\).*outside of the support of Bernoulli"
    with pytest.raises(PairError, match=words):
        train(batches, model=Binary(computed))


def test_what_a_mask_hides_is_not_looked_at() -> None:
    class Masked(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                likelihood = dist.Bernoulli(logits=self.decoder(z)).mask(x != 9.0).to_event(1)
                pyro.sample("x", likelihood, obs=x)

    x = torch.zeros(50, 3)
    x[40:, 1] = 9.0
    assert train(x, model=Masked(), max_epochs=1)[0].epochs == 1


def test_counts_are_looked_at_against_their_total() -> None:
    class Counts(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Binomial(16, logits=self.decoder(z)).to_event(1), obs=x)

    x = torch.full((50, 3), 16.0)
    assert train(x, model=Counts(), max_epochs=1)[0].epochs == 1
    x[49, 2] = 17.0
    with pytest.raises(PairError, match=r"^row 49 of x.*integers from 0 to 16"):
        train(x, model=Counts())


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(
    ("transform", "error", "words"),
    [
        (lambda x: x.numpy(), TypeError, r"transform returned a numpy\.ndarray: .*\(16, 3\)"),
        (lambda x: (x, x), TypeError, "transform returned a tuple: .*must return a tensor"),
        (lambda x: None, TypeError, "transform returned a NoneType"),
        (lambda x: x[1:], ValueError, r"of shape \(15, 3\): .*\(16, 3\), and must return as many"),
        (lambda x: x.repeat(2, 1), ValueError, r"of shape \(32, 3\)"),
        (lambda x: x.mean(), ValueError, r"of shape \(\)"),
        ("binarize", TypeError, "transform must be a function of a tensor, got the string"),
    ],
)
def test_what_a_transform_must_return(
    transform: Any, error: type[Exception], words: str, labels: bool
) -> None:
    with pytest.raises(error, match=words):
        train((X, torch.arange(50)) if labels else X, transform=transform)
