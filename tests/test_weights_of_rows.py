"""Batches of unlike sizes: every row weighs alike in the gradients of an epoch, and in its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from trainings import same, weights

from ppl_vae import fit
from ppl_vae.capture import CapturedLoss
from ppl_vae.data import Buckets
from ppl_vae.objectives import ELBO, Alternating, Loss, Objective, TargetRate, Turn
from ppl_vae.pairs import Layout, Pair
from ppl_vae.runtime import END, FIRST_WORD, PAD, lengths_of, make_fabric
from ppl_vae.training import Fit

WORDS = 12
LENGTHS = [5, 2, 2, 9, 3, 2, 4, 3, 3, 7, 2, 5, 3, 2]


def sentences(lengths: Sequence[int]) -> Tensor:
    """Rows with that many numbers; long ones have other words than short ones."""
    rows = torch.full((len(lengths), max(lengths)), PAD)
    for i, length in enumerate(lengths):
        rows[i, : length - 1] = FIRST_WORD + length % (WORDS - FIRST_WORD)
        rows[i, length - 1] = END
    return rows


X = sentences(LENGTHS)
BUCKETS = partial(Buckets, X, tokens=12)  # of 1, 1, 2, 3, 3 and 4 rows


class Words(nn.Module):
    """Each number of a sentence ~ Categorical(softmax(b)), and a Poisson distribution of its length."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.bias = nn.Parameter(torch.randn(WORDS, generator=generator, dtype=torch.float64))
        self.log_rate = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """- log p of the words of each row, and of its length."""
        words = -(self.bias.log_softmax(0)[x] * (x != PAD)).sum(1)
        return words, -dist.Poisson(self.log_rate.exp()).log_prob(lengths_of(x).double())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("sentences", len(x)):
            fn = dist.Categorical(logits=self.bias.expand(*x.shape, -1)).mask(x != PAD).to_event(1)
            pyro.sample("x", fn, obs=x)
            pyro.factor("length", -self.losses(x)[1])


def nothing(x: Tensor) -> None:
    """The guide of a model without latents."""


@dataclass(frozen=True, kw_only=True)
class InTurn(Alternating):
    """The words in one turn, the length in another."""

    make: Callable[[Pair], Sequence[Turn]] = field(repr=False)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        return self.make(pair)


def of_turns(pair: Pair) -> list[Turn]:
    model: Any = pair.model
    zero = torch.zeros(())

    def loss(number: int, pair: Pair, layout: Layout, batch: Any, beta: float) -> Loss:
        return Loss(model.losses(batch)[number].mean(), zero, zero, zero, [])

    return [
        Turn("words", partial(loss, 0), [model.bias]),
        Turn("length", partial(loss, 1), [model.log_rate]),
    ]


OBJECTIVES: dict[str, Objective] = {"one loss": ELBO(), "turns": InTurn(make=of_turns)}


class Kept(torch.optim.SGD):
    """Keeps the gradients of each step, and moves nothing."""

    def __init__(self, leaves: Any, kept: list[dict[Tensor, Tensor]]) -> None:
        super().__init__(leaves, lr=0.0)
        self.kept = kept

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        leaves = self.param_groups[0]["params"]
        self.kept.append({p: p.grad.clone() for p in leaves if p.grad is not None})


def train(rows: Any, **options: Any) -> tuple[Words, list[dict[Tensor, Tensor]], Fit]:
    """A model that nothing moves, and the gradients of all steps (or turns)."""
    model, kept = Words(), list[dict[Tensor, Tensor]]()
    given: dict[str, Any] = {"max_epochs": 1, "seed": 0, "optimizer": partial(Kept, kept=kept)}
    return model, kept, fit(model, nothing, rows, **given | options)


def sums(kept: Sequence[dict[Tensor, Tensor]], leaf: Tensor) -> Tensor:
    return torch.stack([step[leaf] for step in kept if leaf in step]).sum(0)


def gradients(model: Words, x: Tensor = X) -> tuple[Tensor, ...]:
    """Those of the mean loss of all rows."""
    return torch.autograd.grad(sum(model.losses(x)).mean(), list(model.parameters()))  # type: ignore[union-attr]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("options", [{"tokens": 12}, {"batch_size": 4}], ids=str)
def test_the_gradients_of_an_epoch_are_those_of_equal_rows(
    objective: str, options: dict[str, Any]
) -> None:
    batches = Buckets(X, **options)
    model, kept, fitted = train(batches, objective=OBJECTIVES[objective])
    assert fitted.steps == len(batches) > 3
    for leaf, expected in zip(model.parameters(), gradients(model), strict=True):
        torch.testing.assert_close(sums(kept, leaf), len(batches) * expected)


def test_those_of_recorded_steps_too() -> None:
    with patch.object(
        CapturedLoss, "_record", autospec=True, side_effect=CapturedLoss._record
    ) as recorded:
        model, kept, _ = train(BUCKETS(), max_epochs=25)
    assert recorded.call_count == 6
    steps = len(BUCKETS())
    for epoch in range(25):
        found = kept[epoch * steps : (epoch + 1) * steps]
        for leaf, expected in zip(model.parameters(), gradients(model), strict=True):
            torch.testing.assert_close(sums(found, leaf), steps * expected)


def test_gradients_are_clipped_as_they_are_weighed() -> None:
    _, whole, _ = train(BUCKETS())
    _, clipped, _ = train(BUCKETS(), clip_grad_norm=3.0)
    norms = [float(torch.cat([g.flatten() for g in step.values()]).norm()) for step in whole]
    assert min(norms) < 3.0 < max(norms)
    for before, after, norm in zip(whole, clipped, norms, strict=True):
        for one, other in zip(before.values(), after.values(), strict=True):
            torch.testing.assert_close(other, one * min(1.0, 3.0 / norm), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_metrics_are_means_over_rows(objective: str) -> None:
    model, _, fitted = train(BUCKETS(), objective=OBJECTIVES[objective])
    words, length = (float(each.detach().mean()) for each in model.losses(X))
    (row,) = fitted.history
    assert row["loss"] == pytest.approx(words + length)
    if objective == "turns":
        assert (row["loss_words"], row["loss_length"]) == pytest.approx((words, length))
    else:
        assert row["elbo"] == pytest.approx(-(words + length))


def test_batches_of_one_size_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor is 1, and no gradient is touched."""

    def trained() -> dict[str, Tensor]:
        model = Words()
        fit(model, nothing, Buckets(X[:12], batch_size=3), max_epochs=3, seed=0)
        return weights(model, nothing)

    assert Buckets(X[:12], batch_size=3).rows_per_batch == 3.0
    found = trained()
    monkeypatch.setattr(Buckets, "rows_per_batch", None)
    assert same(found, trained())


def test_processes_weigh_rows_alike(tmp_path: Path) -> None:
    model = Words()

    def work(rank: int) -> list[Tensor]:
        model, kept, _ = train(BUCKETS(), fabric=make_fabric("cpu"))
        return [sums(kept, leaf) for leaf in model.parameters()]

    for found in Ranks(work, tmp_path).end(60):
        for mine, expected in zip(found, gradients(model), strict=True):
            torch.testing.assert_close(mine, 6 * expected)


def test_the_share_of_long_sentences_is_learned() -> None:
    """900 short sentences and 100 long ones: the best share is 0.1, also if batches have few long ones."""
    x = sentences([2] * 900 + [40] * 100)
    batches = Buckets(x, tokens=200)  # 9 batches of at most 100 short ones, 20 of 5 long ones
    assert len(batches) == 29
    logit = nn.Parameter(torch.zeros(()))

    class Share(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = logit

        def forward(self, x: Tensor) -> None:
            is_long = (lengths_of(x) > 2).float()
            with pyro.plate("sentences", len(x)):
                pyro.sample("x", dist.Bernoulli(logits=self.logit), obs=is_long)

    sgd = partial(torch.optim.SGD, lr=0.03)
    fit(Share(), nothing, batches, optimizer=sgd, max_epochs=80, seed=0)
    assert float(logit.detach().sigmoid()) == pytest.approx(0.1, abs=0.01)


def test_a_controller_of_beta_sees_means_over_rows() -> None:
    """One long row with a rate of 20, and three batches of ten short ones with a rate of 4."""
    control = TargetRate(nats=5, start=2.0, proportional=0.3, integral=0.05)
    state = control.begin()
    for i in range(20):
        weight = 0.4 if i % 4 == 0 else 1.2
        state = control.after(state, 20.0 if i % 4 == 0 else 4.0, 0.0, weight)
    mean = (0.4 * 20 + 3 * 1.2 * 4) / 4
    assert state.beta == pytest.approx(2 * torch.tensor(0.35 * (mean - 5) / 5).exp().item())
