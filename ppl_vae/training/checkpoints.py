"""The whole state of a training on disk, so that a killed run continues as if nothing had happened."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.pairs import Pair
from ppl_vae.runtime import (
    CorruptFileError,
    flatten,
    random_state,
    read_tensors,
    set_random_state,
    unflatten,
    write_tensors,
)
from ppl_vae.training.processes import Processes
from ppl_vae.training.progress import Progress

CHECKPOINT_SECONDS = (1.0, 60.0)
"""Shortest time between checkpoints at the ends of epochs, and time after which one is due during an epoch."""

KEPT = 2
"""Checkpoints kept in a run folder: the newest and, in case it turns out damaged, the one before."""


@dataclass(eq=False)
class Checkpoints:
    """Writes and restores the state of a training, and knows when a checkpoint is due.

    Attributes:
        folder: The run folder; None writes nothing.
        facts: What must be the same when a run is resumed, by name.
        pair: The pair.
        optimizer: Its optimizer.
        scheduler: The schedule of the optimizer.
        processes: The processes of the training, all of which call each method.
    """

    folder: Path | None
    facts: Mapping[str, Any]
    pair: Pair
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    processes: Processes
    _saved_at: float = field(default=-math.inf, init=False)

    def is_due(self, amid_epoch: bool) -> bool:
        """Whether the last checkpoint was long ago, by the clock of this process."""
        return time.monotonic() - self._saved_at > CHECKPOINT_SECONDS[amid_epoch]

    def save(self, progress: Progress, seed: int, best: dict[str, Tensor] | None) -> None:
        """Writes a checkpoint, in the first process.

        Args:
            progress: How far the training has come.
            seed: Its seed.
            best: The best weights so far, if it stops early.
        """
        self._saved_at = time.monotonic()
        if self.folder is None:
            return
        mine = random_state(self.processes.device), progress.sums
        generators, sums = zip(*self.processes.gathered(mine), strict=True)
        if not self.processes.is_first:
            return
        state = {
            "pair": self.pair.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generators": list(generators),
            "seed": seed,
            "best": best,
        }
        # Amid an epoch, each process has summed over rows of its own.
        facts = {**self.facts, "progress": vars(progress), "sums": list(sums)}
        save_checkpoint(self.folder / "checkpoints", progress.step, state, facts)

    def restore(self) -> tuple[Progress, int, dict[str, Tensor] | None]:
        """Puts everything back to where the newest good checkpoint was taken.

        Returns:
            What `save` was given.

        Raises:
            ValueError: The run was started with other options.
        """
        assert self.folder is not None
        saved, facts = load_checkpoint(self.folder / "checkpoints")
        for name, now in self.facts.items():
            if facts[name] != now:
                raise ValueError(
                    f"{self.folder}: the run was started with {name} = {facts[name]}, now it is {now}; "
                    "a resumed run must be the same in all but max_epochs and patience"
                )
        device = self.processes.device
        self.pair.load_state({n: t.to(device) for n, t in saved["pair"].items()})
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None and saved["scheduler"] is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        set_random_state(saved["generators"][self.processes.rank], device)
        progress = Progress(**facts["progress"])
        if "sums" in facts:  # older checkpoints have those of the first process alone
            progress.sums = facts["sums"][self.processes.rank]
        return progress, saved["seed"], saved["best"]


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes `step-N.safetensors` atomically, then removes all but the newest ones.

    Args:
        folder: The run's `checkpoints` folder.
        step: Optimizer steps taken.
        state: Nested dicts and lists of tensors and numbers.
        facts: Information that JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat, tensors = flatten(state)
    write_tensors(_file(folder, step), tensors, {"facts": facts, "state": flat})
    for old in checkpoint_files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    for left_behind in folder.glob(".step-*.tmp"):  # by a process that was killed while writing
        left_behind.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest good checkpoint, as `(state, facts)`; a warning names damaged ones that are passed over.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CorruptFileError: Every checkpoint is damaged.
    """
    files = checkpoint_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder}: there is no checkpoint to resume from; start the training again"
        )
    errors: list[CorruptFileError] = []
    for file in files:
        try:
            tensors, metadata = read_tensors(file)
        except CorruptFileError as error:
            errors.append(error)
            continue
        for passed_over in errors:
            warnings.warn(f"{passed_over}; continuing from {file.name} instead", stacklevel=2)
        return unflatten(metadata["state"], tensors), metadata["facts"]
    why = str(errors[0]).removeprefix(f"{errors[0].path}: ")
    raise CorruptFileError(
        errors[0].path,
        f"{why}; no other checkpoint in the folder is good: start the training again",
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"
