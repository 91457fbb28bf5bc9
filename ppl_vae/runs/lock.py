"""A lock on a run folder: two processes must not write one run. In a file of its own, without torch."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppl_vae.runtime import full_disk_explained, process_lives

LOCK = ".ppl_vae-lock"

_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()
"""The locks of this process by their folders: some file systems let a process take its own lock again."""


class LockedError(RuntimeError):
    """Another process writes into the run folder."""


class Lock:
    """The right to write into a folder, until `release`.

    The system frees the lock of a process that ends in whatever way, so that the file of a killed process does
    not lock anybody out. Where the file system has no locks, the process number in the file decides.

    A lock to which nothing refers any longer is free, too: a process that was interrupted before `release` and
    lives on, as that of a notebook does, can write there again.

    Args:
        folder: The folder; it must exist.

    Raises:
        LockedError: Another process, or this one, writes there; the message names it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lock = Lock(folder)
        >>> try:
        ...     Lock(folder)
        ... except LockedError as error:
        ...     "is being written" in str(error)
        True
        >>> lock.release()
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._file = self._folder / LOCK
        self._opened: list[int] = []
        self._taken = False
        self._last_resort = weakref.finalize(self, _close, self._opened)
        self._last_resort.atexit = False
        if self._folder in _held:
            raise LockedError(
                f"{folder} is being written by this process already (if that was interrupted, try once more)"
            )
        try:
            self._take(folder)
            _held[self._folder] = self
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the right back."""
        try:
            if self._taken and self._opened and _is(self._opened[0], self._file):
                # While it is still locked: nobody else has taken it.
                self._file.unlink(missing_ok=True)
        finally:
            _close(self._opened)
            if _held.get(self._folder) is self:
                del _held[self._folder]
            self._last_resort.detach()

    def is_of(self, folder: Path) -> bool:
        """Whether the folder of this name is still the one that was locked: not moved, removed or replaced."""
        if not self._opened:
            return False
        file = folder / LOCK
        if os.path.lexists(file):
            return _is(self._opened[0], file)
        try:  # somebody has removed the file alone
            return os.path.samestat(self._at, os.stat(folder))
        except OSError:
            return False

    def _take(self, folder: Path) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            try:
                with full_disk_explained(self._file):
                    self._opened.append(os.open(self._file, flags, 0o666))
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR):
                    raise
                raise LockedError(f"{self._file} is a link or a folder: remove it") from error
            descriptor = self._opened[0]
            if not _is_own(descriptor):
                raise LockedError(f"{self._file} is no file of a lock alone: remove it")
            if not _locked_by_us(descriptor):
                raise LockedError(_in_use(folder, _holder(descriptor)))
            if _is(descriptor, self._file):
                break
            _close(self._opened)  # its owner has removed it meanwhile
        self._taken = True
        self._at = os.stat(self._folder)
        os.ftruncate(descriptor, 0)
        now = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        with suppress(OSError):  # on a full disk the others are not told who writes
            os.write(descriptor, json.dumps(now).encode())


def _close(opened: list[int]) -> None:
    """Closes descriptors, which frees their locks; each is forgotten first, so that none is closed twice."""
    while opened:
        os.close(opened.pop())


def _is_own(descriptor: int) -> bool:
    """Whether it is a plain file without another name, under which it would be something else."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def _locked_by_us(descriptor: int) -> bool:
    """Takes the lock of the system; False if another process has it.

    Unlike that of `lockf`, it is not lost when this process reads the file, to copy the folder, say.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return not _alive(_holder(descriptor))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        return not _alive(_holder(descriptor))  # a file system without locks
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says of the process that wrote it; empty if it says nothing."""
    try:
        content = json.loads(os.pread(descriptor, 1000, 0))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether a process may still run, other than this one; those of other hosts may."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if holder.get("host") != socket.gethostname():
        return True
    return pid != os.getpid() and process_lives(pid)


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        clock = ""
        if isinstance(since := holder.get("since"), float):
            with suppress(OverflowError, ValueError, OSError):  # no time of a clock
                clock = time.strftime(" since %H:%M", time.localtime(since))
        who = f"process {holder.get('pid')} on {holder.get('host')}{clock}"
    return (
        f"{folder} is being written by {who}: wait until it has ended, or choose another folder (if that "
        f"process is gone, remove {folder / LOCK})"
    )


def _is(descriptor: int, file: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False
