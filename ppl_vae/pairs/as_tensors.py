"""Arrays as tensors: those of numpy, pandas, polars, xarray and others, none of which is imported but numpy."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.pairs.errors import first_line

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

_NUMBERS = "biuf"
"""numpy's kinds of dtype that torch computes with: booleans, integers, floating-point numbers."""


def as_tensor(x: Any, name: str = "x", dtype: torch.dtype | None = None) -> Tensor:
    """An array as a dense tensor.

    Tensors stay as they are, but get no gradient, because data are not learned. Floating-point numbers of
    other libraries, and those in lists, get the given dtype, because numpy and pandas hold float64 where
    modules hold float32. Integers and booleans keep their dtype. Memory is shared where that is possible;
    a file that numpy has mapped (`np.load(path, mmap_mode="r")`) then stays on disk.

    Args:
        x: A tensor, an array that turns into a numpy array, or lists of numbers.
        name: What to call it in messages.
        dtype: Of floating-point numbers that are not in a tensor yet; None is torch's default dtype.

    Raises:
        TypeError: It is sparse, or holds something other than numbers that torch computes with.
        ValueError: Its rows differ in length, values are masked, or a number is beyond the range of the dtype.

    Example:
        >>> as_tensor(np.array([0.5, 1.0])).dtype, as_tensor([[1, 2], [3, 4]]).shape
        (torch.float32, torch.Size([2, 2]))
    """
    if isinstance(x, Tensor):
        if x.is_nested:
            raise TypeError(
                f"{name} is a nested tensor: pad its rows to one length, as "
                "torch.nested.to_padded_tensor does"
            )
        if x.is_meta:
            raise TypeError(f"{name} is a tensor on the device 'meta', which holds no numbers")
        if x.layout is not torch.strided:
            raise TypeError(
                f"{name} is a sparse tensor ({x.layout}): make it dense with .to_dense() if that fits in "
                "memory, or pass a DataLoader whose collate_fn does so for each batch"
            )
        if x.dtype in _UNSIGNED:
            raise TypeError(
                f"{name} is a tensor of dtype {x.dtype}, which torch does not compute with: pass "
                f"{as_code(name)}.float(), or {as_code(name)}.long() for labels"
            )
        return x.detach() if x.requires_grad else x
    if is_sparse(x):
        raise TypeError(
            f"{name} is {kind_of(x)}, which is sparse: make it dense with .toarray() if that fits in memory, "
            "or pass a DataLoader whose collate_fn makes a dense tensor of each batch, as in "
            "torch.as_tensor(rows.toarray())"
        )
    array = _as_numpy(_writable(x), name)
    if array.dtype.kind not in _NUMBERS or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        raise TypeError(
            f"{name} is {kind_of(x)} of dtype {array.dtype}, which torch does not compute with: make numbers "
            f"of it, as in {_made_numbers(array, name)}"
        )
    native = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    tensor = torch.from_numpy(np.require(array, native, ["C", "W"]))
    if not tensor.is_floating_point():
        return tensor
    found = tensor.to(dtype or torch.get_default_dtype())
    if found is tensor:
        return tensor
    if bool(found.isinf().any()) and not bool(tensor.isinf().any()):
        raise ValueError(
            f"{name} holds numbers up to {float(tensor.nan_to_num().abs().max()):.3g}, beyond the range of "
            f"{found.dtype}: rescale them, or pass a torch.float64 tensor to programs in that dtype"
        )
    return found


def signed(x: Any) -> Any:
    """Labels and the like as int64, where they are whole numbers of a dtype that torch does not compute with.

    Example:
        >>> signed(np.array([0, 2], "uint16")).dtype, signed(np.array([0, 2], "uint8")).dtype
        (dtype('int64'), dtype('uint8'))
    """
    if isinstance(x, Tensor):
        return x.long() if x.dtype in _UNSIGNED else x
    dtype = getattr(x, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "u" and dtype.itemsize > 1:
        return np.asarray(x).astype(np.int64)
    return x


def is_text(x: Any) -> bool:
    """Whether an array or a list holds texts.

    Example:
        >>> is_text(np.array(["cat", "dog"])), is_text(["cat", None]), is_text([1, 2])
        (True, True, False)
    """
    try:
        array = np.asarray(x)
    except Exception:  # lists of different lengths, arrays of other libraries
        return False
    if array.dtype.kind in "US":
        return True
    objects = array.dtype.kind in "OT"
    return objects and any(isinstance(each, str) for each in array.ravel()[:100])


def numbered(name: str) -> str:
    """How to make labels of texts, as code."""
    return f"torch.as_tensor(numpy.unique({as_code(name)}, return_inverse=True)[1])"


def as_code(name: str) -> str:
    """The name of data as it can be typed, such as `x[1]`; `x` for data that have none."""
    return name if re.fullmatch(r"[\w.]+(\[[^\[\]]+\])*", name) else "x"


def _made_numbers(array: np.ndarray[Any, Any], name: str) -> str:
    """How to make a tensor of an array of a dtype that torch does not know."""
    dtype = array.dtype
    if is_text(array):
        try:
            array.ravel()[:100].astype("float32")
        except (TypeError, ValueError):  # no numbers that are written as texts
            return f"{numbered(name)}, which numbers the texts from 0 in the order of the alphabet"
    x = as_code(name)
    if dtype.kind in "mM":
        start = f"{x} - {x}.min()" if dtype.kind == "M" else x
        return f"torch.as_tensor(({start}) / numpy.timedelta64(1, 'D')), which counts days"
    if dtype.names is not None:
        return f"torch.as_tensor(numpy.lib.recfunctions.structured_to_unstructured({x}, 'float32'))"
    return f"torch.as_tensor({as_code(name)}.astype('float32'))"


def is_array(x: Any) -> bool:
    """Whether `x` is an array of any library; a single number is not one."""
    if isinstance(x, Tensor) or is_sparse(x):
        return True
    return hasattr(type(x), "__array__") and not isinstance(x, np.generic | Mapping)


def is_sparse(x: Any) -> bool:
    """Whether `x` is a sparse matrix of scipy or alike."""
    return hasattr(x, "toarray") and hasattr(x, "nnz")


def is_number(x: Any) -> bool:
    """Whether `x` is a single number of Python or numpy."""
    return isinstance(x, int | float | np.number | np.bool_)


def kind_of(x: Any) -> str:
    """The type of `x` with its library and an article.

    Example:
        >>> kind_of(np.zeros(3)), kind_of(3)
        ('a numpy.ndarray', 'an int')
    """
    library = type(x).__module__.partition(".")[0]
    name = type(x).__name__ if library == "builtins" else f"{library}.{type(x).__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _writable(x: Any) -> Any:
    """The same file mapped again, if it is mapped for reading alone.

    Torch takes only arrays that can be written to, and would copy it into memory. What is written to the new
    one does not reach the file.
    """
    if not isinstance(x, np.memmap) or x.flags.writeable or not isinstance(x.base, mmap.mmap):
        return x
    if x.filename is None or not x.flags.c_contiguous:
        return x
    return np.memmap(x.filename, x.dtype, "c", x.offset, x.shape)


def _as_numpy(x: Any, name: str) -> np.ndarray[Any, Any]:
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"{name} has {int(np.ma.getmaskarray(x).sum())} masked values: replace them by any number with "
            ".filled(0.0), and hide them from the likelihood with poutine.mask"
        )
    columns: dict[Any, np.ndarray[Any, Any]] = {}
    try:
        array = np.asarray(x)
        if array.dtype.kind not in _NUMBERS and hasattr(x, "columns"):
            columns = {column: np.asarray(x[column]) for column in x.columns}
    except Exception as error:  # every library raises its own
        if isinstance(x, list | tuple):
            raise ValueError(
                f"{name} is {kind_of(x)} of rows that differ in length or type ({first_line(error)}): pad "
                "them to one length, as torch.nn.utils.rnn.pad_sequence does"
            ) from error
        raise TypeError(
            f"{name} is {kind_of(x)}, of which numpy makes no array ({first_line(error)}): pass a tensor, as "
            "torch.as_tensor makes it"
        ) from error
    words = [f"'{c}': {v.dtype}" for c, v in columns.items() if v.dtype.kind not in _NUMBERS]
    if words:
        dates = any(v.dtype.kind in "mM" for v in columns.values())
        days = " (of dates, the days since the first one)" if dates else ""
        shown = ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
        raise TypeError(
            f"{name} is {kind_of(x)} with columns of a dtype that is not of numbers ({shown}): make numbers of "
            f"them{days}, as in torch.as_tensor(x.astype('float32').to_numpy()), or leave them out"
        )
    # A table of numbers of several kinds, or with missing ones, is an array of objects.
    return np.column_stack(list(columns.values())) if columns else array
