"""Files of data that are small on the disk and huge in memory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

_LARGE = 2**30
_MOST_RATIO = 100


class MuchLargerError(ValueError):
    """Data that would take more memory than there is, or than such a file can need."""


def require_room(path: Path, num_bytes: int, *, on_disk: int | None = None) -> None:
    """Raises an error for data that do not fit into the memory, or that can hardly be what they say.

    Args:
        path: Where they are.
        num_bytes: Their size in memory.
        on_disk: Their size on the disk, if the ratio of the two is to be checked, too: numbers are never a
            hundred times as large as their compressed file, and a gigabyte in addition.

    Raises:
        MuchLargerError: They are too large.
    """
    available = _available()
    unlikely = on_disk is not None and num_bytes > max(_LARGE, _MOST_RATIO * on_disk)
    if num_bytes <= available and not unlikely:
        return
    why = f"{on_disk:,} bytes on the disk" if unlikely else "more than there is"
    raise MuchLargerError(
        f"{path} takes {num_bytes / 2**30:.1f} GiB of memory ({why}), so it is not read: if it is right, "
        "save it as an uncompressed .npy, in parts that fit into the memory"
    )


def require_plain_zip(path: Path, file: BinaryIO) -> None:
    """Raises an error for a zip archive (`.npz`, `.pt`) that is much larger once it is unpacked.

    The sizes are those of the archive's directory. No more is read of an entry than the directory says; and
    methods of compression that NumPy and torch do not write, which unpack in larger pieces, are not read.

    Raises:
        MuchLargerError: It is too large.
        ValueError: It is packed in another way.
    """
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                # The one function that torch allows to a file of tensors and that makes much of little.
                if entry.filename.endswith("data.pkl") and b"_codecs" in archive.read(entry):
                    raise ValueError("it holds more than tensors")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is packed in a way that NumPy and torch do not use")
        size = os.fstat(file.fileno()).st_size
        require_room(path, sum(entry.file_size for entry in entries), on_disk=size)
    file.seek(0)


def _available() -> int:
    """Free memory in bytes, with what the system can free; all of it where that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
