"""Files that are either whole or absent: tensors and JSON in an atomic, checksummed safetensors file.

A file is written beside its destination, flushed to the disk, and renamed over it, so that a process killed
at any moment leaves the old file or the new one. A digest of the content finds damage that keeps the length.
Nothing is pickled: reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.runtime.descriptions import described

_METADATA = "ppl_vae"

_DIGEST = "sha256"


class CorruptFileError(ValueError):
    """A file that is damaged or is not what it should be; `path` says which."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


def as_folder(given: object, name: str) -> Path:
    """The path of a folder that is there or can be made.

    Args:
        given: What the user gave.
        name: The option, for the message.

    Raises:
        TypeError: It is no path.
        ValueError: It has a character that no path can have.
        NotADirectoryError: It is a file, or below one.

    Example:
        >>> as_folder(3, "run_dir")
        Traceback (most recent call last):
        TypeError: run_dir must be a path, got 3
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {described(given)}")
    path = Path(given)
    if "\0" in str(path):
        raise ValueError(f"{name}={str(path)!r}: a path cannot hold a null character")
    for part in (path, *path.parents):
        if part.is_file():
            below = "" if part is path else f", and {path} would be below it"
            raise NotADirectoryError(f"{name}: {part} is a file{below}; choose another folder")
    return path


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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step that survives a crash: write, fsync, rename, fsync."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, but a file is to be written there: rename it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: It is truncated, changed, or not a file of ours; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CorruptFileError(path, f"the file is truncated or damaged ({error})") from error
    if _METADATA not in header or _DIGEST not in header:
        raise CorruptFileError(path, "the file was not written by ppl_vae (it has no checksum)")
    if _digest(tensors, header[_METADATA]) != header[_DIGEST]:
        raise CorruptFileError(
            path, "the file's content does not match its checksum: it is damaged"
        )
    return tensors, json.loads(header[_METADATA])


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


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
