"""What a reader of a fit's numbers must know, and at which iterations it happened."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Notes:
    """The notes on one start of `fit_em`.

    Args:
        iterations: The iterations of each text so far; more are added there.

    Example:
        >>> notes = Notes({})
        >>> notes.add("component 1 is empty", 3)
        >>> notes.add("component 1 is empty", 5)
        >>> notes.written()
        ('component 1 is empty (2 times, iterations 3 to 5)',)
    """

    def __init__(self, iterations: dict[str, list[int]]) -> None:
        self._iterations = iterations

    def add(self, text: str, iteration: int) -> None:
        """Notes something."""
        self._iterations.setdefault(text, []).append(iteration)

    @contextmanager
    def of_warnings(self, iteration: int) -> Iterator[list[str]]:
        """Turns the `UserWarning`s of a model's own steps into notes; other warnings go on.

        Yields:
            A list that holds the texts of these warnings at the end.
        """
        texts: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield texts
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                texts.append(str(warning.message))
                self.add(texts[-1], iteration)
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def written(self) -> tuple[str, ...]:
        """The notes, each with its iterations."""
        return tuple(f"{text} ({_when(when)})" for text, when in self._iterations.items())


def _when(iterations: list[int]) -> str:
    if len(iterations) == 1:
        return f"iteration {iterations[0]}"
    return f"{len(iterations)} times, iterations {iterations[0]} to {iterations[-1]}"
