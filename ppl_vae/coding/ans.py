"""A stack of whole numbers: what is pushed last is popped first. By the ANS coder of constriction."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST = 2.0**-24
"""The least probability of a number: none costs more than 24 bits."""

_ROUNDS = 4
"""Of the function that mixes bits."""

_STIRRED = 2**11
"""Of so many times 32 bits, at most."""

_FEW = 2
"""Words that the state of the coder takes: with fewer, popping has taken more bits than there were."""


class Stack:
    """Numbers in bits, by asymmetric numeral systems: pushing a number of probability p takes - log2 p bits.

    Popping is the inverse of pushing: it reads a number, and takes its bits away. So popping with the
    probabilities q from bits that are random draws from q, which bits-back coding is built on. Where there are
    no bits, 32 random ones are put at the bottom of the stack as often as needed. They are the same every time,
    and what is pushed onto them cannot be read without them: they count.

    Probabilities are rounded to multiples of 2^-24, and are never less. A table with one number of
    probability 1, and 0 for all others, takes no bits.

    Args:
        library: constriction.
        data: The content of a stack, as `data` gives it; None for an empty one.
        initial_words: Those of that stack.

    Attributes:
        initial_words: How often 32 random bits were put at the bottom. At the start there are 64.

    Raises:
        ValueError: The data are no whole number of words, or end in a word that is 0.

    Example:
        >>> from ppl_vae.coding import require_constriction
        >>> stack = Stack(require_constriction("stacks", "compress"))
        >>> tables = np.array([[0.5, 0.5], [0.1, 0.9]])
        >>> stack.push(np.array([1, 0]), tables)
        >>> stack.pop(tables)
        array([1, 0], dtype=int32)
        >>> stack.is_initial
        True
    """

    def __init__(self, library: Any, data: bytes | None = None, initial_words: int = _FEW) -> None:
        self._library = library.stream.stack.AnsCoder
        self._family = library.stream.model.Categorical(perfect=False)
        self._halves = library.stream.model.Uniform(2**16)
        self.initial_words = initial_words
        if data is None:
            words = _words(self.initial_words, self.initial_words)
        else:
            if len(data) % 4:
                raise ValueError("the stack is damaged: its end is missing")
            words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        self._coder = self._library(words)

    def push(self, numbers: NDArray[np.int32], tables: NDArray[np.float64]) -> None:
        """Pushes numbers, the last one first, so that they are popped in their order.

        Args:
            numbers: `(n,)`.
            tables: Their probabilities, `(n, count)`, finite and with a positive sum; rows are normalized.
        """
        unsure = ~_sure(tables)
        if unsure.any():
            numbers = np.ascontiguousarray(numbers[unsure], dtype=np.int32)
            self._coder.encode_reverse(numbers, self._family, tables[unsure])

    def pop(self, tables: NDArray[np.float64]) -> NDArray[np.int32]:
        """Pops numbers, and puts random bits at the bottom if there are too few.

        Args:
            tables: Their probabilities, `(n, count)`, finite and with a positive sum; rows are normalized.

        Returns:
            The numbers, `(n,)`.
        """
        numbers: NDArray[np.int32] = tables.argmax(1).astype(np.int32)
        unsure = ~_sure(tables)
        count = int(unsure.sum())
        if not count:
            return numbers
        tables = tables[unsure]
        before = self._coder.clone() if self._coder.num_words() < count + 2 * _FEW else None
        found = self._coder.decode(self._family, tables)
        while before is not None and self._coder.num_words() < _FEW:
            words = before.get_compressed()
            self.initial_words += 1
            before = self._library(np.concatenate([_words(self.initial_words, 1), words]))
            self._coder = before.clone()
            found = self._coder.decode(self._family, tables)
        numbers[unsure] = found
        return numbers

    def stir(self) -> None:
        """Makes the top of the stack look random, without taking or adding bits; `unstir` undoes it.

        What was pushed last is where the next numbers are popped from: without this, they follow those before
        them, and are no draws. A 1-to-1 function of the uppermost bits (four rounds of a Feistel cipher,
        without a secret) mixes them.
        """
        one, two = self._uppermost()
        for i in range(_ROUNDS):
            one, two = two, one ^ _hash(two, i)
        self._coder.encode_reverse(np.concatenate([one, two]), self._halves)

    def unstir(self) -> None:
        """Undoes `stir`."""
        one, two = self._uppermost()
        for i in reversed(range(_ROUNDS)):
            one, two = two ^ _hash(one, i), one
        self._coder.encode_reverse(np.concatenate([one, two]), self._halves)

    def _uppermost(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Pops two halves of what is uppermost, each of so many numbers of 16 bits."""
        each = max(1, min(_STIRRED, len(self._used()) - _FEW))
        found = self._coder.decode(self._halves, 2 * each)
        return found[:each], found[each:]

    @property
    def is_initial(self) -> bool:
        """Whether nothing is left but random bits that were there before the first push."""
        return self._coder.num_words() == self.initial_words and not len(self._used())

    def _used(self) -> NDArray[np.uint32]:
        """All words but those at the bottom that are as they were put there: more may come below them."""
        found: NDArray[np.uint32] = self._coder.get_compressed()
        most = min(len(found), self.initial_words)
        changed = np.flatnonzero(found[:most] != _words(self.initial_words, most))
        return found[changed[0] if len(changed) else most :]

    def data(self) -> bytes:
        """All bits, in words of 4 bytes."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Pops:
    """A `TableCoder` that pops.

    Args:
        stack: From where.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """See `TableCoder.categorical`."""
        return torch.from_numpy(self._stack.pop(tables.numpy())).long()


class Pushes:
    """A `TableCoder` that pushes all at the end, in reverse: then `Pops` finds them in their order.

    Args:
        stack: To where.

    Example:
        >>> from ppl_vae.coding import require_constriction
        >>> stack = Stack(require_constriction("stacks", "compress"))
        >>> pushes, table = Pushes(stack), torch.tensor([[0.2, 0.8]])
        >>> for number in (0, 1):
        ...     _ = pushes.categorical(torch.tensor([number]), table)
        >>> pushes.finish()
        >>> pops = Pops(stack)
        >>> [int(pops.categorical(torch.empty(0), table)) for _ in range(2)]
        [0, 1]
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.float64]]] = []

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """See `TableCoder.categorical`."""
        self._waiting.append((numbers.int().numpy(), tables.numpy()))
        return numbers

    def finish(self) -> None:
        """Pushes all numbers."""
        while self._waiting:
            self._stack.push(*self._waiting.pop())


def _sure(tables: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows give all probability to one number."""
    sure: NDArray[np.bool_] = np.count_nonzero(tables, 1) == 1
    return sure


def _hash(half: NDArray[np.int32], i: int) -> NDArray[np.int32]:
    """As many numbers of 16 bits that depend on all of these, in round i."""
    numbers = half.astype("<u2").tobytes()
    found = hashlib.shake_256(bytes([i]) + numbers).digest(len(numbers))
    return np.frombuffer(found, "<u2").astype(np.int32)


@lru_cache(maxsize=2**16)
def _word(place: int) -> int:
    """32 random bits, not all 0; the same each time."""
    found = hashlib.sha256(f"initial bits {place}".encode()).digest()
    return int.from_bytes(found[:4], "little") | 1


def _words(count: int, lowest: int) -> NDArray[np.uint32]:
    """The lowest ones of so many words: those that were put there last."""
    places = range(count - 1, count - 1 - lowest, -1)
    return np.array([_word(place) for place in places], dtype=np.uint32)
