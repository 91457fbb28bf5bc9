"""Two processes: noise of their own, the steps of one process, and what a killed one leaves behind."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kill import OPTIONS, fast
from ranks import Ranks, free_port
from trainings import X, same, train

import ppl_vae
from ppl_vae.cli import main
from ppl_vae.runs import RunFolder, checkpoint_files
from ppl_vae.runtime import read_tensors
from ppl_vae.training.step import Step

PAIR = """
import os, signal, sys
from pathlib import Path
import pyro, pyro.distributions as dist, torch
from torch import nn
from ppl_vae import fit
from ppl_vae.objectives import ELBO, LinearWarmup
from ppl_vae.pairs import Pair
from ppl_vae.runtime import make_fabric, write_tensors
from ppl_vae.training import checkpoints

torch.set_num_threads(1)
folder, processes = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("LOCAL_RANK", 0))
x = torch.randn(47, 3, generator=torch.Generator().manual_seed(5))
draws = []

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.decoder = nn.Linear(2, 3)
    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)

class Guide(nn.Module):
    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(12)
        self.encoder, self.scale = nn.Linear(3, 2), scale
    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc = self.encoder(x)
            z = pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))
        if self.training:
            draws.append((z - loc).detach().flatten())

def keep(name, tensors, fitted):
    history = [{n: v for n, v in row.items() if n != "seconds"} for row in fitted.history]
    facts = {"history": history, "stopped": fitted.stopped, "best": fitted.best_epoch}
    write_tensors(folder / f"{name}-{rank}", tensors, facts)

def noisy(x):
    draws.append(torch.randn(len(x)))
    return x

fabric = make_fabric("cpu", num_processes=processes)
"""

# The draws of so narrow a guide are its means, to float precision, and so the random numbers do not matter.
STEPS = (
    PAIR
    + """
for name, changes in {
    "all": {},
    "longer": {"clip_grad_norm": 3.0, "max_epochs": 3},
    "iterable": {"x": list((x + 3).split(9)), "max_epochs": 5},
}.items():
    model, guide = Model(), Guide(1e-7)
    options = dict(
        x=x + 3, objective=ELBO(beta=LinearWarmup(3, end=2.0)), validation=x - 3, batch_size=9, max_epochs=30,
        optimizer=torch.optim.SGD, learning_rate=0.1, clip_grad_norm=0.3, patience=4, seed=3, fabric=fabric,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
        progress=False, capture=False,
    ) | changes
    fitted = fit(model, guide, **options)
    keep(name, Pair(model, guide).state(), fitted)

for seed in (1, 2):
    draws.clear()
    fitted = fit(
        Model(), Guide(1.0), x[:46], validation=x, batch_size=46, max_epochs=30, seed=seed, transform=noisy,
        fabric=fabric, progress=False, capture=False,
    )
    keep(f"noise {seed}", {"draws": torch.cat(draws)}, fitted)
"""
)

KILLED = (
    PAIR
    + """
checkpoints.CHECKPOINT_SECONDS = (0.0, 0.0)  # after every step
calls = 0

def deadly(x):
    global calls
    calls += 1  # twice before the first step, and once for each step
    if (folder / f"kill-{rank}").exists() and calls == 10:
        (folder / f"kill-{rank}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return noisy(x)

model, guide = Model(), Guide(1.0)
fitted = fit(
    model, guide, x, validation=x, batch_size=16, max_epochs=5, seed=4, transform=deadly, fabric=fabric,
    progress=False, run_dir=folder / "run", resume=any((folder / "run").rglob("step-*")),
)
keep("end", Pair(model, guide).state(), fitted)
"""
)


class Running:
    """A training that the command line starts, in a session of its own, and what it says."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.said = folder / "said"
        path = str(Path(ppl_vae.__file__).parents[1])
        here = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        others = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"}
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppl_vae.cli", *options],
                env=others | here | {"MASTER_PORT": str(free_port())},
                stdout=said,
                stderr=said,
                cwd=folder,
                start_new_session=True,
            )

    def end(self) -> Path:
        """Waits for an end without an error."""
        try:
            assert self.process.wait(170) == 0, self.said.read_text()[-3000:]
        finally:
            self.kill()
        return self.folder

    def kill(self) -> None:
        """Kills all processes that are left, and no others: the session is theirs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def wait_for_step(self, step: int, run: str = "run") -> None:
        """Until there is a checkpoint of that step or a later one."""
        deadline = time.monotonic() + 120
        while not any(f.stem >= f"step-{step:09d}" for f in (self.folder / run).rglob("step-*")):
            assert self.process.poll() is None, self.said.read_text()[-3000:]
            assert time.monotonic() < deadline, self.said.read_text()[-3000:]
            time.sleep(0.02)


def read(folder: Path, name: str, rank: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return read_tensors(folder / f"{name}-{rank}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The steps of one process and of two."""
    where = tmp_path_factory.mktemp("steps")
    for n in (1, 2):
        Ranks.script(STEPS, where / str(n), n).end(170)
    return {n: where / str(n) for n in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "iterable"])
def test_beta_clipping_schedule_and_stopping_are_those_of_one_process(
    folders: dict[int, Path], name: str
) -> None:
    expected, facts = read(folders[1], name)
    for rank in range(2):
        found, found_facts = read(folders[2], name, rank)
        assert found_facts["stopped"] == facts["stopped"]
        assert found_facts["best"] == facts["best"]
        for row, other in zip(facts["history"], found_facts["history"], strict=True):
            for metric in row.keys() - {"elbo", "rate"}:  # whose log q(z | x) is that of the draws
                assert other[metric] == pytest.approx(row[metric], rel=1e-4), metric
            assert other.keys() == row.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-5), key
    if name == "all":  # or nothing would have been compared
        history = facts["history"]
        assert [round(row["beta"], 3) for row in history[:4]] == [0.667, 1.333, 2.0, 2.0]
        assert history[-1]["learning_rate"] < 0.1
        assert facts["stopped"].startswith("no better held-out ELBO in 4 epochs")
        longer, _ = read(folders[1], "longer")
        assert not torch.allclose(
            longer["model.decoder.bias"], expected["model.decoder.bias"], atol=0.01
        )


@pytest.mark.slow
def test_processes_draw_independent_noise(folders: dict[int, Path]) -> None:
    """Nor does a process draw what another one draws in a run with the next seed."""
    parts = [read(folders[2], f"noise {s}", rank)[0]["draws"] for s in (1, 2) for rank in (0, 1)]
    assert all(len(part) == len(parts[0]) > 1000 for part in parts)
    for one, other in itertools.combinations(parts, 2):
        assert float(torch.isin(one, other).float().mean()) < 0.01
    correlations = torch.corrcoef(torch.stack(parts)) - torch.eye(4)
    assert float(correlations.abs().max()) < 5 / len(parts[0]) ** 0.5


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    Ranks.script(KILLED, folder, 2).end(170)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_loses_the_other_says_so_and_the_run_resumes(
    tmp_path: Path, never_killed: Path, rank: int
) -> None:
    """It is killed one step into the third epoch, when each process has summed metrics over its own rows."""
    (tmp_path / f"kill-{rank}").touch()
    cut = Ranks.script(KILLED, tmp_path, 2)
    codes = cut.wait()
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1), cut.said()
    newest = checkpoint_files(tmp_path / "run" / "checkpoints")[0]
    assert newest.stem == "step-000000007"
    said = re.sub(r"\s+", " ", cut.said())
    assert f"process {1 - rank} of 2 (counted from 0) has lost the others" in said
    with pytest.raises(ValueError, match="processes = 2, now it is 1"):
        train(X[:47], run_dir=tmp_path / "run", resume=True)
    Ranks.script(KILLED, tmp_path, 2).end(170)
    for rank in range(2):
        expected, facts = read(never_killed, "end", rank)
        found, found_facts = read(tmp_path, "end", rank)
        assert same(found, expected)
        assert found_facts == facts


def of_command(folder: Path, *options: str, last_step: int | None = None) -> Ranks:
    """`ppl-vae train` in two processes, which are killed after so many steps."""

    def work(rank: int) -> int:
        take, steps = Step.__call__, [0]

        def counted(self: Step, *rest: Any) -> Any:
            if steps[0] == last_step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps[0] += 1
            return take(self, *rest)

        with fast(), patch.object(Step, "__call__", counted):
            return main(["train", "--quiet", *options])

    return Ranks(work, folder)


def results(folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    run = folder / "run"
    weights = read_tensors(run / "weights.safetensors")[0]
    return weights, (run / "evaluation.json").read_bytes()


@pytest.mark.slow
def test_both_processes_killed_resume_to_the_same_bits_by_the_command_line(tmp_path: Path) -> None:
    """They are killed after the first of two steps of an epoch; the run that is not killed replaces another."""
    both = ("--num_processes", "2", "--device", "cpu", "--max_epochs", "5", *OPTIONS)
    run = {name: str(tmp_path / name / "run") for name in ("never", "killed")}
    killed = of_command(tmp_path / "killed", *both, "--run_dir", run["killed"], last_step=5)
    assert killed.wait(170) == [-signal.SIGKILL] * 2, killed.said()
    newest = checkpoint_files(tmp_path / "killed" / "run" / "checkpoints")[0]
    assert newest.stem == "step-000000005"
    shutil.copytree(tmp_path / "killed", tmp_path / "never")
    again = (*both, "--run_dir", run["never"], "--overwrite")
    assert of_command(tmp_path / "never", *again).end(170) == [0, 0]
    assert of_command(tmp_path / "killed", "--resume", run["killed"]).end(170) == [0, 0]
    (expected, evaluation), (found, other) = (results(tmp_path / name) for name in run)
    assert same(found, expected)
    assert other == evaluation


@pytest.mark.slow
def test_a_folder_that_is_locked_ends_both_processes_of_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.open(run):
        options = ("--num_processes", "2", "--device", "cpu", *OPTIONS, "--run_dir", str(run))
        training = of_command(tmp_path, *options)
        assert training.end(60) == [1, 1]
    for rank in range(2):
        assert f"error: {run} is being written by" in (tmp_path / f"said-{rank}").read_text()


@pytest.mark.slow
def test_processes_of_the_command_line_killed_at_any_moment(tmp_path: Path) -> None:
    options = [
        "train",
        "--data",
        "digits",
        "--max_rows",
        "40",
        "--binarize",
        "dynamic",
        "--compile",
        "false",
    ]
    options += ["--device", "cpu", "--num_processes", "2", "--batch_size", "16", "--quiet"]
    never = Running(tmp_path / "never", *options, "--max_epochs", "60", "--run_dir", "run")
    killed = Running(tmp_path / "killed", *options, "--max_epochs", "1000000", "--run_dir", "run")
    try:
        killed.wait_for_step(6)
        killed.kill()
        resume = ["train", "--resume", "run", "--max_epochs", "60", "--quiet"]
        killed = Running(tmp_path / "killed", *resume)
        killed.end()
        never.end()
    finally:
        killed.kill()
        never.kill()
    (expected, evaluation), (found, other) = (results(tmp_path / n) for n in ("never", "killed"))
    assert same(found, expected)
    assert other == evaluation
