"""The error for a pair that cannot be used."""

from __future__ import annotations

import traceback
from pathlib import Path


class PairError(ValueError):
    """A model/guide pair that cannot be used as asked; the message names the site and the remedy.

    Args:
        message: The message.
        names_rows: Whether it says already in which rows of which data something is wrong.
    """

    def __init__(self, message: str, names_rows: bool = False) -> None:
        # Pyro makes an error that leaves a trace again, with the shapes of all sites behind the message.
        super().__init__(message.partition("\nTrace Shapes:")[0])
        self.names_rows = names_rows


class NoInverseError(PairError):
    """A flow without an inverse is asked for the density of given values.

    Such a flow (`Planar`, `Radial`, a neural autoregressive one) knows the density of its latest draw alone.

    Args:
        site: The site that is drawn from it.
        transforms: The names of its transforms.

    Attributes:
        why: What is wrong, without a remedy.
    """

    def __init__(self, site: str, transforms: tuple[str, ...]) -> None:
        kinds = ", ".join(dict.fromkeys(transforms))
        self.why = f"the flow of site '{site}' ({kinds}) has no inverse"
        super().__init__(
            f"{self.why}: it knows the density of what it has just drawn, but not of given values, which are "
            "needed here. Use a flow with an inverse, such as a spline or an affine coupling"
        )


PLAIN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a mistake in a user's function raises."""


def is_plain(error: Exception) -> bool:
    """Whether an error is one of Python's own, which may be explained by another. A class of the user is kept.

    Example:
        >>> is_plain(ZeroDivisionError()), is_plain(PairError("no plate"))
        (True, False)
    """
    return isinstance(error, PLAIN) and type(error).__module__ == "builtins"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; if it has none, the error's name and where it was raised.

    Example:
        >>> first_line(ValueError("two\\nlines")), first_line(AssertionError())
        ('two', 'AssertionError without a message')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines:
        return lines[0].rstrip(":")
    text = f"{type(error).__name__} without a message"
    places = traceback.extract_tb(error.__traceback__)
    if not places:
        return text
    return f"{text}, in {'/'.join(Path(places[-1].filename).parts[-3:])}:{places[-1].lineno}"
