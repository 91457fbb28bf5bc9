"""The pair of a model p(x, z) and a guide q(z | x), two Pyro programs.

The two programs are arbitrary callables. A `Pair` knows how they are called, which modules and parameters they
own, where the values of their `pyro.param` statements are, and what has to be saved. It does not depend on what
they compute.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.parameter import is_lazy

from ppl_vae.pairs.as_tensors import kind_of
from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.learned import learned_by, recall, remember
from ppl_vae.pairs.modules import modules_of_program
from ppl_vae.pairs.programs import Batch, Program, trace_programs
from ppl_vae.pairs.subsampling import Subsampling


class Bound:
    """A Pyro program that carries the trained values of its `pyro.param` statements.

    A call runs the program in a scope of the parameter store that holds those values. It can therefore be
    passed to any Pyro code (`Predictive`, `poutine.trace`) without changing the global store.
    """

    def __init__(self, program: Program, store: dict[str, Any]) -> None:
        self.program = program
        self.store = store

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with pyro.get_param_store().scope(cast(Any, self.store)):
            return self.program(*args, **kwargs)


class _Restore(Messenger):
    """Sets each `pyro.param` statement to its saved value the first time it runs."""

    def __init__(self, values: MutableMapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        saved = self.values.pop(msg["name"], None)
        if saved is None:
            return
        store = pyro.get_param_store()
        _put_back_param(msg["name"], msg["value"].unconstrained(), saved)
        msg["value"] = store[msg["name"]]


def _put_back(tensor: Tensor, saved: Tensor, what: str, otherwise: str) -> None:
    """Copies a saved value into a tensor.

    Raises:
        ValueError: Their shapes differ; the message says `what` the saved value is, and `otherwise` why not.
    """
    if tensor.shape != saved.shape:
        raise ValueError(
            f"{what} has shape {tuple(saved.shape)}, {otherwise.format(tuple(tensor.shape))}"
        )
    with torch.no_grad():
        if tensor.is_floating_point() and saved.is_floating_point() and tensor.dtype != saved.dtype:
            wider = torch.promote_types(tensor.dtype, saved.dtype)
            tensor.data = tensor.data.to(wider)  # no value is rounded
        tensor.copy_(saved)


def _put_back_param(name: str, leaf: Tensor, saved: Tensor) -> None:
    _put_back(
        leaf,
        saved,
        f"the saved value of parameter '{name}'",
        "but the program declares {}: it is not the program that was saved",
    )


class Pair:
    """A model and a guide, with their modules and their parameter store.

    Args:
        model: Pyro program of the joint density p(x, z); called as `model(*as_args(batch))`.
        guide: Pyro program of the inference density q(z | x), with the same arguments.
        store: Initial state of the parameter store, as given by `pyro.get_param_store().get_state()`.

    Raises:
        TypeError: A program is a class, or cannot be called.
    """

    def __init__(self, model: Program, guide: Program, store: dict[str, Any] | None = None) -> None:
        _require_program("model", model)
        _require_program("guide", guide)
        self.model: Program = model.program if isinstance(model, Bound) else model
        self.guide: Program = guide.program if isinstance(guide, Bound) else guide
        if store is None:
            store = _empty_store()
            for program in (model, guide):
                if isinstance(program, Bound):
                    _merge(store, program.store)
        self.store = store
        self._carried = frozenset(store["params"])
        self._entered = 0
        self._pending: dict[str, Tensor] = {}
        self._declared: dict[str, set[str]] = {"model": set(), "guide": set()}
        self.subsampling = Subsampling()
        self.selects_rows = False  # whether a run has shown that indices of rows select parameters
        self.by_row: set[str] = set()  # `pyro.param` values that a run has shown to follow the rows
        self.keeps_rows = isinstance(self.guide, (AutoGuide, AutoMessenger)) or (
            getattr(self.guide, "keeps_rows", False) is True
        )

    @classmethod
    def of(cls, model: Program, guide: Program) -> Pair:
        """The pair of two programs, with the values learned by the last `fit` of exactly these two."""
        if isinstance(model, Bound) or isinstance(guide, Bound):
            return cls(model, guide)
        return cls(model, guide, recall(model, guide))

    # -- running -----------------------------------------------------------------------------------------

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Makes this pair's parameter store the only one that code inside sees.

        Plates over rows take all the rows that the programs are given: see `take_all_rows`.
        """
        store = pyro.get_param_store().scope(cast(Any, self.store))
        with store, _Restore(self._pending), self.subsampling.watched():
            self._entered += 1
            try:
                yield
            finally:
                self._entered -= 1
        # A module's parameters are kept in the module alone: a second copy in the store would go stale.
        # Parameters of a module that was not found stay in the store, so that they are saved.
        owned = {id(p) for module in self.modules().values() for p in module.parameters()}
        for name in list(self.store["params"]):
            if id(self.store["params"][name]) in owned:
                del self.store["params"][name], self.store["constraints"][name]

    @property
    def in_scope(self) -> bool:
        """Whether the code runs inside of `scope()`."""
        return self._entered > 0

    def _values(self) -> Mapping[str, Tensor]:
        """The unconstrained `pyro.param` values; inside the scope, Pyro's own store holds them."""
        if self._entered:
            return dict(pyro.get_param_store().named_parameters())
        return cast(dict[str, Tensor], self.store["params"])

    @contextmanager
    def without_saved_values(self) -> Iterator[None]:
        """Inside, `pyro.param` statements get their initial values, not those of `load_state`."""
        waiting = dict(self._pending)
        self._pending.clear()
        try:
            yield
        finally:
            self._pending.clear()
            self._pending.update(waiting)

    def forget(self, names: Iterable[str]) -> None:
        """Forgets the values of `pyro.param` statements, so that the next run makes them; inside the scope."""
        store = pyro.get_param_store()
        for name in names:
            if name in store:
                del store[name]

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """Puts the pair's modules in training or evaluation mode, and back afterwards."""
        modules = [m for root in self.modules().values() for m in root.modules()]
        before = [(module, module.training) for module in modules]
        for root in self.modules().values():
            root.train(training)
        try:
            with nullcontext() if training else _differentiable_recurrence(modules):
                yield
        finally:
            for module, was_training in before:
                module.training = was_training

    def bound(self) -> tuple[Program, Program]:
        """The two programs, with their trained `pyro.param` values if they have any."""
        if not self.store["params"]:
            return self.model, self.guide
        of_model, of_guide = self._declared["model"], self._declared["guide"]
        return (
            Bound(self.model, _without(self.store, of_guide - of_model)),
            Bound(self.guide, _without(self.store, of_model - of_guide)),
        )

    def forgotten(self) -> Iterator[str]:
        """What a fit has learned and this pair does not have, one sentence per program.

        Call it after `parameters`. `of` finds what was learned by the two programs of a fit. With another
        guide, say, a model that is a function has the initial values of its `pyro.param` statements.
        """
        for role, other, program in (
            ("model", "guide", self.model),
            ("guide", "model", self.guide),
        ):
            names = self._declared[role] & learned_by(program) - self._carried
            names = {
                name for name in names if "$$$" not in name
            }  # of a module, which has what it learned
            if names:
                shown = ", ".join(f"'{name}'" for name in sorted(names))
                yield (
                    f"the {role}'s parameters {shown} (pyro.param) have their initial values: fit has "
                    f"trained the {role}, but not with this {other}. Pass fit(...).{role}, which carries what "
                    "was learned"
                )

    def remember(self) -> None:
        """Lets `of` find this store again from the two programs."""
        remember(self.model, self.guide, self.store)

    # -- parameters --------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """The modules that the two programs are, are methods of, or refer to; each module once."""
        found: dict[str, nn.Module] = {}
        seen: set[int] = set()
        for role, program in (("model", self.model), ("guide", self.guide)):
            for name, module in modules_of_program(program, role).items():
                if id(module) not in seen:
                    seen.add(id(module))
                    found[name] = module
        return found

    def parameters(self, batch: Batch) -> dict[str, Tensor]:
        """All trainable tensors by name: those of modules, then those of `pyro.param` statements.

        Runs the pair once on `batch`, because some parameters are declared only when a program runs. The run
        is in evaluation mode, so that batch-norm statistics do not change. Constrained parameters appear as
        their unconstrained leaf. Call it inside `scope`.
        """
        with poutine.trace(param_only=True) as capture, self.mode(training=False), torch.no_grad():
            model_trace, guide_trace = trace_programs(self.model, self.guide, batch)
        self._declared = {
            "model": set(model_trace.param_nodes),
            "guide": set(guide_trace.param_nodes),
        }
        if self._pending:  # for modules that this run has created, such as an autoguide's
            self.load_state(self._pending)
        named: dict[str, Tensor] = {}
        seen: set[int] = set()
        for root, module in self.modules().items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    named[f"{root}.{name}"] = parameter
        for name, site in capture.trace.nodes.items():
            value: Any = site["value"]
            leaf = value.unconstrained()
            if leaf.requires_grad and id(leaf) not in seen:
                seen.add(id(leaf))
                named[f"param.{name}"] = leaf
        return named

    def leaves(self) -> dict[str, Tensor]:
        """The trainable tensors that are known by now, by the names of `parameters`.

        Nothing is run: a `pyro.param` statement is known once its program has run in this scope.
        """
        named: dict[str, Tensor] = {}
        for root, module in self.modules().items():
            named |= {f"{root}.{name}": p for name, p in module.named_parameters()}
        seen = {id(p) for p in named.values()}
        named |= {f"param.{n}": p for n, p in self._values().items() if id(p) not in seen}
        once = {id(p): name for name, p in reversed(named.items())}
        return {n: p for n, p in named.items() if p.requires_grad and once[id(p)] == n}

    def is_of_model(self, name: str) -> bool:
        """Whether a parameter is the model's, by its name in `parameters`; what both programs have is."""
        kind, _, rest = name.partition(".")
        return rest in self._declared["model"] if kind == "param" else kind == "model"

    def state(self) -> dict[str, Tensor]:
        """Everything that has to be saved: the modules' state and the values of `pyro.param`."""
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        for root, module in self.modules().items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    state[f"{root}.{name}"] = tensor.detach()
        for name, tensor in self._values().items():
            if id(tensor) not in seen:
                state[f"param.{name}"] = tensor.detach()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores saved values, in place; values that belong to no module wait for their `pyro.param`.

        Raises:
            ValueError: The shape of a saved value differs; the message names it.
        """
        rest = dict(state)
        for root, module in self.modules().items():
            own = module.state_dict(keep_vars=True)
            for name, tensor in own.items():
                key = f"{root}.{name}"
                if key not in rest:
                    continue
                _put_back(
                    tensor,
                    rest.pop(key),
                    f"the saved '{key}'",
                    "the module's has {}: these are not the weights of this pair",
                )
        self._pending.clear()  # in place, because an open scope refers to this dict
        self._pending.update((name.removeprefix("param."), t) for name, t in rest.items())
        values = self._values()
        for name in self._pending.keys() & values.keys():
            _put_back_param(name, values[name], self._pending.pop(name))

    def require_numbers(self) -> None:
        """Raises an error for parameters on the meta device.

        Raises:
            PairError: There are some; the message names one.
        """
        for root, module in self.modules().items():
            for name, parameter in module.named_parameters():
                if parameter.is_meta:
                    raise PairError(
                        f"the parameter '{root}.{name}' is on the meta device, which holds no numbers: make "
                        "the pair on a device such as 'cpu', or call to_empty(device='cpu') and load weights"
                    )

    def require_no_nan(self, trained: bool = True) -> None:
        """Blames parameters that are NaN, of programs that fail or draw NaN.

        Args:
            trained: Whether a training may have made them so.

        Raises:
            PairError: There are some; the message names one.
        """
        named = {f"param.{name}": value for name, value in self._values().items()}
        for root, module in self.modules().items():
            named |= {f"{root}.{name}": p for name, p in module.named_parameters()}

        def constrained(name: str) -> bool:
            """Whether a parameter is kept where its constraint is; what is outside becomes NaN there."""
            return name.endswith("_unconstrained") or name.removeprefix("param.") in limited

        store: Any = pyro.get_param_store() if self._entered else None
        limits = store._constraints if store else self.store["constraints"]
        limited = {name for name, limit in limits.items() if limit is not constraints.real}
        for name, value in named.items():
            if not is_lazy(value) and (bad := int(value.isnan().sum())):
                of_training = (
                    "its training has diverged; train again with a smaller learning rate or "
                )
                of_training += "clip_grad_norm, or load good weights"
                begins = "it begins with a value outside of its constraint; begin inside"
                why = [begins] if constrained(name) else []
                why += [of_training] if trained or not why else []
                raise PairError(
                    f"the parameter '{name.removeprefix('param.')}' is NaN in {bad} of its {value.numel()} "
                    f"numbers: {', or '.join(why)}"
                )

    def to(self, device: torch.device) -> None:
        """Moves modules and `pyro.param` values to a device, in place.

        Raises:
            PairError: Parameters are on the meta device.
        """
        self.require_numbers()
        for module in self.modules().values():
            module.to(device)
        for name, tensor in self.store["params"].items():
            if tensor.device != device:
                moved = tensor.detach().to(device).requires_grad_(tensor.requires_grad)
                self.store["params"][name] = moved


def _require_program(role: str, program: object) -> None:
    if isinstance(program, type):
        name = program.__name__
        arguments = "model" if issubclass(program, AutoGuide) else "..."
        raise TypeError(
            f"{role} is the class {name}: make an object of it, {name}({arguments}), and pass that"
        )
    if inspect.iscoroutinefunction(program) or inspect.isgeneratorfunction(program):
        name = getattr(program, "__name__", "of a partial")
        what = "yield in its body" if inspect.isgeneratorfunction(program) else "async def"
        raise TypeError(
            f"{role} is the function {name} with {what}: calling it runs nothing; "
            "write it as a plain function"
        )
    if not callable(program):
        given = "None" if program is None else kind_of(program)
        raise TypeError(
            f"{role} is {given}: pass a Pyro program, a function or an object that can be called with the rows"
        )


@contextmanager
def _differentiable_recurrence(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets gradients through recurrent layers that are in evaluation mode on a GPU.

    cuDNN has no backward pass for them in that mode. Training mode without dropout computes the same.
    """
    recurrent = [
        m for m in modules if isinstance(m, nn.RNNBase) and any(p.is_cuda for p in m.parameters())
    ]
    dropouts = [m.dropout for m in recurrent]
    for module in recurrent:
        module.training, module.dropout = True, 0.0
    try:
        yield
    finally:
        for module, dropout in zip(recurrent, dropouts, strict=True):
            module.dropout = dropout


def _empty_store() -> dict[str, Any]:
    return {"params": {}, "constraints": {}}


def _without(store: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: {n: v for n, v in part.items() if n not in names} for key, part in store.items()}


def _merge(into: dict[str, Any], store: dict[str, Any]) -> None:
    """Adds the values that one program carries to those of the other.

    Raises:
        ValueError: Both carry a value of the same parameter, from different fits.
    """
    for name, value in store["params"].items():
        if into["params"].get(name, value) is not value:
            raise ValueError(
                f"model and guide each carry a trained value of parameter '{name}', from different fits: "
                "give the two parameters different names, or take model and guide from the same fit"
            )
    for key, values in store.items():
        into[key].update(values)
