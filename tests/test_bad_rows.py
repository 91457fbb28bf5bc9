"""Rows that are none: each answer names the row or the type, and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyro.distributions as dist
import pytest
import torch
from bad_inputs import (
    Case,
    Changing,
    Items,
    X,
    evaluate,
    fit,
    guide,
    model,
    observing,
    one_number,
    pair,
    put,
    refused,
)

import ppl_vae
from ppl_vae.data import load_data
from ppl_vae.pairs import PairError
from ppl_vae.training import DivergenceError

TABLE = pd.DataFrame(X.numpy(), columns=list("abc"))
DATES = np.arange(20).astype("datetime64[D]")

ROWS: dict[str, Case] = {
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


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = ROWS[case]
    refused(call, kind, *words)


class Broken(Items):
    """Batches of which one cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        yield X
        raise OSError("the disk is gone")


class Spent(Items):
    """Batches that come once only, for the checks."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter([X] if self.passes < 2 else [])


@pytest.mark.parametrize("call", [evaluate, ppl_vae.diagnose, fit])
def test_an_error_of_a_loader_says_in_which_batch(call: Callable[..., Any]) -> None:
    """The error is that of the loader, with its class and message; a traceback shows the note."""
    with pytest.raises(OSError, match="the disk is gone") as caught:
        call(*pair(), Broken())
    assert caught.value.__notes__[0] == "(x raised this for batch 1, counted from 0)"


def test_batches_that_come_once_only() -> None:
    refused(
        lambda: evaluate(*pair(), Spent()), ValueError, "x gave no batches: it can be read only"
    )


@pytest.mark.parametrize("call", [evaluate, ppl_vae.diagnose])
def test_a_later_batch_of_another_width(call: Callable[..., Any]) -> None:
    refused(
        lambda: call(*pair(), [X, X[:, :2]]),
        PairError,
        "the pair does not run on rows of shape (2,), from row 20 of x on",
        "built for rows of shape (3,)",
    )
