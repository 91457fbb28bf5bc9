"""Messages of the commands, and the results that they write into a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ppl_vae.data import Data
from ppl_vae.runs import describe_rows, write_results


def say(line: str) -> None:
    """Prints a message to standard error: standard output is for results."""
    print(line, file=sys.stderr)


def keep_result(file: Path, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, but replaces an earlier one only with `overwrite`."""
    if file.exists() and not overwrite:
        say(f"{file} is left as it was (--overwrite replaces it)")
    else:
        write_results(file.parent, **result)
        say(f"written: {file}")


def rows_of(data: Data, num: int | None = None) -> dict[str, Any]:
    """Describes the evaluated rows: runs on the same rows can be compared row by row."""
    return describe_rows(data.test[:num], data.name, "test")
