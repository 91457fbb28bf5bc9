"""What a worker does: it starts the command of a run, and stops it when it is told to. Without torch and dask.

A run is a process of its own: it has the number of threads that it is given, leaves nothing behind in the
worker, and one that is killed for its memory takes no other run along. Its standard input is a pipe from the
worker: when that closes, because the run is to stop or the worker has ended in whatever way, the command is
interrupted as by Ctrl-C (`ppl_vae/cli/attended.py`).
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppl_vae.runs import CHECKPOINTS, CONFIG, ERROR, LOG, WEIGHTS, Lock, LockedError
from ppl_vae.runtime import write_bytes
from ppl_vae.sweeps.folder import read_record, state_of, write_record

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PATIENCE = 60.0
"""Seconds that a run has to end when it is stopped."""

_LAST_LINES = 40
"""Lines of the log that stand in error.txt."""


@dataclass(frozen=True)
class Task:
    """A run for a worker, in plain values.

    Attributes:
        name: Its name.
        folder: Its folder, relative to `place` or absolute.
        options: Its options.
        begin: The arguments of the command that begins it.
        go_on: Those of the command that continues it from its checkpoint.
        module: The module that is the command.
        place: The folder in which the command is started.
        sweep: Which start of which sweep it belongs to.
    """

    name: str
    folder: str
    options: Mapping[str, Any]
    begin: Sequence[str]
    go_on: Sequence[str]
    module: str
    place: str
    sweep: str


@dataclass(frozen=True)
class Outcome:
    """What became of a run: done, failed (with an error), or stopped."""

    name: str
    state: Literal["done", "failed", "stopped"]
    seconds: float = 0.0
    error: str = ""


class _Child:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.stopped_at: float | None = None

    def stop(self) -> None:
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            if self.process.stdin is not None:
                self.process.stdin.close()

    def wait(self) -> int:
        while True:
            try:
                return self.process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                late = self.stopped_at is not None and (
                    time.monotonic() - self.stopped_at > _PATIENCE
                )
                if late:
                    self.process.kill()


_children: dict[str, _Child] = {}
_over: set[str] = set()
_guard = threading.Lock()


def stop(folders: Sequence[str], sweep: str = "") -> None:
    """Interrupts the runs of some folders on this worker; those of `sweep` that come later do not begin."""
    with _guard:
        _over.add(sweep)
        for folder in folders:
            if folder in _children:
                _children[folder].stop()


def ignore_interrupts() -> None:
    """Leaves Ctrl-C in the terminal of a sweep, which reaches its workers on this machine, to the sweep."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def work(task: Task, threads: int) -> Outcome:
    """Does a run, or the rest of it, and notes in its folder what became of it.

    Args:
        task: The run.
        threads: The threads of torch.
    """
    place = Path(task.place)
    if not place.is_dir():
        why = (
            f"{place} is not there on {socket.gethostname()}: workers need the folders in which the sweep was "
            "started, as on a disk that all machines share"
        )
        return Outcome(task.name, "failed", error=why)
    folder = place / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not _free(folder, task.sweep):
        return Outcome(task.name, "stopped")
    before = read_record(folder) or {}
    if state_of(folder) == "done":  # by a worker that was not stopped with its sweep
        return Outcome(task.name, "done", before["seconds"])
    (folder / ERROR).unlink(missing_ok=True)
    spent, start = float(before.get("seconds", 0.0)), time.monotonic()
    more = {"sweep": task.sweep, "host": socket.gethostname(), "threads": threads}
    write_record(folder, task.options, "running", spent, **more)
    log = folder / LOG
    begun = log.stat().st_size if log.exists() else 0
    code, stopped = _run(task, folder, threads)
    spent += time.monotonic() - start
    state: Literal["done", "failed", "stopped"] = (
        "done" if code == 0 else "stopped" if stopped else "failed"
    )
    error = ""
    if state == "failed":
        lines = _last_lines(log, begun)
        error = _why(lines, code)
        write_bytes(
            folder / ERROR, "\n".join([error, "", f"the end of {LOG}:", *lines, ""]).encode()
        )
    write_record(folder, task.options, state, spent, **more)
    return Outcome(task.name, state, spent, error)


def _free(folder: Path, sweep: str) -> bool:
    """Waits until no other process writes a run; False if the sweep ends before."""
    while True:
        try:
            Lock(folder).release()
        except LockedError:
            if sweep in _over:
                return False
            time.sleep(0.5)
        else:
            return True


def _run(task: Task, folder: Path, threads: int) -> tuple[int, bool]:
    """Runs the command; its exit status, and whether it was stopped."""
    arguments = list(task.go_on if _has_checkpoints(folder) else task.begin)
    left = (
        CONFIG,
        CHECKPOINTS,
        WEIGHTS,
    )  # by a run that was killed before its first checkpoint, say
    if arguments == list(task.begin) and any((folder / name).exists() for name in left):
        arguments.append("--overwrite")
    environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    with (folder / LOG).open("ab") as log:
        log.write(f"{time.strftime('%F %T')} on {socket.gethostname()}\n".encode())
        log.write(f"$ {_typed(arguments, threads)}\n".encode())
        log.flush()
        with _guard:
            if task.sweep in _over:
                return 130, True
            child = _Child(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", task.module, *arguments],
                    cwd=task.place,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal of the sweep is not for the run
                )
            )
            _children[str(folder)] = child
        try:
            code = child.wait()
            return code, child.stopped_at is not None and code != 0
        finally:
            with _guard:
                del _children[str(folder)]
                child.stop()


def _has_checkpoints(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any((folder / CHECKPOINTS).glob("step-*"))


def _typed(arguments: Sequence[str], threads: int) -> str:
    """The command as one would type it."""
    return f"OMP_NUM_THREADS={threads} ppl-vae {shlex.join(arguments)}"


def _why(lines: Sequence[str], code: int) -> str:
    """Why a command failed, in a line, by its last lines and its exit status."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = ": perhaps there was not enough memory" if name == "SIGKILL" else ""
        return f"it was ended by {name}{memory}"
    said = [line for line in lines if ": error: " in line]
    if said:
        return said[-1].partition(": error: ")[2]
    return f"it ended with exit status {code}" + (f": {lines[-1]}" if lines else "")


def _last_lines(log: Path, begun: int) -> list[str]:
    """The last lines of a log, of those after the first so many bytes."""
    with log.open("rb") as file:
        file.seek(max(begun, file.seek(0, os.SEEK_END) - 2**16))
        return file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
