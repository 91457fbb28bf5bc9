"""`with pyro.plate("data"):` stands for any size, as in Pyro's own examples of a VAE with labels."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import LOCS, WEIGHTS
from torch import Tensor

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.checks import check
from ppl_vae.diagnosis import inference_gaps
from ppl_vae.evaluation import annealed_importance_sampling
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    MeanFieldELBO,
    Objective,
    TraceELBO,
)
from ppl_vae.pairs import PairError

ROWS = 2 * torch.randn(70, generator=torch.Generator().manual_seed(0))
LOG_EVIDENCE = torch.distributions.Normal(0.0, 2**0.5).log_prob(ROWS)


def model(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(shift + torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data"):
        pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


@pytest.mark.parametrize("rows", [70, 1])
def test_every_number_is_right(rows: int) -> None:
    x, wanted = ROWS[:rows], LOG_EVIDENCE[:rows]
    assert check(model, guide, x).ok
    found = evaluate(model, guide, x, num_samples=10)
    for values in (found.log_likelihood.values, found.elbo.values):
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)
    annealed = annealed_importance_sampling(model, guide, x, num_chains=4, num_steps=4)
    torch.testing.assert_close(annealed.log_likelihood.values.float(), wanted, atol=1e-4, rtol=0)
    if rows > 1:
        gaps = inference_gaps(model, guide, x[:8], num_samples=50, max_steps=20)
        torch.testing.assert_close(
            gaps.log_likelihood.values.float(), wanted[:8], atol=0.02, rtol=0
        )
        assert diagnose(model, guide, x).active_units == 1


@pytest.mark.parametrize(
    "objective",
    [
        TraceELBO(),
        TraceELBO(num_particles=3),
        MeanFieldELBO(num_particles=3),
        ImportanceWeightedELBO(num_particles=3),
        ELBO(stick_the_landing=True),
    ],
    ids=str,
)
def test_training(objective: Objective) -> None:
    fitted = fit(
        model,
        guide,
        ROWS,
        objective=objective,
        max_epochs=1,
        batch_size=35,
        learning_rate=1e-9,
        seed=0,
        progress=False,
    )
    noise = 0.2 if isinstance(objective, MeanFieldELBO) else 1e-5  # an analytic KL leaves some
    assert fitted.history[-1]["loss"] == pytest.approx(-float(LOG_EVIDENCE.mean()), abs=noise)
    assert fitted.warnings == ()


def test_enumerated_latents_and_inner_plates() -> None:
    """A mixture with three numbers per row, each in an inner plate: the sum over components is exact."""

    def in_dimension_2(x: Tensor) -> None:
        with pyro.plate("data", dim=-2):
            z = pyro.sample(
                "z",
                dist.Categorical(WEIGHTS.expand(len(x), 1, 3)),
                infer={"enumerate": "parallel"},
            )
            with pyro.plate("numbers", dim=-1):
                loc = LOCS + pyro.param("shift", torch.tensor(0.0))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    def nothing(x: Tensor) -> None:
        pass

    x = torch.randn(6, 3)
    each = torch.distributions.Normal(LOCS, 1.0).log_prob(x[:, :, None]).sum(1)
    wanted = (WEIGHTS.log() + each).logsumexp(1)
    found = evaluate(in_dimension_2, nothing, x, num_samples=2)
    torch.testing.assert_close(found.log_likelihood.values, wanted, atol=1e-5, rtol=0)
    fitted = fit(
        in_dimension_2,
        nothing,
        x,
        objective=EnumELBO(),
        max_epochs=1,
        batch_size=3,
        learning_rate=1e-9,
        progress=False,
    )
    assert fitted.history[-1]["loss"] == pytest.approx(-float(wanted.mean()), abs=1e-5)


def test_one_draw_for_all_rows_is_refused() -> None:
    def one(x: Tensor) -> Any:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    message = r"plate 'data' has no size, and site 'z' .* Write pyro.plate\(\"data\", len\(x\)\)"
    with pytest.raises(PairError, match=message):
        evaluate(one, guide, ROWS)
    with pytest.raises(PairError, match=message):
        fit(one, guide, ROWS, max_epochs=1)
