"""What results warn of does not depend on which kind of rows comes first, nor on the function that is asked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    diagnose,
    evaluate,
    fit,
    inference_gaps,
    to_arviz,
)
from ppl_vae.checks import PairWarning

SAMPLES: dict[str, Any] = {"num_samples": 500, "seed": 0}


class Half(nn.Module):
    """x ~ N(|z|, 1) with z ~ N(b, 1) and b = 0; in rows marked as narrow, the guide draws positive z only."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, narrow: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.b, 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)

    def guide(self, x: Tensor, narrow: Tensor) -> None:
        with pyro.plate("data", len(x)):
            half = dist.HalfNormal(torch.ones(len(x)))
            pyro.sample("z", half if bool(narrow.all()) else dist.Normal(torch.zeros(len(x)), 1.0))


X = torch.ones(3)
WHOLE, HALF = (X, torch.zeros(3)), (X, torch.full((3,), 2.0))
NARROW = "the guide draws numbers from 0 only, and the model has all real numbers"


def log_p_of_half() -> float:
    """log p(1) of `Half`, by quadrature."""
    z = torch.linspace(-9, 9, 4001).double()
    log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.abs(), 1.0).log_prob(
        torch.tensor(1.0)
    )
    return float(log_joint.logsumexp(0)) + math.log(18 / 4000)


ORDERS = {"whole first": [WHOLE, HALF], "narrow first": [HALF, WHOLE]}


@pytest.mark.parametrize("order", ORDERS)
def test_a_narrow_guide_in_any_kind_of_rows(order: str) -> None:
    """Half of the density is missing where the guide is narrow, and the caution says so in both orders."""
    pair = Half()
    found = evaluate(pair, pair.guide, ORDERS[order], num_samples=2000, seed=0)
    off = log_p_of_half() - found.log_likelihood.values
    missing = 0.5 * math.log(2) * torch.cat([narrow for _, narrow in ORDERS[order]])
    torch.testing.assert_close(off, missing, atol=0.05, rtol=0)
    (caution,) = found.cautions
    assert NARROW in caution


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "annealed": lambda *pair: annealed_importance_sampling(*pair, num_chains=2, num_steps=3),
    "sandwich": lambda *pair: bidirectional_monte_carlo(*pair, num_chains=2, num_steps=3),
    "gaps": lambda *pair: inference_gaps(*pair, num_samples=10, max_steps=2),
    "diagnose": diagnose,
}


LONG = ("sandwich", "annealed")  # ten seconds each
EACH = [
    pytest.param(
        function,
        order,
        marks=pytest.mark.slow if function in LONG and order == "narrow first" else (),
    )
    for function in FUNCTIONS
    for order in ORDERS
]


@pytest.mark.slow(only=("annealed-whole first", "sandwich-whole first"))
@pytest.mark.parametrize(("function", "order"), EACH)
def test_every_result_says_what_evaluate_says(function: str, order: str) -> None:
    pair = Half()
    found = FUNCTIONS[function](pair, pair.guide, ORDERS[order])
    assert [NARROW in text for text in found.cautions] == [True]
    assert not FUNCTIONS[function](pair, pair.guide, [WHOLE, WHOLE]).cautions


@pytest.mark.slow
def test_chains_from_a_narrow_guide_miss_as_much() -> None:
    """Chains that start at z > 0 stay there, with all of them effective: only the caution shows it."""
    pair = Half()
    found = annealed_importance_sampling(
        pair, pair.guide, HALF, num_chains=64, num_steps=20, seed=0
    )
    off = log_p_of_half() - found.log_likelihood.values.float()
    torch.testing.assert_close(off, torch.full((3,), math.log(2)), atol=0.1, rtol=0)
    assert NARROW in found.warnings[0]
    from_prior = annealed_importance_sampling(pair, None, HALF, num_chains=2, num_steps=3)
    assert not from_prior.cautions


def test_arviz_data_keep_the_warnings() -> None:
    pair = Half()
    data = to_arviz(pair, pair.guide, [WHOLE, HALF], num_draws=2, num_samples=20)
    assert NARROW in data.attrs["warnings"]


@pytest.mark.parametrize("order", ORDERS)
def test_a_training_warns_of_later_kinds(order: str) -> None:
    pair = Half()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        fitted = fit(pair, pair.guide, ORDERS[order], max_epochs=2, learning_rate=1e-9, seed=0)
    texts = [str(w.message) for w in shown if issubclass(w.category, PairWarning)]
    assert [NARROW in text for text in texts] == [True]
    assert fitted.warnings == (() if order == "narrow first" else tuple(texts))


# -- sizes of plates -------------------------------------------------------------------------------------


def pixels(x: Tensor) -> None:
    """z ~ N(0, 1), and pixels of N(z, 1), of which a run sees at most five."""
    n, size = x.shape
    with pyro.plate("data", n, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("pixels", size, subsample_size=min(5, size), dim=-1) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])


def pixels_guide(x: Tensor) -> None:
    """p(z | x)."""
    n, size = x.shape
    with pyro.plate("data", n, dim=-2):
        mean = x.sum(1, keepdim=True) / (size + 1)
        pyro.sample("z", dist.Normal(mean, (size + 1) ** -0.5))


@pytest.mark.parametrize("sizes", [(5, 20), pytest.param((20, 5), marks=pytest.mark.slow)])
def test_a_plate_that_is_subsampled_in_some_rows(sizes: tuple[int, ...]) -> None:
    """All batches have the same sites and plates: only sizes differ."""
    torch.manual_seed(0)
    batches = [torch.randn(2, size) for size in sizes]
    found = evaluate(pixels, pixels_guide, batches, **SAMPLES)
    covariance = torch.eye(5) + 1
    small = sizes.index(5)
    exact = dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(batches[small])
    values = found.log_likelihood.values.reshape(2, 2)[small]
    torch.testing.assert_close(values, exact, atol=1e-4, rtol=0)
    (caution,) = found.cautions
    assert "plate 'pixels' inside of a row is subsampled (5 of 20): log p(x) is biased" in caution
    gaps = inference_gaps(pixels, pixels_guide, batches, num_samples=10, max_steps=2)
    assert [("subsampled (5 of 20)" in text) for text in gaps.cautions] == [True]


def test_texts_that_differ_in_numbers_alone_are_said_once() -> None:
    batches = [torch.randn(2, size) for size in (20, 21, 22)]
    assert len(evaluate(pixels, pixels_guide, batches, num_samples=2, seed=0).cautions) == 1


# -- discrete latents ------------------------------------------------------------------------------------


def counted(x: Tensor) -> None:
    """x ~ N(z, 1); in rows of two numbers, x ~ N(z + 10 c, 1) with c ~ Poisson(3)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if x.shape[1] == 2:
            z = z + 10 * pyro.sample("c", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def counted_guide(x: Tensor) -> None:
    """It hardly ever draws another c than 0."""
    with pyro.plate("data", len(x)):
        if x.shape[1] == 2:
            pyro.sample("c", dist.Poisson(torch.full((len(x),), 1e-3)))
        pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.8))


@pytest.mark.parametrize("plain_first", [True, False])
def test_rows_with_drawn_discrete_latents_are_unreliable(plain_first: bool) -> None:
    """At x = 10, nearly all of p(x) is that of c = 1, and k-hat of the samples with c = 0 is fine."""
    plain, discrete = torch.zeros(2, 1), torch.full((2, 2), 10.0)
    batches = [plain, discrete] if plain_first else [discrete, plain]
    found = evaluate(counted, counted_guide, batches, **SAMPLES)
    c = torch.arange(60.0)
    log_joint = dist.Poisson(3.0).log_prob(c) + dist.Normal(10 * c, 2**0.5).log_prob(
        torch.tensor(10.0)
    )
    is_plain = torch.tensor([plain_first] * 2 + [not plain_first] * 2)
    values = found.log_likelihood.values
    exact = dist.Normal(0.0, 2**0.5).log_prob(plain[:, 0])
    torch.testing.assert_close(values[is_plain], exact, atol=0.1, rtol=0)
    assert bool((values[~is_plain] < log_joint.logsumexp(0) - 1).all())
    assert found.unreliable.tolist() == (~is_plain).tolist()
    (caution,) = found.cautions
    assert "latents 'c' are discrete and are drawn" in caution
    assert "2 of 4 rows count as unreliable" in caution
    assert found.rows()["drawn"].tolist() == (~is_plain).tolist()
    largest = dict(found.lines())["Pareto k-hat, largest"]
    assert ("(0.0 % above" in largest) == bool((found.khat <= found.khat_limit).all())


def test_a_good_khat_is_no_verdict_on_drawn_bits() -> None:
    """Six bits are too many to sum with a normal latent; the guide never draws the one that explains x."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(torch.full((12,), 0.5)).to_event(1))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(10 * bits[..., 0] + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            probs = torch.full((len(x), 12), 0.5)
            probs[:, 0] = 1e-6
            pyro.sample("bits", dist.Bernoulli(probs).to_event(1))
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x = torch.tensor([10.0, 9.0, 11.0])
    found = evaluate(model, guide, x, **SAMPLES)
    exact = math.log(0.5) + dist.Normal(10.0, 2**0.5).log_prob(x)
    assert bool((found.log_likelihood.values < exact - 10).all())
    assert bool((found.khat < found.khat_limit).all())  # which sees nothing of it
    assert found.unreliable.all()
    assert any("3 of 3 rows count as unreliable" in text for text in found.warnings)


# -- what only later batches have ------------------------------------------------------------------------


class Labels(nn.Module):
    """x ~ N(z, 1); rows with a label have a weight on it, or the guide a term of its own for it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.shift, self.kind = nn.Parameter(torch.tensor(0.0)), kind

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0), obs=x)
            if y is not None:
                weight: Any = 10.0 if self.kind == "scale" else 1.0
                with poutine.scale(scale=weight):
                    pyro.sample("y", dist.Bernoulli(logits=z), obs=y)
        if self.kind == "penalty" and y is not None:
            pyro.factor("penalty", -3.0 - self.shift.square())

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))
            if self.kind == "factor" and y is not None:
                pyro.factor("term", 5.0 * y, has_rsample=False)


NOTES = {
    "scale": "weighted by poutine.scale ('y')",
    "factor": "what the guide observes or adds as a factor ('term')",
    "penalty": "outside of the rows ('penalty')",
}


@pytest.mark.parametrize("labels_first", [True, False])
@pytest.mark.parametrize("kind", NOTES)
def test_notes_on_what_some_rows_have(kind: str, labels_first: bool) -> None:
    pair, x, y = Labels(kind), torch.linspace(-1, 1, 8), torch.ones(8)
    batches = [(x, y), (x,)] if labels_first else [(x,), (x, y)]
    found = evaluate(pair, pair.guide, batches, num_samples=10, seed=0)
    assert [NOTES[kind] in text for text in found.notes] == [True]
    # The loss counts these terms and the ELBO of rows does not, as in Pyro: that is no alarm.
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        options: dict[str, Any] = {"max_epochs": 24, "learning_rate": 1e-6, "seed": 0}
        assert not fit(pair, pair.guide, batches, **options).warnings


def test_shared_latents_of_a_later_kind_are_noted() -> None:
    """mu ~ N(0, 1) for all rows, in some batches only."""

    def program(x: Tensor, of_model: bool) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)) if x.shape[1] == 2 else torch.tensor(0.0)
        with pyro.plate("data", len(x)):
            if of_model:
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x[:, 0])

    batches = [torch.zeros(2, 1), torch.zeros(2, 2)]
    for order in (batches, batches[::-1]):
        found = evaluate(
            lambda x: program(x, True), lambda x: program(x, False), order, num_samples=5, seed=0
        )
        assert any("sites 'mu' belong to all rows" in text for text in found.notes)
