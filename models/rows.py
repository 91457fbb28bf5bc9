"""Rows of data as the models take them: their shape checked, as vectors, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class HasDataShape(Protocol):
    """A model that knows the shape of one row of its data."""

    data_shape: tuple[int, ...]


def require_shape(model: HasDataShape, x: Tensor) -> None:
    """Raise a ValueError unless `x` has the shape `(n, *model.data_shape)`."""
    if tuple(x.shape[1:]) != model.data_shape:
        raise ValueError(
            f"{type(model).__name__} was built for data of shape (n, "
            f"{', '.join(map(str, model.data_shape))}), but x has shape {tuple(x.shape)}: pass "
            f"the data's shape as data_shape"
        )


def as_vectors(model: HasDataShape, x: Tensor) -> Tensor:
    """Flatten the rows of `x`, `(n, *model.data_shape)`, to `(n, D)`.

    Raises:
        ValueError: the rows of `x` do not have the shape that the model was built for.
    """
    require_shape(model, x)
    return x.reshape(x.shape[0], -1)


def row_chunks(x: Tensor, numbers_per_row: int) -> Iterator[Tensor]:
    """Cut `x` into chunks whose intermediate results fit the cache, or the memory of a GPU.

    Args:
        x: data, rows first.
        numbers_per_row: size of the intermediate results of one row.
    """
    most = 2**26 if x.is_cuda else 2**18
    rows = max(256, most // max(1, numbers_per_row))
    return iter(x.split(rows))
