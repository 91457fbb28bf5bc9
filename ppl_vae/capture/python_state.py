"""The Python state and the tensors that the programs of a pair hold, watched while they are recorded."""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.capture.errors import CaptureError
from ppl_vae.pairs import Pair, Program
from ppl_vae.runtime import generators_kept


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


CARRIED = (
    "the pair makes a new tensor of '{0}' as it runs, which a recording would not see: make it a buffer and "
    "change it in place (self.{0}.copy_(...))"
)


@contextlib.contextmanager
def unchanged(pair: Pair) -> Iterator[list[tuple[str, Tensor, bool]]]:
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
            raise CaptureError(CARRIED.format(name))
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
