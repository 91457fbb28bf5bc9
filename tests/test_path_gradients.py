"""`stick_the_landing` and `doubly_reparameterized`: unbiased by quadrature, and 0 at the exact posterior.

The quadrature is over the noise of the draws. Each row of a batch is a node, with parameters of its own, so
that one run of an objective gives its gradient at every node. Their weighted sum is its exact expectation.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import coin, coin_guide, normal, normal_guide, shared_mean
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor, nn
from torch.distributions import Normal

from ppl_vae import check, fit
from ppl_vae.capture import recording, step as capture_step
from ppl_vae.objectives import ELBO, ImportanceWeightedELBO, LinearWarmup, Objective, TraceELBO
from ppl_vae.objectives.path_gradients import RepeatableGuide
from ppl_vae.pairs import Pair, PairError, find_layout

VALUES = {
    "m": 0.3,
    "t": -0.4,
    "a": 0.7,
    "r": 0.2,
    "w": 0.9,
}  # r belongs to model and guide, w to the model
DATUM = 0.8
Leaves = dict[str, Tensor]
STICKING = TraceELBO(stick_the_landing=True)
DOUBLY = ImportanceWeightedELBO(doubly_reparameterized=True)


class Noisy(dist.Normal):
    """A normal whose next draws have given noise."""

    noise: ClassVar[list[Tensor]] = []

    def rsample(self, *args: Any) -> Tensor:
        drawn: Tensor = (
            self.loc + self.scale * self.noise.pop(0) if self.noise else super().rsample(*args)
        )
        return drawn


@dataclass(frozen=True)
class Case:
    """A pair of leaves, and the same densities without Pyro: (leaves, noise by site, beta) -> log w."""

    model: Callable[[Leaves, Tensor], None]
    guide: Callable[[Leaves, Tensor], None]
    log_weight: Callable[[Leaves, list[Tensor], float], Tensor]
    sites: int


def single_model(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["r"], 1.0))
        pyro.sample("x", dist.Normal(torch.tanh(p["w"] * z) + z / 2, 0.5), obs=x)


def single_guide(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", Noisy(p["m"] + p["r"], p["t"].exp()))


def single_log_weight(p: Leaves, noise: list[Tensor], beta: float) -> Tensor:
    q = Normal(p["m"] + p["r"], p["t"].exp())
    z = q.mean + q.stddev * noise[0]
    log_x = Normal(torch.tanh(p["w"] * z) + z / 2, 0.5).log_prob(torch.tensor(DATUM))
    log_w: Tensor = log_x + beta * (Normal(p["r"], 1.0).log_prob(z) - q.log_prob(z))
    return log_w


def chain_model(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(p["r"], 1.0))
        z1 = pyro.sample("z1", dist.Normal(torch.sin(p["w"] * z2), 0.8))
        pyro.sample("x", dist.Normal(z1 + z2 / 3, 0.7), obs=x)


def chain_guide(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", Noisy(p["m"] + p["r"], p["t"].exp()))
        pyro.sample("z2", Noisy(torch.tanh(p["a"] * z1) + p["m"], p["t"].exp()))


def chain_log_weight(p: Leaves, noise: list[Tensor], beta: float) -> Tensor:
    q1 = Normal(p["m"] + p["r"], p["t"].exp())
    z1 = q1.mean + q1.stddev * noise[0]
    q2 = Normal(torch.tanh(p["a"] * z1) + p["m"], p["t"].exp())
    z2 = q2.mean + q2.stddev * noise[1]
    log_p = Normal(p["r"], 1.0).log_prob(z2) + Normal(torch.sin(p["w"] * z2), 0.8).log_prob(z1)
    log_x = Normal(z1 + z2 / 3, 0.7).log_prob(torch.tensor(DATUM))
    log_w: Tensor = log_x + beta * (log_p - q1.log_prob(z1) - q2.log_prob(z2))
    return log_w


def transformed_model(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["r"], 1.0))
        pyro.sample("x", dist.Normal(p["w"] * z, 0.7), obs=x)


def transformed_guide(p: Leaves, x: Tensor) -> None:
    """z = a y + tanh(y), with a parameter in the transform."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", Noisy(p["m"] + p["r"], p["t"].exp()), infer={"is_auxiliary": True})
        log_slope = torch.log(p["a"] + 1 - torch.tanh(y) ** 2)
        pyro.sample("z", dist.Delta(p["a"] * y + torch.tanh(y), log_density=-log_slope))


def transformed_log_weight(p: Leaves, noise: list[Tensor], beta: float) -> Tensor:
    q = Normal(p["m"] + p["r"], p["t"].exp())
    y = q.mean + q.stddev * noise[0]
    z = p["a"] * y + torch.tanh(y)
    log_q = q.log_prob(y) - torch.log(p["a"] + 1 - torch.tanh(y) ** 2)
    log_x = Normal(p["w"] * z, 0.7).log_prob(torch.tensor(DATUM))
    log_w: Tensor = log_x + beta * (Normal(p["r"], 1.0).log_prob(z) - log_q)
    return log_w


def masked_model(p: Leaves, x: Tensor) -> None:
    """z1 has no prior and no log q, but x depends on it."""
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=False):
            z1 = pyro.sample("z1", dist.Normal(p["r"], 1.0))
        z2 = pyro.sample("z2", dist.Normal(p["r"], 1.0))
        pyro.sample("x", dist.Normal(torch.tanh(p["w"] * z1) + z2, 0.8), obs=x)


def masked_guide(p: Leaves, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=False):
            pyro.sample("z1", Noisy(p["m"] + p["r"], p["t"].exp()))
        pyro.sample("z2", Noisy(p["a"], p["t"].exp()))


def masked_log_weight(p: Leaves, noise: list[Tensor], beta: float) -> Tensor:
    z1 = p["m"] + p["r"] + p["t"].exp() * noise[0]
    q = Normal(p["a"], p["t"].exp())
    z2 = q.mean + q.stddev * noise[1]
    log_x = Normal(torch.tanh(p["w"] * z1) + z2, 0.8).log_prob(torch.tensor(DATUM))
    log_w: Tensor = log_x + beta * (Normal(p["r"], 1.0).log_prob(z2) - q.log_prob(z2))
    return log_w


CASES = {
    "single": Case(single_model, single_guide, single_log_weight, 1),
    "chain": Case(chain_model, chain_guide, chain_log_weight, 2),
    "transformed": Case(transformed_model, transformed_guide, transformed_log_weight, 1),
    "masked": Case(masked_model, masked_guide, masked_log_weight, 2),
}


@pytest.fixture(autouse=True)
def in_double(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    assert not Noisy.noise


def grid(dimensions: int, nodes: int, width: float = 7.0) -> tuple[Tensor, Tensor]:
    """Equidistant noise `(dimensions, n)` up to `width`, and weights `(n,)` of independent standard normals."""
    points = torch.linspace(-width, width, nodes)
    density = torch.softmax(-(points**2) / 2, 0)
    noise = torch.cartesian_prod(*[points] * dimensions).reshape(-1, dimensions)
    weights = torch.cartesian_prod(*[density] * dimensions).reshape(-1, dimensions)
    return noise.T, weights.prod(1)


def gradients(
    case: Case, objective: Objective, noise: Tensor, beta: float, vectorized: bool = True
) -> Leaves:
    """The objective's gradient at every node: `(n,)` by leaf. `noise` is `(K, sites, n)`."""
    samples, sites, n = noise.shape
    p = {k: torch.full((n,), v).requires_grad_() for k, v in VALUES.items()}

    def part(x: Tensor) -> Leaves:
        return {k: v[: len(x)] for k, v in p.items()}

    x = torch.full((n,), DATUM)
    pair = Pair(lambda x: case.model(part(x), x), lambda x: case.guide(part(x), x))
    with pair.scope(), pyro.validation_enabled(False):
        layout = find_layout(pair, x)
        assert layout.vectorizes
        layout = replace(layout, vectorizes=vectorized)
        by_site = [noise[:, s] if samples > 1 else noise[0, s] for s in range(sites)]
        runs_again = objective.needs_reparameterized_latents and case is not CASES["single"]
        again = [torch.zeros(n)] * sites if runs_again else []
        if vectorized:
            Noisy.noise += [*by_site, *again]
        else:
            Noisy.noise += [eps for of_sample in noise for eps in (*of_sample, *again)]
        loss = objective(pair, layout, x, beta).loss
        found = torch.autograd.grad(-loss * n, list(p.values()), materialize_grads=True)
    return dict(zip(p, found, strict=True))


def exact(case: Case, noise: Tensor, weights: Tensor, beta: float, elbo: bool) -> dict[str, float]:
    """The gradient of the expected bound, by derivatives of the quadrature."""
    p = {k: torch.tensor(v, requires_grad=True) for k, v in VALUES.items()}
    log_w = torch.stack([case.log_weight(p, list(of_sample), beta) for of_sample in noise])
    bound = log_w.mean(0) if elbo else torch.logsumexp(log_w, 0) - math.log(len(noise))
    found = torch.autograd.grad((weights * bound).sum(), list(p.values()), materialize_grads=True)
    return {k: float(g) for k, g in zip(p, found, strict=True)}


def agree(found: Leaves, weights: Tensor, expected: dict[str, float], tolerance: float) -> None:
    for name, value in expected.items():
        mean = float((weights * found[name]).sum())
        assert mean == pytest.approx(value, abs=tolerance), name
    assert (
        sum(abs(v) > 0.02 for v in expected.values()) >= 4
    )  # there is something to be wrong about


@pytest.mark.parametrize("beta", [1.0, pytest.param(0.5, marks=pytest.mark.slow), 4.0])
@pytest.mark.parametrize("name", CASES)
def test_sticking_the_landing_is_unbiased(name: str, beta: float) -> None:
    case = CASES[name]
    noise, weights = grid(case.sites, 60)
    noise = noise.reshape(1, case.sites, -1)
    expected = exact(case, noise, weights, beta, elbo=True)
    found = gradients(case, TraceELBO(stick_the_landing=True), noise, beta)
    agree(found, weights, expected, 1e-8)
    plain = gradients(case, TraceELBO(), noise, beta)
    agree(plain, weights, expected, 1e-8)
    assert float((found["t"] - plain["t"]).abs().max()) > 0.1  # another estimator
    torch.testing.assert_close(found["w"], plain["w"])  # the model's is the same


@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize(("name", "nodes", "width"), [("single", 60, 7.0), ("chain", 20, 5.0)])
def test_sticking_the_landing_with_particles(
    name: str, nodes: int, width: float, vectorized: bool
) -> None:
    case = CASES[name]
    noise, weights = grid(2 * case.sites, nodes, width)
    noise = noise.reshape(2, case.sites, -1)
    objective = TraceELBO(num_particles=2, stick_the_landing=True)
    found = gradients(case, objective, noise, 0.5, vectorized)
    agree(found, weights, exact(case, noise, weights, 0.5, elbo=True), 1e-4)


@pytest.mark.parametrize("beta", [1.0, pytest.param(0.5, marks=pytest.mark.slow), 4.0])
@pytest.mark.parametrize(
    ("name", "samples", "nodes", "width", "tolerance"),
    [
        ("single", 1, 60, 7.0, 1e-8),
        ("single", 2, 90, 7.0, 1e-8),
        ("single", 3, 50, 6.0, 1e-6),
        ("transformed", 2, 90, 7.0, 1e-8),
        ("chain", 2, 20, 5.0, 3e-4),
        ("masked", 2, 24, 5.0, 3e-4),
    ],
)
def test_doubly_reparameterized_gradients_are_unbiased(
    name: str, samples: int, nodes: int, width: float, tolerance: float, beta: float
) -> None:
    case = CASES[name]
    noise, weights = grid(samples * case.sites, nodes, width)
    noise = noise.reshape(samples, case.sites, -1)
    objective = ImportanceWeightedELBO(num_particles=samples, doubly_reparameterized=True)
    found = gradients(case, objective, noise, beta)
    agree(found, weights, exact(case, noise, weights, beta, elbo=False), tolerance)
    plain = gradients(case, replace(objective, doubly_reparameterized=False), noise, beta)
    assert float((found["t"] - plain["t"]).abs().max()) > 0.1
    torch.testing.assert_close(found["w"], plain["w"])


@pytest.mark.parametrize("name", ["single", "chain", "transformed"])
def test_samples_in_a_loop_have_the_same_doubly_reparameterized_gradient(name: str) -> None:
    noise = torch.randn(3, CASES[name].sites, 50)
    objective = ImportanceWeightedELBO(num_particles=3, doubly_reparameterized=True)
    at_once, looped = (gradients(CASES[name], objective, noise, 0.5, v) for v in (True, False))
    for leaf in VALUES:
        torch.testing.assert_close(at_once[leaf], looped[leaf])


# -- the exact posterior: no noise at all --------------------------------------------------------------


def by_parameter(
    objective: Objective, model: Any, guide: Any, x: Tensor, beta: float, vectorizes: bool = True
) -> list[Tensor]:
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False):
        layout = replace(find_layout(pair, x), vectorizes=vectorizes)
        loss = objective(pair, layout, x, beta).loss
        leaves = [leaf for _, leaf in pyro.get_param_store().named_parameters()]
        return list(torch.autograd.grad(loss, leaves))


def posterior(x: Tensor, beta: float = 1.0) -> None:
    """Of `normal`, with p(z) p(x | z)^(1 / beta) in place of p(z) p(x | z)."""
    slope = pyro.param("slope", torch.tensor(1 / (1 + beta)))
    log_scale = pyro.param("log_scale", torch.tensor(0.5 * math.log(beta / (1 + beta))))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))


def joint_posterior(x: Tensor) -> None:
    """Of `shared_mean(1)`: x - mu ~ N(0, 2) for each row, and z given mu."""
    precision = 1 + len(x) / 2
    shift = pyro.param("shift", torch.zeros(()))
    slope = pyro.param("slope", torch.tensor(0.5))
    mu = pyro.sample("mu", dist.Normal(x.sum() / 2 / precision + shift, precision**-0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * (mu + x), 0.5**0.5))


def of_a_hundred(program: Callable[..., None]) -> Callable[[Tensor], None]:
    """The same in a plate of 100 rows of which the batch is a part."""

    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=100 / len(x)):
            program(x)

    return scaled


@pytest.mark.parametrize("vectorizes", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("beta", [1.0, pytest.param(0.5, marks=pytest.mark.slow), 4.0])
@pytest.mark.parametrize("particles", [1, 4])
def test_no_noise_at_the_exact_posterior(particles: int, beta: float, vectorizes: bool) -> None:
    x = torch.randn(5)

    def guide(x: Tensor) -> None:
        posterior(x, beta)

    sticking = TraceELBO(num_particles=particles, stick_the_landing=True)
    pairs = [(normal, guide), (of_a_hundred(normal), of_a_hundred(guide))]
    if beta == 1.0:
        pairs += [(shared_mean(1.0), joint_posterior)]
        pairs += [(of_a_hundred(shared_mean(1.0)), of_a_hundred(joint_posterior))]
    for model, exact_guide in pairs:
        for g in by_parameter(sticking, model, exact_guide, x, beta, vectorizes):
            assert float(g.abs()) < 1e-10
        plain = by_parameter(TraceELBO(num_particles=particles), model, exact_guide, x, beta)
        assert max(float(g.abs()) for g in plain) > 1e-3
    doubly = ImportanceWeightedELBO(num_particles=particles, doubly_reparameterized=True)
    for g in by_parameter(doubly, normal, guide, x, beta, vectorizes):
        assert float(g.abs()) < 1e-10


@pytest.mark.parametrize(
    "objective",
    [
        TraceELBO(stick_the_landing=True),
        ImportanceWeightedELBO(num_particles=3, doubly_reparameterized=True),
    ],
    ids=lambda o: type(o).__name__,
)
def test_no_noise_with_an_autoguide_of_a_positive_latent(objective: Objective) -> None:
    """The guide draws log z, and a Delta site with a Jacobian makes z of it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    x = torch.randn(4)
    mode = init_to_value(values={"z": (x / 2).exp()})
    guide = AutoNormal(model, init_loc_fn=mode, init_scale=0.5**0.5)
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False):
        layout = find_layout(pair, x)
        loss = objective(pair, layout, x).loss
        for g in torch.autograd.grad(loss, list(guide.parameters())):
            assert float(g.abs().max()) < 1e-10


@pytest.mark.slow
def test_the_signal_is_not_lost_in_the_noise_as_samples_are_added() -> None:
    """Mean over standard deviation goes as sqrt(K), and without the option as 1 / sqrt(K)."""

    def ratio(doubly: bool, samples: int) -> float:
        objective = ImportanceWeightedELBO(num_particles=samples, doubly_reparameterized=doubly)
        noise = torch.randn(samples, 1, 20_000)
        found = gradients(CASES["single"], objective, noise, 1.0)["m"]
        return float(found.mean().abs() / found.std())

    rise = ratio(True, 100) / ratio(True, 10)
    fall = ratio(False, 100) / ratio(False, 10)
    assert rise == pytest.approx(10**0.5, rel=0.3)
    assert fall == pytest.approx(10**-0.5, rel=0.3)


# -- the second run ------------------------------------------------------------------------------------


class Random(nn.Module):
    """A guide x -> z1 -> z2 with dropout before and between its draws, and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        self.up2 = nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.up1(x), 0.5).to_event(1))
            pyro.sample("z2", dist.Gamma(self.up2(z1).exp(), 1.0).to_event(1))


class Above(nn.Module):
    """A model z2 -> z1 -> x with dropout, which counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2))
        self.runs: Tensor
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        self.runs.add_(1.0 if self.training else 0.0)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Gamma(x.new_ones(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.down(z1), 1.0).to_event(1), obs=x)


def test_the_second_run_is_the_first_with_constant_draws() -> None:
    x = torch.randn(6, 3)
    pair = Pair(Above(), guide := Random())
    nn.utils.parametrizations.spectral_norm(guide.up1[0])  # which improves its buffers in each run
    with pair.scope(), pair.mode(training=True):
        layout = find_layout(pair, x)
        repeatable = RepeatableGuide(pair, layout, "")
        first = poutine.trace(repeatable).get_trace(x)
        generator, buffers = torch.get_rng_state(), [b.clone() for b in guide.buffers()]
        held = repeatable.with_draws_held(first, repeatable, x)
    assert torch.equal(torch.get_rng_state(), generator)
    for before, after in zip(buffers, guide.buffers(), strict=True):
        assert torch.equal(before, after)
    assert [int(b) for n, b in guide.named_buffers() if "num_batches" in n] == [1]
    first.compute_log_prob()
    held.compute_log_prob()
    for name in ("z1", "z2"):
        mine, theirs = held.nodes[name], first.nodes[name]
        assert not mine["value"].requires_grad
        for what in ("value", "log_prob"):
            torch.testing.assert_close(mine[what], theirs[what], rtol=0, atol=0)


OBJECTIVES = [
    TraceELBO(num_particles=2, stick_the_landing=True),
    ImportanceWeightedELBO(num_particles=2, doubly_reparameterized=True),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_the_loss_and_the_state_are_those_without_the_option(objective: Any) -> None:
    x = torch.randn(6, 3)
    option = objective.needs_reparameterized_latents
    found = []
    for chosen in (objective, replace(objective, **{option: False})):
        torch.manual_seed(3)
        pair = Pair(Above(), Random())
        with pair.scope(), pair.mode(training=True), pyro.validation_enabled(False):
            layout = find_layout(pair, x)
            loss = chosen(pair, layout, x, 0.5)
            grads = torch.autograd.grad(loss.loss, list(pair.parameters(x).values()))
        found.append((loss, grads, torch.get_rng_state(), pair.state()))
    (mine, my_grads, my_generator, my_state), (theirs, grads, generator, state) = found
    for name in ("loss", "elbo", "rate", "distortion"):
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name))
    assert torch.equal(my_generator, generator)
    for name, value in state.items():
        assert torch.equal(my_state[name], value), name
    model = len(list(Above().parameters()))
    torch.testing.assert_close(my_grads[:model], grads[:model])
    assert not torch.allclose(my_grads[model], grads[model])


@pytest.mark.parametrize(
    "objective",
    [pytest.param(o, marks=pytest.mark.slow if i else ()) for i, o in enumerate(OBJECTIVES)],
    ids=lambda o: type(o).__name__,
)
def test_a_second_run_is_recorded(
    objective: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With its dropout and batch norm: the same trajectory, and one recording per shape of a batch."""
    recorded = Mock(wraps=recording.record)
    monkeypatch.setattr(capture_step, "RECORD_AFTER", 0)
    monkeypatch.setattr(capture_step, "record", recorded)
    objective = replace(objective, beta=LinearWarmup(2))
    x = torch.randn(12, 3)
    results = []
    for capture in (True, False):
        torch.manual_seed(0)
        model, guide = Above(), Random()
        with caplog.at_level(logging.WARNING):
            fit(model, guide, x, objective=objective, max_epochs=6, batch_size=5, capture=capture)
        results.append([*model.state_dict().values(), *guide.state_dict().values()])
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
    assert recorded.call_count == 2
    assert "capture is off" not in caplog.text


def test_a_guide_that_draws_more_the_second_time_is_refused() -> None:
    runs: list[None] = []

    def guide(x: Tensor) -> None:
        runs.append(None)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x, 1.0))
            pyro.sample("z1", dist.Normal(z2 + torch.randn(len(runs)).sum(), 1.0))
            [torch.randn(()) for _ in runs]

    pair = Pair(chain_of_two, guide)
    x = torch.randn(4)
    with pair.scope(), pyro.validation_enabled(False):
        layout = find_layout(pair, x)
        with pytest.raises(
            PairError, match=r"more random numbers .* leave stick_the_landing at fa"
        ):
            STICKING(pair, layout, x)


def chain_of_two(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [STICKING, DOUBLY, ELBO(stick_the_landing=True)])
def test_discrete_latents_are_refused(objective: Objective) -> None:
    x = torch.randn(4)
    words = (
        r"site 'c' is drawn from Bernoulli.*(stick_the_landing|doubly_reparameterized) needs one"
    )
    report = check(coin, coin_guide(1.0), x, objective=objective)
    assert any(re.search(words, problem.message) for problem in report.errors), str(report)
    pair = Pair(coin, coin_guide(1.0))
    with pair.scope():
        layout = find_layout(pair, x)
        with pytest.raises(PairError, match=words):
            objective(pair, layout, x)


def test_free_bits_are_refused() -> None:
    for kind in (ELBO, TraceELBO):
        with pytest.raises(ValueError, match="no free bits with stick_the_landing"):
            kind(free_bits=0.1, stick_the_landing=True)


def test_a_subsampled_plate_inside_of_a_row_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("inner", 6, subsample_size=2, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :2])

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.4))
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("inner", 6, subsample_size=2, dim=-1):
            pyro.sample("z", dist.Normal(a * x[:, :2], 1.0))

    x = torch.randn(3, 6)
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False):
        layout = find_layout(pair, x)
        assert torch.isfinite(TraceELBO(stick_the_landing=True)(pair, layout, x).loss)
        with pytest.raises(PairError, match="'z' is in a subsampled plate inside of a row"):
            DOUBLY(pair, layout, x)


def test_elbo_resolves_to_trace_elbo() -> None:
    objective = ELBO(beta=0.5, num_particles=3, stick_the_landing=True)
    pair = Pair(normal, normal_guide(0.5, 1.0))
    with pair.scope():
        assert objective.resolve(pair, torch.randn(4)) == TraceELBO(
            beta=0.5, num_particles=3, stick_the_landing=True
        )
