"""Runs with an optimizer, a schedule, ... of the user's choice: every command takes them without --trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import catalogue
import pytest
import torch

from ppl_vae.cli import main
from ppl_vae.runtime import read_tensors

CHOICES = {
    "SGD": "--optimizer SGD --optimizer.lr 0.01 --optimizer.momentum 0.9",
    "Adam": "--optimizer Adam --optimizer.amsgrad true",
    "AdamW": "--optimizer torch.optim.AdamW --learning_rate 0.01",
    "RMSprop": "--optimizer RMSprop",
    "Adagrad": "--optimizer Adagrad",
    "StepLR": "--lr_scheduler StepLR --lr_scheduler.step_size 1 --lr_scheduler.gamma 0.5",
    "ExponentialLR": "--lr_scheduler ExponentialLR --lr_scheduler.gamma 0.9",
    "MultiStepLR": "--lr_scheduler MultiStepLR --lr_scheduler.milestones [1,3]",
    "CosineAnnealingLR": "--lr_scheduler CosineAnnealingLR --lr_scheduler.T_max 5",
    "both": "--optimizer Adam --lr_scheduler StepLR --lr_scheduler.step_size 3",
    "beta": "--objective.beta LinearWarmup --objective.beta.epochs 1",
    "objective": "--objective ImportanceWeightedELBO",
    "parts": "--model.network.activation torch.nn.SiLU --model.prior VampPrior",
    "guide": "--guide MaskedAutoregressive",
    "SWALR": "--lr_scheduler torch.optim.swa_utils.SWALR --lr_scheduler.swa_lr 0.01",
}
SMALL = [*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--device", "cpu", "--quiet"]
SMALL += ["--posterior", "never", "--report", "false"]


@pytest.fixture(autouse=True)
def _without_pictures() -> Iterator[None]:
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        yield


def train(folder: Path, choice: str, epochs: int) -> Path:
    options = [*SMALL, *CHOICES[choice].split(), "--max_epochs", str(epochs)]
    assert main(["train", "--run_dir", str(folder), *options]) == 0
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "weights.safetensors")[0]


QUICK = ("both", "beta", "parts", "SWALR")
"""Each kind of choice: an optimizer with a schedule, a schedule of beta, parts of the model, a path."""


@pytest.mark.slow(but=("both",))
@pytest.mark.parametrize(
    "choice",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHOICES],
)
def test_a_training_goes_on_with_it_to_the_same_bits(choice: str, tmp_path: Path) -> None:
    whole, run = train(tmp_path / "whole", choice, 4), train(tmp_path / "run", choice, 2)
    before = weights(run)
    assert main(["train", "--resume", str(run), "--max_epochs", "4", "--quiet"]) == 0
    found, expected = weights(run), weights(whole)
    assert any(not torch.equal(found[name], before[name]) for name in before)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.slow(but=("both-some",))
@pytest.mark.parametrize(
    ("choice", "every"),
    [
        pytest.param("both", False, id="both-some"),
        *(pytest.param(n, True, id=n) for n in ("both", "SGD", "AdamW", "StepLR", "SWALR")),
    ],
)
def test_every_command_takes_a_run_with_it(choice: str, every: bool, tmp_path: Path) -> None:
    run, out = str(train(tmp_path / "run", choice, 1)), str(tmp_path / "out")
    small = ["--num_samples", "3", "--quiet"]
    commands = (
        ["refit", run, "--max_epochs", "1", "--run_dir", str(tmp_path / "refit"), *small],
        ["refit", "--resume", str(tmp_path / "refit"), "--max_epochs", "2", "--quiet"],
        ["evaluate", run, "--overwrite", *small],
        ["diagnose", run, "--overwrite", "--quiet"],
        ["gaps", run, "--max_rows", "2", *small],
        ["sample", run, "--output", f"{out}.png"],
        ["compare", run, str(tmp_path / "refit"), "--output", f"{out}.pdf"],
        ["export", run, "--output", f"{out}.nc", *small],
    )
    for command in commands if every else commands[:3]:
        assert main(command) == 0, command
