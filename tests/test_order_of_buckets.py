"""Where rows are read one by one, those of `Buckets` come in the order in which they were given."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from test_buckets import Listener, Speaker, X, sentences
from test_sentences import LENGTH, WORDS, every_sentence
from torch import Tensor, nn

from ppl_vae import check, diagnose, evaluate, fit
from ppl_vae.data import Buckets
from ppl_vae.guides import NoLatent
from ppl_vae.models import LanguageModel
from ppl_vae.networks import EncoderDecoder
from ppl_vae.pairs import Batches, Pair
from ppl_vae.runtime import PAD
from ppl_vae.tasks import encode, outliers

EVERY = every_sentence()
ROWS = EVERY[torch.randperm(len(EVERY), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel((LENGTH,), WORDS, EncoderDecoder(width=8, layers=1, heads=2)).double()
    with torch.no_grad():
        made.network.bias.copy_(torch.randn(1, WORDS))
    return made.eval()


@pytest.mark.parametrize(
    "options", [{}, {"tokens": 12}, {"batch_size": 5}, {"trim": False}], ids=str
)
@pytest.mark.parametrize("seed", [0, 1, None])
def test_of_evaluate(model: LanguageModel, options: dict[str, Any], seed: int | None) -> None:
    found = evaluate(model, NoLatent(), Buckets(ROWS, **options), num_samples=1, seed=seed)
    exact = model.log_evidence(ROWS).detach()
    assert len(exact.unique()) == len(exact) == 40
    torch.testing.assert_close(found.log_likelihood.values.double(), exact)


def test_results_are_those_of_the_tensor() -> None:
    """It is read as the tensor is, also draw by draw."""
    pair, batches = (Speaker(), Listener()), Buckets(X, batch_size=4)
    found, expected = (evaluate(*pair, rows, num_samples=3, seed=0) for rows in (batches, X))
    for name, values in expected.rows().items():
        torch.testing.assert_close(found.rows()[name], values, rtol=0, atol=0, equal_nan=True)
    codes, expected_codes = (encode(*pair, rows) for rows in (batches, X))
    assert torch.equal(codes["z"], expected_codes["z"])
    for ask in (partial(diagnose, seed=0), partial(outliers, num_samples=3, seed=0)):
        assert str(ask(*pair, batches)) == str(ask(*pair, X))


def test_other_tensors_keep_their_rows() -> None:
    def model(x: Tensor, numbers: Tensor) -> None: ...

    numbers = torch.arange(len(X))
    rows = Batches(Buckets(X, numbers, tokens=12), Pair(model, model)).rows
    assert torch.equal(rows[0], X)
    assert torch.equal(rows[1], numbers)


def test_a_training_keeps_the_buckets() -> None:
    """Its batches are of like length, as wide as the longest, and no more numbers than allowed."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    batches = Buckets(X, tokens=12)
    model, guide = Speaker(), Listener()
    fit(model, guide, batches, max_epochs=2, seed=0, transform=keep, validation=Buckets(X))
    shapes = sorted(tuple(batch.shape) for batch in seen[-len(batches) :])
    assert shapes == [(1, 7), (1, 9), (2, 5), (3, 2), (3, 4), (4, 3)]
    assert check(model, guide, batches)


def test_what_held_out_rows_are_worth_does_not_depend_on_their_order() -> None:
    """The means over rows of a pair whose ELBO has no noise."""
    model, guide = Speaker(), Listener()
    nn.init.zeros_(model.words.weight)
    nn.init.zeros_(guide.embedding.weight)
    held_out = sentences(2, 7, 2, 4, 2)
    still = partial(torch.optim.SGD, lr=0.0)
    given = Buckets(held_out, batch_size=2)
    found = fit(model, guide, X, validation=given, optimizer=still, max_epochs=1, seed=0)
    of_words = model.words.bias.detach().log_softmax(0)
    exact = (of_words[held_out] * (held_out != PAD)).sum(1).mean()
    assert found.history[0]["validation_distortion"] == pytest.approx(-float(exact))
