"""The error for a pair that cannot be used."""

from __future__ import annotations

import traceback
from pathlib import Path


class PairError(ValueError):
    """A model/guide pair that cannot be used as asked; the message names the site and the remedy."""


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
