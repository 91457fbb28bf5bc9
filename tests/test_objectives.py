"""All objectives: the numbers of Pyro's own losses, settings, and schedules of beta."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from programs import (
    GAUSSIAN_PAIRS,
    own_store,
    run,
    several_sites,
    several_sites_guide,
)
from pyro.distributions import constraints
from torch import Tensor

from ppl_vae import fit
from ppl_vae.objectives import (
    ELBO,
    Cyclical,
    EnumELBO,
    GumbelSoftmaxELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
    Loss,
    MeanFieldELBO,
    Objective,
    Schedule,
    TraceELBO,
    as_objective,
)
from ppl_vae.pairs import Layout, Pair, PairError, find_layout


def bernoulli(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x[:, 0])


def bernoulli_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=a * x[:, 0]))


LOSSES: list[tuple[Any, Any]] = [
    (TraceELBO, pyro.infer.Trace_ELBO),
    (MeanFieldELBO, pyro.infer.TraceMeanField_ELBO),
    (EnumELBO, pyro.infer.TraceEnum_ELBO),
]


@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "looped"])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        (name, ours, theirs)
        for ours, theirs in LOSSES
        for name in [*GAUSSIAN_PAIRS, "bernoulli"]
        if (name, ours) != ("bernoulli", MeanFieldELBO)  # whose latents are not reparameterized
    ],
)
def test_with_beta_one_loss_and_gradient_are_pyros(
    name: str,
    ours: Callable[..., Objective],
    theirs: Callable[..., Any],
    particles: int,
    vectorized: bool,
) -> None:
    if name == "bernoulli":
        model, guide = bernoulli, bernoulli_guide
        if ours is EnumELBO:
            guide = pyro.infer.config_enumerate(guide)
    else:
        model, guide = GAUSSIAN_PAIRS[name]
    x = torch.randn(7, 3)
    rows = 100 if "subsampled" in name else 7
    nesting = 2 if name == "plates inside" else 1

    def gradient(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, [pyro.get_param_store()._params["a"]])
        return grad

    with own_store():
        pyro.set_rng_seed(1)
        reference = theirs(
            num_particles=particles,
            vectorize_particles=vectorized and particles > 1,
            max_plate_nesting=nesting,
            strict_enumeration_warning=False,
        ).differentiable_loss(model, guide, x)
        reference_gradient = gradient(reference)
    pair = Pair(model, guide)
    with pair.scope():
        layout = find_layout(pair, x)
        assert layout.vectorizes
        assert layout.nesting == nesting
        layout = replace(layout, vectorizes=vectorized)
        pyro.set_rng_seed(1)
        loss = ours(num_particles=particles)(pair, layout, x).loss
        assert float(loss.detach()) == pytest.approx(float(reference.detach()) / rows, rel=1e-6)
        assert float(gradient(loss)) == pytest.approx(float(reference_gradient) / rows, rel=1e-5)


@pytest.mark.parametrize("name", GAUSSIAN_PAIRS)
@pytest.mark.parametrize("particles", [1, 4])
def test_elbo_rate_and_distortion_are_those_of_the_traces(name: str, particles: int) -> None:
    """Recomputed from the recorded traces with plain log_prob, without scale; beta does not enter."""
    model, guide = GAUSSIAN_PAIRS[name]
    x = torch.randn(5, 3)
    found = run(TraceELBO(num_particles=particles), model, guide, x, beta=0.3)
    rows = 100 if "subsampled" in name else 5
    ((model_trace, guide_trace),) = found.traces

    def mean_log_prob(trace: Any, site: str, divisor: int) -> float:
        node = trace.nodes[site]
        return float(node["fn"].log_prob(node["value"]).sum().detach()) / (divisor * particles)

    latents = [n for n in ("z", "z1", "z2", "mu") if n in guide_trace.nodes]
    rate = sum(
        mean_log_prob(guide_trace, n, rows if n == "mu" else 5)
        - mean_log_prob(model_trace, n, rows if n == "mu" else 5)
        for n in latents
    )
    distortion = -mean_log_prob(model_trace, "x", 5)
    assert float(found.rate) == pytest.approx(rate, rel=1e-4)
    assert float(found.distortion) == pytest.approx(distortion, rel=1e-4)
    assert float(found.elbo) == pytest.approx(-(rate + distortion), rel=1e-4)
    assert not found.elbo.requires_grad


def test_linear_warmup_is_its_formula() -> None:
    beta = LinearWarmup(epochs=8, start=0.5, end=2.5)
    for epoch in np.linspace(0, 20, 41):
        assert beta(epoch) == pytest.approx(0.5 + 2.0 * min(1.0, epoch / 8))
    assert beta.warmup_epochs == 8


def test_cyclical_is_its_formula() -> None:
    """Fu et al., equation 6: r(tau) = min(1, tau / R) with tau the place in the cycle."""
    beta = Cyclical(period=6, cycles=3, rise=0.25, start=0.1, end=1.1)
    for epoch in np.linspace(0, 30, 121):
        tau = (epoch % 6) / 6
        expected = 0.1 + 1.0 * (min(1.0, tau / 0.25) if epoch < 18 else 1.0)
        assert beta(float(epoch)) == pytest.approx(expected)
    assert beta(beta.warmup_epochs) == 1.1
    assert beta(beta.warmup_epochs - 0.01) < 1.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearWarmup(epochs=0),
        lambda: LinearWarmup(epochs=5, start=-1.0),
        lambda: LinearWarmup(epochs=5, end=math.inf),
        lambda: Cyclical(period=-1),
        lambda: Cyclical(period=1, rise=0.0),
        lambda: Cyclical(period=1, cycles=0),
        lambda: ELBO(beta=-0.1),
        lambda: ELBO(beta=math.nan),
        lambda: ELBO(free_bits=-1.0),
        lambda: ELBO(num_particles=0),
        lambda: ImportanceWeightedELBO(free_bits=0.1),
        lambda: EnumELBO(free_bits=0.1),
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], Objective | Schedule]) -> None:
    with pytest.raises(ValueError, match=r"must be|share of the period|no free bits"):
        make()


NUMBERS: list[Any] = ["0.5", None, lambda epoch: 0.5, torch.tensor(0.5), [1.0], True]
OBJECTIVES: list[Any] = [
    ELBO,
    TraceELBO,
    MeanFieldELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    GumbelSoftmaxELBO,
]
SETTINGS = [
    *((kind, {}, name) for kind in OBJECTIVES for name in ("beta", "free_bits", "num_particles")),
    (GumbelSoftmaxELBO, {}, "temperature"),
    (LinearWarmup, {}, "epochs"),
    *((LinearWarmup, {"epochs": 2}, name) for name in ("start", "end")),
    (Cyclical, {}, "period"),
    *((Cyclical, {"period": 2}, name) for name in ("cycles", "rise", "start", "end")),
]


@pytest.mark.parametrize(("kind", "others", "name"), SETTINGS)
def test_settings_of_another_type(kind: Any, others: dict[str, Any], name: str) -> None:
    for value in NUMBERS:
        with pytest.raises(
            TypeError, match=rf"{kind.__name__}: {name} must be a.* number.*, not "
        ) as e:
            kind(**others, **{name: value})
        told = str(e.value)
        assert ("LinearWarmup(epochs=10) or Cyclical(period=10)" in told) == (name == "beta")
        assert (".item()" in told) == isinstance(value, Tensor)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_beta_may_be_a_schedule_and_not_its_class(kind: Any) -> None:
    for value in (1, np.float32(0.5), np.int64(2), LinearWarmup(2)):
        assert kind(beta=value).beta == value
    with pytest.raises(TypeError, match="not the class LinearWarmup"):
        kind(beta=LinearWarmup)
    with pytest.raises(TypeError, match=r"num_particles must be a whole number, not 2\.5"):
        kind(num_particles=2.5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ELBO, "stick_the_landing"),
        (TraceELBO, "stick_the_landing"),
        (ImportanceWeightedELBO, "doubly_reparameterized"),
    ],
)
@pytest.mark.parametrize("value", ["no", None, 1, torch.tensor(True)])
def test_options_are_true_or_false(kind: Any, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}: {name} must be True or False, not "):
        kind(**{name: value})


class _Nothing(LinearWarmup):
    def __call__(self, epoch: float) -> Any:
        return None


def test_a_schedule_of_ones_own_that_returns_no_number() -> None:
    with pytest.raises(
        TypeError, match="_Nothing: the beta that it returns must be a number, not None"
    ):
        ELBO(beta=_Nothing(2)).beta_at(1)


@dataclass(frozen=True)
class Returns(TraceELBO):
    """An objective whose result is changed."""

    change: Callable[[Loss], Any] = lambda found: found

    def __call__(self, pair: Pair, layout: Layout, batch: Any, beta: float = 1.0) -> Any:
        return self.change(super().__call__(pair, layout, batch, beta))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: replace(found, loss=found.loss.detach()), "loss of Returns has no gradient"),
        (
            lambda found: replace(found, loss=float(found.loss.detach())),
            "Returns .* whose loss is a tensor",
        ),
        (lambda found: replace(found, elbo=float(found.elbo)), "Returns .* whose elbo is a tensor"),
        (lambda found: replace(found, rate=None), "Returns .* whose rate is a tensor .* not None"),
        (lambda found: replace(found, distortion=torch.ones(3)), r"distortion .* of shape \(3,\)"),
        (lambda found: replace(found, loss=found.loss * torch.ones(3)), r"loss .* shape \(3,\)"),
        (lambda found: found.loss, "Returns must return a Loss of ppl_vae.objectives"),
        (lambda found: None, "Returns must return a Loss .* returned None"),
    ],
)
@pytest.mark.parametrize("from_step", [0, 3])
def test_what_an_objective_of_ones_own_must_return(
    change: Callable[[Loss], Any], words: str, from_step: int
) -> None:
    """It is told by the check of the pair, or by the first step that meets it."""
    calls = 0

    def late(found: Loss) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return change(found) if calls > from_step else found

    with pytest.raises((PairError, TypeError), match=words):
        fit(
            *programs_with_parameter(),
            torch.randn(20),
            objective=Returns(change=late),
            max_epochs=9,
        )


def programs_with_parameter() -> tuple[Any, Any]:
    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return programs.normal, guide


def test_beta_at_follows_the_schedule_and_resolve_keeps_all_settings() -> None:
    objective = ELBO(beta=LinearWarmup(epochs=4), free_bits=0.25, num_particles=3)
    assert [objective.beta_at(e) for e in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert objective.warmup_epochs == 4
    pair = Pair(several_sites, several_sites_guide)
    with pair.scope():
        resolved = objective.resolve(pair, torch.randn(4, 3))
    assert resolved == MeanFieldELBO(beta=objective.beta, free_bits=0.25, num_particles=3)


def test_pyros_objects_are_accepted() -> None:
    assert as_objective(None) == ELBO()
    assert as_objective(pyro.infer.TraceEnum_ELBO(num_particles=2)) == EnumELBO(num_particles=2)


def test_parameters_with_constraints_pass_through_every_objective() -> None:
    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    x = torch.zeros(4000)
    pair = Pair(programs.normal, guide)
    with pair.scope():
        layout: Layout = find_layout(pair, x)
        # d/d log v of E[(z^2 + z^2) / 2] - entropy = 2 v - 1 at v = 1/4, chain rule to log scale
        for objective in (TraceELBO(), MeanFieldELBO(), ImportanceWeightedELBO(num_particles=1)):
            loss = objective(pair, layout, x).loss
            (grad,) = torch.autograd.grad(loss, [pyro.get_param_store()._params["scale"]])
            assert float(grad) == pytest.approx(2 * 0.25 - 1, abs=0.1)


@pytest.mark.parametrize(
    "objective",
    [ELBO, TraceELBO, MeanFieldELBO, EnumELBO, ImportanceWeightedELBO, GumbelSoftmaxELBO],
)
def test_settings_are_given_by_name(objective: Any) -> None:
    # Pyro's first setting is num_particles, ours beta: ImportanceWeightedELBO(5) would weigh the KL by five
    with pytest.raises(TypeError, match="positional"):
        objective(5)
    assert objective(num_particles=5).num_particles == 5
    assert objective(num_particles=5).beta == 1.0
