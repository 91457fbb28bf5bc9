"""Bits per dimension of sentences are bits per token: what fills up a row does not count."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_latent_translation import made
from test_sentences import LENGTH, WORDS, every_sentence
from torch import Tensor, nn

from ppl_vae import annealed_importance_sampling, evaluate, load_run, save_run
from ppl_vae.evaluation import Annealed, Evaluation
from ppl_vae.guides import NoLatent
from ppl_vae.models import LanguageModel
from ppl_vae.networks import EncoderDecoder
from ppl_vae.reporting import html_report
from ppl_vae.runs import Comparison
from ppl_vae.runtime import PAD, lengths_of

NETWORK = EncoderDecoder(width=8, layers=1, heads=2)
SHARES = torch.tensor([0.0, 0.4, 0.1, 0.0, 0.3, 0.2], dtype=torch.float64)
X = every_sentence()[:13]  # of at most two words
BITS = -SHARES[X].log2().where(X != PAD, 0.0).sum(1)


def unigrams(length: int) -> LanguageModel:
    """Each word has its share, whatever was before it; log p does not depend on the largest length."""
    model = LanguageModel((length,), WORDS, NETWORK).double().eval()
    with torch.no_grad():
        for part in (model.network.decoded.weight, model.network.decoded.bias):
            part.zero_()
        model.network.bias[0] = SHARES.clamp(min=1e-300).log()
    return model


def widened(x: Tensor, length: int) -> Tensor:
    return nn.functional.pad(x, (0, length - x.shape[1]), value=PAD)


@pytest.mark.parametrize("length", [LENGTH, 9])
def test_of_a_language_model(length: int) -> None:
    """-log2 p / tokens, whatever the largest length and the width of the rows."""
    model, lengths = unigrams(length), lengths_of(X)
    for rows in (X, widened(X, length), [X[:1, :1], X[1:4, :2], X[4:, :3]]):
        found = evaluate(model, NoLatent(), rows, num_samples=1)
        assert isinstance(found.num_values, Tensor)
        assert found.num_values.tolist() == lengths.tolist()
        torch.testing.assert_close(found.bits_per_dim.values.double(), BITS / lengths)
        bits = float(BITS.sum() / lengths.sum())
        assert found.bits_per_dim.mean == pytest.approx(bits)
        assert dict(found.lines())["bits per token"] == f"{bits:.4f}"
        assert str(found.bits_per_dim).endswith("bits per token")
        assert "dimension" not in str(found)
        assert found.to_dict()["counted"] == "token"


def test_of_sentences_of_one_length() -> None:
    found = evaluate(unigrams(7), NoLatent(), X[4:], num_samples=1)
    assert found.num_values == 3
    assert found.bits_per_dim.mean == pytest.approx(float(BITS[4:].mean() / 3))


def test_of_a_latent_translation() -> None:
    """Those of the data alone: the latent is a sentence, too."""
    found = evaluate(*made(), X, num_samples=20, seed=0)
    assert isinstance(found.num_values, Tensor)
    assert found.num_values.tolist() == lengths_of(X).tolist()
    bits = -found.log_likelihood.values.double().sum() / math.log(2) / lengths_of(X).sum()
    assert found.bits_per_dim.mean == pytest.approx(float(bits))
    assert "bits per token" in dict(found.lines())


def of_a_latent(x: Tensor) -> None:
    """A latent that the sentences do not depend on."""
    with pyro.plate("sentences", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x)).double(), 1.0))
        pyro.sample("x", unigrams(LENGTH).density(), obs=x)


def test_of_annealing() -> None:
    found = annealed_importance_sampling(of_a_latent, None, X, num_steps=2, num_chains=2, seed=0)
    assert isinstance(found, Annealed)
    assert dict(found.lines())["bits per token"] == f"{float(BITS.sum() / lengths_of(X).sum()):.4f}"


def test_rows_that_a_mask_leaves_out_do_not_count() -> None:
    def model(x: Tensor) -> None:
        seen: Any = torch.arange(len(x)) % 2 == 0
        with pyro.plate("sentences", len(x)):
            fn: Any = unigrams(LENGTH).density().expand([len(x)])
            pyro.sample("x", fn.mask(seen), obs=x)

    found = evaluate(model, NoLatent(), X, num_samples=1)
    assert isinstance(found.num_values, Tensor)
    assert found.num_values.tolist() == [
        n * (1 - i % 2) for i, n in enumerate(lengths_of(X).tolist())
    ]


def test_sentences_beside_other_numbers_are_counted_as_dimensions() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("sentences", len(x)):
            pyro.sample("x", unigrams(LENGTH).density(), obs=x)
            pyro.sample("y", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1), obs=y)

    found = evaluate(model, lambda x, y: None, (X, torch.zeros(len(X), 2)), num_samples=1)
    assert isinstance(found.num_values, Tensor)
    assert found.num_values.tolist() == (lengths_of(X) + 2).tolist()
    assert "bits per dimension" in dict(found.lines())


def test_a_guide_that_is_certain() -> None:
    found = evaluate(unigrams(LENGTH), NoLatent(), X, num_samples=1)
    nan = replace(found.log_likelihood, values=torch.full((len(X),), math.nan).double())
    told = replace(found, log_likelihood=nan, certain=True)
    assert isinstance(told, Evaluation)
    bits = float(BITS.sum() / lengths_of(X).sum())
    assert dict(told.lines())["bits per token"] == f"at most {bits:.4f}, by the ELBO"


def test_of_runs(tmp_path: Path) -> None:
    """A report and a table of runs name them so, too."""
    runs = []
    for name, length in (("a", LENGTH), ("b", 9)):
        model = unigrams(length).float()
        found = evaluate(model, NoLatent(), X, num_samples=1)
        save_run(tmp_path / name, model, NoLatent(), evaluation=found, rows=X)
        runs.append(load_run(tmp_path / name))
    bits = f"{float(BITS.sum() / lengths_of(X).sum()):.4f}"
    head, *rows = Comparison.of(runs).table()
    for row in rows:
        assert dict(zip(head, row, strict=True))["bits/token"] == bits
    page = html_report(tmp_path / "a")
    assert "bits per token" in page
    assert "bits per dimension" not in page
