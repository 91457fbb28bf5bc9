"""A loss or gradient that is not finite: where the error says it began, and what is left of the pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from trainings import Guide, Model, same, train, weights

from ppl_vae.runs import load_checkpoint
from ppl_vae.training import DivergenceError


class BadScale(Guide):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (1000.0 - x.abs().max()).sqrt() / 30.0  # the root of a negative number
            q = dist.Normal(self.encoder(x), scale * self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


class LogOfNegative(Model):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.log(1000.0 - x.abs().max()) * self.decoder(z)
            pyro.sample("pixels", dist.Normal(loc, 0.7).to_event(1), obs=x)


class SteepGradient(Model):
    """Its loss is finite everywhere; its gradient is infinite at a weight of zero."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.decoder.weight[0, 0] = 0.0

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            root = self.decoder.weight[0, 0].abs().sqrt()
            pyro.sample("x", dist.Normal(self.decoder(z) + root, 0.7).to_event(1), obs=x)


def after(calls: int, factor: float) -> Callable[[Tensor], Tensor]:
    """Leaves so many batches alone, then multiplies them."""

    def transform(x: Tensor) -> Tensor:
        nonlocal calls
        calls -= 1
        return x if calls >= 0 else x * factor

    return transform


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize(
    ("model", "guide", "site", "words"),
    [
        (Model, BadScale, "z", "'z' in the guide"),
        (LogOfNegative, Guide, "pixels", "'pixels' in the model"),
        (SteepGradient, Guide, None, "gradient of parameter 'model.decoder.weight'"),
    ],
)
def test_divergence_names_the_site(
    tmp_path: Path, model: Any, guide: Any, site: str | None, words: str, capture: bool
) -> None:
    m, g = model(), guide()
    before = weights(m, g)
    transform = after(1, 1e4)  # the check sees the batch as it was
    with pytest.raises(DivergenceError, match=words) as caught:
        train(model=m, guide=g, run_dir=tmp_path, capture=capture, transform=transform)
    assert caught.value.step == 0
    assert caught.value.site == site
    assert "at step 1 (epoch 1)" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert same(weights(m, g), before)
    state, _ = load_checkpoint(tmp_path / "checkpoints")
    assert same(state["pair"], before)


def test_divergence_names_the_step(tmp_path: Path) -> None:
    model, guide = Model(), Guide()
    with pytest.raises(DivergenceError, match=r"step 7 \(epoch 2\).*'x' in the model") as caught:
        train(
            model=model,
            guide=guide,
            # the check of the first batch and of all rows, the steps, the active units
            transform=after(2 + 6 + 1, math.nan),
            run_dir=tmp_path,
        )
    assert (caught.value.step, caught.value.site) == (6, "x")
    assert "in rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... of the batch" in str(caught.value)
    assert "learning rate" not in str(caught.value)
    assert all(torch.isfinite(t).all() for t in weights(model, guide).values())
    state, facts = load_checkpoint(tmp_path / "checkpoints")
    assert facts["progress"]["step"] in (0, 4)
    assert all(torch.isfinite(t).all() for t in state["pair"].values())


@pytest.mark.parametrize("capture", [True, False])
def test_an_exploding_learning_rate_leaves_finite_parameters(tmp_path: Path, capture: bool) -> None:
    model, guide = Model(), Guide()
    with pytest.raises(DivergenceError, match="smaller learning rate") as caught:
        train(
            model=model,
            guide=guide,
            optimizer=torch.optim.SGD,
            learning_rate=1e3,
            max_epochs=50,
            run_dir=tmp_path,
            capture=capture,
        )
    assert caught.value.step > 0
    assert all(torch.isfinite(t).all() for t in weights(model, guide).values())


def test_a_gradient_too_long_to_measure() -> None:
    """Every entry is finite, but the sum of squares is not."""

    class Huge(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)
                pyro.factor("huge", (1e25 * self.decoder.bias.sum()).expand(len(x)))

    with pytest.raises(DivergenceError, match="gradient's norm"):
        train(model=Huge(), capture=False)
