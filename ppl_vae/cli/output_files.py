"""The files that a user has named for what a command writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ppl_vae.cli.mistakes import UsageError, shortened
from ppl_vae.cli.setup import data_paths
from ppl_vae.runs import is_of_a_run
from ppl_vae.runtime import require_file, require_output


def output_file(
    options: Namespace, default: Path | None = None, kinds: Collection[str] = ()
) -> Path:
    """The file that a command writes, if it may be written.

    Args:
        options: The options of the command.
        default: The file if none is named.
        kinds: How its name may end; empty: in any way.

    Raises:
        UsageError: Its name ends in another way, or it belongs to a run.
        OSError: There is something that is not to be replaced, or no folder.
    """
    output = default if options.output is None else Path(options.output)
    assert output is not None
    require_file(output)
    if kinds and output.suffix.lower() not in kinds:
        ends = ", ".join(kinds)
        raise UsageError(
            f"--output {shortened(str(output))}: expected a name that ends with {ends}"
        )
    own = default is not None and output.resolve() == default.resolve()
    if not own and is_of_a_run(output):
        raise UsageError(
            f"--output {output} belongs to a run, and would be lost: choose another name"
        )
    require_output(output, overwrite=options.overwrite)
    return output


def require_no_data(output: Path, config: Mapping[str, Any]) -> None:
    """Raises an error if an output would be one of the data, or a picture among them.

    Raises:
        UsageError: It would.
    """
    for data in data_paths(config):
        if data in (output.resolve(), *output.resolve().parents):
            raise UsageError(
                f"--output {output} is {'in ' if data.is_dir() else ''}the data of the run ({config['data']}), "
                "which would be other data then: choose another name"
            )


def require_not_read(
    option: str, outputs: Iterable[Path], read: Mapping[str, str | Path | int]
) -> None:
    """Raises an error if an output is one of the files that a command reads, by whatever name.

    Args:
        option: The option that says where they are written.
        outputs: What is written.
        read: What is read, by what it is called: paths, or numbers of open files.

    Raises:
        UsageError: It is one.
    """
    inputs = {_identity(file): name for name, file in read.items()}
    inputs.pop(None, None)
    for output in outputs:
        if name := inputs.get(_identity(output)):
            same = "" if name == str(output) else f"the same file as {name}, which is "
            raise UsageError(
                f"{option}: {output} is {same}read and would be lost: choose another {option}"
            )


def _identity(file: str | Path | int) -> tuple[int, int] | None:
    """What all names of a file have in common; None if it is not there, so that it cannot be lost."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # or no path
        return None
    return found.st_dev, found.st_ino
