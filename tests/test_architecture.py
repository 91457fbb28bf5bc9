"""Imports run downwards, from floor to floor (docs/architecture.md draws the floors); a name is one thing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"_version", "_moved", "colors", "runtime"},
    {"coding", "stats", "data", "networks", "distributions", "pairs"},
    {"codes", "likelihoods", "objectives", "runs", "guides"},
    {"checks", "capture", "models", "sweeps"},
    {"training", "em", "evaluation"},
    {"coloring", "compression", "diagnosis", "rate_distortion", "tasks"},
    {"plots"},
    {"reporting"},
    {"", "cli"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
OF_PROGRAMS = {"_moved", "codes", "networks", "distributions", "likelihoods", "pairs"}
"""What models and guides may use."""


def imports(file: Path) -> Iterator[tuple[str, str, str]]:
    """The room of a file, the room that it imports from, and the name."""
    place = file.relative_to(ROOT).with_suffix("").parts
    place = place if place[0] == "ppl_vae" else ("ppl_vae", *place)
    room = "" if place[1] == "__init__" else place[1]
    for node in ast.walk(ast.parse(file.read_text())):
        full: list[str] = []
        if isinstance(node, ast.ImportFrom):
            above = [*place[: len(place) - node.level]] if node.level else []
            full = [".".join([*above, node.module or "", n.name]) for n in node.names]
        elif isinstance(node, ast.Import):
            full = [name.name for name in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            full = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
        for name in full:
            parts = name.replace("..", ".").split(".")
            if parts[0] == "ppl_vae":
                of_a_room = len(parts) > 2 or parts[-1] in FLOOR  # else of the package's own face
                yield room, parts[1] if of_a_room else "", ".".join(parts[2:] or parts[1:])


FILES = [
    path
    for folder in ("ppl_vae", "models", "guides")
    for path in sorted((ROOT / folder).rglob("*.py*"))
    if path.suffix in (".py", ".pyi")
]


FOLDERS = sorted({file.parent for file in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(folder: Path) -> None:
    for file in (file for file in FILES if file.parent == folder):
        require_downwards(file)


def require_downwards(file: Path) -> None:
    for room, other, name in imports(file):
        if room == other:
            continue
        where = f"{file.relative_to(ROOT)}: "
        assert {room, other} <= FLOOR.keys(), (
            f"{where}{room} or {other} is missing among the floors"
        )
        assert FLOOR[other] < FLOOR[room], f"{where}{room} must not import {name} from {other}"
        private = name.startswith("_") and not name.startswith("__")
        assert not private, f"{where}{name} is private to {other}"
        assert "." not in name, f"{where}{room} must import {name} from the face of {other}"
        if room in ("models", "guides"):
            assert other in OF_PROGRAMS, f"{where}{room} must not import {name} from {other}"


@pytest.mark.parametrize(
    ("place", "statement", "told"),
    [
        (
            "ppl_vae/stats/planted.py",
            "from ppl_vae.training import fit",
            "stats must not import fit",
        ),
        ("ppl_vae/stats/planted.py", "import ppl_vae.training", "stats must not import training"),
        ("ppl_vae/stats/planted.py", "from ..training import fit", "stats must not import fit"),
        ("ppl_vae/stats/planted.py", "from ppl_vae import fit", "stats must not import fit"),
        ("ppl_vae/new/planted.py", "from ppl_vae.pairs import Pair", "new or pairs is missing"),
        (
            "ppl_vae/stats/planted.py",
            "import_module('ppl_vae.training')",
            "must not import training",
        ),
        ("ppl_vae/stats/__init__.pyi", "from ..training import fit as fit", "must not import fit"),
        ("ppl_vae/__init__.pyi", "from .cli import main as main", " must not import main from cli"),
        ("ppl_vae/em/planted.py", "from ppl_vae.training import fit", "em must not import fit"),
        ("ppl_vae/em/planted.py", "from ppl_vae.pairs import _x", "_x is private to pairs"),
        ("ppl_vae/em/planted.py", "from ppl_vae.pairs.pair import Pair", "from the face of pairs"),
        ("models/planted.py", "from ppl_vae.objectives import ELBO", "models must not import ELBO"),
        ("guides/__init__.pyi", "from ppl_vae.runtime import say", "guides must not import say"),
    ],
)
def test_a_planted_import_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, statement: str, told: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    planted = tmp_path / place
    planted.parent.mkdir(parents=True)
    planted.write_text(statement)
    with pytest.raises(AssertionError, match=told):
        require_downwards(planted)


def test_every_room_stands_on_a_floor() -> None:
    inside = {path.stem for path in (ROOT / "ppl_vae").glob("[!_]*") if path.suffix in ("", ".py")}
    assert inside == FLOOR.keys() - {"", "_version", "_moved", "__main__"}


def test_no_two_classes_share_a_name() -> None:
    """An error, a saved run and the command line name a class: the name alone has to tell which."""
    places = defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file.relative_to(ROOT).as_posix())
    assert not {name: files for name, files in places.items() if len(files) > 1}


FACES = [
    path
    for folder in ("ppl_vae", "models", "guides")
    for path in sorted((ROOT / folder).rglob("__init__.pyi"))
]


def test_every_room_is_an_attribute_of_the_package() -> None:
    """As `import ppl_vae; ppl_vae.objectives.ELBO()` has always been written."""
    rooms = FLOOR.keys() - {"", "cli", "_version", "_moved", "__main__"}
    code = "import sys, ppl_vae; [getattr(ppl_vae, room) for room in sys.argv[1:]]; "
    code += "ppl_vae.models.priors.MixturePrior; ppl_vae.objectives.ELBO()"
    subprocess.run([sys.executable, "-c", code, *rooms], check=True, cwd=ROOT)


@pytest.mark.parametrize("file", FACES, ids=lambda file: file.relative_to(ROOT).parent.as_posix())
def test_every_name_on_a_face_is_one_thing(file: Path) -> None:
    folder = file.parent
    package = ".".join(folder.relative_to(ROOT).parts)
    package = package if package.startswith("ppl_vae") else f"ppl_vae.{package}"
    face = importlib.import_module(package)
    statements = ast.parse(file.read_text()).body
    imported = [node for node in statements if isinstance(node, ast.ImportFrom)]
    packages = {name.name for node in imported if not node.module for name in node.names}
    listed = {name.name for node in imported if node.module for name in node.names}
    assert set(face.__all__) == listed | packages
    for name in listed | packages:
        getattr(face, name)
    submodules = {path.stem for path in folder.iterdir() if path.suffix == ".py"}
    submodules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert packages <= submodules
    assert not listed & submodules, "lazy_loader would give the one or the other"
