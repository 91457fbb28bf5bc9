"""Runs whose results are damaged, missing or in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bad_inputs import X, command, fit, pair, run as run, saved as saved
from torch import Tensor

import ppl_vae


@pytest.mark.parametrize("content", ["", "[1, 2]", "null", '{"elbo": ', '{"rows": {"num": 3}}'])
def test_an_evaluation_that_cannot_be_read_can_be_replaced(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "evaluation.json"
    file.write_text(content)
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    assert "evaluation" in capsys.readouterr().err
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 0
    assert json.loads(file.read_text())["num_samples"] == 2


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("evaluation.json", "[]", "evaluation.json: this is not a result"),
        ("diagnosis.json", "[]", "diagnosis.json: this is not a result"),
        ("diagnosis.json", "{}", "diagnosis.json: it holds no 'active_units'"),
    ],
)
def test_results_that_lack_something_are_named(
    file: str, content: str, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(content)
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", ["elbo", "bits_per_dim", "num_samples", "rows"])
def test_an_evaluation_without_a_key_is_named(
    key: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    content[key] = {"mean": 1.0} if key in ("elbo", "bits_per_dim") else content.pop(key) and None
    content = {name: value for name, value in content.items() if value is not None}
    (run / "evaluation.json").write_text(json.dumps(content))
    assert command("compare", "run", "run", "-o", "picture.png") == 1
    said = capsys.readouterr().err
    missing = {"elbo": "'standard_error'", "bits_per_dim": "'standard_error'", "rows": "rows"}
    assert missing.get(key, f"'{key}'") in said


def test_missing_metrics_are_told_where_they_count(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.csv").unlink()
    with pytest.warns(UserWarning, match=r"metrics\.csv is missing: how the training went"):
        assert ppl_vae.load_run("run").history == []
    assert command("diagnose", "run") == 0
    assert "the last beta of the run is not known: it is taken to be that after 3 epochs" in (
        capsys.readouterr().err
    )


def test_a_folder_in_the_place_of_a_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()
    assert command("evaluate", "run", "--num_samples", "2", "--overwrite") == 1
    assert (
        "evaluation.json is a folder, but a file is to be written there" in capsys.readouterr().err
    )


def test_a_folder_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    """The checkpoint before it is taken, with a warning, and the end is that of a training of one go."""

    def weights() -> Tensor:
        return torch.cat([p.flatten() for program in programs for p in program.parameters()])

    programs = pair()
    fit(*programs, X, max_epochs=2, batch_size=20, run_dir=tmp_path / "run")
    expected = weights()
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    newest.unlink()
    newest.mkdir()
    (newest / "notes.txt").write_text("mine")
    programs = pair()
    with pytest.warns(UserWarning, match=r"this is a folder, not a file; continuing from step-0"):
        fit(*programs, X, max_epochs=2, batch_size=20, run_dir=tmp_path / "run", resume=True)
    torch.testing.assert_close(weights(), expected, rtol=0, atol=0)
    assert newest.is_file()
    assert (newest.with_name(f"{newest.name}.folder") / "notes.txt").read_text() == "mine"
