"""Files that a user has named, opened to be read."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path


def open_to_read(path: Path, expected: str) -> BufferedReader:
    """Opens a file; what stands in its way is said in plain words.

    Args:
        path: The file.
        expected: What it should be, such as `an array file`.

    Raises:
        FileNotFoundError: There is none.
        IsADirectoryError: It is a folder.
        PermissionError: It may not be read.
        ValueError: It is a pipe or a device, or no path.

    Example:
        >>> open_to_read(Path("no/such/file"), "an array file")
        Traceback (most recent call last):
        FileNotFoundError: the file ...no/such/file does not exist
    """
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            # Opening a pipe would wait for a writer.
            raise ValueError(f"{path} is a pipe or a device; expected {expected}")
        return path.open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the file {path.absolute()} does not exist") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder; expected {expected}") from error
    except PermissionError as error:
        raise PermissionError(
            f"the file {path.absolute()} may not be read: ask for its permission"
        ) from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise ValueError(f"{str(path)!r} is not the path of a file: {error}") from error
