"""Ctrl-C at every line of what opens, swaps and closes a run folder: a run is old or new, and none is lost."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ppl_vae.runs import LockedError, RunFolder, contents, location, lock, run_folder
from ppl_vae.runs.contents import OF_A_RUN
from ppl_vae.runs.location import finish_swap
from ppl_vae.runtime import files

# A line is where a `with` closes its file, too: one that is read is closed when its frame is gone.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

WATCHED = {module.__file__ for module in (contents, files, location, lock, run_folder)}


class InterruptedAt:
    """Raises a KeyboardInterrupt at the n-th line that is run in the watched files, once.

    Args:
        n: From 0.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.lines = 0

    def __enter__(self) -> InterruptedAt:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.n + 1:
                raise KeyboardInterrupt(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return self._trace


PART = {
    "plots": "khat.png",
    "plots_dark": "khat.png",
    "checkpoints": "step-000000001.safetensors",
    "tensorboard": "events.out.tfevents.1",
}
"""A file of a run in each of its folders."""

MINE = {"thesis.tex": "mine"}


def old_run(folder: Path) -> None:
    folder.mkdir()
    for name in OF_A_RUN:
        if "." in name:
            (folder / name).write_text("old")
        else:
            (folder / name).mkdir()
            (folder / name / PART[name]).write_text("old")
    for name, text in MINE.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


def overwrite(folder: Path) -> None:
    with RunFolder.new(folder, {"seed": 2}, overwrite=True) as run:
        files.write_bytes(run.path / "weights.safetensors", b"new")
        run.begin()
        files.write_bytes(run.path / "metrics.csv", b"new")


NEW = {"config.yaml": "seed: 2", "weights.safetensors": "new", "metrics.csv": "new"}


def is_whole(found: dict[str, str]) -> bool:
    """Whether there is the new run, or its beginning, and nothing else but the user's own file."""
    as_written = all(text.startswith({**NEW, **MINE}.get(n, "?")) for n, text in found.items())
    return as_written and "config.yaml" in found


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("there", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_is_old_or_new_after_an_interruption(tmp_path: Path, there: bool, step: int) -> None:
    for n in range(0, 10_000, step):
        folder = tmp_path / str(n)
        if there:
            old_run(folder)
        before = content(folder)
        where = _interrupted(overwrite, folder, n)
        _goes_on(folder)
        found = content(folder)
        assert found == before or is_whole(found), where
        assert not there or found == before or "weights.safetensors" in found, where
        if not where:
            assert found.keys() - MINE.keys() == NEW.keys()
            assert n > 200  # lines of all four files
            return
    raise AssertionError("it never ended")


def _interrupted(work: Callable[[Path], None], folder: Path, n: int) -> str:
    """Works, and says where it was interrupted; empty if it ended before."""
    try:
        with InterruptedAt(n):
            work(folder)
    except KeyboardInterrupt as error:
        return str(error)
    return ""


def _goes_on(folder: Path) -> None:
    """What the same process does with the folder afterwards."""
    finish_swap(folder)
    with RunFolder.open(folder):
        pass
    hidden = [file.name for file in folder.rglob(".*")]
    assert not hidden, hidden


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kept_error_keeps_no_lock(tmp_path: Path, step: int) -> None:
    """A notebook keeps the last error, with all that its frames refer to, until there is another one."""
    locked = []
    for n in range(0, 10_000, step):
        folder = tmp_path / str(n)
        old_run(folder)
        try:
            with InterruptedAt(n):
                overwrite(folder)
        except KeyboardInterrupt as error:
            try:
                RunFolder.open(folder).__exit__(None, None, None)
            except LockedError:
                frames = traceback.extract_tb(error.__traceback__)
                locked.append(frames[-2].name)  # the last is `_trace`
        else:
            assert n > 200
            break
        _goes_on(folder)
    # The one line before a block that frees the lock: it is free once the error is forgotten.
    assert {*locked} <= {"__enter__", "__exit__", "_close", "_let_go", "release"}
    assert len(locked) < 20
