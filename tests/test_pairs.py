"""What a pair is: its modules, its parameters, its scope, and its saved state."""

from __future__ import annotations

import functools
import types
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.pairs import Bound, Pair, as_args, num_rows, take_rows

STORE = pyro.get_param_store()
X = torch.arange(4.0)


model = programs.located


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, scale))


def test_batches() -> None:
    assert as_args(X) == (X,)
    assert as_args((X, X)) == (X, X)
    assert num_rows((X, torch.zeros(4, 2))) == 4
    rows = take_rows((X, X + 1), torch.tensor([2, 0]))
    assert [t.tolist() for t in rows] == [[2.0, 0.0], [3.0, 1.0]]


# -- modules ---------------------------------------------------------------------------------------------

net = nn.Linear(2, 1)
unrelated = nn.Linear(9, 9)
layers: list[Any] = [nn.Linear(3, 1), {"deep": nn.Linear(4, 1)}]
space = types.SimpleNamespace(net=nn.Linear(5, 1))
nets: Any = types.ModuleType("nets")
nets.decoder = nn.Linear(6, 1)


def uses_global(x: Tensor) -> Any:
    return [net(row) for row in x]


def calls(x: Tensor) -> Any:
    return uses_global(x)


def uses_containers(x: Tensor) -> Any:
    return layers, space.net, nets.decoder


def uses_an_attribute_of_that_name(x: Any) -> Any:
    return x.unrelated, x.net


def has_defaults(x: Tensor, network: nn.Module = net, *, other: nn.Module = unrelated) -> Any: ...


def calls_itself(x: Tensor) -> Any:
    return calls_itself(x), net


def partial_of(networks: list[nn.Module], x: Tensor) -> Any: ...


class Plain:
    def __init__(self) -> None:
        self.decoder = nn.Linear(7, 1)
        self.blocks = (nn.Linear(8, 1),)
        self.name = "plain"

    def method(self, x: Tensor) -> Any:
        return net

    def __call__(self, x: Tensor) -> Any: ...


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def method(self, x: Tensor) -> None: ...


plain, module = Plain(), Module()


def enclosing() -> Any:
    closed = nn.Linear(10, 1)

    def program(x: Tensor) -> Any:
        return closed, bound_later

    yield program  # while bound_later is still an empty cell
    bound_later = nn.Linear(11, 1)
    yield program


generator = enclosing()
half_bound = next(generator)


@functools.wraps(uses_global)
def wrapper(x: Tensor) -> Any:
    return space.net(x)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (module, {"model": module}),
        (module.method, {"model": module}),
        (uses_global, {"model.net": net}),
        (calls, {"model.uses_global.net": net}),
        (calls_itself, {"model.net": net}),
        (lambda x: net(x), {"model.net": net}),
        (uses_an_attribute_of_that_name, {}),
        (has_defaults, {"model.network": net, "model.other": unrelated}),
        (
            uses_containers,
            {
                "model.layers.0": layers[0],
                "model.layers.1.deep": layers[1]["deep"],
                "model.space.net": space.net,
                "model.nets.decoder": nets.decoder,
            },
        ),
        (plain, {"model.decoder": plain.decoder, "model.blocks.0": plain.blocks[0]}),
        (
            plain.method,
            {
                "model.decoder": plain.decoder,
                "model.blocks.0": plain.blocks[0],
                "model.method.net": net,
            },
        ),
        (half_bound, {"model.closed": half_bound.__closure__[1].cell_contents}),
        (
            functools.partial(has_defaults, network=unrelated, other=net),
            {"model.network": net, "model.other": unrelated},
        ),
        (functools.partial(partial_of, [net]), {"model.0.0": net}),
        (wrapper, {"model.space.net": space.net, "model.__wrapped__.net": net}),
        (poutine.scale(uses_global, scale=2.0), {"model.1.net": net}),
        (poutine.scale(module.method, scale=2.0), {"model.1": module}),
    ],
)
def test_modules_are_found(program: Any, expected: dict[str, nn.Module]) -> None:
    found = Pair(program, lambda x: None).modules()
    assert {n: id(m) for n, m in found.items()} == {n: id(m) for n, m in expected.items()}


def test_a_module_of_both_is_listed_once() -> None:
    assert list(Pair(module.method, module).modules()) == ["model"]
    assert list(Pair(calls, uses_global).modules()) == ["model.uses_global.net"]


def test_mode_is_put_back_as_it_was_part_by_part() -> None:
    both = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    both[1].eval()
    pair = Pair(both, lambda x: None)

    def fail() -> None:
        with pair.mode(training=False):
            assert not both.training
            assert not both[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert both.training
    assert both[0].training
    assert not both[1].training


# -- parameters and scope --------------------------------------------------------------------------------


def test_parameters_have_names_and_are_leaves() -> None:
    network = Module()
    network.register_parameter("frozen", nn.Parameter(torch.ones(1), requires_grad=False))

    def both(x: Tensor) -> None:
        pyro.module("network", network)
        guide(x)

    pair = Pair(model, both)
    with pair.scope():
        parameters = pair.parameters(X)
        assert set(parameters) == {
            "guide.network.inner.weight",
            "guide.network.inner.bias",
            "param.loc",
            "param.scale",
        }
        assert all(p.is_leaf and p.requires_grad for p in parameters.values())
        assert float(parameters["param.scale"].detach().exp()) == pytest.approx(2.0)
        assert parameters["guide.network.inner.weight"] is network.inner.weight
    assert set(pair.store["params"]) == {"loc", "scale"}  # the module's stay in the module


def test_the_state_inside_of_a_scope_is_that_of_now() -> None:
    """Pyro copies a store when a scope is entered: what is saved must not be the copy from before."""
    pair = Pair(model, guide)
    with pair.scope():
        parameters = pair.parameters(X)
        with torch.no_grad():
            parameters["param.loc"].fill_(7.0)
        assert {n: float(t) for n, t in pair.state().items()}["param.loc"] == 7.0
        pair.load_state({"param.loc": torch.tensor(8.0), "param.scale": torch.tensor(0.0)})
        assert float(pyro.param("loc").detach()) == 8.0
        assert float(pyro.param("scale").detach()) == 1.0
        assert parameters["param.loc"] is pair.parameters(X)["param.loc"]
    assert {n: float(t) for n, t in pair.state().items()} == {"param.loc": 8.0, "param.scale": 0.0}
    assert not STORE.keys()


def test_loaded_values_wait_for_their_statements() -> None:
    state = {"param.loc": torch.tensor(8.0), "param.scale": torch.tensor(0.0)}
    for inside in (False, True):
        pair = Pair(model, guide)
        if not inside:
            pair.load_state(state)
        with pair.scope():
            if inside:
                pair.load_state(state)
            assert sorted(pair._pending) == ["loc", "scale"]
            model(X)
            assert sorted(pair._pending) == ["scale"]
            assert float(pyro.param("loc").detach()) == 8.0
            trace: Any = poutine.trace(guide).get_trace(X)
            assert float(trace.nodes["scale"]["value"].detach()) == 1.0
        assert sorted(pair._pending) == []


def test_a_saved_value_of_another_shape_is_named() -> None:
    for inside in (False, True):
        pair = Pair(model, guide)
        with pair.scope():
            if not inside:  # found when the statement runs
                pair.load_state({"param.loc": torch.zeros(3)})
                fail = functools.partial(model, X)
            else:
                model(X)
                fail = functools.partial(pair.load_state, {"param.loc": torch.zeros(3)})
            with pytest.raises(ValueError, match=r"'loc' has shape \(3,\).*declares \(\)"):
                fail()
    pair = Pair(module, guide)
    with pytest.raises(ValueError, match=r"'model.inner.weight' has shape \(3,\)"):
        pair.load_state({"model.inner.weight": torch.zeros(3)})


def test_state_goes_into_another_pair_of_the_kind() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.tied = nn.Linear(1, 1)
            self.again = self.tied

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = self.again(self.norm(x[:, None]))[:, 0]
                pyro.sample("z", dist.Normal(loc, 1.0))

    one, two = Normed(), Normed()
    one.norm(X[:, None] + 5.0)  # moves the statistics
    state = Pair(model, one).state()
    assert "guide.norm.running_mean" in state
    assert sum("weight" in name for name in state) == 2
    Pair(model, two).load_state(state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor), name


def test_scopes_do_not_see_each_other() -> None:
    pyro.param("loc", torch.tensor(-1.0))
    one, two = Pair(model, guide), Pair(model, guide)
    with one.scope():
        assert float(pyro.param("loc", torch.tensor(1.0)).detach()) == 1.0
        with two.scope():
            assert float(pyro.param("loc", torch.tensor(2.0)).detach()) == 2.0
            assert float(two.state()["param.loc"]) == 2.0
        assert float(pyro.param("loc").detach()) == 1.0
    assert float(STORE["loc"].detach()) == -1.0
    with one.scope():
        assert float(pyro.param("loc").detach()) == 1.0
    pyro.clear_param_store()


def test_parameters_of_a_module_that_was_not_found_are_kept() -> None:
    class Registry:
        """Its module is found only by a call, not by looking at attributes."""

        def __init__(self) -> None:
            decoder = nn.Linear(1, 1)
            self.find = iter(lambda: decoder, None)

    registry = Registry()

    def hidden(x: Tensor) -> None:
        pyro.module("decoder", next(registry.find))
        guide(x)

    pair = Pair(model, hidden)
    assert not pair.modules()
    wanted = {"param.decoder$$$weight", "param.decoder$$$bias"}
    for _ in range(2):
        with pair.scope():
            assert wanted <= set(pair.parameters(X))
        assert wanted <= set(pair.state())


# -- programs that carry their values --------------------------------------------------------------------


def test_bound_programs_carry_their_own_values() -> None:
    pair = Pair(model, guide)
    assert pair.bound() == (model, guide)
    with pair.scope():
        pair.parameters(X)
    bound_model, bound_guide = pair.bound()
    assert isinstance(bound_model, Bound)
    assert isinstance(bound_guide, Bound)
    assert set(bound_model.store["params"]) == {"loc"}
    assert set(bound_guide.store["params"]) == {"scale"}
    again = Pair(bound_model, bound_guide)
    assert again.model is model
    assert set(again.store["params"]) == {"loc", "scale"}
    with torch.no_grad():
        pair.store["params"]["loc"].fill_(3.0)
    trace: Any = poutine.trace(bound_model).get_trace(X)
    assert float(trace.nodes["loc"]["value"].detach()) == 3.0
    assert not STORE.keys()


def test_pairs_are_remembered_by_both_programs() -> None:
    class Programs:
        def model(self, x: Tensor) -> None:
            model(x)

        def guide(self, x: Tensor) -> None:
            guide(x)

    one, two = Programs(), Programs()
    pair = Pair(one.model, one.guide)
    with pair.scope():
        pair.parameters(X)
    pair.remember()
    assert Pair.of(one.model, one.guide).store is pair.store
    for other in ((two.model, one.guide), (one.model, two.guide), (one.guide, one.model)):
        assert not Pair.of(*other).store["params"]
    second = Pair(one.model, one.guide)
    second.remember()
    assert Pair.of(one.model, one.guide).store is second.store
