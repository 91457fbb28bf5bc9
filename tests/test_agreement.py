"""`fit` says so if minus the loss and the logged ELBO differ by more than noise."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_vae import fit
from ppl_vae.checks import PairWarning
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    GumbelSoftmaxELBO,
    ImportanceWeightedELBO,
    Loss,
    Objective,
    TraceELBO,
    elbo,
)
from ppl_vae.pairs import Batch, Layout, Pair, unscaled

X = torch.linspace(-2, 2, 40)


class Inner:
    """Rows with ten numbers each, of which a run sees five."""

    def __init__(self) -> None:
        self.loc = torch.nn.Linear(1, 1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 10, subsample_size=5, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1).expand(-1, 5))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(self.loc(x.unsqueeze(-1)), 0.5))


class Discrete:
    """A mixture, whose component the guide draws."""

    def __init__(self) -> None:
        self.logits = torch.nn.Linear(1, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(2.0 * c - 1.0, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.logits(x.unsqueeze(-1))
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def train(pair: Any, objective: Any = None, **options: Any) -> Any:
    options = {"max_epochs": 10, "batch_size": 10, "seed": 0} | options
    return fit(pair.model, pair.guide, X, objective=objective, **options)


def test_a_scale_that_the_elbo_leaves_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of a plate inside of a row whose scale was dropped, put back."""
    assert train(Inner()).warnings == ()
    monkeypatch.setattr("ppl_vae.objectives.elbo.row_log_prob", lambda site, layout: unscaled(site))
    for capture in (True, False):
        with pytest.warns(PairWarning, match="they differ by more than noise") as told:
            fitted = train(Inner(), capture=capture)
        assert len(told) == 1
        assert fitted.warnings == (str(told[0].message),)
        last = fitted.history[-1]
        assert abs(last["loss"] + last["elbo"]) > 1


def test_a_mask_that_the_elbo_leaves_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(Inner):
        def model(self, x: Tensor) -> None:
            with poutine.mask(mask=(x > 0).unsqueeze(-1)):  # type: ignore[call-overload]
                super().model(x)

        def guide(self, x: Tensor) -> None:
            with poutine.mask(mask=(x > 0).unsqueeze(-1)):  # type: ignore[call-overload]
                super().guide(x)

    assert train(Masked()).warnings == ()

    def without_mask(site: Any, layout: Layout) -> Tensor:
        found: Tensor = site["fn"].log_prob(site["value"]) * (2.0 if site["name"] == "x" else 1.0)
        return found

    monkeypatch.setattr(elbo, "row_log_prob", without_mask)
    with pytest.warns(PairWarning, match="they differ by more than noise"):
        train(Masked())


@pytest.mark.parametrize(
    "objective",
    [
        *(EnumELBO(), ELBO(num_particles=3)),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (GumbelSoftmaxELBO(), TraceELBO())
        ),
    ],
)
def test_noise_is_no_alarm(objective: Any) -> None:
    assert train(Discrete(), objective, max_epochs=40, learning_rate=0.05).warnings == ()


def test_what_is_meant_to_differ_is_no_alarm() -> None:
    """Another beta, free bits, bounds other than the ELBO, weights in the programs, penalties of parameters."""
    for objective in (ELBO(beta=0.2), ELBO(free_bits=0.5)):
        assert train(Inner(), objective).warnings == ()
    assert train(Discrete(), ImportanceWeightedELBO(num_particles=5)).warnings == ()

    class Weighted(Inner):
        def model(self, x: Tensor) -> None:
            with poutine.scale(scale=0.1):
                super().model(x)

        def guide(self, x: Tensor) -> None:
            with poutine.scale(scale=0.1):
                super().guide(x)

    class Penalized(Inner):
        def model(self, x: Tensor) -> None:
            pyro.factor("penalty", torch.tensor(-50.0))
            super().model(x)

    class Own(Objective):
        def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
            found = TraceELBO()(pair, layout, batch, beta)
            return Loss(2 * found.loss, found.elbo, found.rate, found.distortion, found.traces)

    assert train(Weighted()).warnings == ()
    assert train(Penalized()).warnings == ()
    assert train(Inner(), Own()).warnings == ()
