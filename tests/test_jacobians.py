"""Latents that a guide computes from draws of its own need the density of these; what lacks it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoStructured,
)
from pyro.infer.autoguide.effect import AutoHierarchicalNormalMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_vae import check, diagnose, evaluate, fit
from ppl_vae.checks import PairWarning, Problem
from ppl_vae.objectives import TraceELBO
from ppl_vae.pairs import Pair, PairError, Program, find_layout

AUXILIARY: Any = {"is_auxiliary": True}


def found(model: Program, guide: Program, x: Tensor) -> list[Problem]:
    """What `check` says of Deltas."""
    problems = check(model, guide, x, objective=TraceELBO()).problems
    return [p for p in problems if "the guide computes" in p.message]


def draw(x: Tensor, *shape: int, name: str = "u") -> Tensor:
    fn = dist.Normal(x.new_zeros(len(x), *shape), 1.0).to_event(len(shape))
    value: Tensor = pyro.sample(name, fn, infer=AUXILIARY)
    return value


def in_plate(body: Callable[[Tensor], Any]) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            body(x)

    return guide


def with_prior(**priors: Any) -> Program:
    """A model whose latents have these priors; x ~ N(their sum, 1)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = [pyro.sample(name, fn) for name, fn in priors.items()]
            mean = sum(v if v.dim() == 1 else v.flatten(1).sum(-1) for v in z)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return model


# -- the exact posterior as a function of a draw ---------------------------------------------------------


def of_a_logarithm(x: Tensor) -> None:
    """log z ~ N(0, 1), x ~ N(log z, 1): then x ~ N(0, 2), and log z | x ~ N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)


def exponential(share: float | None) -> Program:
    """z = exp(u), whose `log_density` is -u; here a share of it."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            q = dist.Normal(loc + x / 2, 0.5**0.5)
            u = pyro.sample("u", q, infer=AUXILIARY)
            given = {} if share is None else {"log_density": -share * u}
            pyro.sample("z", dist.Delta(u.exp(), **given))

    return guide


def test_with_its_density_a_function_of_a_draw_is_exact() -> None:
    x = torch.randn(30)
    assert not found(of_a_logarithm, exponential(1.0), x)
    result = evaluate(of_a_logarithm, exponential(1.0), x, num_samples=10)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(result.log_likelihood.values, exact, atol=1e-5, rtol=0)
    assert not result.warnings


@pytest.mark.parametrize("run", [evaluate, diagnose, fit])
def test_without_its_density_it_is_refused(run: Callable[..., Any]) -> None:
    x = torch.randn(30)
    (problem,) = found(of_a_logarithm, exponential(None), x)
    assert (problem.severity, problem.site) == ("error", "z")
    assert "the guide computes 'z' from its draw 'u', but the Delta has no log_d" in problem.message
    assert "dist.Delta(..., log_density=-log|det dz/du|)" in problem.message
    with pytest.raises(PairError, match=r"log_density=-log\|det dz/du\|"):
        run(of_a_logarithm, exponential(None), x)


def test_with_another_density_it_is_told() -> None:
    """By how much: -u / 2 stands for -u, so that log q is too high by u / 2."""
    x = 10 + torch.rand(30)  # u = 5 or so
    (problem,) = found(of_a_logarithm, exponential(0.5), x)
    assert problem.severity == "warning"
    assert "does not have the log_density -log|det dz/du|: log q(z | x) is too high by" in str(
        problem
    )
    assert 2 < float(problem.message.split(" nats")[0].split()[-1]) < 5
    result = evaluate(of_a_logarithm, exponential(0.5), x, num_samples=10)
    assert "does not have the log_density" in result.warnings[0]
    with pytest.warns(PairWarning, match="does not have the log_density"):
        fit(of_a_logarithm, exponential(0.5), x, objective=TraceELBO(), max_epochs=1)


# -- other functions ---------------------------------------------------------------------------------------


def scaled_part(x: Tensor) -> None:
    u = draw(x, 4)
    pyro.sample("z", dist.Delta(u[..., :2], event_dim=1))
    pyro.sample("w", dist.Delta(3 * u[..., 2:], event_dim=1))


def two_draws(x: Tensor) -> None:
    both = torch.cat([draw(x, 1), 2 * draw(x, 2, name="v")], -1)
    pyro.sample("z", dist.Delta(both, event_dim=1))


def linear(x: Tensor) -> None:
    matrix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    pyro.sample("z", dist.Delta(draw(x, 3) @ matrix, event_dim=1))


def softmax(x: Tensor) -> None:
    u = nn.functional.pad(draw(x, 2), (0, 1))
    pyro.sample("z", dist.Delta(u.softmax(-1), event_dim=1))


def through_another(x: Tensor) -> None:
    h = pyro.sample("h", dist.Delta(draw(x)), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(2 * h))


def positive(x: Tensor) -> None:
    """Of a draw u > 0, |2 u| is one-to-one."""
    u: Tensor = pyro.sample("u", dist.LogNormal(x * 0, 1.0), infer=AUXILIARY)
    pyro.sample("z", dist.Delta((2 * u).abs()))


def beside_an_observed_site(x: Tensor) -> None:
    """What a guide observes holds no Jacobian."""
    u = draw(x)
    pyro.sample("z", dist.Delta(2 * u))
    pyro.sample("y", dist.Normal(u, 1.0), obs=x)


NUMBER = dist.Normal(0.0, 1.0)
PAIR = dist.Normal(torch.zeros(2), 1.0).to_event(1)
TRIPLE = dist.Normal(torch.zeros(3), 1.0).to_event(1)

WRONG: dict[str, tuple[Program, Callable[[Tensor], None], str]] = {
    "part": (with_prior(z=PAIR, w=PAIR), scaled_part, "'w' from its draw 'u'"),
    "two draws": (with_prior(z=TRIPLE), two_draws, "-log|det dz/d(u, v)|"),
    "linear": (with_prior(z=TRIPLE), linear, "too high by 0.693 nats"),  # log 2
    "softmax": (with_prior(z=dist.Dirichlet(torch.ones(3))), softmax, "-log|det dz/du|"),
    "another": (with_prior(z=NUMBER), through_another, "'z' from its draw 'u'"),
    "positive": (with_prior(z=dist.HalfNormal(1.0)), positive, "too high by 0.693 nats"),
    "observed": (with_prior(z=NUMBER), beside_an_observed_site, "too high by 0.693 nats"),
}


@pytest.mark.parametrize("case", WRONG)
def test_functions_without_their_density(case: str) -> None:
    model, body, words = WRONG[case]
    (problem,) = found(model, in_plate(body), torch.randn(10))
    assert problem.severity == "error"
    assert words in problem.message


class FalseGradient(torch.autograd.Function):
    """The identity, whose gradient is a tenth of what it is."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 0.1 * grad


def parts_of_a_draw(x: Tensor) -> None:
    u = draw(x, 4)
    pyro.sample("z", dist.Delta(u[..., :2], event_dim=1))
    pyro.sample("w", dist.Delta(u[..., 2:].flip(-1) + u[..., :2] ** 2, event_dim=1))


def right_linear(x: Tensor) -> None:
    matrix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    density = torch.full((len(x),), -math.log(2))
    pyro.sample("z", dist.Delta(draw(x, 3) @ matrix, density, event_dim=1))


def in_a_factor(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(2 * draw(x)))
    pyro.factor("jacobian", torch.full((len(x),), -math.log(2)), has_rsample=True)


def in_a_factor_in_part(x: Tensor) -> None:
    """One Delta has its density, the other one has it in a factor, and a third is a point."""
    u = draw(x, 2)
    log_two = torch.full((len(x),), math.log(2))
    pyro.sample("z", dist.Delta(2 * u[..., 0], log_density=-log_two))
    pyro.sample("w", dist.Delta(4 * u[..., 1]))
    pyro.sample("t", dist.Delta(x))
    pyro.factor("jacobian", -2 * log_two, has_rsample=True)


def in_factors_of_parts(x: Tensor) -> None:
    """Four numbers of a row in a plate of their own, with one factor each and one for the row."""
    with pyro.plate("part", 4, dim=-2):
        u = pyro.sample("u", dist.Normal(x.new_zeros(4, len(x)), 1.0), infer=AUXILIARY)
        pyro.sample("z", dist.Delta((2 * u).exp()))
        pyro.factor("some", -2 * u, has_rsample=True)
    pyro.factor("rest", torch.full((len(x),), -4 * math.log(2)), has_rsample=True)


def in_parts(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with pyro.plate("part", 4, dim=-2):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)


def folded(x: Tensor) -> None:
    """|u| has the densities of u and -u, number by number."""
    u: Tensor = pyro.sample(
        "u", dist.Normal(x[:, None] + torch.ones(2), 1.0).to_event(1), infer=AUXILIARY
    )
    mean = (x[:, None] + torch.ones(2)).expand_as(u)
    pyro.sample("z", dist.Delta(u.abs(), (1 + (-2 * mean * u).exp()).log().sum(-1), event_dim=1))


def folded_in_a_factor(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(draw(x).abs()))
    pyro.factor("fold", torch.full((len(x),), math.log(2)), has_rsample=True)


def far_from_the_fold(x: Tensor) -> None:
    u: Tensor = pyro.sample("u", dist.Normal(0 * x + 10, 0.1), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(u.abs()))


def masked_model(x: Tensor) -> None:
    nothing: Any = torch.zeros(len(x), dtype=torch.bool)
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=nothing):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def masked(x: Tensor) -> None:
    nothing: Any = torch.zeros(len(x), dtype=torch.bool)
    with poutine.mask(mask=nothing):
        pyro.sample("z", dist.Delta(2 * draw(x)))


def deterministic(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
    pyro.deterministic("twice", 2 * z)


def saturated(x: Tensor) -> None:
    """Numbers so close to 1 that autograd's derivative is one of rounded numbers."""
    u = 16 + 0.1 * draw(x)
    log_density = nn.functional.softplus(u) + nn.functional.softplus(-u) - math.log(0.1)
    pyro.sample("z", dist.Delta(u.sigmoid(), log_density))


RIGHT: dict[str, tuple[Program, Callable[[Tensor], Any]]] = {
    "parts": (with_prior(z=PAIR, w=PAIR), parts_of_a_draw),
    "linear": (with_prior(z=TRIPLE), right_linear),
    "factor": (with_prior(z=NUMBER), in_a_factor),
    "factor in part": (with_prior(z=NUMBER, w=NUMBER, t=NUMBER), in_a_factor_in_part),
    "factors of parts": (in_parts, in_factors_of_parts),
    "folded": (with_prior(z=dist.HalfNormal(torch.ones(2)).to_event(1)), folded),
    "folded in a factor": (with_prior(z=dist.HalfNormal(1.0)), folded_in_a_factor),
    "far from the fold": (with_prior(z=dist.HalfNormal(1.0)), far_from_the_fold),
    "masked": (masked_model, masked),
    "deterministic": (with_prior(z=NUMBER), deterministic),
    "saturated": (with_prior(z=dist.Beta(2.0, 2.0)), saturated),
    "point": (with_prior(z=NUMBER), lambda x: pyro.sample("z", dist.Delta(2 * x))),
    "straight through": (
        with_prior(z=NUMBER),
        lambda x: pyro.sample("z", dist.Delta(FalseGradient.apply(draw(x)))),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_no_alarm(case: str) -> None:
    model, body = RIGHT[case]
    assert not found(model, in_plate(body), torch.randn(10))


# -- functions that are not one-to-one ---------------------------------------------------------------------


def pair_of_signs(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(draw(x, 2).abs(), event_dim=1))


def turned(x: Tensor) -> None:
    """An angle that is wrapped, of a wide draw."""
    u: Tensor = pyro.sample("u", dist.Normal(0 * x, 3.0), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(torch.atan2(u.sin(), u.cos())))


HALF = dist.HalfNormal(torch.ones(2)).to_event(1)

NOT_ONE_TO_ONE: dict[str, tuple[Program, Callable[[Tensor], Any], float | None]] = {
    "even": (
        with_prior(z=dist.HalfNormal(1.0)),
        lambda x: pyro.sample("z", dist.Delta(draw(x).abs())),
        1,
    ),
    "even, two numbers": (with_prior(z=HALF), pair_of_signs, 2),
    "periodic": (with_prior(z=dist.VonMises(0.0, 1.0)), turned, None),
}


@pytest.mark.parametrize("case", NOT_ONE_TO_ONE)
def test_draws_with_the_same_latents(case: str) -> None:
    """A standard normal has log q(|z|) = log q(u) + log 2 per number."""
    model, body, twos = NOT_ONE_TO_ONE[case]
    (problem,) = found(model, in_plate(body), torch.randn(10))
    assert (problem.severity, problem.site) == ("warning", "z")
    assert "other values of 'u' give the same 'z'" in problem.message
    if twos is not None:
        assert f"too low by {twos * math.log(2):.3g} nats" in problem.message


def of_a_draw(
    f: Callable[[Tensor], Tensor], log_density: Callable[[Tensor], Tensor], *shape: int
) -> Callable[[Tensor], Any]:
    def body(x: Tensor) -> None:
        u = draw(x, *shape)
        pyro.sample("z", dist.Delta(f(u), log_density(u), event_dim=len(shape)))

    return body


def product_and_sum(u: Tensor) -> Tensor:
    """The same for (a, b) and (b, a); its determinant is a - b."""
    return torch.stack([u.prod(-1), u.sum(-1)], -1)


def one_parabola(u: Tensor) -> Tensor:
    return torch.stack([(u[..., 0] - 1) ** 2, 2 * u[..., 1]], -1)


TURNING: dict[str, tuple[Program, Callable[[Tensor], Any]]] = {
    "parabola": (
        with_prior(z=dist.HalfNormal(1.0)),
        of_a_draw(lambda u: (u - 1) ** 2, lambda u: -(2 * (u - 1)).abs().log()),
    ),
    "cubic": (
        with_prior(z=NUMBER),
        of_a_draw(lambda u: u**3 - u, lambda u: -(3 * u**2 - 1).abs().log()),
    ),
    "one of two numbers": (
        with_prior(z=PAIR),
        of_a_draw(one_parabola, lambda u: -(4 * (u[..., 0] - 1)).abs().log(), 2),
    ),
    "two numbers together": (
        with_prior(z=PAIR),
        of_a_draw(product_and_sum, lambda u: -(u[..., 0] - u[..., 1]).abs().log(), 2),
    ),
    "sorted": (
        with_prior(z=TRIPLE),
        of_a_draw(lambda u: u.sort(-1)[0], lambda u: 0 * u.sum(-1), 3),
    ),
}


@pytest.mark.parametrize("case", TURNING)
def test_determinants_that_change_their_sign(case: str) -> None:
    """The `log_density` is -log|det| of each draw, and other draws give the same latents."""
    model, body = TURNING[case]
    (problem,) = found(model, in_plate(body), torch.randn(10))
    assert (problem.severity, problem.site) == ("warning", "z")
    assert "other values of 'u' give the same 'z', as its derivative changes its sign" in str(
        problem
    )


FLAT: dict[str, tuple[Program, Callable[[Tensor], Any]]] = {
    "relu": (with_prior(z=NUMBER), of_a_draw(torch.relu, lambda u: 0 * u)),
    "clamp": (
        with_prior(z=PAIR),
        of_a_draw(lambda u: 2 * u.clamp(-1, 1), lambda u: 0 * u.sum(-1) - math.log(4), 2),
    ),
}


@pytest.mark.parametrize("case", FLAT)
def test_functions_that_are_flat_have_no_density(case: str) -> None:
    model, body = FLAT[case]
    (problem,) = found(model, in_plate(body), torch.randn(10))
    assert (problem.severity, problem.site) == ("error", "z")
    assert "'u', which has no influence for some of its values" in problem.message
    with pytest.raises(PairError, match=r"q\(z | x\) has no density there"):
        evaluate(model, in_plate(body), torch.randn(10))


def tanh_density(u: Tensor) -> Tensor:
    """-log of the derivative of tanh(6 u), by a formula that does not round."""
    return -math.log(6) - 2 * (math.log(2) - 6 * u - nn.functional.softplus(-12 * u))


ONE_TO_ONE: dict[str, tuple[Program, Callable[[Tensor], Any]]] = {
    "saturated": (
        with_prior(z=dist.Uniform(-1.0, 1.0)),
        of_a_draw(lambda u: (6 * u).tanh(), tanh_density),
    ),
    "underflow": (
        with_prior(z=dist.HalfNormal(1.0)),
        of_a_draw(lambda u: (60 * u).exp(), lambda u: -60 * u - math.log(60)),
    ),
    "far from its ends": (
        with_prior(z=NUMBER),
        of_a_draw(lambda u: u.clamp(-20, 20), lambda u: 0 * u),
    ),
    "jump": (  # onto u > 0 and -1 < z < 0: decreasing on one side, one-to-one on both
        with_prior(z=NUMBER),
        of_a_draw(
            lambda u: torch.where(u > 0, u, -u.exp()), lambda u: torch.where(u > 0, 0 * u, -u)
        ),
    ),
    "corner": (
        with_prior(z=NUMBER),
        of_a_draw(
            lambda u: nn.functional.leaky_relu(u, 0.2),
            lambda u: torch.where(u > 0, 0 * u, 0 * u - math.log(0.2)),
        ),
    ),
    "rotation": (
        with_prior(z=PAIR),
        of_a_draw(lambda u: torch.stack([u[..., 1], -u[..., 0]], -1), lambda u: 0 * u.sum(-1), 2),
    ),
}


@pytest.mark.parametrize("case", ONE_TO_ONE)
def test_one_to_one_functions_are_no_alarm(case: str) -> None:
    model, body = ONE_TO_ONE[case]
    assert not found(model, in_plate(body), torch.randn(10))


# -- factors -----------------------------------------------------------------------------------------------


def half_a_factor(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(4 * draw(x)))
    pyro.factor("more", torch.full((len(x),), 3 - math.log(4)), has_rsample=True)


def test_a_factor_that_is_no_jacobian_is_told() -> None:
    model = with_prior(z=NUMBER)
    (problem,) = found(model, in_plate(half_a_factor), torch.randn(10))
    assert (problem.severity, problem.site) == ("warning", "z")
    assert "pyro.factor 'more' counts as one" in problem.message
    assert "too high by 3 nats" in problem.message


def posterior(
    scale: float, *factors: float, beside: bool = False, outside: bool = False
) -> Program:
    """z = (u - 1) / scale + 1 ~ N(x / 2, 1/2), and w = 3 v ~ N(0, 1) `beside` it; with factors of rows."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Normal(1 + (x / 2 - 1) * scale, 0.5**0.5 * scale)
            u = pyro.sample("u", q, infer=AUXILIARY)
            pyro.sample("z", dist.Delta((u - 1) / scale + 1))
            if beside:
                v = pyro.sample("v", dist.Normal(0 * x, 1 / 3), infer=AUXILIARY)
                pyro.sample("w", dist.Delta(3 * v))
            for i, value in enumerate(factors):
                pyro.factor(f"factor_{i}", torch.full((len(x),), value), has_rsample=True)
        if outside:
            pyro.factor("all", torch.tensor(len(x) * math.log(scale)), has_rsample=True)

    return guide


def normal(beside: bool) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NUMBER)
            if beside:
                pyro.sample("w", NUMBER)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


LOG_3 = math.log(3)


@pytest.mark.parametrize(
    ("guide", "beside", "counts"),
    [
        (posterior(1.0, 2.5), False, []),  # right by itself: z = u
        (posterior(1.0, 0.0, 2.5), False, [0]),  # a factor of 0 may be a Jacobian elsewhere
        (posterior(2.0, math.log(2), 2.5), False, [0]),
        (posterior(1.0, -LOG_3, beside=True), True, [0]),  # another Delta needs it
        (posterior(1.0, 2.5, -LOG_3, beside=True), True, [1]),
        (posterior(2.0, math.log(2), 2.5, -LOG_3, beside=True), True, [0, 2]),
    ],
)
def test_only_the_factors_that_are_jacobians_count(
    guide: Program, beside: bool, counts: list[int]
) -> None:
    """Each guide is the exact posterior, whose every weight is p(x) = N(x; 0, 2)."""
    x, model = torch.randn(10), normal(beside)
    assert not found(model, guide, x)
    pair = Pair(model, guide)
    with pair.scope():
        assert find_layout(pair, x).factors == tuple(f"factor_{i}" for i in counts)
    result = evaluate(model, guide, x, num_samples=3)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(result.log_likelihood.values, exact, atol=1e-5, rtol=0)
    assert not result.warnings


@pytest.mark.filterwarnings("ignore:the pair has no")
def test_a_factor_that_does_not_count_is_no_disagreement_of_loss_and_elbo() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(loc + x / 2, 0.5**0.5), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(u + 1))
            pyro.factor("more", torch.full((len(x),), 2.5), has_rsample=True)

    fitted = fit(normal(False), guide, torch.randn(10), max_epochs=25, capture=False)
    assert not fitted.warnings


def test_a_jacobian_of_all_rows_in_one_factor_is_told() -> None:
    """log q(z | x) of each row leaves out log 2."""
    x, guide = torch.randn(10), posterior(2.0, outside=True)
    (problem,) = found(normal(False), guide, x)
    assert (problem.severity, problem.site) == ("warning", "z")
    assert "pyro.factor 'all' holds -log|det dz/du| of all rows at once" in problem.message
    assert "too low by 0.693 nats" in problem.message
    result = evaluate(normal(False), guide, x, num_samples=3)
    assert problem.message in result.warnings
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    off = result.log_likelihood.values - exact
    torch.testing.assert_close(off, torch.full_like(off, math.log(2)), atol=1e-5, rtol=0)


# -- autoguides write the Jacobian ---------------------------------------------------------------------------

CONSTRAINED = {
    "z": dist.LogNormal(0.0, 1.0),
    "w": TRIPLE,
    "s": dist.Dirichlet(torch.ones(4)),
    "b": dist.Beta(2.0, 2.0),
    "i": dist.Uniform(-3.0, 5.0),
    "l": dist.LKJCholesky(3, 1.0),
}


def of_all_rows(x: Tensor) -> None:
    z = [pyro.sample(name, fn) for name, fn in CONSTRAINED.items()]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(sum(v.sum() for v in z), 1.0), obs=x)


def hierarchical(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NUMBER)
        w = pyro.sample("w", dist.LogNormal(z, 1.0))
        pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)


def listed(model: Program) -> Any:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["z", "s"])))
    guide.append(AutoDelta(poutine.block(model, expose=["b"])))
    guide.append(AutoLowRankMultivariateNormal(poutine.block(model, hide=["z", "s", "b"])))
    return guide


AUTOGUIDES: dict[str, tuple[Program, Callable[[Program], Any]]] = {
    "AutoNormal of rows": (with_prior(**CONSTRAINED), AutoNormal),
    "saturated": (with_prior(**CONSTRAINED), lambda model: AutoNormal(model, init_scale=20.0)),
    "AutoNormal": (of_all_rows, AutoNormal),
    "AutoHierarchicalNormal": (hierarchical, AutoHierarchicalNormalMessenger),
    "AutoLowRankMultivariateNormal": (of_all_rows, AutoLowRankMultivariateNormal),
    "AutoMultivariateNormal": (of_all_rows, AutoMultivariateNormal),
    "AutoIAFNormal": (of_all_rows, AutoIAFNormal),
    "AutoNormalizingFlow": (of_all_rows, lambda m: AutoNormalizingFlow(m, affine_autoregressive)),
    "AutoGaussian": (of_all_rows, AutoGaussian),
    "AutoStructured": (
        of_all_rows,
        lambda m: AutoStructured(m, conditionals="mvn", dependencies="linear"),
    ),
    "AutoDelta": (of_all_rows, AutoDelta),
    "AutoGuideList": (of_all_rows, listed),
}


class ScaleDensities(Messenger):
    """Multiplies the `log_density` of Deltas."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], dist.Delta):
            fn = msg["fn"]
            msg["fn"] = dist.Delta(fn.v, self.factor * fn.log_density, fn.event_dim)


@pytest.mark.slow(only=("AutoNormal of rows",))
@pytest.mark.parametrize("name", AUTOGUIDES)
def test_autoguides(name: str) -> None:
    """There is no alarm; and there is one for all constrained latents if their densities are changed."""
    model, make = AUTOGUIDES[name]
    x = torch.randn(6)
    guide = make(model)
    with pyro.get_param_store().scope():
        guide(x)
    assert not found(model, guide, x)
    if name in ("AutoDelta", "AutoHierarchicalNormal", "saturated"):
        return
    for factor, severity in ((0.0, "error"), (0.5, "warning")):
        problems = found(model, ScaleDensities(factor)(guide), x)
        sites = {p.site for p in problems if p.severity == severity}
        assert sites >= {"z", "s", "i", "l"} - ({"b"} if name == "AutoGuideList" else set())


# -- other numbers than were drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        lambda x: draw(x, name="b"),
        lambda x: pyro.sample("b", dist.Bernoulli(0.5 + 0 * x), infer=AUXILIARY),
    ],
)
def test_a_latent_of_two_draws_is_refused(other: Callable[[Tensor], Tensor]) -> None:
    """Each draw alone has as many numbers as the latent, both together do not."""
    guide = in_plate(lambda x: pyro.sample("z", dist.Delta(draw(x) + other(x))))
    with pytest.raises(PairError, match="computes 10 numbers of latents from the 20 of 'u', 'b'"):
        evaluate(with_prior(z=NUMBER), guide, torch.randn(10))


def test_a_softmax_of_all_numbers_is_refused() -> None:
    """Three numbers of a simplex have two degrees of freedom."""
    guide = in_plate(lambda x: pyro.sample("z", dist.Delta(draw(x, 3).softmax(-1), event_dim=1)))
    with pytest.raises(PairError, match="computes 20 numbers of latents from the 30 of 'u'"):
        evaluate(with_prior(z=dist.Dirichlet(torch.ones(3))), guide, torch.randn(10))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: [pyro.sample(name, dist.Delta(z)) for z in [draw(x)] for name in "zw"],
        lambda x: pyro.sample("w", dist.Delta(2 * pyro.sample("z", dist.Normal(0 * x, 1.0)))),
    ],
)
def test_more_latents_than_draws_have_no_log_p(body: Callable[[Tensor], Any]) -> None:
    """w = f(z): all draws lie on a curve, on which p(z, w) has no density."""
    result = evaluate(with_prior(z=NUMBER, w=NUMBER), in_plate(body), torch.randn(10))
    assert ("log p(x)", "not defined") in result.lines()
    assert "the guide gives a point for 'w'" in result.warnings[0]


def test_a_point_of_the_model_needs_no_density() -> None:
    """z ~ N(0, 1), w = 2 z, x ~ N(z + w, 1) = N(3 z, 1): then x ~ N(0, 10)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NUMBER)
            w = pyro.sample("w", dist.Delta(2 * z))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x: Tensor) -> None:  # the exact posterior
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3 * x, 0.1**0.5))
            pyro.sample("w", dist.Delta(2 * z))

    x = torch.randn(10)
    result = evaluate(model, guide, x, num_samples=5)
    exact = dist.Normal(0.0, 10**0.5).log_prob(x)
    torch.testing.assert_close(result.log_likelihood.values, exact, atol=1e-4, rtol=0)


# -- many numbers, and functions that autograd does not follow -------------------------------------------------


def of_logarithms(count: int) -> Program:
    """log z_i ~ N(0, 1), x ~ N(log z_1, 1): then x ~ N(0, 2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(count), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0].log(), 1.0), obs=x)

    return model


def of_numbers(count: int) -> Program:
    """z_i ~ N(0, 1), x ~ N(z_1, 1): then x ~ N(0, 2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(count), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    return model


def of_many(
    count: int, f: Callable[[Tensor], Tensor], log_density: Callable[[Tensor], Tensor]
) -> Program:
    """z = f(u), where u_1 | x ~ N(x / 2, 1 / 2) and the others are N(0, 1)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = nn.functional.pad(x[:, None] / 2, (0, count - 1))
            scale = nn.functional.pad(torch.tensor([0.5**0.5]), (0, count - 1), value=1.0)
            u = pyro.sample("u", dist.Normal(loc, scale).to_event(1), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(f(u), log_density(u), event_dim=1))

    return guide


def nothing(u: Tensor) -> Tensor:
    return u.new_zeros(u.shape[:-1])


def coupled(u: Tensor) -> Tensor:
    """The first number stays, and each other one is moved by the one before it and doubled."""
    return torch.cat([u[..., :1], 2 * u[..., 1:] - u[..., :-1]], -1)


def turned_around(u: Tensor) -> Tensor:
    return u.flip(-1).exp().flip(-1)


MANY: dict[str, tuple[Program, int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "each alone": (of_logarithms(300), 300, torch.exp, lambda u: -u.sum(-1)),
    "turned around": (of_logarithms(300), 300, turned_around, lambda u: -u.sum(-1)),
    "image": (of_logarithms(3072), 3072, torch.exp, lambda u: -u.sum(-1)),
}


@pytest.mark.parametrize("case", MANY)
def test_many_numbers_of_one_draw_each(case: str) -> None:
    """The exact posterior: every weight is p(x). Without `log_density` it is refused, at any size."""
    model, count, f, log_density = MANY[case]
    x = torch.randn(5)
    right, wrong = (of_many(count, f, d) for d in (log_density, nothing))
    assert not found(model, right, x)
    result = evaluate(model, right, x, num_samples=5)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(result.log_likelihood.values, exact, atol=2e-2, rtol=0)
    assert not result.cautions
    (problem,) = found(model, wrong, x)
    assert (problem.severity, problem.site) == ("error", "z")
    assert "has no log_density" in problem.message
    with pytest.raises(PairError, match=r"log_density=-log\|det dz/du\|"):
        evaluate(model, wrong, x)


def test_many_numbers_that_depend_on_one_another() -> None:
    """The determinant of a triangular function is 2 ** 299."""
    x, log_det = torch.randn(5), 299 * math.log(2)
    right = of_many(300, coupled, lambda u: nothing(u) - log_det)
    assert not found(of_numbers(300), right, x)
    (problem,) = found(of_numbers(300), of_many(300, coupled, nothing), x)
    assert problem.severity == "error"
    assert f"too high by {log_det:.3g} nats" in problem.message
    close = of_many(300, coupled, lambda u: nothing(u) - log_det + 1)
    (problem,) = found(of_numbers(300), close, x)
    assert (problem.severity, "too high by 1 nats" in problem.message) == ("warning", True)


@pytest.mark.parametrize("count", [1, 300])
def test_what_autograd_does_not_follow(count: int) -> None:
    """Small steps decide for a few draws. Of many, a caution says that nothing is known: log p(x) is off."""
    x, exact = torch.randn(5), dist.Normal(0.0, 2**0.5)

    def detached(u: Tensor) -> Tensor:
        return (u / 10).detach()

    def tenfold(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = nn.functional.pad(x[:, None] / 2, (0, count - 1))
            scale = nn.functional.pad(torch.tensor([0.5**0.5]), (0, count - 1), value=1.0)
            q = dist.Normal(10 * loc, 10 * scale).to_event(1)
            u = pyro.sample("u", q, infer=AUXILIARY)
            pyro.sample("z", dist.Delta(detached(u), given * torch.ones(len(x)), event_dim=1))

    model, given = of_numbers(count), 0.0
    problems = found(model, tenfold, x)
    assert [p.site for p in problems] == ["z"]
    if count == 1:
        assert problems[0].severity == "error"
        assert "too low by 2.3 nats" in problems[0].message
    else:
        result = evaluate(model, tenfold, x, num_samples=5)
        off = result.log_likelihood.values - exact.log_prob(x)
        torch.testing.assert_close(
            off, torch.full_like(off, count * math.log(10)), atol=0.01, rtol=0
        )
        (caution,) = result.cautions
        assert caution == problems[0].message
        assert "it is not known whether the log_density of 'z' is right" in caution
    given = count * math.log(10)
    result = evaluate(model, tenfold, x, num_samples=5)
    torch.testing.assert_close(result.log_likelihood.values, exact.log_prob(x), atol=1e-3, rtol=0)
    assert len(result.cautions) == (count > 1)


UNKNOWN: dict[str, tuple[Program, Callable[[Tensor], Any], str]] = {
    "rounded": (
        with_prior(z=PAIR),
        of_a_draw(lambda u: u.round(), nothing, 2),
        "autograd does not follow the function",
    ),
    "on a line": (
        with_prior(z=PAIR),
        of_a_draw(lambda u: u.sum(-1, keepdim=True) * torch.tensor([1.0, 2.0]), nothing, 2),
        "the determinant of dz/du is 0",
    ),
    "of one number": (
        with_prior(z=PAIR),
        of_a_draw(lambda u: torch.stack([u[..., 0], u[..., 0].exp()], -1), nothing, 2),
        "not as many of its numbers as draws",
    ),
    "many": (
        of_numbers(3000),
        of_a_draw(lambda u: u.cumsum(-1), nothing, 3000),
        "more than 2048 of its numbers depend on the same draws",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_told(case: str) -> None:
    model, body, words = UNKNOWN[case]
    (problem,) = found(model, in_plate(body), torch.randn(5))
    assert (problem.severity, problem.site) == ("warning", "z")
    assert "it is not known whether the log_density of 'z' is right" in problem.message
    assert words in problem.message


def test_draws_that_cannot_be_moved_one_by_one() -> None:
    """Two numbers of a simplex, doubled; and a latent computed from another Delta with a density."""

    def of_a_simplex(x: Tensor) -> None:
        u = pyro.sample("u", dist.Dirichlet(torch.ones(len(x), 3)), infer=AUXILIARY)
        pyro.sample("z", dist.Delta(2 * u[..., :2], event_dim=1))

    def of_another(x: Tensor) -> None:
        u = draw(x)
        h = pyro.sample("h", dist.Delta(2 * u, log_density=0 * u + 1.0), infer=AUXILIARY)
        pyro.sample("z", dist.Delta(2 * h))

    for body, prior in ((of_a_simplex, PAIR), (of_another, NUMBER)):
        (problem,) = found(with_prior(z=prior), in_plate(body), torch.randn(5))
        assert "it is not known whether" in problem.message


def test_points_and_latents_that_are_absent_are_no_alarm() -> None:
    """A point beside a draw, an observed Delta, and a masked function that autograd does not follow."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z, t = pyro.sample("z", NUMBER), pyro.sample("t", NUMBER)
            with poutine.mask(mask=False):
                pyro.sample("w", NUMBER)
            pyro.sample("y", dist.Delta(2 * x), obs=2 * x)
            pyro.sample("x", dist.Normal(z + t, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        u = draw(x, 2)
        pyro.sample("z", dist.Delta(2 * u[..., 0], log_density=-math.log(2) + 0 * x))
        pyro.sample("t", dist.Delta(x))
        with poutine.mask(mask=False):
            pyro.sample("w", dist.Delta(u[..., 1].round()))

    assert not found(model, in_plate(guide), torch.randn(5))


@pytest.mark.parametrize(
    "make", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
)
def test_autoguides_of_many_numbers(make: Callable[[Program], Any]) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.LogNormal(torch.zeros(300), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.log().sum(), 1.0), obs=x)

    guide = make(model)
    x = torch.randn(6)
    with pyro.get_param_store().scope():
        guide(x)
    assert not found(model, guide, x)
    (problem,) = found(model, ScaleDensities(0.5)(guide), x)
    assert "does not have the log_density" in problem.message
