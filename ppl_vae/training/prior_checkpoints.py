"""The state of `refit_prior` on disk, so that a killed call goes on as if nothing had happened."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

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

CHECKPOINT_SECONDS = 1.0
"""Shortest time between checkpoints."""

Weights = dict[str, Tensor]


@dataclass
class Learned:
    """How far a prior of codes has learned.

    Attributes:
        history: The rates of each epoch.
        best: The epoch with the least held-out rate.
        least: That rate.
        kept: The weights after it.
        seconds: What the epochs took.
    """

    history: list[dict[str, float]]
    best: int
    least: float
    kept: Weights
    seconds: float = 0.0

    def has_stopped(self, max_epochs: int, patience: int) -> bool:
        """Whether it takes no further epoch."""
        epochs = len(self.history)
        return epochs >= max_epochs or epochs - self.best >= patience


@dataclass(eq=False)
class PriorCheckpoints:
    """Writes and restores the state after an epoch of a prior of codes.

    Codes are not in it: with the same seed, they are drawn again.

    Attributes:
        folder: The run folder; None writes nothing.
        seed: The seed of the call.
        device: Where the priors are.
        facts: What must be the same when a call is resumed, by name, besides the shapes of the priors.
    """

    folder: RunFolder | None
    seed: int | None
    device: torch.device = field(default=torch.device("cpu"), init=False)
    facts: Mapping[str, Any] = field(default_factory=dict, init=False)
    _ended: list[Learned] = field(default_factory=list, init=False)
    _read: dict[str, Any] = field(default_factory=dict, init=False)
    _read_facts: dict[str, Any] = field(default_factory=dict, init=False)
    _saved_at: float = field(default=-torch.inf, init=False)

    @classmethod
    def of(cls, folder: RunFolder | None, resume: bool, seed: int | None) -> PriorCheckpoints:
        """Those of a call: with a folder, the call has a seed, that of the one which it resumes.

        Raises:
            FileNotFoundError: There is no checkpoint to resume from.
            ValueError: The checkpoints are of another function, or of another seed.
        """
        if folder is None:
            return cls(None, seed)
        if not resume:
            return cls(folder, int(torch.randint(2**31, ())) if seed is None else seed)
        state, facts = load_checkpoint(folder.path / CHECKPOINTS)
        require_kind(folder, "refit_prior", {"ended", "learned", "optimizer"} <= state.keys())
        require_same(folder, {"seed": seed}, facts)
        found = cls(folder, facts["seed"])
        found._read, found._read_facts = state, facts
        return found

    def compare(self, device: torch.device, facts: Mapping[str, Any]) -> None:
        """Notes what must be the same in each call, and compares it with that of the call that is resumed.

        Raises:
            ValueError: Something differs.
        """
        self.device, self.facts = device, facts
        if self.folder is not None and self._read_facts:
            now = {**facts, "config": self.folder.config}
            require_same(self.folder, now, self._read_facts)

    def restore(
        self, prior: nn.Module, optimizer: Optimizer, max_epochs: int, patience: int
    ) -> Learned | None:
        """Puts the next prior, its optimizer and random generators back; None if it has not begun.

        Raises:
            ValueError: The prior had ended for lack of epochs, and others followed.
        """
        number, ended = len(self._ended), self._read.get("ended", [])
        if not self._read or number > len(ended):
            return None
        if number < len(ended):
            learned = Learned(**ended[number])
            if not learned.has_stopped(max_epochs, patience):
                raise ValueError(
                    f"max_epochs={max_epochs} and patience={patience} would have taken the prior of a lower "
                    f"level further, which has ended after {len(learned.history)} epochs: priors of several "
                    "levels go on with the numbers that they were begun with; with others, fit them again from "
                    "the start"
                )
            prior.load_state_dict(learned.kept)
            return learned
        prior.load_state_dict(self._read["prior"])
        restore_optimizer(optimizer, self._read["optimizer"])
        set_random_state(self._read["generators"], self.device)
        return Learned(**self._read["learned"])

    def save(self, prior: nn.Module, optimizer: Optimizer, learned: Learned, at_once: bool) -> None:
        """Writes a checkpoint, unless the last one was written not long ago.

        Args:
            prior: The prior after an epoch.
            optimizer: Its optimizer.
            learned: How far it has learned.
            at_once: Whether to write in any case.
        """
        if self.folder is None:
            return
        if not at_once and time.monotonic() - self._saved_at <= CHECKPOINT_SECONDS:
            return
        state = {
            "ended": [vars(each) for each in self._ended],
            "learned": vars(learned),
            "prior": prior.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generators": random_state(self.device),
        }
        epochs = len(learned.history) + sum(len(each.history) for each in self._ended)
        facts = {**self.facts, "seed": self.seed, "config": self.folder.config}
        save_checkpoint(self.folder.path / CHECKPOINTS, epochs, state, facts)
        self.folder.begin()
        self._saved_at = time.monotonic()

    def end(self, learned: Learned) -> None:
        """Notes that a prior has ended: the next one begins."""
        self._ended.append(copy.copy(learned))
