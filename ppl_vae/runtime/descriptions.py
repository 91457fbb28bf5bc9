"""What a user gave for an option, in words for an error message."""

from __future__ import annotations

import functools
import inspect


def described(given: object) -> str:
    """What was given: a class, a function, a string, an object of some class, ...

    Example:
        >>> described("adam"), described(dict), described({})
        ("the string 'adam'", 'the class dict', 'an object of dict')
        >>> described(described)
        'the function described of ppl_vae.runtime.descriptions'
    """
    if isinstance(given, str):
        return f"the string {given!r}"
    if given is None or isinstance(given, bool | int | float):
        return repr(given)
    if isinstance(given, functools.partial):
        return f"a partial of {described(given.func)}"
    if inspect.ismethod(given):
        return f"the method {given.__name__} of {described(given.__self__)}"
    name = getattr(given, "__name__", "")
    if inspect.isroutine(given):
        return "a lambda" if name == "<lambda>" else f"the function {name} of {given.__module__}"
    if inspect.isclass(given):
        return f"the class {name}"
    if inspect.ismodule(given):
        return f"the module {name}"
    return f"an object of {type(given).__name__}"
