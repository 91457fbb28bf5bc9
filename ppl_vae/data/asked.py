"""What is asked for when data are loaded: their name, and options; and what is wrong with these, unread."""

from __future__ import annotations

import difflib
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from ppl_vae.data.torchvision_sets import TORCHVISION

DIGITS = "digits"
"""The name of the embedded data."""

PATCHES = 8
"""Patches of each photo, unless told otherwise: the default of `load_data`, where the command line reads it."""

_FOLDER = "folder:"
_ARRAYS = (".npy", ".npz", ".pt")


def proper_name(name: str) -> str:
    """The name of data in its usual spelling.

    Raises:
        ValueError: There are no such data.

    Example:
        >>> proper_name("mnist"), proper_name("rows.npy")
        ('MNIST', 'rows.npy')
    """
    if name == _FOLDER:
        raise ValueError(
            "folder: names no folder: write folder:PATH, or folder:. for the current one"
        )
    if path_of(name) is not None:
        return name
    known = {known.lower(): known for known in (DIGITS, *TORCHVISION)}
    proper = known.get(name.lower())
    if proper is not None:
        return proper
    close = difflib.get_close_matches(name.lower(), known, n=1)
    suggestion = f" Did you mean {known[close[0]]!r}?" if close else ""
    if name and Path(name).expanduser().is_dir():
        suggestion = f" For the folder of pictures write 'folder:{name}'."
    raise ValueError(
        f"unknown data {name!r}.{suggestion} Known are {', '.join(known.values())}, "
        "folder:PATH with pictures, and array files PATH.npy, PATH.npz and PATH.pt"
    )


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder of pictures."""
    return name.startswith(_FOLDER)


def path_of(name: str) -> Path | None:
    """The folder or the file of arrays that a name stands for; None if it is a name alone."""
    if is_folder(name):
        return Path(name.removeprefix(_FOLDER)).expanduser()
    return Path(name).expanduser() if name.lower().endswith(_ARRAYS) else None


def require_data_options(
    name: object,
    *,
    data_dir: object = "data",
    download: object = True,
    binarize: str | None = None,
    dequantize: bool = False,
    patch_size: int | None = None,
    patches: int = PATCHES,
    validation_fraction: float = 0.1,
    max_rows: int | None = None,
    labels: bool | int = False,
) -> None:
    """Raises the errors of `load_data` that its arguments alone show. It reads nothing.

    Raises:
        TypeError: An option is of a wrong type.
        ValueError: It is out of its range, or some exclude each other.
    """
    _require_values(name, data_dir, binarize, dequantize, validation_fraction, max_rows)
    if not isinstance(labels, bool | np.bool_):
        require_whole("labels", labels)
    for option, given in (("download", download), ("dequantize", dequantize)):
        if not isinstance(given, bool | np.bool_):  # the text 'no' would count as True
            raise TypeError(f"{option} must be True or False, got {given!r}")
    _require_patches(str(name), patch_size, patches, binarize)


def require_data(name: str) -> None:
    """Raises an error if there are no data of a name, unread: sets that are downloaded are taken to be there.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: The folder or the file is not there.
    """
    proper = proper_name(name)
    path = path_of(proper)
    if path is None:
        return
    if is_folder(proper) and not path.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute()} does not exist")
    if not path.exists():
        raise FileNotFoundError(f"the file {path.absolute()} does not exist")


def _require_values(
    name: object,
    data_dir: object,
    binarize: str | None,
    dequantize: bool,
    validation_fraction: float,
    max_rows: int | None,
) -> None:
    """Refuses options that are of a wrong type, out of range, or exclude each other."""
    if not isinstance(name, str | Path):
        raise TypeError(
            f"load_data takes the name of data, such as 'digits' or 'folder:PATH', not {name!r:.40} of type "
            f"{type(name).__name__}"
        )
    if not isinstance(data_dir, str | Path):
        raise TypeError(f"data_dir must be a path, got {data_dir!r}")
    if binarize not in (None, "threshold", "static", "dynamic"):
        raise ValueError(
            f"binarize must be 'threshold', 'static', 'dynamic' or None, got {binarize!r}"
        )
    if binarize and dequantize:
        raise ValueError(
            f"binarize={binarize!r} and dequantize=True exclude each other: binary values keep no "
            "levels to spread; choose one"
        )
    if not isinstance(validation_fraction, Real) or isinstance(validation_fraction, bool):
        raise TypeError(f"validation_fraction must be a number, got {validation_fraction!r}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), got {validation_fraction}")
    if max_rows is not None:
        require_whole("max_rows", max_rows)


def _require_patches(name: str, patch_size: int | None, patches: int, binarize: str | None) -> None:
    """Refuses patches of what is no folder of photos, and what photos are not for."""
    require_whole("patches", patches)
    if patch_size is None:
        if patches != PATCHES:
            raise ValueError(
                f"patches={patches} is how many patches are cut out of each photo: give their side, too "
                "(patch_size)"
            )
        return
    require_whole("patch_size", patch_size)
    if not is_folder(name):
        raise ValueError(
            f"patch_size={patch_size} cuts patches out of a folder of photos (folder:PATH), and {name!r} is "
            "none: leave it out"
        )
    if binarize:
        raise ValueError(
            f"binarize={binarize!r} is for rows whose values are intensities, and those of patches of photos "
            "are colors: leave it out"
        )


def require_whole(name: str, value: object) -> None:
    """Raises an error for an option that is no positive whole number.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
