"""Nothing of one run ends up with another, and no output takes the place of what it was not to replace."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch
from bad_inputs import SMALL, X, command, fit, pair, run as run, saved as saved
from PIL import Image
from torch import Tensor

import ppl_vae
from ppl_vae.cli import main, run_commands
from ppl_vae.diagnosis import diagnose
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import LearnedGaussian
from ppl_vae.models import VAE, GaussianMixture
from ppl_vae.networks import MLP
from ppl_vae.runs import RunFolder, write_results, write_weights
from ppl_vae.runs.contents import (
    CHECKPOINTS,
    OF_A_RUN,
    OF_PICTURES,
    TENSORBOARD,
    discard,
    is_run,
)
from ppl_vae.runs.lock import LOCK, Lock, LockedError
from ppl_vae.runtime import replacing

MADE = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--model.latent_dim", "2", "--quiet")
FILES = [name for name in OF_A_RUN if name not in (CHECKPOINTS, *OF_PICTURES, TENSORBOARD)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- folders of the user's with the names of files --------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if name != "config.yaml"])
def test_a_folder_called_like_a_file_of_a_run_is_not_a_part_of_it(
    name: str, tmp_path: Path
) -> None:
    ppl_vae.save_run(tmp_path / "run", *pair())
    (tmp_path / "run" / name).unlink(missing_ok=True)
    mine = tmp_path / "run" / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"is a folder, where a run has a file.*rename it"):
        ppl_vae.save_run(tmp_path / "run", *pair(), overwrite=True)
    assert content(tmp_path) == before
    discard(tmp_path / "run")
    assert mine.read_text() == "mine"


def test_a_folder_that_comes_while_a_run_is_made_is_not_replaced(tmp_path: Path) -> None:
    ppl_vae.save_run(tmp_path / "run", *pair())
    mine = tmp_path / "run" / "gaps.csv" / "mine.txt"
    old = content(tmp_path)

    def come(*_: Any, **__: Any) -> str:
        mine.parent.mkdir()
        mine.write_text("mine")
        return "0"

    with (
        patch("ppl_vae.runs.run.write_weights", come),
        pytest.raises(FileExistsError, match="is a folder"),
    ):
        ppl_vae.save_run(tmp_path / "run", *pair(), overwrite=True)
    assert content(tmp_path) == {**old, "run/gaps.csv/mine.txt": b"mine"}


@pytest.mark.parametrize("name", ["checkpoints", "plots"])
def test_a_run_of_several_disks_is_not_half_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files cannot be renamed from disk to disk, so that the swap would stop in its midst."""
    run, real_replace, real_rename = tmp_path / "run", os.replace, Path.rename
    ppl_vae.save_run(run, *pair())
    (run / name).mkdir()
    (run / name / ("khat.png" if name == "plots" else "step-000000001.safetensors")).write_text("")

    def replace(source: Any, target: Any) -> None:
        if Path(source).parent.name == name:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        real_replace(source, target)

    def rename(source: Path, target: Path) -> Path:
        if source.name == name:
            raise OSError(errno.EBUSY, "Device or resource busy", str(source))
        return real_rename(source, target)

    before = content(run)
    with monkeypatch.context() as disks:
        disks.setattr(os, "replace", replace)
        disks.setattr(Path, "rename", rename)
        with pytest.raises(FileExistsError, match=r"is on a disk of its own.*nothing was changed"):
            ppl_vae.save_run(run, *pair(), overwrite=True)
    assert content(run) == before
    assert ppl_vae.load_run(run, *pair()).path == run
    ppl_vae.save_run(run, *pair(), overwrite=True)
    assert not (run / name).exists()


def test_a_folder_that_cannot_be_renamed_is_moved_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is part of a container's image is of that kind."""
    run, real = tmp_path / "run", Path.rename
    ppl_vae.save_run(run, *pair())
    (run / "plots").mkdir()
    (run / "plots" / "khat.png").write_text("")

    def rename(source: Path, target: Path) -> Path:
        if source.name == "plots":
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        return real(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    ppl_vae.save_run(run, *pair(), overwrite=True)
    assert not (run / "plots").exists()
    assert ppl_vae.load_run(run, *pair()).path == run


# -- what is read of a run belongs to its weights ---------------------------------------------------------


def test_the_history_ends_with_the_weights(tmp_path: Path) -> None:
    """A training that went on has longer metrics before it has new weights."""
    model, guide = pair()
    done = fit(model, guide, X, max_epochs=2)
    ppl_vae.save_run(tmp_path / "run", model, guide, fit=done)
    assert len(ppl_vae.load_run(tmp_path / "run", *pair()).history) == 2
    with (tmp_path / "run" / "metrics.csv").open("a") as metrics:
        last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1]
        metrics.write(f"{last}\n")
    with pytest.warns(UserWarning, match=r"metrics\.csv holds 1 line after those of the weights"):
        assert len(ppl_vae.load_run(tmp_path / "run", *pair()).history) == 2


@pytest.mark.filterwarnings("ignore:.*metrics.csv holds")
def test_a_training_that_went_on_does_not_change_the_beta_of_its_old_weights(run: Path) -> None:
    """Its beta depends on the epochs, and `diagnose` counts them."""
    found = ppl_vae.load_run(run, results=False)
    write_weights(run, found.model, found.guide, epochs=1)
    with patch("ppl_vae.cli.run_commands.diagnose_pair", wraps=diagnose) as asked:
        assert command("diagnose", "run", "--overwrite") == 0
    assert asked.call_args.kwargs["beta"] == 0.5


@pytest.mark.filterwarnings("ignore:.*metrics.csv holds")
def test_an_interrupted_training_leaves_the_history_of_its_old_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        made = ["train", "--run_dir", str(run), "--max_epochs", "1", "--data", "digits", *MADE]
        assert main(made) == 0
        on = ["train", "--resume", str(run), "--max_epochs", "3", "--quiet"]
        with patch("ppl_vae.cli.finish.write_weights", side_effect=KeyboardInterrupt):
            assert main(on) == 130
        assert len((run / "metrics.csv").read_text().splitlines()) == 4
        assert len(ppl_vae.load_run(run).history) == 1
        assert main(on) == 0
    assert len(ppl_vae.load_run(run).history) == 3


def test_results_that_a_run_does_not_hold_are_told_to_be_of_other_weights(run: Path) -> None:
    assert command("gaps", "run", "--max_rows", "2", "--num_samples", "5") == 0
    ais = ("--method", "ais", "--num_steps", "2", "--max_rows", "2", "--num_chains", "2")
    assert command("evaluate", "run", *ais) == 0
    assert command("export", "run", "--num_samples", "2") == 0
    found = ppl_vae.load_run(run)  # all is of the same weights: no warning
    with torch.no_grad():
        next(iter(found.model.parameters())).add_(1.0)  # type: ignore[attr-defined]
    weights = write_weights(run, found.model, found.guide)
    write_results(run, evaluation=found.evaluation, weights=weights)
    with pytest.warns(UserWarning, match="belongs to other weights") as told:
        ppl_vae.load_run(run)
    said = {str(each.message).partition(" belongs")[0]: str(each.message) for each in told}
    pictures = [f"{folder}/gaps.png" for folder in OF_PICTURES]
    names = ("annealed.json", "gaps.json", "posterior.nc", *pictures)
    assert said.keys() == {str(run / name) for name in names}
    assert f"`ppl-vae export {run} --overwrite` makes it again" in said[str(run / "posterior.nc")]


def test_samples_of_an_older_run_are_called_that(run: Path) -> None:
    assert command("sample", "run") == 0
    found = ppl_vae.load_run(run)
    assert isinstance(found.model, torch.nn.Module)
    with torch.no_grad():
        next(found.model.parameters()).add_(1.0)
    write_weights(run, found.model, found.guide)
    (run / "evaluation.json").unlink()
    with pytest.warns(UserWarning, match=r"samples\.png belongs to other weights.*`ppl-vae sample"):
        ppl_vae.load_run(run)


def test_other_data_of_the_same_name_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative path means another file in another folder."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("data: digits", "data: x.npz"))
    draw = np.random.default_rng(0)
    for folder in (tmp_path, tmp_path / "b"):
        folder.mkdir(exist_ok=True)
        np.savez(folder / "x.npz", x=draw.integers(0, 255, (20, 1, 8, 8), dtype=np.uint8))
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 0
    assert command("evaluate", "run", "--num_samples", "2", "--max_rows", "2", "--overwrite") == 0
    assert command("diagnose", "run") == 0
    assert "test rows" not in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "b")
    assert command("diagnose", "../run", "--overwrite") == 0
    assert "the data (x.npz) have changed, or their name means others" in capsys.readouterr().err
    summary = json.loads((run / "evaluation.json").read_text())
    del summary["rows"]["sha256"]
    (run / "evaluation.json").write_text(json.dumps(summary))
    assert command("diagnose", "../run", "--overwrite") == 0  # it does not say which rows it is of
    assert "test rows" not in capsys.readouterr().err


# -- outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_comes_while_another_is_written_is_not_replaced(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", none)
    file = tmp_path / "x.txt"
    with replacing(file, overwrite=False) as temporary:
        temporary.write_text("first")
    assert file.read_text() == "first"

    def write_again() -> None:
        with replacing(file, overwrite=False) as other:
            other.write_text("second")

    with pytest.raises(FileExistsError, match=r"x\.txt has come meanwhile, and was left as it is"):
        write_again()
    assert content(tmp_path) == {"x.txt": b"first"}


def meanwhile(function: str, file: Path) -> Any:
    """What a command calls puts a file of the user's there, too."""
    real = getattr(run_commands, function)

    def both(*arguments: Any, **options: Any) -> Any:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
        return real(*arguments, **options)

    return patch.object(run_commands, function, both)


@pytest.mark.parametrize(
    ("words", "function", "output", "code"),
    [
        (["sample", "-o", "x.npz"], "sampled", "x.npz", 1),
        pytest.param(
            ["export", "-o", "x.nc", "--num_samples", "2"],
            "to_arviz",
            "x.nc",
            1,
            marks=pytest.mark.slow,
        ),
        (["gaps", "--max_rows", "2", "--num_samples", "5"], "inference_gaps", "run/gaps.json", 0),
        (["gaps", "--max_rows", "2", "--num_samples", "5"], "gaps_plot", "run/plots/gaps.png", 1),
        pytest.param(
            ["diagnose"], "diagnose_pair", "run/diagnosis.json", 0, marks=pytest.mark.slow
        ),
    ],
)
def test_a_command_does_not_replace_what_came_while_it_worked(
    words: list[str], function: str, output: str, code: int, run: Path
) -> None:
    """Two commands at once, or the user: what is there is replaced only with --overwrite."""
    name, *options = words
    with meanwhile(function, Path(output)):
        assert command(name, "run", *options) == code
    assert Path(output).read_text() == "{}"


@pytest.mark.parametrize(
    "name", ["compare", "sample", pytest.param("export", marks=pytest.mark.slow)]
)
def test_an_output_in_a_run_waits_for_its_lock(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, "other"))
    options = ["--num_samples", "2"] if name == "export" else []
    output = str(other / ("x.nc" if name == "export" else "x.png"))
    runs = ["run", "run"] if name == "compare" else ["run"]
    lock = Lock(other)
    try:
        assert command(name, *runs, *options, "-o", output) == 1
    finally:
        lock.release()
    assert "is being written" in capsys.readouterr().err
    assert not Path(output).exists()
    assert command(name, *runs, *options, "-o", output) == 0
    assert Path(output).exists()
    assert not (other / LOCK).exists()


@pytest.mark.parametrize("name", ["plots/learning_curves.png", "Plots/gaps.png", "plots/KHAT.png"])
def test_the_pictures_of_a_run_are_its_own(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run / name
    output.parent.mkdir()
    assert command("compare", "run", "run", "-o", str(output), "--overwrite") == 2
    assert "belongs to a run, and would be lost" in capsys.readouterr().err
    assert command("compare", "run", "run", "-o", str(output.with_name("mine.png"))) == 0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures, and the file x.npz beside it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    for i, pixels in enumerate(x):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    np.savez(tmp_path / "x.npz", x=x[:, None])
    return folder


@pytest.mark.parametrize(
    ("data", "output"),
    [
        pytest.param("folder:pictures", "pictures/3.png", marks=pytest.mark.slow),
        ("folder:pictures", "pictures/new.png"),
        pytest.param("x.npz", "x.npz", marks=pytest.mark.slow),
        pytest.param("x.npz", "pictures/../x.npz", marks=pytest.mark.slow),
        ("~/x.npz", "x.npz"),
    ],
)
def test_an_output_is_none_of_the_data(
    data: str,
    output: str,
    run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(pictures.parent))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("data: digits", f"data: {data}"))
    before = content(pictures.parent)
    assert command("sample", "run", "-o", output, "--overwrite") == 2
    assert f"the data of the run ({data})" in capsys.readouterr().err
    assert content(pictures.parent) == before
    assert command("sample", "run", "-o", "else.png") == 0


@pytest.mark.slow
def test_a_run_is_not_made_among_its_data(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pictures would be rows, too."""
    monkeypatch.chdir(pictures)
    for data, place in [("../pictures", "run"), (".", "a/b"), (".", None)]:
        options = ["--data", f"folder:{data}", "--max_epochs", "1", *MADE]
        where = [] if place is None else ["--run_dir", place]
        assert main(["train", *options, *where]) == 2
        assert "its pictures would be data, too" in capsys.readouterr().err
    assert len(list(pictures.iterdir())) == 20
    for part in ("train", "test"):
        shutil.copytree(pictures, pictures.parent / "split" / part)
    options = ["--data", "folder:../split", "--max_epochs", "1", *MADE]
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        assert main(["train", *options, "--run_dir", "../split/run"]) == 0
        plots = Path(shutil.copytree(pictures, "../split/run/plots"))
        (plots / "0.png").rename(plots / "khat.png")
        before = content(plots)
        options = ["--data", f"folder:{plots}", "--max_epochs", "1", *MADE, "--overwrite"]
        assert main(["train", *options, "--run_dir", "../split/run"]) == 2
    assert (
        "is a part of the run in ../split/run, which is to be replaced" in capsys.readouterr().err
    )
    assert content(plots) == before


# -- trainings in one folder ------------------------------------------------------------------------------


def test_a_fit_does_not_write_beside_the_weights_of_another(tmp_path: Path) -> None:
    ppl_vae.save_run(tmp_path / "run", *pair())
    before = content(tmp_path)
    words = r"holds a run: the checkpoints and metrics would be those of other weights"
    with pytest.raises(FileExistsError, match=words):
        fit(*pair(), X, run_dir=tmp_path / "run")
    with pytest.raises(FileExistsError, match=words):
        ppl_vae.fit_em(GaussianMixture((3,), 2), X, max_iterations=2, run_dir=tmp_path / "run")
    assert content(tmp_path) == before


class OtherLikelihood(LearnedGaussian):
    """Another likelihood with the same parameters."""


def with_tanh() -> tuple[VAE, MeanField]:
    network = MLP(hidden=(4,), activation=torch.nn.Tanh)
    return VAE((3,), 2, network, LearnedGaussian()), MeanField((3,), 2, network)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (with_tanh, "now it is Tanh"),
        (
            lambda: (VAE((3,), 2, SMALL, OtherLikelihood()), pair()[1]),
            "LearnedGaussian, now it is OtherLikelihood",
        ),
    ],
)
def test_a_training_goes_on_with_the_same_programs(
    other: Callable[[], Any], differs: str, tmp_path: Path
) -> None:
    """Parameters of the same names and shapes do not make it the same pair."""
    fit(*pair(), X, run_dir=tmp_path / "run")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=differs):
        fit(*other(), X, run_dir=tmp_path / "run", max_epochs=2, resume=True)
    assert content(tmp_path) == before
    fit(*pair(), X, run_dir=tmp_path / "run", max_epochs=2, resume=True)


def test_checkpoints_of_another_function_are_called_that(tmp_path: Path) -> None:
    fit(*pair(), X, run_dir=tmp_path / "fit")
    ppl_vae.fit_em(GaussianMixture((3,), 2), X, max_iterations=2, run_dir=tmp_path / "em", seed=0)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="were not written by fit_em"):
        ppl_vae.fit_em(GaussianMixture((3,), 2), X, run_dir=tmp_path / "fit", resume=True)
    with pytest.raises(ValueError, match="were not written by fit, which"):
        fit(*pair(), X, run_dir=tmp_path / "em", resume=True)
    assert content(tmp_path) == before


# -- folders that are moved while they are written --------------------------------------------------------


class Batches:
    """Batches, before one of which something happens."""

    def __init__(self, at: int, happens: Callable[[], Any]) -> None:
        self.left, self.happens = at, happens

    def __iter__(self) -> Iterator[Tensor]:
        for batch in X.split(5):
            self.left -= 1
            if self.left == 0:
                self.happens()
            yield batch


def test_a_training_does_not_write_into_another_run_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.training.checkpoints.CHECKPOINT_SECONDS", (0.0, 0.0))
    folder, other = tmp_path / "run", tmp_path / "other"
    ppl_vae.save_run(other, *pair())

    def move() -> None:
        folder.rename(tmp_path / "moved")
        shutil.copytree(other, folder)

    with pytest.raises(LockedError, match=r"run is no longer the folder that was being written"):
        fit(*pair(), Batches(15, move), max_epochs=5, run_dir=folder)
    assert content(folder) == content(other)
    assert (tmp_path / "moved" / "checkpoints").is_dir()


@pytest.mark.parametrize("has_run", [True, False])
def test_what_has_taken_the_place_of_a_folder_is_not_undone(has_run: bool, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    ppl_vae.save_run(other, *pair())
    if has_run:
        shutil.copytree(other, folder)

    def fails() -> None:
        with RunFolder.new(folder, {"seed": 1}, overwrite=True):
            folder.rename(tmp_path / "moved")
            shutil.copytree(other, folder)
            raise RuntimeError("an error of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        fails()
    assert content(folder) == content(other)
    assert is_run(folder)


def test_a_lock_that_somebody_has_removed_stops_no_training(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as opened:
        (tmp_path / LOCK).unlink()
        assert opened.path == tmp_path
        (tmp_path / LOCK).write_text(json.dumps({"pid": 1}))  # another process has taken it
        with pytest.raises(LockedError, match="no longer"):
            _ = opened.path
