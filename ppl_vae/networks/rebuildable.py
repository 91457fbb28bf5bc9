"""Objects that remember what they were built with, so that a saved run can build them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How an object was built: its class, and what its constructor was given.

    Attributes:
        kind: The class.
        arguments: By name: numbers, texts, lists and dicts of them, classes, functions, and recipes.
        held: Those that an attribute of this name holds, as they were given.
    """

    kind: type
    arguments: dict[str, Any]
    held: tuple[str, ...] = field(default=(), compare=False, repr=False)


class Rebuildable:
    """Remembers the arguments of its constructor, of whichever subclass it is.

    They are kept as they were when the constructor was called, and no other object is kept alive. Where an
    attribute of that name held what was given, its value of now counts: `guide.temperature = 0`. So does what
    a method `changed_arguments()` returns: arguments whose settings a part holds. An argument `model` is left
    out: a guide is built for the model that is there. If an argument is something else than a `Recipe` holds,
    such as a tensor, nothing is remembered.

    Example:
        >>> class Layer(Rebuildable):
        ...     def __init__(self, width: int = 3) -> None: ...
        >>> recipe_of(Layer(5)).arguments, recipe_of(Layer()).arguments
        ({'width': 5}, {'width': 3})
        >>> recipe_of(Layer(object())) is None
        True
        >>> class Scale(Rebuildable):
        ...     def __init__(self, factor: float) -> None:
        ...         self.factor = factor
        >>> scale = Scale(2.0)
        >>> scale.factor = 0.5
        >>> recipe_of(scale).arguments
        {'factor': 0.5}
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(vars(cls)["__init__"])  # type: ignore[method-assign]


class _UnknownArgumentError(Exception):
    """An argument is nothing that a recipe holds."""


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        recipe = None
        outermost = getattr(type(self).__init__, "__wrapped__", None) is init
        if outermost:
            try:
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                _, *given = bound.arguments.items()
                recipe = Recipe(type(self), {n: _told(v) for n, v in given if n != "model"})
            except (TypeError, _UnknownArgumentError):  # the constructor itself says what is wrong
                recipe = None
        init(self, *args, **kwargs)
        if outermost:
            if recipe is not None:
                recipe = replace(recipe, held=_held(_attributes(self), recipe.arguments))
            self.__dict__["_recipe"] = recipe

    return __init__


def recipe_of(built: object) -> Recipe | None:
    """How an object was built, if it remembers that; a frozen dataclass always does."""
    if is_dataclass(built) and "__dataclass_fields__" in vars(type(built)):
        try:
            return Recipe(
                type(built),
                {
                    each.name: _told(getattr(built, each.name))
                    for each in fields(built)
                    if each.init
                },
            )
        except _UnknownArgumentError:
            return None
    if isinstance(built, Rebuildable) and not hasattr(type(built).__init__, "__wrapped__"):
        return Recipe(type(built), {})  # no constructor of its own takes anything
    found: Recipe | None = getattr(built, "_recipe", None)
    if found is None:
        return None
    attributes = _attributes(built)
    now = {name: attributes[name] for name in found.held if name in attributes}
    changed: Callable[[], dict[str, Any]] | None = getattr(built, "changed_arguments", None)
    try:
        now = {n: _told(v) for n, v in {**now, **(changed() if changed else {})}.items()}
    except _UnknownArgumentError:
        return None
    return replace(found, arguments=found.arguments | now)


def _attributes(built: object) -> Mapping[str, Any]:
    """What an object holds, with the modules in it."""
    return {**vars(built), **vars(built).get("_modules", {})}


def _held(attributes: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments that attributes hold, but for lists and dicts, which others may fill."""
    held = []
    for name in attributes.keys() & arguments.keys():
        value = attributes[name]
        if not isinstance(value, list | Mapping):
            try:
                same = bool(_told(value) == arguments[name])
            except _UnknownArgumentError:
                same = False
            held += [name] if same else []
    return tuple(sorted(held))


def told_instead(built: object, **arguments: Any) -> None:
    """Changes what an object remembers of its constructor, once a part of it has been replaced by another.

    An object that remembers no such argument, or is given one that no recipe holds, forgets how it was built.

    Args:
        built: The object.
        arguments: What the constructor would be given now.

    Example:
        >>> class Layer(Rebuildable):
        ...     def __init__(self, width: int = 3) -> None: ...
        >>> layer = Layer()
        >>> told_instead(layer, width=4)
        >>> recipe_of(layer).arguments
        {'width': 4}
    """
    recipe = built.__dict__.get("_recipe")
    if recipe is None:
        return
    try:
        told = {name: _told(value) for name, value in arguments.items()}
        known = told.keys() <= recipe.arguments.keys()
        held = tuple(name for name in recipe.held if name not in told)
        told = recipe.arguments | told
        recipe = replace(recipe, arguments=told, held=held) if known else None
    except _UnknownArgumentError:
        recipe = None
    built.__dict__["_recipe"] = recipe


def _told(value: Any) -> Any:
    """A value as a recipe holds it.

    Raises:
        _UnknownArgumentError: It is something else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral | Real):  # numpy's, too
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, type) or inspect.isfunction(value):
        if "<" in value.__qualname__:  # no import finds it, and it may hold anything
            raise _UnknownArgumentError
        return value
    recipe = recipe_of(value)
    if recipe is None:
        raise _UnknownArgumentError
    return recipe
