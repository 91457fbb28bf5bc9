"""Processes that are forked from the tests: they need not import torch again."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import pytest

_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux."""


class Forked:
    """A process that does some work.

    Args:
        work: What it does; what it returns is the exit code. That of an error is 1, that of Ctrl-C 130.
        said: The file for all that it prints, and for the traceback of an error.
    """

    def __init__(self, work: Callable[[], int], said: Path) -> None:
        self.said = said
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._do(work)

    def _do(self, work: Callable[[], int]) -> NoReturn:
        code = 1
        try:
            _end_with_parent()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            said = open(self.said, "w", buffering=1)  # noqa: SIM115
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = sys.stderr = said
            code = work()
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, seconds: float = math.inf) -> int | None:
        """Its exit code (minus the signal, if one has ended it); None if it still runs after that time."""
        deadline = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        """Kills it if it still runs."""
        if self.wait(0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def _end_with_parent() -> None:
    """Linux ends this process when its parent has ended, whose pipes it would keep open."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def in_time(test: Callable[..., None]) -> Callable[..., None]:
    """A test that fails if it has not ended after 20 seconds, where it would wait for ever.

    It runs in a process of its own. An alarm in this one would not do: what is written in Rust begins a call
    again that a signal has interrupted, and no line of Python runs in between.
    """

    @functools.wraps(test)
    def limited(**given: Any) -> None:
        out, err = sys.stdout, sys.stderr

        def work() -> int:
            with redirect_stdout(out), redirect_stderr(err):  # what `capsys` has put there
                test(**given)
            return 0

        with tempfile.TemporaryDirectory() as folder:
            process = Forked(work, Path(folder) / "said")
            try:
                code = process.wait(20)
            finally:
                process.kill()
            if code != 0:
                said = process.said.read_text() if process.said.exists() else ""
                pytest.fail("it waits" if code is None else said, pytrace=False)

    return limited
