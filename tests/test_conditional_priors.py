"""Diagnosis where the prior depends on a label: what latents tell beyond it, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose

W = torch.tensor([2.0, 0.0])
"""What x tells of each latent: x = w (z - 5 y) + e."""


def model(x: Tensor, y: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        loc = 5.0 * y.float().reshape(len(x), -1).mean(1, keepdim=True).expand(-1, 2)
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(((z - loc) @ W), 1.0), obs=x)


def guide(x: Tensor, y: Tensor) -> None:
    """The exact posterior."""
    gain = W / (1 + W.square().sum())
    loc = 5.0 * y.float().reshape(len(x), -1).mean(1, keepdim=True) + x[:, None] * gain
    scale = (1 - W * gain).sqrt()
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def idle(x: Tensor, y: Tensor) -> None:
    """The prior."""
    with pyro.plate("rows", len(x)):
        loc = 5.0 * y.float()[:, None].expand(-1, 2)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


X = math.sqrt(5) * torch.randn(600, generator=torch.Generator().manual_seed(0))
Y = torch.arange(600) % 3


def test_what_the_label_says_of_z_is_no_use_of_it() -> None:
    """I(x; z | y) = log(5) / 2, while I(x, y; z) has another log 3."""
    found = diagnose(model, guide, (X, Y), seed=0, progress=False)
    assert found.active.tolist() == [True, False]
    assert found.collapsed.tolist() == [False, True]
    assert found.causes["z[1]"].name == "surplus dimensions"
    exact = math.log(5) / 2
    assert found.mutual_information.mean == pytest.approx(exact, abs=0.1)
    low, high = found.information_bounds
    assert low < exact < high < exact + 0.3
    assert found.marginal_kl.mean == pytest.approx(0.0, abs=0.1)
    assert any("I(x; z | y), what z tells beyond y" in note for note in found.notes)


def test_a_prior_that_is_the_posterior_is_a_collapse() -> None:
    found = diagnose(model, idle, (X, Y), seed=0, progress=False)
    assert found.active_units == 0
    assert bool(found.collapsed.all())
    assert found.mutual_information.mean == pytest.approx(0.0, abs=0.02)


def in_column(rows: Tensor) -> None:
    """The label is a column of the data."""
    x, y = rows.T
    with pyro.plate("rows", len(x)):
        loc = 5.0 * y[:, None].expand(-1, 2)
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(((z - loc) @ W), 1.0), obs=x)


SORTED = Y.sort().values


@pytest.mark.slow(but=("column",))
@pytest.mark.parametrize(
    "order",
    [
        *("one row at once", "column"),
        *(pytest.param(order, marks=pytest.mark.slow) for order in ("sorted", "palindrome")),
    ],
)
def test_whatever_the_order_of_the_rows(order: str) -> None:
    y = Y if order == "column" else SORTED
    if order == "palindrome":
        y = torch.cat([SORTED[::2], SORTED[::2].flip(0)])
    rows: Any = (X, y)
    if order == "one row at once":
        rows = [(X[i : i + 1], y[i : i + 1]) for i in range(200, 450)]
    pair: Any = (model, guide)
    if order == "column":
        rows, pair = torch.stack([X, y.float()], 1), (in_column, lambda rows: guide(*rows.T))
    of_pair: Any = diagnose
    found = of_pair(*pair, rows, seed=0, progress=False)
    assert found.active.tolist() == [True, False]
    assert found.mutual_information.mean == pytest.approx(math.log(5) / 2, abs=0.15)
    low, high = found.information_bounds
    assert low < math.log(5) / 2 < high
    assert found.marginal_kl.mean == pytest.approx(0.0, abs=0.15)


def test_labels_of_which_each_row_has_its_own_are_told() -> None:
    y = torch.randn(600, 2, generator=torch.Generator().manual_seed(1))
    found = diagnose(model, guide, (X, y), seed=0, progress=False)
    assert found.active.tolist() == [True, False]
    assert math.isnan(found.mutual_information.mean)
    assert math.isnan(found.marginal_kl.mean)
    assert any("too few rows have the same prior" in note for note in found.notes)
    assert "How much z carries about x is not known" in found.summary()
    assert found.causes["z[1]"].name == "surplus dimensions"
    assert found.rate.mean == pytest.approx(math.log(5) / 2, abs=0.1)
    low, high = found.information_bounds
    assert low == 0
    assert high == pytest.approx(found.rate.mean, abs=0.1)


def free(x: Tensor, y: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W + y, 1.0), obs=x)


def of_free(x: Tensor, y: Tensor) -> None:
    gain = W / (1 + W.square().sum())
    with pyro.plate("rows", len(x)):
        loc = (x - y)[:, None] * gain
        pyro.sample("z", dist.Normal(loc, (1 - W * gain).sqrt()).to_event(1))


def test_a_prior_of_all_rows_has_no_conditions() -> None:
    """All rows are compared with each other: the limit is log n."""
    found = diagnose(free, of_free, (X + Y, Y), seed=0, progress=False)
    assert found.information_limit == pytest.approx(math.log(600))
    assert not any("beyond" in note for note in found.notes)
