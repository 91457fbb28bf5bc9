"""Options of the command line that are wrong: each answer names the option and what was expected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import (
    make_run,
)

from ppl_vae.cli import main
from ppl_vae.runtime import seed_everything


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the command line makes it, untrained."""
    return make_run(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def run(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--max_epocs", "3"], 2, "--max_epocs 3 (did you mean --max_epochs?)"),
        (["train", "--model.latnt_dim", "3"], 2, "(did you mean --model.latent_dim?)"),
        (["train", "--model.network.hiden", "[3]"], 2, "(did you mean --model.network.hidden?)"),
        (["train", "--objective.betta", "3"], 2, "(did you mean --objective.beta?)"),
        (["train", "--gide", "MeanField"], 2, "(did you mean --guide?)"),
        (["evaluate", "run", "--nm_samples", "3"], 2, "(did you mean --num_samples?)"),
        (["train", "--num_samples", "1e12"], 2, "--num_samples: expected int"),
        (["train", "--num_samples", "0"], 1, "num_samples must be at least 1, got 0"),
        (["train", "--num_samples", str(10**12)], 1, "num_samples must be at most 100,000,000"),
        (["train", "--seed", "9" * 23], 1, "seed must be a whole number of 64 bits"),
        (["train", "--num_processes", "0"], 1, "num_processes must be at least 1, got 0"),
        (["train", "--guide.latent_dim", "4"], 1, "10 dimensions in the model and 4 dimensions"),
        (["sample", "run", "--num", str(10**12)], 2, "--num must be at most 1,000,000"),
        (["evaluate", "run", "--num_samples", str(10**12)], 1, "num_samples must be at most"),
        (["train", "--resume", "run", "--seed", "3"], 2, "leave out --seed"),
    ],
)
def test_options_of_commands(
    arguments: list[str], code: int, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.parent.rglob("*"))
    assert main([*arguments, "--quiet"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert sorted(run.parent.rglob("*")) == before


def test_seeds_of_any_size_are_taken() -> None:
    seeds: list[Any] = [0, -5, 2**32 + 1, 2**63 - 1, np.int64(3)]
    for seed in seeds:
        seed_everything(seed)
        first = torch.rand(3)
        seed_everything(seed)
        assert torch.equal(torch.rand(3), first)
