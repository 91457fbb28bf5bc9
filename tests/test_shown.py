"""What is shown of the texts in a run folder, and what counts as typed (docs/security.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import (
    MODEL,
    SIZES,
    change,
    is_untouched,
    part,
    promise,
    run as run,
    trained as trained,
)
from PIL import Image

from ppl_vae.cli import main
from ppl_vae.cli.output import say, show
from ppl_vae.runs import load_run
from ppl_vae.runtime import CorruptFileError, read_tensors, write_tensors

CONTROLS = "\x1b]0;title\x07\x1b[2J\r\b\x9b1m\u202e\u2028\u200b"
"""Sets the title of a terminal, clears it, goes back in the line, writes from right to left."""


def plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def a_name_of_weights(run: Path) -> None:
    tensors, metadata = read_tensors(run / "weights.safetensors")
    write_tensors(run / "weights.safetensors", {**tensors, f"w{CONTROLS}": torch.ones(1)}, metadata)


def a_link(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    (run / "weights.safetensors").symlink_to(f"/nowhere{CONTROLS}")


def a_picture(run: Path) -> None:
    Image.new("L", (8, 8)).save(run / "a.png")
    (run / f"b{CONTROLS}.png").write_bytes(b"no picture")
    change(run, data=f"folder:{run}")


def an_array(run: Path) -> None:
    arrays: Any = {f"x{CONTROLS}": np.zeros((3, 2))}
    np.savez(run / "x.npz", **arrays)
    change(run, data=str(run / "x.npz"))


@promise(19)
@pytest.mark.parametrize(
    "attack",
    [
        lambda run: change(run, data=f"folder:{CONTROLS}"),
        lambda run: change(run, data=CONTROLS),
        lambda run: change(run, data="MNIST", download=False, data_dir=CONTROLS),
        lambda run: change(run, seed=CONTROLS),
        lambda run: change(run, model=part(CONTROLS)),
        lambda run: change(run, model={**MODEL, "init_args": {CONTROLS: "os.system"}}),
        a_name_of_weights,
        a_link,
        a_picture,
        an_array,
    ],
)
def test_a_terminal_gets_no_commands(
    attack: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack(run)
    assert main(["evaluate", str(run)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("ppl-vae: error: ")
    assert plain(said.err + said.out)


@promise(19)
def test_results_are_shown_without_commands(capsys: pytest.CaptureFixture[str]) -> None:
    show(f"one\n\ttwo{CONTROLS} ± ü ß 漢")
    say(f"one\n\ttwo{CONTROLS} ± ü ß 漢")
    said = capsys.readouterr()
    expected = r"two\x1b]0;title\x07\x1b[2J\r\x08\x9b1m\u202e\u2028\u200b ± ü ß 漢"
    assert said.out == said.err == f"one\n\t{expected}\n"


@promise(19)
@pytest.mark.parametrize(
    "name",
    ["x\nnothing is wrong.y", f"x{CONTROLS}.y", "x; touch marker #.y", "x y", ".", "a..b", ""],
)
def test_a_constraint_has_a_name_that_can_be_shown(name: str, run: Path) -> None:
    """It would be a line of the question, or a part of the command that the question says to type."""
    file = run / "weights.safetensors"
    state = {**read_tensors(file)[0], "param.a": torch.zeros(2)}
    write_tensors(file, state, {"constraints": {"a": part(name)}})
    with pytest.raises(CorruptFileError, match="is not the constraint of a parameter") as caught:
        load_run(run)
    assert plain(str(caught.value))


@promise(19)
def test_a_command_to_be_typed_is_no_other_one(run: Path) -> None:
    """It names the command that made the run, as config.yaml says, and the run's folder."""
    for maker, is_one in (("train; touch marker #", False), ("refit", True)):
        change(run, made_by=maker, data="digits")
        (run / "plots").mkdir(exist_ok=True)
        (run / "plots" / "khat.png").write_bytes(b"weights_sha256" + b"0" * 64)
        elsewhere = run.rename(run.with_name("a run; touch marker"))
        with pytest.warns(UserWarning, match="belongs to other weights") as told:
            load_run(elsewhere)
        known = "refit" if is_one else "train"
        assert f"`ppl-vae {known} --resume '{elsewhere}'` makes it again" in str(told[0].message)
        elsewhere.rename(run)


@promise(19)
def test_the_question_cannot_be_forged(run: Path) -> None:
    long = "k" * 3000
    arguments = {
        "a\nAll is well. ": "os.system",
        long: "os.remove",
        "b": "t\u043erch.nn.Linear",  # a letter of another alphabet
    }
    change(run, model=part("ppl_vae.models.VAE", **SIZES, **arguments))
    with pytest.raises(ValueError, match="names code from outside") as caught:
        load_run(run)
    message = str(caught.value)
    assert r"model.a\nAll is well. : os.system (module os)" in message
    assert "os.remove (module os)" in message
    assert r"'t\u043erch.nn.Linear'" in message
    assert len(message.splitlines()) == 3
    assert len(message) < 2000


@promise(10)
@pytest.mark.parametrize("name", ["--trust", "--trust_packages=planted", "--overwrite", "-ox.png"])
def test_a_file_is_no_option(
    name: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shell puts the names of all files in the place of `*`: `ppl-vae compare *`."""
    shutil.copytree(trained, tmp_path / "run")
    change(tmp_path / "run", model=part("subprocess.Popen", args="touch marker", shell=True))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *sorted(os.listdir())]) == 2
    assert f"{name} would be an option, but a file of this name" in capsys.readouterr().err
    assert is_untouched(tmp_path / "marker")
    assert main(["compare", *(f"./{file}" for file in sorted(os.listdir()))]) == 1
    assert is_untouched(tmp_path / "marker")
