"""The state of `fit_em` on disk, so that a killed call goes on as if nothing had happened."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae.em.progress import EMProgress
from ppl_vae.em.steps import Steps
from ppl_vae.pairs import Pair
from ppl_vae.runs import (
    CHECKPOINTS,
    RunFolder,
    load_checkpoint,
    require_kind,
    require_same,
    save_checkpoint,
    write_history,
)
from ppl_vae.runtime import random_state, set_random_state

CHECKPOINT_SECONDS = 1.0
"""Shortest time between checkpoints."""

Weights = dict[str, Tensor]


@dataclass(eq=False)
class EMCheckpoints:
    """Writes and restores the state before an E step.

    The state after an E step would also hold q, which may be larger than the data. Before it, parameters,
    optimizers and random generators say everything: a resumed call repeats the E step, with the same bits.

    Attributes:
        folder: The run folder; None writes nothing. Once there is a checkpoint of an M step, the run has begun.
        facts: What must be the same when a call is resumed, by name, besides pair and steps.
        pair: The pair.
        device: Where it computes.
    """

    folder: RunFolder | None
    facts: Mapping[str, Any]
    pair: Pair
    device: torch.device
    _taken: tuple[EMProgress, dict[str, Any]] | None = field(default=None, init=False)
    _loaded: tuple[dict[str, Any], dict[str, Any]] | None = field(default=None, init=False)
    _of_steps: dict[str, Any] = field(default_factory=dict, init=False)
    _saved_at: float = field(default=-math.inf, init=False)

    def take(self, progress: EMProgress, best: Weights | None, steps: Steps) -> None:
        """Copies the state, which the next E step may change.

        Args:
            progress: How far the call has come.
            best: The weights of the best start that has ended, if there are several.
            steps: The E and M steps.
        """
        if self.folder is None:
            return
        self._describe(steps)
        state = {
            "pair": copy.deepcopy(self.pair.state()),
            "buffers": {name: buffer.clone() for name, buffer in self._buffers().items()},
            "steps": copy.deepcopy(steps.state()),
            "generators": random_state(self.device),
            "best": best,
        }
        self._taken = progress.copy(), state

    def save(self, history: list[dict[str, float]], at_once: bool) -> None:
        """Writes what was taken last, and metrics.csv, unless the last time is not long ago.

        Args:
            history: The history after the E step.
            at_once: Whether to write in any case.
        """
        if self.folder is None or self._taken is None:
            return
        if not at_once and time.monotonic() - self._saved_at <= CHECKPOINT_SECONDS:
            return
        progress, state = self._taken
        facts = {
            **self.facts,
            **self._of_steps,
            "config": self.folder.config,
            "progress": vars(progress),
        }
        save_checkpoint(self.folder.path / CHECKPOINTS, progress.iterations, state, facts)
        if progress.iterations > 0:
            self.folder.begin()
        self.write(history)
        self._saved_at = time.monotonic()

    def write(self, history: list[dict[str, float]]) -> None:
        """Writes metrics.csv."""
        if self.folder is not None:
            write_history(self.folder.path, history)

    def load(self) -> tuple[EMProgress, Weights | None]:
        """Reads the newest good checkpoint: what `take` was given, except for the steps."""
        assert self.folder is not None
        state, facts = self._loaded = load_checkpoint(self.folder.path / CHECKPOINTS)
        require_kind(self.folder, "fit_em", {"steps", "buffers"} <= state.keys())
        return EMProgress.of(facts["progress"]), state["best"]

    def put_back(self, steps: Steps, seed: int | None) -> None:
        """Puts pair, steps and random generators back to what they were.

        Args:
            steps: The E and M steps.
            seed: The seed that is asked for; None takes that of the call.

        Raises:
            ValueError: The call was begun with other options, or with other rows.
        """
        assert self.folder is not None
        assert self._loaded is not None
        state, then = self._loaded
        self._describe(steps)
        now = {**self.facts, **self._of_steps, "config": self.folder.config, "seed": seed}
        require_same(self.folder, now, {**then, "seed": then["progress"]["seed"]})
        self.pair.load_state({n: t.to(self.device) for n, t in state["pair"].items()})
        with torch.no_grad():
            for name, buffer in self._buffers().items():
                if name in state["buffers"]:
                    buffer.copy_(state["buffers"][name])
        steps.load_state(state["steps"])
        set_random_state(state["generators"], self.device)

    def _buffers(self) -> dict[str, Tensor]:
        """All buffers: `initialize` may have set some that a module does not save."""
        return {
            f"{root}.{name}": buffer
            for root, module in self.pair.modules().items()
            for name, buffer in module.named_buffers()
        }

    def _describe(self, steps: Steps) -> None:
        """Notes what pair and steps are, the first time: later batches may bring further parameters."""
        if not self._of_steps:
            shapes = [[name, list(tensor.shape)] for name, tensor in self.pair.state().items()]
            self._of_steps = {**steps.facts(), "parameters": shapes}
