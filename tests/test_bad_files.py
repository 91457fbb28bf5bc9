"""Paths, files and pictures that are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import (
    Case,
    X,
    fit,
    guide,
    model,
    pair,
    refused,
)
from forked import in_time
from PIL import Image

import ppl_vae
from ppl_vae.data import load_data
from ppl_vae.models import GaussianMixture


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    return tmp_path


FILES: dict[str, Case] = {
    "run_dir empty": (lambda: fit(model, guide, X, run_dir=""), ValueError, ["run_dir is empty"]),
    "run_dir at home": (
        lambda: fit(model, guide, X, run_dir="~/run"),
        ValueError,
        ["run_dir='~/run': ~ is for the shell", "write the path of your home folder"],
    ),
    "run_dir of EM at home": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, run_dir="~me/run"),
        ValueError,
        ["run_dir='~me/run': ~ is for the shell"],
    ),
    "run_dir of 300 characters": (
        lambda: fit(model, guide, X, run_dir="a" * 300),
        ValueError,
        ["run_dir: the name aaaaaaaaaaaaaaaaaaaa... has 300 bytes", "choose a shorter one"],
    ),
    "run_dir of 200 characters of two bytes": (
        lambda: fit(model, guide, X, run_dir="ä" * 200),
        ValueError,
        ["run_dir: the name", "has 400 bytes"],
    ),
    "run_dir where none can be made": (
        lambda: fit(model, guide, X, run_dir="/proc/run"),
        FileNotFoundError,
        ["/proc/run cannot be made (No such file or directory); choose another folder"],
    ),
    "run_dir of bytes": (
        lambda: fit(model, guide, X, run_dir=b"x"),
        TypeError,
        ["run_dir must be a path, got an object of bytes"],
    ),
    "a run at home": (
        lambda: ppl_vae.load_run("~/run"),
        FileNotFoundError,
        ["there is no run folder ~/run: ~ is for the shell"],
    ),
    "a run that is saved at home": (
        lambda: ppl_vae.save_run("~/run", *pair()),
        ValueError,
        ["path='~/run': ~ is for the shell"],
    ),
    "a file of a run": (
        lambda: ppl_vae.load_run("file"),
        NotADirectoryError,
        ["file is a file: give the folder of a run, such as ."],
    ),
    "a run's config of objects": (
        lambda: ppl_vae.save_run("run", *pair(), config={"a": X}),
        TypeError,
        ["config must hold plain values", "got an object of Tensor"],
    ),
    "run_dir a file": (
        lambda: fit(model, guide, X, run_dir="file"),
        NotADirectoryError,
        ["run_dir: file is a file; choose another folder"],
    ),
    "run_dir below a file": (
        lambda: fit(model, guide, X, run_dir="file/run"),
        NotADirectoryError,
        ["run_dir: file is a file, and file/run would be below it"],
    ),
    "run_dir a number": (
        lambda: fit(model, guide, X, run_dir=3),
        TypeError,
        ["run_dir must be a path, got 3"],
    ),
    "a null in a path": (
        lambda: fit(model, guide, X, run_dir="a\0b"),
        ValueError,
        ["run_dir='a\\x00b'", "null character"],
    ),
    "a null in the path of a run": (
        lambda: ppl_vae.save_run("a\0b", *pair()),
        ValueError,
        ["path='a\\x00b'"],
    ),
    "a null in the path of data": (
        lambda: load_data("a\0b.npy"),
        ValueError,
        ["'a\\x00b.npy' is not the path of a file"],
    ),
    "a folder of the name of a file": (
        lambda: load_data("folder.npy"),
        IsADirectoryError,
        ["folder.npy is a folder; expected an array file"],
    ),
    "data of no name": (lambda: load_data(""), ValueError, ["unknown data ''. Known are digits"]),
    "data of a number": (
        lambda: load_data(5),  # type: ignore[call-overload]
        TypeError,
        ["load_data takes the name of data, such as 'digits'", "not 5 of type int"],
    ),
    "data_dir a number": (
        lambda: load_data("digits", data_dir=3),  # type: ignore[call-overload]
        TypeError,
        ["data_dir must be a path, got 3"],
    ),
    "a run of a number": (
        lambda: ppl_vae.load_run(3),  # type: ignore[arg-type]
        TypeError,
        ["load_run takes the path of a run folder, got 3"],
    ),
    "a run's config a word": (
        lambda: ppl_vae.save_run("run", *pair(), config="digits"),  # type: ignore[arg-type]
        TypeError,
        ["config must be a dict, got the string 'digits'"],
    ),
    "a run's fit a dict": (
        lambda: ppl_vae.save_run("run", *pair(), fit={}),  # type: ignore[arg-type]
        TypeError,
        ["fit must be what fit has returned, got an object of dict"],
    ),
    "a run's evaluation a word": (
        lambda: ppl_vae.save_run("run", *pair(), evaluation="good"),  # type: ignore[arg-type]
        TypeError,
        ["evaluation must be a result, or its to_dict(), got the string 'good'"],
    ),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_and_folders_are_named(case: str, here: Path) -> None:
    call, kind, words = FILES[case]
    refused(call, kind, *words)
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.npy"]


def test_a_file_that_may_not_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(here / "x.npy", X)

    def forbid(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbid)
    refused(lambda: load_data("x.npy"), PermissionError, "x.npy may not be read")


@pytest.mark.parametrize("name", ["with space & sign.npy", "ümlaut-数.npy", "a'b.npy", "-x.npy"])
def test_odd_names_are_taken(name: str, here: Path) -> None:
    np.save(here / name, X)
    assert load_data(name).train.shape[1:] == (3,)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, here: Path) -> None:
    """Each of the eight ways in which a camera may be held, against the turns of the EXIF standard."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {  # what is in the file of a picture that is shown as `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    (here / "pictures").mkdir()
    for i in range(6):
        image = Image.fromarray(np.ascontiguousarray(stored if i else upright))
        exif = image.getexif()
        exif[0x0112] = orientation if i else 1
        image.save(here / "pictures" / f"{i}.png", exif=exif)
    found = load_data("folder:pictures")
    rows = torch.cat([found.train, found.validation, found.test])
    assert rows.shape == (6, 1, 2, 3)
    for row in rows:
        np.testing.assert_allclose(row[0].numpy() * 255, upright, atol=1e-3)


@in_time
def test_a_pipe_is_no_array_file(here: Path) -> None:
    """Opening one would wait for ever."""
    os.mkfifo(here / "pipe.npy")
    refused(lambda: load_data("pipe.npy"), ValueError, "pipe.npy is a pipe or a device")
