"""Settings of other libraries: never those that lie in the current folder.

Matplotlib, ArviZ and Numba look there by themselves, before they look at the user's own configuration. In the
folder of another person such a file chooses the programs that they start (`text.usetex`), or is not readable.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_READERS = ("matplotlib", "arviz", "numba")
"""They read their settings when they are imported."""

_OWN = ("MATPLOTLIBRC", "MPLCONFIGDIR", "ARVIZ_DATA", "XDG_CONFIG_HOME")
"""Variables by which a user says where his settings are; relative to the current folder, if he likes."""


@contextmanager
def ignored_here() -> Iterator[None]:
    """Libraries that are imported meanwhile do not read settings from the current folder."""
    finder = _Elsewhere()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Elsewhere(MetaPathFinder):
    """Finds the modules that read settings, and lets them be run from another folder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname) if fullname in _READERS else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_elsewhere(module: types.ModuleType) -> None:
            with _elsewhere():
                run(module)

        spec.loader.exec_module = run_elsewhere  # type: ignore[method-assign]
        return spec


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Makes the folder of this file the current one for a moment."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it has been removed, and holds no settings
        yield
        return
    for name in _OWN:
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(Path(__file__).resolve().parent)
    try:
        yield
    finally:
        os.chdir(here)
