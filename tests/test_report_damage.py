"""Pages of runs and sweeps of which a file is damaged: the page names it, and shows the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, run, sweep_in, swept, trained

from ppl_vae.cli import main
from ppl_vae.reporting import html_report
from ppl_vae.sweeps import SweepFolder, SweepTable, read_spec

__all__ = ["run", "swept", "trained"]


def _as_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_text(""),
    "a list": lambda file: file.write_text("[1, 2]"),
    "bytes": lambda file: file.write_bytes(bytes(range(128, 256))),
    "a folder": _as_a_folder,
}


def with_pictures_of_few(kinds: Iterable[str]) -> list[Any]:
    """Each kind of damage and whether pictures of the sweep are drawn; with all of them, some are slow.

    They take most of the time.
    """
    at_once = ("half", "a list")
    return [
        *((how, True) for how in at_once),
        *((how, False) for how in kinds if how not in at_once),
        *(pytest.param(how, True, marks=pytest.mark.slow) for how in kinds if how not in at_once),
    ]


@pytest.fixture
def pictures(drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the sweep, or none."""
    if not drawn:
        for name in ("sweep_plane", "sweep_metrics"):
            monkeypatch.setattr(f"ppl_vae.reporting.of_sweep.{name}", lambda *_, **__: None)


@pytest.mark.slow(
    only=("diagnosis.json-half-True", "evaluation.json-a list-True", "diagnosis.json-a list-True")
)
@pytest.mark.parametrize(("how", "drawn"), with_pictures_of_few(DAMAGE))
@pytest.mark.parametrize("name", ["evaluation.json", "diagnosis.json"])
@pytest.mark.usefixtures("pictures")
def test_one_damaged_result_costs_a_sweep_its_numbers_alone(
    name: str, how: str, swept: Path, tmp_path: Path
) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / "sweep"))
    file = sweep / "beta=4,seed=0" / name
    DAMAGE[how](file)
    page = Page(html_report(sweep))
    if how == "a folder":  # then the run has lost its result, and is to be done again
        assert "Not done: beta=4,seed=0 (interrupted)." in page.text
        return
    assert page.text.count(f"Not shown: {file}: ") == 1
    assert "6 of 6 runs have ended well, at 3 of 3 points." in page.text
    of = "1 of 1" if name == "diagnosis.json" else "2 of 2"
    assert f"unused dimensions: large beta ({of} runs)" in page.text
    runs = read_spec(sweep / "sweep.yaml").runs()
    table = SweepTable.of(SweepFolder(sweep, runs), runs)
    lost, kept = table.points[2].estimate("elbo"), table.points[2].estimate("active_units")
    assert len(lost.values) == (1 if name == "evaluation.json" else 2)
    assert len(kept.values) == (1 if name == "diagnosis.json" else 2)
    assert str(file) in table.unread[0]


def test_a_point_without_any_number_is_left_out_of_the_plane(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    sweep = sweep_in(tmp_path / "sweep", seeds=1)
    (sweep / "beta=4,seed=0" / "evaluation.json").write_text("{")
    text = html_report(sweep)
    page = Page(text)
    assert "3 of 3 runs have ended well" in page.text
    data = json.loads(text.split('id="plane-data">')[1].split("</script>")[0])
    assert len(data["data"]["values"]) == 2
    assert len(page.pictures) == 2


@pytest.mark.slow(only=("half-True", "a list-True"))
@pytest.mark.parametrize(
    ("how", "drawn"), with_pictures_of_few([*DAMAGE, "other options", "removed"])
)
@pytest.mark.usefixtures("pictures")
def test_a_run_whose_notes_are_damaged_is_named_and_the_others_are_shown(
    how: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / "sweep"))
    folder = sweep / "beta=4,seed=0"
    file = folder / "sweep.json"
    if how == "removed":
        file.unlink()
    elif how == "other options":
        file.write_text(json.dumps({"options": {"data": "other", "seed": 0}, "state": "done"}))
    else:
        DAMAGE[how](file)
    page = Page(html_report(sweep))
    assert "5 of 6 runs have ended well" in page.text
    assert "Not done: beta=4,seed=0 (missing)." in page.text
    assert f"Not shown: {folder}" in page.text
    # A sweep that is to go on is refused, as that run would be lost.
    assert main(["sweep", str(sweep / "sweep.yaml"), "--sweep_dir", str(sweep), "--dry_run"]) != 0
    assert "beta=4,seed=0" in capsys.readouterr().err


def test_files_of_runs_that_the_page_of_a_sweep_does_not_need(swept: Path, tmp_path: Path) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / "sweep"))
    for name in ("config.yaml", "metrics.csv"):
        (sweep / "beta=4,seed=0" / name).write_bytes(bytes(range(128, 256)))
    assert "Not shown" not in Page(html_report(sweep)).text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "holds 0 of the 3 lines that led to the weights"),
        pytest.param(
            *(lambda text: "{", "holds 0 of the 3 lines that led to the weights"),
            marks=pytest.mark.slow,
        ),
        (lambda text: text.splitlines()[0] + "\n", "holds 0 of the 3 lines"),
        (lambda text: text.split("\n", 1)[1], "holds 2 of the 3 lines"),
        (lambda text: text[:-30], "line 3 below its head has not one number for each name"),
        (lambda text: text.replace(",", ",x", 20), "a line is not made of numbers"),
        (None, "it is missing"),
    ],
)
def test_a_damaged_metrics_csv_is_told(
    change: Callable[[str], str] | None, told: str, run: Path
) -> None:
    file = run / "metrics.csv"
    text = file.read_text()
    assert len(text.splitlines()) == 1 + 3, "epochs"
    file.unlink()
    if change is not None:
        file.write_text(change(text))
    page = Page(html_report(run))
    assert f"Not shown: {file}: " in page.text
    assert told in page.text
    assert "Diagnosis" in page.headings
    if "lines" in told:
        assert f"ppl-vae train --resume {run} writes it again" in page.text


def test_a_whole_metrics_csv_is_not_told(run: Path) -> None:
    """Nor is one with the lines of a training that goes on, the last of which is being written."""
    assert "metrics.csv: " not in Page(html_report(run)).text
    file = run / "metrics.csv"
    line = file.read_text().splitlines()[1]
    with file.open("a") as more:
        more.write(f"{line}\n{line[:20]}")
    assert "metrics.csv: " not in Page(html_report(run)).text


@pytest.mark.parametrize("how", ["empty", "bytes", "half"])
def test_a_damaged_picture_is_told_by_its_name(how: str, run: Path) -> None:
    file = run / "plots" / "traversals.png"
    DAMAGE[how](file)
    page = Page(html_report(run))
    assert f"Not shown: {file}: this is not a PNG that can be read" in page.text
    assert "0x" not in page.text
