"""Latents whose support, measure or mask differs between model and guide are refused, and others are not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from torch import Tensor

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    evaluate,
    fit,
    inference_gaps,
)
from ppl_vae.capture.recording import record
from ppl_vae.objectives import TraceELBO
from ppl_vae.pairs import Pair, PairError, Program, find_layout, sample_rows
from ppl_vae.training import DivergenceError

Distribution = Callable[[Tensor], Any]


def pair(prior: Distribution, q: Distribution) -> tuple[Program, Program]:
    """A model with z ~ prior and a guide with z ~ q; x ~ N(sum z, 1)."""

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            mean = z.float() if z.dim() == 1 else z.sum(-1)
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return model, guide


def normal(x: Tensor) -> Any:
    return dist.Normal(x, 0.1)


THREE = torch.tensor([0.2, 0.3, 0.5])

REFUSED: dict[str, tuple[Distribution, Distribution, str]] = {
    "exponential": (lambda x: dist.Exponential(1.0), normal, "all real numbers"),
    # Far inside of the support for these rows, and outside of it for others.
    "exponential, far away": (
        lambda x: dist.Exponential(1.0),
        lambda x: dist.Normal(5 + 0 * x, 0.01),
        "some of which are outside",
    ),
    "half normal": (lambda x: dist.HalfNormal(1.0), normal, "all real numbers"),
    "beta": (
        lambda x: dist.Beta(1.0, 1.0),
        lambda x: dist.LogNormal(x + 9, 1.0),
        "numbers above 0",
    ),
    "uniform": (lambda x: dist.Uniform(0.0, 1.0), normal, "all real numbers"),
    "dirichlet": (
        lambda x: dist.Dirichlet(torch.ones(3)),
        lambda x: dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1),
        "all real numbers",
    ),
    "poisson": (lambda x: dist.Poisson(1.0), normal, "whose ratio has no meaning"),
    "normal of counts": (normal, lambda x: dist.Poisson(x.exp()), "whose ratio has no meaning"),
    "straight through": (
        lambda x: dist.OneHotCategorical(THREE),
        lambda x: dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), THREE).expand(
            (len(x),)
        ),
        "whose ratio has no meaning",
    ),
    "more values": (
        lambda x: dist.Categorical(THREE[:2] / 0.5),
        lambda x: dist.Categorical(torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)),
        "on integers from 0 to 2, and 30 of the values drawn here are outside",
    ),
}


REFUSED["normal for angles"] = (
    lambda x: dist.VonMises(0.0, 1.0),
    lambda x: dist.Normal(0 * x, 0.3),
    "angles from -pi to pi",
)
REFUSED["gamma for a beta prior, far inside"] = (
    lambda x: dist.Beta(1.0, 1.0),
    lambda x: dist.Gamma(torch.full((len(x),), 1000.0), 5000.0),
    "on numbers from 0, some of which are outside",
)


@pytest.mark.parametrize("case", REFUSED)
def test_draws_outside_of_the_models_support_are_refused(case: str) -> None:
    prior, q, words = REFUSED[case]
    model, guide = pair(prior, q)
    x = torch.randn(30)
    report = check(model, guide, x)
    assert not report
    assert report.problems[0].site == "z"
    assert words in report.problems[0].message
    assert "support" in report.problems[0].message
    for refused in (
        lambda: evaluate(model, guide, x, num_samples=2),
        lambda: fit(model, guide, x, objective=TraceELBO(), max_epochs=1),
    ):
        with pytest.raises(PairError, match=r"site 'z'.*support"):
            refused()


ACCEPTED: dict[str, tuple[Distribution, Distribution]] = {
    "log normal": (lambda x: dist.Exponential(1.0), lambda x: dist.LogNormal(0 * x, 1.0)),
    "gamma": (lambda x: dist.HalfNormal(1.0), lambda x: dist.Gamma(1 + 0 * x, 1.0)),
    "smaller": (lambda x: dist.Normal(0.0, 1.0), lambda x: dist.Exponential(1 + 0 * x)),
    "interval in the reals": (normal, lambda x: dist.Uniform(x - 1, x + 1)),
    "counts": (lambda x: dist.Poisson(1.0), lambda x: dist.Poisson(x.exp())),
    "transformed": (
        lambda x: dist.Exponential(1.0),
        lambda x: dist.TransformedDistribution(
            dist.Normal(0 * x, 1.0), [dist.transforms.SoftplusTransform()]
        ),
    ),
    "simplex": (
        lambda x: dist.Dirichlet(torch.ones(3)),
        lambda x: dist.Dirichlet(torch.ones(len(x), 3)),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_draws_inside_of_it_are_not(case: str) -> None:
    report = check(*pair(*ACCEPTED[case]), torch.randn(30), objective=TraceELBO())
    assert not [problem for problem in report.problems if problem.severity == "error"], report


def test_an_autoguide_of_a_positive_latent_is_right() -> None:
    model, _ = pair(lambda x: dist.Exponential(1.0), normal)
    x = torch.randn(10)
    assert check(model, AutoNormal(model), x)


@pytest.mark.parametrize("alone", ["model", "guide"])
def test_a_mask_in_one_program_alone_is_refused(alone: str) -> None:
    there: Any = torch.arange(12) % 3 > 0

    def program(of: str, last: bool) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=there if of == alone or alone == "both" else True):
                    z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
                if last:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    report = check(program("model", True), program("guide", False), torch.randn(12))
    text = report.problems[0].message
    assert text.startswith(
        f"site 'z': the {alone} masks 4 of 12 numbers that the other program does not"
    )
    alone = "both"
    assert check(program("model", True), program("guide", False), torch.randn(12))


def without_prior(x: Tensor, include_prior: bool = False) -> None:
    """As in Pyro's examples/hmm.py: points get their prior, or not; c is 0 or 1, x ~ N(mu c, 1)."""
    with poutine.mask(mask=include_prior):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu * c, 1.0), obs=x)


MU = {"mu": torch.tensor(2.0)}


@pytest.mark.parametrize("include_prior", [False, True])
def test_a_point_may_lack_its_prior(include_prior: bool) -> None:
    """A point has no density that a mask could hide: the loss is Pyro's, and distortion - log p(x | mu)."""
    x = torch.linspace(-2, 3, 6)
    model = partial(without_prior, include_prior=include_prior)
    guide = AutoDelta(poutine.block(model, expose=["mu"]), init_loc_fn=init_to_value(values=MU))
    truth = float(TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)) / 6
    terms = [math.log(0.7) + dist.Normal(0.0, 1.0).log_prob(x)]
    terms.append(math.log(0.3) + dist.Normal(2.0, 1.0).log_prob(x))
    exact = torch.logaddexp(*terms)
    prior = float(dist.Normal(0.0, 1.0).log_prob(MU["mu"])) * include_prior
    assert abs(truth - (-float(exact.mean()) - prior / 6)) < 1e-5
    assert check(model, guide, x)
    found = evaluate(model, guide, x, num_samples=2, seed=0)
    assert torch.allclose(-found.distortion.values, exact, atol=1e-5)
    trained = fit(model, guide, x, max_epochs=1, learning_rate=1e-9, seed=0)
    assert abs(trained.history[0]["loss"] - truth) < 1e-5
    pyro.clear_param_store()  # Pyro's own loss has filled it


def test_points_beside_draws_may_lack_their_prior() -> None:
    """mu = 2 is no function of e; z = 2 e has the posterior N(x / 2 + 1, 1 / 2): the ELBO is log N(x; 2, 2)."""

    def model(x: Tensor) -> None:
        with poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Delta(torch.tensor(2.0)))
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(x / 4 + 0.5, 0.125**0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * e, log_density=-torch.tensor(2.0).log()))

    x = torch.linspace(-2, 3, 6)
    assert check(model, guide, x, objective=TraceELBO())
    found = evaluate(model, guide, x, num_samples=2, seed=0)
    exact = dist.Normal(2.0, 2**0.5).log_prob(x)
    assert torch.allclose(found.elbo.values, exact, atol=1e-5)


def test_a_function_of_draws_may_not_lack_its_prior() -> None:
    """q(z) is the density of the draw e, which the model's mask does not leave out."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=False):
                z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(x / 2, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(e))

    report = check(model, guide, torch.randn(6))
    assert "the model masks 6 of 6 numbers" in report.problems[0].message


def test_masked_values_may_be_anything() -> None:
    """As for a latent that a row does not have: the guide leaves a filler there."""
    there: Any = torch.arange(12) % 3 > 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=there):
                z = pyro.sample("z", dist.Exponential(torch.ones(len(x))))
            pyro.sample("x", dist.Normal(torch.where(there, z, 0.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        low, high = torch.where(there, 0.1, -1.0), torch.where(there, 1.0, -0.5)
        with pyro.plate("data", len(x)), poutine.mask(mask=there):
            pyro.sample("z", dist.Uniform(low, high))

    report = check(model, guide, torch.randn(12), objective=TraceELBO())
    assert not [problem for problem in report.problems if problem.severity == "error"], report


# -- guides that give points ------------------------------------------------------------------------------


def two_latents(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + w, scale), obs=x)


def points_guide(points: str) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in ("z", "w"):
                if name in points:
                    pyro.sample(name, dist.Delta(x / 3))
                else:
                    pyro.sample(name, dist.Normal(x / 3, 0.5))

    return guide


@pytest.mark.parametrize("points", ["z", "w", "zw"])
def test_a_point_has_no_log_p(points: str) -> None:
    x = torch.randn(20)
    found = evaluate(two_latents, points_guide(points), x, num_samples=50, seed=0)
    assert found.log_likelihood.values.isnan().all()
    assert found.bits_per_dim.values.isnan().all()
    if points == "zw":
        at = dist.Normal(0.0, 1.0).log_prob(x / 3) * 2 + dist.Normal(2 * x / 3, 1.0).log_prob(x)
        torch.testing.assert_close(found.elbo.values, at)
        distortion = -dist.Normal(2 * x / 3, 1.0).log_prob(x)
        torch.testing.assert_close(found.distortion.values, distortion)
    (text,) = found.warnings
    assert text.startswith(f"the guide gives a point for '{points[0]}'")
    assert ("log p(x)", "not defined") in found.lines()
    assert "nan" not in str(found)
    names = "'z', 'w'" if points == "zw" else f"'{points}'"
    why = f"not defined, because the guide gives a point for {names}"
    assert str(found.log_likelihood) == str(found.bits_per_dim) == why


@pytest.mark.parametrize(
    "function",
    [
        diagnose,
        pytest.param(inference_gaps, marks=pytest.mark.slow),
        pytest.param(annealed_importance_sampling, marks=pytest.mark.slow),
    ],
)
def test_what_needs_a_density_says_so(function: Callable[..., Any]) -> None:
    with pytest.raises(PairError, match=r"a point for 'z' \(a Delta\), which has no density"):
        function(two_latents, points_guide("z"), torch.randn(20))
    assert (
        annealed_importance_sampling(two_latents, None, torch.randn(3), num_chains=2, num_steps=3)
        .log_likelihood.values.isfinite()
        .all()
    )


def test_a_delta_that_is_a_function_of_a_draw_is_right() -> None:
    """z = 2 e with e ~ N(x / 4, 1 / 8) is the posterior N(x / 2, 1 / 2): q(z) = q(e) / 2."""

    model = programs.normal

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(x / 4, 0.125**0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * e, log_density=-torch.tensor(2.0).log()))

    x = torch.randn(10)
    found = evaluate(model, guide, x, num_samples=20, seed=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=0)
    assert not found.warnings


def noisy(x: Tensor) -> None:
    """q(z | x) = N(x / 2, 1 / 2), the posterior, as a sum of two normal variables."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(x / 2 + 0.5 * a, 0.5))


@pytest.mark.parametrize("reverse", [True, False])
def test_a_variable_of_the_guide_alone_needs_a_reverse_model(reverse: bool) -> None:
    """With r(a | z, x) = N(z - x / 2, 1 / 2), the posterior of a, all weights are p(x)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if reverse:
                pyro.sample("a", dist.Normal(z - x / 2, 0.5**0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(10)
    if not reverse:  # the weights were p(x, z) / (q(a) q(z | a)), whose mean is infinite
        for run in (evaluate, diagnose, fit, inference_gaps):
            with pytest.raises(PairError, match=r"reverse model r\(a \| z, x\)"):
                run(model, noisy, x)
        return
    found = evaluate(model, noisy, x, num_samples=30, seed=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.elbo.values, exact, atol=1e-5, rtol=0)


def test_a_latent_made_of_more_numbers_than_it_has() -> None:
    """z = a + b: q(z) is a convolution, not q(a) q(b)."""

    model = programs.normal

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            both = dist.Normal(torch.zeros(2), 0.5).to_event(1)
            a = pyro.sample("a", both, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 2 + a.sum(-1)))

    with pytest.raises(PairError, match="computes 10 numbers of latents from the 20 of 'a'"):
        evaluate(model, guide, torch.randn(10))


def test_a_guide_with_a_part_of_the_support_is_told() -> None:
    """Half of p(x) lies at negative z, which a guide of positive numbers never draws: log p(x) is log 2 low."""
    model, guide = pair(lambda x: dist.Normal(0.0, 1.0), lambda x: dist.HalfNormal(1.0 + 0 * x))
    x = torch.zeros(5)
    report = check(model, guide, x)
    assert report
    (problem,) = [p for p in report.problems if p.site == "z"]
    assert problem.severity == "warning"
    assert (
        "the guide draws numbers from 0 only, and the model has all real numbers" in problem.message
    )
    found = evaluate(model, guide, x, num_samples=90, seed=0)
    assert problem.message in found.warnings
    found = evaluate(model, guide, x, num_samples=2000, method="guide", seed=0)
    assert problem.message in found.warnings
    off = dist.Normal(0.0, 2**0.5).log_prob(x) - found.log_likelihood.values
    torch.testing.assert_close(off, torch.full((5,), 2.0).log(), atol=0.05, rtol=0)
    assert problem.message in diagnose(model, guide, torch.randn(40)).warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = pair(lambda x: dist.HalfNormal(1.0), lambda x: dist.Exponential(1.0 + 0 * x))
        assert check(*exact, x)
        evaluate(*exact, x, num_samples=10)


@pytest.mark.parametrize("run", [pytest.param(evaluate, marks=pytest.mark.slow), diagnose, fit])
def test_a_mask_that_only_later_rows_have(run: Any) -> None:
    """The first rows are whole; of the others, the model alone leaves something out."""

    def program(of_model: bool) -> Program:
        def run(x: Tensor, there: Any) -> None:
            with pyro.plate("data", len(x)), poutine.mask(mask=there if of_model else there | True):
                loc = 0.0 if of_model else pyro.param("loc", torch.tensor(0.0))
                z = pyro.sample("z", dist.Normal(loc + 0.0 * x, 1.0))
                if of_model:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    x = torch.randn(200)
    options: dict[str, Any] = {"batch_size": 50, "max_epochs": 1} if run is fit else {}
    if run is evaluate:
        options = {"num_samples": 3}
    whole = torch.ones(200, dtype=torch.bool)
    run(program(True), program(False), (x, whole), **options)
    later = torch.arange(200) < 190
    with pytest.raises(PairError, match="the model masks"):
        run(program(True), program(False), (x, later), **options)


def test_angles() -> None:
    """A guide over a full turn is right wherever it begins; half a turn is told. So are bounded bases."""
    model, exact = pair(lambda x: dist.VonMises(0.0, 1.0), lambda x: dist.VonMises(0 * x, 1.0))
    turn = pair(lambda x: dist.VonMises(0.0, 1.0), lambda x: dist.Uniform(0 * x, 2 * math.pi))[1]
    half = pair(lambda x: dist.VonMises(0.0, 1.0), lambda x: dist.Uniform(0 * x, math.pi))[1]
    x = torch.randn(5)
    for guide in (exact, turn):
        assert not [p for p in check(model, guide, x).problems if p.site == "z"]
    assert [p.severity for p in check(model, half, x).problems if p.site == "z"] == ["warning"]

    def shrunk(x: Tensor) -> Any:
        base = dist.Beta(2.0 + 0 * x, 2.0)
        return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 0.5)])

    model, guide = pair(lambda x: dist.Beta(1.0, 1.0), shrunk)
    assert not [p for p in check(model, guide, x).problems if p.site == "z"]


# -- draws that only later rows have outside of the support -----------------------------------------------

LATER = torch.cat([torch.full((70,), 9.0), torch.zeros(30)])
"""The first 70 rows have draws inside."""


def from_interval(x: Tensor) -> Any:
    return dist.Uniform(x - 3, x + 3)


@pytest.mark.filterwarnings("ignore:.*the guide draws numbers")
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("kind", ["interval", "point of a draw"])
@pytest.mark.parametrize("run", [evaluate, fit])
def test_draws_outside_in_later_rows_are_refused(run: Any, kind: str, validates: bool) -> None:
    model, guide = pair(lambda x: dist.Exponential(1.0), from_interval)
    if kind != "interval":

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(x - 0.5, 0.1))
                pyro.sample("z", dist.Delta(u))

    options: dict[str, Any] = {"num_samples": 5}
    if run is fit:
        options = {"batch_size": 50, "max_epochs": 1, "objective": TraceELBO()}
    for rows, start in ((LATER, 70), (LATER[:70], None)):
        with pyro.validation_enabled(validates):
            if start is None:
                run(model, guide, rows, seed=0, **options)
                continue
            with pytest.raises(PairError, match="outside of") as caught:
                run(model, guide, rows, seed=0, **options)
        assert str(caught.value).startswith("row ")
        assert 70 <= int(str(caught.value).split()[1]) < 100


def exponential(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.filterwarnings("ignore:.*the guide draws numbers")
@pytest.mark.parametrize("objective", [TraceELBO(), None])
def test_draws_that_leave_the_support_while_training_are_refused(objective: Any) -> None:
    """The guide's lower end is a parameter, which a step moves to negative numbers."""

    def guide(x: Tensor) -> None:
        low = pyro.param("low", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(low + 0 * x, low + 2))

    words = (
        "of a batch" if objective else "KL of 'z' is infinite: the guide draws where the prior is 0"
    )
    with pytest.raises(PairError if objective else DivergenceError, match=words):
        fit(
            exponential,
            guide,
            torch.zeros(50),
            objective=objective,
            learning_rate=0.3,
            batch_size=25,
            max_epochs=1,
            seed=0,
        )


def test_a_recording_gives_no_weight_to_draws_outside() -> None:
    """Half of the draws are where the prior is 0; the others have the weight p(x, z) / (1 / 2)."""

    def guide(low: float) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(low + 0 * x, 1 + 0 * x))

        return run

    x = torch.zeros(4)
    pair = Pair(exponential, guide(-1.0))
    with pair.scope(), torch.no_grad():
        layout = find_layout(Pair(exponential, guide(0.0)), x)

        def weigh(rows: Tensor) -> tuple[Tensor, ...]:
            drawn = sample_rows(pair, layout, rows, 1000)
            return drawn.log_weights, drawn.latents["z"]

        log_weights, z = record(pair, weigh, [x])(x)
    exact = -z - (x - z) ** 2 / 2 - math.log(2 * math.pi) / 2 + math.log(2)
    torch.testing.assert_close(log_weights, exact.masked_fill(z < 0, -math.inf))
    assert bool((z < 0).any())
