"""NaN, infinite and too large numbers among the rows: the answer names the row and the column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bad_inputs import (
    SMALL,
    Items,
    X,
    evaluate,
    fit,
    guide,
    model,
    pair,
    put,
    refused,
)
from torch import Tensor

import ppl_vae
from ppl_vae.checks import PairWarning
from ppl_vae.em import EMError
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import (
    VAE,
    FactorAnalysis,
    GaussianMixture,
    MixtureOfPCA,
    ProbabilisticPCA,
)
from ppl_vae.pairs import PairError
from ppl_vae.training import DivergenceError

# -- all rows before any work ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "of",
    [
        evaluate,
        ppl_vae.diagnose,
        lambda *a: ppl_vae.inference_gaps(*a, num_samples=3),
        lambda *a: ppl_vae.to_arviz(*a, num_samples=3, num_draws=2),
        lambda *a: ppl_vae.annealed_importance_sampling(*a, num_steps=2),
    ],
    ids=["evaluate", "diagnose", "gaps", "arviz", "annealing"],
)
@pytest.mark.parametrize(("value", "what"), [(torch.nan, "NaN"), (-torch.inf, "infinite")])
def test_a_late_row_is_found_before_the_work(
    of: Callable[..., Any], value: float, what: str
) -> None:
    seen: list[int] = []

    def watched(x: Tensor) -> None:
        seen.append(len(x))
        model(x)

    refused(
        lambda: of(watched, guide, put(value, row=290)),
        PairError,
        "row 290 of x (counted from 0): the data at site 'x' are",
        what,
        "column 2",
    )
    at_first = len(seen)
    with pytest.raises(PairError):
        of(watched, guide, put(value, row=3))
    assert at_first < 40  # the checks of the first rows, and the run that explains the row
    assert max(seen) <= 300


def test_a_loader_is_checked_as_it_comes_in_one_pass() -> None:
    class Counted(Items):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return super().__iter__()

    plain = Counted(*put(0.0, 0).split(100))
    evaluate(model, guide, plain)
    bad = Counted(*put(torch.nan, 290).split(100))
    refused(lambda: evaluate(model, guide, bad), PairError, "row 290 of x", "column 2")
    assert bad.passes == plain.passes


def test_nan_that_a_mask_hides_is_no_error() -> None:
    def masked(x: Tensor) -> None:
        there = x.isfinite()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            likelihood = dist.Normal(z, 1.0).mask(there).to_event(1)
            pyro.sample("x", likelihood, obs=x.nan_to_num())

    def q(x: Tensor) -> None:
        guide(x.nan_to_num())

    found = evaluate(masked, q, put(torch.nan, 290))
    assert bool(found.log_likelihood.values.isfinite().all())


def test_the_place_in_rows_of_several_dimensions() -> None:
    x = torch.zeros(30, 2, 3, 4)
    x[17, 1, 0, 3] = torch.nan
    torch.manual_seed(0)
    programs = VAE((2, 3, 4), 2, SMALL, LearnedGaussian()), MeanField((2, 3, 4), 2, SMALL)
    refused(
        lambda: evaluate(*programs, x), PairError, "row 17 of", ", at [1, 0, 3] in the row: remove"
    )


# -- numbers that are too large -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "kind", "words"),
    [
        (put(1e30, 0), {}, PairError, ["x reaches 1e+30 in row 0 (counted from 0), column 2"]),
        (put(-1e30, 200), {"batch_size": 300}, PairError, ["x reaches -1e+30 in row 200"]),
        (put(1e30, 200), {"batch_size": 100}, DivergenceError, ["the batch reaches 1e+30 in row"]),
    ],
)
def test_a_training_blames_the_data(
    x: Tensor, options: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    call: Callable[[], Any] = lambda: fit(*pair(), x, **options)  # noqa: E731
    refused(call, kind, "ikely cause are the data", "repair or rescale them", *words)


@pytest.mark.parametrize("row", [0, 290])
def test_results_blame_the_data(row: int) -> None:
    found = evaluate(*pair(), put(1e30, row))
    assert f"x reaches 1e+30 in row {row} (counted from 0), column 2" in "\n".join(found.warnings)
    assert not any("reaches" in text for text in evaluate(*pair(), put(1e9, row)).warnings)


def test_gaps_blame_the_data() -> None:
    refused(
        lambda: ppl_vae.inference_gaps(*pair(), put(1e30, 3)[:8], num_samples=4, max_steps=3),
        PairError,
        "The likely cause are the data: x reaches 1e+30 in row 3",
    )


def test_a_held_out_elbo_that_is_not_finite_is_told() -> None:
    with pytest.warns(PairWarning, match=r"validation reaches 1e\+30 in row 290"):
        fitted = fit(*pair(), X, validation=put(1e30, 290))
    assert "the held-out ELBO is NaN or infinite" in fitted.warnings[0]


@pytest.mark.parametrize("kind", [GaussianMixture, FactorAnalysis, MixtureOfPCA, ProbabilisticPCA])
def test_em_blames_the_data(kind: Any) -> None:
    x = 1e30 * torch.linspace(-1.0, 1.0, 60).reshape(20, 3)
    refused(
        lambda: ppl_vae.fit_em(kind((3,), 2), x, seed=0, tolerance=0.0, progress=False),
        EMError,
        "ikely cause are the data: x reaches -1e+30 in row 0 (counted from 0), column 0",
        "repair or rescale them",
    )
