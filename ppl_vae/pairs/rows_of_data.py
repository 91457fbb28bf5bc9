"""What `x` may be: rows in memory, as tensors for the arguments of a model, or an iterable of batches."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ppl_vae.pairs.as_tensors import (
    as_tensor,
    is_array,
    is_number,
    is_text,
    kind_of,
    numbered,
    signed,
)
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, SomeArguments, as_args

_EXPECTED = (
    "expected a tensor of shape (rows, ...), a tuple or dict of them, or an iterable of batches such as a "
    "torch DataLoader"
)


@dataclass(frozen=True)
class DataArguments:
    """The arguments of a pair that are data.

    Attributes:
        names: The model's names for them in order; None if it takes any number, or has no readable signature.
        required: How many have no default.
        dtype: That of the pair's parameters; None if it has none yet.
        options: The model's names for its other arguments.
        by_keyword: Those of the options that cannot be given by position.
    """

    names: tuple[str, ...] | None
    required: int = 0
    dtype: torch.dtype | None = None
    options: tuple[str, ...] = ()
    by_keyword: tuple[str, ...] = ()

    @classmethod
    def of(cls, pair: Pair) -> DataArguments:
        """The first arguments of a pair's model, as long as they have no default or the default None.

        Raises:
            TypeError: The model cannot be called with arguments by position alone, as programs are.
        """
        parameters = [p for module in pair.modules().values() for p in module.parameters()]
        stored = pair.store["params"].values()
        dtype = next((p.dtype for p in (*parameters, *stored) if p.dtype.is_floating_point), None)
        program = pair.model.forward if isinstance(pair.model, torch.nn.Module) else pair.model
        try:
            signature = inspect.signature(program).parameters.values()
        except (TypeError, ValueError):
            return cls(None, dtype=dtype)
        if any(p.kind is p.VAR_POSITIONAL for p in signature):
            return cls(None, dtype=dtype)
        by_keyword = tuple(p.name for p in signature if p.kind is p.KEYWORD_ONLY)
        needed = [p.name for p in signature if p.name in by_keyword and p.default is p.empty]
        if needed:
            raise TypeError(_by_position_alone(needed[0]))
        positional = [
            p for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        data = list(itertools.takewhile(lambda p: p.default in (p.empty, None), positional))
        required = sum(p.default is p.empty for p in data)
        names = tuple(p.name for p in data or positional[:1])
        others = tuple(p.name for p in signature if p.name not in names and p.kind != p.VAR_KEYWORD)
        return cls(names, required, dtype, others, by_keyword)


@dataclass(frozen=True)
class RowsOfData:
    """How `x` was read.

    Attributes:
        rows: All rows; None if `x` is an iterable of batches.
        doubt: How a list of arrays was read, and what to do if another reading was meant; empty if only one is
            possible.
    """

    rows: Batch | None
    doubt: str = ""


def read_data(x: Any, arguments: DataArguments, name: str = "x") -> RowsOfData:
    """Reads `x` as `Batches` describes it.

    Args:
        x: The data.
        arguments: Those of the model.
        name: What to call the data in messages.

    Raises:
        TypeError: It is nothing that can be read as rows or batches; the message says what to pass.
        ValueError: There are no rows, or the tensors have different numbers of rows.

    Example:
        >>> read_data([[1, 2], [3, 4], [5, 6]], DataArguments(("x",))).rows
        tensor([[1, 2],
                [3, 4],
                [5, 6]])
    """
    if isinstance(x, TensorDataset):
        x = x.tensors
    if isinstance(x, SomeArguments):
        x = as_args(x)
    if is_array(x) or isinstance(x, Mapping):
        return RowsOfData(_batch(x, arguments, name))
    if isinstance(x, list | tuple) and x:
        return _read_sequence(x, arguments, name)
    if isinstance(x, str | bytes | os.PathLike):
        raise TypeError(
            f"{name} is {kind_of(x)}: pass rows, such as load_data({str(x)[:40]!r}).train"
        )
    if isinstance(x, Dataset):
        also = ", or with batch_size=None if its items are batches"
        raise TypeError(
            f"{name} is {kind_of(x)}, whose items are single rows: pass DataLoader({name}, batch_size=128)"
            f"{also if isinstance(x, IterableDataset) else ''}"
        )
    if isinstance(x, Iterator):
        raise TypeError(
            f"{name} is {kind_of(x)}, which can be read only once; give a DataLoader, a list of batches, or "
            "another iterable that can be read again"
        )
    if hasattr(x, "obs_names") and hasattr(x, "X"):  # AnnData
        raise TypeError(
            f"{name} is {kind_of(x)}: pass its matrix, torch.as_tensor({name}.X) "
            f"(or {name}.X.toarray() if that is sparse)"
        )
    if not isinstance(x, Iterable) or isinstance(x, type):
        raise TypeError(f"{name} is {kind_of(x)}; {_EXPECTED}")
    return RowsOfData(None)


def read_batch(batch: Any, arguments: DataArguments, name: str = "x") -> Batch:
    """A batch of an iterable: a tensor, or tensors for the arguments of the model.

    Raises:
        TypeError: It is something else, or a single row.
        ValueError: There are no rows, or the tensors have different numbers of rows.
    """
    if isinstance(batch, SomeArguments):
        batch = as_args(batch)
    if not (is_array(batch) or (isinstance(batch, Mapping | list | tuple) and batch)):
        raise TypeError(
            f"{name} gives batches of type {type(batch).__name__}; expected tensors, or tuples or dicts of "
            "them, as a DataLoader makes them"
        )
    if not is_array(batch):
        first = next((part for part in _parts(batch) if part is not None), None)
        if len(getattr(first, "shape", ())) <= 1:
            _refuse_single_rows(batch, name)
    return _batch(batch, arguments, f"a batch of {name}", in_memory=False)


def _read_sequence(x: Sequence[Any], arguments: DataArguments, name: str) -> RowsOfData:
    leaf = _first_leaf(x)
    given = [part for part in x if part is not None]
    if isinstance(x, tuple) and given and is_array(given[0]):
        return RowsOfData(_batch(x, arguments, name))
    if isinstance(x, tuple) and _is_nested(x[0]) and not all(map(_is_nested, x)):
        kinds = ", ".join(kind_of(part) for part in x[:5])
        raise TypeError(
            f"{name} is a nested tuple ({kinds}): pass one flat tuple of tensors, one for each argument of the "
            "model, or a list of batches"
        )
    if is_number(leaf):
        return RowsOfData(_batch(as_tensor(x, name, arguments.dtype), arguments, name))
    if all(map(is_array, x)):
        return _read_arrays(x, arguments, name)
    if is_array(leaf) or isinstance(leaf, Mapping):
        found = None
        if all(isinstance(part, Mapping) for part in x):
            found = _read_dicts(x, arguments, name)
        if not (is_array(x[0]) or (found is not None and found.rows is not None)):
            _refuse_single_rows(x[0], name)
        return found or RowsOfData(None)
    raise TypeError(f"{name} is a {type(x).__name__} of {type(leaf).__name__}; {_EXPECTED}")


def _read_arrays(x: Sequence[Any], arguments: DataArguments, name: str) -> RowsOfData:
    """A list of arrays, as `Batches` describes it."""
    tensors = [as_tensor(part, f"{name}[{i}]", arguments.dtype) for i, part in enumerate(x)]
    shape = tuple(tensors[0].shape)
    if any(tuple(t.shape) != shape for t in tensors):
        return RowsOfData(None)
    if not shape:
        return RowsOfData(torch.stack(tensors))
    what = f"{name} is a list of {len(x)} arrays of shape {shape}"
    stack, join = _joined_by(x[0])
    if len(shape) == 1 and not isinstance(x[0], Tensor):
        doubt = f"{what}, taken as {len(x)} rows: if they are batches, pass {join}({name})"
        return RowsOfData(torch.stack(tensors), doubt)
    doubt = (
        f"{what}, each taken as a batch of {shape[0]} rows: if each is a row, pass {stack}({name})"
    )
    return RowsOfData(None, doubt)


def _read_dicts(x: Sequence[Mapping[Any, Any]], arguments: DataArguments, name: str) -> RowsOfData:
    """A list of dicts of arrays, read as a list of arrays is."""
    keys = [key for key in arguments.names or () if key in x[0]]
    columns = {key: [part.get(key) for part in x] for key in keys}
    parts = [part for column in columns.values() for part in column]
    if not parts or not all(map(is_array, parts)):
        return RowsOfData(None)
    tensors = {
        key: [
            as_tensor(part, f"{name}[{i}][{key!r}]", arguments.dtype)
            for i, part in enumerate(column)
        ]
        for key, column in columns.items()
    }
    shapes = {key: {tuple(t.shape) for t in column} for key, column in tensors.items()}
    if any(len(found) > 1 for found in shapes.values()):
        return RowsOfData(None)
    shape = next(iter(shapes[keys[0]]))
    what = f"{name} is a list of {len(x)} dicts with arrays of shape {shape}"
    stack, join = _joined_by(parts[0])
    one = "{k: %s([d[k] for d in x]) for k in x[0]}".replace("x", name)
    if all(t[0].dim() == 1 and not isinstance(columns[k][0], Tensor) for k, t in tensors.items()):
        doubt = f"{what}, taken as {len(x)} rows: if they are batches, pass {one % join}"
        rows = {key: torch.stack(column) for key, column in tensors.items()}
        return RowsOfData(_batch(rows, arguments, name), doubt)
    doubt = (
        f"{what}, each taken as a batch of {shape[0]} rows: if each is a row, pass {one % stack}"
    )
    return RowsOfData(None, doubt)


def _joined_by(array: Any) -> tuple[str, str]:
    """The functions that make one array of such rows, and of such batches."""
    if isinstance(array, Tensor):
        return "torch.stack", "torch.cat"
    return "numpy.stack", "numpy.concatenate"


def _batch(x: Any, arguments: DataArguments, name: str, in_memory: bool = True) -> Batch:
    """The tensors for the arguments of the model; in memory, lists of numbers may stand for them.

    Arguments with the default None may get nothing: a modality that is missing.
    """
    parts: dict[Any, Any]
    if isinstance(x, Mapping):
        parts = _by_name(x, arguments, name)
    elif is_array(x):
        parts = {None: x}
    else:
        parts = dict(enumerate(_by_position(x, arguments, name, in_memory)))
    tensors, places = [], []
    for number, (key, part) in enumerate(parts.items()):
        place = f"{name}[{key!r}]" if in_memory else f"part {key!r} of {name}"
        place = name if key is None else place
        if part is None and number >= arguments.required:
            continue
        places.append(number)
        if not (is_array(part) or (in_memory and _has_numbers(part))):
            if isinstance(part, list | tuple) and is_text(part):
                raise TypeError(
                    f"{place} is {kind_of(part)} of texts, but the model needs numbers there: labels are "
                    f"numbers from 0, as in {_numbering(place, in_memory)}"
                )
            raise TypeError(
                f"{place} is {kind_of(part)}, but the model needs a tensor there, of shape (rows, ...): make "
                "one with torch.as_tensor (in a DataLoader, by its collate_fn)"
            )
        tensors.append(as_tensor(signed(part) if number else part, place, arguments.dtype))
    if not tensors:
        raise ValueError(f"{name} has no rows: it gives nothing for any argument of the model")
    if any(t.dim() == 0 or t.shape[0] == 0 for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"{name} has no rows: its shape is {shapes}; expected (rows, ...)")
    if not any(t.numel() for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"the rows of {name} hold no numbers: its shape is {shapes}")
    if len({t.shape[0] for t in tensors}) > 1:
        sizes = ", ".join(str(t.shape[0]) for t in tensors)
        raise ValueError(f"the tensors of a batch have different numbers of rows: {sizes}")
    if places != list(range(len(places))):
        return SomeArguments.at(places, tensors)
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _numbering(place: str, in_memory: bool) -> str:
    """How texts become labels. The batches of a loader do not know each other's texts."""
    if in_memory:
        return numbered(place)
    return f"{numbered('texts')} of the texts of all rows, before the DataLoader (or by its collate_fn)"


def _by_position(
    parts: Sequence[Any], arguments: DataArguments, name: str, in_memory: bool
) -> Sequence[Any]:
    """As many parts as the model takes; names and the like are left out where it does not need them."""
    most = len(parts) if arguments.names is None else max(1, len(arguments.names))
    kept, others = parts[:most], parts[most:]
    if _repeats(kept[0], others):
        stack, join = _joined_by(kept[0])
        raise TypeError(
            f"{name} is a {type(parts).__name__} of {len(parts)} arrays like the first one, of shape "
            f"{tuple(kept[0].shape)}, but the model takes {most}: if they are rows, make one array of them "
            f"with {stack}; if they are batches, with {join}"
        )
    while len(kept) > max(1, arguments.required) and not (
        _has_numbers(kept[-1]) or _is_nested(kept[-1])
    ):
        if kept[-1] is not None and arguments.names is not None and is_text(kept[-1]):
            place = f"{name}[{len(kept) - 1}]" if in_memory else f"part {len(kept) - 1} of {name}"
            warnings.warn(
                f"{place} is {kind_of(kept[-1])} of texts and is left out, so that the model's argument "
                f"'{arguments.names[len(kept) - 1]}' gets nothing: if they are labels, make them numbers from "
                f"0, as in {_numbering(place, in_memory)}; if they are names of rows, leave them out",
                UserWarning,
                stacklevel=2,
            )
        kept = kept[:-1]
    return kept


def _repeats(first: Any, others: Sequence[Any]) -> bool:
    """Whether what the model does not take are further rows or batches of data, and no labels.

    One more array like the first may be meant (the same pictures without noise), and so may two more numbers
    per row.
    """
    if not isinstance(first, Tensor | np.ndarray):
        return False
    alike = [
        len(other)
        for other in others
        if isinstance(other, type(first))
        if other.dtype == first.dtype and len(other.shape) and other.shape[1:] == first.shape[1:]
    ]
    if len(first.shape) < 2:
        return len(alike) > 2
    return len(alike) > 1 or any(rows != len(first) for rows in alike)


def _by_name(parts: Mapping[Any, Any], arguments: DataArguments, name: str) -> dict[str, Any]:
    """The part for each of the model's arguments, None where there is none; what has other keys is left out."""
    names = arguments.names or ()
    given = [n for n in names if n in parts]
    missing = [n for n in names if n not in parts]
    if arguments.names == ():
        mistake = "programs are called by position, with one tensor each: write model(x, ...)"
    elif not given or any(n in missing for n in names[: arguments.required]):
        mistake = (
            "each argument gets one tensor; use these names as keys, or pass a tuple of tensors in their order "
            "(from a DataLoader, by its collate_fn)"
        )
    else:
        mistake = _doubtful_key(parts, arguments, missing)
    if mistake:
        keys, wanted = (", ".join(map(repr, some)) or "none" for some in (parts, names))
        raise TypeError(
            f"{name} is {kind_of(parts)} with the keys {keys}; the model's arguments are "
            f"{wanted if arguments.names is not None else '*args'}: {mistake}"
        )
    return {n: parts.get(n) for n in names}


def _doubtful_key(
    parts: Mapping[Any, Any], arguments: DataArguments, missing: Sequence[str]
) -> str:
    """What to do about a part that is left out but may be meant for an argument; empty if there is none."""
    left_out = [k for k in parts if k not in (arguments.names or ()) and _has_numbers(parts[k])]
    for key in left_out:
        if key in arguments.by_keyword:
            return f"{_by_position_alone(key)}, or leave the key out"
        if key in arguments.options:
            return (
                f"{key!r} is an option of the model and takes no data, which only arguments without a default, "
                "and those right after them with the default None, do: rename the key, or leave it out"
            )
        for argument in missing:
            if get_close_matches(str(key).lower(), [argument.lower()], cutoff=0.8):
                return f"if {key!r} is meant for {argument!r}, rename it; if not, leave it out"
    if left_out and 0 < len(missing) == len(arguments.names or ()) - arguments.required:
        warnings.warn(
            f"the keys {', '.join(map(repr, left_out))} of the data name no argument of the model and are left "
            f"out, and its argument {missing[0]!r} gets nothing: if one is meant for it, rename the key",
            UserWarning,
            stacklevel=2,
        )
    return ""


def _by_position_alone(name: str) -> str:
    return (
        f"the model takes {name!r} by keyword alone (it stands after *), but programs are called with their "
        f"data by position: write model(x, {name}) without the *"
    )


def _parts(batch: Any) -> list[Any]:
    return list(batch.values()) if isinstance(batch, Mapping) else list(batch)


def _refuse_single_rows(item: Any, name: str) -> None:
    """Refuses items such as `(picture, 7, "name")`: in a batch, there is a label for each row."""
    parts = _parts(item)
    if any(is_number(p) or isinstance(p, str) or getattr(p, "shape", None) == () for p in parts):
        kinds = ", ".join(type(part).__name__ for part in parts[:5])
        raise TypeError(
            f"{name} gives single rows ({kinds}), not batches: pass DataLoader({name}, batch_size=128)"
        )


def _has_numbers(part: Any) -> bool:
    """Whether a part is an array, or lists of numbers."""
    return is_array(part) or (isinstance(part, list | tuple) and is_number(_first_leaf(part)))


def _is_nested(part: Any) -> bool:
    """Whether a part is a tuple, a list or a dict of arrays, perhaps nested again."""
    if isinstance(part, Mapping):
        return any(is_array(value) or _is_nested(value) for value in part.values())
    return isinstance(part, list | tuple) and any(is_array(p) or _is_nested(p) for p in part)


def _first_leaf(x: Any) -> Any:
    """The first thing in nested lists that is not None."""
    while isinstance(x, list | tuple) and x:
        x = next((part for part in x if part is not None), None)
    return x
