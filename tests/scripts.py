"""Running the scripts in analyses/ and reading the tables that they print."""

from __future__ import annotations

import contextlib
import io
import math
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
Row = dict[str, str]


def run(script: str, *arguments: str, cwd: Path, printed: io.StringIO | None = None) -> str:
    """What a script prints. In this interpreter: another one takes seconds to import torch.

    Args:
        script: Its path below analyses/.
        arguments: What is typed.
        cwd: The current folder.
        printed: Where it prints, for a script that does not end as usual.
    """
    path = str(ROOT / "analyses" / script)
    printed = io.StringIO() if printed is None else printed
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
        patch.object(sys, "argv", [path, *arguments]),
        patch.object(sys, "path", [str(Path(path).parent), *sys.path]),
    ):
        warnings.simplefilter("default")  # as for a user, to whom they are no errors
        warnings.simplefilter("error", DeprecationWarning)  # these will be errors in later versions
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()


def run_alone(*arguments: str, cwd: Path) -> str:
    """What an interpreter of its own prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(printed: str) -> list[Row]:
    """The rows of a Markdown table, by the names of its columns."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, cells, strict=True)) for cells in body]


def mean(cell: str) -> float:
    """The number before the standard error or the unit; all numbers of a cell must be finite."""
    numbers = [float(word.strip("%()")) for word in cell.split() if word[-1] in "0123456789%)"]
    assert all(math.isfinite(number) for number in numbers), cell
    return numbers[0]
