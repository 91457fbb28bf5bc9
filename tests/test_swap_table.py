"""Every combination of what an interrupted swap may leave in a run folder, copies and tidying included.

Whoever reads such a folder, writes into it or replaces its run loses no file of a run, unless a whole run is
there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from ppl_vae.runs import RunFolder, config_file
from ppl_vae.runs.location import STAGED, finish_swap

LEAVING, REPLACED = ".ppl_vae-old", ".ppl_vae-replaced"

STEP = "checkpoints/step-000000007.safetensors"

Files = tuple[str, ...]

WHOLE: Files = ("config.yaml", "weights.safetensors", "metrics.csv", "plots/khat.png")
BY_FIT: Files = (STEP, "metrics.csv")

BESIDE: Mapping[str, Files] = {
    "nothing": (),
    "rest": ("weights.safetensors", "metrics.csv"),
    "results": ("evaluation.json",),
    "configuration": ("config.yaml",),
    "whole": WHOLE,
    "by fit": BY_FIT,
    "whole and mine": (*WHOLE, "notes.txt", "plots/mine.png", "plots/inner/config.yaml"),
}
IN_HIDDEN: Mapping[str, Files | None] = {
    "absent": None,
    "empty": (),
    "whole": WHOLE,
    "configuration": ("config.yaml",),
    "rest": ("weights.safetensors", "metrics.csv"),
    "results": ("evaluation.json", "plots/khat.png"),
    "by fit": BY_FIT,
    "foreign": ("thesis.tex",),
    "whole and foreign": (*WHOLE, "thesis.tex"),
}

MAIN = ("absent", "empty", "whole", "rest", "whole and foreign")
"""The kinds of which every combination is tried in each run of the tests."""


def fill(folder: Path, place: str, files: Files | None) -> None:
    """Writes files whose content says where they were."""
    if files is not None:
        (folder / place).mkdir(exist_ok=True, parents=True)
        for name in files:
            (folder / place / name).parent.mkdir(exist_ok=True)
            (folder / place / name).write_text(f"{place}/{name}")


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


def is_of_user(text: str) -> bool:
    return text.endswith(("thesis.tex", "notes.txt", "mine.png", "inner/config.yaml"))


def is_whole(names: Collection[str]) -> bool:
    return {"config.yaml", "weights.safetensors"} <= {*names} or STEP in names


def require_kept(before: Mapping[str, str], after: Mapping[str, str], what: str) -> None:
    """Nothing of the user's is lost, and of a run only where a whole one is; what is half staged is none."""
    lost = {*before.values()} - {*after.values()}
    assert not {text for text in lost if is_of_user(text)}, what
    staged = {name.partition("/")[2] for name in before if name.startswith(STAGED)}
    if "config.yaml" in before or not ("config.yaml" in staged and is_whole(staged)):
        lost = {text for text in lost if not text.startswith(STAGED)}
    if lost:
        assert is_whole({name for name in after if not name.startswith(".ppl_vae")}), (
            f"{what}: {sorted(lost)}"
        )


def readers(folder: Path) -> None:
    for _ in range(2):
        finish_swap(folder)
        with contextlib.suppress(FileNotFoundError):
            config_file(folder)


def writers(folder: Path) -> None:
    with contextlib.suppress(FileExistsError), RunFolder.open(folder):
        pass


def failing(folder: Path) -> None:
    with (
        contextlib.suppress(FileExistsError, RuntimeError),
        RunFolder.new(folder, {"seed": 2}, overwrite=True),
    ):
        raise RuntimeError


@pytest.mark.slow(but=("configuration-kinds0", "whole and mine-kinds0"))
@pytest.mark.parametrize("kinds", [MAIN, pytest.param((*IN_HIDDEN,), marks=pytest.mark.slow)])
@pytest.mark.parametrize("beside", BESIDE)
def test_no_combination_loses_the_files_of_a_run(
    beside: str, kinds: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.runs.location._WAIT", 0)
    for number, (staged, leaving, replaced) in enumerate(itertools.product(kinds, repeat=3)):
        folder = tmp_path / str(number)
        fill(tmp_path, str(number), ())
        for place, kind in (
            (STAGED, IN_HIDDEN[staged]),
            (LEAVING, IN_HIDDEN[leaving]),
            (REPLACED, IN_HIDDEN[replaced]),
        ):
            fill(folder, place, kind)
        for name in BESIDE[beside]:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(f"beside/{name}")
        what = f"beside {beside}, staged {staged}, leaving {leaving}, replaced {replaced}"
        before = content(folder)
        for work in (readers, writers, failing, readers):
            work(folder)
            after = content(folder)
            require_kept(before, after, f"{what}, {work.__name__}")
            before = after


@pytest.mark.parametrize(
    ("beside", "staged", "leaving", "replaced", "found"),
    [
        # An empty folder is nothing, and what is staged beside a run had not begun.
        ("whole", "absent", "empty", "absent", "beside"),
        ("whole", "absent", "absent", "empty", "beside"),
        ("whole", "empty", "empty", "empty", "beside"),
        ("whole", "whole", "empty", "absent", "beside"),
        ("whole", "whole", "absent", "absent", "beside"),
        ("by fit", "whole", "absent", "absent", "beside"),
        # The old run was leaving: the new one is there, or the old one comes back.
        ("results", "whole", "whole", "absent", STAGED),
        ("results", "absent", "whole", "absent", LEAVING),
        ("results", "empty", "whole", "empty", LEAVING),
        ("results", "rest", "whole", "absent", LEAVING),
        ("nothing", "absent", "by fit", "absent", LEAVING),
        # It had left.
        ("nothing", "whole", "absent", "whole", STAGED),
        ("nothing", "whole", "empty", "by fit", STAGED),
        ("nothing", "absent", "absent", "whole", REPLACED),
        ("results", "absent", "absent", "whole", REPLACED),
        ("rest", "results", "absent", "whole", REPLACED),
        ("nothing", "empty", "absent", "by fit", REPLACED),
        ("whole", "absent", "absent", "whole", "beside"),
        ("whole", "absent", "absent", "rest", "beside"),
        ("whole and mine", "empty", "empty", "results", "beside"),
    ],
)
def test_what_an_interrupted_swap_leaves_is_one_run(
    beside: str, staged: str, leaving: str, replaced: str, found: str, tmp_path: Path
) -> None:
    """Nothing of another run is among it, and after the next command that writes nothing hidden is left."""
    for name in BESIDE[beside]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"beside/{name}")
    for place, kind in ((STAGED, staged), (LEAVING, leaving), (REPLACED, replaced)):
        fill(tmp_path, place, IN_HIDDEN[kind])
    finish_swap(tmp_path)
    with RunFolder.open(tmp_path):
        pass
    after = content(tmp_path)
    origins = {text.partition("/")[0] for text in after.values()}
    united = (
        {found, "beside"} if leaving not in ("absent", "empty") and found == LEAVING else {found}
    )
    assert origins == united if beside != "nothing" else origins == {found}
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("beside", "staged", "leaving", "replaced", "words"),
    [
        ("nothing", "whole", "whole and foreign", "absent", "move away what else is in there"),
        ("rest", "whole", "whole and foreign", "absent", "move away what else is in there"),
        ("nothing", "whole", "absent", "absent", "new, where a command was interrupted"),
        ("results", "whole", "absent", "absent", "new, where a command was interrupted"),
        ("nothing", "absent", "whole", "whole", "old and .*replaced, where a command was"),
        ("whole", "whole", "absent", "whole", "replaced and .*new, where a command was"),
        ("whole", "absent", "whole", "absent", "old, where a command was interrupted"),
    ],
)
def test_where_runs_cannot_be_told_apart_nothing_is_changed(
    beside: str, staged: str, leaving: str, replaced: str, words: str, tmp_path: Path
) -> None:
    for name in BESIDE[beside]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"beside/{name}")
    for place, kind in ((STAGED, staged), (LEAVING, leaving), (REPLACED, replaced)):
        fill(tmp_path, place, IN_HIDDEN[kind])
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=words):
        RunFolder.open(tmp_path)
    if beside == "whole":
        config_file(tmp_path)
    else:
        with pytest.raises(FileNotFoundError, match=words):
            config_file(tmp_path)
    assert content(tmp_path) == before
