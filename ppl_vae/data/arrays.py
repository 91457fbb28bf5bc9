"""Array files as a source of data: `.npy`, `.npz` and `.pt`, tensors only."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.sizes import MuchLargerError, require_plain_zip, require_room
from ppl_vae.data.sources import Part, Source

_KEYS = {
    "x": "y",
    "train": "train_labels",
    "validation": "validation_labels",
    "test": "test_labels",
}
"""Keys of the rows, and the keys of their labels."""


def _load_arrays(path: Path) -> dict[str, Any]:
    """The named arrays of a file; a bare array is `x`."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the file {path.absolute()} does not exist") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder; expected an array file") from error
    except PermissionError as error:
        raise PermissionError(
            f"the file {path.absolute()} may not be read: ask for its permission"
        ) from error
    except ValueError as error:  # a null character
        raise ValueError(f"{str(path)!r} is not the path of a file: {error}") from error
    try:
        with file:
            require_plain_zip(path, file)
            if path.suffix.lower() == ".pt":
                content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = np.load(file, allow_pickle=False)
            named = isinstance(content, Mapping)
            return {key: content[key] for key in content} if named else {"x": content}
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


def _numbers(path: Path, key: str, array: Any) -> Tensor:
    """`array` as a uint8, bool, int64 or float32 tensor."""
    if isinstance(array, Tensor):
        # A tensor may repeat one number, or hold zeros that are not in the file.
        size = array.numel() * array.element_size()
        require_room(path, size, on_disk=path.stat().st_size)
        array = array.detach().to_dense()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    kind = array.dtype.kind if isinstance(array, np.ndarray) else None
    if kind is None or kind not in "buif":
        got = f"the type {type(array).__name__}" if kind is None else f"the dtype {array.dtype}"
        raise ValueError(f"{path}: {key!r} must be an array of real numbers, but it has {got}")
    if array.dtype not in (np.uint8, np.bool_):
        with np.errstate(over="ignore"):
            array = array.astype(np.float32 if kind == "f" else np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))


def _array_part(path: Path, key: str, arrays: Mapping[str, Any]) -> Part:
    x = _numbers(path, key, arrays[key])
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(
            f"{path}: {key!r} has the shape {tuple(x.shape)}; expected (rows, ...) with at least "
            "one row and one further dimension, such as (rows, features) or "
            "(rows, channels, height, width)"
        )
    if x.dtype not in (torch.uint8, torch.bool):
        x = x.float()
        bad = ~x.flatten(1).isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"{path}: {int(bad.sum())} of the {len(x)} rows of {key!r} hold NaN or infinite "
                f"values (as float32), the first in row {int(bad.nonzero()[0])}; repair or drop them"
            )
    if _KEYS[key] not in arrays:
        return Part(x)
    labels = _numbers(path, _KEYS[key], arrays[_KEYS[key]])
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
    first = parts[rows[0]]
    for key, part in parts.items():
        if part.x.shape[1:] != first.x.shape[1:] or part.x.dtype != first.x.dtype:
            raise ValueError(
                f"{path}: rows of {rows[0]!r} have the shape {tuple(first.x.shape[1:])} "
                f"({first.x.dtype}), those of {key!r} {tuple(part.x.shape[1:])} ({part.x.dtype})"
            )
    levels = {torch.uint8: 256, torch.bool: 2}.get(first.x.dtype)
    return Source(first, parts.get("test"), parts.get("validation"), levels=levels)
