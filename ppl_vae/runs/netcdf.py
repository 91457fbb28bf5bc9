"""What ArviZ writes into a file, as bytes."""

from __future__ import annotations

from typing import Any

WEIGHTS_ATTRIBUTE = "weights_sha256"
"""Name of the attribute that says of which weights the draws are."""


def as_netcdf(data: Any, weights: str | None = None) -> memoryview:
    """The content of a netCDF file.

    It is made in memory: on a full disk HDF5 leaves a broken file behind and crashes the process later.

    Args:
        data: What `to_arviz` returned: an `InferenceData` of ArviZ 0.x, or a `DataTree` of xarray.
        weights: The digest of the weights that made the draws; it becomes an attribute.
    """
    tree = data.to_datatree() if hasattr(data, "to_datatree") else data.copy(deep=False)
    if weights is not None:
        tree.attrs = {**tree.attrs, WEIGHTS_ATTRIBUTE: weights}
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
