"""What `pyro.param` learns: carried by the programs of a fit, found by the pair, and nowhere else."""

from __future__ import annotations

import gc
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import POINTS, Factor, Hierarchical, log_evidence
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    check,
    diagnose,
    evaluate,
    fit,
)
from ppl_vae.objectives import TraceELBO
from ppl_vae.pairs import Pair

DIGITS = programs.digits()
PYRO_STORE = pyro.get_param_store()

# log p(x) = sum log N(x; loc, 2): every value below has a closed form. The optimum is loc = mean(x), for the
# guide's slope 1/2 and shift loc.

param_model = programs.located


def param_guide(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + shift) / 2, scale))


def other_model(x: Tensor) -> None:
    param_model(x)


def learn(
    model: Any = param_model, guide: Any = param_guide, x: Tensor = POINTS, epochs: int = 200
) -> Any:
    objective = TraceELBO()  # without noise at the optimum
    x = x.repeat(32)
    options: Any = {"max_epochs": epochs, "learning_rate": 0.1, "seed": 0}
    return fit(model, guide, x, objective=objective, **options)


def test_what_pyro_params_learn_is_carried_and_found() -> None:
    fitted = learn()
    assert not list(PYRO_STORE.keys())
    for model, guide in ((param_model, param_guide), (fitted.model, fitted.guide)):
        evaluation = evaluate(model, guide, POINTS, num_samples=2000, seed=0, method="guide")
        expected = log_evidence(POINTS, 1.0)
        assert torch.allclose(evaluation.log_likelihood.values, expected, atol=0.05)
        assert float(evaluation.ess.min()) > 1900
    trace = poutine.trace(fitted.guide).get_trace(POINTS)
    assert float(trace.nodes["scale"]["value"].detach()) == pytest.approx(0.5**0.5, abs=0.02)
    predictive = pyro.infer.Predictive(fitted.model, num_samples=2000)
    assert float(predictive(POINTS)["z"].mean()) == pytest.approx(1.0, abs=0.1)
    assert not list(PYRO_STORE.keys())


@pytest.mark.slow
def test_chains_from_the_prior_know_what_the_model_has_learned() -> None:
    """There is no guide by which the fit could be found."""

    def another_guide(x: Tensor) -> None:
        param_guide(x)

    learn(guide=another_guide, x=POINTS + 5.0)
    learn()
    found = annealed_importance_sampling(param_model, None, POINTS, num_steps=200, seed=0)
    off = found.log_likelihood.values - log_evidence(POINTS, 1.0)
    assert float((off.abs() / found.log_likelihood_error).max()) < 4.5
    assert float(off.abs().max()) < 0.1  # for loc = 0 or 6 it is 0.2 at least
    sandwich = bidirectional_monte_carlo(param_model, None, POINTS, num_steps=100, seed=0)
    drawn = sandwich.data
    assert isinstance(drawn, Tensor)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=4 * (2 / drawn.numel()) ** 0.5)


def test_what_was_learned_with_another_program_is_missed_aloud() -> None:
    """Swapping the guide of a model that is a function gives its initial values: numbers of another model."""

    def untrained(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    def missed(model: Any, guide: Any) -> tuple[str, ...]:
        found = evaluate(model, guide, POINTS, num_samples=100, method="guide", seed=0)
        told = tuple(text for text in found.warnings if "initial values" in text)
        assert all(
            diagnose(model, guide, POINTS, seed=0).warnings.count(text) == 1 for text in told
        )
        return told

    def new_guide(x: Tensor) -> None:
        param_guide(x)

    def new_model(x: Tensor) -> None:
        param_model(x)

    assert missed(new_model, new_guide) == ()  # never trained: they are meant
    fitted = learn(new_model, new_guide, epochs=5)
    assert missed(new_model, new_guide) == missed(fitted.model, fitted.guide) == ()
    assert missed(fitted.model, untrained) == ()
    (text,) = missed(new_model, untrained)
    assert text.startswith("the model's parameters 'loc' (pyro.param)")
    assert "Pass fit(...).model" in text
    (text,) = missed(fitted.model, new_guide)
    assert text.startswith("the guide's parameters 'scale', 'shift' (pyro.param)")
    (text,) = missed(other_model, new_guide)
    assert text.startswith("the guide's")


def test_every_fit_starts_from_the_initial_values() -> None:
    first = learn()
    second = fit(param_model, param_guide, POINTS, max_epochs=1, learning_rate=1e-9, seed=0)
    of_first = Pair.of(first.model, first.guide).store["params"]
    of_second = Pair.of(param_model, param_guide).store["params"]
    assert float(of_first["loc"].detach()) == pytest.approx(1.0, abs=0.05)
    assert float(of_second["loc"].detach()) == pytest.approx(0.0, abs=1e-3)
    assert Pair.of(second.model, second.guide).store["params"]["loc"] is of_second["loc"]


def test_a_fit_of_fitted_programs_goes_on() -> None:
    first = learn()
    second = fit(first.model, first.guide, POINTS, max_epochs=1, learning_rate=1e-6, seed=0)
    loc = Pair.of(second.model, second.guide).store["params"]["loc"]
    assert float(loc.detach()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_pairs_of_one_parameter_name_do_not_mix() -> None:
    learn()
    fitted = learn(other_model, param_guide, POINTS + 4.0)
    for model, loc in ((param_model, 1.0), (other_model, 5.0)):
        evaluation = evaluate(
            model, param_guide, POINTS + loc, num_samples=500, seed=0, method="guide"
        )
        expected = log_evidence(POINTS + loc, loc)
        assert torch.allclose(evaluation.log_likelihood.values, expected, atol=0.05)
        assert float(evaluation.ess.min()) > 490
    # the model of one fit under the guide of another: each brings its own values
    swapped = evaluate(
        fitted.model, learn().guide, POINTS, num_samples=20_000, seed=0, method="guide"
    )
    expected = log_evidence(POINTS, 5.0)
    assert torch.allclose(swapped.log_likelihood.values, expected, atol=0.5)
    # KL(q || p(z | x)) of two normals of one variance 1/2, whose means are 2 apart
    assert swapped.elbo.mean == pytest.approx(float(expected.mean()) - 4.0, abs=0.3)


def test_one_parameter_of_both_programs_from_two_fits_is_refused() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + loc) / 2, 0.5**0.5))

    one, two = learn(param_model, guide), learn(param_model, guide, POINTS + 1.0, epochs=2)
    assert evaluate(one.model, one.guide, POINTS, seed=0, method="guide").ess.min() > 990
    with pytest.raises(ValueError, match="'loc', from different fits"):
        evaluate(one.model, two.guide, POINTS, seed=0, method="guide")


def test_the_global_store_stays_as_it_was() -> None:
    pyro.param("loc", torch.tensor(5.0))
    pyro.param("mine", torch.tensor(2.0), constraint=constraints.positive)
    learn(epochs=3)
    evaluate(param_model, param_guide, POINTS, seed=0, method="guide")
    diagnose(param_model, param_guide, POINTS, seed=0)
    check(param_model, param_guide, POINTS)
    assert set(PYRO_STORE.keys()) == {"loc", "mine"}
    assert float(PYRO_STORE["loc"].detach()) == 5.0
    assert float(PYRO_STORE["mine"].detach()) == pytest.approx(2.0)
    pyro.clear_param_store()


class Mine(Exception):
    """An error of the user's own."""


@pytest.mark.parametrize("error", [Mine("mine"), KeyboardInterrupt()])
def test_the_global_store_stays_as_it_was_after_an_exception(error: BaseException) -> None:
    calls = 0

    def fail(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise error
        return x

    pyro.param("loc", torch.tensor(5.0))
    model = Factor()
    model.train(False)
    with pytest.raises(type(error)):
        fit(param_model, param_guide, POINTS, transform=fail, max_epochs=9)
    with pytest.raises(type(error)):
        fit(model, Hierarchical().guide, DIGITS, transform=fail, max_epochs=9)
    assert set(PYRO_STORE.keys()) == {"loc"}
    assert float(PYRO_STORE["loc"].detach()) == 5.0
    assert not model.training
    assert pyro.settings.get("validate_distributions_pyro") is True
    pyro.clear_param_store()
    learn(epochs=3)  # and nothing of the failed fit is in the way


def test_what_was_learned_goes_with_the_program() -> None:
    def make() -> tuple[Any, Any]:
        return (lambda x: param_model(x)), (lambda x: param_guide(x))

    model, guide = make()
    fit(model, guide, POINTS, max_epochs=1, seed=0)
    assert Pair.of(model, guide).store["params"]
    assert not Pair.of(*make()).store["params"]
    from ppl_vae.pairs import learned

    known = len(learned._learned)
    del model, guide
    gc.collect()
    assert len(learned._learned) < known
