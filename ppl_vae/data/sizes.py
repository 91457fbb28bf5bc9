"""Files of data that are small on the disk and huge in memory."""

from __future__ import annotations

import io
import os
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

_LARGE = 2**30
_MOST_RATIO = 100

_MOST_ENTRIES = 1000
"""Most files in an archive: reading an array goes through all names."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_ENTRY_BYTES = 46
"""Size of an entry of an archive's directory without its texts."""

_OLD_PICKLES = 5
"""A `.pt` before torch 1.6: a number, a version, the system, the content, and the names of the storages."""

_MOST_OPERATIONS = 2000
"""Most steps that build what a `.pt` holds; a tensor takes some thirty. Some steps copy all that was built by
others, so that the memory may grow with the square."""

_MOST_READ = 2**20
"""Most bytes of an archive's directory, or of a pickle: what is longer may be a hole in a sparse file."""

_MORE_THAN_TENSORS = "it holds more than tensors, or very many; save those of the data alone"

_OF_TENSORS = re.compile(
    r"torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|sparse_tensor)"
    r"|torch \w+Storage|torch\.storage UntypedStorage|torch (u?int|float|bfloat|complex)\w*|torch bool"
    r"|torch Size|torch\.serialization _get_layout|collections OrderedDict"
)
"""What the pickle of a tensor names."""


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
    available = available_memory()
    unlikely = on_disk is not None and num_bytes > max(_LARGE, _MOST_RATIO * on_disk)
    if num_bytes <= available and not unlikely:
        return
    too_large = num_bytes > available
    why = "more than there is" if too_large else f"{on_disk:,} bytes on the disk"
    raise MuchLargerError(
        f"{path} takes {num_bytes / 2**30:.1f} GiB of memory ({why}), so it is not read: if it is right, "
        "save it as an uncompressed .npy, in parts that fit into the memory"
    )


def is_archive_of_torch(file: BinaryIO) -> bool:
    """Whether torch reads a `.pt` as an archive (Python looks elsewhere); before torch 1.6, it was none."""
    head = file.read(4)
    file.seek(0)
    return head == b"PK\3\4"


def require_plain(path: Path, file: BinaryIO) -> None:
    """Raises an error for an array file that is much larger once it is unpacked.

    The sizes are those of the archive's directory (`.npz`, `.pt`). No more is read of an entry than the
    directory says; and methods of compression that NumPy and torch do not write, which unpack in larger pieces,
    are not read. Torch finds the directory of a `.pt` in its own way, so there must be only one that can be
    found. What a `.pt` calls must be what tensors consist of: torch allows some other functions that make much
    of little.

    Args:
        path: The file; its ending says whether torch reads it.
        file: The same, opened; it is at its beginning afterwards.

    Raises:
        MuchLargerError: It is too large.
        ValueError: It is packed in another way, or holds more than tensors.
    """
    of_torch = path.suffix.lower() == ".pt"
    if is_archive_of_torch(file) if of_torch else zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(_ShortReads(file)) as archive:
            _require_plain_zip(path, file, archive)
            if of_torch:
                _require_one_directory(file, archive)
                for entry in archive.infolist():
                    if entry.filename.lower().endswith("data.pkl"):
                        if entry.file_size > _MOST_READ:
                            raise ValueError(_MORE_THAN_TENSORS)
                        _require_tensors_alone(io.BytesIO(archive.read(entry)), 1)
    elif of_torch:
        _require_tensors_alone(io.BytesIO(file.read(_MOST_READ)), _OLD_PICKLES)
        found = os.fstat(file.fileno())  # torch reads all of it
        require_room(path, found.st_size, on_disk=written(found))
    file.seek(0)


class _ShortReads:
    """A file of which a directory is read, however long it says that it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; raises a ValueError if they are too many."""
        found = self._file.read(size if 0 <= size <= _MOST_READ else _MOST_READ + 1)
        if len(found) > _MOST_READ:
            raise ValueError("its directory is too long")
        return found


def written(found: os.stat_result) -> int:
    """The size of a file without its holes, where the system knows it.

    One block may mean that it does not: ZFS says so of a new file, others of one in their archive.
    """
    blocks: int = getattr(found, "st_blocks", 0)
    return min(found.st_size, 512 * blocks) if blocks > 1 else found.st_size


def _require_plain_zip(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raises an error for an archive that unpacks to too much, or is made in an unusual way."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise ValueError(f"it holds more than {_MOST_ENTRIES} files")
    if any(entry.compress_type not in _METHODS for entry in entries):
        raise ValueError("it is packed in a way that NumPy and torch do not use")
    size = sum(entry.file_size for entry in entries)
    require_room(path, size, on_disk=written(os.fstat(file.fileno())))


def _require_one_directory(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raises an error for an archive in which torch could see other entries than Python.

    Python reads the directory ahead of the end of the file, torch the one whose place the end states; and for
    Python a name ends at a null character. So the file must be laid out as `torch.save` does it: entries,
    directory, and an end that states just that, with or without the records for archives above 4 GiB.
    """
    entries = archive.infolist()
    usual = all(
        entry.orig_filename.isascii()
        and entry.orig_filename == entry.filename
        # Nothing, or the one field of large archives: which of two holds, readers decide differently.
        and (not entry.extra or entry.extra[:4] == struct.pack("<2H", 1, len(entry.extra) - 4))
        for entry in entries
    )
    num, start = len(entries), archive.start_dir
    length = sum(
        _ENTRY_BYTES + len(entry.orig_filename) + len(entry.extra) + len(entry.comment)
        for entry in entries
    )
    file.seek(start + length)
    tail = file.read(200)
    clamped = (min(number, 2**32 - 1) for number in (length, start))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, num, num, *clamped, 0)
    versions = tail[12:16]  # of the programs that wrote it and can read it
    large = struct.pack("<4sQ4s2L4Q", b"PK\6\6", 44, versions, 0, 0, num, num, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + length, 1)
    if not usual or tail not in (end, large + locator + end):
        raise ValueError("its directory is not laid out as torch.save does it")


def _require_tensors_alone(file: BinaryIO, pickles: int) -> None:
    """Raises an error if pickles, one after the other, name more than the parts of tensors."""
    left = _MOST_OPERATIONS
    for _ in range(pickles):
        for operation, named, _ in pickletools.genops(file):
            left -= 1
            named = named if operation.name == "GLOBAL" else None
            if not left:
                raise ValueError(_MORE_THAN_TENSORS)
            if named and not _OF_TENSORS.fullmatch(str(named)):
                called = str(named)[:80].replace(" ", ".")
                raise ValueError(f"it holds more than tensors: {called}; save plain tensors")


def available_memory() -> int:
    """Free memory in bytes, with what the system can free; all of it where that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
