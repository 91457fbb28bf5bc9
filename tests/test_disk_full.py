"""Full disks: one line says so, what was there is whole, and after room was made all goes on to the same bits.

The largest size of a file is limited, which gives the same errors as a disk without room, at the same calls.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from kill import EPOCHS, OPTIONS, Workplace, command, contents, finish, require_clean, require_same

from ppl_vae.plots import draw_run, run as pictures

resource = pytest.importorskip("resource")


def limited(work: Callable[[], int], most: int) -> tuple[int, str]:
    """Runs something in a process whose files may have so many bytes: its exit code, and its standard error."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        code = 70
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            sys.stdout, sys.stderr = io.StringIO(), open(writing, "w", buffering=1)  # noqa: SIM115
            try:
                code = work()
            except OSError as error:  # from Python, as in save_run
                print(error, file=sys.stderr)
                code = 1
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading) as said:
        words = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), words


def refused(work: Callable[[], int], most: int, file: str) -> None:
    """What cannot be written is told in one line, with the file, its folder, and what to do."""
    code, said = limited(work, most)
    assert code == 1, said
    told = [line for line in said.splitlines() if "no room on the disk of" in line]
    assert len(told) == 1, said
    assert file in told[0].partition(" was not written")[0]
    assert "make room there" in told[0]
    assert "Traceback" not in said
    assert "HDF5" not in said


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("full"))


START = ("train", *OPTIONS, *EPOCHS, "--seed", "1", "--run_dir")


@pytest.fixture(scope="module")
def whole(workplace: Workplace) -> Path:
    """The run of `START`."""
    place = workplace.folder / "whole"
    with contextlib.redirect_stdout(io.StringIO()):
        assert command(*START, place) == 0
    return place


@pytest.mark.parametrize("most", [0, 3000])
def test_a_training_without_room_leaves_nothing(most: int, tmp_path: Path) -> None:
    refused(lambda: command(*START, tmp_path / "run"), most, "run/")
    assert not list(tmp_path.rglob("step-*"))
    require_clean(tmp_path)


def test_a_training_goes_on_once_there_is_room(whole: Path, tmp_path: Path) -> None:
    """There is room for the checkpoint before the first step, but not for those with an optimizer's state."""
    sizes = sorted(f.stat().st_size for f in (whole / "checkpoints").iterdir())
    run = tmp_path / "run"
    most = sizes[0] - 2000
    refused(lambda: command(*START, run), most, "checkpoints/step-00000000")
    require_clean(tmp_path)
    assert (run / "config.yaml").exists()
    refused(lambda: command("train", "--resume", run, "--quiet"), most, "checkpoints/step-00000000")
    finish(run, "train", *START, run)
    require_same(run, contents(whole))
    require_clean(tmp_path)


@pytest.mark.parametrize("most", [0, 3000, 12_000])
def test_a_run_is_not_replaced_without_room(most: int, workplace: Workplace) -> None:
    place = workplace.copy("finished")
    before = contents(place / "run")
    over = (*START, place / "run", "--overwrite")
    refused(lambda: command(*over), most, "run/.ppl_vae-new/")
    assert contents(place / "run") == before
    save = workplace.scenarios()["save_run"].work
    refused(lambda: save(place), most if most < 4000 else 4000, "run/.ppl_vae-new/")
    assert contents(place / "run") == before
    require_clean(place)


@pytest.mark.parametrize(
    ("scenario", "file"),
    [
        ("evaluate", "evaluation.csv"),
        ("diagnose", "diagnosis.json"),
        pytest.param("export", "posterior.nc", marks=pytest.mark.slow),
    ],
)
def test_an_old_result_stays_without_room(scenario: str, file: str, workplace: Workplace) -> None:
    place = workplace.copy("finished")
    before = contents(place / "run")
    work = workplace.scenarios()[scenario].work
    refused(lambda: work(place), 0, file)
    assert contents(place / "run") == before
    require_clean(place)
    with contextlib.redirect_stdout(io.StringIO()):
        assert work(place) == 0
    assert contents(place / "run") != before


def test_samples_without_room(workplace: Workplace) -> None:
    place = workplace.copy("finished")
    for name in ("draws.npz", "draws.png"):
        words = ("sample", place / "run", "--num", "2", "-o", place / name)
        refused(lambda words=words: command(*words), 100, name)  # type: ignore[misc]
        assert not (place / name).exists()
    require_clean(place)


def test_pictures_without_room_cost_no_results(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    run = tmp_path / "run"
    (run / "evaluation.json").unlink()

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    nothing: Any = None
    with patch.object(pictures, "own_folder", failing):
        told = draw_run(run / "plots", *[nothing] * 6)
    assert told == ["no pictures were drawn: [Errno 28] No space left on device"]
    most = max(f.stat().st_size for f in run.rglob("*") if f.is_file()) + 1000
    with patch("ppl_vae.plots.run.learning_curves", side_effect=RuntimeError("a broken font")):
        code, said = limited(lambda: command("train", "--resume", run, "--quiet"), most)
    assert code == 0, said
    require_same(run, contents(whole))
