"""What the commands do to runs that are there: nothing is lost, and what goes on is what was begun."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch
import yaml

from ppl_vae.cli import main
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.runs import RunFolder, is_of_a_run
from ppl_vae.runtime import read_tensors
from ppl_vae.training import checkpoints, fit
from ppl_vae.training.loop import Training

SMALL = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--model.latent_dim", "2", "--quiet")


@pytest.fixture(autouse=True)
def numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pictures nor posterior.nc, and a checkpoint after each epoch."""
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_: [])
    monkeypatch.setattr("ppl_vae.cli.finish.to_arviz", lambda *_, **__: None)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", (0.0, 60.0))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        assert main(["train", "--run_dir", str(folder), "--max_epochs", "2", *SMALL]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that fails, and gives what it says."""

    def fails(*arguments: object, code: int = 1) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == code
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return fails


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a command that is interrupted at the end of an epoch."""

    def run_until(epoch: int, *arguments: object) -> None:
        real = Training._end_of_epoch

        def stop(training: Training) -> dict[str, float]:
            if training.progress.epoch == epoch:
                raise KeyboardInterrupt
            return real(training)

        with monkeypatch.context() as patched:
            patched.setattr(Training, "_end_of_epoch", stop)
            assert main(list(map(str, arguments))) == 130

    return run_until


def same_weights(*folders: Path) -> bool:
    first, second = (read_tensors(folder / "weights.safetensors")[0] for folder in folders)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- outputs ---------------------------------------------------------------------------------------------


def something(kind: str, path: Path) -> None:
    """Makes something that is no file."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
        os.chdir(here)
    elif kind == "a device":
        path.symlink_to(os.devnull)  # only root makes devices
    elif kind == "an output":
        path.symlink_to("/dev/stdout")


def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed and, above all, nothing is written: root would replace the devices of the system."""
    for name in ("sampled", "Comparison", "to_arviz", "replacing", "write_bytes"):
        monkeypatch.setattr(f"ppl_vae.cli.run_commands.{name}", None)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        # Every kind with one command, and every command with one kind.
        pytest.param(
            *(command, kind),
            marks=() if command == "sample" or kind == "a pipe" else pytest.mark.slow,
        )
        for command in ("sample", "compare", "export")
        for kind in ("a folder", "a pipe", "a socket", "a device", "an output")
    ],
)
def test_an_output_that_is_no_file_is_refused_before_the_work(
    kind: str,
    command: str,
    run: Path,
    tmp_path: Path,
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_work(monkeypatch)
    something(kind, tmp_path / "x.png")
    before = os.lstat(tmp_path / "x.png")
    for options in ((), ("--overwrite",)):
        runs = (run, run) if command == "compare" else (run,)
        message = said(command, *runs, "-o", tmp_path / "x.png", *options)
        # Where the output of the tests goes, may be a file, a pipe or a terminal.
        assert f"x.png is {kind}" in message or (kind == "an output" and "x.png is a" in message)
        assert "but a file is to be written there" in message
    assert os.path.samestat(os.lstat(tmp_path / "x.png"), before)


@pytest.mark.parametrize("output", ["/dev/null", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/2"])
@pytest.mark.parametrize("command", ["sample", "compare", "export"])
def test_what_the_system_has_opened_is_no_output(
    command: str,
    output: str,
    run: Path,
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_work(monkeypatch)
    before = os.lstat(output)
    runs = (run, run) if command == "compare" else (run,)
    message = said(command, *runs, "-o", output, "--overwrite")
    assert f"{output} is a" in message
    assert "a file is to be written there: choose another name" in message
    assert os.path.samestat(os.lstat(output), before)


@pytest.mark.parametrize(
    ("arguments", "work", "file"),
    [
        (("evaluate",), "evaluate_pair", "evaluation.json"),
        (("evaluate",), "evaluate_pair", "evaluation.csv"),
        (("evaluate", "--method", "ais"), "annealed_importance_sampling", "annealed.json"),
        (("diagnose",), "diagnose_pair", "diagnosis.json"),
        (("gaps",), "inference_gaps", "gaps.csv"),
        (("gaps",), "inference_gaps", "plots/gaps.png"),
        (("export",), "to_arviz", "posterior.nc"),
        (("sample",), "sampled", "samples.png"),
    ],
)
def test_a_pipe_in_the_place_of_a_result_stays(
    arguments: tuple[str, ...],
    work: str,
    file: str,
    run: Path,
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"ppl_vae.cli.run_commands.{work}", None)
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    command, *options = arguments
    message = said(command, run, *options, "--overwrite")
    assert f"{run / file} is a pipe, but a file is to be written there" in message
    assert (run / file).is_fifo()


# -- resumed ---------------------------------------------------------------------------------------------


def test_a_finished_run_without_checkpoints_is_not_resumed(
    run: Path, said: Callable[..., str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    message = said("train", "--resume", run, "--quiet", code=2)
    assert "holds a finished run without checkpoints: there is nothing to continue" in message
    assert content(run) == before


def test_an_error_while_resuming_removes_nothing(
    run: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "weights.safetensors").unlink()
    (run / "metrics.csv").unlink()
    shutil.rmtree(run / "checkpoints")  # interrupted before its first checkpoint
    before = content(run)

    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(Training, "run", broken)
    assert "no such thing" in said("train", "--resume", run, "--quiet")
    assert content(run) == before


@pytest.mark.parametrize(("option", "words"), [("0", "at least 1, got 0"), ("-3", "at least 1")])
def test_a_wrong_number_of_epochs_does_not_stay(
    run: Path, said: Callable[..., str], option: str, words: str
) -> None:
    before = content(run)
    assert words in said("train", "--resume", run, "--max_epochs", option, "--quiet")
    assert content(run) == before


def test_more_epochs_are_remembered(run: Path) -> None:
    assert main(["train", "--resume", str(run), "--max_epochs", "3", "--quiet"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["max_epochs"] == 3
    assert len((run / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("max_epochs: 2", "max_epochs: 3\nlearning_rate: 0.5", "Adam.lr = 0.001, now it is 0.5"),
        ("max_epochs: 2", "max_epochs: 3\nclip_grad_norm: 2.0", "clip_grad_norm = None, now it is"),
        ("hidden:\n        - 16", "hidden:\n        - 9", "hidden = [16], now it is [9]"),
        ("beta: 1.0", "beta: 2.0", "objective.init_args.beta = 1.0, now it is 2.0"),
        ("seed: 0", "seed: 7", "seed = 0, now it is 7"),
    ],
)
def test_an_edited_option_is_named(
    run: Path, said: Callable[..., str], before: str, after: str, words: str
) -> None:
    config = run / "config.yaml"
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))
    message = said("train", "--resume", run, "--max_epochs", "3", "--quiet")
    assert words in message
    assert str(run) in message


def test_changed_rows_are_named(tmp_path: Path, said: Callable[..., str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    folder, file = tmp_path / "run", str(tmp_path / "x.npy")
    options = ("--data", file, "--num_samples", "4", *SMALL[SMALL.index("--batch_size") :])
    assert main(["train", "--run_dir", str(folder), "--max_epochs", "1", *options]) == 0
    x[:, 0] += 0.001
    np.save(tmp_path / "x.npy", x)
    message = said("train", "--resume", folder, "--max_epochs", "2", "--quiet")
    assert "the rows of x are other rows, or their values have changed" in message


def test_a_run_is_resumed_by_the_command_that_made_it(
    run: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    em = tmp_path / "em"
    assert (
        main(["em", "--run_dir", str(em), "--max_iterations", "2", "--quiet", "--data", "digits"])
        == 0
    )
    before = content(em)
    message = said("train", "--resume", em, code=2)
    assert f"was made by `ppl-vae em`, which continues it: ppl-vae em --resume {em}" in message
    assert content(em) == before
    assert f"ppl-vae train --resume {run}" in said("em", "--resume", run, code=2)
    assert f"ppl-vae train --resume {run}" in said("refit", "--resume", run, code=2)
    for made_by, other in (("made_by: em\n", ""), ("made_by: em\n", "made_by: 5\n")):
        # One of an older version does not say what made it.
        text = (em / "config.yaml").read_text()
        (em / "config.yaml").write_text(text.replace(made_by, other))
        assert "was made by `ppl-vae em`" in said("train", "--resume", em, code=2)


# -- overwritten -----------------------------------------------------------------------------------------


def test_bad_rows_leave_the_run_that_they_were_to_replace(
    run: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    x = np.random.default_rng(0).uniform(size=(2000, 4)).round().astype("float32")
    before = content(run)
    for row, where in ((1451, "row"), (1999, "row")):  # one of the training, one of the others
        bad = x.copy()
        bad[row, 2] = np.nan
        np.save(tmp_path / "x.npy", bad)
        options = ("--run_dir", run, "--overwrite", "--data", tmp_path / "x.npy", "--quiet")
        assert where in said("train", *options)
        assert content(run) == before


def test_test_rows_outside_of_the_support_are_found_before_the_training(
    run: Path, tmp_path: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).uniform(size=(200, 4)).round().astype("float32")
    bad = x[:50].copy()
    bad[31, 2] = 0.5
    np.savez(tmp_path / "x.npz", train=x, test=bad)
    monkeypatch.setattr(Training, "run", None)
    before = content(run)
    options = ("--likelihood", "Bernoulli")
    message = said(
        *("train", "--run_dir", run, "--overwrite", "--data", tmp_path / "x.npz", "--quiet"),
        *("--model.likelihood", options[1]),
    )
    assert "row 31 of the test rows" in message
    assert content(run) == before


def test_a_training_that_fails_at_once_leaves_the_run_that_it_was_to_replace(
    run: Path, said: Callable[..., str], interrupted: Callable[..., None]
) -> None:
    before = content(run)
    arguments = ("train", "--run_dir", run, "--overwrite", "--max_epochs", "3", *SMALL)
    assert "NaN or infinite" in said(*arguments, "--learning_rate", "1e30")
    assert content(run) == before
    interrupted(0, *arguments)
    assert content(run) == before


def test_an_interrupted_training_that_has_begun_replaces_the_run_and_goes_on(
    run: Path, interrupted: Callable[..., None], tmp_path: Path
) -> None:
    options = ("--max_epochs", "3", *SMALL, "--seed", "5")
    interrupted(2, "train", "--run_dir", run, "--overwrite", *options)
    assert not (run / "weights.safetensors").exists()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert main(["train", "--run_dir", str(tmp_path / "whole"), *options]) == 0
    assert same_weights(run, tmp_path / "whole")


@pytest.mark.parametrize("option", [("--num_samples", "0"), ("--num_samples", "-1")])
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    run: Path, said: Callable[..., str], option: tuple[str, str]
) -> None:
    before = content(run)
    arguments = ("train", "--run_dir", run, "--overwrite", *SMALL, *option)
    assert "num_samples must be at least 1" in said(*arguments)
    assert content(run) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--run_dir", "RUN", "--overwrite", *SMALL),
        ("train", "--resume", "RUN", "--max_epochs", "3"),
        ("em", "--run_dir", "RUN", "--overwrite"),
    ],
)
def test_a_run_that_another_command_writes_is_left_alone(
    run: Path, said: Callable[..., str], arguments: tuple[str, ...]
) -> None:
    before = content(run)
    with RunFolder.open(run):
        message = said(*[str(run) if argument == "RUN" else argument for argument in arguments])
    assert "is being written by" in message
    assert content(run) == before


OPTIONS = ("--overwrite", "--max_epochs", "1", *SMALL)


def test_files_of_the_user_in_the_folders_of_a_run_stay(run: Path, trained: Path) -> None:
    plots = run / "plots"
    plots.mkdir(exist_ok=True)
    assert main(["sample", str(run), "--num", "2", "-o", str(plots / "mine.png")]) == 0
    shutil.copytree(trained, plots / "inner")  # by an earlier version
    for name in ("plots/notes.txt", "checkpoints/notes.txt", "tensorboard/notes.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (plots / "gaps.png").write_text("of the run")
    mine = {
        name: data
        for name, data in content(run).items()
        if name.startswith(("plots/inner", "plots/mine")) or "notes" in name
    }
    assert main(["train", "--run_dir", str(run), *OPTIONS]) == 0
    assert mine.items() <= content(run).items()
    assert not (plots / "gaps.png").exists()
    assert main(["train", "--resume", str(run), "--max_epochs", "2", "--quiet"]) == 0
    assert main(["em", "--run_dir", str(run), "--overwrite", "--max_iterations", "2"]) == 0
    assert mine.items() <= content(run).items()


def test_no_run_is_made_in_the_folders_of_another(
    run: Path, trained: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    before = content(run)
    for inside in ("plots/inner", "checkpoints", "tensorboard/a/b", ".ppl_vae-new/x"):
        words = f"of the run {run}, which `--overwrite` replaces: choose a folder outside of it"
        assert words in said("train", "--run_dir", run / inside, *SMALL)
        assert words in said("em", "--run_dir", run / inside, "--quiet")
        assert words in said("refit", trained, "--run_dir", run / inside, "--quiet")
        with pytest.raises(FileExistsError, match="choose a folder outside of it"):
            fit(VAE((4,), 2), MeanField((4,), 2), torch.rand(8, 4), run_dir=run / inside)
        (tmp_path / "link").symlink_to(run)
        assert "outside" in said("train", "--run_dir", tmp_path / "link" / inside, *SMALL)
        (tmp_path / "link").unlink()
    assert content(run) == before
    (tmp_path / "plots").mkdir()  # of no run
    options = ("--max_epochs", "1", *SMALL)
    assert main(["train", "--run_dir", str(tmp_path / "plots" / "run"), *options]) == 0


# -- refitted --------------------------------------------------------------------------------------------


def test_a_run_is_not_refitted_into_itself(
    run: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(run)
    for target in (str(run), f"{run}/../run"):
        message = said("refit", run, "--run_dir", target, "--overwrite", "--quiet", code=2)
        assert "is the run whose model is kept, and would be lost" in message
    assert content(run) == before


def test_no_run_is_refitted_into_one_around_it_or_inside(
    run: Path, trained: Path, said: Callable[..., str]
) -> None:
    for inside in ("plots/inner", "inner"):
        shutil.copytree(trained, run / inside)
        before = content(run)
        message = said("refit", run / inside, "--run_dir", run, *OPTIONS[:3], code=2)
        assert f"--run_dir {run} holds {run / inside}, the run whose model is kept" in message
        message = said("refit", run, "--run_dir", run / inside, "--overwrite", code=2)
        assert (
            f"--run_dir {run / inside} is inside of {run}, the run whose model is kept" in message
        )
        assert content(run) == before


@pytest.mark.parametrize(
    "epoch", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_an_interrupted_refit_goes_on(
    run: Path, tmp_path: Path, interrupted: Callable[..., None], epoch: int
) -> None:
    options = ("--max_epochs", "3", "--guide", "FullCovariance", "--quiet")
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main(["refit", str(run), "--run_dir", str(whole), *options]) == 0
    interrupted(epoch, "refit", run, "--run_dir", part, *options)
    shutil.rmtree(run)  # the refit holds its model itself
    assert main(["refit", "--resume", str(part), "--quiet"]) == 0
    assert same_weights(whole, part)
    assert (whole / "evaluation.csv").read_bytes() == (part / "evaluation.csv").read_bytes()


def test_a_finished_refit_without_checkpoints_is_not_resumed(
    run: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    done = tmp_path / "done"
    assert main(["refit", str(run), "--run_dir", str(done), "--max_epochs", "1", "--quiet"]) == 0
    shutil.rmtree(done / "checkpoints")
    before = content(done)
    assert "nothing to continue" in said("refit", "--resume", done, "--quiet", code=2)
    assert content(done) == before


@pytest.mark.parametrize(
    "lacking",
    [
        "device",
        pytest.param("seed", marks=pytest.mark.slow),
        pytest.param("num_samples", marks=pytest.mark.slow),
        pytest.param("refit_of", marks=pytest.mark.slow),
    ],
)
def test_a_configuration_that_lacks_an_option_is_completed(run: Path, lacking: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config.pop(lacking, None)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--resume", str(run), "--max_epochs", "3", "--quiet"]) == 0


def test_refit_needs_one_run(run: Path, said: Callable[..., str]) -> None:
    assert "RUN is missing" in said("refit", code=2)
    assert "name the RUN" in said("refit", run, "--resume", run, code=2)


# -- what only looks like a run ------------------------------------------------------------------------------


def test_the_configuration_of_another_program_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 5}\n")
    (tmp_path / "metrics.csv").write_text("a,b\n")
    with pytest.raises(FileExistsError, match=r"is not a run folder .*no config\.yaml of ppl_vae"):
        RunFolder.new(tmp_path, overwrite=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()} == {
        "config.yaml": "trainer: {max_epochs: 5}\n",
        "metrics.csv": "a,b\n",
    }


def test_hidden_files_of_the_users_stay(tmp_path: Path) -> None:
    names = (".draft.writing.txt", ".a.writing-ideas", ".b.01ab23cd.writing.txt.bak")
    for folder in (tmp_path, tmp_path / "plots"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text("mine")
        (folder / ".c.01ab23cd.writing.d").mkdir()
        (folder / ".metrics.01ab23cd-1-89ef0123.writing.csv").write_text("half")
    with RunFolder.open(tmp_path):
        pass
    for folder in (tmp_path, tmp_path / "plots"):
        assert {*names, ".c.01ab23cd.writing.d"} <= {entry.name for entry in folder.iterdir()}
        assert not (folder / ".metrics.01ab23cd-1-89ef0123.writing.csv").exists()


@pytest.mark.parametrize("name", ["annealed.json", "checkpoints", "posterior.nc", ".ppl_vae-new"])
def test_a_run_is_not_put_where_another_keeps_its_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("versions: {ppl_vae: 1}\n")
    with pytest.raises(FileExistsError, match=f"is in place of {re.escape(name)} of the run"):
        RunFolder.new(tmp_path / name / "inner")


def test_no_output_replaces_a_link_of_a_run_or_a_file_of_fit_alone(tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-000000002.safetensors").write_text("")
    store.write_text("")
    (run / "weights.safetensors").symlink_to(store)
    for name in ("weights.safetensors", "metrics.csv", "checkpoints/step-000000002.safetensors"):
        assert is_of_a_run(run / name)
    assert not is_of_a_run(run / "mine.nc")
    assert not is_of_a_run(store)
