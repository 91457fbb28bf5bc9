"""Where the files of a run are, and how new ones take the place of old ones. Without torch."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

from ppl_vae.runs.lock import LOCK, Lock, LockedError
from ppl_vae.runtime import TILDE, own_folder, remove

CONFIG = "config.yaml"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.csv"
EVALUATION = "evaluation.json"
DIAGNOSIS = "diagnosis.json"
ANNEALED = "annealed.json"
GAPS = "gaps.json"
POSTERIOR = "posterior.nc"
PLOTS = "plots"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

OF_A_RUN = (
    *(CONFIG, WEIGHTS, METRICS, EVALUATION, DIAGNOSIS, ANNEALED, GAPS, POSTERIOR),
    *(PLOTS, CHECKPOINTS, TENSORBOARD, "evaluation.csv", "annealed.csv", "gaps.csv"),
)
"""All that a run may hold. What else is in its folder belongs to the user and stays."""

STAGED = ".ppl_vae-new"
"""Folder inside of a run folder: a run that is to take the place of the one that is there."""

_WAIT = 500
"""How often a reader looks whether a swap has ended."""

_LEAVING = ".ppl_vae-old"
_REPLACED = ".ppl_vae-replaced"

HIDDEN = (LOCK, STAGED, _LEAVING, _REPLACED)
"""What a killed process may have left in a run folder."""


def config_file(path: Path) -> Path:
    """The configuration file of a run folder.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
        NotADirectoryError: It is a file.
    """
    if path.is_file():
        raise NotADirectoryError(
            f"{path} is a file: give the folder of a run, such as {path.parent}"
        )
    if not path.is_dir():
        tilde = path.parts[:1] and path.parts[0].startswith("~")
        remedy = TILDE if tilde else "check the path (`ppl-vae train` makes runs below runs/)"
        raise FileNotFoundError(f"there is no run folder {path}: {remedy}")
    finish_swap(path)
    file = path / CONFIG
    for _ in range(_WAIT):  # another process puts a run in the place of this one
        if file.is_file() or not is_swapping(path):
            break
        time.sleep(0.01)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a run: it holds no {CONFIG}{_stopped(path) or '; check the path'}"
        )
    return file


def is_of_a_run(file: Path) -> bool:
    """Whether a file is one that a run is read from: its configuration, weights, results, checkpoints."""
    folders = [file.resolve(), *file.resolve().parents]
    return any(
        inside.name in OF_A_RUN and inside.name != PLOTS and _is_config(folder / CONFIG)
        for inside, folder in pairwise(folders)
    )


def _is_config(file: Path) -> bool:
    """Whether a configuration file is that of a run, which names the version that wrote it."""
    return file.is_file() and "ppl_vae" in file.read_text("utf-8", errors="replace")


def swap(path: Path) -> None:
    """Puts the staged run in the place of the one that is there.

    A process may be killed at any moment: what is there says how far it came, and calling this again finishes
    it. While the old run leaves, its files are in `_LEAVING`, and those beside are old too; once all of them
    have left, that folder is `_REPLACED`, and those beside are new. Whoever made the folder may have put a link
    there: what it points to is not touched.
    """
    staged, leaving, replaced = path / STAGED, path / _LEAVING, path / _REPLACED
    if not _is_folder(replaced):
        remove(replaced)
        own_folder(leaving)
        for name in OF_A_RUN:
            if os.path.lexists(path / name):
                os.replace(path / name, leaving / name)
        leaving.rename(replaced)
    if _is_folder(staged):
        for name in OF_A_RUN:
            if os.path.lexists(staged / name):
                os.replace(staged / name, path / name)
    remove(staged)
    remove(replaced)


def finish_swap(path: Path) -> None:
    """Finishes a swap in whose midst a process was killed."""
    if not is_swapping(path):
        return
    try:
        lock = Lock(path)
    except LockedError:  # it is in progress
        return
    try:
        if is_swapping(path):
            swap(path)
    finally:
        lock.release()


def require_no_swap(path: Path) -> None:
    """Raises an error if something else stands where a swap would put the old run: it would be removed, too."""
    for folder in (path / _LEAVING, path / _REPLACED):
        if os.path.lexists(folder):
            raise FileExistsError(
                f"{folder} is in the way of the run that would be replaced: nothing was changed; rename it"
            )


def is_swapping(path: Path) -> bool:
    """Whether a swap has begun and not ended: its folder holds files of a run alone, and none of the user's."""
    there = [folder for folder in (path / _LEAVING, path / _REPLACED) if _is_folder(folder)]
    try:
        return bool(there) and all({*os.listdir(folder)} <= {*OF_A_RUN} for folder in there)
    except OSError:  # it has just gone, or may not be read
        return False


def _stopped(path: Path) -> str:
    """Why a swap that was interrupted cannot be finished; empty if there is none."""
    for folder in (path / _LEAVING, path / _REPLACED):
        if _is_folder(folder) and not is_swapping(path):
            return (
                f"; a run that was being replaced is in {folder}: move away what else is in there"
            )
    return ""


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
