"""What people bring along from plain Pyro as an objective: taken, or refused with what to write."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn
from trainings import Guide, Model, X, same, seeded, train, weights

from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    Loss,
    MeanFieldELBO,
    Objective,
    TraceELBO,
    as_objective,
)
from ppl_vae.pairs import Pair, find_layout


@pytest.mark.parametrize("settings", [{}, {"vectorize_particles": True, "max_plate_nesting": 1}])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (pyro.infer.Trace_ELBO, TraceELBO),
        (pyro.infer.TraceMeanField_ELBO, MeanFieldELBO),
        (pyro.infer.TraceEnum_ELBO, EnumELBO),
        (pyro.infer.JitTrace_ELBO, TraceELBO),
        (pyro.infer.JitTraceMeanField_ELBO, MeanFieldELBO),
        (pyro.infer.JitTraceEnum_ELBO, EnumELBO),
    ],
)
def test_what_is_taken(theirs: Any, ours: type[Objective], settings: dict[str, Any]) -> None:
    assert as_objective(theirs(num_particles=3, **settings)) == ours(num_particles=3)


@pytest.mark.parametrize(
    "theirs",
    [
        pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True),
        pyro.infer.JitTraceMeanField_ELBO(ignore_jit_warnings=True),
        pyro.infer.RenyiELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda theirs: type(theirs).__name__,
)
def test_what_stands_in_for_them_has_their_number(theirs: Any) -> None:
    """Pyro's loss is a sum over rows, ours a mean."""
    renyi = isinstance(theirs, pyro.infer.RenyiELBO)
    ours = ImportanceWeightedELBO(num_particles=7) if renyi else as_objective(theirs)
    pair = Pair(Model(), Guide())
    torch.manual_seed(3)
    expected = theirs.loss(pair.model, pair.guide, X) / len(X)
    with pair.scope():
        layout = find_layout(pair, X)
        torch.manual_seed(3)
        found = ours(pair, layout, X)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_training_by_a_jit_elbo_is_that_of_its_parent() -> None:
    _, found = train(objective=pyro.infer.JitTrace_ELBO(num_particles=2))
    _, expected = train(objective=pyro.infer.Trace_ELBO(num_particles=2))
    assert same(found, expected)


@dataclass(frozen=True)
class WithPenalty(Objective):
    """The ELBO and a penalty on the squared weights of the decoder, in nats per row."""

    penalty: float = 0.1

    def __call__(self, pair: Pair, layout: Any, batch: Any, beta: float = 1.0) -> Loss:
        found = TraceELBO(
            beta=self.beta, free_bits=self.free_bits, num_particles=self.num_particles
        )(pair, layout, batch, beta)
        model: Any = pair.model
        penalty = torch.stack([p.square().sum() for p in model.decoder.parameters()]).sum()
        return replace(found, loss=found.loss + self.penalty * penalty)


Tempered: Any = type("Tempered", (pyro.infer.Trace_ELBO,), {})  # of a user
SVI = pyro.infer.SVI(
    Model(), Guide(), pyro.optim.PyroOptim(torch.optim.Adam, {}), pyro.infer.Trace_ELBO()
)
WRONG: list[tuple[Any, str]] = [
    (pyro.infer.TraceGraph_ELBO(num_particles=3), "object of TraceGraph_ELBO.*num_particles=3"),
    (pyro.infer.JitTraceGraph_ELBO(), "JitTraceGraph_ELBO.*=TraceELBO.*=EnumELBO"),
    (pyro.infer.RenyiELBO(num_particles=5), r"write objective=ImportanceWeightedELBO\(num_pa.*5\)"),
    (pyro.infer.RenyiELBO(alpha=0.5), "the bound of alpha = 0 alone"),
    (pyro.infer.RenyiELBO, r"the class RenyiELBO.*num_particles=\.\.\."),
    (
        pyro.infer.ReweightedWakeSleep(),
        "no wake-sleep; nearest is objective=ImportanceWeightedELBO",
    ),
    (pyro.infer.TraceTMC_ELBO(), "no tensor Monte Carlo.*marked infer={'enumerate'"),
    (pyro.infer.TraceTailAdaptive_ELBO(), "no tail-adaptive.*ImportanceWeightedELBO"),
    (
        pyro.infer.EnergyDistance(),
        "an object of EnergyDistance: expected an objective of ppl_vae.obj",
    ),
    (SVI, "object of SVI: fit takes the place.*objective=pyro.infer.Trace_ELBO"),
    (SVI.step, "the method step of an object of SVI: fit takes the place"),
    (ELBOModule(Model(), Guide(), pyro.infer.Trace_ELBO()), "fit runs model and guide itself"),
    (
        Tempered(),
        "object of Tempered: what it changes in Pyro's Trace_ELBO.*derives from ppl_vae.obj",
    ),
    (Tempered, "the class Tempered: what it changes"),
    (pyro.infer.Trace_ELBO, r"the class Trace_ELBO: .* objective=pyro.infer.Trace_ELBO\(\)"),
    (ELBO, r"the class ELBO: .* objective=ppl_vae.objectives.ELBO\(\)"),
    (WithPenalty, r"the class WithPenalty: .* objective=WithPenalty\(\)"),
    (Objective, "the class Objective: expected an objective.*derives from ppl_vae.obj"),
    (
        pyro.infer.Trace_ELBO().differentiable_loss,
        r"method differentiable_loss of an object of Trace_ELBO: .*objective=pyro.infer.Trace_ELBO\(\)",
    ),
    (
        lambda model, guide, x: 0.0,
        "a lambda: expected .* derives from ppl_vae.objectives.Objective",
    ),
    (nn.functional.mse_loss, "the function mse_loss of torch.*derives from ppl_vae.obj"),
    (functools.partial(pyro.infer.Trace_ELBO, 3), "a partial of the class Trace_ELBO: expected"),
    ("elbo", r"the string 'elbo': write objective=ppl_vae.objectives.ELBO\(\)"),
    ("TraceMeanField_ELBO", r"write objective=pyro.infer.TraceMeanField_ELBO\(\)"),
    ("iwae", "the string 'iwae': expected an objective of ppl_vae.objectives .ELBO, TraceELBO"),
    (pyro.infer, "the module pyro.infer: expected"),
    (3, "is 3: expected"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_is_refused(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"^objective .*{words}"):
        as_objective(given)


@pytest.mark.parametrize("capture", [True, False])
def test_an_objective_of_ones_own_trains(capture: bool) -> None:
    """A step of gradient descent on twice the penalty differs by its gradient, 2 w."""
    options: dict[str, Any] = {
        "optimizer": torch.optim.SGD,
        "learning_rate": 0.1,
        "batch_size": 50,
        "max_epochs": 1,
        "transform": seeded,
        "capture": capture,
    }
    before: dict[str, Tensor] = weights(Model(), Guide())
    _, once = train(objective=WithPenalty(penalty=0.1), **options)
    _, twice = train(objective=WithPenalty(penalty=0.2), **options)
    for name, value in before.items():
        rate = 0.1 * 0.1 * 2 if "decoder" in name else 0.0
        assert torch.allclose(once[name] - twice[name], rate * value, atol=1e-6)
