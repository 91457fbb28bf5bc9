"""Pairs that a script has trained, kept in folders; what was made with other settings is not taken for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ppl_vae import load_run, save_run
from ppl_vae.codes import VectorQuantizer
from ppl_vae.runtime import described


def kept(folder: Path, made_of: str) -> tuple[Any, Any] | None:
    """The pair in a folder; None if there is none.

    Args:
        folder: The folder.
        made_of: What it has to be made of.

    Raises:
        ValueError: It is made of something else.
    """
    if not folder.exists():
        return None
    run = load_run(folder, results=False)
    found = run.config.get("made_of")
    if found != made_of:
        raise ValueError(
            f"{folder} is of other settings: made of {described(found)}, but asked for is {made_of!r}: choose "
            "another --runs, or delete that folder"
        )
    return run.model, run.guide


def has_begun(folder: Path) -> bool:
    """Whether a training in this folder can go on: not if it was stopped before its first checkpoint."""
    return any((folder / "checkpoints").glob("*"))


def keep(folder: Path, model: Any, guide: Any, made_of: str, **others: Any) -> None:
    """Writes a pair and what it is made of into a folder, with other things that `save_run` takes."""
    save_run(folder, model, guide, config={"made_of": made_of}, **others)


def num_trained(*modules: Any) -> int:
    """Numbers that were trained: parameters, and vectors of codebooks that are running means."""
    parts = [
        part for module in modules if isinstance(module, nn.Module) for part in module.modules()
    ]
    books = [part for part in parts if isinstance(part, VectorQuantizer)]
    inside = {id(p) for book in books for p in book.parameters()}
    vectors = {id(book): book.points() for book in books}
    others = {id(p): p for part in parts for p in part.parameters() if id(p) not in inside}
    return sum(tensor.numel() for tensor in (*vectors.values(), *others.values()))
