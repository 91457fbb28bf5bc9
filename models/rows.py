"""Models of independent rows, and rows as they take them: their shape checked, as vectors, in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import pyro
from torch import Tensor, nn

from ppl_vae.networks import Rebuildable, require_data_shape


class RowModel(Rebuildable, nn.Module, ABC):
    """A model of independent rows: a Pyro program inside `pyro.plate("data", n, dim=-1)`.

    A model derives from this class and says in `_program` what happens inside the plate.

    Args:
        data_shape: Shape of one row of the data.
    """

    def __init__(self, data_shape: Sequence[int]) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        self.data_shape = tuple(data_shape)

    def forward(self, x: Tensor) -> None:
        """Runs the model on `x`, `(n, *data_shape)`.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        require_shape(self, x, *self.data_shape)
        with pyro.plate("data", x.shape[0], dim=-1):
            self._program(x)

    @abstractmethod
    def _program(self, x: Tensor) -> None:
        """Samples the latents of every row, and observes `x`, `(n, *data_shape)`, as the site `x`."""


def require_shape(model: nn.Module, x: Tensor, *row: int | str) -> None:
    """Raises an error for data of a shape that a model was not built for.

    Args:
        model: The model, which the message names.
        x: The data.
        row: The shape of one row; a name in it stands for any length above 0.

    Raises:
        ValueError: `x` does not have the shape `(n, *row)`.

    Example:
        >>> import torch
        >>> require_shape(nn.Identity(), torch.zeros(5, 20, 3), "steps", 2)
        Traceback (most recent call last):
        ValueError: Identity was built for data of shape (n, steps, 2), but x has shape (5, 20, 3): pass the ...
    """
    fits = x.dim() == 1 + len(row) and all(
        size > 0 if isinstance(expected, str) else size == expected
        for size, expected in zip(x.shape[1:], row, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{type(model).__name__} was built for data of shape ({', '.join(map(str, ('n', *row)))}), but x "
            f"has shape {tuple(x.shape)}: pass the shape of one row as data_shape"
        )


def as_vectors(model: RowModel, x: Tensor) -> Tensor:
    """Flattens the rows of `x`, `(n, *model.data_shape)`, to `(n, D)`.

    Raises:
        ValueError: The rows of `x` do not have the shape that the model was built for.
    """
    require_shape(model, x, *model.data_shape)
    return x.reshape(x.shape[0], -1)


def row_chunks(x: Tensor, numbers_per_row: int) -> Iterator[Tensor]:
    """Cuts `x` into chunks whose intermediate results fit the cache, or the memory of a GPU.

    Args:
        x: Data, rows first.
        numbers_per_row: Size of the intermediate results of one row.
    """
    most = 2**26 if x.is_cuda else 2**18
    rows = max(256, most // max(1, numbers_per_row))
    return iter(x.split(rows))
