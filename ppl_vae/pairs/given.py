"""What a pair is given beside the data: which argument a value is, and values that select nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, places_of, tensors_of
from ppl_vae.pairs.rows_of_data import DataArguments

_OUTSIDE = re.compile(
    r"index (?P<index>-?\d+) is out of bounds for dimension \d+ with size (?P<size>\d+)"
    r"|index out of range|Class values must be"
)
"""How torch says that an index is too large or too small: of a tensor, an embedding, `one_hot`."""


def arguments_by_name(pair: Pair, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with the names of the model's arguments that they are for."""
    names = DataArguments.of(pair).names or ()
    for place, tensor in zip(places_of(batch), tensors_of(batch), strict=True):
        yield (names[place] if place < len(names) else f"argument {place + 1}"), tensor


def name_of_argument(pair: Pair, batch: Batch, value: Any) -> str:
    """The name of the model's argument that an observed value is; empty if it is none.

    Example:
        >>> def model(x, c): ...
        >>> c = torch.tensor([0, 1])
        >>> name_of_argument(Pair(model, model), (torch.zeros(2, 3), c), c)
        'c'
    """
    for name, tensor in arguments_by_name(pair, batch):
        if tensor.shape == getattr(value, "shape", None):
            same = (tensor == value) | ((tensor != tensor) & (value != value))  # NaN
            if bool(same.all()):
                return name
    return ""


def selects_outside(pair: Pair, batch: Batch, error: Exception, start: int = 0) -> str:
    """What to say if a program raised because a label selects something that is not there; otherwise empty.

    Args:
        pair: The pair.
        batch: The rows on which it raised.
        error: What it raised.
        start: The number of the first row.

    Example:
        >>> def model(x, labels): ...
        >>> rows = torch.zeros(2, 3), torch.tensor([0, 3])
        >>> error = IndexError("index 3 is out of bounds for dimension 0 with size 3")
        >>> selects_outside(Pair(model, model), rows, error)
        "argument 'labels' is 3 in row 1 (counted from 0), and the program selects by it from 3: expected ...
    """
    said = _OUTSIDE.search(str(error))
    if said is None or not isinstance(error, IndexError | RuntimeError):
        return ""
    first, *others = arguments_by_name(pair, batch)
    for name, tensor in (*others, first):  # labels are beside the data
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            continue
        each = tensor.reshape(len(tensor), -1).long()
        if said["size"] is None:  # an embedding does not tell its size
            low, high = int(each.min()), int(each.max())
            row = int((each == (low if low < 0 else high)).any(1).nonzero()[0])
            return (
                f"argument '{name}' reaches from {low} to {high} ({low if low < 0 else high} in row "
                f"{start + row}, counted from 0), and the program selects by it from fewer: labels count from "
                "0; number yours in this way, or build the pair for more of them"
            )
        size = int(said["size"])
        bad = (each >= size) | (each < -size)
        if bool(bad.any()):
            row = int(bad.any(1).nonzero()[0])
            return (
                f"argument '{name}' is {int(each[bad][0])} in row {start + row} (counted from 0), and the "
                f"program selects by it from {size}: expected 0 to {size - 1}; labels count from 0: number "
                "yours in this way, or build the pair for more of them"
            )
    return ""
