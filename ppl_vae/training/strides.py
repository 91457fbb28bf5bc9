"""Many steps in a row without Pyro, and without reading a number in between."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from torch import Tensor
from torch.fx import Node

from ppl_vae.capture import CaptureError, Recording
from ppl_vae.pairs import Batch, take_rows
from ppl_vae.runtime import random_state, set_random_state
from ppl_vae.training.engines import MOST_STEPS, GraphEngine, LoopEngine
from ppl_vae.training.progress import Progress
from ppl_vae.training.rows import TrainingRows
from ppl_vae.training.step import STEP_METRICS, CapturedGradients, Step
from ppl_vae.training.updates import Update

_logger = logging.getLogger(__name__)

STRIDE_SECONDS = 0.25
"""Seconds that a stride should take: as often its numbers are read, and the progress bar moves."""

STEPS_WITH_USERS_CODE = 50
"""Most steps of a stride if code of the user's runs in it, which may change the programs' Python state."""

FIRST_STEPS = 5
"""Steps of the first stride, whose time is not known."""


class Strides:
    """Takes steps by a compiled recording, one after the other, and reads their metrics at the end.

    A single step goes back to Python several times: for the rows, for the optimizer, and to read its loss. In
    a stride, nothing waits for a number, and on a GPU one CUDA graph does the whole step. The numbers are those
    of single steps, bit by bit, so that a resumed training may divide its steps in another way. Ahead of a step
    whose loss is not finite a stride ends, and a single step finds out why.

    Args:
        step: What takes single steps.
        captured: Its recordings.
        rows: The rows, in memory.
    """

    def __init__(self, step: Step, captured: CapturedGradients, rows: TrainingRows) -> None:
        self.step, self.captured, self.rows = step, captured, rows
        self.update = Update(step.optimizer, step.leaves)
        self._seconds = math.inf  # per step
        self._singly = 0  # whether the next step has to be a single one
        self._engine: LoopEngine | None = None
        self._graphs = rows.processes.device.type == "cuda"

    @classmethod
    def of(cls, step: Step, rows: TrainingRows) -> Strides | None:
        """The strides of a training; None if all of its steps have to be single ones."""
        if step.captured is None or not rows.batches.in_memory or step.processes.count > 1:
            return None
        return cls(step, step.captured, rows)

    def take(
        self,
        progress: Progress,
        seed: int,
        beta_at: Callable[[int], float],
        most: int | None = None,
    ) -> list[dict[str, float]]:
        """Takes as many of the next steps as it may.

        Args:
            progress: The steps taken before.
            seed: That of the order of the rows.
            beta_at: The weight of the KL by the number of a step in its epoch.
            most: Most steps to take, if there is a limit.

        Returns:
            The metrics of each step; none if the next step has to be a single one.
        """
        if self._singly:
            self._singly -= 1
            return []
        size, first = self.rows.batch_size, progress.step_in_epoch
        assert self.rows.number is not None
        left = self.rows.number // size - first
        left = left if most is None else min(left, most)
        if left < 1 or not self.captured.is_compiled_from(progress.step):
            return []
        order = self.rows.batches.order(size, seed, progress.epoch)
        batch = self._next_batch(order, first)
        with self.step.processes.fabric.autocast():  # of the steps that are compared with Pyro
            found = self.captured.ahead(batch, beta_at(first), progress.step)
        if found is None:
            return []
        recording, allowed = found
        engine = self._engine_for(recording, batch)
        count = min(left, allowed, MOST_STEPS, FIRST_STEPS)
        if math.isfinite(self._seconds):
            fitting = max(1, int(STRIDE_SECONDS / self._seconds))
            most = STEPS_WITH_USERS_CODE if engine.runs_users_code else MOST_STEPS
            count = min(left, allowed, most, fitting)
        betas = [beta_at(first + i) for i in range(count)]
        started = time.perf_counter()
        with self.step.processes.fabric.autocast():
            weights = [self.captured.weight(beta) for beta in betas]
            metrics = engine.run(order, first, weights)
        self._singly = int(len(metrics) < count)
        if metrics:
            self._seconds = (time.perf_counter() - started) / len(metrics)
            self.captured.count(batch, len(metrics))
            self.step.has_moved = True
        return [dict(zip(STEP_METRICS, row, strict=False)) for row in metrics]

    def _next_batch(self, order: Tensor, step: int) -> Batch:
        """The batch of the next step, which is drawn again in the stride."""
        size, device = self.rows.batch_size, self.rows.processes.device
        generators = random_state(device, torch_only=True)
        index = order[step * size : (step + 1) * size]
        batch = self.rows.prepared(take_rows(self.rows.batches.rows, index))
        set_random_state(generators, device)
        return batch

    def _engine_for(self, recording: Recording, batch: Batch) -> LoopEngine:
        """What takes the steps by this recording, with the optimizer as it is."""
        engine = self._engine
        if engine is not None and engine.fits(recording):
            return engine
        self._engine = None
        lean = self.update.prepare(_gradients_of(recording, self.step.leaves))
        given = (recording, self.update, self.rows, batch, self.step.clip_grad_norm)
        if lean and self._graphs and not self.update.has_hooks:
            try:
                self._engine = GraphEngine(*given)
            except CaptureError as error:
                self._graphs = False
                _logger.warning("the training goes on without CUDA graphs: %s", error)
        self._engine = self._engine or LoopEngine(*given)
        return self._engine


def _gradients_of(recording: Recording, leaves: list[Tensor]) -> list[Tensor | None]:
    """The leaves that get a gradient from a recording; None in the place of the others."""
    (output,) = (node for node in recording.graph.graph.nodes if node.op == "output")
    _, *gradients = output.args[0]
    return [
        leaf if isinstance(gradient, Node) else None
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
