"""What a reader of a fit's numbers must know, and at which iterations it happened."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ppl_vae.stats import Estimate

_ERRORS = 4
"""Standard errors of a gap between training and test rows that chance does not explain."""

_LEAST_GAP = 0.25
"""Nats per row of a gap that matters, in rows of few numbers."""


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


def overfitting(training: float, test: Estimate, num_training: int, numbers: int) -> str:
    """What to say if log p(x) is higher on the training rows than on the test rows; empty if the two are alike.

    A gap counts if it is more than 4 of its standard errors, and if it matters: it is more than 0.25 nats per
    row and 0.1 sqrt(D) nats for rows of D numbers, because the log densities of rows themselves vary by about
    sqrt(D). The error is that of two means, with the spread of the test rows for both: that of the training
    rows is smaller if the model overfits.

    Args:
        training: The mean of log p(x) over the training rows, nats.
        test: log p(x) of the test rows.
        num_training: Number of training rows.
        numbers: Numbers per row.

    Example:
        >>> import torch
        >>> test = Estimate(torch.linspace(-3.0, 3.0, 100))
        >>> print(overfitting(2.5, test, 900, 2))
        log p(x) is 2.5 on the training rows and 0.0 on the test rows (2.5 ± 0.2 nats apart): the model overfits
        >>> overfitting(0.2, test, 900, 2)
        ''
    """
    gap = training - test.mean
    error = test.standard_error * math.sqrt(1 + len(test.values) / num_training)
    if not gap > max(_ERRORS * error, _LEAST_GAP, 0.1 * math.sqrt(numbers)):  # also if one is NaN
        return ""
    return (
        f"log p(x) is {training:.1f} on the training rows and {test.mean:.1f} on the test rows ({gap:.1f} ± "
        f"{error:.1f} nats apart): the model overfits"
    )


def _when(iterations: list[int]) -> str:
    if len(iterations) == 1:
        return f"iteration {iterations[0]}"
    return f"{len(iterations)} times, iterations {iterations[0]} to {iterations[-1]}"
