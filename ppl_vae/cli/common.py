"""What a command says beside its results, and the results that it keeps in a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ppl_vae.data import Data
from ppl_vae.runs import describe_rows, write_results


def say(line: str) -> None:
    """What is no result goes to standard error."""
    print(line, file=sys.stderr)


def keep_result(file: Path, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, unless it holds one that may not be replaced."""
    if file.exists() and not overwrite:
        say(f"{file} is left as it was (--overwrite replaces it)")
    else:
        write_results(file.parent, **result)
        say(f"written: {file}")


def rows_of(data: Data, num: int | None = None) -> dict[str, Any]:
    """Names the rows that a result is of: runs on the same rows can be compared row by row."""
    return describe_rows(data.test[:num], data.name, "test")
