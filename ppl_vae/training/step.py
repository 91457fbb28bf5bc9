"""One step of a training: the gradients of a batch, and what the optimizer makes of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_vae.capture import (
    RECORD_AFTER,
    CapturedLoss,
    CaptureError,
    Recording,
    StaleRecordingError,
)
from ppl_vae.objectives import Loss, Resolved, Turn, checked, no_gradient, without_parameters
from ppl_vae.pairs import (
    Batch,
    Layout,
    Layouts,
    Pair,
    PairError,
    first_line,
    num_rows,
    selects_outside,
    tensors_of,
)
from ppl_vae.runs import RunFolder
from ppl_vae.runtime import random_state, set_random_state
from ppl_vae.training.errors import DivergenceError, divergence
from ppl_vae.training.processes import Processes
from ppl_vae.training.progress import Progress
from ppl_vae.training.turns import LOSS, Turns

_logger = logging.getLogger(__name__)

STEP_METRICS = ("loss", "elbo", "rate", "distortion")
"""What each step measures, nats per row."""

COMPILED = (1000, 10_000)
"""Captured steps are compiled from the first number on if the training has at least the second number of steps.

Inductor takes about as long to compile a small VAE as its code saves in ten thousand steps. The choice is
by the number of steps, not by the time they take: a resumed training must make the same one.
"""


class Gradients(NamedTuple):
    """Metrics and loss of a batch; its gradients are in `leaf.grad`.

    Attributes:
        metrics: Those of `STEP_METRICS`, by name; empty if there is no batch.
        loss: The loss, if Pyro computed it.
    """

    metrics: dict[str, float]
    loss: Loss | None = None


class CapturedGradients:
    """Gradients by a recording of the step, until a step cannot be recorded.

    Args:
        loss: The recordings.
        full_batch: Rows of the batches that may be compiled for: the last batch of an epoch may be smaller.
        compile: Whether Inductor compiles the recording; None where it pays.
        total_steps: Steps of the whole training; None if that is not known.
        processes: The processes; each of them records for itself.

    Attributes:
        doubt: Why steps that have been taken may be wrong, if they may.
    """

    def __init__(
        self,
        loss: CapturedLoss,
        full_batch: int,
        compile: bool | None,
        total_steps: int | None,
        processes: Processes,
    ) -> None:
        self.loss: CapturedLoss | None = loss
        self.full_batch = full_batch
        self.processes = processes
        self.doubt: str | None = None
        self.compiled_from: int | None = RECORD_AFTER if compile else None
        if compile is None and total_steps is not None and total_steps >= COMPILED[1]:
            self.compiled_from = COMPILED[0]

    def __call__(self, batch: Batch, beta: float, step: int) -> dict[str, float]:
        """Sets the gradients and returns the metrics, or nothing if Pyro has to do the step.

        Args:
            batch: The rows.
            beta: Weight of the KL.
            step: Steps taken before.
        """
        if self.loss is None:
            return {}
        compiled = self._is_compiled(self.loss, batch, step)
        if not compiled and not self.loss.worth_recording(batch):
            return {}
        generators = random_state(self.processes.device, torch_only=True)
        try:
            metrics = self.loss(batch, beta, compiled).tolist()
        except CaptureError as error:
            self.give_up(error, step)
            set_random_state(generators, self.processes.device)
            return {}
        if not all(map(math.isfinite, metrics)):
            # Pyro does the step again with the same random numbers, and names the site.
            set_random_state(generators, self.processes.device)
            return {}
        return dict(zip(STEP_METRICS, metrics, strict=False))

    def give_up(self, error: CaptureError, step: int) -> None:
        """Goes on in Pyro, after so many steps, and says why."""
        self.loss = None
        if isinstance(error, StaleRecordingError):
            self.doubt = f"up to step {step}, {error}. Train again with capture=False"
        if self.processes.is_first:
            _logger.warning("capture is off, the training goes on in Pyro: %s", error)

    def is_compiled_from(self, step: int) -> bool:
        """Whether full batches run compiled after so many steps."""
        return (
            self.loss is not None and self.compiled_from is not None and step >= self.compiled_from
        )

    def ahead(self, batch: Batch, beta: float, step: int) -> tuple[Recording, int] | None:
        """The recording for a full batch and for how many like it; None if the step has to be a single one.

        Args:
            batch: The rows of the next step.
            beta: Weight of the KL.
            step: Steps taken before.
        """
        if self.loss is None:
            return None
        generators = random_state(self.processes.device, torch_only=True)
        try:
            return self.loss.ahead(batch, beta)
        except CaptureError as error:
            self.give_up(error, step)
            set_random_state(generators, self.processes.device)
            return None

    def count(self, batch: Batch, steps: int) -> None:
        """Counts steps that were taken by that recording."""
        if self.loss is not None:
            self.loss.count(batch, steps)

    def weight(self, beta: float) -> Tensor | None:
        """Beta as the recording takes it; None if it is a constant in there."""
        assert self.loss is not None
        return next(iter(self.loss.weight(beta)), None)

    def recheck_state(self) -> None:
        """Checks the programs' Python state before the next step."""
        if self.loss is not None:
            self.loss.recheck_state()

    def _is_compiled(self, loss: CapturedLoss, batch: Batch, step: int) -> bool:
        """Whether a step is run compiled.

        Decided by the step number alone, so a resumed run decides the same. Compiled steps do not agree
        with Pyro bit by bit; recordings do, so it makes no difference when they are made.
        """
        if not self.is_compiled_from(step):
            return False
        return num_rows(batch) == self.full_batch and loss.has_room(batch)


@dataclass(eq=False)
class Step:
    """Moves the parameters once: gradients, their sum over processes, clipping, the optimizer.

    Attributes:
        pair: The pair.
        layouts: The layouts of its batches.
        objective: The objective.
        parameters: The trainable leaves by name.
        optimizer: The optimizer of the leaves.
        captured: Takes the place of Pyro where it can; None for never.
        processes: The processes that take the step together.
        clip_grad_norm: Largest norm of the whole gradient.
        folder: The run folder, for the message of a divergence.
        turns: Several losses, each of which moves its own parameters; None for one loss.
        keeps_some: Whether the objective leaves trainable parameters as they are.
        rows_per_batch: The mean number of rows in a batch, if batches are weighed by their rows: the gradient
            of n rows counts n / `rows_per_batch` times.
        has_moved: Whether a batch has had a gradient. A batch in whose loss no trainable parameter enters has
            none: it counts in the metrics alone.
    """

    pair: Pair
    layouts: Layouts
    objective: Resolved
    parameters: dict[str, Tensor]
    optimizer: Optimizer
    captured: CapturedGradients | None
    processes: Processes
    clip_grad_norm: float | None
    folder: RunFolder | None
    turns: Turns | None = None
    keeps_some: bool = False
    rows_per_batch: float | None = None
    has_moved: bool = False

    def __post_init__(self) -> None:
        self.leaves = list(self.parameters.values())
        self._fewest: int | None = None  # rows of the batches so far
        self._shapes: dict[str, None] = {}  # of their rows

    def __call__(
        self,
        batch: Batch | None,
        rows: int,
        beta: float,
        progress: Progress,
        checkpoint_due: bool,
        moved: Collection[str] | None = None,
    ) -> tuple[dict[str, float], bool]:
        """Takes the step: the one of its loss, or the turns of several.

        Args:
            batch: This process's rows of the global batch; None if there are none.
            rows: Rows of the global batch.
            beta: Weight of the KL.
            progress: The steps taken before.
            checkpoint_due: Whether this process would like to write a checkpoint.
            moved: The names of the parameters that the step moves; None for all.

        Returns:
            Metrics of this process's rows (empty if there are none), and whether a checkpoint is due, on
            which all processes agree.

        Raises:
            DivergenceError: Loss or gradient is not finite. The parameters are as they were, or, of several
                turns, as those before have left them.
        """
        if self.turns is None:
            return self._move(batch, rows, beta, progress, checkpoint_due, moved)
        metrics: dict[str, float] = {}
        for turn in self.turns.due(progress.step):
            moved = self.turns.moved[turn.name]
            found, checkpoint_due = self._move(
                batch, rows, beta, progress, checkpoint_due, moved, turn
            )
            if found:
                own = found["loss"]
                metrics = {**found, **metrics, "loss": metrics.get("loss", 0.0) + own}
                metrics[LOSS.format(turn.name)] = own
        return metrics, checkpoint_due

    def _move(
        self,
        batch: Batch | None,
        rows: int,
        beta: float,
        progress: Progress,
        checkpoint_due: bool,
        moved: Collection[str] | None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, float], bool]:
        """Moves parameters once, along the gradients of a loss."""
        self.clear_gradients()
        found = Gradients({})
        if batch is not None:
            found = self._gradients(batch, rows, beta, progress, turn)
        reached = self._reached(turn)
        checkpoint_due = self.processes.sum_gradients(reached, checkpoint_due, rows)
        for name, leaf in self.parameters.items():
            if moved is not None and name not in moved:
                leaf.grad = None  # optimizers leave it as it is
        # The metrics of a recording show whether its gradients are finite; those of Pyro do not.
        by_pyro = found.loss is not None
        if by_pyro or self.processes.count > 1 or self.clip_grad_norm is not None:
            self._check_and_clip(found.loss, batch, progress, turn)
        self.has_moved = self.has_moved or any(
            leaf.grad is not None and (self.processes.count == 1 or bool(leaf.grad.any()))
            for leaf in self.leaves
        )
        self.processes.learn(self.pair)
        self.optimizer.step()
        return found.metrics, checkpoint_due

    def clear_gradients(self) -> None:
        """Removes the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def _reached(self, turn: Turn | None) -> list[Tensor]:
        """The parameters that a loss gives gradients to."""
        return self.leaves if turn is None or self.turns is None else self.turns.leaves[turn.name]

    def _loss(self, batch: Batch, beta: float, turn: Turn | None) -> Loss:
        """The loss of the step, or that of a turn, by Pyro."""
        if turn is None:
            return self.objective.loss(self.layouts, batch, beta)

        def run(layout: Layout) -> Loss:
            name = type(
                self.objective.of(layout, batch)
            ).__name__  # it checks a batch of a new kind
            return checked(f"{turn} of {name}", turn.loss(self.pair, layout, batch, beta))

        return self.layouts.run(batch, run)

    def _gradients(
        self, batch: Batch, rows: int, beta: float, progress: Progress, turn: Turn | None
    ) -> Gradients:
        """The gradients of a batch, times its share of all rows: by a recording, or by Pyro.

        Its share is that of the rows of the global batch, or of a batch of mean size.
        """
        loss: Loss | None = None
        with self.processes.fabric.autocast(), self._explained(batch, progress):
            metrics = {} if self.captured is None else self.captured(batch, beta, progress.step)
            if not metrics:
                loss = self._loss(batch, beta, turn)
        if loss is not None:
            self.clear_gradients()  # those of a recording that was not finite or differed from Pyro
            if not math.isfinite(float(loss.loss.detach())):
                raise self._diverged("the loss", loss, batch, progress, turn)
            if loss.loss.requires_grad:
                some = self.keeps_some or turn is not None
                loss.loss.backward(inputs=self._reached(turn) if some else None)
            elif not without_parameters(loss.traces):
                name = None if turn is None or self.turns is None else self.turns.objective
                raise TypeError(
                    no_gradient(f"{turn} of {name}" if name else self.objective.requested)
                )
            parts = (loss.loss, loss.elbo, loss.rate, loss.distortion)
            metrics = dict(zip(STEP_METRICS, (float(part.detach()) for part in parts), strict=True))
        share = num_rows(batch) / (self.rows_per_batch or rows)
        if share != 1.0:
            for leaf in self.leaves:
                if leaf.grad is not None:
                    leaf.grad = leaf.grad * share
        return Gradients(metrics, loss)

    @contextmanager
    def _explained(self, batch: Batch, progress: Progress) -> Iterator[None]:
        """Says of an error in which step it is, and whether the batch is of a new size or shape."""
        rows, shapes = num_rows(batch), _shapes(batch)
        try:
            yield
        except Exception as error:
            error.add_note(f"while training, at step {progress.step + 1}")
            if isinstance(error, PairError):
                raise
            if selected := selects_outside(self.pair, batch, error):
                where = (
                    f"batch {progress.step_in_epoch} of epoch {progress.epoch + 1} (counted from 0)"
                )
                raise PairError(f"{where}: {selected} ({first_line(error)})") from error
            if self._fewest is None:
                raise
            if shapes not in self._shapes:
                message = _of_other_rows(shapes, self._shapes, error, progress)
            elif rows < self._fewest:
                message = _of_a_small_batch(rows, self._fewest, error, progress)
            else:
                raise
            raise PairError(message) from error
        self._shapes[shapes] = None
        self._fewest = min(rows, self._fewest or rows)

    def _check_and_clip(
        self, loss: Loss | None, batch: Batch | None, progress: Progress, turn: Turn | None
    ) -> None:
        gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            names = [
                name
                for name, leaf in self.parameters.items()
                if leaf.grad is not None and not bool(torch.isfinite(leaf.grad).all())
            ]
            what = f"the gradient of parameter '{names[0]}'" if names else "the gradient's norm"
            raise self._diverged(what, loss, batch, progress, turn)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.leaves, self.clip_grad_norm, norm)

    def _diverged(
        self,
        what: str,
        loss: Loss | None,
        batch: Batch | None,
        progress: Progress,
        turn: Turn | None,
    ) -> DivergenceError:
        dim = self.layouts.known[0].dim
        what = what if turn is None else f"{what} of {turn}"
        return divergence(what, loss, batch, dim, progress, self.folder)


def _shapes(batch: Batch) -> str:
    """The shapes and dtypes of a row in words."""
    return ", ".join(f"{tuple(x.shape[1:])} {x.dtype}" for x in tensors_of(batch))


def _of_other_rows(
    shapes: str, before: Collection[str], error: Exception, progress: Progress
) -> str:
    """The message for a program that raises on rows of another shape than all before."""
    return (
        f"batch {progress.step_in_epoch} of epoch {progress.epoch + 1} (counted from 0) has rows of shape "
        f"{shapes}, on which the pair does not run ({first_line(error)}); those before had "
        f"{' or '.join(before)}"
    )


def _of_a_small_batch(rows: int, before: int, error: Exception, progress: Progress) -> str:
    """The message for a program that raises on a batch of fewer rows than all batches before."""
    few = "1 row" if rows == 1 else f"{rows} rows"
    return (
        f"batch {progress.step_in_epoch} of epoch {progress.epoch + 1} (counted from 0) has {few}, on which "
        f"the pair does not run in training ({first_line(error)}); it runs on {before} rows. Choose another "
        "batch_size, or leave out a last batch that is small (drop_last=True of a DataLoader); squeeze() "
        "without a dimension and batch norm, for example, need more than one row"
    )
