"""Array files as a source of data: `.npy`, `.npz` and `.pt`, tensors only."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.labels import as_classes
from ppl_vae.data.opening import open_to_read
from ppl_vae.data.sizes import (
    MuchLargerError,
    is_archive_of_torch,
    require_plain,
    require_room,
    written,
)
from ppl_vae.data.sources import Part, Source, StoredRows, rows_per_run, runs_of

_KEYS = {
    "x": "y",
    "train": "train_labels",
    "validation": "validation_labels",
    "test": "test_labels",
}
"""Keys of the rows, and the keys of their labels."""

_LEVELS = {torch.uint8: 256, torch.bool: 2}
"""Dtypes of values that have levels, and how many; rows of other dtypes are real numbers."""


def _load_arrays(path: Path) -> dict[str, Any]:
    """The named arrays of a file; a bare array is `x`."""
    file = open_to_read(path, "an array file")
    with _explained(path), file:
        require_plain(path, file)
        if path.suffix.lower() == ".pt":
            content = _load_tensors(path, mapped=is_archive_of_torch(file))
        elif file.peek(6).startswith(np.lib.format.MAGIC_PREFIX):
            content = StoredArray.of(path)
        else:
            content = np.load(file, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            return {key: _member(path, key, file, content) for key in content}
        return dict(content) if isinstance(content, Mapping) else {"x": content}


_LONGEST_HEADER = 2**16
"""Largest size of an `.npy` file's header in bytes; NumPy takes no longer ones."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns whatever a broken file raises into a ValueError that names it."""
    try:
        yield
    except MuchLargerError:
        raise
    # A broken file raises zip, pickle, stream or value errors.
    except Exception as error:
        # torch's own message advises unpickling after all.
        objects = isinstance(error, pickle.UnpicklingError)
        reason = "it holds other objects, or is broken" if objects else str(error).split("\n")[0]
        raise ValueError(
            f"{path} cannot be read as tensors alone (nothing is unpickled, because that "
            f"could run code): {reason or type(error).__name__}"
        ) from error


def _load_tensors(path: Path, mapped: bool) -> Any:
    """What a `.pt` file holds; if mapped, tensors stay in it, and the system reads what is used."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _member(path: Path, key: str, file: IO[bytes], arrays: Mapping[str, Any]) -> Any:
    """An array of an `.npz`, which stays in the file; other files in it are read."""
    with zipfile.ZipFile(file) as archive:
        name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
        with archive.open(name) as content:
            is_array = content.read(6) == np.lib.format.MAGIC_PREFIX
    return StoredArray.of(path, name) if is_array else arrays[key]


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in an `.npy` file, or in such a file inside of an `.npz`, that is read a run of rows at a time.

    Attributes:
        path: The file.
        member: The name inside of the `.npz`; None for an `.npy` file.
        shape: Shape of the array.
        dtype: Its dtype.
        by_rows: Whether its rows follow each other in the file; otherwise it is read as a whole.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_rows: bool

    @classmethod
    def of(cls, path: Path, member: str | None = None) -> StoredArray:
        """The array at a place.

        Raises:
            ValueError: It holds objects, or less than its header says.
        """
        with _opened(path, member) as (file, size):
            shape, by_columns, dtype = _header(file)
            there = size - file.tell()
        if dtype.hasobject:
            raise ValueError("it holds objects")
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape is {shape}")
        if there < math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"it ends after {there // dtype.itemsize} of {math.prod(shape)} numbers"
            )
        return cls(path, member, shape, dtype, not by_columns and bool(shape))

    def read(self) -> np.ndarray[Any, Any]:
        """All of it."""
        with _opened(self.path, self.member) as (file, _):
            found: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
        return found

    def runs(self) -> Iterator[np.ndarray[Any, Any]]:
        """Its rows, one run after the other."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        at_a_time = rows_per_run(row_bytes)
        if not self.by_rows:
            array = self.read()
            for start in range(0, self.shape[0], at_a_time):
                yield array[start : start + at_a_time]
            return
        with _opened(self.path, self.member) as (file, _):
            _header(file)
            for start in range(0, self.shape[0], at_a_time):
                rows = min(at_a_time, self.shape[0] - start)
                content = bytearray(file.read(rows * row_bytes))  # bytes could not be written to
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """An `.npy` file, or one inside of an `.npz`, and its size in bytes."""
    with path.open("rb") as file:
        if member is None:
            yield file, path.stat().st_size
        else:
            with zipfile.ZipFile(file) as archive, archive.open(member) as content:
                yield content, archive.getinfo(member).file_size


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order by columns, and dtype of an `.npy` file, which is then read up to its values."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    length = file.read(4)
    if int.from_bytes(length, "little") > _LONGEST_HEADER:  # NumPy would read it first
        raise ValueError("its header is too long")
    file.seek(-4, os.SEEK_CUR)
    return np.lib.format.read_array_header_2_0(file)


def _real(path: Path, key: str, array: Any) -> Tensor | np.ndarray[Any, Any] | StoredArray:
    """`array`, if it is one of real numbers; a tensor is dense then."""
    if isinstance(array, Tensor) and not array.is_complex():
        # A tensor may repeat one number, or hold zeros that are not in the file.
        size = array.numel() * array.element_size()
        require_room(path, size, on_disk=written(path.stat()))
        return array.detach().to_dense()
    if isinstance(array, np.ndarray | StoredArray) and array.dtype.kind in "buif":
        return array
    stored = isinstance(array, Tensor | np.ndarray | StoredArray)
    got = f"the dtype {array.dtype}" if stored else f"the type {type(array).__name__}"
    raise ValueError(f"{path}: {key!r} must be an array of real numbers, but it has {got}")


def _numbers(array: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """`array` as a uint8, bool, int64 or float32 tensor."""
    if isinstance(array, Tensor):
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if array.dtype not in (np.uint8, np.bool_):
        with np.errstate(over="ignore"):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)
    return torch.from_numpy(np.ascontiguousarray(array))


def _stored_rows(path: Path, key: str, array: Any) -> StoredRows:
    """The rows of an array, which are checked as they are read."""

    def read() -> Iterator[Tensor | np.ndarray[Any, Any]]:
        with _explained(path):
            yield from array.runs() if isinstance(array, StoredArray) else runs_of(array)

    def runs() -> Iterator[Tensor]:
        bad = first = start = 0
        for run in map(_numbers, read()):
            if run.dtype not in _LEVELS:
                run = run.float()
                wrong = ~run.flatten(1).isfinite().all(1)
                if wrong.any():
                    first = first if bad else start + int(wrong.nonzero()[0])
                    bad += int(wrong.sum())
            yield run
            start += len(run)
        if bad:
            raise ValueError(
                f"{path}: {bad} of the {start} rows of {key!r} hold NaN or infinite "
                f"values (as float32), the first in row {first}; repair or drop them"
            )

    name = str(array.dtype).removeprefix("torch.")
    dtype = next((kind for kind in _LEVELS if str(kind) == f"torch.{name}"), torch.float32)
    return StoredRows(tuple(array.shape), dtype, runs)


def _array_part(path: Path, key: str, arrays: Mapping[str, Any]) -> Part:
    array = _real(path, key, arrays[key])
    if len(array.shape) < 2 or 0 in array.shape:
        raise ValueError(
            f"{path}: {key!r} has the shape {tuple(array.shape)}; expected (rows, ...) with at least "
            "one row and one further dimension, such as (rows, features) or "
            "(rows, channels, height, width)"
        )
    x = _stored_rows(path, key, array)
    if _KEYS[key] not in arrays:
        return Part(x)
    given = arrays[_KEYS[key]]
    if getattr(getattr(given, "dtype", None), "kind", "") in ("U", "S"):
        raise ValueError(
            f"{path}: {_KEYS[key]!r} must be an array of real numbers, but it holds texts: save numbers from "
            "0, as numpy.unique(y, return_inverse=True)[1] are"
        )
    stored = _real(path, _KEYS[key], given)
    with _explained(path):
        labels = _numbers(stored.read() if isinstance(stored, StoredArray) else stored)
    labels = labels if labels.is_floating_point() else labels.long()
    if labels.dim() == 0 or len(labels) != len(x):
        raise ValueError(
            f"{path}: {_KEYS[key]!r} has the shape {tuple(labels.shape)}, but {key!r} has "
            f"{len(x)} rows: expected one label per row"
        )
    return Part(x, labels)


def read_arrays(path: Path) -> Source:
    """Arrays from an `.npy`, `.npz` or `.pt` file; rows first, nothing is unpickled.

    An `.npz`, or a dictionary in a `.pt`, holds either `x` (and `y`, its labels), or
    `train` with any of `validation` and `test` (and `train_labels`, ...). A bare array is
    `x`. Entries of type uint8 are 8-bit pictures, divided by 255; booleans become 0 and 1; all
    others are kept as they are.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is broken, holds objects, NaN or infinite values, keys other than those, or
            arrays whose shapes do not fit.
    """
    arrays = _load_arrays(path)
    rows = [key for key in _KEYS if key in arrays]
    allowed = {*rows, *(_KEYS[key] for key in rows)}
    complete = rows == ["x"] or rows[:1] == ["train"]
    if not complete or set(arrays) - allowed:
        raise ValueError(
            f"{path} holds the arrays {sorted(map(str, arrays))}; expected either 'x' (and 'y', "
            "its labels) or 'train' with any of 'validation' and 'test' (and 'train_labels', "
            "'validation_labels', 'test_labels')"
        )
    parts = {key: _array_part(path, key, arrays) for key in rows}
    told = {key: part.labels for key, part in parts.items() if part.labels is not None}
    for key, labels in zip(told, as_classes([*told.values()]) if told else (), strict=True):
        parts[key] = Part(parts[key].x, labels)
    first = parts[rows[0]]
    for key, part in parts.items():
        if part.x.shape[1:] != first.x.shape[1:] or part.x.dtype != first.x.dtype:
            raise ValueError(
                f"{path}: rows of {rows[0]!r} have the shape {tuple(first.x.shape[1:])} "
                f"({first.x.dtype}), those of {key!r} {tuple(part.x.shape[1:])} ({part.x.dtype})"
            )
    levels = _LEVELS.get(first.x.dtype)
    return Source(first, parts.get("test"), parts.get("validation"), levels=levels)
