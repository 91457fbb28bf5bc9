"""Recording: a function of a pair's programs, run once and kept as a plain tensor graph.

:func:`record` runs it under ``make_fx``, which notes every ATen operation. The tensors that the programs use
(parameters, buffers, others) become inputs of the graph; random operations stay random. Replaying the graph
is the same arithmetic in the same order, so that under the same seed it gives the same numbers.

What can not be recorded is detected, and named in a :class:`CaptureError`: control flow that depends on
data and ``.item()`` stop the recording; programs that change Python state or that draw from numpy's or
Python's generators are found by looking before and after.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import numbers
import random
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.infer.trace_elbo
import pyro.infer.trace_mean_field_elbo
import pyro.infer.traceenum_elbo
import torch
from pyro.infer.util import Dice
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ppl_vae.graphs import (
    compile_graph,
    forget_values,
    has_dynamic_shapes,
    lift_constants,
    own_outputs,
    simplify,
)
from ppl_vae.pairs import Pair, Program

_logger = logging.getLogger(__name__)

MOST_OPERATIONS = 4000
"""Operations in a graph that is compiled; a VAE's step has some 150."""


class CaptureError(RuntimeError):
    """A computation that can not be replaced by a recording; the message says why."""


@dataclass
class Recording:
    """One graph, and what it depends on besides its arguments.

    Attributes:
        graph: The recorded operations.
        run: What is called: the graph, or what Inductor made of it.
        tensors: The tensors of the programs that the graph takes after its arguments: parameters, buffers
            and what else they hold.
        state: The Python state of the pair when it was recorded.
        example: Tensors that are shaped like its arguments.
        compiled: Whether Inductor has compiled it.
    """

    graph: GraphModule
    run: Callable[..., Any]
    tensors: list[Tensor]
    state: dict[str, Any]
    example: list[Tensor]
    compiled: bool = False

    def __call__(self, *args: Any) -> Any:
        """Runs it.

        Raises:
            CaptureError: An operation failed.
        """
        try:
            with torch.no_grad():
                return self.run(*args, *self.tensors)
        except Exception as error:
            raise CaptureError(f"what was recorded can not be run: {_reason(error)}") from error

    def compile(self) -> None:
        """Lets Inductor compile the graph: equal to float precision, no longer bit by bit.

        Raises:
            CaptureError: There is no C++ compiler, an operation that Inductor can not do, or so many of them
                that it would take minutes.
        """
        operations = len(self.graph.graph.nodes)
        if operations > MOST_OPERATIONS:
            raise CaptureError(
                f"its {operations} operations would take Inductor minutes to compile"
            )
        try:
            with generators_kept():
                tensors = [t.detach() for t in self.tensors]
                self.run = compile_graph(self.graph, [*self.example, *tensors])
        except Exception as error:
            raise CaptureError(f"Inductor could not compile it: {_reason(error)}") from error
        self.compiled = True


def record(pair: Pair, function: Callable[..., Any], args: Sequence[Tensor]) -> Recording:
    """Records a function that runs the pair's programs; call it inside of ``pair.scope()``.

    Args:
        pair: The pair.
        function: From tensors to a tuple of tensors.
        args: What to record it with. Their values do not matter.

    Raises:
        CaptureError: It can not be recorded. Generators, buffers and Python state are as they were.
    """
    before = python_state(pair)
    try:
        with (
            as_before(pair) as replaced,
            _numbers_stand_aside(),
            pyro.validation_enabled(False),
        ):
            graph = make_fx(function)(*args)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"the step can not be recorded: {_reason(error)}") from error
    if has_dynamic_shapes(graph):
        raise CaptureError("the programs make tensors whose shapes depend on values")
    simplify(graph)
    forget_values(graph)
    tensors = lift_constants(graph)
    for name, tensor, _ in replaced:
        # One that is never read may well be: weight normalisation makes a layer's weight anew in each run.
        if any(tensor is read for read in tensors):
            raise CaptureError(_CARRIED.format(name))
    own_outputs(graph)
    example = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        if t.dim()
        else t.clone()
        for t in args
    ]
    return Recording(graph, graph.forward, tensors, before, example)


def modules_of(pair: Pair) -> list[nn.Module]:
    """All modules of a pair, inner ones included."""
    return [module for root in pair.modules().values() for module in root.modules()]


def _held(pair: Pair) -> list[tuple[dict[str, Any], str, Tensor]]:
    """The tensors besides parameters that the modules hold: the namespace, the name there, the tensor."""
    return [
        (space, name, value)
        for module in modules_of(pair)
        for space in (module._buffers, vars(module))
        for name, value in space.items()
        if isinstance(value, Tensor)
    ]


class HeldTensors:
    """The buffers of a pair's modules and other tensors that are their attributes, as they are now."""

    def __init__(self, pair: Pair) -> None:
        self._before = [(*place, place[-1].detach().clone()) for place in _held(pair)]
        self._buffers = {id(module._buffers) for module in modules_of(pair)}

    def replaced(self) -> list[tuple[str, Tensor, bool]]:
        """What is another tensor now: the name, the tensor that was there, and whether it is a buffer."""
        return [
            (name, tensor, id(space) in self._buffers)
            for space, name, tensor, _ in self._before
            if space.get(name) is not tensor
        ]

    def put_back(self) -> None:
        """Makes all of them what they were."""
        with torch.no_grad():
            for space, name, tensor, value in self._before:
                space[name] = tensor
                tensor.detach().copy_(value)


_CARRIED = (
    "the pair makes a new tensor of '{0}' as it runs, which a recording would not see: make it a buffer and "
    "change it in place (self.{0}.copy_(...))"
)


@contextlib.contextmanager
def as_before(pair: Pair) -> Iterator[list[tuple[str, Tensor, bool]]]:
    """Leaves generators, tensors and Python state as they were, and insists that a recording holds them all.

    Yields:
        A list that holds at the end the modules' tensors that were replaced: name, tensor, whether a buffer.

    Raises:
        CaptureError: The programs drew from other generators than torch's, changed Python state, or put
            another tensor in the place of a buffer.
    """
    places = _places(pair)
    values = {name: place[key] for name, (place, key) in places.items()}
    foreign, (python, numpy) = _foreign_bytes(), _foreign_generators()
    tensors = HeldTensors(pair)
    replaced: list[tuple[str, Tensor, bool]] = []
    try:
        with generators_kept():
            yield replaced
        if _foreign_bytes() != foreign:
            raise CaptureError(
                "the pair draws from numpy's or Python's random generator, which a recording would freeze"
            )
        now = python_state(pair)
        changed = [name for name in values if values[name] != now.get(name)]
        if changed:
            raise CaptureError(
                f"the pair changes Python state as it runs ({changed[0]}), which a recording would freeze"
            )
        replaced += tensors.replaced()
        for name in (name for name, _, is_buffer in replaced if is_buffer):
            raise CaptureError(_CARRIED.format(name))
    finally:
        tensors.put_back()
        random.setstate(python)
        np.random.set_state(numpy)
        for name, (place, key) in places.items():
            place[key] = values[name]


def python_state(pair: Pair) -> dict[str, Any]:
    """The plain numbers, strings and flags that the programs of a pair can reach, by name."""
    return {name: place[key] for name, (place, key) in _places(pair).items()}


def _places(pair: Pair) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each of them is: the namespace and its key there."""
    spaces: dict[str, dict[str, Any]] = {}
    for root, module in pair.modules().items():
        for path, inner in module.named_modules():
            spaces[f"{root}.{path}." if path else f"{root}."] = vars(inner)
    places: dict[str, tuple[dict[str, Any], str]] = {}
    for prefix, space in spaces.items():
        places |= {f"{prefix}{k}": (space, k) for k, v in space.items() if _is_plain(v)}
    for role, program in (("model", pair.model), ("guide", pair.guide)):
        places |= _reachable(program, role)
    return places


def _reachable(program: Program, role: str) -> dict[str, tuple[dict[str, Any], str]]:
    while isinstance(program, functools.partial):
        program = program.func
    function = getattr(program, "__func__", program)
    if isinstance(function, nn.Module):
        function = type(function).forward
    owner = getattr(program, "__self__", None)
    places: dict[str, tuple[dict[str, Any], str]] = {}
    if owner is not None and not isinstance(owner, nn.Module):
        space = vars(owner)
        places = {f"{role}.{k}": (space, k) for k, v in space.items() if _is_plain(v)}
    if not isinstance(function, types.FunctionType):
        return places
    try:
        names = inspect.getclosurevars(function)
    except ValueError:  # a name that is bound later
        return places
    space = function.__globals__
    places |= {f"{role}: {k}": (space, k) for k, v in names.globals.items() if _is_plain(v)}
    copied = {k: v for k, v in names.nonlocals.items() if _is_plain(v)}
    return places | {f"{role}: {k}": (copied, k) for k in copied}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (numbers.Number, str))


def _foreign_generators() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _foreign_bytes() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), *state[2:]


def tensor_generators(device: torch.device) -> list[Tensor]:
    """The state of torch's generators that programs on a device draw from."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_tensor_generators(states: list[Tensor], device: torch.device) -> None:
    """Puts back what :func:`tensor_generators` read."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leaves torch's generators as they were."""
    with torch.random.fork_rng():
        yield


@contextlib.contextmanager
def _numbers_stand_aside() -> Iterator[None]:
    """While recording, Pyro's estimators must not ask for Python numbers: they are for reports alone."""

    def as_tensor(x: Any) -> Any:
        return x.detach() if isinstance(x, Tensor) else x

    with contextlib.ExitStack() as stack:
        for module in (
            pyro.infer.trace_elbo,
            pyro.infer.trace_mean_field_elbo,
            pyro.infer.traceenum_elbo,
        ):
            if hasattr(module, "torch_item"):
                stack.enter_context(mock.patch.object(module, "torch_item", as_tensor))
            stack.enter_context(
                mock.patch.object(module, "warn_if_nan", lambda value, *_, **__: value)
            )
        stack.enter_context(mock.patch.object(pyro.infer.traceenum_elbo, "Dice", _RecordedDice))
        yield


class _AllHold(TorchFunctionMode):
    """Takes ``tensor.all()`` for true."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func is Tensor.all else func(*args, **(kwargs or {}))


class _RecordedDice(Dice):
    """Pyro leaves terms of probability zero out of a sum, by looking whether there are any.

    A recording keeps them: they add nothing, unless a term is infinite as well; then the loss becomes
    NaN, and a step of NaN is done again by Pyro.
    """

    def compute_expectation(self, costs: Any) -> Any:
        with _AllHold():
            return super().compute_expectation(costs)  # type: ignore[no-untyped-call]


def _reason(error: BaseException) -> str:
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent" in text:
        return (
            "the programs turn a tensor into a Python number (.item(), float(), or an `if` on it)"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"
