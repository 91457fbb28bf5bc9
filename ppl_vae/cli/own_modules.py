"""Modules of the user's own in the current folder, and what may be imported for the sake of a run.

The current folder is on the path only where the user has typed a name from there, or trusts a run that names
one. Otherwise a file in it could stand in for a module that some library looks for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import Namespace

from ppl_vae.cli.known import DEFAULTS, DEFAULTS_OF_PRIORS, load_file
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.runs import ROLES, TYPED, Trust, names_in, read_config


def reach_typed(arguments: Sequence[str]) -> None:
    """Lets the classes be found that the arguments, and the configuration files among them, name."""
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[i + 1 : i + 2])
        if option == "--config":
            _reach(TYPED.names_of(load_file(value)))
        elif option.removeprefix("--").split(".")[0].removesuffix("+") in {
            *ROLES,
            *DEFAULTS,
            *DEFAULTS_OF_PRIORS,
        }:
            _reach(name for *_, name in names_in(value, "part", option))


def trust_of(given: Namespace, run: str | Path) -> Trust:
    """How far the user trusts a run: --trust or --trust_packages.

    Raises:
        UsageError: The packages are no names.
    """
    text = given.get("trust_packages")
    packages = [] if text is None else [name.strip() for name in text.split(",")]
    try:
        trust = Trust.of(bool(given.get("trust")) or packages, run)
    except ValueError as error:
        raise UsageError(f"--trust_packages {text}: {error}") from error
    _reach(packages)
    if trust.everything:
        _reach(trust.names_of(read_config(Path(run))))
    return trust


def _reach(names: Iterable[str]) -> None:
    """Puts the current folder at the end of the path if one of the names is found there alone."""
    folder = os.getcwd()
    for top in {name.partition(".")[0] for name in names}:
        known = top in sys.modules or find_spec(top) is not None
        if not known and folder not in sys.path and PathFinder.find_spec(top, [folder]):
            sys.path.append(folder)
