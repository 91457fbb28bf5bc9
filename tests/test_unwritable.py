"""Folders and files that may not be read or written: results are shown, and it is said what is in the way."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import pytest
from bad_inputs import X, command, fit, pair, run as run, saved as saved

import ppl_vae
from ppl_vae.cli import main
from ppl_vae.runs import checkpoint_files, load_checkpoint, save_checkpoint
from ppl_vae.runtime import CorruptFileError, replacing, write_tensors

RESULTS = {
    "evaluation.json": ("evaluate", "run", "--num_samples", "2", "--overwrite"),
    "diagnosis.json": ("diagnose", "run", "--overwrite"),
    "gaps.json": ("gaps", "run", "--max_rows", "2", "--num_samples", "5"),
}


@pytest.fixture(params=[errno.EROFS, errno.EACCES])
def read_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], str]:
    """Lets a folder be one in which no file can be opened for writing. For root, permissions do not count."""

    def make(folder: Path) -> str:
        real, inside = os.open, str(folder.resolve())

        def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if flags & os.O_CREAT and os.path.realpath(path).startswith(inside):
                raise OSError(request.param, os.strerror(request.param), str(path))
            return real(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", opened)
        return os.strerror(request.param)

    return make


@pytest.mark.slow(but=("13-evaluation.json", "13-gaps.json"))
@pytest.mark.parametrize("file", RESULTS)
def test_a_result_that_cannot_be_kept_is_shown(
    file: str,
    run: Path,
    read_only: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    why = read_only(run)
    assert command(*RESULTS[file]) == 1
    told = capsys.readouterr()
    assert told.out.count("\n") > 3
    error = told.err.splitlines()[-1]
    assert error.startswith(f"ppl-vae: error: run: {file} was not written ({why}); to keep the res")
    assert "copy the run" in error
    assert ".ppl_vae-lock" not in told.err


@pytest.mark.slow(but=("13-sample", "13-export"))
@pytest.mark.parametrize("name", ["sample", pytest.param("export", marks=pytest.mark.slow)])
def test_what_is_only_written_is_refused_at_once(
    name: str,
    run: Path,
    read_only: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    why = read_only(run)
    with patch("ppl_vae.cli.run_commands.load_rows", side_effect=AssertionError):
        assert command(name, "run") == 1
    assert f"run: nothing can be written there ({why}); choose a file elsewhere by --output" in (
        capsys.readouterr().err
    )
    output = "x.png" if name == "sample" else "x.nc"
    assert command(name, "run", "-o", output) == 0


def test_compare_names_the_picture(
    run: Path,
    read_only: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run.parent / "pictures").mkdir()
    why = read_only(run.parent / "pictures")
    assert command("compare", "run", "run", "-o", "pictures/c.png") == 1
    told = capsys.readouterr()
    assert told.err == f"ppl-vae: error: pictures/c.png: {why}\n"
    assert "ELBO" in told.out


def test_an_error_inside_of_a_file_keeps_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="font"),
        replacing(tmp_path / "x.png"),
    ):
        open("font.ttf").close()


# -- files that may not be read --------------------------------------------------------------------------


def forbidden(*names: str) -> Any:
    """Files of these names may not be opened."""
    real = io.open

    def opened(file: Any, *more: Any, **options: Any) -> Any:
        if os.path.basename(str(file)) in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *more, **options)

    return patch.multiple(io, open=opened), patch.object(builtins, "open", opened)


@pytest.mark.parametrize(
    "name",
    ["weights.safetensors", "config.yaml", "metrics.csv", "evaluation.json", "diagnosis.json"],
)
def test_a_file_of_a_run_that_may_not_be_read(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "diagnosis.json").write_text('{"active_units": 0}')
    (run / "checkpoints").mkdir()  # from which weights that are damaged could be made again
    first, second = forbidden(name)
    with first, second:
        with pytest.raises(PermissionError) as caught:
            ppl_vae.load_run("run")
        assert command("compare", "run", "run", "-o", "c.png") == 1
    assert caught.value.filename == str(Path("run") / name)
    assert capsys.readouterr().err == f"ppl-vae: error: run/{name}: Permission denied\n"


def checkpoints(folder: Path) -> tuple[Path, Path]:
    for step in (5, 9):
        save_checkpoint(folder, step, {}, {"step": step})
    newest, before = checkpoint_files(folder)
    return newest, before


def test_a_checkpoint_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    newest, before = checkpoints(tmp_path)
    first, second = forbidden(newest.name)
    with first, second, pytest.warns(UserWarning, match=r"cannot be read \(Permission denied\);"):
        assert load_checkpoint(tmp_path)[1] == {"step": 5}
    first, second = forbidden(newest.name, before.name)
    with first, second, pytest.raises(PermissionError, match="make it readable") as caught:
        load_checkpoint(tmp_path)
    assert "start the training again" not in str(caught.value)


def test_checkpoints_that_may_not_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(*pair(), X, max_epochs=1, batch_size=20, run_dir=run)

    def denied(path: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with patch.object(os, "scandir", denied), pytest.raises(PermissionError, match="checkpoints"):
        fit(*pair(), X, max_epochs=2, batch_size=20, run_dir=run, resume=True)


@pytest.mark.parametrize("kind", ["link", "pipe", "text", "state", "loop"])
def test_what_is_no_checkpoint_is_passed_over(kind: str, tmp_path: Path) -> None:
    newest, before = checkpoints(tmp_path)
    newest.unlink()
    if kind == "link":
        newest.symlink_to("nowhere")
    elif kind == "loop":
        newest.symlink_to(newest.name)
    elif kind == "pipe":
        os.mkfifo(newest)
    elif kind == "text":
        newest.write_text("a checkpoint")
    else:
        write_tensors(newest, {}, {"state": {"a": 1, "b": 2}, "facts": {}})
    with pytest.warns(UserWarning, match=rf"{newest}: .*continuing from {before.name} instead"):
        assert load_checkpoint(tmp_path)[1] == {"step": 5}
    before.unlink()
    with pytest.raises((CorruptFileError, OSError), match="no other checkpoint") as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value).count(str(newest)) == 1
    if kind == "pipe":
        newest.unlink()  # which no file replaces
    save_checkpoint(tmp_path, 9, {}, {"step": 9})  # it takes the place
    assert load_checkpoint(tmp_path)[1] == {"step": 9}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_weights_that_are_no_file_are_told(kind: str, run: Path) -> None:
    file = run / "weights.safetensors"
    file.unlink()
    if kind == "link":
        file.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    words = {"link": "a link to nowhere", "pipe": "no plain file", "folder": "a folder, not a file"}
    with pytest.raises(CorruptFileError, match=words[kind]):
        ppl_vae.load_run(run)


# -- libraries that cannot be had ------------------------------------------------------------------------


@pytest.mark.slow(
    but=("ppl_vae.cli.finish.to_arviz-error0", "ppl_vae.runs.folder.as_netcdf-error1")
)
@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "/nohome"), ImportError("no netCDF")]
)
@pytest.mark.parametrize("where", ["ppl_vae.cli.finish.to_arviz", "ppl_vae.runs.folder.as_netcdf"])
def test_arviz_costs_no_results(
    error: Exception, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--model.latent_dim", "2", "--quiet")
    drawn = patch("ppl_vae.cli.finish.draw_run", return_value=[])
    arviz = patch("ppl_vae.cli.finish.to_arviz", return_value=X)
    with arviz, drawn as draw, patch(where, side_effect=error):
        assert main(["train", "--run_dir", str(run), "--max_epochs", "1", *small]) == 0
    told = capsys.readouterr()
    assert f"warning: posterior.nc was not written: {error}" in told.err
    assert f"`ppl-vae export {run}`" in told.err
    assert "ELBO" in told.out
    assert draw.called
    loaded = ppl_vae.load_run(run)
    assert loaded.evaluation is not None
    assert loaded.diagnosis is not None


def test_arviz_without_a_folder_for_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def imported(name: str, *more: Any, **options: Any) -> Any:
        if name == "arviz":
            raise FileNotFoundError(2, "No such file or directory", "/proc/nohome")
        return real(name, *more, **options)

    with patch.object(builtins, "__import__", imported):
        assert command("export", "run", "--num_samples", "2") == 1
    assert capsys.readouterr().err == (
        "ppl-vae: error: ArviZ cannot be imported (/proc/nohome: No such file or directory): set XDG_CACHE_"
        "HOME to a folder that can be written\n"
    )
