"""What is no plain file in a run folder or among data (docs/security.md): links, pipes, folders in the way."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from attacks import change, promise, run as run, sets as sets, trained as trained
from forked import in_time

from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.runs import LockedError, RunFolder, load_run
from ppl_vae.runtime import (
    CorruptFileError,
    append_text,
    own_folder,
    remove,
    replacing,
    write_bytes,
)

# -- links -----------------------------------------------------------------------------------------------


@promise(16)
def test_nothing_is_written_or_removed_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (tmp_path / "to_folder").symlink_to(precious)
    (tmp_path / "to_file").symlink_to(precious / "file")
    with pytest.raises(NotADirectoryError, match="nothing is written through links"):
        own_folder(tmp_path / "to_folder")
    with pytest.raises(OSError, match="symbolic link"):
        append_text(tmp_path / "to_file", "theirs")
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    with replacing(tmp_path / "new") as temporary:
        pass
    temporary.symlink_to(precious / "file")  # by somebody who knows the name
    with pytest.raises(FileExistsError), replacing(tmp_path / "new") as file:
        file.write_text("theirs")
    write_bytes(tmp_path / "to_file", b"theirs")
    remove(tmp_path / "to_folder")
    assert {p.name: p.read_text() for p in precious.iterdir()} == {"file": "mine"}


@promise(16)
@pytest.mark.parametrize("state", [".ppl_vae-replaced", ".ppl_vae-old", None])
@pytest.mark.parametrize("linked", [".ppl_vae-new", ".ppl_vae-old", ".ppl_vae-replaced"])
def test_a_link_in_the_place_of_a_hidden_folder_leads_nowhere(
    run: Path, tmp_path: Path, state: str | None, linked: str
) -> None:
    """What finishes an interrupted swap moved all that a link to a folder led to."""
    if linked == state:
        return
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("config.yaml", "id_rsa", "weights.safetensors"):
        (precious / name).write_text("mine")
    (run / linked).symlink_to(precious)
    if state is not None:
        (run / state).mkdir()
    with contextlib.suppress(OSError, ValueError):
        load_run(run)
    with contextlib.suppress(OSError, ValueError, LockedError), RunFolder.open(run):
        pass
    assert {path.name: path.read_text() for path in precious.iterdir()} == {
        "config.yaml": "mine",
        "id_rsa": "mine",
        "weights.safetensors": "mine",
    }


@promise(16)
@pytest.mark.parametrize("name", [".ppl_vae-old", ".ppl_vae-replaced"])
def test_a_folder_of_the_users_is_not_taken_for_a_swap(
    name: str, trained: Path, tmp_path: Path
) -> None:
    """`refit_of` may name any folder; what finishes a swap there removed it and the files beside it."""
    project = tmp_path / "project"
    (project / name).mkdir(parents=True)
    (project / name / "thesis.tex").write_text("mine")
    (project / "config.yaml").write_text("a: 1")
    bad = tmp_path / "bad"
    shutil.copytree(trained, bad)
    change(bad, refit_of=str(project), made_by="refit")
    assert main(["refit", "--resume", str(bad)]) == 1
    with contextlib.suppress(ValueError):
        load_run(project)
    with pytest.raises(
        FileExistsError,
        match=r"is in the way of the run that would be replaced|is not a run folder",
    ):
        RunFolder.new(project, {"seed": 1}, overwrite=True)
    for other in (".ppl_vae-old", ".ppl_vae-replaced"):  # an empty one beside it changes nothing
        (project / other).mkdir(exist_ok=True)
    with contextlib.suppress(ValueError):
        load_run(project)
    assert (project / name / "thesis.tex").read_text() == "mine"
    assert (project / "config.yaml").read_text() == "a: 1"
    (project / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="move away what else is in there"):
        load_run(project)


@promise(16)
@pytest.mark.parametrize("link", [os.link, os.symlink])
@in_time
def test_a_lock_with_another_name_is_not_written(link: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    link(tmp_path / "precious", run / ".ppl_vae-lock")
    with pytest.raises(LockedError, match="remove it"):
        RunFolder.open(run)
    assert (tmp_path / "precious").read_text() == "mine"


@promise(16)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MNIST", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("EMNIST", "EMNIST/raw/gzip.zip"),
        ("CIFAR10", "cifar-10-python.tar.gz"),
        ("SVHN", "train_32x32.mat"),
    ],
)
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_downloaded_through_a_link(
    link: Any, name: str, place: str, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    def download(_: str, file: str) -> None:
        Path(file).write_text("theirs")

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(utils, "_urlretrieve", download)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    link(precious, tmp_path / place)
    with pytest.raises(ValueError, match=r"is not downloaded, because .* is a link"):
        load_data(name, data_dir=tmp_path)
    assert precious.read_text() == "mine"
    (tmp_path / place).unlink()
    with pytest.raises(ConnectionError, match="corrupted"):  # what was downloaded is not the set
        load_data(name, data_dir=tmp_path)


# -- pipes -----------------------------------------------------------------------------------------------


@promise(12)
@in_time
def test_a_pipe_is_not_waited_for(run: Path, tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz", "x.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="is a pipe or a device"):
            load_data(str(tmp_path / name))


@promise(12)
@pytest.mark.filterwarnings("ignore:.*metrics.csv is missing")
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "weights.safetensors", "metrics.csv", "evaluation.json", ".ppl_vae-lock"],
)
@in_time
def test_a_pipe_in_a_run_is_not_waited_for(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    if name == ".ppl_vae-lock":
        with pytest.raises(LockedError, match="no file of a lock alone: remove it"):
            RunFolder.open(run)
    elif name in ("config.yaml", "weights.safetensors"):
        with pytest.raises((FileNotFoundError, CorruptFileError), match=re.escape(name)):
            load_run(run)
    else:
        found = load_run(run)
        assert (found.history, found.evaluation) == ([], None)


@promise(12)
@in_time
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(run: Path) -> None:
    (run / "evaluation.json").write_text('{"table_sha256": "0"}')
    os.mkfifo(run / "evaluation.csv")
    with pytest.raises(CorruptFileError, match=r"evaluation\.csv: it is missing"):
        load_run(run)
