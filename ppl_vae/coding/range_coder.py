"""Whole numbers in a file, each with the probability that a model gives it: by the library constriction."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class WrongFileError(Exception):
    """What is read cannot have been written."""


class TableCoder(Protocol):
    """Writes whole numbers, or reads them: what is common to both is only there once."""

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """Numbers 0, 1, ..., each with a distribution of its own.

        Args:
            numbers: Those to write, `(n,)`.
            tables: Their probabilities, `(n, count)`. With one column, all are 0 and take nothing.

        Returns:
            Those that are written, or read.
        """


class Coder(TableCoder, Protocol):
    """A `TableCoder` that also knows normal distributions."""

    def normal(self, numbers: Tensor, spread: float, most: int) -> Tensor:
        """Numbers of a rounded normal distribution, from -most to most.

        Args:
            numbers: Those to write.
            spread: Its standard deviation.
            most: The largest number.

        Returns:
            Those that are written, or read.
        """


class Writer:
    """A `Coder` that writes."""

    def __init__(self, library: Any) -> None:
        self._models = library.stream.model
        self._coder = library.stream.queue.RangeEncoder()

    def normal(self, numbers: Tensor, spread: float, most: int) -> Tensor:
        family = self._models.QuantizedGaussian(-most, most, 0.0, spread)
        self._coder.encode(numbers.int().numpy(), family)
        return numbers

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        if tables.shape[1] > 1:
            family = self._models.Categorical(perfect=False)
            self._coder.encode(numbers.int().numpy(), family, tables.numpy())
        return numbers

    def data(self) -> bytes:
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Reader:
    """A `Coder` that reads.

    Args:
        library: constriction.
        data: What a `Writer` has written.
        what: What is read, for the error, such as `file of colors`.

    Raises:
        ValueError: The data are no whole number of words.
        WrongFileError: Of a method: what is read cannot have been written.
    """

    def __init__(self, library: Any, data: bytes, what: str) -> None:
        if len(data) % 4:
            raise ValueError(f"this {what} is damaged: its end is missing")
        self._models = library.stream.model
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        self._coder = library.stream.queue.RangeDecoder(words)

    def normal(self, numbers: Tensor, spread: float, most: int) -> Tensor:
        family = self._models.QuantizedGaussian(-most, most, 0.0, spread)
        return self._read(family, len(numbers))

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        if tables.shape[1] == 1:
            return torch.zeros(len(tables), dtype=torch.int32)
        return self._read(self._models.Categorical(perfect=False), tables.numpy())

    def _read(self, *what: Any) -> Tensor:
        try:
            return torch.from_numpy(self._coder.decode(*what))
        except (AssertionError, ValueError) as error:
            raise WrongFileError from error


def require_constriction(needed_by: str, extra: str) -> Any:
    """The library constriction.

    Args:
        needed_by: What needs it, such as `compressed colors`.
        extra: The extra that installs it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import constriction
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{needed_by} need the library constriction, which is not installed: "
            f"pip install 'ppl_vae[{extra}]'"
        ) from error
    return constriction
