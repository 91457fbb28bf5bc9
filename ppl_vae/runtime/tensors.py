"""Tensors and JSON in an atomic, checksummed safetensors file.

A digest of the content finds damage that keeps the length. Nothing is pickled: reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.runtime.bounded import load_json
from ppl_vae.runtime.files import CorruptFileError, write_bytes

_METADATA = "ppl_vae"

_DIGEST = "sha256"

_AT_ONCE = 2**22
"""Numbers that are brought to the CPU at once."""

_LARGE = 2**30
_MOST_RATIO = 100
"""A file above that size is not read if it takes so much less room on the disk: it is sparse."""


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes tensors and metadata to `path` atomically.

    Args:
        path: The file; its folder must exist.
        tensors: Tensors of any device and layout; saved from the CPU, contiguous.
        metadata: Anything that `json` can write.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_tensors(f"{folder}/state.safetensors", {"w": torch.ones(2)}, {"epoch": 3})
        >>> read_tensors(f"{folder}/state.safetensors")
        ({'w': tensor([1., 1.])}, {'epoch': 3})
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(metadata or {}))
    data = safetensors.torch.save(plain, {_METADATA: text, _DIGEST: _digest(plain, text)})
    write_bytes(path, data)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: It is truncated, changed, or not a file of ours; the message names it.
        OSError: The system does not let it be read: a permission is missing, say.
    """
    path = Path(path)
    with _opened(path) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(tensors, header[_METADATA]) != header[_DIGEST]:
        raise CorruptFileError(
            path, "the file's content does not match its checksum: it is damaged"
        )
    return tensors, _as_metadata(path, header)


def _as_metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    try:
        return load_json(header[_METADATA])
    except ValueError as error:
        raise CorruptFileError(path, f"its metadata cannot be read ({error})") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of what `write_tensors` wrote. The tensors are not read, so that nothing is verified.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: It is truncated, or not a file of ours.
        OSError: The system does not let it be read.
    """
    path = Path(path)
    with _opened(path) as (_, header):
        return _as_metadata(path, header)


def content_digest(path: str | Path) -> str:
    """The digest of names, values and metadata that a file of `write_tensors` holds; they are not read.

    Unlike the bytes of the file, in which metadata have a random order, it is the same for the same content.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: It is truncated, or not a file of ours.
        OSError: The system does not let it be read.

    Example:
        >>> import tempfile
        >>> file = f"{tempfile.mkdtemp()}/state.safetensors"
        >>> write_tensors(file, {"w": torch.ones(2)})
        >>> before = content_digest(file)
        >>> write_tensors(file, {"w": torch.zeros(2)})
        >>> before == content_digest(file)
        False
    """
    with _opened(Path(path)) as (_, header):
        return header[_DIGEST]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file of ours, open, and its header."""
    _require_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if _METADATA not in header or _DIGEST not in header:
                raise CorruptFileError(
                    path, "the file was not written by ppl_vae (it has no checksum)"
                )
            yield file, header
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CorruptFileError(path, f"the file is truncated or damaged ({error})") from error


def _require_file(path: Path) -> None:
    """Raises an error for what cannot be opened, as such: safetensors calls all of it a missing file."""
    if path.is_file():
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
        blocks = getattr(found, "st_blocks", 0)
        written = 512 * blocks
        # None or one where it is not known: so says ZFS of a file that has just been written.
        if blocks > 1 and found.st_size > max(_LARGE, _MOST_RATIO * written):
            raise CorruptFileError(
                path, f"it is {found.st_size:,} bytes long, of which {written:,} were ever written"
            )
        return
    if path.is_dir():
        raise CorruptFileError(path, "this is a folder, not a file")
    if path.exists():
        raise CorruptFileError(path, "this is no plain file, but a pipe or a device")
    if path.is_symlink():
        raise CorruptFileError(path, f"this is a link to {os.readlink(path)}, which is not there")
    raise FileNotFoundError(f"{path}: there is no such file")


def flatten(tree: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Splits nested dicts and lists (an optimizer's state, say) into JSON and the tensors in them.

    Raises:
        TypeError: Something in the tree is neither; its place is named.
        ValueError: Keys with dots in them would give two tensors one name.
    """
    if isinstance(tree, Tensor):
        return {"tensor": prefix}, {prefix: tree}
    if isinstance(tree, Mapping):
        items: list[Any] = []
        tensors: dict[str, Tensor] = {}
        for key, value in tree.items():
            if not isinstance(key, (str, int)):
                raise TypeError(f"cannot save the key {key!r} in '{prefix}'")
            flat, inner = flatten(value, f"{prefix}.{key}" if prefix else str(key))
            items.append([key, flat])
            _add(tensors, inner)
        return {"items": items}, tensors
    if isinstance(tree, (list, tuple)):
        flats: list[Any] = []
        tensors = {}
        for i, value in enumerate(tree):
            flat, inner = flatten(value, f"{prefix}.{i}")
            flats.append(flat)
            _add(tensors, inner)
        return {"tuple" if isinstance(tree, tuple) else "list": flats}, tensors
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}, {}
    raise TypeError(f"cannot save '{prefix}', which is a {type(tree).__name__}")


def _add(tensors: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name in tensors.keys() & more.keys():
        raise ValueError(f"two tensors would be called '{name}': keys must differ with their dots")
    tensors.update(more)


def unflatten(flat: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` split."""
    ((kind, content),) = flat.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind == "list":
        return [unflatten(value, tensors) for value in content]
    if kind == "tuple":
        return tuple(unflatten(value, tensors) for value in content)
    return content


def digest(tensors: Iterable[Tensor]) -> str:
    """A digest of dtypes, shapes and values.

    Example:
        >>> digest([torch.zeros(2)]) == digest([torch.ones(2)])
        False
    """
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        for first in range(0, len(flat), _AT_ONCE):
            part = flat[first : first + _AT_ONCE].cpu().contiguous()
            found.update(part.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
