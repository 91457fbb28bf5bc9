"""The modules that a program is, holds or refers to."""

from __future__ import annotations

import contextlib
import dis
import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any

from pyro.infer.autoguide import AutoCallable
from torch import Tensor, nn

_MANY = 1000  # a longer container holds data, not modules


def modules_of_program(value: Any, name: str, seen: set[int] | None = None) -> dict[str, nn.Module]:
    """The modules that a program is, holds or refers to, by name; found without running it."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return {}
    seen.add(id(value))
    found: dict[str, nn.Module] = {name: value} if isinstance(value, nn.Module) else {}
    for part, inner in _functions(value) if isinstance(value, nn.Module) else _parts(value):
        found |= modules_of_program(inner, f"{name}.{part}" if part else name, seen)
    return found


class Buffers:
    """The buffers of some modules, such as the statistics of batch norm, to be put back after a run.

    Args:
        modules: The modules.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> buffers = Buffers([norm])
        >>> before = buffers.copies()
        >>> _ = norm(torch.randn(5, 1))
        >>> buffers.put_back(before)
        >>> int(norm.num_batches_tracked)
        0
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        owners = {id(m): m for root in modules for m in root.modules()}.values()
        self._places = [
            (m, name) for m in owners for name, b in m._buffers.items() if b is not None
        ]

    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers, and copies of their values; a program may assign others in their place."""
        return [
            (b, b.detach().clone()) for m, n in self._places if (b := m._buffers[n]) is not None
        ]

    def put_back(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        """Puts back the buffers and their values."""
        for (module, name), (buffer, value) in zip(self._places, copies, strict=True):
            module._buffers[name] = buffer
            # Through `data`: autograd has saved the running averages of batch norm, and checks that they do not
            # change, although the backward pass does not use them.
            buffer.data.copy_(value)


def _functions(root: nn.Module) -> list[tuple[str, Any]]:
    """The `forward` of a module, and the programs that are parts of an `AutoGuideList`.

    They may refer to modules that are not registered in it.
    """
    found = [] if _is_of_a_library(type(root)) else [("forward", type(root).forward)]
    for path, module in root.named_modules():
        if isinstance(module, AutoCallable):
            found.append((f"{path}._guide" if path else "_guide", module._guide))
    return found


def _parts(value: Any) -> list[tuple[str, Any]]:
    """The parts of a value that may be or hold a module, by name."""
    if isinstance(value, functools.partial):
        args = [(str(i), arg) for i, arg in enumerate(value.args)]
        return [("", value.func), *args, *value.keywords.items()]
    if isinstance(value, types.MethodType):
        return [("", value.__self__), (value.__func__.__name__, value.__func__)]
    if isinstance(value, types.FunctionType):
        return [] if _is_of_a_library(value) else _referred(value)
    if isinstance(value, Mapping):
        return [(str(key), v) for key, v in value.items()] if len(value) <= _MANY else []
    if isinstance(value, (list, tuple)):
        return [(str(i), v) for i, v in enumerate(value)] if len(value) <= _MANY else []
    if isinstance(value, (Tensor, types.ModuleType)) or _is_of_a_library(type(value)):
        return []
    attributes = getattr(value, "__dict__", {})
    return [(n, v) for n, v in attributes.items() if isinstance(v, nn.Module | list | tuple | dict)]


def _is_of_a_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in ("torch", "pyro", "builtins")


def _referred(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The values that a function closes over, has as defaults, or reads from its globals, and its modules.

    Modules are its own as attributes: `model.discriminator = ...`.
    """
    found = globals_of(function)
    used = _names_used(function.__code__)[1]
    for name, module in list(found.items()):
        if isinstance(module, types.ModuleType):  # nets.decoder
            inner = vars(module)
            for attribute in used & inner.keys():
                if isinstance(inner[attribute], nn.Module):
                    found[f"{name}.{attribute}"] = inner[attribute]
    found |= closure_of(function)
    positional = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    found |= dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    found |= function.__kwdefaults__ or {}
    found |= {name: v for name, v in vars(function).items() if isinstance(v, nn.Module)}
    return [*sorted(found.items()), ("__wrapped__", getattr(function, "__wrapped__", None))]


def globals_of(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function, and those that it defines, read."""
    names = sorted(_names_used(function.__code__)[0] & function.__globals__.keys())
    return {name: function.__globals__[name] for name in names}


def closure_of(function: types.FunctionType) -> dict[str, Any]:
    """The values that a function closes over; names that are bound later are left out."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


@functools.cache
def _names_used(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names of globals, and names of globals and attributes, in a function and in its inner functions."""
    inner = [_names_used(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    names = frozenset[str]().union(*(n for n, _ in inner))
    attributes = frozenset[str]().union(*(a for _, a in inner))
    return names | own, attributes.union(code.co_names)
