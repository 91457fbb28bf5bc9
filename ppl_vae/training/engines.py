"""What takes the steps of a stride: a loop that does as little as possible, or a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.capture import CudaGraph, Recording
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
        self.example = example
        self.settings = update.settings
        inputs = [*tensors_of(example), *recording.tensors]
        first = len(tensors_of(example))
        more = len(recording.example) - first  # beta, if it follows a schedule
        written = [inputs[i - more] for i in recording.writes if i >= first + more]
        self.state = [*update.tensors(), *written]
        self._kept = [torch.empty_like(tensor) for tensor in self.state]

    @property
    def runs_users_code(self) -> bool:
        """Whether something of the user's runs in a stride."""
        ours = self.rows.transform is None or _is_ours(self.rows)
        return self.update.has_hooks or not ours

    def fits(self, recording: Recording) -> bool:
        """Whether the object was made for this recording and the optimizer's settings as they are."""
        return self.recording is recording and self.settings == self.update.settings

    def remember(self) -> None:
        """Keeps a copy of all that the steps change."""
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self.state, strict=True):
                kept.copy_(tensor)
        self._generators = random_state(self.rows.processes.device, torch_only=True)

    def put_back(self) -> None:
        """Goes back to what `remember` has kept."""
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self.state, strict=True):
                tensor.copy_(kept)
        set_random_state(self._generators, self.rows.processes.device)

    def run(self, order: Tensor, first: int, betas: Sequence[Tensor | None]) -> Tensor:
        """Takes one step for each beta.

        Args:
            order: The order of the rows in this epoch.
            first: The number of the first step in the epoch.
            betas: The weight of the KL in each step; None if it is a constant.

        Returns:
            The metrics of each step, `(steps, columns)`.
        """
        size = self.rows.batch_size
        everything = self.rows.batches.rows
        metrics = []
        with torch.no_grad():
            for i, beta in enumerate(betas, first):
                index = order[i * size : (i + 1) * size]
                batch = self.rows.prepared(take_rows(everything, index))
                found, gradients = self._gradients(tensors_of(batch), beta)
                self.update(gradients)
                metrics.append(found)
        return torch.stack(metrics)

    def _gradients(
        self, tensors: Sequence[Tensor], beta: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Metrics and gradients of a batch; clipped, with the norm as the last of the metrics."""
        weight = [] if beta is None else [beta]
        found, *gradients = self.recording(*tensors, *weight)
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

    def __init__(
        self,
        recording: Recording,
        update: Update,
        rows: TrainingRows,
        example: Batch,
        clip: float | None,
    ) -> None:
        super().__init__(recording, update, rows, example, clip)
        device, size = rows.processes.device, rows.batch_size
        number = torch.zeros(1, dtype=torch.long, device=device)
        self._place, self._slot = number, number.clone()
        assert rows.number is not None
        self._order = torch.zeros(rows.number, dtype=torch.long, device=device)
        self._of_order: Tensor | None = None
        scheduled = len(recording.example) > len(tensors_of(example))
        self._betas = torch.zeros(MOST_STEPS, device=device) if scheduled else None
        self._offsets = torch.arange(size, device=device)
        self._resident = _resident(rows)
        self._inputs = [tensor.clone() for tensor in tensors_of(example)]
        weight = [] if self._betas is None else [self._betas[0]]
        self.remember()
        found, *_ = recording(*self._inputs, *weight)
        self.put_back()
        self._metrics: Tensor = found.new_zeros(MOST_STEPS, len(found) + (clip is not None))
        changed = [*self.state, self._place, self._slot, self._metrics]
        self._graph = CudaGraph(self._step, changed, device)

    def run(self, order: Tensor, first: int, betas: Sequence[Tensor | None]) -> Tensor:
        """As in the loop."""
        if self._of_order is not order:
            self._order.copy_(order)
            self._of_order = order
        self._place.fill_(first)
        self._slot.zero_()
        if self._betas is not None:
            self._betas[: len(betas)] = torch.stack([beta for beta in betas if beta is not None])
        size, everything = self.rows.batch_size, self.rows.batches.rows
        hooks = self.update.has_hooks
        if hooks:
            self.update.show(self._gradients_at)
        for i in range(first, first + len(betas)):
            if self._resident is None:
                index = order[i * size : (i + 1) * size]
                batch = self.rows.prepared(take_rows(everything, index))
                for place, tensor in zip(self._inputs, tensors_of(batch), strict=True):
                    place.copy_(tensor)
            self._graph()
            if hooks:
                self.update.run_hooks(ahead=False)
        if not hooks:
            self.update.optimizer._opt_called = True  # type: ignore[attr-defined]
        taken: Tensor = self._metrics[: len(betas)]
        return taken

    def _step(self) -> None:
        tensors: Sequence[Tensor] = self._inputs
        if self._resident is not None:
            index = self._order.index_select(0, self._place * len(self._offsets) + self._offsets)
            batch = take_rows(self._resident, index)
            tensors = tensors_of(self.rows.prepared(batch))
        beta = None if self._betas is None else self._betas.index_select(0, self._slot)[0]
        found, self._gradients_at = self._gradients(tensors, beta)
        self.update.fused(self._gradients_at)
        self._metrics.index_copy_(0, self._slot, found[None])
        self._place.add_(1)
        self._slot.add_(1)


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
