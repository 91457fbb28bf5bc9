"""What ArviZ writes into a file, as bytes."""

from __future__ import annotations

from typing import Any


def as_netcdf(data: Any) -> memoryview:
    """The content of a netCDF file.

    It is made in memory: on a full disk HDF5 leaves a broken file behind and crashes the process later.

    Args:
        data: What `to_arviz` returned: an `InferenceData` of ArviZ 0.x, or a `DataTree` of xarray.
    """
    tree = data.to_datatree() if hasattr(data, "to_datatree") else data
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
