"""What ArviZ writes into a file, as bytes; and of which weights such a file is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

WEIGHTS_KEY = "weights_sha256"
"""Name of what says of which weights a result is: in netCDF an attribute, in PNG a text, in HTML its `meta`."""

_AN_END = 2**22
"""So many bytes at either end of a file are searched."""


def as_netcdf(data: Any, weights: str | None = None) -> memoryview:
    """The content of a netCDF file.

    It is made in memory: on a full disk HDF5 leaves a broken file behind and crashes the process later.

    Args:
        data: What `to_arviz` returned: an `InferenceData` of ArviZ 0.x, or a `DataTree` of xarray.
        weights: The digest of the weights that made the draws; it becomes an attribute.
    """
    tree = data.to_datatree() if hasattr(data, "to_datatree") else data.copy(deep=False)
    if weights is not None:
        tree.attrs = {**tree.attrs, WEIGHTS_KEY: weights}
    compressed = {
        f"/{name}": {
            variable: {"zlib": True}
            for variable, values in group.variables.items()
            if values.dtype.kind in "iufb"
        }
        for name, group in tree.children.items()
    }
    content: memoryview = tree.to_netcdf(None, engine="h5netcdf", encoding=compressed)
    return content


def names_weights(file: Path, weights: str) -> bool:
    """Whether a netCDF file, PNG or report is of these weights; True if it does not say so, or is not there.

    Its bytes are searched, because HDF5 does not withstand files that were made to harm. Both store what is
    looked for as it is, ahead of the numbers or behind them: a file may be long, or one long hole.
    """
    if not file.is_file():
        return True
    with file.open("rb") as opened:
        content = opened.read(_AN_END)
        size = os.fstat(opened.fileno()).st_size
        opened.seek(max(len(content), size - _AN_END))
        content += opened.read(_AN_END)
    return WEIGHTS_KEY.encode() not in content or weights.encode() in content
