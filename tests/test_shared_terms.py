"""Terms of the model that belong to no row: penalties and priors on weights, in and outside of plates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from all_pairs import all_pairs
from torch import Tensor, nn

from ppl_vae import evaluate, fit
from ppl_vae.checks import PairWarning, check
from ppl_vae.em import GradientSteps, fit_em
from ppl_vae.objectives import (
    ELBO,
    ImportanceWeightedELBO,
    MeanFieldELBO,
    Objective,
    TraceELBO,
)
from ppl_vae.pairs import PairError

W = torch.tensor([0.3, -0.1, 0.2])
X = torch.linspace(-2.0, 2.0, 6)
LOG_EVIDENCE = torch.distributions.Normal(0.4, 2**0.5).log_prob(X)
LOG_PRIOR = float(torch.distributions.Normal(0.0, 1.0).log_prob(W).sum())


def factor(w: Tensor) -> None:
    pyro.factor("term", -w.square().sum())


def factor_in_plate(w: Tensor) -> None:
    with pyro.plate("weights", len(w)):
        pyro.factor("term", -w.square())


def observed(w: Tensor) -> None:
    pyro.sample("term", dist.Normal(0.0, 1.0).expand(w.shape).to_event(1), obs=w)


def observed_in_plate(w: Tensor) -> None:
    with pyro.plate("weights", len(w)):
        pyro.sample("term", dist.Normal(0.0, 1.0), obs=w)


TERMS: dict[Callable[[Tensor], None], float] = {
    factor: -0.14,
    factor_in_plate: -0.14,
    observed: LOG_PRIOR,
    observed_in_plate: LOG_PRIOR,
}


def model_with(term: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """z ~ N(0, 1), x ~ N(z + sum(w), 1), and a term of the weights w."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", W.clone())
        term(w)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w.sum(), 1.0), obs=x)

    return model


def exact(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * (x - W.sum()), 0.5**0.5))


PLAIN: list[Objective] = [
    ELBO(),
    TraceELBO(num_particles=2),
    MeanFieldELBO(),
    ImportanceWeightedELBO(num_particles=3),
]


@pytest.mark.slow(only=("factor-ELBO-6",))
@pytest.mark.parametrize(  # 3 rows: as many as weights
    ("term", "objective", "rows"),
    all_pairs(TERMS, PLAIN, [6, 3]),
    ids=lambda value: str(
        getattr(value, "__name__", value if value in (6, 3) else type(value).__name__)
    ),
)
def test_a_term_of_the_weights_belongs_to_the_loss_alone(
    term: Callable[[Tensor], None], objective: Objective, rows: int
) -> None:
    x, log_p = X[:rows], LOG_EVIDENCE[:rows]

    def trained(model: Callable[[Tensor], None]) -> Any:
        return fit(
            model,
            exact,
            x,
            objective=objective,
            max_epochs=1,
            batch_size=rows,
            learning_rate=1e-9,
            seed=0,
            progress=False,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = trained(model_with(term))
    loss, alone = (f.history[-1]["loss"] for f in (fitted, trained(model_with(lambda w: None))))
    assert loss - alone == pytest.approx(-TERMS[term] / rows, abs=1e-5)
    if isinstance(objective, TraceELBO | ImportanceWeightedELBO):  # without noise at the posterior
        assert alone == pytest.approx(-float(log_p.mean()), abs=1e-5)
    found = evaluate(fitted.model, fitted.guide, x, num_samples=7)
    torch.testing.assert_close(found.log_likelihood.values, log_p, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.elbo.values, log_p, atol=1e-5, rtol=0)
    assert not found.warnings
    assert "('term') is in no row's log p(x)" in found.notes[0]


def test_a_prior_on_weights_may_have_latents_that_all_rows_share() -> None:
    def term(w: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("weights", len(w)):
            pyro.sample("term", dist.Normal(0.0, scale), obs=w)

    def guide(x: Tensor) -> None:
        pyro.sample("scale", dist.Delta(torch.tensor(2.0)))
        exact(x)

    fitted = fit(
        model_with(term),
        guide,
        X,
        objective=TraceELBO(),
        max_epochs=1,
        batch_size=6,
        progress=False,
    )
    shared = torch.distributions.Normal(0.0, 2.0).log_prob(W).sum()
    shared = shared + torch.distributions.LogNormal(0.0, 1.0).log_prob(torch.tensor(2.0))
    wanted = -LOG_EVIDENCE.mean() - shared / 6
    assert fitted.history[-1]["loss"] == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize(
    "forgotten",
    [
        lambda x, z: pyro.sample("y", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x),
        lambda x, z: pyro.sample("y", dist.Normal(0.0, 1.0), obs=x.sum()),
        lambda x, z: pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0)),
        lambda x, z: pyro.sample("y", dist.Normal(x.mean(), 1.0), obs=torch.tensor(1.0)),
    ],
    ids=["rows", "a sum of rows", "latents of rows", "a mean of rows"],
)
def test_data_forgotten_outside_of_the_plate_are_refused(
    forgotten: Callable[[Tensor, Tensor], Any],
) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        forgotten(x, z)

    with pytest.raises(PairError, match="the observed sites 'x', 'y' are not inside a plate over"):
        evaluate(model, exact, X)


def test_a_factor_that_follows_the_rows_is_a_warning() -> None:
    def model(x: Tensor) -> None:
        pyro.factor("weights", torch.tensor(-0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("more", -z.square().sum())

    def untrained(x: Tensor) -> None:
        exact(x)

    (problem,) = check(model, untrained, X).problems
    assert problem.site == "more"
    assert "the loss of fit counts it, but the ELBO and log p(x) of a row do not" in problem.message
    assert evaluate(model, untrained, X, method="guide").warnings == (problem.message,)


def test_a_prior_on_weights_counts_once_in_each_minibatch_unless_the_plate_knows_all_rows() -> None:
    def told(x: Tensor) -> None:
        w = pyro.param("w", W.clone())
        observed(w)
        with pyro.plate("data", 6, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w.sum(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", 6, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(slope * (x - W.sum()), 0.5**0.5))

    def loss(model: Callable[[Tensor], None], guide: Callable[[Tensor], None]) -> Any:
        return fit(
            model,
            guide,
            X,
            objective=TraceELBO(),
            max_epochs=1,
            batch_size=2,
            learning_rate=1e-9,
            progress=False,
        ).history[-1]["loss"]

    with pytest.warns(PairWarning, match="the log density of 'term' counts once in each batch"):
        each = loss(model_with(observed), exact)
    assert each == pytest.approx(-float(LOG_EVIDENCE.mean()) - LOG_PRIOR / 2, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = loss(told, guide)
    assert once == pytest.approx(-float(LOG_EVIDENCE.mean()) - LOG_PRIOR / 6, abs=1e-5)


class Mixture(nn.Module):
    """z ~ Categorical(1/2, 1/2), x ~ N(locs_z, 1), locs ~ N(0, 1) written as an observed site."""

    def __init__(self, in_plate: bool, part: Tensor | None = None) -> None:
        super().__init__()
        self.part = part
        self.locs = nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        self.in_plate = in_plate

    def forward(self, x: Tensor) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        if self.in_plate:
            with pyro.plate("components", 2, subsample=self.part) as index:
                pyro.sample("prior", dist.Normal(zero, 1.0), obs=self.locs[index])
        else:
            pyro.factor("prior", -self.locs.square().sum() / 2)
        with pyro.plate("data", len(x)):
            halves = torch.full((2,), 0.5, dtype=torch.float64)
            z = pyro.sample("z", dist.Categorical(halves), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.locs[z], 1.0), obs=x)


@pytest.mark.slow(but=("observed in a plate-3", "factor-7"))
@pytest.mark.parametrize("batch_size", [7, 3])
@pytest.mark.parametrize("in_plate", [True, False], ids=["observed in a plate", "factor"])
def test_em_counts_a_prior_once_whatever_the_batches(in_plate: bool, batch_size: int) -> None:
    """MAP EM: at its fixed point, locs_k = sum_n r_nk x_n / (sum_n r_nk + 1)."""
    map_em(Mixture(in_plate), batch_size, torch.ones(2))


def test_em_weights_a_part_of_a_prior_for_the_whole() -> None:
    map_em(Mixture(True, torch.tensor([0])), 7, torch.tensor([2.0, 0.0]))


def map_em(model: Mixture, batch_size: int, weights: Tensor) -> None:
    """Compares EM with its fixed point; the prior of each component has a weight."""
    x = torch.tensor([-2.5, -1.9, -1.2, 0.3, 1.4, 2.2, 2.8], dtype=torch.float64)
    step = GradientSteps(steps=8, learning_rate=1.4, optimizer=torch.optim.SGD)
    fitted = fit_em(
        model, x, batch_size=batch_size, m_step=step, max_iterations=25, tolerance=0, progress=False
    )
    locs = model.locs.detach()
    log_joint = torch.distributions.Normal(locs, 1.0).log_prob(x[:, None]) - math.log(2)
    r = log_joint.softmax(1)
    wanted = (r * x[:, None]).sum(0) / (r.sum(0) + weights)
    torch.testing.assert_close(locs, wanted, atol=1e-6, rtol=0)
    assert fitted.log_likelihood == pytest.approx(float(log_joint.logsumexp(1).mean()), abs=1e-9)


class Located(nn.Module):
    """z ~ N(0, 1), x ~ N(z + w, 1), w ~ N(0, 1): with n rows, the mode of w is sum(x) / (n + 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        pyro.sample("prior", dist.Normal(0.0, 1.0), obs=self.w)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.w, 1.0), obs=x)

    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal((x - self.w) / 2, 0.5**0.5)

    def log_evidence(self, x: Tensor) -> Tensor:
        density: Tensor = dist.Normal(self.w, 2**0.5).log_prob(x)
        return density


@pytest.mark.parametrize("batch_size", [4, 3])
def test_em_by_draws_counts_a_prior_once(batch_size: int) -> None:
    x = torch.tensor([2.0, 3.0, 4.0, 3.0])
    model = Located()
    step = GradientSteps(steps=4, learning_rate=0.6, optimizer=torch.optim.SGD)
    fit_em(
        model,
        x,
        batch_size=batch_size,
        m_step=step,
        max_iterations=40,
        tolerance=0,
        seed=0,
        progress=False,
    )
    assert float(model.w.detach()) == pytest.approx(12 / 6, abs=0.25)  # 4 times the prior: 1


def test_em_by_a_guide_says_what_counts_once_in_each_batch() -> None:
    def run(batch_size: int) -> tuple[str, ...]:
        step = GradientSteps(steps=1, learning_rate=1e-9)
        return fit_em(
            model_with(observed),
            X,
            guide=exact,
            batch_size=batch_size,
            m_step=step,
            max_iterations=1,
            progress=False,
        ).notes

    assert run(6) == ()
    assert "the log density of 'term' counts once in each batch" in " ".join(run(2))


@pytest.mark.parametrize("batch_size", [8, 4, 2])
@pytest.mark.parametrize("told", [False, True], ids=["batch", "number of all rows"])
def test_em_by_a_guide_says_that_a_penalty_counts_once_in_each_batch(
    told: bool, batch_size: int
) -> None:
    """x ~ N(b, 1) with the penalty 2 b^2 in each of k batches: the mode of b is sum(x) / (n + 4 k)."""
    x = torch.tensor([2.0, 3.0, 4.0, 3.0, 1.0, 5.0, 2.0, 4.0])
    n = len(x)

    def rows(x: Tensor) -> Any:
        return pyro.plate("data", n if told else len(x), subsample_size=len(x))

    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            pyro.factor("penalty", -2 * self.b**2)
            with rows(x):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with rows(x):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    model = Penalized()
    fitted = fit_em(
        model,
        x,
        guide=guide,
        batch_size=batch_size,
        m_step=GradientSteps(steps=10, learning_rate=0.4, optimizer=torch.optim.SGD),
        max_iterations=8,
        tolerance=0,
        progress=False,
    )
    times = 1 if told else n // batch_size
    assert float(model.b.detach()) == pytest.approx(float(x.sum()) / (n + 4 * times), rel=1e-4)
    is_said = "the value of 'penalty' counts once in each batch" in " ".join(fitted.notes)
    assert is_said == (times > 1)
