"""`load_data`: data by name, split, binarized or dequantized, as tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Generator, Tensor

from ppl_vae.data.arrays import read_arrays
from ppl_vae.data.asked import (
    DIGITS,
    is_folder,
    path_of,
    proper_name,
    require_data_options,
)
from ppl_vae.data.folders import read_folder, read_patches
from ppl_vae.data.labels import warn_of_empty_classes, with_labels
from ppl_vae.data.sizes import require_room
from ppl_vae.data.sources import (
    TEST_FRACTION,
    Part,
    Source,
    held_out,
    read_digits,
    runs_of,
)
from ppl_vae.data.torchvision_sets import read_torchvision
from ppl_vae.data.transforms import Binarization, Dequantization
from ppl_vae.runtime import HIDDEN, channels_last, html_table

Rows = TypeVar("Rows", Tensor, tuple[Tensor, Tensor])
"""Rows alone, or rows and their labels."""


@dataclass(frozen=True, eq=False, repr=False)
class Data(Generic[Rows]):
    """Rows in three splits.

    Attributes:
        name: Name of the data, in its usual spelling.
        train: Training rows, float32, shape `(n, *shape)`; with `labels`, rows and labels: `(x, y)`.
        validation: Rows for early stopping and model selection.
        test: Rows for the final evaluation. They do not depend on the seed.
        train_labels: One label per training row, also if `train` does not tell it; None if the source has none.
        validation_labels: The same for `validation`.
        test_labels: The same for `test`.
        levels: Number of equally spaced values an entry can take, after `transform`: 17
            for digits' counts, 256 for 8-bit pictures, 2 for binary data, None for real values.
        transform: Applied to each training batch, on its device; None if the training rows are
            ready. `validation` and `test` always are.
        smallest_side: Where rows are patches of photos, the shorter side of the smallest photo in pixels: no
            patch can be larger. Otherwise None.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows
    train_labels: Tensor | None = None
    validation_labels: Tensor | None = None
    test_labels: Tensor | None = None
    levels: int | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    smallest_side: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(rows_alone(self.train).shape[1:])

    def __repr__(self) -> str:
        values = "real values" if self.levels is None else f"{self.levels} levels"
        counts = [len(rows_alone(rows)) for rows in (self.train, self.validation, self.test)]
        told = ""
        if isinstance(self.train, tuple):
            labels = self.train[1]
            known = len(labels) if labels.dim() > 1 else int((labels != HIDDEN).sum())
            told = f", {'each' if known == counts[0] else known} with a label"
        return (
            f"<{self.name}: {counts[0]} training{told}, {counts[1]} validation and "
            f"{counts[2]} test rows of shape {self.shape}, {values}>"
        )

    def _repr_html_(self) -> str:
        splits = (
            ("training", self.train, self.train_labels),
            ("validation", self.validation, self.validation_labels),
            ("test", self.test, self.test_labels),
        )
        rows = [["", "rows", "labels"]]
        for name, x, labels in splits:
            known = "none" if labels is None else f"{_different(labels)} different"
            rows.append([name, str(len(rows_alone(x))), known])
        numbers = [
            ("data", self.name),
            ("shape of a row", str(self.shape)),
            ("values", "real" if self.levels is None else f"{self.levels} levels"),
        ]
        if self.transform is not None:
            numbers.append(("transform of each training batch", repr(self.transform)))
        return html_table(rows, header=True) + html_table(numbers)


def _different(labels: Tensor) -> int:
    """How many labels there are, or vectors of attributes."""
    return len(labels.unique(dim=0) if labels.dim() > 1 else labels[labels != HIDDEN].unique())


def rows_alone(rows: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Rows without their labels."""
    return rows[0] if isinstance(rows, tuple) else rows


@overload
def load_data(
    name: str | Path,
    *,
    data_dir: str | Path = ...,
    download: bool = ...,
    binarize: Literal["threshold", "static", "dynamic"] | None = ...,
    dequantize: bool = ...,
    patch_size: int | None = ...,
    patches: int = ...,
    validation_fraction: float = ...,
    max_rows: int | None = ...,
    labels: int,
    seed: int = ...,
) -> Data[tuple[Tensor, Tensor]]: ...


@overload
def load_data(
    name: str | Path,
    *,
    data_dir: str | Path = ...,
    download: bool = ...,
    binarize: Literal["threshold", "static", "dynamic"] | None = ...,
    dequantize: bool = ...,
    patch_size: int | None = ...,
    patches: int = ...,
    validation_fraction: float = ...,
    max_rows: int | None = ...,
    labels: Literal[False] = ...,
    seed: int = ...,
) -> Data[Tensor]: ...
def load_data(
    name: str | Path,
    *,
    data_dir: str | Path = "data",
    download: bool = True,
    binarize: Literal["threshold", "static", "dynamic"] | None = None,
    dequantize: bool = False,
    patch_size: int | None = None,
    patches: int = 8,
    validation_fraction: float = 0.1,
    max_rows: int | None = None,
    labels: bool | int = False,
    seed: int = 0,
) -> Data[Any]:
    """Loads data by name and splits them into training, validation and test rows.

    Names:

    - `digits`: scikit-learn's 1,797 digits, counts 0..16, shape (1, 8, 8); embedded.
    - `MNIST`, `FashionMNIST`, `KMNIST`, `EMNIST`, `CIFAR10`, `SVHN` (case does not matter):
      torchvision's sets, values k/255 in [0, 1], shape (channels, height, width); EMNIST is the
      *balanced* split.
    - `folder:PATH`: the pictures below PATH, values k/255, shape (channels, height, width): one
      channel if all are gray, otherwise three. `PATH/train` and `PATH/test` (or `PATH/val`) are the split
      if they exist, and `PATH/val` beside both is the validation; sub-folders are the labels. `X.seg.png`, a
      segmentation, is no picture. All have one size, unless patches are cut out of them (`patch_size`).
    - `PATH.npy`, `PATH.npz`, `PATH.pt`: arrays, rows first: `x` (labels: `y`), or `train` with any
      of `validation` and `test` (labels: `train_labels`, ...). uint8 is read as 8-bit pictures,
      values k/255; other numbers are kept as they are. Whole numbers, one for each row, and one-hot vectors
      are classes, whatever their dtype (NaN is a hidden label); other labels, also a column of real numbers,
      are attributes.

    The source's own test split is the test. If it has none, a fifth of the rows is. These rows are
    the same for every seed, so that runs with different seeds can be compared row by row. The
    validation rows are a seeded choice from the training rows.

    Args:
        name: See the list.
        data_dir: Folder of torchvision's files; downloads go there.
        download: Whether to download a torchvision set that is missing.
        binarize: How values become 0 or 1. `"threshold"`: 1 above half of the largest possible value,
            otherwise 0.
            `"static"`: one Bernoulli draw with the intensity as its probability, made once
            (Salakhutdinov & Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008).
            `"dynamic"`: a fresh draw for each training batch, by `Data.transform`; one draw for
            the validation and test rows (Burda et al., arXiv:1509.00519).
        dequantize: Adds uniform noise within each level, so that values lie in [0, 1).
            `Data.transform` draws new noise for each training batch. See `Dequantization`, also
            for the conversion to bits per dimension.
        patch_size: Cuts squares of this side, in pixels, out of the photos of a folder, which may have any
            sizes: the places are random, uniformly. Splits are made of photos: all patches of one are in one.
        patches: How many of each photo.
        validation_fraction: Share of the training rows to hold out for validation. With `patch_size` it is that
            of the training photos.
        max_rows: Keeps at most this many rows of each split, chosen at random, for quick trials.
        labels: True for all labels, or how many. Each row comes with its label, `(x, y)`, for models that are
            given it. A number tells the labels of so many training rows alone, as many of each class as of any
            other, chosen at random; the label of all other rows, also those of validation and test, is -1 then.
            Labels that are whole numbers count from 0 without gaps: a warning names classes that no row has.
        seed: Seed of the choices and of the draws for the training and validation rows.

    Returns:
        The three splits; float32.

    Raises:
        TypeError: An option is of a wrong type.
        ValueError: The name is unknown; arguments exclude each other; a file is broken (the
            message says which one, and why); there are no labels, or fewer than are asked for.
        FileNotFoundError: A path, or a torchvision set with `download=False`, does not exist.
        ConnectionError: A download failed.
        ImportError: Torchvision is needed and cannot be loaded.

    Example:
        >>> data = load_data("digits")
        >>> data
        <digits: 1294 training, 144 validation and 359 test rows of shape (1, 8, 8), 17 levels>
        >>> load_data("digits", binarize="threshold").train.unique()
        tensor([0., 1.])
        >>> load_data("digits", labels=100)
        <digits: 1294 training, 100 with a label, 144 validation and 359 test rows of shape (1, 8, ...
    """
    require_data_options(
        name,
        data_dir=data_dir,
        download=download,
        binarize=binarize,
        dequantize=dequantize,
        patch_size=patch_size,
        patches=patches,
        validation_fraction=validation_fraction,
        max_rows=max_rows,
        labels=labels,
    )
    # The test rows have their own generator, so that they are the same for every seed.
    fixed, seeded = Generator().manual_seed(0), _generator(seed)
    name = proper_name(str(name))
    if patch_size is not None and (folder := path_of(name)) is not None:
        fraction = float(validation_fraction)
        source = read_patches(folder, patch_size, patches, fraction, fixed, seeded)
    else:
        source = _read(name, Path(data_dir), download)
    splits = _splits(name, source, validation_fraction, max_rows, fixed, seeded)
    train, validation, test = splits
    x, x_validation, x_test = _values(name, splits)
    levels, transform = source.levels, None
    if binarize or dequantize:
        noise = Binarization() if binarize else _dequantization(name, source)
        for values in (x, x_validation, x_test):
            _to_unit(name, values, source)
        levels = 2 if binarize else None
        if binarize == "threshold":
            for values in (x, x_validation, x_test):
                values.gt_(0.5)
        else:
            _add_noise(noise, x_validation, seeded)
            _add_noise(noise, x_test, fixed)
            if binarize == "static":
                _add_noise(noise, x, seeded)
            else:
                transform = noise
    rows: list[Any] = [x, x_validation, x_test]
    if labels:
        found = [split.labels() for split in splits]
        rows = with_labels(name, rows, found, labels, _generator(seed))
        parts = (source.train, source.test, source.validation)
        every = [part.labels for part in parts if part is not None and part.labels is not None]
        warn_of_empty_classes(name, rows[0][1], every, labels)
    first = rows[0][0] if isinstance(rows[0], tuple) else rows[0]
    if hint := channels_last(first.shape[1:]):
        warnings.warn(f"{name}: {hint}", UserWarning, stacklevel=2)
    return Data(
        name=name,
        train=rows[0],
        validation=rows[1],
        test=rows[2],
        train_labels=train.labels(),
        validation_labels=validation.labels(),
        test_labels=test.labels(),
        levels=levels,
        transform=transform,
        smallest_side=source.smallest_side,
    )


def _generator(seed: object) -> Generator:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not -(2**63) <= int(seed) < 2**63:
        raise ValueError(
            f"seed must be a whole number of 64 bits, from -2^63 to 2^63 - 1, got {seed}"
        )
    return Generator().manual_seed(int(seed))


@dataclass(frozen=True, eq=False)
class _Split:
    """Rows that are chosen from a part of a source, by their numbers in rising order."""

    part: Part
    rows: Tensor

    @classmethod
    def all_of(cls, part: Part) -> _Split:
        return cls(part, torch.arange(len(part.x)))

    def labels(self) -> Tensor | None:
        return None if self.part.labels is None else self.part.labels[self.rows]

    def chosen(self, which: Tensor) -> _Split:
        """Some of these rows, in their order."""
        return _Split(self.part, self.rows[which.sort().values])


def _splits(
    name: str,
    source: Source,
    validation_fraction: float,
    max_rows: int | None,
    fixed: Generator,
    seeded: Generator,
) -> tuple[_Split, _Split, _Split]:
    """Training, validation and test rows: the source's own splits, and random ones where it has none."""
    train = _Split.all_of(source.train)
    if source.test is None:
        train, test = _split(name, train, TEST_FRACTION, fixed)
    else:
        test = _Split.all_of(source.test)
    if source.validation is None:
        train, validation = _split(name, train, validation_fraction, seeded)
    else:
        validation = _Split.all_of(source.validation)
    if max_rows is not None:
        train, validation = (_at_most(max_rows, split, seeded) for split in (train, validation))
        test = _at_most(max_rows, test, fixed)
    return train, validation, test


def _read(name: str, data_dir: Path, download: bool) -> Source:
    """The source that a name in its usual spelling names."""
    if (path := path_of(name)) is not None:
        return read_folder(path) if is_folder(name) else read_arrays(path)
    if name == DIGITS:
        return read_digits()
    return read_torchvision(name, data_dir.expanduser(), download)


def _split(
    name: str, split: _Split, fraction: float, generator: Generator
) -> tuple[_Split, _Split]:
    """All but a random `fraction` of the rows, and that fraction; both in the original order."""
    kept, held = held_out(name, len(split.rows), fraction, generator)
    return split.chosen(kept), split.chosen(held)


def _at_most(rows: int, split: _Split, generator: Generator) -> _Split:
    return split.chosen(torch.randperm(len(split.rows), generator=generator)[:rows])


def _values(name: str, splits: Sequence[_Split]) -> list[Tensor]:
    """The values of the splits; each part of the source is read once."""
    numbers = sum(len(split.rows) * math.prod(split.part.x.shape[1:]) for split in splits)
    require_room(Path(name), 4 * numbers)  # the file may be sparse
    values: dict[int, Tensor] = {}
    for part in {split.part: None for split in splits}:
        places = [i for i, split in enumerate(splits) if split.part is part]
        found = part.values([splits[i].rows for i in places])
        values |= zip(places, found, strict=True)
    return [values[i] for i in range(len(splits))]


def _to_unit(name: str, x: Tensor, source: Source) -> None:
    """Scales the values, in place, to [0, 1], as intensities."""
    if source.levels is None and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"binarize needs intensities in [0, 1], but those of {name} reach from "
            f"{x.min():.4g} to {x.max():.4g}; scale them first"
        )
    x.div_(source.maximum)


def _add_noise(noise: Binarization | Dequantization, x: Tensor, generator: Generator) -> None:
    """Draws for the values in place, with the numbers that a single draw for all of them would use."""
    for run in runs_of(x):
        run.copy_(noise(run, generator))


def _dequantization(name: str, source: Source) -> Dequantization:
    if source.levels is None:
        raise ValueError(
            f"dequantize=True spreads discrete levels, but {name} holds real values; leave it out"
        )
    return Dequantization(source.levels)
