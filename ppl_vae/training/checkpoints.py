"""The whole state of a training on disk, so that a killed run continues as if nothing had happened."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ppl_vae.runtime import (
    CorruptFileError,
    flatten,
    read_tensors,
    unflatten,
    write_tensors,
)

KEPT = 2
"""Checkpoints kept in a run folder: the newest and, should it turn out damaged, the one before."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes ``step-N.safetensors`` atomically, then removes all but the newest ones.

    Args:
        folder: The run's ``checkpoints`` folder.
        step: Optimiser steps taken.
        state: Nested dicts and lists of tensors and numbers.
        facts: JSON-able information.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat, tensors = flatten(state)
    write_tensors(_file(folder, step), tensors, {"facts": facts, "state": flat})
    for old in checkpoint_files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    for left_behind in folder.glob(".step-*.tmp"):  # by a process that was killed while writing
        left_behind.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest good checkpoint, as ``(state, facts)``; a damaged one is named in a warning and passed over.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CorruptFileError: Every checkpoint is damaged.
    """
    files = checkpoint_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder}: there is no checkpoint to resume from; start the training anew"
        )
    errors: list[CorruptFileError] = []
    for file in files:
        try:
            tensors, metadata = read_tensors(file)
        except CorruptFileError as error:
            errors.append(error)
            continue
        for passed_over in errors:
            warnings.warn(f"{passed_over}; continuing from {file.name} instead", stacklevel=2)
        return unflatten(metadata["state"], tensors), metadata["facts"]
    why = str(errors[0]).removeprefix(f"{errors[0].path}: ")
    raise CorruptFileError(
        errors[0].path,
        f"{why}; no other checkpoint in the folder is good: start the training anew",
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"
