"""The Python state and the tensors that the programs of a pair hold: what a recording must not miss."""

from __future__ import annotations

import contextlib
import functools
import numbers
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.capture.errors import CaptureError
from ppl_vae.pairs import Pair, Program, closure_of, globals_of
from ppl_vae.runtime import preserve_random_state


def modules_of(pair: Pair) -> list[nn.Module]:
    """All modules of a pair, with their submodules."""
    return [module for root in pair.modules().values() for module in root.modules()]


def _held(pair: Pair) -> list[tuple[dict[str, Any], str, Tensor]]:
    """The tensors besides parameters that the modules hold: namespace, name in it, tensor."""
    return [
        (space, name, value)
        for module in modules_of(pair)
        for space in (module._buffers, vars(module))
        for name, value in space.items()
        if isinstance(value, Tensor)
    ]


class HeldTensors:
    """A snapshot of the buffers of a pair's modules and of other tensors that are their attributes."""

    def __init__(self, pair: Pair) -> None:
        self._before = [(*place, place[-1].detach().clone()) for place in _held(pair)]
        self._buffers = {id(module._buffers) for module in modules_of(pair)}

    def replaced(self) -> list[tuple[str, Tensor, bool]]:
        """Which names hold another tensor now: name, previous tensor, and whether it is a buffer."""
        return [
            (name, tensor, id(space) in self._buffers)
            for space, name, tensor, _ in self._before
            if space.get(name) is not tensor
        ]

    def put_back(self) -> None:
        """Restores the tensors and their values."""
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
    """Restores generators, tensors and Python state, and refuses changes that a recording would miss.

    Yields:
        A list that holds at the end the modules' tensors that were replaced, as `HeldTensors.replaced`.

    Raises:
        CaptureError: The programs drew from other generators than torch's, changed Python state, or
            replaced a buffer by another tensor.
    """
    places = _places(pair)
    values = {name: place[key] for name, (place, key) in places.items()}
    tensors = HeldTensors(pair)
    replaced: list[tuple[str, Tensor, bool]] = []
    try:
        with preserve_random_state():
            before = _other_generators()
            yield replaced
            drawn = _other_generators() != before
        if drawn:
            raise CaptureError(
                "the pair draws from NumPy's or Python's random generator, which a recording would freeze"
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
        for name, (place, key) in places.items():
            place[key] = values[name]


def python_state(pair: Pair) -> dict[str, Any]:
    """The numbers, strings and flags that the programs of a pair can reach, by name."""
    return {name: place[key] for name, (place, key) in _places(pair).items()}


def tensors_kept(pair: Pair) -> list[Tensor]:
    """The tensors that a pair has from run to run: its state, and what its programs refer to by name."""
    found: list[Any] = [*pair.state().values(), *(tensor for *_, tensor in _held(pair))]
    for program in (pair.model, pair.guide):
        function, owner = _function_of(program)
        found += vars(owner).values() if owner is not None else ()
        if function is not None:
            found += [*globals_of(function).values(), *closure_of(function).values()]
    return [value for value in found if isinstance(value, Tensor)]


def _places(pair: Pair) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each of them is: the namespace and its key in it."""
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
    function, owner = _function_of(program)
    places: dict[str, tuple[dict[str, Any], str]] = {}
    if owner is not None:
        space = vars(owner)
        places = {f"{role}.{k}": (space, k) for k, v in space.items() if _is_plain(v)}
    if function is None:
        return places
    space = function.__globals__
    places |= {f"{role}: {k}": (space, k) for k, v in globals_of(function).items() if _is_plain(v)}
    copied = {k: v for k, v in closure_of(function).items() if _is_plain(v)}
    return places | {f"{role}: {k}": (copied, k) for k in copied}


def _function_of(program: Program) -> tuple[types.FunctionType | None, Any]:
    """The Python function that a program runs, and the object whose method it is if that is no module."""
    while isinstance(program, functools.partial):
        program = program.func
    function = getattr(program, "__func__", program)
    if isinstance(function, nn.Module):
        function = type(function).forward
    owner = getattr(program, "__self__", None)
    return (
        function if isinstance(function, types.FunctionType) else None,
        None if isinstance(owner, nn.Module) else owner,
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (numbers.Number, str))


def _other_generators() -> tuple[Any, ...]:
    """The state of Python's and NumPy's random generators, in a form that can be compared."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), *state[2:]
