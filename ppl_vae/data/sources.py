"""Where data come from: what each reader returns, and the embedded digits.

Each reader (`arrays`, `folders`, `torchvision_sets`) returns a `Source`: the values as they are stored, and the
source's own splits. `load_data` is the public function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

TEST_FRACTION = 0.2
"""Share of the rows held out for the test where a source has no test split of its own."""

RUN_BYTES = 2**21
"""About so many bytes of rows are worked on at a time; at least one row is."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows that stay in their file: they are read a run at a time, so that memory holds only what is chosen.

    Attributes:
        shape: Shape of all rows, (n, *shape).
        dtype: uint8, bool or float32, as in `Part`.
        runs: Reads all rows once, in their order, as one run of them after the other.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    runs: Callable[[], Iterator[Tensor]]

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one split: `x` is uint8 (8-bit pictures), bool or float32, shape (n, *shape)."""

    x: Tensor | StoredRows
    labels: Tensor | None = None

    def values(self, chosen: Sequence[Tensor]) -> list[Tensor]:
        """Chosen rows as float32 values; those of 8-bit pictures in [0, 1].

        All rows are read once, whichever are chosen, because a reader may check them.

        Args:
            chosen: Numbers of rows, in rising order, one tensor for each result.
        """
        shape = tuple(self.x.shape)
        found = [torch.empty(len(rows), *shape[1:]) for rows in chosen]
        runs = runs_of(self.x) if isinstance(self.x, Tensor) else self.x.runs()
        start = 0
        for run in runs:
            for rows, values in zip(chosen, found, strict=True):
                ends = torch.tensor([start, start + len(run)])
                first, last = torch.searchsorted(rows, ends).tolist()
                values[first:last] = run[rows[first:last] - start]
                if run.dtype == torch.uint8:
                    values[first:last].div_(255)
            start += len(run)
        return found


def rows_per_run(row_bytes: int) -> int:
    """How many rows to work on at a time.

    Args:
        row_bytes: The size of a row.
    """
    return max(1, RUN_BYTES // max(1, row_bytes))


def runs_of(x: Tensor) -> Iterator[Tensor]:
    """Views of the rows, one run after the other."""
    yield from x.split(rows_per_run(x[:1].numel() * x.element_size()))


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader returns.

    Attributes:
        train: All rows, or those of the source's own training split.
        test: The source's own test split, if it has one.
        validation: The source's own validation split, if it has one.
        levels: Number of equally spaced values an entry can take, from 0 to `maximum`; None for
            real values.
        maximum: The largest value in `Data`; 1 for 8-bit pictures, which are divided by 255.
        smallest_side: The shorter side of the smallest photo, if rows are patches of photos.
    """

    train: Part
    test: Part | None = None
    validation: Part | None = None
    levels: int | None = None
    maximum: float = 1.0
    smallest_side: int | None = None


def held_out(
    name: str, n: int, fraction: float, generator: Generator, what: str = "row"
) -> tuple[Tensor, Tensor]:
    """Numbers below n: all but a random `fraction` of them, and that fraction; both in rising order.

    Args:
        name: The data, for the error.
        n: How many there are.
        fraction: The share to hold out; at least one is.
        generator: Of the choice.
        what: What the numbers are those of, for the error.

    Raises:
        ValueError: None would be left.
    """
    held = max(1, round(fraction * n))
    if held >= n:
        raise ValueError(
            f"{name} has too few {what}s to be split: {held} of {n} would be held out and none "
            f"would be left; at least one {what} must remain for each of training, validation and test"
        )
    order = torch.randperm(n, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def read_digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, counts 0..16; embedded, no files needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None]
    return Source(Part(x, torch.from_numpy(bunch.target).long()), levels=17, maximum=16.0)
