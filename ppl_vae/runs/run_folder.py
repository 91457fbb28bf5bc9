"""`RunFolder`: a run folder that is being written, by this process alone, without losing what was there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ppl_vae.runs.contents import (
    BESIDE,
    CHECKPOINTS,
    CONFIG,
    METRICS,
    OF_A_RUN,
    OF_PICTURES,
    SWEPT,
    WEIGHTS,
    discard,
    has_checkpoints,
    holds_others,
    parts,
    require_movable,
)
from ppl_vae.runs.folder import write_config
from ppl_vae.runs.location import (
    HIDDEN,
    STAGED,
    clear,
    finish_own_swap,
    finish_swap,
    is_in_doubt,
    is_of_ours,
    require_no_swap,
    require_outside_of_runs,
    require_room_for_files,
    require_settled,
    swap,
)
from ppl_vae.runs.lock import Lock, LockedError
from ppl_vae.runtime import (
    DiskFullError,
    as_folder,
    described,
    full_disk_explained,
    is_temporary,
    own_folder,
    remove_left_behind,
)

_Kind = Literal["open", "new", "staged"]
"""What was in the folder stays, there was nothing, or what is written beside it will take its place."""


class RunFolder:
    """A run folder that is being written.

    It is locked: a second process that wants to write there is refused. A run that is to replace another is
    written into a hidden folder inside, until `begin` says that it is good; then it takes the other's place. If
    the block ends with an error before that, the folder is as it was.

    Attributes:
        folder: The run folder, for messages.
        path: Where files are to be written now: `folder`, or the hidden folder. It changes with `begin`.
            Reading it raises a `LockedError` if `folder` was moved, removed or replaced: another run may be
            there by now.
        config: The content of config.yaml, or None.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp()) / "run"
        >>> with RunFolder.new(where, {"seed": 1}) as run:
        ...     run.begin()
        >>> with RunFolder.new(where, {"seed": 2}, overwrite=True) as run:
        ...     (where / "config.yaml").read_text().splitlines()[0], run.path == where
        ...     run.begin()
        ...     (where / "config.yaml").read_text().splitlines()[0], run.path == where
        ('seed: 1', False)
        ('seed: 2', True)
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self._path = folder
        self.config = config
        self._begun = False
        self._open = True
        self._kind: _Kind = "open"
        self._made = [p for p in (folder, *folder.parents) if not p.exists()]
        self._lock: Lock | None = None
        try:
            _make(folder)
            self._lock = Lock(folder)
            self._clean()
        except BaseException:
            self._let_go(failed=True)
            raise

    @classmethod
    def new(
        cls, path: str | Path, config: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> Self:
        """Begins a run in a folder that is empty or, with `overwrite`, holds a run.

        Args:
            path: The folder; it is made, with its parents.
            config: The content of config.yaml.
            overwrite: Whether a run that is there may be replaced.

        Raises:
            TypeError: `path` is no path, or `config` no dict.
            ValueError: `path` is empty.
            FileExistsError: There is a run and `overwrite` is False, or something that is not a run.
            LockedError: Another process writes there.
        """
        path = _as_path(path)
        _require_config(config)
        require_free(path, overwrite=overwrite)
        opened: Self | None = None
        try:
            opened = cls(path, config)
            require_free(path, overwrite=overwrite)  # another process may have been faster
            if parts(path):
                require_no_swap(path)
                opened._kind = "staged"
                opened._path = own_folder(path / STAGED)
                require_movable(path, opened._path)
            else:
                opened._kind = "new"
            if config is not None:
                write_config(opened.path, config)
            return opened
        except BaseException:
            if opened is not None:
                opened._close(failed=True)
            raise

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any] | None = None) -> Self:
        """Goes on writing into a folder, which is made if it is not there.

        Args:
            path: The folder.
            config: The content of config.yaml from `begin` on; None leaves that file alone.

        Raises:
            LockedError: Another process writes there.
        """
        _require_config(config)
        return cls(_as_path(path), config)

    @classmethod
    @contextmanager
    def of_fit(
        cls, run_dir: str | Path | RunFolder | None, *, resume: bool, writes: bool = True
    ) -> Iterator[RunFolder | None]:
        """The folder of a fit that writes checkpoints and metrics, and nothing else; None without one.

        Args:
            run_dir: The folder, which is made if it is not there; or one that is open, and stays so.
            resume: Whether a fit that was there goes on.
            writes: Whether this process is the one that writes; the others only read.

        Raises:
            ValueError: There is nothing to resume, or the block of an open folder has ended.
            FileExistsError: An earlier fit was there, and it is not to be resumed.
            LockedError: Another process writes there.
        """
        if run_dir is None:
            if resume:
                raise ValueError("resume=True needs the run_dir to continue")
            yield None
            return
        path = run_dir.path if isinstance(run_dir, RunFolder) else as_folder(run_dir, "run_dir")
        if isinstance(run_dir, RunFolder) and not run_dir._open:
            raise ValueError(
                f"the RunFolder of {run_dir.folder} is closed: use it inside of `with RunFolder...:`"
            )
        if writes and not resume:
            _require_no_training(path)
            if not isinstance(run_dir, RunFolder):
                require_outside_of_runs(path)
                _require_no_run(path)
        if isinstance(run_dir, RunFolder):
            yield run_dir
            return
        with cls.open(path) if writes else cls.of_other_process(path) as opened:
            yield opened

    @classmethod
    def of_other_process(cls, path: Path) -> Self:
        """The folder for a process that only reads there: of a training with several, all but the first."""
        opened = cls.__new__(cls)
        opened.folder = opened._path = path
        opened.config = None
        opened._kind, opened._begun, opened._open = "open", True, True
        opened._made, opened._lock = [], None
        return opened

    @property
    def path(self) -> Path:
        """Where files are to be written now."""
        if self._open and not self._is_there():
            raise LockedError(
                f"{self.folder} is no longer the folder that was being written: it was moved, removed or "
                "replaced, or the current folder is another. Nothing more is written; a training goes on "
                "from its checkpoints, where they are now"
            )
        return self._path

    def _is_there(self) -> bool:
        return self._lock is None or self._lock.is_of(self.folder)

    @property
    def keeps(self) -> bool:
        """Whether what has been written stays, even if the block ends with an error."""
        return self._path == self.folder

    def begin(self) -> None:
        """Says that what has been written is good: it takes the place of what was there."""
        if self._begun:
            return
        if self.path != self.folder:
            require_no_swap(self.folder)
            swap(self.folder)
            self._path = self.folder
        elif self._kind == "open" and self.config is not None:
            write_config(self.folder, self.config)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(failed=kind is not None)

    def _close(self, failed: bool) -> None:
        try:
            if failed and not self._begun:
                self._undo()
        finally:
            self._open = False
            self._let_go(failed)

    def _undo(self) -> None:
        """Leaves what was there before, or the new run if it is about to be there."""
        if not self._is_there():  # what is there now is not ours
            return
        if finish_own_swap(self.folder) == "forward":  # interrupted amid a swap, as late as that
            self._path = self.folder
        if self._kind == "staged" and not is_in_doubt(self.folder):
            clear(self.folder)  # after a swap, there is nothing
        elif self._kind == "new" and not has_checkpoints(self.folder):
            # The configuration goes last: as long as it is there, what is left is known to be of a run.
            discard(self.folder, reversed(OF_A_RUN))

    def _let_go(self, failed: bool) -> None:
        if self._lock is not None:
            self._lock.release()
        if failed:
            self._remove_made()

    def _clean(self) -> None:
        """Finishes or removes what a killed process has left."""
        finish_own_swap(self.folder)
        require_settled(self.folder)
        clear(self.folder)
        for name in ("", CHECKPOINTS, *OF_PICTURES):
            if not (self.folder / name).is_symlink():
                remove_left_behind(self.folder / name)

    def _remove_made(self) -> None:
        """Removes the folders that this object has made, as far as they are empty."""
        for made in self._made:
            try:
                made.rmdir()
            except FileNotFoundError:  # it was not made
                continue
            except OSError:
                return


def _make(folder: Path) -> None:
    """Makes a folder with its parents, if it is not there."""
    try:
        with full_disk_explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{folder} cannot be made: there is a file in its path; choose another folder"
        ) from error
    except DiskFullError:
        raise
    except OSError as error:
        raise type(error)(
            f"{folder} cannot be made ({error.strerror}); choose another folder"
        ) from error


def _as_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be the path of a folder, got {described(path)}")
    if os.fspath(path) == "":
        raise ValueError("path is empty: give the path of a folder")
    return Path(path)


def _require_config(config: object) -> None:
    if not (config is None or isinstance(config, Mapping)):
        raise TypeError(f"config must be a dict, got {described(config)}")


def _require_no_training(path: Path) -> None:
    for name, content in ((CHECKPOINTS, "checkpoints"), (METRICS, "the metrics")):
        found = path / name
        if found.is_file() or any(found.glob("step-*")):
            raise FileExistsError(
                f"{found} holds {content} of an earlier training: continue it with resume=True, or choose "
                "another run_dir"
            )


def _require_no_run(path: Path) -> None:
    """Raises an error if there is a run, with whose weights and results the checkpoints would be mixed."""
    if is_of_ours(path):
        raise FileExistsError(
            f"{path} holds a run: the checkpoints and metrics would be those of other weights; choose another "
            "run_dir"
        )


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raises an error unless a new run may be written into a folder, which is left as it is.

    Raises:
        FileExistsError: There is a run at `path` and `overwrite` is False, or something that is not a run; or
            `path` is in a folder of another run, or holds folders with the names of a run's files.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; a run needs a folder of its own")
    require_outside_of_runs(path)
    if not path.exists():
        return
    finish_swap(path)
    others = {entry.name for entry in path.iterdir() if not is_temporary(entry.name)} - {*HIDDEN}
    if SWEPT in others:
        others -= {*BESIDE}
    is_run = (path / CONFIG).is_file() and is_of_ours(path)
    if others and not is_run and not _is_left(path, others):
        raise FileExistsError(
            f"{path} is not a run folder (it holds something else, and no {CONFIG} of ppl_vae): nothing was "
            "changed; choose another folder"
        )
    if others and not overwrite:
        raise FileExistsError(
            f"there is a run in {path} already: choose another folder, or replace it with overwrite=True "
            "(--overwrite on the command line)"
        )
    if others:
        require_room_for_files(path)


def _is_left(path: Path, names: set[str]) -> bool:
    """Whether a folder without a configuration holds what `fit` has written, or what is left of a run."""
    if names - {*OF_A_RUN}:
        return False
    return has_checkpoints(path) or ((path / WEIGHTS).is_file() and not holds_others(path))
