"""Standard output or error that is full or closed: what was found is kept, and it is said what failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from bad_inputs import command, run as run, saved as saved
from forked import Forked

from ppl_vae.cli import main
from ppl_vae.runtime import DiskFullError

pytestmark = pytest.mark.skipif(
    not (hasattr(os, "fork") and Path("/dev/full").exists()), reason="needs /dev/full"
)

RESULTS = {
    "evaluation.json": ("evaluate", "run", "--num_samples", "2", "--overwrite"),
    "diagnosis.json": ("diagnose", "run", "--overwrite"),
    "gaps.json": ("gaps", "run", "--max_rows", "2", "--num_samples", "5"),
    "annealed.json": (
        *("evaluate", "run", "--method", "ais", "--num_steps", "2", "--max_rows", "2"),
        *("--num_chains", "2"),
    ),
    "samples.png": ("sample", "run", "--num", "2"),
    "posterior.nc": ("export", "run", "--num_samples", "2"),
    "c.png": ("compare", "run", "run", "-o", "c.png"),
}


def with_streams(
    work: Callable[[], int], said: Path, out: str | None = "", err: str | None = ""
) -> tuple[int | None, str]:
    """Runs something whose standard output and error are these files ("": `said`; None: closed)."""

    def limited() -> int:
        for name, file in (("stdout", out), ("stderr", err)):
            if file is None:
                setattr(sys, name, None)
            elif file:
                setattr(sys, name, open(file, "w", buffering=8192))  # noqa: SIM115
        return work()

    code = Forked(limited, said).wait(60)
    return code, said.read_text()


@pytest.mark.slow(only=("diagnosis.json-None", "annealed.json-None"))
@pytest.mark.parametrize(
    ("file", "out"),
    [
        pytest.param(file, out, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, file in enumerate(RESULTS)
        for j, out in enumerate(("/dev/full", None))
    ],
)
def test_a_result_that_cannot_be_shown_is_kept(file: str, out: str | None, run: Path) -> None:
    before = (run / file).read_bytes() if (run / file).exists() else b""
    code, said = with_streams(lambda: command(*RESULTS[file]), Path("said"), out)
    assert code == 1, said
    (told,) = [line for line in said.splitlines() if "error" in line]
    assert "standard output " + ("is closed" if out is None else "cannot be written (No sp") in told
    where = run.parent if file == "c.png" else run
    assert (where / file).read_bytes() != before


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        pytest.param(("--print_completion", "zsh"), marks=pytest.mark.slow),
    ],
)
def test_a_text_that_cannot_be_shown(words: tuple[str, ...], tmp_path: Path) -> None:
    code, said = with_streams(lambda: main(list(words)), tmp_path / "said", "/dev/full")
    assert code == 1
    assert "standard output cannot be written (No space left on device)" in said


@pytest.mark.parametrize("err", ["/dev/full", None])
def test_messages_that_cannot_be_shown_cost_nothing(err: str | None, run: Path) -> None:
    before = (run / "evaluation.json").read_bytes()
    code, said = with_streams(lambda: command(*RESULTS["evaluation.json"]), Path("said"), "", err)
    assert code == 0
    assert "written" not in said, "a message among the results"
    assert "ELBO" in said
    assert (run / "evaluation.json").read_bytes() != before
    code, said = with_streams(lambda: command("evaluate", "nothing"), Path("said"), "", err)
    assert code == 1
    assert not said


def test_an_error_of_keeping_is_said_where_nothing_can_be_shown(run: Path) -> None:
    words = RESULTS["evaluation.json"]
    full = DiskFullError(Path("run/evaluation.json"), 28)
    with patch("ppl_vae.cli.common.write_results", side_effect=full):
        code, said = with_streams(lambda: command(*words), Path("said"), "/dev/full")
    assert code == 1
    assert "standard output cannot be written" in said
    assert "the result was not kept: " in said
    assert "evaluation.json" in said


def test_the_reader_of_a_pipe_ends_early(run: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code, said = with_streams(
        lambda: command(*RESULTS["evaluation.json"]), Path("said"), f"/dev/fd/{writing}"
    )
    os.close(writing)
    assert code == 141, said
    assert "written: run/evaluation.json" in said
