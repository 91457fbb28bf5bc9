"""The processes of one training, forked from the tests: they need not import torch again.

Lightning takes the environment of each for that of a cluster which starts processes itself, and starts none.
`tests/test_processes_killed.py` has a training that Lightning starts, by the command line.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  # before the processes are forked
import torch
from forked import Forked


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
        port = free_port()

        def ranked(rank: int) -> int:
            torch.set_num_threads(1)
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0}
            place |= {"LOCAL_RANK": rank, "WORLD_SIZE": count, "CUDA_VISIBLE_DEVICES": ""}
            os.environ.update({name: str(value) for name, value in place.items()})
            if count == 1:
                del os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]
            code = 1
            try:
                found: Any = work(rank)
                code = 0
            except BaseException as error:
                traceback.print_exc()
                found = error
            (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
            return code

        self._processes = [
            Forked(partial(ranked, rank), folder / f"said-{rank}") for rank in range(count)
        ]

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
            codes = [process.wait(deadline - time.monotonic()) for process in self._processes]
            assert None not in codes, f"a process still waits: {self.said()}"
        finally:
            self.kill()
        return [code for code in codes if code is not None]

    def kill(self) -> None:
        """Kills those that still run."""
        for process in self._processes:
            process.kill()

    def end(self, seconds: float = 60.0) -> list[Any]:
        """What they have found, after a good end."""
        assert self.wait(seconds) == [0] * len(self._processes), self.said()
        return self.found()

    def errors(self, seconds: float = 60.0) -> list[Any]:
        """The errors that have ended them, at about the same time."""
        assert self.wait(seconds) == [1] * len(self._processes), self.said()
        return self.found()

    def found(self) -> list[Any]:
        files = [self.folder / f"found-{rank}" for rank in range(len(self._processes))]
        return [pickle.loads(file.read_bytes()) for file in files]

    def said(self) -> str:
        return "\n".join(process.said.read_text()[-3000:] for process in self._processes)
