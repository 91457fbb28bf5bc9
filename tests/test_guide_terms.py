"""What adds up to log q(z | x): the draws of a guide, not what it observes nor what it adds to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import (
    AutoHierarchicalNormalMessenger,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    inference_gaps,
)
from ppl_vae.checks import PairWarning
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, Objective, TraceELBO
from ppl_vae.pairs import Pair, PairError
from ppl_vae.pairs.layouts import Layouts
from ppl_vae.training import refit_guide

X = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 1.4
LOG_P = dist.Normal(0.0, 2**0.5).log_prob(X)


model = programs.normal


def posterior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


# -- guides that are messengers: they run the model, with its data ---------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        AutoHierarchicalNormalMessenger,
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in (AutoNormalMessenger, AutoRegressiveMessenger)
        ),
    ],
)
def test_the_data_of_a_messenger_are_the_models(kind: Any) -> None:
    pyro.set_rng_seed(0)
    guide = kind(model)
    fitted = fit(model, guide, X, max_epochs=150, learning_rate=0.05, seed=0, capture=False)
    assert not fitted.warnings
    found = evaluate(model, guide, X, num_samples=2000, seed=0, method="guide")
    assert found.log_likelihood.mean == pytest.approx(float(LOG_P.mean()), abs=0.02)
    assert LOG_P.mean() - 0.1 < found.elbo.mean < LOG_P.mean() + 0.01
    annealed = annealed_importance_sampling(model, guide, X, num_steps=30, num_chains=32, seed=0)
    assert annealed.log_likelihood.mean == pytest.approx(float(LOG_P.mean()), abs=0.02)
    # KL(q || p) of the posterior N(x / 2, 1/2).
    kl = kl_divergence(dist.Normal(X / 2, 0.5**0.5), dist.Normal(0.0, 1.0)).mean()
    assert float(diagnose(model, guide, X, seed=0).kl[0]) == pytest.approx(float(kl), abs=0.1)


@pytest.mark.slow
def test_a_recorded_step_of_a_messenger_is_pyros() -> None:
    ends = []
    for capture in (False, True):
        guide = AutoNormalMessenger(model)
        fitted = fit(model, guide, X, max_epochs=30, learning_rate=0.03, seed=0, capture=capture)
        ends.append([row["loss"] for row in fitted.history])
    assert ends[0] == ends[1]


def test_a_messenger_keeps_rows_unless_their_plate_is_amortized() -> None:
    with pytest.raises(PairError, match="keeps parameters for each row"):
        fit(model, AutoNormalMessenger(model), X, batch_size=5, max_epochs=1)
    shared = AutoNormalMessenger(model, amortized_plates=("data",))
    options: dict[str, Any] = {"max_epochs": 120, "learning_rate": 0.02, "seed": 0}
    fit(model, shared, X, batch_size=5, capture=False, **options)
    # The best q for all rows is N(mean of x / 2, 1/2).
    m, s2 = X.mean() / 2, 0.5
    likelihood = -0.5 * math.log(2 * math.pi) - 0.5 * ((X - m).square() + s2).mean()
    best = likelihood - 0.5 * (m**2 + s2 - 1 - math.log(s2))
    found = evaluate(model, shared, X, num_samples=2000, method="guide", seed=0)
    assert found.elbo.mean == pytest.approx(float(best), abs=0.03)


@pytest.mark.parametrize(
    "objective",
    [
        TraceELBO(stick_the_landing=True),
        ImportanceWeightedELBO(doubly_reparameterized=True),
    ],
)
def test_path_gradients_refuse_messengers(objective: Objective) -> None:
    """They run the guide inside of another program, where Pyro would not know it for what it is."""
    with pytest.raises(PairError, match="AutoNormalMessenger runs the model with other"):
        fit(model, AutoNormalMessenger(model), X, objective=objective, max_epochs=1)


def test_refitting_refuses_messengers() -> None:
    with pytest.raises(TypeError, match="AutoNormalMessenger, runs a model of its own"):
        refit_guide(model, AutoNormalMessenger(model), X, max_epochs=1)


# -- what a guide observes, or adds as a factor -----------------------------------------------------------


def labelled(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(0.5), obs=y)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def classifying(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.sample("y", dist.Bernoulli(logits=x), obs=y)


def with_factor(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.factor("aux", -(x**2), has_rsample=False)


Y = (X > 0).float()


@pytest.mark.parametrize("guide", [classifying, with_factor])
def test_neither_counts_in_importance_weights(guide: Any) -> None:
    """The exact posterior: every sample gives log p(x, y)."""
    exact = LOG_P - math.log(2)
    found = evaluate(labelled, guide, (X, Y), num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.elbo.values.float(), exact, atol=1e-4, rtol=1e-4)
    name = "y" if guide is classifying else "aux"
    assert any(f"adds as a factor ('{name}') is no density" in note for note in found.notes)
    annealed = annealed_importance_sampling(
        labelled, guide, (X, Y), num_steps=5, num_chains=2, seed=0
    )
    torch.testing.assert_close(annealed.log_likelihood.values.float(), exact, atol=1e-3, rtol=1e-3)
    assert annealed.notes
    gaps = inference_gaps(labelled, guide, (X, Y), num_samples=10, max_steps=20, seed=0)
    assert abs(gaps.approximation_gap.mean) < 1e-3
    assert abs(gaps.amortization_gap.mean) < 1e-3
    problems = check(labelled, guide, (X, Y)).problems
    assert [p.site for p in problems] == (["y"] if guide is classifying else [])


@pytest.mark.parametrize("objective", [TraceELBO(), ImportanceWeightedELBO(num_particles=3)])
@pytest.mark.parametrize("num_rows", [None, 60])
def test_every_loss_counts_both_as_pyros_does(objective: Objective, num_rows: int | None) -> None:
    """Without them the same draws give a loss that differs by exactly these terms."""

    def loss(model_penalty: float, guide_factor: float, guide_penalty: float) -> Tensor:
        def penalized(x: Tensor) -> None:
            if model_penalty:
                pyro.factor("weights", torch.tensor(model_penalty))
            with pyro.plate("data", num_rows or len(x), subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            if guide_penalty:
                pyro.factor("more", torch.tensor(guide_penalty), has_rsample=True)
            with pyro.plate("data", num_rows or len(x), subsample_size=len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0))
                if guide_factor:
                    pyro.factor("aux", guide_factor * x, has_rsample=True)

        pair = Pair(penalized, guide)
        torch.manual_seed(3)
        with pair.scope():
            return objective(pair, Layouts(pair).of(X), X).loss

    without, n = loss(0.0, 0.0, 0.0), num_rows or len(X)
    torch.testing.assert_close(loss(-5.0, 0.0, 0.0) - without, torch.tensor(5.0 / n))
    torch.testing.assert_close(loss(0.0, 0.0, 4.0) - without, torch.tensor(4.0 / n))
    torch.testing.assert_close(loss(0.0, 2.0, 0.0) - without, 2 * X.mean(), atol=1e-5, rtol=1e-4)


def test_penalties_are_trained_under_the_importance_weighted_bound() -> None:
    """A strong pull of w to 2, where the data would have it near 1."""

    def pulled(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(1.0))
        pyro.factor("pull", -500.0 * (w - 2.0) ** 2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    objective = ImportanceWeightedELBO(num_particles=4)
    fitted = fit(
        pulled, posterior, X, objective=objective, max_epochs=200, learning_rate=0.02, seed=0
    )
    pair = Pair.of(fitted.model, fitted.guide)
    with pair.scope():
        assert float(pyro.param("w").detach()) == pytest.approx(2.0, abs=0.05)


def test_a_score_factor_suits_the_default_objective() -> None:
    """scANVI's classification term, which the analytic KL of Pyro's TraceMeanField_ELBO cannot take."""

    def guide(x: Tensor, y: Tensor) -> None:
        c = pyro.param("c", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            log_q = dist.Bernoulli(logits=c * z).log_prob(y)
            pyro.factor("classification", -5.0 * log_q, has_rsample=False)

    default = fit(labelled, guide, (X, Y), max_epochs=2, seed=0)
    trace = fit(labelled, guide, (X, Y), objective=TraceELBO(), max_epochs=2, seed=0)
    assert [row["loss"] for row in default.history] == [row["loss"] for row in trace.history]


def computed(x: Tensor) -> None:
    """The exact posterior, in a variable of the guide alone."""
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(-x / 2, 0.5**0.5))
        pyro.sample("z", dist.Delta(-u))


def observing(x: Tensor) -> None:
    """The exact posterior, and data that it observes."""
    posterior(x)
    with pyro.plate("seen", len(x)):
        pyro.sample("extra", dist.Normal(0.0, 1.0), obs=x)


def observing_the_same(x: Tensor) -> None:
    """The exact posterior, and the model's data."""
    posterior(x)
    with pyro.plate("seen", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize("guide", [computed, observing, observing_the_same])
def test_the_default_objective_takes_sites_of_the_guide_alone(guide: Any) -> None:
    """Each draw from the exact posterior gives the same loss, without noise."""
    beside = 0.0 if guide is computed else dist.Normal(0.0, 1.0).log_prob(X).mean()
    loss = programs.run(ELBO(), model, guide, X).loss
    torch.testing.assert_close(loss, beside - LOG_P.mean(), atol=1e-5, rtol=1e-5)
    assert not check(model, guide, X).errors


def test_the_default_objective_takes_such_a_site_in_a_later_batch() -> None:
    def located(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        (posterior if x.shape[1] == 1 else observing)(x[:, 0])

    batches = [X[:, None], X[:, None].expand(-1, 2)]
    objective = ELBO(num_particles=100)
    with pytest.warns(PairWarning, match="the guide observes 'extra'"):
        found = fit(
            located, guide, batches, objective=objective, max_epochs=1, learning_rate=1e-9, seed=0
        ).history[0]
    expected = -LOG_P.mean() + dist.Normal(0.0, 1.0).log_prob(X).mean() / 2
    assert found["loss"] == pytest.approx(float(expected), abs=0.06)


# -- a Jacobian as a factor ------------------------------------------------------------------------------


def of_a_logarithm(x: Tensor) -> None:
    """log z ~ N(0, 1), x ~ N(log z, 1): log p(x) = log N(x; 0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)


def exponential(
    given: bool, factor: Callable[[Tensor], Tensor] | None = None, sd: float = 0.5**0.5
) -> Any:
    """log z ~ N(x / 2, sd^2): with its density in `log_density`, or in a factor before the Delta."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x / 2, sd), infer={"is_auxiliary": True})
            if factor is not None:
                pyro.factor("factor", factor(u), has_rsample=True)
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u if given else 0.0))

    return guide


def test_a_factor_is_the_jacobian_only_without_log_density() -> None:
    by_hand = exponential(given=False, factor=lambda u: -u)
    found = evaluate(of_a_logarithm, by_hand, X, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values.float(), LOG_P, atol=1e-4, rtol=1e-4)
    assert not found.notes
    assert not found.warnings
    beside = exponential(given=True, factor=lambda u: 3 + 0 * u)
    found = evaluate(of_a_logarithm, beside, X, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values.float(), LOG_P, atol=1e-4, rtol=1e-4)
    assert any("adds as a factor ('factor') is no density" in note for note in found.notes)
    assert not found.warnings
    neither = exponential(given=False, factor=lambda u: 3 + 0 * u)
    doubt = evaluate(of_a_logarithm, neither, X, num_samples=3, seed=0).warnings[0]
    assert "pyro.factor 'factor' counts as one" in doubt


@pytest.mark.parametrize(
    "objective", [ELBO(), TraceELBO(), ImportanceWeightedELBO(num_particles=1)]
)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_weights_a_jacobian_in_a_factor(objective: Objective, beta: float) -> None:
    """The mean loss is the distortion plus beta KL, as with `log_density`."""
    losses = []
    for guide in (
        exponential(given=True, sd=1.0),
        exponential(given=False, factor=lambda u: -u, sd=1.0),
    ):
        pair = Pair(of_a_logarithm, guide)
        many = X.repeat(4000)
        torch.manual_seed(0)
        with pair.scope(), torch.no_grad():
            loss = objective(pair, Layouts(pair).of(many), many, beta)
        losses.append(float(loss.loss))
        assert losses[-1] == pytest.approx(float(loss.distortion + beta * loss.rate), abs=1e-4)
    # log z ~ N(x / 2, 1), with x ~ N(log z, 1): E (x - log z)^2 = x^2 / 4 + 1, and KL = x^2 / 8.
    distortion = 0.5 * math.log(2 * math.pi) + 0.5 * (X.square() / 4 + 1)
    exact = float((distortion + beta * X.square() / 8).mean())
    assert losses == pytest.approx([exact, exact], abs=0.02)


def of_a_shared_scale(x: Tensor) -> None:
    w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, w), obs=x)


def shared_exponential(in_factor: bool, penalty: float = 0.0) -> Any:
    """w = exp(u), shared by all rows, with its density in `log_density` or in a factor."""

    def guide(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(0.3, 0.5), infer={"is_auxiliary": True})
        if in_factor:
            pyro.factor("jacobian", -u, has_rsample=True)
        if penalty:
            pyro.factor("penalty", torch.tensor(penalty), has_rsample=True)
        pyro.sample("w", dist.Delta(u.exp(), log_density=0.0 if in_factor else -u))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    return guide


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("in_factor", [False, True])
def test_beta_weights_a_jacobian_outside_of_all_plates(in_factor: bool, beta: float) -> None:
    """As in Pyro's Trace_ELBO with poutine.scale around the latents; a penalty beside it is not weighted."""
    for penalty in (0.0, 3.0):
        pair = Pair(of_a_shared_scale, shared_exponential(in_factor, penalty))
        torch.manual_seed(2)
        with pair.scope(), torch.no_grad():
            loss = TraceELBO()(pair, Layouts(pair).of(X), X, beta).loss
        torch.manual_seed(2)
        u, eps = torch.distributions.Normal(0.3, 0.5).sample(), torch.randn(len(X))
        z = X / 2 + eps
        log_q = dist.Normal(0.3, 0.5).log_prob(u) - u + dist.Normal(X / 2, 1.0).log_prob(z).sum()
        log_p = dist.LogNormal(0.0, 1.0).log_prob(u.exp()) + dist.Normal(0.0, 1.0).log_prob(z).sum()
        exact = beta * (log_q - log_p) - dist.Normal(z, u.exp()).log_prob(X).sum() + penalty
        torch.testing.assert_close(loss, exact / len(X), atol=1e-5, rtol=1e-5)


# -- weights ---------------------------------------------------------------------------------------------


def weighted(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=4.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_weights_are_left_out_and_that_is_said() -> None:
    found = evaluate(weighted, posterior, X, num_samples=3, seed=0)
    torch.testing.assert_close(found.log_likelihood.values.float(), LOG_P, atol=1e-4, rtol=1e-4)
    assert any("weighted by poutine.scale ('x')" in note for note in found.notes)
    assert any("weighted by" in n for n in diagnose(weighted, posterior, X, seed=0).notes)
    assert not any("weighted" in n for n in evaluate(model, posterior, X, num_samples=3).notes)
    (problem,) = check(weighted, posterior, X, objective=ImportanceWeightedELBO()).problems
    assert "the importance-weighted bound leaves out" in problem.message
    assert check(weighted, posterior, X).ok
