"""The autoregressive model against the sum over all rows, its Jacobian, and the data's own frequencies."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from ppl_vae import check, evaluate, fit, load_run, save_run, to_arviz
from ppl_vae.models.deep.autoregressive import Autoregressive
from ppl_vae.objectives import ELBO, Objective, TraceELBO

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "binary": ((1, 2, 3), 2),
    "categorical": ((4,), 3),
}
shapes = pytest.mark.parametrize(("shape", "categories"), SHAPES.values(), ids=SHAPES.keys())


def nothing(*batch: Tensor) -> None:
    """The guide of a model without latents."""


def make(shape: tuple[int, ...], categories: int) -> Autoregressive:
    """A model in float64 whose values depend on each other far more than at the start."""
    model = Autoregressive(shape, categories, hidden=(64, 64)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model


def all_rows(shape: tuple[int, ...], categories: int) -> Tensor:
    rows = itertools.product(range(categories), repeat=math.prod(shape))
    return torch.tensor(list(rows)).reshape(-1, *shape)


@shapes
def test_probabilities_are_those_of_the_draws_and_sum_to_one(
    shape: tuple[int, ...], categories: int
) -> None:
    model, rows = make(shape, categories), all_rows(shape, categories)
    p = model.log_evidence(rows).exp().detach()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
    draws = model.marginal().sample((200, 100))
    assert draws.shape == (200, 100, *shape)
    assert draws.dtype == torch.float64
    places = categories ** torch.arange(math.prod(shape) - 1, -1, -1)
    counts = (draws.reshape(20_000, -1).long() @ places).bincount(minlength=len(rows))
    often = p > 5 / 20_000
    seen = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    means = 20_000 * torch.cat([p[often], p[~often].sum()[None]])
    assert often.sum() > 8
    assert chisquare(seen, means).pvalue > 1e-3


@shapes
def test_log_evidence_is_the_chain_rule(shape: tuple[int, ...], categories: int) -> None:
    """Conditionals by summing the joint over what comes later, not by the network's outputs."""
    model, rows = make(shape, categories), all_rows(shape, categories)
    joint = model.log_evidence(rows).exp().reshape([categories] * math.prod(shape))
    x = rows[len(rows) // 3]
    conditionals = model.logits(x[None])[0].softmax(-1).reshape(-1, categories)
    values = x.flatten().tolist()
    for i in range(len(values)):
        slab = joint[tuple(values[:i])]
        expected = slab.reshape(categories, -1).sum(-1) / slab.sum()
        assert torch.allclose(conditionals[i], expected, atol=1e-12)


@shapes
def test_the_jacobian_is_strictly_lower_triangular(shape: tuple[int, ...], categories: int) -> None:
    model, size = make(shape, categories), math.prod(shape)
    slopes = torch.zeros(size, size, dtype=torch.float64)
    for _ in range(20):  # a ReLU may be silent at one point
        point = torch.rand(size * (categories - 1), dtype=torch.float64)
        jacobian: Any = torch.autograd.functional.jacobian(model.network, point)
        blocks = jacobian.reshape(size, categories, size, categories - 1)
        slopes += blocks.abs().sum((1, 3))
    assert (slopes.triu() == 0).all()
    assert (slopes[torch.ones(size, size, dtype=torch.bool).tril(-1)] > 0).all()


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(ELBO(), id="ELBO"),
        pytest.param(TraceELBO(num_particles=2), id="Trace", marks=pytest.mark.slow),
    ],
)
def test_fit_learns_the_frequencies(objective: Objective) -> None:
    """Trained on all rows with multiplicities, the best log p(x) is minus the entropy of those."""
    weights = torch.tensor([9, 1, 3, 3, 1, 5, 7, 3])  # of the 8 binary rows of three values
    data = all_rows((3,), 2).repeat_interleave(weights, 0).float()
    model = Autoregressive((3,), 2, hidden=(32,))
    assert check(model, nothing, data, objective=objective).ok
    fit(
        model,
        nothing,
        data,
        objective=objective,
        max_epochs=300,
        batch_size=len(data),
        learning_rate=0.02,
        seed=0,
        progress=False,
    )
    expected = weights / weights.sum()
    found = model.log_evidence(all_rows((3,), 2)).exp()
    assert torch.allclose(found, expected, atol=2e-3)


def test_evaluates_saves_loads_and_exports(tmp_path: Path) -> None:
    model = Autoregressive((1, 2, 3), 4, hidden=(8,))
    x = torch.randint(0, 4, (16, 1, 2, 3)).float()
    evaluation = evaluate(model, nothing, x, num_samples=5, progress=False)
    log_p = model.log_evidence(x).detach()
    torch.testing.assert_close(evaluation.log_likelihood.values.float(), log_p)
    torch.testing.assert_close(evaluation.elbo.values.float(), log_p)
    assert (evaluation.rate.values == 0).all()
    assert not evaluation.unreliable.any()
    save_run(tmp_path / "run", model, nothing)
    other = Autoregressive((1, 2, 3), 4, hidden=(8,))
    assert not torch.equal(other.log_evidence(x), log_p)
    run = load_run(tmp_path / "run", other, nothing)
    assert torch.equal(run.model.log_evidence(x), log_p)  # type: ignore[attr-defined]
    exported = to_arviz(model, nothing, x, num_samples=4, num_draws=3, seed=1)
    assert exported["posterior_predictive"]["x"].shape == (1, 3, 16, 1, 2, 3)
    assert exported["log_likelihood"]["x"].shape[-1] == 16


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two values .* got data_shape \(1,\) and 2"):
        Autoregressive((1,))
    with pytest.raises(ValueError, match=r"at least two categories, got .* and 1 categories"):
        Autoregressive((4,), categories=1)
    with pytest.raises(ValueError, match=r"hidden must hold positive widths, got \(8, 0\)"):
        Autoregressive((4,), hidden=(8, 0))
    model = Autoregressive((4,))
    with pytest.raises(ValueError, match=r"data of shape \(n, 4\), but x has shape \(5, 3\)"):
        model.log_evidence(torch.zeros(5, 3))
    report = check(model, nothing, torch.full((5, 4), 2.0))
    assert "outside of the support of AutoregressiveCategorical" in str(report)
