"""Guides of latents with few values that lag behind the model: found by the exact posterior."""

from __future__ import annotations

import math
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae
from ppl_vae import diagnose
from ppl_vae.checks import opened
from ppl_vae.diagnosis.finite_rows import finite_of, told_by_exact_posteriors

WRONG = torch.tensor([0.1, 0.3])
"""How often each bit of the data is not that of its latent."""

KINDS: dict[str, Any] = {
    "bits": lambda p: dist.Bernoulli(p).to_event(1),
    "categories": lambda p: dist.Categorical(torch.stack([1 - p, p], -1)).to_event(1),
    "one-hot": lambda p: dist.OneHotCategorical(torch.stack([1 - p, p], -1)).to_event(1),
}


class Channel(nn.Module):
    """Two latents of two values, and two bits that are copies of them with errors."""

    def __init__(self, kind: str, used: bool = True) -> None:
        super().__init__()
        self.kind, self.used = kind, used

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", KINDS[self.kind](torch.full((2,), 0.5)))
            z = z[..., 1] if self.kind == "one-hot" else z
            right = torch.where(z > 0.5, 1 - WRONG, WRONG) if self.used else 0 * z + 0.5
            pyro.sample("x", dist.Bernoulli(right).to_event(1), obs=x)


class Guide(nn.Module):
    """Log odds that are linear in x, which it ignores at the start but for rounding."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.mul_(1e-3)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", KINDS[self.kind](self.head(x).sigmoid()))


def rows(n: int) -> Tensor:
    """All four rows, equally often."""
    return torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).repeat(n // 4, 1)


def entropy(p: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return found


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_what_exact_posteriors_tell(kind: str, beta: float) -> None:
    """log 2 - h(e) for a channel with errors e; under beta, e^(1 / beta) and (1 - e)^(1 / beta) count."""
    wrong = WRONG ** (1 / beta) / (WRONG ** (1 / beta) + (1 - WRONG) ** (1 / beta))
    expected = (math.log(2) - entropy(wrong)).tolist()
    with opened(Channel(kind), Guide(kind), rows(100), seed=0, progress=False) as session:
        finite = finite_of(session)
        assert finite is not None
        told = told_by_exact_posteriors(session, finite, beta)
    each = [
        told[name] for name in told if not name.endswith("[0][1]") and not name.endswith("[1][1]")
    ]
    assert each == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow(but=("bits",))
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k == "one-hot" else ()) for k in KINDS]
)
def test_a_lagging_guide_of_few_values_is_named_and_mended(kind: str) -> None:
    torch.manual_seed(0)
    model, guide, x = Channel(kind), Guide(kind), rows(400)
    found = diagnose(model, guide, x, seed=0)
    assert found.active_units == 0
    assert found.cause == "lagging guide"
    assert not any("not ruled out" in note for note in found.notes)
    (evidence,) = {each.evidence for each in found.causes.values()}
    assert re.fullmatch(
        r"exact posteriors of 64 rows carry .* nats in .*, the guide none", evidence
    )
    (code,) = {each.code for each in found.causes.values()}
    assert code.startswith("ppl_vae.refit_guide(model, guide, x, ")
    code = code.replace("max_epochs=200", "max_epochs=100, learning_rate=0.1")
    exec(code, {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": x})
    assert diagnose(model, guide, x, seed=0).active.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_of_a_model_that_ignores_its_latents_does_not_lag(kind: str) -> None:
    found = diagnose(Channel(kind, used=False), Guide(kind), rows(400), seed=0)
    assert found.cause == "surplus dimensions"
    assert not any("not ruled out" in note for note in found.notes)
