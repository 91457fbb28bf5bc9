"""What a run holds, by name, and how that is moved and removed. What else is in its folder is the user's."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ppl_vae.runtime import is_temporary, own_folder, remove

CONFIG = "config.yaml"
WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.json"
METRICS = "metrics.csv"
FIT = "fit.json"
EVALUATION = "evaluation.json"
DIAGNOSIS = "diagnosis.json"
ANNEALED = "annealed.json"
GAPS = "gaps.json"
PROBE = "probe.json"
COLORS = "colors.json"
POSTERIOR = "posterior.nc"
PLOTS, PLOTS_DARK = "plots", "plots_dark"
"""Pictures, and the same on dark paper, which a report shows in the dark."""

REPORT = "report.html"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

SAMPLES = "samples.png"
"""Where `ppl-vae sample` draws if no other file is named. It stays if the run is replaced."""

SWEPT = "sweep.json"
"""What a sweep knows of a run that it has started: options, state, seconds."""

LOG, ERROR = "log.txt", "error.txt"
"""What a run of a sweep has printed, and why it failed."""

BESIDE = (SWEPT, LOG, ERROR)
"""What a sweep writes into the folder of a run. It stays if the run is replaced."""

OF_A_RUN = (
    *(
        CONFIG,
        CHECKPOINTS,
        WEIGHTS,
        VOCABULARY,
        METRICS,
        FIT,
        EVALUATION,
        DIAGNOSIS,
        ANNEALED,
        GAPS,
    ),
    *(POSTERIOR, COLORS, "colors.csv", PROBE, "probe.csv"),
    *(REPORT, PLOTS, PLOTS_DARK, TENSORBOARD, "evaluation.csv", "annealed.csv", "gaps.csv"),
)
"""All that a run may hold, in the order in which it leaves: without the first there is no run."""

_PICTURES = (
    *("aggregate_posterior.png", "codes.png", "colorings.png", "components.png", "gaps.png"),
    *("interpolations.png", "khat.png", "kl_per_dimension.png", "learning_curve.png"),
    *("learning_curves.png", "manifold.png", "prior_samples.png", "reconstructions.png"),
    *("traversals.png", "worst_reconstructions.png"),
)

_OWN = {
    PLOTS: _PICTURES,
    PLOTS_DARK: (*_PICTURES, SAMPLES),
    CHECKPOINTS: ("step-*.safetensors",),
    TENSORBOARD: ("events.out.tfevents.*",),
}
"""The folders of a run, and the files that are written there; what else is in them is the user's."""

FOLDERS = tuple(_OWN)

OF_PICTURES = (PLOTS, PLOTS_DARK)
"""Those of them that hold pictures."""


def is_folder(path: Path) -> bool:
    """Whether there is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def parts(folder: Path) -> list[str]:
    """The names of `OF_A_RUN` under which something of a run is there, in that order.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "plots").mkdir()
        >>> _ = (folder / "plots" / "mine.png").write_text("")
        >>> _ = (folder / "metrics.csv").write_text("")
        >>> (folder / "gaps.csv").mkdir()
        >>> parts(folder)
        ['metrics.csv']
    """
    return [name for name in OF_A_RUN if _is_there(folder, name)]


def files(folder: Path) -> set[str]:
    """The same, with the run's own files in its folders one by one."""
    found: set[str] = set()
    for name in parts(folder):
        inside = name in _OWN and is_folder(folder / name)
        found |= {f"{name}/{entry}" for entry in _own(folder / name)} if inside else {name}
    return found


def is_own_picture(name: str) -> bool:
    """Whether a run has a picture of this name in its `plots`."""
    return name in _PICTURES


def pictures(folder: Path) -> list[str]:
    """The run's own pictures that are there, as `plots/NAME`."""
    named = [f"{part}/{name}" for part in OF_PICTURES for name in _OWN[part]]
    return [name for name in named if (folder / name).is_file()]


def has_checkpoints(folder: Path) -> bool:
    """Whether there are checkpoints, which `fit` also writes into a folder without a configuration."""
    return any((folder / CHECKPOINTS).glob("step-*.safetensors"))


def is_run(folder: Path) -> bool:
    """Whether there is a run, or what `fit` alone has written."""
    return os.path.lexists(folder / CONFIG) or has_checkpoints(folder)


def holds_others(folder: Path) -> bool:
    """Whether there are files in the folders of a run that are not the run's."""
    return any(_others(folder / name) for name in FOLDERS if is_folder(folder / name))


def in_the_way(folder: Path) -> list[Path]:
    """Folders of the user's where a run has a file of that name."""
    return [folder / name for name in OF_A_RUN if name not in _OWN and is_folder(folder / name)]


def move(name: str, source: Path, target: Path) -> None:
    """Moves one of the `parts` of a run into another folder on the same disk.

    Of a folder only the run's own files move, if it holds others, if there is one already, or if it cannot be
    renamed: a folder of a container's image cannot, though its files can.
    """
    here, there = source / name, target / name
    if name not in _OWN or not is_folder(here):
        os.replace(here, there)
        return
    if not _others(here) and not os.path.lexists(there):
        try:
            here.rename(there)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return
    own_folder(there)
    for entry in _own(here):
        if not is_folder(there / entry):
            os.replace(here / entry, there / entry)
    remove_empty(here)


def require_movable(folder: Path, target: Path) -> None:
    """Raises an error if files in the folders of a run cannot be moved to another folder: tries it with one.

    Raises:
        FileExistsError: One of the folders is a disk of its own.
        OSError: One of them may not be written, say.
    """
    for name in FOLDERS:
        if not is_folder(folder / name):
            continue
        probe = f".probe.{secrets.token_hex(4)}.writing"
        try:
            os.close(os.open(folder / name / probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(folder / name / probe, target / probe)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise FileExistsError(
                f"{folder / name} is on a disk of its own, so that the run there cannot be replaced: nothing "
                "was changed; choose another folder"
            ) from error
        finally:
            for place in (folder / name, target):
                (place / probe).unlink(missing_ok=True)


def discard(folder: Path, names: Iterable[str] = OF_A_RUN) -> None:
    """Removes a run's files in this order, then the folder, if nothing else is in it."""
    for name in names:
        part = folder / name
        if name in _OWN and is_folder(part):
            for entry in _own(part):
                remove(part / entry)
            remove_empty(part)
        elif not is_folder(part):
            remove(part)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Removes a folder if nothing is in it."""
    if is_folder(folder) and not os.listdir(folder):
        folder.rmdir()


def _is_there(folder: Path, name: str) -> bool:
    part = folder / name
    if name in _OWN and is_folder(part):
        return bool(_own(part)) or not _others(part)
    return os.path.lexists(part) and not is_folder(part)


def _own(part: Path) -> list[str]:
    """The run's own files in one of its folders."""
    return sorted(
        entry
        for entry in os.listdir(part)
        if not is_folder(part / entry)
        and (is_temporary(entry) or any(fnmatchcase(entry, pattern) for pattern in _OWN[part.name]))
    )


def _others(part: Path) -> list[str]:
    return sorted({*os.listdir(part)} - {*_own(part)})
