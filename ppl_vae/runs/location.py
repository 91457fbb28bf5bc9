"""Where a run is, and how a new one takes the place of an old one. Without torch."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

from ppl_vae.runs.contents import (
    CHECKPOINTS,
    CONFIG,
    OF_A_RUN,
    OF_PICTURES,
    WEIGHTS,
    discard,
    files,
    has_checkpoints,
    in_the_way,
    is_folder,
    is_own_picture,
    is_run,
    move,
    parts,
    remove_empty,
)
from ppl_vae.runs.lock import LOCK, Lock, LockedError
from ppl_vae.runtime import MOST_YAML, TILDE, is_temporary, own_folder, remove

STAGED = ".ppl_vae-new"
"""Folder inside of a run folder: a run that is to take the place of the one that is there."""

_WAIT = 500
"""How often a reader looks whether a swap has ended."""

_LEAVING = ".ppl_vae-old"
_REPLACED = ".ppl_vae-replaced"

HIDDEN = (LOCK, STAGED, _LEAVING, _REPLACED)
"""What a killed process may have left in a run folder."""

Swap = Literal["none", "forward", "back", "in doubt"]
"""What is to be done about a swap that has not ended: nothing, its end, or the way back."""


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
    seen_still = 0
    for _ in range(_WAIT):  # another process puts a run in the place of this one
        # Twice: a folder that is renamed while one looks may be seen nowhere.
        seen_still = 0 if is_swapping(path) else seen_still + 1
        if file.is_file() or seen_still == 2:
            break
        time.sleep(0.01)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a run: it holds no {CONFIG}{_stopped(path) or '; check the path'}"
        )
    return file


def is_of_a_run(file: Path) -> bool:
    """Whether a file is one of a run: its configuration, weights, results, checkpoints, pictures.

    Case does not count, as on some disks.
    """
    as_named = file.parent.resolve() / file.name  # a link in a run is one of its files, too
    return any(
        inside.name.casefold() in (*OF_A_RUN, *HIDDEN)
        and (inside.name.casefold() not in OF_PICTURES or _is_picture(path, inside))
        and _holds_a_run(folder)
        for path in (as_named, file.resolve())
        for inside, folder in pairwise([path, *path.parents])
    )


def _is_picture(path: Path, plots: Path) -> bool:
    """Whether a path is a picture that a run has in this folder, or stands in the place of the folder."""
    return path == plots or (path.parent == plots and is_own_picture(path.name.casefold()))


def run_around(file: Path) -> Path | None:
    """The innermost run folder that a file is in, or would be in; None if there is none."""
    folders = file.parent.resolve() / file.name
    return next((folder for folder in folders.parents if _holds_a_run(folder)), None)


def require_outside_of_runs(path: Path) -> None:
    """Raises an error if a folder for a run is one of the folders of another run, or inside of one.

    Raises:
        FileExistsError: It is; the message names that run.
    """
    folders = [path.resolve(), *path.resolve().parents]
    for inside, folder in pairwise(folders):
        if inside.name in (*OF_A_RUN, *HIDDEN) and _holds_a_run(folder):
            raise FileExistsError(
                f"{path} is in place of {inside.name} of the run {folder}, which `--overwrite` replaces: "
                "choose a folder outside of it"
            )


def _holds_a_run(folder: Path) -> bool:
    return _is_config(folder / CONFIG) or has_checkpoints(folder)


def is_of_ours(folder: Path) -> bool:
    """Whether what looks like a run is one: other programs write a config.yaml, too."""
    return _holds_a_run(folder) or (folder / WEIGHTS).is_file()


def _is_config(file: Path) -> bool:
    """Whether a configuration file is that of a run, which names the version that wrote it."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return b"ppl_vae" in stream.read(MOST_YAML)


def swap(path: Path) -> None:
    """Puts the staged run in the place of the one that is there.

    A process may be killed at any moment: what is there says how far it came (`_state`). While the old run
    leaves, its files are in `_LEAVING`, and those beside are old too; once all of them have left, that folder
    is `_REPLACED`, and those beside are new. The configuration leaves first and arrives last: where there is
    one, the run beside is whole. Whoever made the folder may have put a link there: what it points to is not
    touched.
    """
    staged, leaving, replaced = path / STAGED, path / _LEAVING, path / _REPLACED
    if not _inside(replaced):
        remove_empty(replaced)
        own_folder(leaving)
        for name in parts(path):
            move(name, path, leaving)
        leaving.rename(replaced)
    if is_folder(staged):
        for name in reversed(parts(staged)):
            move(name, staged, path)
    clear(path)
    discard(replaced)


def _roll_back(path: Path) -> None:
    """Puts the old run back in its place; what has come of a new one without configuration is staged again."""
    leaving, replaced = path / _LEAVING, path / _REPLACED
    if _inside(replaced):
        for name in parts(path):
            move(name, path, own_folder(path / STAGED))
        remove_empty(leaving)
        replaced.rename(leaving)
    for name in reversed(parts(leaving)):
        move(name, leaving, path)
    remove_empty(leaving)


def _state(path: Path) -> Swap:
    """What the hidden folders of a run folder tell of a swap.

    While the old run leaves, both ways are open: it comes back unless the new one is whole. Once it has left,
    the new one arrives unless a part of it is lost. Folders are copied and tidied, so that one of the hidden
    ones may be missing: where no run would be whole, or two cannot be told apart, nothing is done.
    """
    replaced, leaving = (
        _inside(path / _REPLACED),
        _inside(path / _LEAVING),
    )  # against their order in `swap`
    if not (replaced | leaving) & {*OF_A_RUN}:  # empty, or not ours
        return "none"
    if (replaced and leaving) or (replaced | leaving) - {*OF_A_RUN}:
        return "in doubt"
    beside = {*parts(path)}
    staged = {*parts(path / STAGED)} if is_folder(path / STAGED) else set()
    if leaving:
        in_the_way = os.path.lexists(path / _REPLACED) and not is_folder(path / _REPLACED)
        if in_the_way or files(path) & files(path / _LEAVING):
            return "in doubt"
        arrives = CONFIG in staged and _is_whole(staged) and CONFIG not in beside
        return "forward" if arrives else "back"
    if staged and files(path) & files(path / STAGED):
        return "in doubt"
    new = staged | beside
    if _is_whole(new) and (CONFIG in new or CONFIG not in replaced):
        return "forward"
    return "back" if _is_whole(replaced) and CONFIG not in new else "in doubt"


def _is_whole(names: set[str]) -> bool:
    """Whether there is enough for a run: checkpoints, which `fit` writes alone, or a pair."""
    return CHECKPOINTS in names or {CONFIG, WEIGHTS} <= names


def _inside(folder: Path) -> set[str]:
    """What is in a hidden folder; nothing if it is none, has just gone, or may not be read."""
    try:
        return {*os.listdir(folder)} if is_folder(folder) else set()
    except OSError:
        return set()


def finish_swap(path: Path) -> None:
    """Finishes a swap in whose midst a process was killed, or takes it back."""
    if not is_swapping(path):
        return
    lock: Lock | None = None
    try:
        lock = Lock(path)
        finish_own_swap(path)
    except LockedError:  # it is in progress
        return
    finally:
        if lock is not None:
            lock.release()


def finish_own_swap(path: Path) -> Swap:
    """The same in a folder that this process has locked; says what was to be done."""
    found = _state(path)
    if found == "forward":
        swap(path)
    elif found == "back":
        _roll_back(path)
    return found


def clear(path: Path) -> None:
    """Removes a staged run and hidden folders that are empty, and no other file that somebody has put there."""
    for folder in (path / _LEAVING, path / _REPLACED):
        remove_empty(folder)
    staged = path / STAGED
    if not is_folder(staged):
        remove(staged)  # a link, not what it points to
        return
    for name in os.listdir(staged):
        if is_temporary(name):
            remove(staged / name)
    discard(staged)


def require_no_swap(path: Path) -> None:
    """Raises an error if something else stands where a swap would put the old run, or the new one.

    Raises:
        FileExistsError: The one would be removed, too, and the other cannot be replaced.
    """
    for folder in (path / _LEAVING, path / _REPLACED):
        remove_empty(folder)
        if os.path.lexists(folder):
            raise FileExistsError(
                f"{folder} is in the way of the run that would be replaced: nothing was changed; rename it"
            )
    require_room_for_files(path)


def require_room_for_files(path: Path) -> None:
    """Raises an error if a folder stands where a run has a file: it is the user's, and cannot be replaced."""
    for folder in in_the_way(path):
        raise FileExistsError(
            f"{folder} is a folder, where a run has a file: nothing was changed; rename it"
        )


def require_settled(path: Path) -> None:
    """Raises an error if there is no telling which of the files in a folder are those of its run.

    Raises:
        FileExistsError: A swap was interrupted, and its folders were changed since.
    """
    if is_in_doubt(path) or (not is_run(path) and _holds_staged_run(path)):
        raise FileExistsError(f"nothing was changed in {path}{_stopped(path)}")


def is_swapping(path: Path) -> bool:
    """Whether a swap has begun and can be ended, or taken back."""
    return _state(path) in ("forward", "back")


def is_in_doubt(path: Path) -> bool:
    """Whether a swap has begun, and there is no telling how far it came."""
    return _state(path) == "in doubt"


def _holds_staged_run(path: Path) -> bool:
    return is_folder(path / STAGED) and os.path.lexists(path / STAGED / CONFIG)


def _stopped(path: Path) -> str:
    """Why a swap that was interrupted cannot be finished; empty if there is none."""
    hidden = {folder: _inside(folder) for folder in (path / _LEAVING, path / _REPLACED)}
    for folder, names in hidden.items():
        if names - {*OF_A_RUN}:
            return (
                f"; a run that was being replaced is in {folder}: move away what else is in there"
            )
    left = [folder for folder, names in hidden.items() if names]
    if _holds_staged_run(path) and (left or not is_run(path)):
        left.append(path / STAGED)
    if not left:
        return ""
    return (
        f"; files of a run are in {' and '.join(map(str, left))}, where a command was interrupted that was to "
        f"replace one: move those of the run that you want to keep to {path}, and remove the rest"
    )
