"""A run folder that is being written: locked, staged beside the run that it replaces, and free of links."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import Guide, Model, train

import ppl_vae
from ppl_vae.runs import LockedError, RunFolder, load_run, location, run_folder, save_run
from ppl_vae.runs.contents import OF_A_RUN
from ppl_vae.runs.location import config_file, finish_swap, swap
from ppl_vae.runs.lock import LOCK, Lock
from ppl_vae.runs.weights import read_weights
from ppl_vae.runtime import DiskFullError, append_text, own_folder, replacing, write_bytes
from ppl_vae.training import checkpoints

OLD, NEW = {"seed": 1}, {"seed": 2}

PART = {
    "plots": "khat.png",
    "plots_dark": "khat.png",
    "checkpoints": "step-000000001.safetensors",
    "tensorboard": "events.out.tfevents.1",
}
"""A file of a run in each of its folders."""


def fill(folder: Path, word: str, names: tuple[str, ...] = OF_A_RUN) -> None:
    """Writes every file and folder that a run may hold, with this content."""
    for name in names:
        if "." in name:
            (folder / name).write_text(word)
        else:
            (folder / name).mkdir()
            (folder / name / PART[name]).write_text(word)


def content(folder: Path) -> dict[str, str]:
    """The content of all files by their place, without the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def first_checkpoint(run: RunFolder) -> None:
    """Writes what `fit` writes before its first step."""
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-000000000.safetensors").write_text("")


def fails(
    opened: RunFolder,
    action: Callable[[RunFolder], None],
    error: type[BaseException] = RuntimeError,
) -> None:
    """Writes into a run folder, and fails then."""
    with pytest.raises(error), opened as run:
        _fail(run, action, error)


def _fail(run: RunFolder, action: Callable[[RunFolder], None], error: type[BaseException]) -> None:
    action(run)
    raise error


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with a run, and a file of the user's own."""
    folder = tmp_path / "run"
    folder.mkdir()
    fill(folder, "old")
    (folder / "thesis.tex").write_text("mine")
    return folder


# -- a new run, and one in the place of another ----------------------------------------------------------


def test_a_run_that_fails_before_it_has_begun_leaves_nothing(tmp_path: Path) -> None:
    run = RunFolder.new(tmp_path / "a" / "b" / "run", OLD)
    assert run.path == run.folder
    assert run.keeps
    assert (run.path / "config.yaml").is_file()
    fails(run, lambda run: write_bytes(run.path / "metrics.csv", b"epoch"))
    assert not list(tmp_path.iterdir())  # the parents were made by this call, too


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    fails(RunFolder.new(tmp_path / "a" / "run", OLD), lambda run: None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_run_with_checkpoints_is_kept_after_an_error(tmp_path: Path) -> None:
    fails(RunFolder.new(tmp_path / "run", OLD), first_checkpoint)
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_until_it_begins_the_old_run_is_whole(old: Path) -> None:
    before = content(old)
    with RunFolder.new(old, NEW, overwrite=True) as run:
        (run.path / "weights.safetensors").write_text("new")
        assert not run.keeps
        assert {
            name: text for name, text in content(old).items() if ".ppl_vae-new" not in name
        } == before
        run.begin()
        assert run.path == run.folder == old
        (run.path / "metrics.csv").write_text("new")
    found = content(old)
    assert found.pop("config.yaml").startswith("seed: 2")
    assert found == {"weights.safetensors": "new", "metrics.csv": "new", "thesis.tex": "mine"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_before_it_has_begun_leaves_the_old_run(
    old: Path, error: type[BaseException]
) -> None:
    before = content(old)
    fails(RunFolder.new(old, NEW, overwrite=True), first_checkpoint, error)
    assert content(old) == before
    assert not {path.name for path in old.iterdir()} & set(location.HIDDEN)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DiskFullError(Path("new"), 28)])
@pytest.mark.parametrize("at", ["require_no_swap", "own_folder", "write_config"])
def test_an_error_while_it_is_opened_leaves_the_old_run(
    old: Path, at: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    before = content(old)
    monkeypatch.setattr(run_folder, at, fail)
    with pytest.raises(type(error)):
        RunFolder.new(old, NEW, overwrite=True)
    assert content(old) == before
    assert not {path.name for path in old.iterdir()} & set(location.HIDDEN)


def test_an_error_after_it_has_begun_keeps_the_new_run(old: Path) -> None:
    fails(RunFolder.new(old, NEW, overwrite=True), RunFolder.begin)
    assert set(content(old)) == {"config.yaml", "thesis.tex"}


def test_a_run_is_replaced_only_if_that_is_said(old: Path) -> None:
    before = content(old)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        RunFolder.new(old, NEW)
    assert content(old) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="not a run folder"):
        RunFolder.new(tmp_path, NEW, overwrite=overwrite)
    assert content(tmp_path) == {"thesis.tex": "mine"}
    with pytest.raises(FileExistsError, match="is a file"):
        RunFolder.new(tmp_path / "thesis.tex", NEW, overwrite=overwrite)
    with pytest.raises(NotADirectoryError, match="there is a file in its path"):
        RunFolder.new(tmp_path / "thesis.tex" / "run", NEW, overwrite=overwrite)


@pytest.mark.parametrize("removed", range(5))
def test_a_run_that_failed_and_whose_cleaning_was_killed_can_be_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """The configuration goes last. An earlier version removed it first."""
    folder = tmp_path / "run"
    run = RunFolder.new(folder, OLD)
    for name in ("weights.safetensors", "metrics.csv", "evaluation.json", "posterior.nc"):
        write_bytes(folder / name, b"half")
    with monkeypatch.context() as patch:
        fail_after(patch, removed)
        with pytest.raises(Killed):
            run.__exit__(RuntimeError, RuntimeError(), None)
    del run
    left = {*os.listdir(folder)} - {LOCK}
    assert "config.yaml" in left
    assert len(left) == 5 - removed
    with RunFolder.new(folder, NEW, overwrite=True) as again:
        again.begin()
    assert os.listdir(folder) == ["config.yaml"]


def fail_after(patch: pytest.MonkeyPatch, most: int) -> None:
    """After so many removals of files the process ends."""
    left, unlink = [most], os.unlink

    def counted(path: Any, **keywords: Any) -> None:
        if os.path.lexists(path) and not left[0]:
            raise Killed
        unlink(path, **keywords)
        left[0] -= 1

    patch.setattr(os, "unlink", counted)


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        (("weights.safetensors", "metrics.csv"), True),
        (("weights.safetensors", "evaluation.json", "plots/khat.png"), True),
        (("checkpoints/step-000000001.safetensors", "plots/mine.png"), True),
        (("weights.safetensors", "thesis.tex"), False),
        (("weights.safetensors", "plots/mine.png"), False),
        (("weights.safetensors", "plots/inner/config.yaml"), False),
        (("metrics.csv",), False),
        (("plots/khat.png",), False),
    ],
)
def test_what_is_left_of_a_run_may_be_replaced(
    files: tuple[str, ...], usable: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("left")
    before = content(tmp_path)
    if not usable:
        with pytest.raises(FileExistsError, match="is not a run folder"):
            RunFolder.new(tmp_path, NEW, overwrite=True)
        assert content(tmp_path) == before
        return
    with pytest.raises(FileExistsError, match="overwrite=True"):
        RunFolder.new(tmp_path, NEW)
    assert content(tmp_path) == before
    with RunFolder.new(tmp_path, NEW, overwrite=True) as run:
        run.begin()
    assert {*content(tmp_path)} == {"config.yaml", *(name for name in files if "mine" in name)}


def test_the_configuration_of_a_resumed_run_changes_when_it_has_begun(old: Path) -> None:
    fails(RunFolder.open(old, NEW), lambda run: None)
    assert (old / "config.yaml").read_text() == "old"
    with RunFolder.open(old, NEW) as run:
        assert (old / "config.yaml").read_text() == "old"
        run.begin()
        assert (old / "config.yaml").read_text().startswith("seed: 2")
    assert (old / "weights.safetensors").read_text() == "old"


# -- killed in the midst of a swap -----------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def steps_of(action: Callable[[], None], monkeypatch: pytest.MonkeyPatch, last: int) -> bool:
    """Does an action that is killed before its `last` change of a folder; whether it came to its end."""
    left = [last]

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in (
            (os, "replace"),
            (os, "rename"),
            (os, "rmdir"),
            (os, "mkdir"),
            (os, "unlink"),
        ):
            patch.setattr(module, name, counted(getattr(module, name)))
        try:
            action()
        except Killed:
            return False
    return True


def swapping(folder: Path) -> None:
    fill(folder, "old")
    (folder / "thesis.tex").write_text("mine")
    (folder / location.STAGED).mkdir()
    fill(folder / location.STAGED, "new", ("config.yaml", "metrics.csv", "checkpoints"))


def test_a_swap_that_is_killed_anywhere_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = 0
    for last in range(200):
        folder = tmp_path / str(last)
        folder.mkdir()
        swapping(folder)
        ended = steps_of(lambda folder=folder: swap(folder), monkeypatch, last)  # type: ignore[misc]
        begun = location.is_swapping(folder) or (folder / "config.yaml").read_text() == "new"
        finish_swap(folder)
        found = content(folder)
        assert found.pop("thesis.tex") == "mine"
        if begun:
            new = {
                "config.yaml": "new",
                "metrics.csv": "new",
                os.path.join("checkpoints", PART["checkpoints"]): "new",
            }
            assert found == new, last
        else:
            assert {name for name, text in found.items() if text == "old"} >= {
                name for name in OF_A_RUN if "." in name
            }
        moments += 1
        if ended:
            break
    assert ended
    assert moments > 20  # the files of a run, one by one


def test_a_swap_that_is_killed_twice_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 40, 3):
        for second in range(0, 40, 5):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            swapping(folder)
            steps_of(lambda folder=folder: swap(folder), monkeypatch, first)  # type: ignore[misc]
            begun = location.is_swapping(folder)
            steps_of(lambda folder=folder: finish_swap(folder), monkeypatch, second)  # type: ignore[misc]
            assert config_file(folder).read_text() == ("new" if begun or first > 30 else "old")


def test_what_a_killed_run_has_staged_is_removed_by_the_next(old: Path) -> None:
    (old / ".ppl_vae-new").mkdir()
    fill(old / ".ppl_vae-new", "half")
    (old / ".metrics.01ab23cd.writing.csv").write_text("half")
    with RunFolder.open(old):
        pass
    assert set(content(old).values()) == {"old", "mine"}
    assert not (old / ".ppl_vae-new").exists()


def test_a_run_that_was_killed_while_its_first_file_was_written_is_begun_again(
    tmp_path: Path,
) -> None:
    (tmp_path / ".config.01ab23cd.writing.yaml").write_text("half")
    with RunFolder.new(tmp_path, NEW) as run:
        run.begin()
    assert os.listdir(tmp_path) == ["config.yaml"]


# -- two processes ---------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from typing import Any
from ppl_vae.runs.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes into the folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(ppl_vae.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_writes(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    words = (
        rf"being written by process {holder.pid} on {socket.gethostname()} since \d\d:\d\d: wait"
    )
    with pytest.raises(LockedError, match=words):
        RunFolder.open(tmp_path)
    with pytest.raises(LockedError, match=words):
        train(run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_the_lock_of_a_killed_process_is_free(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with RunFolder.open(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_one_process_writes_a_folder_once_at_a_time(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path):
        with pytest.raises(LockedError, match="by this process"):
            RunFolder.open(tmp_path)
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(LockedError, match="by this process"):
            RunFolder.open(tmp_path / "link")
    with RunFolder.open(tmp_path):
        pass


def test_a_lock_that_nobody_holds_any_longer_is_free(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(LockedError, match="by this process already"):
        Lock(tmp_path)
    before = len(os.listdir("/dev/fd"))
    del lock
    assert len(os.listdir("/dev/fd")) == before - 1
    Lock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_is_not_removed_by_one_that_was_refused(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path):
        for _ in range(2):
            with pytest.raises(LockedError):
                RunFolder.open(tmp_path)
        assert (tmp_path / LOCK).is_file()


@pytest.mark.parametrize(
    ("written", "locked"),
    [
        ({"pid": os.getppid(), "host": socket.gethostname(), "since": time.time()}, True),
        ({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, False),
        ({"pid": 2**22 + 1, "host": socket.gethostname(), "since": time.time()}, False),
        ({"pid": 1, "host": "another", "since": time.time()}, True),
        ({"pid": "x"}, False),
        ([1], False),
    ],
)
def test_without_locks_of_the_file_system_the_process_number_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: object, locked: bool
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / LOCK).write_text(json.dumps(written))
    if locked:
        with pytest.raises(LockedError, match=r"if that process is gone, remove .*ppl_vae-lock"):
            Lock(tmp_path)
    else:
        Lock(tmp_path).release()
        assert not (tmp_path / LOCK).exists()


# -- links, and files that are whole or absent -----------------------------------------------------------


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    for name in ("weights.safetensors", "config.yaml"):
        target.write_text("mine")
        (tmp_path / name).symlink_to(target)
        write_bytes(tmp_path / name, b"new")
        assert target.read_text() == "mine"
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()
    (tmp_path / "metrics.csv").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        append_text(tmp_path / "metrics.csv", "new")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["checkpoints", "plots", "plots_dark", ".ppl_vae-new", "tensorboard"]
)
def test_no_folder_of_a_run_may_be_a_link(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "step-000000001.safetensors").write_text("mine")
    (tmp_path / name).symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError, match=rf"{name} is a link to .*elsewhere.*remove it"):
        own_folder(tmp_path / name)
    assert (elsewhere / "step-000000001.safetensors").read_text() == "mine"


def test_a_training_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere):
        folder.mkdir()
    (run / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError, match="is a link"):
        train(run_dir=run)
    assert not list(elsewhere.iterdir())


def test_a_link_is_replaced_together_with_the_run(old: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "picture.png").write_text("mine")
    (old / "plots" / PART["plots"]).unlink()
    (old / "plots").rmdir()
    (old / "plots").symlink_to(elsewhere)
    with RunFolder.new(old, NEW, overwrite=True) as run:
        run.begin()
    assert not os.path.lexists(old / "plots")
    assert (elsewhere / "picture.png").read_text() == "mine"


def test_the_name_of_a_temporary_file_is_not_known_before(tmp_path: Path) -> None:
    names = set()
    for _ in range(5):
        with replacing(tmp_path / "x.csv") as temporary:
            names.add(temporary.name)
            assert temporary.suffix == ".csv"
    assert len(names) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_temporary_file_that_is_there_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    target = tmp_path / "precious"
    target.write_text("mine")
    with replacing(tmp_path / "x.csv") as file:
        name = file.name
    (tmp_path / "x.csv").unlink()
    (tmp_path / name).symlink_to(target)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "x.csv", b"new")
    assert target.read_text() == "mine"


def test_files_have_the_permissions_of_the_users_own(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [28, 122, 27])  # no space, over quota, file too large
def test_a_full_disk_is_one_line_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "x.csv").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DiskFullError, match=rf"x.csv was not written: no room .* {tmp_path}"
        ) as error:
            write_bytes(tmp_path / "x.csv", b"new")
    assert "\n" not in str(error.value)
    assert "Errno" not in str(error.value)
    assert content(tmp_path) == {"x.csv": "old"}


# -- what writes runs ------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_saved_leaves_the_one_before(tmp_path: Path) -> None:
    fitted, _ = train(max_epochs=1)
    save_run(tmp_path / "run", fitted.model, fitted.guide, fit=fitted)
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    class Broken:
        def to_dict(self) -> dict[str, object]:
            raise RuntimeError("no summary")

    with pytest.raises(RuntimeError, match="no summary"):
        save_run(tmp_path / "run", fitted.model, fitted.guide, evaluation=Broken(), overwrite=True)
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_training_takes_the_place_of_a_run_with_its_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 0.0))
    fitted, _ = train(max_epochs=1)
    save_run(tmp_path / "run", fitted.model, fitted.guide, fit=fitted)
    seen = []
    begin = RunFolder.begin

    def watched(folder: RunFolder) -> None:
        seen.append((tmp_path / "run" / "weights.safetensors").is_file())
        begin(folder)

    monkeypatch.setattr(RunFolder, "begin", watched)
    with RunFolder.new(tmp_path / "run", NEW, overwrite=True) as run:
        again, _ = train(max_epochs=2, run_dir=run)
    assert seen[:2] == [
        True,
        False,
    ]  # at its first checkpoint after a step, the old run was still there
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.csv",
    ]
    assert again.run_dir == tmp_path / "run"
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


def test_metrics_of_an_earlier_training_are_not_replaced(tmp_path: Path) -> None:
    fitted, _ = train(max_epochs=1)
    save_run(tmp_path, fitted.model, fitted.guide, fit=fitted)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match=r"metrics\.csv holds the metrics of an earlier"):
        train(run_dir=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_run_takes_the_place_of_what_fit_has_written(tmp_path: Path) -> None:
    fitted, _ = train(max_epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(FileExistsError, match="overwrite"):
        save_run(tmp_path / "run", fitted.model, fitted.guide)
    save_run(tmp_path / "run", fitted.model, fitted.guide, fit=fitted, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "weights.safetensors",
    ]


def test_a_run_folder_that_is_closed_or_in_use_takes_no_other_training(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as run:
        train(run_dir=run, max_epochs=1)
        with pytest.raises(FileExistsError, match="checkpoints of an earlier training"):
            train(run_dir=run, max_epochs=1)
    with pytest.raises(ValueError, match="is closed"):
        train(run_dir=run, resume=True)


def test_the_lock_stays_when_the_folder_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with RunFolder.open(folder):
        shutil.copytree(folder, tmp_path / "copy")
        environment = os.environ | {"PYTHONPATH": str(Path(ppl_vae.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert "LockedError" in done.stderr


def test_a_reader_does_not_mix_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is replaced while the first one is read: after its configuration, before its weights."""
    pairs = [(Model(), Guide()) for _ in range(2)]
    for number, (model, guide) in enumerate(pairs):
        torch.nn.init.constant_(model.decoder.bias, float(number))
        save_run(tmp_path / str(number), model, guide, config={"number": number})
    shutil.copytree(tmp_path / "0", tmp_path / "run")
    left = [1]

    def replaced_first(*arguments: Any) -> None:
        if left:
            left.pop()
            save_run(tmp_path / "run", *pairs[1], config={"number": 1}, overwrite=True)
        read_weights(*arguments)

    monkeypatch.setattr("ppl_vae.runs.run.read_weights", replaced_first)
    found = load_run(tmp_path / "run", Model(), Guide())
    read: Any = found.model
    assert found.config["number"] == 1
    assert read.decoder.bias.tolist() == [1.0, 1.0, 1.0]


def test_a_folder_that_was_read_is_as_it_was(tmp_path: Path) -> None:
    save_run(tmp_path / "run", Model(), Guide())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    load_run(tmp_path / "run", Model(), Guide())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before
