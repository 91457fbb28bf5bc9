"""The processes of one training, forked from the tests: they need not import torch again.

Lightning takes the environment of each for that of a cluster which starts processes itself, and starts none.
`tests/test_processes_killed.py` has a training that Lightning starts, by the command line.
"""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  # before the processes are forked
import torch


def free_port() -> int:
    """A port for the processes of one training. The system's next free one may go to another test, too."""
    while True:
        port = secrets.randbelow(10_000) + 20_000
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


class Ranks:
    """Processes that run `work(rank)` at the same time.

    Args:
        work: What each does; what it returns or raises must be something that can be pickled.
        folder: Where they say what they say, in `said-RANK`.
        count: How many there are.
    """

    def __init__(self, work: Callable[[int], Any], folder: Path, count: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._began = time.monotonic()
        port = free_port()
        self.pids = [self._forked(work, rank, count, port) for rank in range(count)]
        self.codes: list[int | None] = [None] * count
        self.seconds = [0.0] * count

    def _forked(self, work: Callable[[int], Any], rank: int, count: int, port: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            said = open(self.folder / f"said-{rank}", "w", buffering=1)  # noqa: SIM115
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = said
            torch.set_num_threads(1)
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0}
            place |= {"LOCAL_RANK": rank, "WORLD_SIZE": count, "CUDA_VISIBLE_DEVICES": ""}
            os.environ.update({name: str(value) for name, value in place.items()})
            if count == 1:
                del os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]
            try:
                found: Any = work(rank)
                code = 0
            except BaseException as error:
                traceback.print_exc()
                found = error
            (self.folder / f"found-{rank}").write_bytes(pickle.dumps(found))
        finally:
            os._exit(code)

    @classmethod
    def script(cls, script: str, folder: Path, count: int) -> Ranks:
        """Processes that run a script with the arguments `folder` and `count`."""

        def work(rank: int) -> None:
            sys.argv = ["script", str(folder), str(count)]
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})

        return cls(work, folder, count)

    def wait(self, seconds: float = 60.0) -> list[int]:
        """Waits until all have ended; their exit codes (minus the signal, for those that were killed)."""
        deadline = time.monotonic() + seconds
        try:
            while None in self.codes:
                for rank, pid in enumerate(self.pids):
                    if self.codes[rank] is None and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                        self.codes[rank] = os.waitstatus_to_exitcode(ended[1])
                        self.seconds[rank] = time.monotonic() - self._began
                assert time.monotonic() < deadline, f"a process still waits: {self.said()}"
                time.sleep(0.01)
        finally:
            self.kill()
        return [code for code in self.codes if code is not None]

    def kill(self) -> None:
        """Kills those that still run."""
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                os.kill(pid, signal.SIGKILL)
                self.codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def end(self, seconds: float = 60.0) -> list[Any]:
        """What they have found, after a good end."""
        assert self.wait(seconds) == [0] * len(self.pids), self.said()
        return self.found()

    def errors(self, seconds: float = 60.0) -> list[Any]:
        """The errors that have ended them, at about the same time."""
        assert self.wait(seconds) == [1] * len(self.pids), self.said()
        return self.found()

    def found(self) -> list[Any]:
        files = [self.folder / f"found-{rank}" for rank in range(len(self.pids))]
        return [pickle.loads(file.read_bytes()) for file in files]

    def said(self) -> str:
        return "\n".join(
            (self.folder / f"said-{rank}").read_text()[-3000:] for rank in range(len(self.pids))
        )
