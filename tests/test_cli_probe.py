"""`ppl-vae probe`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch

from ppl_vae import fine_tune, load_data, load_run, probe
from ppl_vae.cli import main

OPTIONS = ("--max_rows", "200", "--max_epochs", "3", "--model.latent_dim", "2", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    small = ("--posterior", "never", "--num_samples", "2", "--report", "false")
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        options = (*OPTIONS, *small, *catalogue.SMALL_NETWORK)
        assert main(["train", "--run_dir", str(folder), *options]) == 0
    return folder


def test_it_finds_what_the_functions_find(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--labels", "20", "--draws", "2", "--num_steps", "5", "--seed", "3")
    assert main(["probe", str(trained), *small, "--fine_tune", "--quiet", "--overwrite"]) == 0
    printed = capsys.readouterr().out
    run, data = load_run(trained), load_data("digits", max_rows=200, labels=True)
    train, test = data.train, data.test
    how = {"labels": 20, "draws": 2, "seed": 3}
    probed = probe(run.model, run.guide, train, test, **how)  # type: ignore[arg-type]
    tuned = fine_tune(run.model, run.guide, train, test, num_steps=5, **how)  # type: ignore[arg-type]
    found = json.loads((trained / "probe.json").read_text())
    assert found["probe"]["accuracy"]["mean"] == probed.accuracy.mean
    assert found["fine_tuned"]["accuracy"]["mean"] == tuned.accuracy.mean
    assert found["difference"]["mean"] == tuned.minus(probed).mean
    assert found["rows"]["split"] == "test"
    assert found["probe"]["num_labels"] == 20
    for line in (str(probed.accuracy), str(tuned.accuracy), "fine-tuned minus probe"):
        assert line in printed
    with (trained / "probe.csv").open() as lines:
        table = [*csv.DictReader(lines)]
    assert [int(row["label"]) for row in table] == test[1].tolist()
    shares = torch.tensor([float(row["accuracy_fine_tuned"]) for row in table])
    assert float(shares.mean()) == pytest.approx(tuned.accuracy.mean, abs=1e-6)


def test_a_result_is_kept_and_other_data_are_taken(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(trained), "--labels", "10", "--quiet", "--overwrite"]) == 0
    kept = (trained / "probe.json").read_bytes()
    assert b'"fine_tuned": null' in kept
    data = load_data("digits", max_rows=200, labels=True)
    x, y = (part.numpy() for part in data.train)
    np.savez(tmp_path / "rows.npz", x=x, y=y % 2)
    other = ("--data", str(tmp_path / "rows.npz"), "--labels", "4", "--max_rows", "10")
    capsys.readouterr()
    assert main(["probe", str(trained), *other]) == 0
    told = capsys.readouterr()
    assert "is left as it was" in told.err
    assert (trained / "probe.json").read_bytes() == kept
    (line,) = (line for line in told.out.splitlines() if line.startswith("test rows"))
    assert line.split()[-1] == "10"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "RUN is missing"),
        (("nowhere",), "no run folder nowhere"),
        (
            ("RUN", "--labels", "5"),
            "digits has 10 classes, and each needs a label: give --labels 10",
        ),
        (("RUN", "--labels", "500"), "digits has only 200 training rows with a label"),
        (("RUN", "--labels", "0"), "--labels must be at least 2, got 0"),
        (("RUN", "--draws", "0"), "--draws must be at least 1"),
        (("RUN", "--max_rows", "0"), "--max_rows must be at least 1"),
        (("RUN", "--fine_tune", "--num_steps", "0"), "--num_steps must be at least 1"),
        (("RUN", "--data", "plain.npy"), "plain.npy has no labels to learn"),
        (("RUN", "--data", "wide.npy"), "its rows have the shape (7,), but the run was trained on"),
        (("RUN", "--data", "real.npz"), "are attributes, of shape"),
        (("RUN", "--labels", "many"), "many"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: tuple[str, ...],
    words: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.ones((40, 1, 8, 8), np.float32)
    np.save("plain.npy", x)
    np.save("wide.npy", np.ones((40, 7), np.float32))
    np.savez("real.npz", x=x, y=np.full((40, 2), 0.5, np.float32))
    assert main(["probe", *(str(trained) if a == "RUN" else a for a in arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_run_that_encodes_no_rows_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "conditional"
    small = ("--posterior", "never", "--num_samples", "2", "--report", "false")
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        model = ("--labels", "true", "--model", "ConditionalVAE")
        options = (*model, *OPTIONS, *small, *catalogue.SMALL_NETWORK)
        assert main(["train", "--run_dir", str(folder), *options]) == 0
    capsys.readouterr()
    assert main(["probe", str(folder), "--quiet"]) == 1
    assert "its encodings tell what is to be learned" in capsys.readouterr().err
    assert not (folder / "probe.json").exists()
