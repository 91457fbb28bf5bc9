"""Builds programs from descriptions: a class path and its arguments."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch.nn.utils.parametrize import type_before_parametrizations

from ppl_vae.networks import Recipe, recipe_of
from ppl_vae.pairs import Program, attach_guide
from ppl_vae.runs.messages import plain
from ppl_vae.runs.names import public_name, with_names_of_today
from ppl_vae.runs.trust import TYPED, Trust
from ppl_vae.runtime import safe_children

_logger = logging.getLogger(__name__)


def build(
    spec: Mapping[str, Any],
    model: Program | None = None,
    *,
    role: str = "part",
    trust: Trust = TYPED,
) -> tuple[Any, dict[str, Any]]:
    """Builds what a description names: `{"class_path": "package.Class", "init_args": {...}}`.

    Arguments are checked against the constructor's type hints and docstring by `jsonargparse`, nested
    descriptions included. A constructor that has a parameter `model` is given the model, and a part of the
    model that has a method `attach_guide` is given the guide. If the path leads to a
    function, the function itself is returned.

    Args:
        spec: The description.
        model: The model, if the description is that of a guide.
        role: What it describes: `model`, `guide`, `objective`; `part` may be anything. The class must suit it.
        trust: What the description may name. The default is for what is written in Python or typed.

    Returns:
        The program, and its description with all defaults filled in.

    Raises:
        UntrustedError: It names what it may not name; nothing was imported.
        ValueError: There is no such class, it does not suit the role, or the arguments do not fit it.

    Example:
        >>> guide, full = build({"class_path": "ppl_vae.guides.MeanField", "init_args": {"data_shape": [3]}})
        >>> full["init_args"]["latent_dim"]
        10
    """
    name = str(spec["class_path"])
    trust.check({role: spec}, [role])
    kind = trust.resolve(name, role)
    if not inspect.isclass(kind):
        return kind, {"class_path": name, "init_args": {}}
    import_alternatives(kind)
    given = with_names_of_today(dict(spec.get("init_args") or {}))
    parts: dict[str, Any] = {}
    if model is not None and "model" not in given and "model" in inspect.signature(kind).parameters:
        parts["model"] = model
    parser = ArgumentParser(exit_on_error=False)
    with safe_children():  # typeshed_client asks a new Python for its path
        parser.add_class_arguments(kind, skip=set(parts), fail_untyped=False, instantiate=False)
    try:
        with safe_children():
            parsed = parser.parse_object(given)
    except (ArgumentError, TypeError, KeyError) as error:
        raise ValueError(f"{name} cannot be built: {plain(str(error))}") from error
    trust.check_parsed(parsed)
    with safe_children():
        resolved = yaml.safe_load(parser.dump(parsed)) or {}
        arguments = parser.instantiate(parsed)
    program: Any = kind(**vars(arguments), **parts)
    if model is not None:
        attach_guide(model, program)
    return program, {"class_path": name, "init_args": resolved}


def describe(program: Program) -> dict[str, Any] | None:
    """The description from which `build` makes a program again, if it remembers how it was built.

    Our models, guides, likelihoods, priors and networks do, and classes that derive from theirs.

    Returns:
        The description; None for a function, for an object that was built with something that cannot be
        written down, such as a tensor, and for a class that no import finds.

    Example:
        >>> from ppl_vae.models import VAE
        >>> describe(VAE((3,), latent_dim=2))["init_args"]["network"]["init_args"]
        {'hidden': [256, 256], 'activation': 'torch.nn.ReLU', 'skip': False, 'output': None}
    """
    recipe = recipe_of(program)
    try:
        return None if recipe is None else _written(recipe)
    except _NoNameError:
        return None


def described_truly(
    program: Program, role: str, models: tuple[Program, Program] | None
) -> tuple[dict[str, Any] | None, Program | None]:
    """The description of a program, if what `build` makes of it is alike, and what it makes.

    A part may have been replaced since (`model.likelihood = Binomial(4)`), and a constructor may do more than
    its arguments say. So it is built once: modules of the same names have to be of the same kinds, built with
    the same arguments, and their numbers have the same shapes. A guide must share the same numbers with its
    model: one that translates by the network of another model would not be that guide again.

    Args:
        program: The program.
        role: As for `build`.
        models: The model of a guide, and what it was built again as; None if it was not.
    """
    told = describe(program)
    if told is None:
        return None, None
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn
            built = build(told, models and models[1], role=role)[0]
        alike = _parts(built) == _parts(program)
        if models is not None and role == "guide":
            alike = alike and _shared(built, models[1]) == _shared(program, models[0])
        return (told, built) if alike else (None, None)
    except Exception as error:  # whatever constructors raise
        _logger.info("the %s is not built again from what it remembers: %s", role, error)
        return None, None


def _parts(program: Any) -> list[tuple[Any, ...]]:
    """Name, kind, arguments, and shapes of the numbers of each module in a program."""
    return [
        (
            name,
            type_before_parametrizations(part),  # each module that has some gets a class of its own
            recipe_of(part),
            [(n, tuple(p.shape)) for n, p in part.named_parameters(recurse=False)],
        )
        for name, part in program.named_modules()
        if ".kept" not in f".{name}"  # a guide that the model keeps has a description of its own
    ]


def _shared(guide: Any, model: Any) -> list[tuple[str, str]]:
    """The names of the numbers that a guide shares with its model, in the guide and in the model."""
    names = {
        id(number): name
        for kind in (model.named_parameters, model.named_buffers)
        for name, number in kind()
    }
    return [
        (name, names[id(number)])
        for kind in (guide.named_parameters, guide.named_buffers)
        for name, number in kind(remove_duplicate=False)
        if id(number) in names
    ]


class _NoNameError(Exception):
    """A class or function has no name by which it can be imported."""


def _written(told: Any) -> Any:
    """What a recipe holds, as plain values.

    Raises:
        _NoNameError: It holds a class or function that no import finds.
    """
    if isinstance(told, Recipe):
        return {"class_path": _importable(told.kind), "init_args": _written(told.arguments)}
    if isinstance(told, dict):
        return {name: _written(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_written(value) for value in told]
    return _importable(told) if callable(told) else told


def _importable(named: Any) -> str:
    if named.__module__ == "__main__" or "<" in named.__qualname__:
        raise _NoNameError
    return public_name(named)


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
