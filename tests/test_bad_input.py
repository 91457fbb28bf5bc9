"""What people give by mistake: each answer names what is wrong and what was expected, in one plain error.

Inputs that belong to one part (programs, shapes, rows, a command's options) are in the tests of that part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ppl_vae
from ppl_vae import objectives
from ppl_vae.checks import PairWarning
from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.evaluation import Generator
from ppl_vae.guides import MeanField, NeuralSpline
from ppl_vae.likelihoods import Bernoulli, LearnedGaussian
from ppl_vae.models import VAE, DiagonalNormal, GaussianHMM, GaussianMixture, HierarchicalVAE
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.pairs import PairError
from ppl_vae.plots import learning_curves
from ppl_vae.runtime import make_fabric, seed_everything
from ppl_vae.training import DivergenceError, refit_prior

X = torch.linspace(-1.0, 1.0, 60).reshape(20, 3)
SMALL = MLP(hidden=(4,))


def put(value: float, row: int, rows: int = 300) -> Tensor:
    """Rows with one other number, in column 2 of a row."""
    x = torch.linspace(-1.0, 1.0, 3 * rows).reshape(rows, 3)
    x[row, 2] = value
    return x


def pair(latent_dim: int = 2, of_guide: int | None = None) -> tuple[VAE, MeanField]:
    torch.manual_seed(0)
    model = VAE((3,), latent_dim, SMALL, LearnedGaussian())
    return model, MeanField((3,), of_guide or latent_dim, SMALL)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5).to_event(1))


def observing(likelihood: Any) -> Callable[[Tensor], None]:
    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood, obs=x)

    return of


def one_number(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(shift, 1.0))


def in_plate(name: str, size: int | None = None) -> Callable[[Tensor], None]:
    def of(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(3))
        with pyro.plate(name, size or len(x)):
            pyro.sample("z", dist.Normal(shift, 1.0).to_event(1))

    return of


def fit(*pair_and_rows: Any, **options: Any) -> Any:
    return ppl_vae.fit(
        *pair_and_rows,
        **{"max_epochs": 1, "seed": 0, "device": "cpu", "progress": False, **options},
    )


def evaluate(*pair_and_rows: Any, **options: Any) -> Any:
    return ppl_vae.evaluate(*pair_and_rows, **{"num_samples": 3, "seed": 0, **options})


class Changing:
    """Batches that are others from some pass on."""

    def __init__(self, *later: Tensor, passes: int) -> None:
        self.later, self.left = later, passes

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        return iter((X, X) if self.left >= 0 else self.later)


class Items:
    """Batches of any kind."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


TABLE = pd.DataFrame(X.numpy(), columns=list("abc"))
DATES = np.arange(20).astype("datetime64[D]")

ROWS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "dates": (
        lambda: fit(model, guide, DATES),
        TypeError,
        [
            "x is a numpy.ndarray of dtype datetime64[D]",
            "(x - x.min()) / numpy.timedelta64(1, 'D')",
        ],
    ),
    "a span of time": (
        lambda: fit(model, guide, DATES - DATES[0]),
        TypeError,
        ["timedelta64", "(x) / numpy.timedelta64(1, 'D')"],
    ),
    "a column of dates": (
        lambda: fit(model, guide, TABLE.assign(born=pd.Timestamp("2020-02-29"))),
        TypeError,
        ["'born': datetime64", "of dates, the days since the first one"],
    ),
    "a column of categories": (
        lambda: fit(model, guide, TABLE.assign(sex=pd.Categorical(["f", "m"] * 10))),
        TypeError,
        ["'sex': object", "or leave them out"],
    ),
    "missing whole numbers": (
        lambda: fit(model, guide, TABLE.assign(a=pd.array([1, None] * 10, dtype="Int64"))),
        PairError,
        ["row 1 of the rows checked", "NaN in 10 of the 20 rows", "column 0"],
    ),
    "named fields": (
        lambda: fit(model, guide, np.zeros(4, [("a", "f4"), ("b", "f4")])),
        TypeError,
        ["structured_to_unstructured(x, 'float32')"],
    ),
    "objects": (
        lambda: fit(model, guide, np.array([[1, 2, 3], [4, None, 6]], dtype=object)),
        TypeError,
        ["x is a numpy.ndarray of dtype object"],
    ),
    "complex numbers": (
        lambda: fit(*pair(), X.to(torch.complex64)),
        PairError,
        ["x is torch.complex64", "torch.view_as_real(x).float()"],
    ),
    "no columns": (
        lambda: fit(model, guide, X[:, :0]),
        ValueError,
        ["the rows of x hold no numbers", "(20, 0)"],
    ),
    "no columns in a batch": (
        lambda: fit(model, guide, Items(X[:, :0])),
        ValueError,
        ["the rows of a batch of x hold no numbers"],
    ),
    "no device": (
        lambda: fit(model, guide, torch.zeros(4, 3, device="meta")),
        TypeError,
        ["on the device 'meta'", "holds no numbers"],
    ),
    "negative counts": (
        lambda: fit(observing(dist.Poisson(2.0)), one_number, torch.tensor([3.0, 0.0, -2.0])),
        PairError,
        ["row 2 of the rows checked", "such as -2,", "Poisson"],
    ),
    "nearly binary": (
        lambda: fit(observing(dist.Bernoulli(0.5)), one_number, torch.tensor([0.0, 1.0 - 1e-7])),
        PairError,
        ["row 1 of", "such as 0.999999881,", "support of Bernoulli, 0 and 1", "binarize it"],
    ),
    "a share above 1": (
        lambda: fit(
            observing(dist.ContinuousBernoulli(0.5)), one_number, torch.tensor([0.5, 1 + 1e-6])
        ),
        PairError,
        ["row 1 of", "such as 1.00000095,", "ContinuousBernoulli"],
    ),
    "category number K": (
        lambda: fit(
            observing(dist.Categorical(torch.ones(3) / 3)), one_number, torch.tensor([0, 3])
        ),
        PairError,
        ["row 1 of", "such as 3,", "integers from 0 to 2"],
    ),
    "float32 for float64": (
        lambda: fit(*(p.double() for p in pair()), X),
        PairError,
        ["x is torch.float32, the parameters are torch.float64: pass x.double()"],
    ),
    "a guide in float64 alone": (
        lambda: fit(pair()[0], pair()[1].double(), X),
        PairError,
        ["parameters of torch.float32 and torch.float64", "model.float()"],
    ),
    "a result as rows": (
        lambda: evaluate(model, guide, evaluate(model, guide, X)),
        TypeError,
        ["x is a ppl_vae.Evaluation", "expected a tensor of shape (rows, ...)"],
    ),
    "all splits as rows": (
        lambda: fit(model, guide, load_data("digits", max_rows=5)),
        TypeError,
        ["x is a ppl_vae.Data"],
    ),
    "batches of words": (
        lambda: fit(model, guide, Items("abc")),
        TypeError,
        ["x gives batches of type str", "expected tensors"],
    ),
    "no batches": (lambda: fit(model, guide, Items()), ValueError, ["x holds no batches"]),
    "a narrower second pass": (
        lambda: fit(*pair(), Changing(X[:, :2], X[:, :2], passes=3), max_epochs=3, capture=False),
        PairError,
        ["has rows of shape (2,)", "does not run", "those before had (3,)", "counted from 0"],
    ),
    "a second pass of NaN": (
        lambda: fit(*pair(), Changing(X, X * torch.nan, passes=5), max_epochs=4),
        DivergenceError,
        ["'x' in the model: its observed data are NaN", "remove or repair these rows"],
    ),
    "a second pass of nothing": (
        lambda: fit(*pair(), Changing(passes=4), max_epochs=4),
        ValueError,
        ["x gave no batches in epoch", "it can be read only once"],
    ),
    "validation of another width": (
        lambda: fit(*pair(), X, validation=X[:, :2]),
        PairError,
        ["validation: the guide raised ValueError", "built for rows of shape (3,)"],
    ),
    "validation of another width later": (
        lambda: fit(*pair(), X, validation=[X, X[:, :2]]),
        PairError,
        ["validation: the pair does not run on its batch 1", "built for rows of shape (3,)"],
    ),
    "validation with NaN": (
        lambda: fit(*pair(), X, validation=put(torch.nan, 7)),
        PairError,
        ["row 7 of validation (counted from 0)", "NaN", "column 2"],
    ),
    "a transform that divides by 0": (
        lambda: fit(*pair(), X, transform=lambda x: 1 / 0),
        ValueError,
        ["transform raised ZeroDivisionError", "of shape (20, 3)", "division by zero"],
    ),
    "a transform of two arguments": (
        lambda: fit(*pair(), X, transform=lambda x, y: x),
        ValueError,
        ["transform raised TypeError", "missing 1 required positional argument"],
    ),
    "a transform to float64": (
        lambda: fit(*pair(), X, transform=lambda x: x.double()),
        PairError,
        ["x is torch.float64, the parameters are torch.float32"],
    ),
    "a transform to numpy": (
        lambda: fit(*pair(), X, transform=lambda x: x.numpy()),
        TypeError,
        ["transform returned a numpy.ndarray", "must return a tensor"],
    ),
}

PROGRAMS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "a guide with another number of latents": (
        lambda: fit(*pair(2, of_guide=3), X),
        PairError,
        ["site 'z' has 2 dimensions in the model and 3 dimensions in the guide"],
    ),
    "the same in evaluate": (
        lambda: evaluate(*pair(1, of_guide=4), X),
        PairError,
        ["site 'z' has 1 dimension in the model and 4 dimensions in the guide"],
    ),
    "a guide without the site": (
        lambda: fit(model, lambda x: None, X),
        PairError,
        ["latent site 'z' is not sampled by the guide, which samples nothing"],
    ),
    "a plate of another size": (
        lambda: fit(model, in_plate("data", 7), X),
        PairError,
        ["'data'", "size 7", "20 rows"],
    ),
    "a plate of another name": (
        lambda: fit(model, in_plate("rows"), X),
        PairError,
        ["site 'z' is in 'data' in the model and in 'rows' in the guide"],
    ),
    "a guide of no arguments": (
        lambda: fit(model, lambda: None, X),
        PairError,
        ["the guide raised TypeError", "takes 0 positional arguments but 1 was given"],
    ),
    "a model of keywords": (
        lambda: fit(lambda *, x: None, guide, X),
        TypeError,
        ["the model takes 'x' by keyword alone"],
    ),
    "a layer as model": (
        lambda: fit(nn.Linear(3, 3), guide, X),
        PairError,
        ["the model observes nothing", "obs=x"],
    ),
    "a fit as model": (
        lambda: evaluate(fit(model, guide, X), guide, X),
        TypeError,
        ["model is a ppl_vae.Fit: pass a Pyro program"],
    ),
    "both in a tuple": (
        lambda: evaluate((model, guide), X, X),
        TypeError,
        ["model is a tuple: pass a Pyro program"],
    ),
    "a loss of torch": (
        lambda: fit(model, guide, X, objective=nn.MSELoss()),
        TypeError,
        ["objective is an object of MSELoss", "ppl_vae.objectives"],
    ),
    "SVI as objective": (
        lambda: fit(model, guide, X, objective=object.__new__(pyro.infer.SVI)),
        TypeError,
        ["objective is an object of SVI", "pyro.infer.Trace_ELBO()"],
    ),
}

OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "a trillion samples": (
        lambda: evaluate(model, guide, X, num_samples=10**12),
        ValueError,
        ["num_samples must be at most 100,000,000, got 1,000,000,000,000", "square root"],
    ),
    "half a sample": (
        lambda: evaluate(model, guide, X, num_samples=2.5),
        TypeError,
        ["num_samples must be a whole number, got 2.5"],
    ),
    "yes, samples": (
        lambda: evaluate(model, guide, X, num_samples=True),
        TypeError,
        ["num_samples must be a whole number, got True"],
    ),
    "gaps of one sample": (
        lambda: ppl_vae.inference_gaps(model, guide, X, num_samples=1),
        ValueError,
        ["num_samples must be at least 2, got 1"],
    ),
    "gaps in no steps": (
        lambda: ppl_vae.inference_gaps(model, guide, X, max_steps=0),
        ValueError,
        ["max_steps must be at least 1, got 0"],
    ),
    "too many temperatures": (
        lambda: ppl_vae.annealed_importance_sampling(model, guide, X, num_steps=10**12),
        ValueError,
        ["num_steps must be at most 1,000,000, got 1,000,000,000,000"],
    ),
    "too many draws": (
        lambda: ppl_vae.to_arviz(model, guide, X, num_draws=10**12),
        ValueError,
        ["num_draws must be at most"],
    ),
    "a word as seed": (
        lambda: fit(model, guide, X, seed="a"),
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "a fraction as seed": (
        lambda: evaluate(model, guide, X, seed=1.5),
        TypeError,
        ["seed must be a whole number, got 1.5"],
    ),
    "a seed of 70 bits": (
        lambda: evaluate(model, guide, X, seed=2**70),
        ValueError,
        ["seed must be at most 9,223,372,036,854,775,807"],
    ),
    "data with a word as seed": (
        lambda: load_data("digits", seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got 'a'"],
    ),
    "data with a seed of 70 bits": (
        lambda: load_data("digits", seed=2**70),
        ValueError,
        ["seed must be a whole number of 64 bits"],
    ),
    "EM with a word as seed": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "EM with a word as tolerance": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, tolerance="low"),  # type: ignore[arg-type]
        TypeError,
        ["tolerance must be a number, got the string 'low'"],
    ),
    "EM for half an iteration": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, max_iterations=0.5),  # type: ignore[arg-type]
        TypeError,
        ["max_iterations must be a whole number, got 0.5"],
    ),
    "the number of a device": (
        lambda: fit(model, guide, X, device=3),
        TypeError,
        ["device must be 'auto', 'cpu', 'cuda'", "got 3"],
    ),
    "a device of another name": (
        lambda: fit(model, guide, X, device="gpu"),
        ValueError,
        ["device='gpu': expected 'auto', 'cpu', 'cuda'"],
    ),
    "a name as fabric": (
        lambda: fit(model, guide, X, fabric="cuda"),
        TypeError,
        ["fabric must be a launched Lightning Fabric", "got the string 'cuda'"],
    ),
    "no processes": (
        lambda: make_fabric("cpu", num_processes=0),
        ValueError,
        ["num_processes must be at least 1, got 0"],
    ),
    "endless epochs": (
        lambda: fit(model, guide, X, max_epochs=float("inf")),
        TypeError,
        ["max_epochs must be a whole number, got inf"],
    ),
    "a check of no rows": (
        lambda: ppl_vae.check(model, guide, X, batch_size=0),
        ValueError,
        ["batch_size must be at least 1, got 0"],
    ),
    "patience without validation": (
        lambda: fit(model, guide, X, patience=3),
        ValueError,
        ["early stopping watches the held-out ELBO: give validation rows"],
    ),
    "a negative beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta=-1.0),
        ValueError,
        ["beta is a weight of the KL and must be >= 0, not -1.0"],
    ),
    "a word as beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta="one"),  # type: ignore[arg-type]
        TypeError,
        ["beta must be a number, got the string 'one'"],
    ),
    "an objective with a negative beta": (
        lambda: objectives.ELBO(beta=-1.0),
        ValueError,
        ["must be >= 0, not -1.0"],
    ),
    "a number as truth": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=3.0),  # type: ignore[arg-type]
        TypeError,
        ["truth must be what evaluate or annealed_importance_sampling has returned", "got 3.0"],
    ),
    "a truth of other rows": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=evaluate(model, guide, X[:5])),
        ValueError,
        ["truth holds log p(x) of 5 rows, but x has 20"],
    ),
    "a dict as evaluation": (
        lambda: ppl_vae.to_arviz(model, guide, X, evaluation={}),  # type: ignore[arg-type]
        TypeError,
        ["evaluation must be what evaluate has returned", "got an object of dict"],
    ),
    "a name as prior": (
        lambda: refit_prior(*pair(), X, "normal"),  # type: ignore[arg-type]
        TypeError,
        ["prior must be a description such as MixturePrior(20), got the string 'normal'"],
    ),
    "a class as prior": (
        lambda: refit_prior(*pair(), X, DiagonalNormal),  # type: ignore[arg-type]
        TypeError,
        ["got the class DiagonalNormal"],
    ),
    "no draws of data": (
        lambda: Generator(*pair(), X).from_prior(0),
        ValueError,
        ["num must be at least 1, got 0"],
    ),
    "latents of another width": (
        lambda: Generator(*pair(), X).decode(torch.zeros(4, 5)),
        ValueError,
        ["z has shape (4, 5)", "expected (m, 2)"],
    ),
    "an empty history": (
        lambda: learning_curves([]),
        ValueError,
        ["the history is empty", "metrics.csv is missing"],
    ),
}

PARTS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "half a latent": (
        lambda: VAE((3,), latent_dim=2.5),  # type: ignore[arg-type]
        TypeError,
        ["VAE.latent_dim must be a whole number, got 2.5"],
    ),
    "a number as shape": (
        lambda: VAE(3),  # type: ignore[arg-type]
        TypeError,
        ["VAE.data_shape must be the shape of a row, such as (5,), got 3"],
    ),
    "rows of no numbers": (
        lambda: MeanField((0,)),
        ValueError,
        ["MeanField.data_shape must hold positive numbers, got (0,)"],
    ),
    "half a column": (
        lambda: GaussianHMM((4, 0.5)),  # type: ignore[arg-type]
        TypeError,
        ["GaussianHMM.data_shape must hold whole numbers, got (4, 0.5)"],
    ),
    "the name of a network": (
        lambda: NeuralSpline((3,), network="MLP"),  # type: ignore[arg-type]
        TypeError,
        ["NeuralSpline.network must be an object such as MLP(), got 'MLP'"],
    ),
    "the class of a network": (
        lambda: HierarchicalVAE((3,), latent_network=MLP),  # type: ignore[arg-type]
        TypeError,
        ["HierarchicalVAE.latent_network must be an object such as MLP(), got the class MLP"],
    ),
    "the class of a likelihood": (
        lambda: VAE((3,), likelihood=Bernoulli),  # type: ignore[arg-type]
        TypeError,
        ["VAE.likelihood must be an object such as Bernoulli(), got the class Bernoulli"],
    ),
    "the name of a prior": (
        lambda: VAE((3,), prior="normal"),  # type: ignore[arg-type]
        TypeError,
        ["VAE.prior must be an object such as StandardNormal(), got 'normal'"],
    ),
    "one width": (
        lambda: MLP(hidden=8),  # type: ignore[arg-type]
        TypeError,
        ["MLP.hidden must be a list of widths, one for each layer, got 8"],
    ),
    "half a channel": (
        lambda: Convolutional(channels=(2.5,)),  # type: ignore[arg-type]
        TypeError,
        ["Convolutional.channels must hold whole numbers, got (2.5,)"],
    ),
}

CASES = ROWS | PROGRAMS | OPTIONS | PARTS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = CASES[case]
    refused(call, kind, *words)


def refused(call: Callable[[], Any], kind: type[Exception], *words: str) -> None:
    """The call raises an error of exactly this class, with these words, that is not long."""
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        assert word in said
    assert len(said) < 900
    assert said.count("\n") < 4


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


# -- files and folders ----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    return tmp_path


FILES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "run_dir a file": (
        lambda: fit(model, guide, X, run_dir="file"),
        NotADirectoryError,
        ["run_dir: file is a file; choose another folder"],
    ),
    "run_dir below a file": (
        lambda: fit(model, guide, X, run_dir="file/run"),
        NotADirectoryError,
        ["run_dir: file is a file, and file/run would be below it"],
    ),
    "run_dir a number": (
        lambda: fit(model, guide, X, run_dir=3),
        TypeError,
        ["run_dir must be a path, got 3"],
    ),
    "a null in a path": (
        lambda: fit(model, guide, X, run_dir="a\0b"),
        ValueError,
        ["run_dir='a\\x00b'", "null character"],
    ),
    "a null in the path of a run": (
        lambda: ppl_vae.save_run("a\0b", *pair()),
        ValueError,
        ["path='a\\x00b'"],
    ),
    "a null in the path of data": (
        lambda: load_data("a\0b.npy"),
        ValueError,
        ["'a\\x00b.npy' is not the path of a file"],
    ),
    "a folder of the name of a file": (
        lambda: load_data("folder.npy"),
        IsADirectoryError,
        ["folder.npy is a folder; expected an array file"],
    ),
    "data of no name": (lambda: load_data(""), ValueError, ["unknown data ''. Known are digits"]),
    "data of a number": (
        lambda: load_data(5),  # type: ignore[arg-type]
        TypeError,
        ["load_data takes the name of data, such as 'digits'", "not 5 of type int"],
    ),
    "data_dir a number": (
        lambda: load_data("digits", data_dir=3),  # type: ignore[arg-type]
        TypeError,
        ["data_dir must be a path, got 3"],
    ),
    "a run of a number": (
        lambda: ppl_vae.load_run(3),  # type: ignore[arg-type]
        TypeError,
        ["load_run takes the path of a run folder, got 3"],
    ),
    "a run's config a word": (
        lambda: ppl_vae.save_run("run", *pair(), config="digits"),  # type: ignore[arg-type]
        TypeError,
        ["config must be a dict, got the string 'digits'"],
    ),
    "a run's fit a dict": (
        lambda: ppl_vae.save_run("run", *pair(), fit={}),  # type: ignore[arg-type]
        TypeError,
        ["fit must be what fit has returned, got an object of dict"],
    ),
    "a run's evaluation a word": (
        lambda: ppl_vae.save_run("run", *pair(), evaluation="good"),  # type: ignore[arg-type]
        TypeError,
        ["evaluation must be a result, or its to_dict(), got the string 'good'"],
    ),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_and_folders_are_named(case: str, here: Path) -> None:
    call, kind, words = FILES[case]
    refused(call, kind, *words)
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.npy"]


def test_a_file_that_may_not_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(here / "x.npy", X)

    def forbid(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbid)
    refused(lambda: load_data("x.npy"), PermissionError, "x.npy may not be read")


@pytest.mark.parametrize("name", ["with space & sign.npy", "ümlaut-数.npy", "a'b.npy", "-x.npy"])
def test_odd_names_are_taken(name: str, here: Path) -> None:
    np.save(here / name, X)
    assert load_data(name).train.shape[1:] == (3,)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, here: Path) -> None:
    """Each of the eight ways in which a camera may be held, against the turns of the EXIF standard."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {  # what is in the file of a picture that is shown as `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    (here / "pictures").mkdir()
    for i in range(6):
        image = Image.fromarray(np.ascontiguousarray(stored if i else upright))
        exif = image.getexif()
        exif[0x0112] = orientation if i else 1
        image.save(here / "pictures" / f"{i}.png", exif=exif)
    found = load_data("folder:pictures")
    rows = torch.cat([found.train, found.validation, found.test])
    assert rows.shape == (6, 1, 2, 3)
    for row in rows:
        np.testing.assert_allclose(row[0].numpy() * 255, upright, atol=1e-3)


def description(kind: str) -> dict[str, Any]:
    sizes = {
        "data_shape": [1, 8, 8],
        "latent_dim": 2,
        "network": {"class_path": "ppl_vae.networks.MLP", "init_args": {"hidden": [4]}},
    }
    return {"class_path": kind, "init_args": sizes}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the command line makes it, untrained."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    torch.manual_seed(0)
    programs = VAE((1, 8, 8), 2, SMALL), MeanField((1, 8, 8), 2, SMALL)
    config: Mapping[str, Any] = {
        "data": "digits",
        "binarize": "threshold",
        "max_rows": 20,
        "max_epochs": 3,
        "seed": 0,
        "model": description("ppl_vae.models.VAE"),
        "guide": description("ppl_vae.guides.MeanField"),
        "objective": {
            "class_path": "ppl_vae.objectives.ELBO",
            "init_args": {
                "beta": {
                    "class_path": "ppl_vae.objectives.LinearWarmup",
                    "init_args": {"epochs": 2},
                }
            },
        },
    }
    x = load_data("digits", binarize="threshold", max_rows=20).test
    found = evaluate(*programs, x)
    ppl_vae.save_run(folder, *programs, config=config, evaluation=found, rows=x)
    (folder / "metrics.csv").write_text("epoch,elbo\n1,-30.0\n2,-20.0\n3,-10.0\n")
    return folder


@pytest.fixture
def run(here: Path, saved: Path) -> Path:
    """A copy of that run in the current folder."""
    return Path(shutil.copytree(saved, here / "run"))


def command(*arguments: str) -> int:
    return main([*arguments, "--quiet"] if arguments[0] != "compare" else list(arguments))


@pytest.mark.parametrize("content", ["", "[1, 2]", "null", '{"elbo": ', '{"rows": {"num": 3}}'])
def test_an_evaluation_that_cannot_be_read_can_be_replaced(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "evaluation.json"
    file.write_text(content)
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    assert "evaluation" in capsys.readouterr().err
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 0
    assert json.loads(file.read_text())["num_samples"] == 2


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("evaluation.json", "[]", "evaluation.json: this is not a result"),
        ("diagnosis.json", "[]", "diagnosis.json: this is not a result"),
        ("diagnosis.json", "{}", "diagnosis.json: it holds no 'active_units'"),
    ],
)
def test_results_that_lack_something_are_named(
    file: str, content: str, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(content)
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", ["elbo", "bits_per_dim", "num_samples", "rows"])
def test_an_evaluation_without_a_key_is_named(
    key: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    content[key] = {"mean": 1.0} if key in ("elbo", "bits_per_dim") else content.pop(key) and None
    content = {name: value for name, value in content.items() if value is not None}
    (run / "evaluation.json").write_text(json.dumps(content))
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    said = capsys.readouterr().err
    missing = {"elbo": "'standard_error'", "bits_per_dim": "'standard_error'", "rows": "rows"}
    assert missing.get(key, f"'{key}'") in said


def test_missing_metrics_are_told_where_they_count(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.csv").unlink()
    with pytest.warns(UserWarning, match=r"metrics\.csv is missing: how the training went"):
        assert ppl_vae.load_run("run").history == []
    assert command("diagnose", "run") == 0
    assert "the last beta of the run is not known: it is taken to be that after 3 epochs" in (
        capsys.readouterr().err
    )


def test_a_folder_in_the_place_of_a_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 1
    assert (
        "evaluation.json is a folder, but a file is to be written there" in capsys.readouterr().err
    )


def test_a_folder_in_the_place_of_a_checkpoint(here: Path) -> None:
    """The checkpoint before it is taken, with a warning, and the end is that of a training of one go."""

    def weights() -> Tensor:
        return torch.cat([p.flatten() for program in programs for p in program.parameters()])

    programs = pair()
    fit(*programs, X, max_epochs=2, batch_size=20, run_dir=here / "run")
    expected = weights()
    newest = max((here / "run" / "checkpoints").glob("step-*"))
    newest.unlink()
    newest.mkdir()
    (newest / "notes.txt").write_text("mine")
    programs = pair()
    with pytest.warns(UserWarning, match=r"this is a folder, not a file; continuing from step-0"):
        fit(*programs, X, max_epochs=2, batch_size=20, run_dir=here / "run", resume=True)
    torch.testing.assert_close(weights(), expected, rtol=0, atol=0)
    assert newest.is_file()
    assert (newest.with_name(f"{newest.name}.folder") / "notes.txt").read_text() == "mine"


# -- the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--max_epocs", "3"], 2, "--max_epocs 3 (did you mean --max_epochs?)"),
        (["train", "--model.latnt_dim", "3"], 2, "(did you mean --model.latent_dim?)"),
        (["train", "--model.network.hiden", "[3]"], 2, "(did you mean --model.network.hidden?)"),
        (["train", "--objective.betta", "3"], 2, "(did you mean --objective.beta?)"),
        (["train", "--gide", "MeanField"], 2, "(did you mean --guide?)"),
        (["evaluate", "run", "--nm_samples", "3"], 2, "(did you mean --num_samples?)"),
        (["train", "--num_samples", "1e12"], 2, "--num_samples: expected int"),
        (["train", "--num_samples", "0"], 1, "num_samples must be at least 1, got 0"),
        (["train", "--num_samples", str(10**12)], 1, "num_samples must be at most 100,000,000"),
        (["train", "--seed", "9" * 23], 1, "seed must be a whole number of 64 bits"),
        (["train", "--num_processes", "0"], 1, "num_processes must be at least 1, got 0"),
        (["train", "--guide.latent_dim", "4"], 1, "10 dimensions in the model and 4 dimensions"),
        (["sample", "run", "--num", str(10**12)], 2, "--num must be at most 1,000,000"),
        (["evaluate", "run", "--num_samples", str(10**12)], 1, "num_samples must be at most"),
        (["train", "--resume", "run", "--seed", "3"], 2, "leave out --seed"),
    ],
)
def test_options_of_commands(
    arguments: list[str], code: int, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.parent.rglob("*"))
    assert main([*arguments, "--quiet"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert sorted(run.parent.rglob("*")) == before


def test_seeds_of_any_size_are_taken() -> None:
    seeds: list[Any] = [0, -5, 2**32 + 1, 2**63 - 1, np.int64(3)]
    for seed in seeds:
        seed_everything(seed)
        first = torch.rand(3)
        seed_everything(seed)
        assert torch.equal(torch.rand(3), first)
