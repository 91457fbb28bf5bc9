"""Running the scripts in analyses/, small data for them, and reading the tables that they print."""

from __future__ import annotations

import contextlib
import io
import math
import os
import runpy
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

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


def write_mnist(folder: Path, train: int, test: int) -> None:
    """Squares of noise, labelled 0 to 9 in turn, in the files of MNIST."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        blobs = torch.zeros(n, 28, 28, dtype=torch.uint8)
        blobs[:, 8:20, 8:20] = torch.randint(0, 256, (n, 12, 12), dtype=torch.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", blobs)
        write_idx(raw / f"{part}-labels-idx1-ubyte", torch.arange(n, dtype=torch.uint8) % 10)


def write_idx(path: Path, values: Tensor) -> None:
    """The format of the MNIST files: two zeros, type, number of dimensions, big-endian sizes, bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


def write_photos(folder: Path) -> None:
    """Two halves with noise, whose segments stand beside them."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 3), ("test", 2)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            colors = torch.tensor([[120, 40, 30], [150, 190, 220]]).repeat_interleave(24, 0)
            noise = torch.randint(-9, 10, (40, 48, 3), generator=generator)
            rgb = (colors + noise).to(torch.uint8)
            Image.fromarray(rgb.numpy()).save(folder / part / f"{i}.png")
            segments = torch.zeros(40, 48, dtype=torch.uint8)
            segments[:, 24:] = 1
            Image.fromarray(segments.numpy()).save(folder / part / f"{i}.seg.png")
