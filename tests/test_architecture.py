"""Imports run downwards, from floor to floor; docs/architecture.md draws the floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"_version", "_moved", "runtime", "stats", "data", "networks", "distributions", "pairs"},
    {"likelihoods", "objectives", "runs", "guides"},
    {"checks", "capture", "models"},
    {"training", "em", "evaluation", "diagnosis"},
    {"plots", ""},
    {"cli"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
OF_PROGRAMS = {
    "networks",
    "distributions",
    "likelihoods",
    "pairs",
}  # what models and guides may use


def imports(file: Path) -> Iterator[tuple[str, str, str]]:
    """The room of a file, the room that it imports from, and the name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    room = parts[1] if parts[0] == "ppl_vae" and len(parts) > 1 else parts[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppl_vae"):
            for name in node.names:
                full = f"{node.module}.{name.name}".split(".")
                yield ("" if room == "__init__" else room), full[1], name.name


FILES = [
    path
    for folder in ("ppl_vae", "models", "guides")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_run_downwards(file: Path) -> None:
    for room, other, name in imports(file):
        if room == other:
            continue
        assert FLOOR[other] < FLOOR[room], f"{room} must not import {name} from {other}"
        private = name.startswith("_") and not name.startswith("__")
        assert not private, f"{name} is private to {other}"
        if room in ("models", "guides"):
            assert other in OF_PROGRAMS, f"{room} must not import {name} from {other}"
