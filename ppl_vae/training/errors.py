"""Why a training stops."""

from __future__ import annotations


class DivergenceError(RuntimeError):
    """The loss or its gradient became NaN or infinite; says at which step, and which site went bad first.

    Attributes:
        step: Optimiser steps taken before.
        site: The first site, in the order of execution, that is not finite (None: the gradient alone).
    """

    def __init__(self, message: str, step: int, site: str | None) -> None:
        super().__init__(message)
        self.step = step
        self.site = site


def read_only_once(name: str, epoch: int) -> ValueError:
    """The error for an iterable that gave no batches."""
    return ValueError(f"{name} gave no batches in epoch {epoch}: it can be read only once")
