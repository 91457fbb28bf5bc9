"""Flows that have no inverse: what needs the density of their own draws is right, and what needs that of given
values says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    inference_gaps,
)
from ppl_vae.checks import opened
from ppl_vae.diagnosis import guide_on_grid, posterior_grid
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO
from ppl_vae.pairs import PairError

FLOWS: dict[str, Callable[[], Any]] = {
    "Planar": lambda: T.Planar(2),
    "ConditionedPlanar": lambda: T.ConditionalPlanar(DenseNN(2, [4], param_dims=[1, 2, 2])),
    "NeuralAutoregressive": lambda: T.neural_autoregressive(2, [4], width=2),
}


class Flow(nn.Module):
    """z ~ N(0, I), x ~ N(z, I): log p(x) is that of N(0, 2 I)."""

    def __init__(self, kind: str, in_model: bool = False) -> None:
        super().__init__()
        pyro.set_rng_seed(0)
        self.flow, self.in_model = FLOWS[kind](), in_model

    def transformed(self, base: Any, x: Tensor) -> Any:
        if isinstance(self.flow, T.ConditionalPlanar):
            return dist.TransformedDistribution(base, [self.flow.condition(x)])
        return dist.TransformedDistribution(base, [self.flow])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            if self.in_model:
                prior = self.transformed(dist.Normal(torch.zeros_like(x), 1.0), x)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(x / 2, 0.7)
            q = base.to_event(1) if self.in_model else self.transformed(base, x)
            pyro.sample("z", q)


X = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.1, 0.3]])
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X).sum(-1)


@pytest.mark.parametrize("kind", FLOWS)
def test_many_samples_run_at_once(kind: str) -> None:
    """Two samples at once are compared with single ones, drawn from the same values of the flow's base."""
    flow = Flow(kind)
    with opened(flow.model, flow.guide, X) as session:
        assert session.layout.vectorizes

    def guide(x: Tensor) -> None:  # a decoder that mixes up samples and rows
        flow.guide(x)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.reshape(-1, 2)[: len(x)], 1.0).to_event(1), obs=x)

    with opened(model, guide, X) as session:
        assert not session.layout.vectorizes


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind == "NeuralAutoregressive" else pytest.mark.slow)
        for kind in FLOWS
    ],
)
def test_what_their_own_draws_tell(kind: str) -> None:
    flow = Flow(kind)
    found = diagnose(flow.model, flow.guide, X, seed=0)
    assert math.isnan(found.mutual_information.mean)
    assert "has no inverse" in str(found.mutual_information.missing)
    assert f"site 'z' ({kind})" in found.summary()
    assert bool(found.kl.isfinite().all())
    gaps = inference_gaps(flow.model, flow.guide, X, num_samples=5000, max_steps=1, seed=0)
    assert float((gaps.log_likelihood.values - EXACT).abs().max()) < 0.1
    assert bool((gaps.elbo.values < EXACT + 4 * gaps.elbo_error).all())


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda m, g: annealed_importance_sampling(m, g, X, num_steps=2), "guide=None"),
        (
            lambda m, g: guide_on_grid(
                m, g, X, posterior_grid(m, g, X, size=17, bounds=((-5, 5), (-5, 5)))
            ),
            "not of given values",
        ),
        (
            lambda m, g: fit(m, g, X, objective=TraceELBO(stick_the_landing=True), max_epochs=1),
            "not of given values",
        ),
        (
            lambda m, g: fit(
                m,
                g,
                X,
                objective=ImportanceWeightedELBO(num_particles=2, doubly_reparameterized=True),
                max_epochs=1,
            ),
            "not of given values",
        ),
    ],
)
def test_what_needs_given_values(run: Callable[..., Any], words: str) -> None:
    flow = Flow("Planar")
    with pytest.raises(PairError, match=r"flow of site 'z' \(Planar\) has no inverse") as error:
        run(flow.model, flow.guide)
    assert words in str(error.value)


def test_a_prior_without_inverse_cannot_score_the_guides_draws() -> None:
    flow = Flow("Planar", in_model=True)
    report = check(flow.model, flow.guide, X)
    assert "flow of site 'z' (Planar) has no inverse" in report.problems[0].message
    for run in (evaluate, lambda *args: fit(*args, max_epochs=1)):
        with pytest.raises(PairError, match="has no inverse"):
            run(flow.model, flow.guide, X)
