"""Classes and functions by their full names, `package.module.Class`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from ppl_vae._moved import find
from ppl_vae.pairs import Program


def import_by_name(name: str) -> Any:
    """The class or function of a dotted name.

    Raises:
        ValueError: There is none; the message says whether the module is missing, or the name in it, or what
            its import raised.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"'{name}' is not a full name such as package.module.Class")
    moved = find(module_name, attribute)  # a name in an older run
    if moved is not None:
        return moved
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"'{name}' is not a full name such as package.module.Class (a path of a file is none)"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(
                f"there is no module '{missing}' for '{name}': check the spelling, or put its folder on "
                "PYTHONPATH"
            ) from error
        why = "it ends the program" if isinstance(error, SystemExit) else str(error)
        raise ValueError(
            f"module '{module_name}' cannot be imported ({type(error).__name__}: {why}): repair it, or install "
            "what it needs"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"module '{module_name}' has no class or function '{attribute}'")
    return found


def with_names_of_today(value: Any) -> Any:
    """The same arguments, in which each `class_path` of an older version is replaced."""
    if isinstance(value, Mapping):
        made = {name: with_names_of_today(part) for name, part in value.items()}
        path = made.get("class_path")
        moved = find(*path.rpartition(".")[::2]) if isinstance(path, str) else None
        return made if moved is None else {**made, "class_path": public_name(moved)}
    if isinstance(value, (list, tuple)):
        return [with_names_of_today(part) for part in value]
    return value


def name_of(program: Program) -> str:
    """The full name of a program's class or function."""
    owner = getattr(program, "__self__", program)
    kind: Any = owner if inspect.isfunction(owner) else type(owner)
    return public_name(kind)


def public_name(named: Any) -> str:
    """The full name of a class or function in the outermost package that offers it.

    Files may move; the names that a package offers stay.

    Example:
        >>> from ppl_vae.models import VAE
        >>> VAE.__module__, public_name(VAE)
        ('ppl_vae.models.deep.vae', 'ppl_vae.models.VAE')
    """
    name: str = named.__qualname__
    parts = named.__module__.split(".")
    for i in range(1, len(parts)):
        package = sys.modules.get(".".join(parts[:i]))
        if getattr(package, name, None) is named:
            return ".".join([*parts[:i], name])
    return f"{named.__module__}.{name}"
