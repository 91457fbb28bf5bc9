"""The folder of a sweep: a copy of its description, and one run folder for each run. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ppl_vae.runs import DIAGNOSIS, ERROR, EVALUATION, SWEPT, WEIGHTS, Lock, LockedError
from ppl_vae.runtime import CorruptFileError, load_json, read_text, write_bytes
from ppl_vae.sweeps.spec import SpecError, SweepRun, SweepSpec, differences, identity, read_spec

SPEC = "sweep.yaml"
"""The copy of the description in a sweep's folder."""

TABLE = "sweep.csv"

State = Literal["missing", "interrupted", "failed", "done"]
"""Of a run: not begun, begun and not ended, ended with an error, ended well."""

_MOST_RECORD = 2**20
_RESULTS = (WEIGHTS, EVALUATION, DIAGNOSIS)


class SweepFolder:
    """The folder of a sweep.

    Args:
        path: The folder.
        runs: The runs of the sweep.
        lenient: Whether a run whose folder is damaged, or holds something else, counts as missing, and `unread`
            says why: for those who look at a sweep. Who runs it may lose something.

    Attributes:
        path: The folder.
        folders: The folder of each run, by its identity: that of its name, or another one with the same
            options, as a description that has changed may name runs otherwise.
        unread: Why some runs count as missing.

    Raises:
        SpecError: The folder holds something else, or a run of other options under the name of one.
        CorruptFileError: What the sweep has noted of a run is damaged.
    """

    def __init__(self, path: Path, runs: Sequence[SweepRun], *, lenient: bool = False) -> None:
        self.path = path
        self.unread: list[str] = []
        self._lost: set[Path] = set()
        there: dict[Path, dict[str, Any]] = {}
        for folder in _begun(path):
            try:
                there[folder] = read_record(folder) or {}
            except (OSError, CorruptFileError) as error:
                self._lose(folder, error, lenient)
        by_options = {identity(record["options"]): folder for folder, record in there.items()}
        self.folders: dict[str, Path] = {}
        for run in runs:
            own = path / run.name
            other = by_options.get(run.identity)
            if other is None and own in there:
                differ = ", ".join(differences(there[own]["options"], run.options))
                said = (
                    f"{own} is a run of other options: {differ}; nothing was changed: choose another "
                    "--sweep_dir, or remove that run"
                )
                self._lose(own, SpecError(said), lenient)
            elif other is None and own not in self._lost and _holds_something(own):
                said = f"{own} is not of this sweep: move it away, or choose another --sweep_dir"
                self._lose(own, SpecError(said), lenient)
            self.folders[run.identity] = other or own

    def _lose(self, folder: Path, error: Exception, lenient: bool) -> None:
        """Counts the run in a folder as missing.

        Raises:
            Exception: The error, if the sweep is not only looked at.
        """
        if not lenient:
            raise error
        self._lost.add(folder)
        self.unread.append(str(error))

    @classmethod
    @contextmanager
    def opened(cls, path: Path, spec: SweepSpec) -> Iterator[SweepFolder]:
        """The folder, made and locked, with a copy of the description.

        Raises:
            SpecError: It holds another sweep, or something else.
            LockedError: The sweep is being run by another process.
        """
        require_same_sweep(path, spec)
        folder = cls(path, spec.runs())
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(path)
        except LockedError as error:
            raise LockedError(f"the sweep is running already: {error}") from error
        try:
            write_bytes(path / SPEC, spec.text.encode())
            yield folder
        finally:
            lock.release()

    def of(self, run: SweepRun) -> Path:
        """The folder of a run."""
        return self.folders[run.identity]

    def state(self, run: SweepRun) -> State:
        """How far a run is."""
        folder = self.of(run)
        return "missing" if folder in self._lost else state_of(folder)

    def note_failure(self, run: SweepRun, error: str) -> None:
        """Notes why a run failed, if its worker could not do so itself."""
        folder = self.of(run)
        if self.state(run) in ("failed", "done"):
            return
        folder.mkdir(exist_ok=True)
        write_bytes(folder / ERROR, f"{error}\n".encode())
        write_record(folder, run.options, "failed", self.seconds(run))

    def error(self, run: SweepRun) -> str:
        """Why a run failed, in a line; empty if that is not known."""
        file = self.of(run) / ERROR
        try:
            lines = read_text(file, _MOST_RECORD).splitlines()
        except (OSError, ValueError):
            return ""
        return lines[0] if lines else ""

    def seconds(self, run: SweepRun) -> float:
        """How long a run took, in all its attempts that ended or were stopped."""
        record = read_record(self.of(run)) or {}
        return float(record.get("seconds", 0.0))


def require_same_sweep(path: Path, spec: SweepSpec) -> None:
    """Raises an error if a folder holds something else than this sweep, perhaps with other points.

    Raises:
        SpecError: It does.
        NotADirectoryError: It is a file.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"{path} is a file, and a sweep needs a folder: choose a --sweep_dir"
        )
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / SPEC).is_file():
        raise SpecError(
            f"{path} is not the folder of a sweep (it holds something else, and no {SPEC}): nothing was "
            "changed; choose another --sweep_dir"
        )
    before = read_spec(path / SPEC)
    both = before.base.keys() & spec.base.keys()
    differ = differences({n: before.base[n] for n in both}, {n: spec.base[n] for n in both})
    if differ:
        raise SpecError(
            f"{path} holds another sweep, whose base is another: {', '.join(differ)}; nothing was changed: "
            "choose another --sweep_dir"
        )


def state_of(folder: Path) -> State:
    """How far the run in a folder is: what was done and has lost its results is to be done again."""
    record = read_record(folder)
    if record is None:
        return "missing"
    if record.get("state") == "done" and all((folder / name).is_file() for name in _RESULTS):
        return "done"
    return "failed" if record.get("state") == "failed" else "interrupted"


def read_record(folder: Path) -> dict[str, Any] | None:
    """What the sweep has noted of a run; None if it has not begun.

    Raises:
        CorruptFileError: The file is damaged.
    """
    file = folder / SWEPT
    if not file.is_file():
        return None
    try:
        record = load_json(read_text(file, _MOST_RECORD))
        if not isinstance(record.get("options"), dict):
            raise ValueError("it names no options")
        float(record.get("seconds", 0.0))
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptFileError(
            file, f"this is not what a sweep notes of a run ({error}); remove {folder}"
        ) from error
    return record


def write_record(
    folder: Path, options: Mapping[str, Any], state: str, seconds: float, **more: Any
) -> None:
    """Notes how far a run is."""
    record = {"options": dict(options), "state": state, "seconds": round(seconds, 3), **more}
    write_bytes(folder / SWEPT, (json.dumps(record, indent=1) + "\n").encode())


def _begun(path: Path) -> list[Path]:
    """The folders of runs that a sweep has begun."""
    return [file.parent for file in sorted(path.glob(f"*/{SWEPT}")) if file.is_file()]


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
