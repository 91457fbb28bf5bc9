"""Several losses in a step: what each moves, by which optimizer, what is logged; and that it resumes alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from trainings import Guide, Model, X, read_csv, same, train, weights

from ppl_vae import check, fit
from ppl_vae.objectives import (
    Alternating,
    ImportanceWeightedELBO,
    LinearWarmup,
    Loss,
    MeanFieldELBO,
    TargetRate,
    TraceELBO,
    Turn,
    routed,
)
from ppl_vae.pairs import Layout, Pair, PairError, find_layout
from ppl_vae.runtime import make_fabric
from ppl_vae.training import DivergenceError, checkpoints


@dataclass(frozen=True, kw_only=True)
class InTurn(Alternating):
    """Turns as they are given, made of the pair."""

    make: Callable[[Pair], Sequence[Turn]] = field(repr=False)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        return self.make(pair)


def of_programs(every: int = 1, **options: Any) -> InTurn:
    """The model by one bound, the guide by another."""
    return InTurn(
        make=lambda pair: [
            Turn("wake", MeanFieldELBO(), [pair.model]),
            Turn("guide", ImportanceWeightedELBO(num_particles=3), [pair.guide], every, options),
        ]
    )


def plain(value: Tensor) -> Loss:
    zero = torch.zeros(())
    return Loss(value, zero, zero, zero, [])


# -- routing ---------------------------------------------------------------------------------------------


def test_routed_losses_reach_their_own_parameters_alone() -> None:
    """In one pass: the gradients are those of each loss by itself, bit by bit."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    x = torch.randn(5, 3)

    def losses() -> tuple[Tensor, Tensor]:
        out = second(first(x).tanh())
        return out.square().mean(), -out.sin().sum()

    a, b = losses()
    total = routed([(a, list(first.parameters())), (b, list(second.parameters()))])
    total.backward()
    found = [p.grad for p in (*first.parameters(), *second.parameters())]
    a, b = losses()
    expected = torch.autograd.grad(a, list(first.parameters()), retain_graph=True)
    expected += torch.autograd.grad(b, list(second.parameters()))
    assert torch.equal(total, torch.stack([a, b]).sum())
    for mine, truth in zip(found, expected, strict=True):
        assert mine is not None
        assert torch.equal(mine, truth)


def test_routed_adds_up_what_several_losses_give_one_parameter_and_leaves_out_the_rest() -> None:
    a, b, c = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 5.0))
    total = routed([(a * b, [a, b]), (a * a, [a, c]), (torch.tensor(7.0), [a])])
    total.backward()
    assert [total.item(), a.grad, b.grad, c.grad] == [6.0 + 4.0 + 7.0, 3.0 + 4.0, 2.0, None]
    (2 * routed([(a * b, [b])])).backward()
    assert b.grad == 2.0 + 4.0
    with torch.no_grad():
        assert not routed([(a * b, [a])]).requires_grad
    assert not routed([(a * b, [])]).requires_grad


# -- optimizers ------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """Three modules in a model without latents."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.b(self.a(x)), 1.0).to_event(1), obs=x)
            pyro.factor("c", self.c(x).squeeze(-1))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        out = self.b(self.a(x).tanh())
        judged = self.c(out).mean()
        return {
            "a": out.square().mean() + judged,
            "b": (out - x).square().mean(),
            "c": self.c(x).square().mean() - judged,
        }

    def loss_of(self, name: str, pair: Pair, layout: Layout, batch: Any, beta: float) -> Loss:
        return plain(self.losses(batch)[name])


OPTIONS: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {"lr": 3e-3, "betas": (0.5, 0.99)},
    "c": {"lr": 0.1, "eps": 1e-3},
}


def test_groups_are_separate_optimizers_bit_by_bit() -> None:
    """Three turns of `fit` against three objects of torch.optim.Adam, on the batches that `fit` has seen."""
    model, batches = Parts(), list[Tensor]()

    def turn(name: str, every: int) -> Turn:
        def loss(pair: Pair, layout: object, batch: Any, beta: float) -> Loss:
            if name == "a" and torch.is_grad_enabled() and model.training:
                batches.append(batch.clone())
            return plain(model.losses(batch)[name])

        return Turn(name, loss, [getattr(model, name)], every, OPTIONS[name])

    objective = InTurn(make=lambda pair: [turn("a", 1), turn("b", 2), turn("c", 3)])
    fit(
        model,
        lambda x: None,
        X,
        objective=objective,
        batch_size=16,
        max_epochs=3,
        learning_rate=0.02,
        seed=0,
    )
    assert len(batches) == 12
    trained, by_hand = model.state_dict(), Parts()
    adams = {
        name: torch.optim.Adam(
            getattr(by_hand, name).parameters(), **{"lr": 0.02, "fused": True} | OPTIONS[name]
        )
        for name in "abc"
    }
    for step, batch in enumerate(batches):
        for name, every in (("a", 1), ("b", 2), ("c", 3)):
            if step % every == 0:
                by_hand.zero_grad()
                by_hand.losses(batch)[name].backward()
                adams[name].step()
    assert same(trained, by_hand.state_dict())
    assert not same(trained, Parts().state_dict())


def test_a_schedule_acts_on_all_groups_and_a_parameter_may_be_in_several_turns() -> None:
    """SGD at rate 0.1 and 0.2, halved after each epoch, on the loss sum(w): w falls by the rates alone."""
    model = Parts()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}

    def of(name: str, options: dict[str, float], other: str = "") -> Turn:
        parts = [getattr(model, each) for each in filter(None, (name, other))]

        def loss(*given: Any) -> Loss:
            return plain(torch.stack([p.sum() for m in parts for p in m.parameters()]).sum())

        return Turn(f"{name}{other}", loss, parts, options=options)

    fit(
        model,
        lambda x: None,
        X,
        objective=InTurn(make=lambda pair: [of("a", {}), of("b", {"lr": 0.2}), of("a", {}, "c")]),
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        batch_size=50,
        max_epochs=2,
    )
    for name, parameter in model.named_parameters():
        fallen = {"a": 2 * 0.15, "b": 0.3, "c": 0.15}[name[0]]
        torch.testing.assert_close(start[name] - parameter, torch.full_like(parameter, fallen))


def test_an_optimizer_of_pyro_takes_options_of_turns() -> None:
    objective = of_programs(lr=0.0)
    _, found = train(
        objective=objective, optimizer=pyro.optim.ClippedAdam({"lr": 0.01}), max_epochs=1
    )
    fresh = weights(Model(), Guide())
    for name in found:
        assert torch.equal(found[name], fresh[name]) == name.startswith("guide"), name


# -- turns of any pair -----------------------------------------------------------------------------------


def test_a_turn_moves_its_program_alone_by_its_own_loss() -> None:
    """One step of SGD: the model along one bound's gradient, then the guide along the other's."""
    _, found = train(
        objective=of_programs(),
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        batch_size=50,
        max_epochs=1,
    )
    seen: list[Tensor] = []

    def noted(x: Tensor) -> Tensor:
        seen.append(x.clone())
        torch.manual_seed(7)
        return x

    _, found = train(
        objective=of_programs(),
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        batch_size=50,
        max_epochs=1,
        transform=noted,
    )
    model, guide = Model(), Guide()
    pair = Pair(model, guide)
    with pair.scope():
        layout = find_layout(pair, seen[-1])
        torch.manual_seed(7)
        for objective, program in (
            (MeanFieldELBO(), model),
            (ImportanceWeightedELBO(num_particles=3), guide),
        ):
            loss = objective(pair, layout, seen[-1]).loss
            parameters = list(program.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.data -= 0.1 * g
    for name, value in weights(model, guide).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


def test_programs_with_pyro_param_have_turns_too() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))

    x = torch.tensor([2.0, 4.0])
    objective = InTurn(
        make=lambda pair: [
            Turn("model", TraceELBO(), [pair.model]),
            Turn("guide", TraceELBO(), [pair.guide], options={"lr": 0.0}),
        ]
    )
    assert not check(model, guide, x, objective=objective).problems
    fitted = fit(model, guide, x, objective=objective, learning_rate=0.05, max_epochs=20, seed=0)
    store = Pair(fitted.model, fitted.guide).store["params"]
    assert store["shift"] == 0.0
    assert 0.5 < float(store["loc"].detach()) < 3.5
    objective = InTurn(make=lambda pair: [Turn("guide", TraceELBO(), [pair.guide])])
    with pytest.warns(UserWarning, match="no turn of InTurn moves parameter 'param.loc'"):
        fit(model, guide, x, objective=objective, max_epochs=1)


class Declares(nn.Module):
    """z ~ N(0, 1), x ~ N(slope z + loc, 1): a module with a parameter and a `pyro.param`."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(self.slope * z + loc, 1.0), obs=x)


def halved(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))


def of_both(**settings: Any) -> InTurn:
    """Turns of `Declares` and `halved`."""
    return InTurn(
        make=lambda pair: [
            Turn("model", TraceELBO(), [pair.model], **settings),
            Turn("guide", TraceELBO(), [pair.guide]),
        ]
    )


def test_the_model_of_a_turn_is_all_that_it_has() -> None:
    """Also the `pyro.param` of a module, in `fit` and in a call by itself, where nothing has run before."""
    x, model = torch.tensor([2.0, 4.0]), Declares()
    assert not check(model, halved, x, objective=of_both()).problems
    other, pair = Pair(model, halved), Pair(model, halved)
    with other.scope():
        layout = find_layout(other, x)
    with pair.scope():
        of_both()(pair, layout, x).loss.backward()
        reached = {n for n, leaf in pair.leaves().items() if leaf.grad is not None}
        assert reached == {"model.slope", "param.loc", "param.shift"}
    fitted = fit(model, halved, x, objective=of_both(), learning_rate=0.05, max_epochs=5, seed=0)
    store = Pair(fitted.model, fitted.guide).store["params"]
    assert float(store["loc"].detach()) > 0
    assert float(store["shift"].detach()) != 0


def test_a_turn_keeps_parts_of_what_it_moves() -> None:
    x, model = torch.tensor([2.0, 4.0]), Declares()
    told = "no turn of InTurn moves parameter 'model.slope'"
    with pytest.warns(UserWarning, match=told):
        fitted = fit(model, halved, x, objective=of_both(keeps=[model.slope]), max_epochs=5)
    assert model.slope == 1.0
    assert Pair(fitted.model, fitted.guide).store["params"]["loc"] != 0
    whole = Model()
    nothing = InTurn(make=lambda pair: [Turn("all", TraceELBO(), [pair.model], keeps=[whole])])
    with pytest.raises(PairError, match="turn 'all' of InTurn moves nothing"):
        train(model=whole, objective=nothing)


def test_called_by_itself_each_parameter_has_the_gradient_of_its_turns() -> None:
    model, guide = Model(), Guide()
    pair = Pair(model, guide)
    objective = of_programs()
    with pair.scope():
        layout = find_layout(pair, X)
        torch.manual_seed(1)
        found = objective(pair, layout, X)
        found.loss.backward()
        torch.manual_seed(1)
        wake = MeanFieldELBO()(pair, layout, X)
        other = ImportanceWeightedELBO(num_particles=3)(pair, layout, X)
    assert torch.equal(found.loss, torch.stack([wake.loss, other.loss]).sum())
    assert torch.equal(found.elbo, wake.elbo)
    for loss, program in ((wake.loss, model), (other.loss, guide)):
        parameters = list(program.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, g)


# -- metrics ---------------------------------------------------------------------------------------------


def test_what_is_logged(tmp_path: Path) -> None:
    """50 rows in batches of 16, 16, 16 and 2; turn `b` in steps 0, 3 and 6, of losses that count its steps."""
    model, steps = Parts(), {"a": 0, "b": 0}

    def of(name: str, every: int) -> Turn:
        def loss(pair: Pair, layout: object, batch: Any, beta: float) -> Loss:
            if not model.training:  # the check
                return plain(torch.stack([p.sum() for p in model.parameters()]).sum())
            steps[name] += 1
            value = {"a": 10.0, "b": 100.0}[name] * steps[name]
            loss = value + 0.0 * torch.stack([p.sum() for p in model.parameters()]).sum()
            return Loss(loss, torch.tensor(value), loss.detach(), loss.detach(), [])

        return Turn(name, loss, [model], every)

    fitted = fit(
        model,
        lambda x: None,
        X,
        objective=InTurn(make=lambda pair: [of("a", 1), of("b", 3)], beta=LinearWarmup(2)),
        batch_size=16,
        max_epochs=2,
        run_dir=tmp_path / "run",
    )
    assert fitted.steps == 8  # batches, not turns
    first, second = fitted.history
    rows = torch.tensor([16.0, 16, 16, 2])
    a = torch.arange(1.0, 9).view(2, 4) * 10
    assert first["loss_a"] == pytest.approx(float((a[0] * rows).sum() / 50))
    assert second["loss_a"] == pytest.approx(float((a[1] * rows).sum() / 50))
    assert first["loss_b"] == pytest.approx((100 * 16 + 200 * 2) / 18)
    assert second["loss_b"] == pytest.approx(300)
    assert first["loss"] == pytest.approx(first["loss_a"] + (100 * 16 + 200 * 2) / 50)
    assert first["elbo"] == pytest.approx(first["loss_a"])  # of the first turn
    assert [row["beta"] for row in fitted.history] == pytest.approx([0.5, 1.0], abs=1e-6)
    logged = read_csv(tmp_path / "run" / "metrics.csv")
    assert float(logged[1]["loss_b"]) == pytest.approx(300)
    assert "rows of loss_b" not in logged[0]


# -- checkpoints and processes ---------------------------------------------------------------------------


def test_a_resumed_training_ends_at_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped amid the second epoch, after 5 of 12 steps of which the guide takes each second one."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    objective = of_programs(every=2, lr=0.03, betas=(0.5, 0.9))
    fitted, expected = train(objective=objective)
    seen = []

    def stops(x: Tensor) -> Tensor:
        seen.append(x)
        if len(seen) == 7:  # the first is that of the checks
            raise KeyboardInterrupt
        return x

    where: dict[str, Any] = {"run_dir": tmp_path / "run", "objective": objective}
    stops.__qualname__ = goes_on.__qualname__
    with pytest.raises(KeyboardInterrupt):
        train(**where, transform=stops)
    resumed, found = train(**where, transform=goes_on, resume=True)
    assert same(found, expected)
    without = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history]
    assert without == [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]
    where["objective"] = of_programs(every=3, lr=0.03, betas=(0.5, 0.9))
    with pytest.raises(ValueError, match="turns"):
        train(**where, transform=goes_on, resume=True, max_epochs=4)


def goes_on(x: Tensor) -> Tensor:
    return x


def by_rows(rank: int, count: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """A training of `Parts` by losses that are means over rows."""
    model = Parts()
    objective = InTurn(
        make=lambda pair: [
            Turn(
                name,
                partial(model.loss_of, name),
                [getattr(model, name)],
                every,
                {"lr": 0.01 * every},
            )
            for name, every in (("a", 1), ("b", 2), ("c", 1))
        ]
    )
    fitted = fit(
        model,
        lambda x: None,
        X.double()[:33],
        objective=objective,
        fabric=make_fabric("cpu", num_processes=count),
        batch_size=16,
        max_epochs=2,
        seed=0,
        progress=False,
    )
    return {n: t.clone() for n, t in model.state_dict().items()}, fitted.history


def test_two_processes_take_the_turns_of_one(tmp_path: Path) -> None:
    """33 rows in batches of 16: the last one has a single row, and the second process none of it."""
    torch.set_default_dtype(torch.float64)
    try:
        alone, history = by_rows(0, 1)
        both = Ranks(lambda rank: by_rows(rank, 2), tmp_path).end(60)
    finally:
        torch.set_default_dtype(torch.float32)
    for found, of_rank in both:
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value)
        for mine, truth in zip(of_rank, history, strict=True):
            for name in ("loss", "loss_a", "loss_b", "loss_c"):
                assert mine[name] == pytest.approx(truth[name], rel=1e-9)


# -- errors ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_turn() -> None:
    model = Parts()

    def bad(pair: Pair, layout: object, batch: Any, beta: float) -> Loss:
        nan = math.nan if model.training else 1.0
        return plain(model.losses(batch)["b"] * nan)

    def infinite_gradient(pair: Pair, layout: object, batch: Any, beta: float) -> Loss:
        zero = model.c.bias.sum() * 0.0
        return plain(zero.sqrt() if model.training else model.losses(batch)["c"])

    for loss, part, told in (
        (bad, model.b, "the loss of turn 'second' became NaN"),
        (infinite_gradient, model.c, "'model.c.bias' of turn 'second' became NaN"),
    ):
        objective = InTurn(
            make=lambda pair, loss=loss, part=part: [  # type: ignore[misc]
                Turn("first", partial(model.loss_of, "a"), [model.a]),
                Turn("second", loss, [part]),
            ]
        )
        with pytest.warns(UserWarning, match="no turn"), pytest.raises(DivergenceError, match=told):
            fit(model, lambda x: None, X, objective=objective, max_epochs=1)


FULL = MeanFieldELBO()


def of_no_kind(*given: Any) -> Any:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda pair: [], "turns.pair. has returned no turns"),
        (
            lambda pair: [Turn("a", FULL, [pair.model]), Turn("a", FULL, [pair.guide])],
            "two turns with the name 'a'",
        ),
        (lambda pair: [Turn("a", FULL, [nn.ReLU()])], "turn 'a' of InTurn moves nothing"),
        (
            lambda pair: [Turn("a", FULL, [nn.Linear(1, 1)])],
            "turn 'a' moves an object of Linear, which is no part of the pair",
        ),
        (
            lambda pair: [Turn("a", FULL, [pair.model, pair.guide], every=2)],
            "no turn with every=1",
        ),
        (
            lambda pair: [
                Turn("a", FULL, [pair.model, pair.guide]),
                Turn("b", FULL, [pair.model], options={"lr": 1.0}),
            ],
            "both move 'model.decoder.weight', with options {} and {'lr': 1.0}",
        ),
        (
            lambda pair: [Turn("a", FULL, [pair.model, pair.guide], options={"rate": 1.0})],
            "turn 'a' has the option 'rate', and Adam has none of that name; it has lr, betas",
        ),
        (
            lambda pair: [Turn("a", FULL, [pair.model, pair.guide], options={"lr": -1.0})],
            "which Adam refuses: Invalid learning rate",
        ),
    ],
)
def test_turns_that_are_wrong(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        train(objective=InTurn(make=make))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda pair: [FULL], "must return a list of Turn, and has"),
        (
            lambda pair: [Turn("a", FULL, list[Any](["decoder"]))],
            "turn 'a' moves the string 'decoder'",
        ),
        (
            lambda pair: [Turn("a", of_no_kind, [pair.model, pair.guide])],
            "turn 'a' of InTurn must return a Loss",
        ),
    ],
)
def test_turns_of_other_kinds(make: Any, told: str) -> None:
    with pytest.raises((TypeError, PairError), match=told):
        train(objective=InTurn(make=make))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "a b"}, "name is a word"),
        ({"loss": 3}, "loss must be a function"),
        ({"moves": nn.Linear(1, 1)}, r"write moves=\[...\]"),
        ({"moves": []}, "it moves nothing"),
        ({"keeps": nn.Linear(1, 1)}, r"write keeps=\[...\]"),
        (
            {"keeps": ["decoder"]},
            "turn 'a' keeps the string 'decoder': give modules and parameters",
        ),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": 1.5}, "every"),
        ({"options": 3}, "options must be a dict"),
    ],
)
def test_settings_of_a_turn(settings: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"name": "a", "loss": FULL, "moves": [nn.Linear(1, 1)]}
    with pytest.raises((ValueError, TypeError), match=told):
        Turn(**given | settings)


def test_what_several_losses_do_not_take() -> None:
    with pytest.raises(ValueError, match=r"TargetRate sets beta by .* several losses"):
        InTurn(make=lambda pair: [], beta=TargetRate(nats=3))
    with pytest.raises(ValueError, match=r"aggressive=True .* InTurn has turns of its own"):
        train(objective=of_programs(), aggressive=True)


def test_a_parameter_that_no_turn_moves_is_named() -> None:
    objective = InTurn(make=lambda pair: [Turn("model", FULL, [pair.model])])
    report = check(Model(), Guide(), X, objective=objective)
    assert [p.site for p in report.problems] == [
        f"guide.{name}" for name, _ in Guide().named_parameters()
    ]
    assert "no turn of InTurn moves parameter 'guide.log_scale'" in report.problems[0].message
    before = weights(Model(), Guide())
    with pytest.warns(UserWarning, match="no turn of InTurn"):
        _, found = train(objective=objective, max_epochs=1)
    assert all(torch.equal(found[n], before[n]) for n in found if n.startswith("guide"))
