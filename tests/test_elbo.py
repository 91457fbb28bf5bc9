"""The ELBOs against hand-derived gradients, enumeration and closed forms, and which of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.poutine as poutine
import pytest
import torch
from programs import (
    LOG_2PI,
    WEIGHTS,
    Conjugate,
    own_store,
    run,
    with_global,
    with_global_guide,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppl_vae.guides import FullCovariance
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    MeanFieldELBO,
    Objective,
    ScoreFunctionELBO,
    TraceELBO,
)
from ppl_vae.pairs import Pair, PairError, Program, find_layout, mean_field_violations


class PlusMinusOne(dist.Normal):
    """A normal whose "noise" is +1, -1, +1, ...: an exact quadrature for polynomials of order two."""

    calls = 0

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        sign = torch.ones(shape, dtype=self.loc.dtype)
        if len(shape) == 2:  # particles x rows
            sign[1::2] = -1.0
        else:
            sign *= (-1.0) ** PlusMinusOne.calls
            PlusMinusOne.calls += 1
        value: Tensor = self.loc + self.scale * sign
        return value


# -- hand-derived gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("kind", [TraceELBO, MeanFieldELBO, EnumELBO])
def test_gradients_are_the_hand_derived_ones(
    kind: Callable[..., Objective], vectorized: bool, beta: float, n: int
) -> None:
    """Exactly: two particles at mean +- scale integrate the quadratic loss without error."""
    pair = Conjugate(PlusMinusOne)
    x = torch.randn(n, dtype=torch.float64)
    found = run(kind(num_particles=2), pair.model, pair.guide, x, beta, vectorized)
    rate, distortion = pair.rate_and_distortion(x)
    assert float(found.loss.detach()) == pytest.approx(distortion + beta * rate, abs=1e-12)
    if kind is not EnumELBO:  # which measures them with another sample
        assert float(found.rate) == pytest.approx(rate, abs=1e-12)
        assert float(found.distortion) == pytest.approx(distortion, abs=1e-12)
    assert pair.grad(found.loss) == pytest.approx(pair.gradients(x, beta), abs=1e-12)


@pytest.mark.parametrize("kind", [TraceELBO, MeanFieldELBO])
def test_gradients_with_real_noise_are_within_their_standard_errors(
    kind: Callable[..., Objective],
) -> None:
    pair = Conjugate()
    x = torch.randn(6, dtype=torch.float64)
    draws = [
        pair.grad(run(kind(num_particles=500), pair.model, pair.guide, x, 0.7).loss)
        for _ in range(30)
    ]
    for name, expected in pair.gradients(x, 0.7).items():
        values = np.array([draw[name] for draw in draws])
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * error + 1e-12, name


@pytest.mark.parametrize("particles", [1, 3])
def test_beta_weighs_the_analytic_kl_exactly(particles: int) -> None:
    """Under the same noise, two betas differ by (beta - beta') R in value and gradient, whatever the draw."""
    pair = Conjugate()
    x = torch.randn(6, dtype=torch.float64)
    rate, _ = pair.rate_and_distortion(x)
    losses = {}
    for beta in (0.0, 1.0, 3.0):
        pyro.set_rng_seed(2)
        losses[beta] = run(
            MeanFieldELBO(num_particles=particles), pair.model, pair.guide, x, beta
        ).loss
    by_hand = {b: pair.gradients(x, b) for b in losses}
    for beta in (1.0, 3.0):
        difference = losses[beta] - losses[0.0]
        assert float(difference.detach()) == pytest.approx(beta * rate, abs=1e-12)
        expected = {n: by_hand[beta][n] - by_hand[0.0][n] for n in pair.leaves}
        assert pair.grad(difference) == pytest.approx(expected, abs=1e-12)


def test_beta_weighs_a_global_latent_too() -> None:
    """mu ~ N(0, 1), q = N(0.4, 0.3^2): its analytic KL is 1/2 (v + m^2 - 1 - log v) / n per row."""
    x = torch.randn(5, 3)
    with own_store():
        losses = []
        for beta in (0.0, 1.0):
            pyro.set_rng_seed(3)
            losses.append(run(MeanFieldELBO(), with_global, with_global_guide, x, beta))
        (_, guide_trace) = losses[0].traces[0]
    mu = 0.5 * (0.09 + 0.16 - 1 - math.log(0.09))
    m = guide_trace.nodes["z"]["fn"].loc
    at = guide_trace.nodes["mu"]["value"]
    z = 0.5 * (0.64 + (m - at) ** 2 - 1 - math.log(0.64))
    expected = mu / 5 + float(z.detach().mean())
    assert float((losses[1].loss - losses[0].loss).detach()) == pytest.approx(expected, rel=1e-4)


# -- free bits ---------------------------------------------------------------------------------------------


class Dimensions:
    """Independent dimensions with means `loc` (plus the row's offset) and scales `scale`."""

    def __init__(self, full: bool = False) -> None:
        self.loc = torch.tensor([0.1, 1.5, -2.0], dtype=torch.float64, requires_grad=True)
        self.log_scale = torch.tensor([-0.1, 0.2, -1.0], dtype=torch.float64, requires_grad=True)
        self.full = full

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0 * z.sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = self.loc + 0.1 * x[:, None]
            if self.full:
                tril = torch.diag(self.log_scale.exp())
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))
            else:
                pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))

    def kl(self, x: Tensor) -> Tensor:
        v, m = (2 * self.log_scale).exp(), self.loc + 0.1 * x[:, None]
        return (0.5 * (v + m**2 - 1 - v.log())).mean(0)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_free_bits_lift_each_dimension_and_stop_its_gradient(particles: int, beta: float) -> None:
    """loss = D + beta sum_i max(free, KL_i), and a dimension below feels exactly nothing."""
    pair = Dimensions()
    x = torch.randn(6, dtype=torch.float64)
    kl, free = pair.kl(x), 0.8
    below = kl < free
    assert below.tolist() == [True, False, False]
    objective = MeanFieldELBO(free_bits=free, num_particles=particles)
    found = run(objective, pair.model, pair.guide, x, beta)
    distortion = float((0.5 * x**2 + 0.5 * LOG_2PI).mean())
    assert float(found.loss.detach()) == pytest.approx(
        distortion + beta * float(kl.clamp(min=free).sum().detach()), abs=1e-12
    )
    got = torch.autograd.grad(found.loss, [pair.loc, pair.log_scale])
    expected = torch.autograd.grad(beta * kl[~below].sum(), [pair.loc, pair.log_scale])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)
        assert bool((ours[below].abs() < 1e-15).all())


def test_free_bits_average_over_the_batch_before_they_are_compared() -> None:
    """One row far away lifts a dimension's mean KL above the free bits: then all its rows are charged."""
    pair = Dimensions()
    x = torch.tensor([0.0, 0.0, 0.0, 60.0], dtype=torch.float64)
    kl = pair.kl(x)
    assert bool((kl > 1.0).all())
    found = run(MeanFieldELBO(free_bits=1.0), pair.model, pair.guide, x)
    plain = run(MeanFieldELBO(), pair.model, pair.guide, x)
    assert float(found.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-12)


@pytest.mark.parametrize("kind", [MeanFieldELBO, TraceELBO])
@pytest.mark.parametrize("particles", [1, 4])
def test_free_bits_of_a_site_that_does_not_factorize_are_a_group(
    kind: Callable[..., Objective], particles: int
) -> None:
    """Three dimensions with `free` nats each share one account of 3 free: below it, no gradient at all."""
    pair = Dimensions(full=True)
    x = torch.randn(6, dtype=torch.float64)
    distortion = float((0.5 * x**2 + 0.5 * LOG_2PI).mean())
    found = run(kind(free_bits=20.0, num_particles=particles), pair.model, pair.guide, x)
    assert float(found.loss.detach()) == pytest.approx(distortion + 60.0, abs=1e-12)
    for grad in torch.autograd.grad(found.loss, [pair.loc, pair.log_scale]):
        assert float(grad.abs().max()) < 1e-14
    pyro.set_rng_seed(5)
    charged = run(kind(free_bits=0.01, num_particles=particles), pair.model, pair.guide, x)
    pyro.set_rng_seed(5)
    plain = run(kind(num_particles=particles), pair.model, pair.guide, x)
    assert float(charged.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-12)


@pytest.mark.parametrize("particles", [1, 3])
def test_free_bits_of_the_sampled_elbo_leave_no_noise_below(particles: int) -> None:
    pair = Dimensions()
    x = torch.randn(6, dtype=torch.float64)
    found = run(TraceELBO(free_bits=50.0, num_particles=particles), pair.model, pair.guide, x)
    distortion = float((0.5 * x**2 + 0.5 * LOG_2PI).mean())
    assert float(found.loss.detach()) == pytest.approx(distortion + 150.0, abs=1e-12)
    for grad in torch.autograd.grad(found.loss, [pair.loc, pair.log_scale]):
        assert float(grad.abs().max()) < 1e-14


def test_free_bits_leave_masked_rows_out() -> None:
    """A row whose latent is masked has no KL, as in the loss itself."""
    pair = Dimensions()
    x = torch.tensor([0.0, 0.5, 60.0], dtype=torch.float64)
    seen = torch.tensor([True, True, False])

    def masked(program: Program) -> Program:
        masked: Program = poutine.mask(mask=seen)(program)  # type: ignore[call-overload]
        return masked

    found = run(MeanFieldELBO(free_bits=0.8), masked(pair.model), masked(pair.guide), x)
    kl = (pair.kl(x[:2]) * 2 / 3).clamp(min=0.8).sum()
    distortion = (0.5 * x[:2] ** 2 + 0.5 * LOG_2PI).sum() / 3
    assert float(found.loss.detach()) == pytest.approx(float((kl + distortion).detach()), abs=1e-12)


def test_free_bits_where_the_kl_is_not_the_sites_own() -> None:
    """Where the guide inverts the model's order, the analytic KL of z1 is not its share of the rate."""
    model, guide = structure(["z1", "z2|z1"]), structure(["z2", "z1|z2"], guide=True)
    x = torch.randn(4, 2)
    pyro.set_rng_seed(6)
    plain = run(TraceELBO(num_particles=200), model, guide, x)
    pyro.set_rng_seed(6)
    found = run(TraceELBO(num_particles=200, free_bits=1e-6), model, guide, x)
    assert float(found.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-5)


# -- enumeration -------------------------------------------------------------------------------------------

LOCS = programs.LOCS.clone().requires_grad_()


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(LOCS[c], 1.0), obs=x)


def silent_guide(x: Tensor) -> None:
    """Leaves the latent to the model's enumeration."""


def _mixture_joint(x: Tensor) -> Tensor:
    log_joint: Tensor = WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(x[:, None])
    return log_joint


@pytest.mark.parametrize("kind", [ELBO, EnumELBO])
def test_a_mixture_summed_out_by_the_model_is_its_log_likelihood(
    kind: Callable[..., Objective],
) -> None:
    x = torch.tensor([-1.0, 0.0, 2.5, 7.0])
    found = run(kind(), mixture, silent_guide, x)
    evidence = float(_mixture_joint(x).detach().logsumexp(1).mean())
    assert float(found.loss.detach()) == pytest.approx(-evidence, abs=1e-5)
    assert float(found.elbo) == pytest.approx(evidence, abs=1e-5)
    assert float(found.rate) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("enumerate", ["parallel", "sequential"])
def test_a_mixture_enumerated_in_the_guide_is_its_exact_beta_elbo(
    beta: float, enumerate: Literal["parallel", "sequential"]
) -> None:
    """sum_c q(c) (- log p(x | c) + beta log q(c) / p(c)): value and gradient without noise."""
    logits = torch.randn(4, 3, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": enumerate})

    x = torch.tensor([-1.0, 0.0, 2.5, 7.0])
    found = run(ELBO(), mixture, guide, x, beta)
    log_q = logits.log_softmax(-1)
    log_x = dist.Normal(LOCS, 1.0).log_prob(x[:, None])
    expected = (log_q.exp() * (beta * (log_q - WEIGHTS.log()) - log_x)).sum(1).mean()
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, [logits])[0],
        torch.autograd.grad(expected, [logits])[0],
        atol=1e-6,
        rtol=1e-4,
    )


def test_beta_has_nothing_to_weigh_in_a_latent_that_is_summed_out() -> None:
    with pytest.raises(PairError, match="'c' is summed out in the model"):
        run(EnumELBO(), mixture, silent_guide, torch.zeros(3), beta=0.5)


# -- which ELBO is right -----------------------------------------------------------------------------------


def structure(sites: list[str], guide: bool = False) -> Program:
    """A program from statements such as `z2|z1`: a Gaussian around 0.8 times the sum of its parents."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            values: dict[str, Tensor] = {}
            for statement in sites:
                name, _, parents = statement.partition("|")
                loc = 0.3 * x[:, 0] if guide else torch.zeros(len(x))
                for parent in parents.split():
                    loc = loc + 0.8 * values[parent]
                scale = 0.6 if guide else 1.0
                values[name] = pyro.sample(name, dist.Normal(loc, scale))
            if not guide:
                total = torch.stack(list(values.values())).sum(0)
                pyro.sample("x", dist.Normal(total, 1.0), obs=x[:, 1])

    return program


@pytest.mark.parametrize(
    ("model", "guide", "violations"),
    [
        ("z1, z2", "z1, z2", {}),
        ("z1, z2", "z2, z1|z2", {}),
        ("z1, z2|z1", "z1, z2", {}),
        ("z1, z2|z1", "z2, z1", {}),
        ("z1, z2|z1", "z1, z2|z1", {}),
        ("z1, z2|z1", "z2, z1|z2", {"z2": {"z1"}}),
        ("z1, z2|z1, z3|z2", "z1, z2|z1, z3|z2", {}),
        ("z1, z2|z1, z3|z2", "z3, z2, z1", {}),
        ("z1, z2|z1, z3|z2", "z3, z2|z3, z1|z2", {"z3": {"z2"}, "z2": {"z1"}}),
        ("z1, z2|z1, z3|z1", "z1, z3|z1, z2|z3", {}),
        ("z1, z2, z3|z1 z2", "z3, z1|z3, z2", {"z3": {"z1"}}),
        ("z1, z2, z3|z1 z2", "z1, z3|z1, z2|z3", {"z3": {"z2"}}),
        ("z1, z2, z3|z1 z2", "z1, z2, z3", {}),
        ("z1, z2, z3|z1", "z3, z2|z3, z1|z2", {"z3": {"z1"}}),
        ("z1, z2, z3|z2", "z3, z1|z3, z2", {}),
    ],
)
def test_the_analytic_kl_is_used_where_it_is_right(
    model: str, guide: str, violations: dict[str, set[str]]
) -> None:
    p = structure(model.split(", "))
    q = structure(guide.split(", "), guide=True)
    x = torch.randn(3, 2)
    pair = Pair(p, q)
    with pair.scope():
        assert mean_field_violations(pair, x) == violations
        chosen = ELBO(num_particles=4000).resolve(pair, x)
    assert type(chosen) is (TraceELBO if violations else MeanFieldELBO)
    # Whether it is right is another question, answered by the sampled KL.
    losses = []
    for objective in (TraceELBO(num_particles=4000), MeanFieldELBO(num_particles=4000)):
        pyro.set_rng_seed(0)
        losses.append(float(run(objective, p, q, x).loss))
    differ = abs(losses[0] - losses[1]) > 0.08
    assert differ == bool(violations)


def gamma_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(2.0, x))


def log_normal_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(x, 0.3))


def poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def poisson_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Poisson(x))


@pytest.mark.parametrize(
    ("model", "guide", "kind"),
    [
        (programs.positive, gamma_guide, MeanFieldELBO),
        (programs.positive, log_normal_guide, MeanFieldELBO),
        (poisson, poisson_guide, TraceELBO),
    ],
)
def test_gamma_latents_and_other_distributions_get_the_elbo_that_fits(
    model: Program, guide: Program, kind: type[Objective]
) -> None:
    x = torch.rand(4) + 0.5
    pair = Pair(model, guide)
    with pair.scope():
        assert type(ELBO().resolve(pair, x)) is kind
    mine = run(ELBO(num_particles=20000), model, guide, x)
    theirs = run(TraceELBO(num_particles=20000), model, guide, x)
    assert float(mine.loss) == pytest.approx(float(theirs.loss), abs=0.1)


@pytest.mark.parametrize("vectorizes", [True, False])
def test_draws_are_baselines_of_each_other(vectorizes: bool) -> None:
    """With q = Poisson(r), d ELBO / d r = x - r - 1/2 - log(r / 2), whatever else the model observes."""
    x = torch.tensor([1.0, 3.0, 4.0, 0.5])
    rates = torch.tensor([1.5, 2.0, 5.0, 1.0], requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(rates))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(2.0))
            if not vectorizes:  # a program that many draws at a time would break
                z = torch.stack([z[i] for i in range(len(x))])
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("more", dist.Normal(0.0, 1.0), obs=torch.full_like(x, 5.0))  # -13 nats

    noise = {}
    pair = Pair(model, guide)
    for objective in (ELBO(num_particles=4), TraceELBO(num_particles=4)):
        torch.manual_seed(0)
        with pair.scope():
            layout = find_layout(pair, x)
            assert layout.vectorizes == vectorizes
            slopes = torch.stack(
                [torch.autograd.grad(objective(pair, layout, x).loss, rates)[0] for _ in range(600)]
            )
        exact = -(x - rates - 0.5 - (rates / 2).log()).detach() / len(x)
        error = slopes.std(0) / len(slopes) ** 0.5
        assert bool(((slopes.mean(0) - exact).abs() < 4.5 * error).all())
        noise[type(objective)] = float(slopes.var(0).sum())
    assert noise[ELBO] < 0.1 * noise[TraceELBO]


def shared_count(x: Tensor) -> None:
    """A count of all rows."""
    count = pyro.sample("count", dist.Poisson(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(count, 1.0), obs=x)


def shared_count_guide(x: Tensor) -> None:
    pyro.sample("count", dist.Poisson(2.0))


def with_factor(x: Tensor) -> None:
    """A factor of z that belongs to no row."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("few", -z.sum())


def words_of_rows(x: Tensor) -> None:
    """Each number of a row has a latent of its own."""
    with pyro.plate("data", len(x)), pyro.plate("words", 3):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def words_of_rows_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.plate("words", 3):
        pyro.sample("z", dist.Poisson(x.expand(3, -1)))


def guide_with_factor(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(x))
        pyro.factor("few", -z, has_rsample=False)


@pytest.mark.parametrize(
    ("model", "guide", "options", "kind"),
    [
        (poisson, poisson_guide, {"num_particles": 2}, ScoreFunctionELBO),
        (with_factor, poisson_guide, {"num_particles": 2}, TraceELBO),
        (poisson, guide_with_factor, {"num_particles": 2}, TraceELBO),
        (pyro.poutine.scale(poisson, 2.0), poisson_guide, {"num_particles": 2}, TraceELBO),
        (words_of_rows, words_of_rows_guide, {"num_particles": 2}, TraceELBO),
        (poisson, poisson_guide, {}, TraceELBO),
        (poisson, poisson_guide, {"num_particles": 2, "free_bits": 0.1}, TraceELBO),
        (shared_count, shared_count_guide, {"num_particles": 2}, TraceELBO),
    ],
)
def test_which_draws_have_baselines(
    model: Program, guide: Program, options: Any, kind: type[Objective]
) -> None:
    pair = Pair(model, guide)
    with pair.scope():
        assert type(ELBO(**options).resolve(pair, torch.rand(4) + 0.5)) is kind


def positive_rate(x: Tensor) -> None:
    """A positive latent of all rows."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


@pytest.mark.parametrize(
    ("model", "autoguide", "tolerance"),
    [(positive_rate, AutoMultivariateNormal, 0.02), (programs.positive, AutoNormal, 0.05)],
)
def test_a_density_that_an_autoguide_transforms_is_not_lost(
    model: Program, autoguide: Callable[..., Any], tolerance: float
) -> None:
    """A positive latent under an autoguide of normals: its Delta site carries a Jacobian.

    Pyro's analytic KL of a Delta leaves that out, so the ELBO has to be the sampled one.
    """
    x = torch.tensor([0.5, 1.0, 2.0])
    guide = autoguide(model, init_scale=0.3)
    with own_store():
        guide(x)
        reference = pyro.infer.Trace_ELBO(4000, vectorize_particles=True, max_plate_nesting=1)
        expected = float(reference.loss(model, guide, x)) / 3
    found = run(ELBO(num_particles=4000), model, guide, x)
    assert float(found.loss.detach()) == pytest.approx(expected, abs=tolerance)


def test_full_covariance_guides_get_the_analytic_kl() -> None:
    """The registered KL is used: beta = 0 and 1 under one seed differ by it exactly."""
    guide = FullCovariance((2,), latent_dim=2, network=MLP(hidden=(4,)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    losses = []
    for beta in (0.0, 1.0):
        pyro.set_rng_seed(0)
        losses.append(float(run(ELBO(), model, guide, x, beta).loss.detach()))
    q = guide.encode(x)
    covariance = q.covariance_matrix
    kl = 0.5 * (
        covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        + q.loc.square().sum(-1)
        - 2
        - torch.logdet(covariance)
    )
    assert losses[1] - losses[0] == pytest.approx(float(kl.detach().mean()), abs=1e-5)
