"""Two processes over gloo, for real: the same training as one process with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks

from ppl_vae.runs import checkpoint_files
from ppl_vae.runtime import read_tensors

# With the exact posterior, a sample's log p(x, z) - log q(z | x) is log p(x) whatever the sample: the loss of
# TraceELBO does not depend on the random numbers, which two processes cannot share.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import pyro, pyro.distributions as dist, torch
from torch import nn
from ppl_vae import fit
from ppl_vae.guides import Exact
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.objectives import TraceELBO
from ppl_vae.pairs import Pair
from ppl_vae.runtime import make_fabric, write_tensors
from ppl_vae.training import DivergenceError, checkpoints
from torch.utils.data import DataLoader

torch.set_num_threads(1)
folder, processes = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("LOCAL_RANK", 0))
x = torch.randn(51, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    6, 6, generator=torch.Generator().manual_seed(1)
)
fabric = make_fabric("cpu", num_processes=processes)
same = dict(fabric=fabric, objective=TraceELBO(), progress=False)

def pca():
    torch.manual_seed(7 + rank)  # processes begin with other weights: they have to agree on one's
    if rank == 0:
        torch.manual_seed(7)
    model = ProbabilisticPCA((6,), 2)
    return model, Exact(model)

def keep(name, fitted, pair):
    history = [{n: v for n, v in row.items() if n != "seconds"} for row in fitted.history]
    facts = {"history": history, "stopped": fitted.stopped, "best": fitted.best_epoch}
    write_tensors(folder / f"{name}-{rank}", Pair.of(*pair).state(), facts)

# 1. 51 rows in batches of 10: the last one has a single row, and the second process none of it
pair = pca()
options = dict(validation=x[:9], batch_size=10, learning_rate=0.02, patience=9, seed=3, **same)
keep("plain", fit(*pair, x, max_epochs=4, run_dir=folder / "run", **options), pair)
writers = sorted(p.name for p in (folder / "run").rglob("*"))

# 2. goes on, from other weights
pair = pca()
options["run_dir"] = folder / "run"
keep("resumed", fit(*pair, x, max_epochs=6, resume=True, **options), pair)

# 3. a loader that shuffles, checkpoints by each process's own clock, and batch norm
checkpoints.CHECKPOINT_SECONDS = (0.0, 0.0) if rank == 0 else (99.0, 99.0)

class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 2)
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(self.norm(x)), 0.5).to_event(1))

pair = (pca()[0], Guide())
options = dict(validation=x[:9], learning_rate=0.02, patience=2, **same)
loader = DataLoader(x, batch_size=10, shuffle=True, drop_last=True)
keep("loader", fit(*pair, loader, max_epochs=9, run_dir=folder / "loader", **options), pair)
keep("steps", fit(*pair, x[:50], batch_size=10, max_epochs=2, seed=1, **options), pair)

# 4. one process alone meets a NaN
def spoil(batch):
    spoil.calls += 1
    return batch * float("nan") if spoil.calls > 4 and rank == processes - 1 else batch

spoil.calls = 0
try:
    fit(*pca(), x[:50], batch_size=10, max_epochs=4, seed=1, transform=spoil, **same)
except DivergenceError as error:
    facts = {"step": error.step, "site": error.site, "message": str(error)}
    (folder / f"diverged-{rank}").write_text(json.dumps(facts))
"""


def run(folder: Path, processes: int) -> Path:
    Ranks.script(SCRIPT, folder, processes).end(170)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("processes") / "one", 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("processes") / "two", 2)


def read(folder: Path, name: str, rank: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return read_tensors(folder / f"{name}-{rank}")


@pytest.mark.parametrize("name", ["plain", "resumed"])
def test_loss_curve_and_weights_are_those_of_one_process(one: Path, two: Path, name: str) -> None:
    expected, facts = read(one, name)
    found, found_facts = read(two, name)
    epochs = 4 if name == "plain" else 6
    assert [row["step"] for row in found_facts["history"]] == [6 * (e + 1) for e in range(epochs)]
    deterministic = ("epoch", "step", "loss", "elbo", "validation_elbo", "learning_rate")
    for row, other in zip(facts["history"], found_facts["history"], strict=True):
        for key in deterministic:
            assert other[key] == pytest.approx(row[key], rel=1e-5), key
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-5), key
    moved = facts["history"][-1]["loss"] - facts["history"][0]["loss"]
    assert abs(moved) > 0.1  # or the weights would agree because nothing was trained


@pytest.mark.parametrize("name", ["plain", "resumed", "loader", "steps"])
def test_all_processes_end_alike(two: Path, name: str) -> None:
    first, facts = read(two, name, 0)
    second, other_facts = read(two, name, 1)
    for key, value in first.items():
        assert torch.equal(second[key], value), key
    assert facts == other_facts


def test_files_are_written_once(two: Path) -> None:
    steps = [f.name for f in checkpoint_files(two / "run" / "checkpoints")]
    assert steps[0] == "step-000000036.safetensors"
    lines = (two / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", *"123456"]
    assert not list(two.rglob("*.tmp"))
    assert not list(two.rglob("lightning_logs"))


def test_a_nan_in_one_process_stops_both(two: Path) -> None:
    found = [json.loads((two / f"diverged-{rank}").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0]["site"] == "x"
    assert found[0]["step"] == 2
    assert "its observed data are NaN" in found[0]["message"]
