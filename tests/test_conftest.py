"""What conftest.py does for a session of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import asks_for, choose_cases, folder_of_bytecode

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ("gpu", True),
        ("gpu and not slow", True),
        ("not slow and gpu", True),
        ("slow or gpu", True),
        ("not (slow or not gpu)", True),
        ("", False),
        ("slow", False),
        ("not gpu", False),
        ("not slow and not gpu", False),
        ("not (slow or gpu)", False),
        ("slow and not(gpu)", False),
        ("gpus", False),
        ("gpu and", False),  # refused by pytest
    ],
)
def test_gpus_are_shown_to_tests_that_ask_for_them(expression: str, asked: bool) -> None:
    assert asks_for("gpu", expression) == asked


class Item(SimpleNamespace):
    """A test of a class that may have marks of its own."""

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [mark for mark in (*self.own_markers, *self.of_class) if mark.name == name]


def items(
    mark: pytest.MarkDecorator, *cases: str, of_class: tuple[pytest.Mark, ...] = ()
) -> list[Any]:
    """What pytest collects of a test with these cases and this mark."""
    return [
        Item(
            nodeid=f"test_a.py::test_b[{case}]",
            callspec=SimpleNamespace(id=case),
            own_markers=[pytest.mark.parametrize("c", []).mark, mark.mark],
            of_class=of_class,
        )
        for case in cases
    ]


@pytest.mark.parametrize(
    ("mark", "slow"),
    [
        (pytest.mark.slow, {"a", "b-1", "c"}),
        (pytest.mark.slow(but=("a", "c")), {"b-1"}),
        (pytest.mark.slow(only=("a", "c")), {"a", "c"}),
    ],
)
def test_a_mark_may_be_for_some_cases(mark: pytest.MarkDecorator, slow: set[str]) -> None:
    found = items(mark, "a", "b-1", "c")
    assert choose_cases(found) == []
    names = {item.callspec.id: [m.name for m in item.own_markers] for item in found}
    assert {case for case, of in names.items() if "slow" in of} == slow
    assert all("parametrize" in of for of in names.values())


@pytest.mark.parametrize("how", ["but", "only"])
def test_cases_that_are_not_there_are_named(how: str) -> None:
    mark = pytest.mark.slow(**{how: ("a", "b[1]")})
    assert choose_cases(items(mark, "a", "b")) == ["test_a.py::test_b[b[1]]"]


def test_cases_are_those_of_one_test() -> None:
    for mark in (pytest.mark.slow(but=("a",)), pytest.mark.slow(only=("a",))):
        with pytest.raises(pytest.UsageError, match="mark that test, and no class or module"):
            choose_cases(items(pytest.mark.slow, "a", of_class=(mark.mark,)))
    assert choose_cases(items(pytest.mark.slow, "a", of_class=(pytest.mark.slow.mark,))) == []


FIRST = """
import subprocess, sys

def test_a_child():
    subprocess.run([sys.executable, "-c", "import imported"], check=True)

def test_it_leaves_an_open_file():
    cycle = [open(__file__)]
    cycle.append(cycle)
"""


@pytest.mark.slow
def test_a_session_of_a_checkout_that_is_to_stay_clean(tmp_path: Path) -> None:
    """Bytecode, that of children too, lies elsewhere; a file that was left open is told by its own module."""
    checkout, temporary = tmp_path / "checkout", tmp_path / "temporary"
    for folder in (checkout, temporary):
        folder.mkdir()
    (checkout / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (checkout / "imported.py").write_text("")
    (checkout / "test_first.py").write_text(FIRST)
    (checkout / "test_next.py").write_text("def test_next():\n    pass\n")
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)}
    variables.pop("PYTHONPYCACHEPREFIX", None)
    words = ["pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-W", "error", "-ra"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=checkout, env=variables, capture_output=True, text=True
    )
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_first.py::test_it_leaves_an_open_file" in done.stdout
    assert not [*checkout.rglob("*.pyc")]
    (folder,) = temporary.glob("ppl_vae-bytecode-*")
    kept = {file.name.split(".")[0] for file in folder.joinpath(*checkout.parts[1:]).iterdir()}
    assert kept == {"test_first", "test_next", "imported"}


@pytest.mark.skipif(os.name != "posix", reason="users and modes are those of POSIX")
def test_bytecode_that_others_could_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = folder_of_bytecode()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder_of_bytecode() == folder
    folder.chmod(0o777)
    with pytest.raises(pytest.UsageError, match="this user alone can write to"):
        folder_of_bytecode()
    folder.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(pytest.UsageError, match="this user alone can write to"):
        folder_of_bytecode()
