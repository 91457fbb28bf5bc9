"""Builds programs from descriptions: a class path and its arguments."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ppl_vae._moved import find
from ppl_vae.pairs import Program, attach_guide
from ppl_vae.runs.messages import plain


def build(spec: Mapping[str, Any], model: Program | None = None) -> tuple[Any, dict[str, Any]]:
    """Builds what a description names: `{"class_path": "package.Class", "init_args": {...}}`.

    Arguments are checked against the constructor's type hints and docstring by `jsonargparse`, nested
    descriptions included. A constructor that has a parameter `model` is given the model, and a part of the
    model that has a method `attach_guide` is given the guide. If the path leads to a
    function, the function itself is returned.

    Args:
        spec: The description.
        model: The model, if the description is that of a guide.

    Returns:
        The program, and its description with all defaults filled in.

    Raises:
        ValueError: There is no such class, or the arguments do not fit it.

    Example:
        >>> guide, full = build({"class_path": "ppl_vae.guides.MeanField", "init_args": {"data_shape": [3]}})
        >>> full["init_args"]["latent_dim"]
        10
    """
    name = str(spec["class_path"])
    kind = import_by_name(name)
    if not inspect.isclass(kind):
        return kind, {"class_path": name, "init_args": {}}
    import_alternatives(kind)
    given = _with_names_of_today(dict(spec.get("init_args") or {}))
    parts: dict[str, Any] = {}
    if model is not None and "model" not in given and "model" in inspect.signature(kind).parameters:
        parts["model"] = model
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(parts), fail_untyped=False, instantiate=False)
    try:
        parsed = parser.parse_object(given)
    except (ArgumentError, TypeError, KeyError) as error:
        raise ValueError(f"{name} cannot be built: {plain(str(error))}") from error
    resolved = yaml.safe_load(parser.dump(parsed)) or {}
    arguments = parser.instantiate(parsed)
    program: Any = kind(**vars(arguments), **parts)
    if model is not None:
        attach_guide(model, program)
    return program, {"class_path": name, "init_args": resolved}


def import_by_name(name: str) -> Any:
    """The class or function of a dotted name.

    Raises:
        ValueError: There is none; the message says whether the module is missing, or the name in it.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"'{name}' is not a full name such as package.module.Class")
    moved = find(module_name, attribute)  # a name in an older run
    if moved is not None:
        return moved
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ValueError(
            f"there is no module '{error.name}' for '{name}': check the spelling, or put its folder on "
            "PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"module '{module_name}' has no class or function '{attribute}'")
    return found


def import_alternatives(kind: Any) -> None:
    """Imports the classes that may be given for the arguments of a constructor.

    `jsonargparse` finds a class by its short name (`--model.prior VampPrior`) among the subclasses of a type
    hint that are imported, and a package with a lazy face imports none before it is asked.

    Args:
        kind: The class whose constructor it is.
    """
    try:
        hints = get_type_hints(kind.__init__)
    except (NameError, TypeError):  # of a class that is not ours
        return
    for hint in hints.values():
        for found in _classes_in(hint):
            if found.__module__.startswith("ppl_vae."):
                package = importlib.import_module(found.__module__.rpartition(".")[0])
                for name in getattr(package, "__all__", ()):
                    getattr(package, name)


def _classes_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _classes_in(part)


def _with_names_of_today(value: Any) -> Any:
    """The same arguments, in which each `class_path` of an older version is replaced."""
    if isinstance(value, Mapping):
        made = {name: _with_names_of_today(part) for name, part in value.items()}
        path = made.get("class_path")
        moved = find(*path.rpartition(".")[::2]) if isinstance(path, str) else None
        return made if moved is None else {**made, "class_path": public_name(moved)}
    if isinstance(value, (list, tuple)):
        return [_with_names_of_today(part) for part in value]
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


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())
