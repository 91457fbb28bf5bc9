"""Wake-sleep against enumeration: its two gradients, and what it comes to."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import normal, normal_guide
from tables import Reader, Table
from torch import Tensor

from ppl_vae import check, fit
from ppl_vae.objectives import Loss, TraceELBO, WakeSleep
from ppl_vae.pairs import Pair, PairError, find_layout

SYMBOLS = 4
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4])


def rows(count: int) -> Tensor:
    return torch.arange(SYMBOLS).repeat_interleave((SHARES * count).round().long())


def both(model: Any, guide: Any, x: Tensor, seed: int = 0) -> tuple[Loss, Loss]:
    pair = Pair(model, guide)
    with pair.scope():
        layout = find_layout(pair, x)
        torch.manual_seed(seed)
        wake, sleep = (turn.loss(pair, layout, x, 1.0) for turn in WakeSleep().turns(pair))
    return wake, sleep


def test_both_gradients_are_those_of_the_sums_over_all_values() -> None:
    """Averages of 40 batches of 1000 rows, within five of their own standard errors of the exact gradients."""
    model, guide = Table(), Reader()
    log_p, q = model.joint(), guide.logits.softmax(1).detach()
    wake = -(SHARES[:, None] * q * log_p.T).sum()
    sleep = -(log_p.exp().detach().T * guide.logits.log_softmax(1)).sum()
    of_model, of_guide = list(model.parameters()), list(guide.parameters())
    exact = [*torch.autograd.grad(wake, of_model), *torch.autograd.grad(sleep, of_guide)]
    found: list[list[Tensor]] = []
    losses = []
    for seed in range(40):
        each = both(model, guide, rows(1000), seed)
        losses.append([loss.loss.detach() for loss in each])
        found.append(
            [
                *torch.autograd.grad(each[0].loss, of_model),
                *torch.autograd.grad(each[1].loss, of_guide),
            ]
        )
        # Neither of them differentiates a draw.
        assert [*torch.autograd.grad(each[1].loss, of_model, allow_unused=True)] == [None, None]
    for i, truth in enumerate(exact):
        values = torch.stack([gradients[i] for gradients in found])
        error = values.std(0) / len(values) ** 0.5
        assert bool(((values.mean(0) - truth).abs() <= 5 * error + 1e-6).all())
    values = torch.tensor(losses)
    error = values.std(0) / len(values) ** 0.5
    assert bool(((values.mean(0) - torch.stack([wake, sleep]).detach()).abs() <= 5 * error).all())


def test_the_guide_comes_to_the_posterior_and_the_model_to_the_rows() -> None:
    """With tables on both sides nothing is lost: KL(q || p(z | x)) and KL(data || p(x)) end below 0.01 nats."""
    model, guide = Table(), Reader()

    def gaps() -> tuple[float, float]:
        log_p, log_q = model.joint().detach(), guide.logits.log_softmax(1).detach()
        marginal = log_p.logsumexp(0)
        posterior = (log_p - marginal).T
        each = (log_q.exp() * (log_q - posterior)).sum(1)
        return float((SHARES * each).sum()), float((SHARES * (SHARES.log() - marginal)).sum())

    assert all(gap > 0.05 for gap in gaps())
    fit(
        model,
        guide,
        rows(1000),
        objective=WakeSleep(),
        learning_rate=0.05,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.88),
        batch_size=100,
        max_epochs=25,
        seed=0,
    )
    assert all(gap < 0.01 for gap in gaps())


def test_the_elbo_beside_it_is_that_of_the_rows() -> None:
    model, guide = Table(), Reader()
    x = rows(500)
    pair = Pair(model, guide)
    with pair.scope():
        torch.manual_seed(0)
        expected = TraceELBO()(pair, find_layout(pair, x), x)
    wake, _ = both(model, guide, x)
    for name in ("elbo", "rate", "distortion"):
        torch.testing.assert_close(getattr(wake, name), getattr(expected, name))


def test_a_continuous_pair_is_dreamed_too() -> None:
    """x ~ N(0, 2) whatever the rows are: the loss of the exact posterior is its entropy, 1/2 log(pi e)."""
    guide = normal_guide(0.5, 0.5**0.5)
    x = torch.full((50_000,), 3.0)
    _, sleep = both(normal, guide, x)
    entropy = torch.distributions.Normal(0.0, 0.5**0.5).entropy()
    assert float(sleep.loss) == pytest.approx(float(entropy), abs=5 * (0.5 / len(x)) ** 0.5)
    dreamed = sleep.traces[0][0].nodes["x"]["value"]
    assert float(dreamed.var()) == pytest.approx(2.0, rel=5 * (2 / len(x)) ** 0.5)


class Declared(Table):
    """The same with `pyro.param`, in a module that has parameters of other tables."""

    def forward(self, x: Tensor) -> None:
        self.prior.requires_grad_(False)
        prior = pyro.param("prior", self.prior.detach().clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=prior))
            pyro.sample("x", dist.Categorical(logits=self.rows[z]), obs=x)


def test_numbers_of_pyro_param_are_trained_as_parameters_are() -> None:
    options: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 20, "max_epochs": 2, "seed": 0}
    model = Table()
    fit(model, Reader(), rows(100), objective=WakeSleep(), **options)
    fitted = fit(Declared(), Reader(), rows(100), objective=WakeSleep(), **options)
    found = Pair(fitted.model, fitted.guide).state()
    assert not torch.equal(model.prior, Table().prior)
    torch.testing.assert_close(found["param.prior"], model.prior.detach())
    torch.testing.assert_close(found["model.rows"], model.rows.detach())


def test_check_finds_nothing() -> None:
    assert not check(Table(), Reader(), rows(100), objective=WakeSleep()).problems


def test_pairs_that_do_not_suit() -> None:
    class Shifted(Table):
        def forward(self, x: Tensor) -> None:
            super().forward((x + 1) % SYMBOLS)

    class More(Reader):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Categorical(logits=self.logits[x]))
                pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    class SummedOut(Table):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Categorical(logits=self.prior), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", dist.Categorical(logits=self.rows[z]), obs=x)

    with pytest.raises(PairError, match="'x' observes none of the tensors of the batch as it is"):
        fit(Shifted(), Reader(), rows(100), objective=WakeSleep(), max_epochs=1)
    for model, guide, told in (
        (Table(), More(), "'extra' is not drawn by both programs"),
        (SummedOut(), lambda x: None, "sums out 'z'"),
    ):
        with pytest.raises(PairError, match=told):
            both(model, guide, rows(100))
    with pytest.raises(ValueError, match="leave beta at 1"):
        WakeSleep(beta=0.5)
