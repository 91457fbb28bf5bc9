"""Memory of `load_data` and of streams, measured in other processes; and that values stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

import ppl_vae
from ppl_vae.data import load_data
from ppl_vae.data.transforms import Binarization, Dequantization


def save(path: Path, x: np.ndarray[Any, Any]) -> str:
    """Saves `x` in the way that the name tells."""
    if path.suffix == ".pt":
        torch.save(torch.from_numpy(x), path)
    elif path.suffix == ".npz":
        (np.savez_compressed if "compressed" in path.stem else np.savez)(path, x=x)
    else:
        np.save(path, np.asfortranarray(x) if "fortran" in path.stem else x)
    return str(path)


def whole(
    x: Tensor, seed: int, binarize: str | None, dequantize: bool, most: int | None
) -> list[Tensor]:
    """Training, validation and test rows, made of all rows at once."""
    fixed, seeded = Generator().manual_seed(0), Generator().manual_seed(seed)

    def split(x: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(x), generator=generator)
        k = max(1, round(fraction * len(x)))
        return x[order[k:].sort().values], x[order[:k].sort().values]

    def few(x: Tensor, generator: Generator) -> Tensor:
        return (
            x
            if most is None
            else x[torch.randperm(len(x), generator=generator)[:most].sort().values]
        )

    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    rest, test = split(x, 0.2, fixed)
    train, validation = split(rest, 0.1, seeded)
    train, validation = few(train, seeded), few(validation, seeded)
    test = few(test, fixed)
    if binarize == "threshold":
        return [(part > 0.5).float() for part in (train, validation, test)]
    if binarize or dequantize:
        noise = Binarization() if binarize else Dequantization(256)
        validation, test = noise(validation, seeded), noise(test, fixed)
        train = noise(train, seeded) if binarize == "static" else train
    return [train, validation, test]


@pytest.mark.parametrize(
    "name",
    ["x.npy", "fortran.npy", "x.npz", "compressed.npz", "x.pt", "pictures.npy", "pictures.pt"],
)
@pytest.mark.parametrize("run_bytes", [1, 1000])
def test_values_are_those_of_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, run_bytes: int
) -> None:
    monkeypatch.setattr("ppl_vae.data.sources.RUN_BYTES", run_bytes)
    x = np.random.default_rng(0).random((101, 3, 5), dtype=np.float32)
    pictures = name.startswith("pictures")
    x = (x * 255).astype(np.uint8) if pictures else x
    file = save(tmp_path / name, x)
    options: list[dict[str, Any]] = [{}, {"max_rows": 7}, {"binarize": "threshold"}]
    options += [{"binarize": "static"}, {"binarize": "dynamic", "max_rows": 50}]
    options += [{"dequantize": True}] if pictures else []
    for seed, chosen in enumerate(options):
        data = load_data(file, seed=seed, **chosen)
        every = {"binarize": None, "dequantize": False, "max_rows": None} | chosen
        expected = whole(torch.from_numpy(x), seed, *every.values())
        for found, values in zip((data.train, data.validation, data.test), expected, strict=True):
            assert torch.equal(found, values), chosen


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pt"])
def test_all_rows_are_checked_whichever_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("ppl_vae.data.sources.RUN_BYTES", 100)
    x = np.zeros((300, 4), dtype=np.float32)
    x[[41, 42, 290], 2] = np.nan
    with pytest.raises(ValueError, match=r"3 of the 300 rows .* the first in row 41"):
        load_data(save(tmp_path / name, x), max_rows=1)


def run(script: str, *arguments: Any, fails: bool = False) -> str:
    path = str(Path(ppl_vae.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


MEASURED = """
import sys
import numpy as np, torch
from ppl_vae.data import load_data

def now(what):  # resource.getrusage counts the process that has started this one
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

torch.set_num_threads(1)
load_data(sys.argv[1])  # what has to be imported
before = now("VmRSS")
data = load_data(sys.argv[2])
print((now("VmHWM") - before) / sum(4 * x.numel() for x in (data.train, data.validation, data.test)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", [pytest.param("npy", marks=pytest.mark.slow), "npz"])
def test_load_data_holds_the_values_once(tmp_path: Path, kind: str) -> None:
    """A file of 100 MB; its zeros are not stored, but read as any others."""
    few, many = tmp_path / f"few.{kind}", tmp_path / f"many.{kind}"
    for file, rows in ((few, 50), (many, 25_000)):
        if kind == "npy":
            np.lib.format.open_memmap(file, "w+", np.float32, (rows, 1000)).flush()
        else:
            np.savez_compressed(file, x=np.zeros((rows, 1000), np.float32))
    times = float(run(MEASURED, few, many))
    assert 0.9 < times < 1.3, f"the peak is {times:.2f} times the file"


STREAM = """
import resource, sys
import pyro, pyro.distributions as dist, torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from ppl_vae import evaluate, fit

torch.set_num_threads(1)
x, kept = torch.randn(16, 4096), []

class Stream(IterableDataset):  # batches of 256 KiB
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for _ in range(self.batches):
            batch = x.clone()
            if "keep" in sys.argv:
                kept.append(batch)
            yield batch

class Part(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

class Model(Part):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(z), 1.0).to_event(1), obs=x)

class Guide(Part):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x), 0.5).to_event(1))

def train(batches):
    model, guide = Model(2, 4096), Guide(4096, 2)
    rows = lambda: DataLoader(Stream(batches), batch_size=None)
    fitted = fit(model, guide, rows(), validation=rows(), max_epochs=1, learning_rate=1e-4, seed=0)
    assert fitted.steps == batches
    assert evaluate(model, guide, rows(), num_samples=4).num_rows == 16 * batches

train(12)
kept.clear()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 28 * 2**20,) * 2)
train(160)
"""


@pytest.mark.slow
def test_a_stream_larger_than_memory_is_trained_on_and_evaluated() -> None:
    """40 MiB of rows per pass, where 28 MiB are left."""
    run(STREAM)


@pytest.mark.slow
def test_a_stream_that_keeps_its_batches_does_not_fit() -> None:
    """Or the test before could not fail."""
    assert "memory" in run(STREAM, "keep", fails=True)


MAPPED = """
import sys
import numpy as np
from ppl_vae.pairs import Batches, Pair

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def model(x): ...

mapped = np.load(sys.argv[1], mmap_mode="r")
before = anonymous()
batches = Batches(mapped, Pair(model, model))
total = sum(float(batch.sum()) for batch, _ in batches.shuffled(100, 0, 0))
print((anonymous() - before) / mapped.nbytes)
batches.rows[0] = 1.0
assert float(mapped[0, 0]) == 0.0 and not mapped.flags.writeable
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_file_stays_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    np.lib.format.open_memmap(file, "w+", np.float32, (50_000, 500)).flush()
    assert float(run(MAPPED, file)) < 0.2
