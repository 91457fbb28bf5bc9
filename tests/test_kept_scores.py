"""Scores in a file: several processes add to it, and what was cut off or is of other settings is not taken."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT

ADDS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kept_scores import Scores
scores = Scores(Path(sys.argv[2]), {sys.argv[3]: "made up"})
for draw in range(100):
    scores.add(sys.argv[3], 10, draw, numbers=[draw / 100])
"""


@pytest.fixture
def kept_scores(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    return importlib.import_module("kept_scores")


def test_numbers_are_found_again_under_what_they_are_of(kept_scores: Any, tmp_path: Path) -> None:
    def scores(**made_of: str) -> Any:
        columns, numbers = ("method", "letters", "seed"), ("read", "log_p")
        return kept_scores.Scores(tmp_path / "new" / "scores.csv", made_of, columns, numbers)

    first = scores(EM="20 starts", guide="800 steps")
    assert first.find("EM", 100, 3) is None
    first.add("EM", 100, 3, numbers=[0.1, -1e-30 / 3])
    first.add("EM", 200, 0, numbers=[0.25, float("-inf")])
    again = scores(EM="20 starts", guide="800 steps")
    for each in (first, again):
        assert each.find("EM", 100, 3) == [0.1, -1e-30 / 3]
        assert each.find("EM", 200, 0) == [0.25, float("-inf")]
        assert each.of("EM", 200) == [0.25]
        assert each.of("EM", 100) == []  # the first draws are missing
        for name, letters, seed in (("guide", 100, 3), ("EM", 200, 3), ("EM", 100, 0)):
            assert each.find(name, letters, seed) is None
    assert scores(EM="1 start").find("EM", 100, 3) is None


def test_processes_add_to_one_file(kept_scores: Any, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    arguments = [sys.executable, "-c", ADDS, str(ROOT / "analyses"), str(file)]
    each = [subprocess.Popen([*arguments, name], cwd=ROOT) for name in ("one", "two")]
    assert [process.wait(60) for process in each] == [0, 0]
    scores = kept_scores.Scores(file, {"one": "made up", "two": "made up"})
    for name in ("one", "two"):
        assert scores.of(name, 10) == [draw / 100 for draw in range(100)]
    # An empty line says nothing: one stands where the end of a line was not yet seen.
    assert len(file.read_text().split()) == 201


def test_a_line_that_was_cut_off_is_none(kept_scores: Any, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    scores = kept_scores.Scores(file, {"M2": "made up"})
    scores.add("M2", 10, 0, numbers=[0.5])
    whole = file.read_bytes()
    scores.add("M2", 10, 1, numbers=[0.123456])
    line = file.read_bytes()[len(whole) :]
    for end in range(1, len(line) - 2):  # the last two bytes end the line
        file.write_bytes(whole + line[:end])
        after = kept_scores.Scores(file, {"M2": "made up"})
        assert after.of("M2", 10) == [0.5]
        after.add("M2", 10, 1, numbers=[0.75])
        assert kept_scores.Scores(file, {"M2": "made up"}).of("M2", 10) == [0.5, 0.75]


def test_other_tables_are_told_apart(kept_scores: Any, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    # That of an earlier version, whose columns have another order.
    digest = kept_scores.Scores(file, {"M2": "made up"}).made_of["M2"]
    file.write_text(f"of,learns,labels,draw,share\r\n{digest},M2,10,0,0.5\r\n", newline="")
    scores = kept_scores.Scores(file, {"M2": "made up"})
    scores.add("M2", 10, 1, numbers=[0.75])
    assert kept_scores.Scores(file, {"M2": "made up"}).of("M2", 10) == [0.5, 0.75]
    assert file.read_text().splitlines()[-1] == f"{digest},M2,10,1,0.75"
    with pytest.raises(
        ValueError, match=r"scores\.csv has the columns .* expected .*'read'.* --runs"
    ):
        kept_scores.Scores(file, {}, ("method", "letters", "seed"), ("read",))
