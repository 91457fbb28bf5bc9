"""Messages of the commands, and the results that they write into a run."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ppl_vae.data import Data
from ppl_vae.runs import RunFolder, describe_rows, write_results


def say(line: str) -> None:
    """Prints a message to standard error: standard output is for results."""
    print(line, file=sys.stderr)


def keep_result(file: Path, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, but replaces an earlier one only with `overwrite`."""
    if file.exists() and not overwrite:
        say(f"{file} is left as it was (--overwrite replaces it)")
        return
    with writing(file.parent, file):
        write_results(file.parent, **result)
    say(f"written: {file}")


def require_writable(run: Path) -> None:
    """Raises an error now, not after the work, if another process writes into the run."""
    with RunFolder.open(run):
        pass


def writing(run: Path, file: Path) -> AbstractContextManager[object]:
    """Locks a run while a file is written into it, and removes what a killed command has left there."""
    inside = run.resolve() in file.resolve().parents
    return RunFolder.open(run) if inside else nullcontext()


def rows_of(data: Data, num: int | None = None) -> dict[str, Any]:
    """Describes the evaluated rows: runs on the same rows can be compared row by row."""
    return describe_rows(data.test[:num], data.name, "test")
