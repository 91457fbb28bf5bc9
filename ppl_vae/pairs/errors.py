"""The error for a pair that cannot be used."""

from __future__ import annotations


class PairError(ValueError):
    """A model/guide pair that cannot be used as asked; the message names the site and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__
