"""The whole state of a training on disk, so that a killed run continues as if nothing had happened."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.pairs import Pair
from ppl_vae.runs import (
    CHECKPOINTS,
    RunFolder,
    load_checkpoint,
    require_kind,
    require_same,
    restore_optimizer,
    save_checkpoint,
)
from ppl_vae.runtime import random_state, set_random_state
from ppl_vae.training.processes import Processes
from ppl_vae.training.progress import Progress

CHECKPOINT_SECONDS = (1.0, 60.0)
"""Shortest time between checkpoints at the ends of epochs, and time after which one is due during an epoch."""

LARGEST_SHARE = 0.02
"""Largest share of the time that checkpoints may take, if they take longer than these times allow."""


@dataclass(eq=False)
class Checkpoints:
    """Writes and restores the state of a training, and knows when a checkpoint is due.

    Attributes:
        folder: The run folder; None writes nothing. Once a step's checkpoint is there, the run has begun.
        facts: What must be the same when a run is resumed, by name.
        pair: The pair.
        optimizer: Its optimizer.
        scheduler: The schedule of the optimizer.
        processes: The processes of the training, all of which call each method.
    """

    folder: RunFolder | None
    facts: Mapping[str, Any]
    pair: Pair
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    processes: Processes
    _saved_at: float = field(default=-math.inf, init=False)
    _took: float = field(default=0.0, init=False)

    def is_due(self, amid_epoch: bool) -> bool:
        """Whether the last checkpoint was long ago, by the clock of this process."""
        least = CHECKPOINT_SECONDS[amid_epoch]
        if least > 0:
            least = max(least, self._took / LARGEST_SHARE)
        return time.monotonic() - self._saved_at > least

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
        now = {"config": self.folder.config, "progress": vars(progress), "sums": list(sums)}
        facts = {**self.facts, **now}
        save_checkpoint(self.folder.path / CHECKPOINTS, progress.step, state, facts)
        self._took = time.monotonic() - self._saved_at
        if progress.step > 0:
            self.folder.begin()

    def restore(self, seed: int | None) -> tuple[Progress, int, dict[str, Tensor] | None]:
        """Puts everything back to where the newest good checkpoint was taken, which the first process reads.

        Args:
            seed: The seed that is asked for; None takes that of the run.

        Returns:
            What `save` was given.

        Raises:
            ValueError: The run was started with another seed, with other options, or with other rows.
        """
        assert self.folder is not None
        read = load_checkpoint(self.folder.path / CHECKPOINTS) if self.processes.is_first else None
        saved, facts = self.processes.from_first(read) or ({}, {})
        require_kind(self.folder, "fit", {"seed", "optimizer"} <= saved.keys())
        now = {"config": self.folder.config, "seed": seed, **self.facts}
        require_same(self.folder, now, {**facts, "seed": saved["seed"]})
        device = self.processes.device
        self.pair.load_state({n: t.to(device) for n, t in saved["pair"].items()})
        restore_optimizer(self.optimizer, saved["optimizer"])
        if self.scheduler is not None and saved["scheduler"] is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        set_random_state(saved["generators"][self.processes.rank], device)
        progress = Progress(**facts["progress"])
        if "sums" in facts:  # older checkpoints have those of the first process alone
            progress.sums = facts["sums"][self.processes.rank]
        return progress, saved["seed"], saved["best"]
