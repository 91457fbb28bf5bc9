"""What a user gave for an option, in words for an error message, and checks that many options share."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

TILDE = "~ is for the shell, which has not replaced it: write the path of your home folder"

_LONGEST_NAME = 255
"""Bytes of the name of a file, on all usual systems."""

HIDDEN = -1
"""The label of a row whose label is not known, as in scikit-learn's semi-supervised estimators."""

MOST_SAMPLES = 10**8
"""Most draws of each row that may be asked for; a million take minutes for a few hundred rows."""


def channels_last(shape: Sequence[int]) -> str:
    """What to do about the shape of a row that is that of a picture with its channels last; empty if it is not.

    Example:
        >>> channels_last((32, 32, 3)).partition(": ")[2]
        'move the 3 channels of (32, 32, 3) to the front, x.permute(0, 3, 1, 2)'
        >>> channels_last((3, 32, 32)), channels_last((8, 8))
        ('', '')
    """
    if len(shape) < 3 or shape[-1] not in (1, 3, 4) or min(shape[-3:-1]) <= 4:
        return ""
    channels = "channel" if shape[-1] == 1 else f"{shape[-1]} channels"
    return (
        f"pictures are (channels, height, width): move the {channels} of {tuple(shape[-3:])} to the front, "
        "x.permute(0, 3, 1, 2)"
    )


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


def printable(text: str, keep: str = "") -> str:
    """A text of others without what a terminal obeys: such characters would hide or forge what is shown.

    Args:
        text: The text.
        keep: Characters that may stay, such as those between lines.

    Example:
        >>> printable("a name, \\x1b[2Jor \\u202eso"), printable("one\\ntwo", keep="\\n")
        ('a name, \\\\x1b[2Jor \\\\u202eso', 'one\\ntwo')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def as_typed(path: Path) -> str:
    """A path as a part of a command to be typed: in quotes if a shell would take it for something else.

    Example:
        >>> as_typed(Path("runs/one")), as_typed(Path("my run; ls"))
        ('runs/one', "'my run; ls'")
    """
    return shlex.quote(str(path)) if os.name == "posix" else f'"{path}"'


def require_count(name: str, given: Any, least: int | None = 1, most: int | None = None) -> None:
    """Raises an error unless an option is a whole number within bounds.

    Args:
        name: The option, for the message.
        given: What was given for it.
        least: The smallest value; None: any.
        most: The largest value; None: any.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of bounds.

    Example:
        >>> require_count("num_samples", 0)
        Traceback (most recent call last):
        ValueError: num_samples must be at least 1, got 0
    """
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(f"{name} must be a whole number, got {described(given)}")
    number = int(given)
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {given}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most:,}, got {number:,}")


def require_number(name: str, given: Any) -> None:
    """Raises an error unless an option is a real number, or a tensor with one.

    Raises:
        TypeError: It is something else, or True or False.

    Example:
        >>> require_number("learning_rate", "fast")
        Traceback (most recent call last):
        TypeError: learning_rate must be a number, got the string 'fast'
    """
    one = isinstance(given, Real) or getattr(given, "numel", lambda: 0)() == 1
    if isinstance(given, bool) or not one:
        raise TypeError(f"{name} must be a number, got {described(given)}")


def require_flags(**flags: Any) -> None:
    """Raises an error unless options are True or False: the string 'no' would count as True.

    Raises:
        TypeError: One of them is something else.

    Example:
        >>> require_flags(resume=True, capture="no")
        Traceback (most recent call last):
        TypeError: capture must be True or False, got the string 'no'
    """
    for name, given in flags.items():
        if type(given).__name__ not in ("bool", "bool_"):  # numpy's, which is not imported here
            raise TypeError(f"{name} must be True or False, got {described(given)}")


def require_progress(given: Any) -> None:
    """Raises an error unless the option `progress` is True, False or None.

    Raises:
        TypeError: It is something else.
    """
    if given is not None and type(given).__name__ not in ("bool", "bool_"):
        raise TypeError(
            f"progress must be True or False, got {described(given)} (None shows a bar on a terminal)"
        )


def require_samples(name: str, given: int, least: int = 1) -> None:
    """`require_count` for a number of draws of each row, with the largest that a computer can be asked for.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of bounds; the message says how the error falls with the number.
    """
    require_count(name, given, least)
    if given > MOST_SAMPLES:
        raise ValueError(
            f"{name} must be at most {MOST_SAMPLES:,}, got {given:,}: at 50,000 draws per second, as of a "
            f"small VAE on one core, they take {given / 50_000 / 86_400:,.0f} days for each row, and the error "
            "falls with the square root of the number alone"
        )


def as_folder(given: object, name: str) -> Path:
    """The path of a folder that is there or can be made.

    Args:
        given: What the user gave.
        name: The option, for the message.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty, begins with `~`, or holds what no path can hold.
        NotADirectoryError: It is a file, or below one.

    Example:
        >>> as_folder(3, "run_dir")
        Traceback (most recent call last):
        TypeError: run_dir must be a path, got 3
    """
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise TypeError(f"{name} must be a path, got {described(given)}")
    path = Path(given)
    if given == "":
        raise ValueError(f"{name} is empty: give the path of a folder")
    if "\0" in str(path):
        raise ValueError(f"{name}={str(path)!r}: a path cannot hold a null character")
    if path.parts[:1] and path.parts[0].startswith("~") and not Path(path.parts[0]).exists():
        raise ValueError(f"{name}={str(path)!r}: {TILDE}")
    if long := next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), ""):
        raise ValueError(
            f"{name}: the name {long[:20]}... has {len(os.fsencode(long))} bytes, and the system takes "
            f"{_LONGEST_NAME} at most: choose a shorter one"
        )
    for part in (path, *path.parents):
        if part.is_file():
            below = "" if part is path else f", and {path} would be below it"
            raise NotADirectoryError(f"{name}: {part} is a file{below}; choose another folder")
    return path
