"""What takes the steps of a stride: a loop that does as little as possible, or a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.capture import CaptureError, CudaGraph, Recording
from ppl_vae.data import Binarization, Dequantization
from ppl_vae.pairs import Batch, move, take_rows, tensors_of
from ppl_vae.runtime import random_state, set_random_state
from ppl_vae.training.rows import TrainingRows
from ppl_vae.training.updates import Update

MOST_STEPS = 1000
"""Most steps of a stride: the size of its table of metrics on a GPU."""

RESIDENT_SHARE = 0.5
"""The rows stay on the GPU if they take at most this share of its free memory."""


class LoopEngine:
    """Takes steps by a recording and an update, in Python.

    Args:
        recording: Metrics and gradients of a batch.
        update: What the optimizer does with the gradients.
        rows: The rows.
        example: A batch.
        clip: Largest norm of the whole gradient; None for any.
    """

    def __init__(
        self,
        recording: Recording,
        update: Update,
        rows: TrainingRows,
        example: Batch,
        clip: float | None,
    ) -> None:
        self.recording, self.update, self.rows, self.clip = recording, update, rows, clip
        self.settings = update.settings
        self._prepare(tensors_of(example))

    def _prepare(self, example: Sequence[Tensor]) -> None:
        """Does what has to be done once, with the tensors of a batch."""

    @property
    def runs_users_code(self) -> bool:
        """Whether something of the user's runs in a stride."""
        return self.update.has_hooks or not _is_ours(self.rows)

    def fits(self, recording: Recording) -> bool:
        """Whether the object was made for this recording and the optimizer's settings as they are."""
        return self.recording is recording and self.settings == self.update.settings

    def run(self, order: Tensor, first: int, betas: Sequence[Tensor | None]) -> list[list[float]]:
        """Takes one step for each beta, or fewer: the next one fails, or its numbers are not finite.

        Args:
            order: The order of the rows in this epoch.
            first: The number of the first step in the epoch.
            betas: The weight of the KL in each step; None if it is a constant.

        Returns:
            The metrics of each step that was taken. All else is as it was before the next one.
        """
        size, device = self.rows.batch_size, self.rows.processes.device
        metrics = []
        with torch.no_grad():
            for i, beta in enumerate(betas, first):
                generators = random_state(device, torch_only=True)
                index = order[i * size : (i + 1) * size]
                batch = tensors_of(self.rows.prepared(take_rows(self.rows.batches.rows, index)))
                # An optimizer or a hook may change anything: what it has done cannot be put back.
                put_back = self.recording.undo([*batch, *_given(beta)])
                try:
                    found, gradients = self._gradients(batch, beta)
                    row = found.tolist()
                except CaptureError:
                    row = [math.nan]  # a single step finds out why
                if not all(map(math.isfinite, row)):
                    put_back()
                    set_random_state(generators, device)
                    break
                self.update(gradients)
                metrics.append(row)
        return metrics

    def _gradients(
        self, tensors: Sequence[Tensor], beta: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Metrics and gradients of a batch; clipped, with the norm as the last of the metrics."""
        found, *gradients = self.recording(*tensors, *_given(beta))
        if self.clip is not None:
            given = [gradient for gradient in gradients if gradient is not None]
            norm = torch.nn.utils.get_total_norm(given)
            share = torch.clamp(self.clip / (norm + 1e-6), max=1.0)
            torch._foreach_mul_(given, share)  # type: ignore[attr-defined, unused-ignore]
            found = torch.cat([found, norm.to(found.dtype)[None]])
        return found, gradients


class GraphEngine(LoopEngine):
    """Takes steps on a GPU, each of them by one CUDA graph: rows, gradients and update.

    The rows stay on the GPU if they fit there, and the graph picks those of its step. Otherwise, and if a
    transform of the user's makes the batches, each batch is copied to where the graph reads it.

    Raises:
        CaptureError: A step cannot be captured.
    """

    def _prepare(self, example: Sequence[Tensor]) -> None:
        rows, recording = self.rows, self.recording
        device = rows.processes.device
        scheduled = len(recording.example) > len(example)  # beta follows a schedule
        inputs = [*example, *([example[0]] if scheduled else []), *recording.tensors]
        written = [inputs[i] for i in recording.writes if i >= len(recording.example)]
        self._state = [*self.update.tensors(), *written]
        self._kept = [torch.empty_like(tensor) for tensor in self._state]
        number = torch.zeros(1, dtype=torch.long, device=device)
        self._place, self._slot = number, number.clone()
        assert rows.number is not None
        self._order = torch.zeros(rows.number, dtype=torch.long, device=device)
        self._of_order: Tensor | None = None
        self._betas = torch.zeros(MOST_STEPS, device=device) if scheduled else None
        self._offsets = torch.arange(rows.batch_size, device=device)
        self._resident = _resident(rows)
        self._inputs = [tensor.clone() for tensor in example]
        self._remember()
        found, *_ = recording(
            *self._inputs, *_given(None if self._betas is None else self._betas[0])
        )
        self._put_back()
        self._metrics: Tensor = found.new_zeros(MOST_STEPS, len(found) + (self.clip is not None))
        changed = [*self._state, self._place, self._slot, self._metrics]
        self._graph = CudaGraph(self._step, changed, device)

    def run(self, order: Tensor, first: int, betas: Sequence[Tensor | None]) -> list[list[float]]:
        """As in the loop, but no step is taken if the numbers of one of them are not finite."""
        self._remember()
        metrics: list[list[float]] = self._replayed(order, first, betas).tolist()
        good = next((i for i, row in enumerate(metrics) if not all(map(math.isfinite, row))), None)
        if good is None:
            return metrics
        self._put_back()
        return self.run(order, first, betas[:good]) if good else []

    def _remember(self) -> None:
        """Keeps a copy of all that the steps change: the optimizer is a plain one, and has no hooks."""
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self._state, strict=True):
                kept.copy_(tensor)
        self._generators = random_state(self.rows.processes.device, torch_only=True)

    def _put_back(self) -> None:
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self._state, strict=True):
                tensor.copy_(kept)
        set_random_state(self._generators, self.rows.processes.device)

    def _replayed(self, order: Tensor, first: int, betas: Sequence[Tensor | None]) -> Tensor:
        """The metrics of the steps, `(steps, columns)`, on the GPU."""
        if self._of_order is not order:
            self._order.copy_(order)
            self._of_order = order
        self._place.fill_(first)
        self._slot.zero_()
        if self._betas is not None:
            self._betas[: len(betas)] = torch.stack([beta for beta in betas if beta is not None])
        size, everything = self.rows.batch_size, self.rows.batches.rows
        for i in range(first, first + len(betas)):
            if self._resident is None:
                index = order[i * size : (i + 1) * size]
                batch = self.rows.prepared(take_rows(everything, index))
                for place, tensor in zip(self._inputs, tensors_of(batch), strict=True):
                    place.copy_(tensor)
            self._graph()
        self.update.optimizer._opt_called = True  # type: ignore[attr-defined]  # a schedule asks for it
        return self._metrics[: len(betas)]

    def _step(self) -> None:
        tensors: Sequence[Tensor] = self._inputs
        if self._resident is not None:
            # The runs ahead of the capture go on to the next batches, of which there may be none.
            number = (self._place * len(self._offsets) + self._offsets) % len(self._order)
            index = self._order.index_select(0, number)
            batch = take_rows(self._resident, index)
            tensors = tensors_of(self.rows.prepared(batch))
        beta = None if self._betas is None else self._betas.index_select(0, self._slot)[0]
        found, gradients = self._gradients(tensors, beta)
        self.update.fused(gradients)
        self._metrics.index_copy_(0, self._slot, found[None])
        self._place.add_(1)
        self._slot.add_(1)


def _given(beta: Tensor | None) -> list[Tensor]:
    """Beta as a recording takes it."""
    return [] if beta is None else [beta]


def _is_ours(rows: TrainingRows) -> bool:
    """Whether the transform does nothing but operations of torch."""
    return rows.transform is None or isinstance(rows.transform, Binarization | Dequantization)


def _resident(rows: TrainingRows) -> Batch | None:
    """All rows on the GPU; None if they do not fit, or a transform of the user's makes the batches."""
    if not _is_ours(rows):
        return None
    everything = rows.batches.rows
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(everything))
    free, _ = torch.cuda.mem_get_info(rows.processes.device)
    return move(everything, rows.processes.device) if size <= RESIDENT_SHARE * free else None
