"""Two processes: an error in one of them ends both, at once and with the same error."""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from ranks import Ranks
from torch import Tensor
from trainings import HELD_OUT, Guide, Model, X

from ppl_vae import fit, refit_guide
from ppl_vae.checks import PairWarning
from ppl_vae.guides import MeanField, PerRow
from ppl_vae.networks import MLP
from ppl_vae.runs import RunFolder
from ppl_vae.runtime import CorruptFileError, DiskFullError, make_fabric
from ppl_vae.training import DivergenceError, Processes

SECONDS = 60.0
"""All has ended by then; a process that is left alone would wait for 30 minutes."""

PATCHED = {  # what fails, and in which process
    "a checkpoint": ("ppl_vae.training.checkpoints.save_checkpoint", 0),
    "metrics.csv": ("ppl_vae.training.metrics.append_text", 0),
    "held-out rows": ("ppl_vae.training.held_out.HeldOut.measure", 0),
    "held-out rows of the second": ("ppl_vae.training.held_out.HeldOut.measure", 1),
    "the data of the second": ("ppl_vae.training.fitting.Batches", 1),
    "the checks of the second": ("ppl_vae.training.loop.check_batch", 1),
    "a step of the first": ("ppl_vae.training.step.Step._gradients", 0),
    "a step of the second": ("ppl_vae.training.step.Step._gradients", 1),
}


class Ending(NamedTuple):
    """How a training ended in one process."""

    kind: str
    message: str
    seconds: float


def full(*_: Any, **__: Any) -> None:
    raise DiskFullError(Path("/full/file"), 28)


def interrupted(pid: int) -> None:
    """Ctrl-C for one process alone."""
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)


class Two:
    """What one of two processes does, and how that ended."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.fabric = make_fabric("cpu", num_processes=2)
        self.pids = Processes(self.fabric).gathered(os.getpid())
        self.endings: dict[str, Ending] = {}
        self.options: dict[str, Any] = {
            **dict(max_epochs=2, batch_size=16, seed=1, progress=False, capture=False),
            **dict(validation=HELD_OUT, fabric=self.fabric),
        }

    def try_fit(self, name: str, x: Any = X, guide: Any = None, **options: Any) -> None:
        options = self.options | {"run_dir": self.folder / name} | options
        self.tried(name, lambda: fit(Model(), guide or Guide(), x, **options))

    def tried(self, name: str, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        kind = message = ""
        try:
            work()
        except BaseException as error:
            kind, message = type(error).__name__, str(error)
        self.endings[name] = Ending(kind, message, time.monotonic() - began)


def shuffled_anew(rank: int) -> Iterator[Tensor]:
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(rank))
    return iter(X[order].split(16))


class Shared(Model):
    """With a latent that all rows share."""

    def forward(self, x: Tensor) -> None:
        pyro.sample("shared", dist.Normal(x.new_zeros(()), 1.0))
        super().forward(x)


class SharedGuide(Guide):
    def forward(self, x: Tensor) -> None:
        pyro.sample("shared", dist.Normal(self.log_scale.sum(), 1.0))
        super().forward(x)


class Loader:
    """An iterable of batches, made again for each epoch."""

    def __init__(self, make: Callable[[], Iterator[Tensor]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Tensor]:
        return self.make()


def work(rank: int, folder: Path) -> dict[str, Ending]:
    """All faults one after the other: after each, the processes still understand each other."""
    two = Two(rank, folder)
    for name, (target, where) in PATCHED.items():
        with patch(target, full) if rank == where else patch.dict({}):
            two.try_fit(name)
    save, calls = "ppl_vae.training.checkpoints.save_checkpoint", [0]

    def second(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            full()

    with patch(save, second):  # with the last message sent
        two.try_fit("the last checkpoint", max_epochs=1)
    two.try_fit("locked")
    two.try_fit("holds a training")
    two.try_fit("a file/run")
    two.try_fit("nothing to resume", resume=True)

    def interrupting(*_: Any) -> Any:
        interrupted(two.pids[which])
        raise AssertionError("only for a process that is interrupted itself")

    for which, name in ((0, "interrupted"), (1, "the second, interrupted")):
        target = "ppl_vae.training.step.Step._gradients"
        with patch(target, interrupting) if rank == which else patch.dict({}):
            two.try_fit(name)
    if rank == 0:  # interrupts the other one, which waits for it

        def transform(x: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] == 9:
                interrupted(two.pids[1])
            return x
    else:

        def transform(x: Tensor) -> Tensor:
            return x

    two.try_fit("interrupted while it waits", transform=transform)

    # What the processes are given differs.
    two.try_fit("an option", batch_size=16 + rank)
    two.try_fit("a folder", run_dir=None if rank else two.folder / "a folder")
    two.try_fit("going on", resume=rank == 1)
    two.try_fit("rows", X + rank)
    two.try_fit("held-out rows differ", validation=HELD_OUT + rank)
    two.try_fit("order", Loader(partial(shuffled_anew, rank)), run_dir=None)
    two.try_fit("sizes", [X[:20], X[20 : 40 + rank]], run_dir=None)
    two.try_fit("number", [X[:20], X[20:40], X[40:]][: 3 - rank], run_dir=None)
    two.try_fit("number the other way", [X[:20], X[20:40], X[40:]][: 2 + rank], run_dir=None)
    two.try_fit("rows of their own", guide=PerRow(MeanField((3,), 2, MLP((4,))), X), batch_size=50)

    def refit() -> None:
        with patch(save, full) if rank == 0 else patch.dict({}):
            refit_guide(Model(), Guide(), X, **two.options, run_dir=folder / "refit")

    two.tried("refit", refit)

    def shared() -> None:  # one batch of all rows, of which each process has a half
        with warnings.catch_warnings():
            warnings.simplefilter("error", PairWarning)
            fit(Shared(), SharedGuide(), X, **(two.options | {"batch_size": 50}))

    two.tried("a term of all rows", shared)
    two.try_fit("well", Loader(partial(shuffled_anew, 0)))
    return two.endings


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Ending]]:
    folder = tmp_path_factory.mktemp("together")
    fit(Model(), Guide(), X, max_epochs=1, run_dir=folder / "holds a training")
    (folder / "a file").touch()
    with RunFolder.open(folder / "locked"):
        found: list[dict[str, Ending]] = Ranks(lambda rank: work(rank, folder), folder).end(120)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        *((name, "DiskFullError", "/full/file was not written: no room") for name in PATCHED),
        ("the last checkpoint", "DiskFullError", "/full/file was not written"),
        ("refit", "DiskFullError", "/full/file was not written"),
        ("locked", "LockedError", "is being written by"),
        ("holds a training", "FileExistsError", "holds checkpoints of an earlier training"),
        ("a file/run", "NotADirectoryError", "a file is a file"),
        ("nothing to resume", "FileNotFoundError", "there is no checkpoint to resume from"),
        ("interrupted", "KeyboardInterrupt", ""),
        ("the second, interrupted", "KeyboardInterrupt", ""),
        ("interrupted while it waits", "KeyboardInterrupt", ""),
        ("an option", "ValueError", "was given something else than process 0: batch_size"),
        ("a folder", "ValueError", "was given something else than process 0: run_dir"),
        ("going on", "ValueError", "was given something else than process 0: resume"),
        ("rows", "ValueError", "was given something else than process 0: data. Give all of them"),
        ("held-out rows differ", "ValueError", "else than process 0: validation"),
        ("order", "ValueError", "process 0: the first batch of an epoch. Each process takes its"),
        (
            "sizes",
            "RuntimeError",
            "process 0 is at a step with 20 rows, process 1 is at a step with",
        ),
        (
            "number",
            "RuntimeError",
            "process 0 is at a step with 10 rows, process 1 is at the end of",
        ),
        (
            "number the other way",
            "RuntimeError",
            "is at the end of an epoch, process 1 is at a step",
        ),
        ("rows of their own", "PairError", "cannot be divided among 2 processes: train in one"),
        ("a term of all rows", "PairWarning", "counts once in each batch, not once in all"),
        ("well", "", ""),
    ],
)
def test_an_error_of_one_process_ends_both(
    endings: list[dict[str, Ending]], name: str, kind: str, words: str
) -> None:
    for ended in (ending[name] for ending in endings):
        assert ended.kind == kind, ended
        assert words in ended.message
        assert ended.seconds < 20  # the machine may be slow


@pytest.mark.parametrize(
    "error",
    [
        DiskFullError(Path("folder/file"), 28),
        CorruptFileError(Path("folder/file"), "it is damaged"),
        DivergenceError("the loss became NaN", 3, "z"),
    ],
)
def test_errors_can_be_sent(error: Any) -> None:
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is type(error)
    assert str(sent) == str(error)
    assert vars(sent) == vars(error)
