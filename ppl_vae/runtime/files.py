"""Files that are either whole or absent.

A file is written beside its destination, flushed to the disk, and renamed over it, so that a process killed
at any moment leaves the old file or the new one. In a file of its own, because it is needed without torch.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ppl_vae.runtime.descriptions import printable

_TEMPORARY = ".writing"
_TEMPORARY_NAME = re.compile(r"\..*\.[0-9a-f]{8}(-\d+-[0-9a-f]{8})?\.writing(\.[^.]*)?", re.DOTALL)
"""In the names of files that are being written, after the host and the number of the process that writes."""

PART = ".part"
"""Behind the name of a file that is growing: see `growing`."""

_LONGEST = 40
"""Bytes of a file's name that stand in the name of its temporary file: no name may have over 255 bytes."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the device, in the user's quota, or in the largest file that is allowed."""


class CorruptFileError(ValueError):
    """A file that is damaged or is not what it should be; `path` says which."""

    def __init__(self, path: Path, why: str) -> None:
        why = printable(why, keep="\n")  # it may quote the file
        super().__init__(f"{path}: {why}")
        self.path = path
        self._why = why

    def __reduce__(self) -> tuple[type[CorruptFileError], tuple[Path, str]]:
        return type(self), (self.path, self._why)


class DiskFullError(OSError):
    """There is no room for a file; `path` says for which. The file that was there before is as it was."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(
            number,
            f"{path} was not written: no room on the disk of {path.parent} ({os.strerror(number)}); "
            "make room there, and try again",
        )
        self.path = path

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[DiskFullError], tuple[Path, int | None]]:
        return type(self), (self.path, self.errno)


def write_bytes(path: str | Path, data: bytes | memoryview, *, overwrite: bool = True) -> None:
    """Replaces `path` by `data` in one step that survives a crash: write, fsync, rename, fsync.

    Raises:
        DiskFullError: There is no room for it.
        FileExistsError: There is such a file, and `overwrite` is False.
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def append_text(path: Path, text: str) -> None:
    """Adds text to a file, which must not be a link.

    Raises:
        DiskFullError: There is no room for it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with full_disk_explained(path):
        descriptor = os.open(path, flags, 0o666)
        with open(descriptor, "w", newline="", encoding="utf-8") as file:
            file.write(text)


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Gives an empty file beside `path`, which takes its place when the block has ended well.

    The file has a name that nobody can know before, is made by this call (never a link that was there), and is
    gone if the block fails. What a killed process has left of an earlier try is removed. Where `path` is a
    link, the link is replaced, not what it points to.

    Args:
        path: The file to write; its folder must exist.
        overwrite: Whether a file that is there when the block ends is replaced.

    Raises:
        DiskFullError: The disk is full; `path` is as it was.
        IsADirectoryError: There is a folder.
        OSError: The folder may not be written, say; the error names `path`, not the file beside it.
        FileExistsError: There is a device, a pipe or a socket; or a file, and `overwrite` is False.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "words.txt"
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> file.read_text()
        'hello'
    """
    path = Path(path)
    if not path.is_symlink():
        require_file(path)
    of_path = f".{_cut(path.stem)}.{zlib.crc32(socket.gethostname().encode()):08x}-"
    for left in path.parent.glob(f"{glob.escape(of_path)}*{_TEMPORARY}*"):
        if not process_lives(left.name.removeprefix(of_path).partition("-")[0]):
            left.unlink(missing_ok=True)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f"{of_path}{unique}{_TEMPORARY}{_cut(path.suffix)}")
    with full_disk_explained(path):
        try:
            # Made by this call alone, but with the permissions that the user's umask gives to his files.
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield temporary
            _flush(temporary)
            if not overwrite:
                _link(temporary, path)
            else:
                os.replace(temporary, path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
        _flush(path.parent)


@contextmanager
def growing(path: str | Path, *, overwrite: bool = False) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that adds to `path`.part, which takes the place of `path` when the block has ended well.

    What was added stays there if the block fails or the process is killed: it may be the work of hours. What
    cannot be added as a whole is left out. Without anything in it, the file is removed.

    Args:
        path: The file to write; its folder must exist.
        overwrite: Whether a file that is there when the block ends is replaced.

    Raises:
        DiskFullError: There is no room; `path`, and what was added before, are as they were.
        FileExistsError: `path`.part is there already, or `path` is and `overwrite` is False.
        OSError: The folder may not be written, say.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "words.txt"
        >>> with growing(file) as add:
        ...     add(b"hello\\n")
        ...     file.exists(), file.with_name("words.txt.part").read_text()
        (False, 'hello\\n')
        >>> file.read_text()
        'hello\\n'
    """
    path = Path(path)
    if not path.is_symlink():
        require_file(path)
    part = path.with_name(path.name + PART)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with full_disk_explained(path):
        try:
            descriptor = os.open(part, flags, 0o666)
        except FileExistsError as error:
            raise FileExistsError(
                f"{part} is there already: a command writes {path.name} now, or was interrupted; if none does, "
                "move it away"
            ) from error
        try:
            with open(descriptor, "wb", buffering=0) as file:
                yield lambda data: _add(file, data)
                os.fsync(descriptor)
            if overwrite:
                os.replace(part, path)
            else:
                _link(part, path)
        except BaseException:
            with suppress(OSError):
                if not part.stat().st_size:
                    part.unlink()
            raise
        _flush(path.parent)


def _add(file: FileIO, data: bytes) -> None:
    """Adds bytes to a file: all of them or, if that fails or is interrupted, none."""
    before = file.tell()
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.truncate(file.seek(before))
        raise


def _link(temporary: Path, path: Path) -> None:
    """Gives a file its name unless there is one of that name, which may have come while the file was written.

    Raises:
        FileExistsError: There is one.
    """
    there = f"{path} has come meanwhile, and was left as it is: choose another name, or pass --overwrite"
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise FileExistsError(there) from error
    except OSError as error:  # a file system without hard links
        if error.errno in _FULL:
            raise
        if os.path.lexists(path):
            raise FileExistsError(there) from error
        os.replace(temporary, path)
    else:
        temporary.unlink()


def require_file(path: Path) -> None:
    """Raises an error if something that is no file stands where one is to be written, or a link leads to it.

    A file that takes the place of a device or a pipe would be no output to it, and it would be gone.

    Raises:
        IsADirectoryError: There is a folder.
        FileExistsError: There is a device, a pipe, a socket, or what another process has opened.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing is there, or a link to nothing
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder, but a file is to be written there: rename it")
    kind = next((kind for is_kind, kind in _NO_FILES if is_kind(mode)), None)
    if kind is None and _is_opened(path):  # /dev/stdout, which leads to a file
        kind = "an output of this process"
    if kind is not None:
        raise FileExistsError(
            f"{path} is {kind}, but a file is to be written there: choose another name"
        )


def require_output(path: Path, *, overwrite: bool) -> None:
    """Raises an error, before the work, unless an output that a user has named may be written.

    Raises:
        FileExistsError: It is there and `overwrite` is False, or there is no file but a device, say.
        IsADirectoryError: There is a folder.
        FileNotFoundError: Its folder is not there.
    """
    require_file(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} is there already: choose another --output, or pass --overwrite"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}")


_NO_FILES = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _is_opened(path: Path) -> bool:
    """Whether a path leads through the system's list of open files, as /dev/stdout does."""
    for _ in range(40):  # links, no more than the system follows
        path = Path(os.path.abspath(path))
        if path.is_relative_to("/proc") or path.is_relative_to("/dev/fd"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / os.readlink(path)
    return False


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turns the system's error about a full disk into a `DiskFullError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(path, error.errno) from error


def own_folder(path: Path) -> Path:
    """Makes a folder if it is not there, and refuses one that is a link: its files would be somewhere else.

    Raises:
        NotADirectoryError: There is a file, or a link.
    """
    if path.is_symlink():
        raise NotADirectoryError(
            f"{path} is a link to {os.readlink(path)}: nothing is written through links; remove it"
        )
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, and a folder is needed there: move it away")
    with full_disk_explained(path):
        path.mkdir(exist_ok=True)
    return path


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a link (not what it points to)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `replacing` gives to what it writes, or gave in earlier versions.

    Example:
        >>> is_temporary(".metrics.01ab23cd-412-89ef0123.writing.csv"), is_temporary(".a.writing.txt")
        (True, False)
    """
    return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_left_behind(folder: Path) -> None:
    """Removes the temporary files of `replacing` in a folder into which no other process writes now."""
    for file in folder.glob(f".*{_TEMPORARY}*"):
        if is_temporary(file.name) and not (file.is_dir() and not file.is_symlink()):
            file.unlink(missing_ok=True)


def process_lives(number: int | str) -> bool:
    """Whether a process of this host still runs, by its number; False if that is none.

    Example:
        >>> process_lives(os.getpid()), process_lives("x")
        (True, False)
    """
    try:
        pid = int(number)
        if pid <= 0:
            return False
        os.kill(pid, 0)
    except PermissionError:  # of another user
        return True
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    return True


def _cut(text: str) -> str:
    """The beginning of a name."""
    return os.fsencode(text)[:_LONGEST].decode(errors="ignore")


def _flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
