"""A training step recorded once as a plain tensor graph, then run without Pyro.

Pyro runs its effect handlers in Python at every step. `CapturedLoss` runs them once: it records the objective
and its gradients (`recording.py`), with the batch, beta, the parameters and the buffers as inputs. A recording
is compared with Pyro under the same seed when it is made and less and less often afterwards, and the Python
state that it was made in is checked regularly. If a step cannot be captured, or a recording is no longer
right, a `CaptureError` says why, and the caller goes on with Pyro.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.capture.errors import DIFFERS, CaptureError, StaleRecordingError
from ppl_vae.capture.python_state import modules_of, python_state, unchanged
from ppl_vae.capture.recording import Recording, record
from ppl_vae.objectives import Loss, Resolved
from ppl_vae.pairs import (
    Batch,
    Layout,
    LayoutChangedError,
    Layouts,
    Pair,
    own_attribute,
    places_of,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import random_state, set_random_state

_logger = logging.getLogger(__name__)


MOST_RECORDINGS = 8
"""Most recordings of one loss: batches of further shapes run in Pyro."""

SMALL = 4096
"""Most numbers in a parameter whose gradient is checked in every step."""

RECORD_AFTER = 20
"""Steps on batches of one shape that Pyro does first; a recording costs as much as about a hundred."""

LOOK_EVERY = 50
"""Steps after which the Python state that the programs can reach is checked again."""

FIRST_COMPARISONS = (1, 2, 10, 100)
"""Runs of a recording that are compared with Pyro: what one run leaves to the next shows in the second."""

COMPARE_EVERY = (1000, 10_000)
"""Runs after which a recording is compared with Pyro again: at first, and once it has run so often."""

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.01, 0.2
"""How far a compiled step in bfloat16 or float16, or one that makes choices, may be from Pyro's, relative to
loss, ELBO, rate and distortion, and to the norm of the gradient. Found for three networks in bfloat16: 5e-5 and
0.03."""


@dataclass
class _Kept:
    """A recording and how often it has run.

    Attributes:
        recording: The recording.
        calls: Runs since it was made or compiled.
        unseen: Runs since the Python state was last checked.
        unsure: Runs since it was last compared with Pyro.
    """

    recording: Recording
    calls: int = 0
    unseen: int = 0
    unsure: int = 0

    @property
    def until_compared(self) -> int:
        """Runs until the one that is compared with Pyro; 1 if that is the next."""
        first, later = COMPARE_EVERY
        every = first if self.calls < later else later
        due = [number - self.calls for number in FIRST_COMPARISONS if number > self.calls]
        return min([*due, every - self.calls % every])

    def count(self, runs: int) -> None:
        """Counts so many runs."""
        self.calls += runs
        self.unseen += runs
        self.unsure += runs


class CapturedLoss:
    """Loss, metrics and gradients of an objective on a pair, by a recorded graph.

    Args:
        pair: The pair; make and use the object inside of its scope.
        layouts: The layouts of its batches.
        objective: The objective.
        parameters: The trainable leaves by name; each gets its gradient in `.grad`.

    Attributes:
        recordings: How many graphs have been recorded.
        comparisons: How many steps have been compared with Pyro.
    """

    def __init__(
        self,
        pair: Pair,
        layouts: Layouts,
        objective: Resolved,
        parameters: dict[str, Tensor],
    ) -> None:
        self.pair = pair
        self.layouts = layouts
        self.objective = objective
        self.leaves = list(parameters.values())
        self.names = list(parameters)
        self.scheduled = not isinstance(objective.requested.beta, (int, float))
        self.recordings = 0
        self.comparisons = 0
        self._compiles = True
        self._cache: dict[Any, _Kept] = {}
        self._seen: dict[Any, int] = {}
        self._modules_seen: list[nn.Module] | None = None

    def __call__(self, batch: Batch, beta: float, compiled: bool = False) -> Tensor:
        """Runs the step: sets `.grad` of all parameters and returns its metrics.

        Args:
            batch: The rows.
            beta: Weight of the KL.
            compiled: Run what Inductor makes of the recording: equal to float precision, not bit by bit. If
                Inductor fails, the recording itself runs, and a line in the log says why.

        Returns:
            Loss, ELBO, rate, distortion, and a number that is finite only if the gradients of all small
            parameters (biases) are, where nearly every bad gradient shows; `(5,)`.

        Raises:
            CaptureError: The step cannot be captured, or the recording is not right; a `StaleRecordingError` if
                earlier steps may be wrong, too. Weights, buffers and generators are as they were, so that the
                caller can run the step in Pyro; gradients may not be.
        """
        kept = self._kept(batch)
        if kept is None:
            if len(self._cache) >= MOST_RECORDINGS:
                raise CaptureError(
                    f"batches have come in more than {MOST_RECORDINGS} shapes: pad them to a few"
                )
            kept = self._cache[self._key(batch)] = _Kept(self._record(batch, beta))
        if compiled and self._compiles and not kept.recording.compiled:
            self._compile(kept)
        if kept.until_compared == 1:
            found = self._compared(kept, batch, beta)
        else:
            found = kept.recording(*tensors_of(batch), *self.weight(beta))
        kept.count(1)
        metrics, *gradients = found
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        return metrics  # type: ignore[no-any-return]

    def ahead(self, batch: Batch, beta: float) -> tuple[Recording, int] | None:
        """The compiled recording for steps in a row, if there is one and it is right; `count` tells the steps.

        Args:
            batch: The rows of the next step.
            beta: Weight of the KL.

        Returns:
            The recording, and how many steps may be taken by it before this is called again.

        Raises:
            CaptureError: As from a call; nothing has changed.
        """
        kept = self._kept(batch)
        if kept is None or not kept.recording.compiled:
            return None
        left = kept.until_compared
        if left == 1:
            put_back = kept.recording.undo([*tensors_of(batch), *self.weight(beta)])
            generators = random_state(self.leaves[0].device, torch_only=True)
            self._compared(kept, batch, beta)
            put_back()
            set_random_state(generators, self.leaves[0].device)
            kept.calls += 1  # the comparison is done, its step is yet to come
            left = kept.until_compared
            kept.calls -= 1
            return kept.recording, left
        return kept.recording, left - 1

    def count(self, batch: Batch, steps: int) -> None:
        """Counts steps that were taken by the recording that `ahead` has returned for such a batch."""
        self._cache[self._key(batch)].count(steps)

    def worth_recording(self, batch: Batch) -> bool:
        """Whether a step on such a batch is worth a recording: its shape has come up often enough.

        Samples that are looped over make a graph of all of them, which takes long to record and saves little.
        So does a program with one site per step of a sequence: its shapes have to come up more often. While a
        module says that it begins otherwise than it goes on (`is_starting`), as a codebook does, nothing is;
        nor where it learns only after the step (`waits`), from the rows of all processes.
        """
        if not self.has_room(batch):
            return False
        key = self._key(batch)
        self._seen[key] = self._seen.get(key, 0) + 1
        layout = self.layouts.expected(batch)
        sites = len(layout.latents) + len(layout.enumerated) + len(layout.observed)
        if self._seen[key] <= RECORD_AFTER * max(1, sites // 2):
            return False
        if key in self._cache:
            return True
        return not any(
            own_attribute(part, "is_starting") or own_attribute(part, "waits")
            for part in modules_of(self.pair)
        )

    def has_room(self, batch: Batch) -> bool:
        """Whether such a batch has a recording or may get one, for samples that run at once."""
        several = self.objective.requested.num_particles > 1
        if several and not self.layouts.expected(batch).vectorizes:
            return False
        return len(self._cache) < MOST_RECORDINGS or self._key(batch) in self._cache

    def recheck_state(self) -> None:
        """Checks the Python state before the next step."""
        self._modules_seen = None
        for kept in self._cache.values():
            kept.unseen = LOOK_EVERY

    # -- running -----------------------------------------------------------------------------------------

    def _kept(self, batch: Batch) -> _Kept | None:
        """The recording for such a batch, if there is one that is still right."""
        kept = self._cache.get(self._key(batch))
        if kept is not None and kept.unseen >= LOOK_EVERY:
            kept = self._still_true(kept)
        return kept

    def weight(self, beta: float) -> list[Tensor]:
        """Beta as the recordings take it: if it follows a schedule, as a tensor after those of the batch."""
        return [torch.tensor(beta, device=self.leaves[0].device)] if self.scheduled else []

    def _still_true(self, kept: _Kept) -> _Kept | None:
        """The recording, unless the programs' Python state has changed since it was made."""
        now, then = python_state(self.pair), kept.recording.state
        kept.unseen = 0
        if now == then:
            return kept
        if self.recordings >= MOST_RECORDINGS:
            changed = [name for name in now if now[name] != then.get(name)]
            raise CaptureError(f"the Python state of the pair keeps changing ({changed[0]})")
        self._cache.clear()
        return None

    def _plain(self, batch: Batch, beta: float | Tensor, layout: Layout) -> tuple[Any, ...]:
        objective: Any = self.objective.of(layout, batch)
        try:
            loss: Loss = objective(self.pair, layout, batch, beta)
        except LayoutChangedError as error:
            raise CaptureError(f"batches of one shape have different sites ({error})") from error
        gradients: tuple[Tensor | None, ...] = (None,) * len(self.leaves)
        if loss.loss.requires_grad:  # no trainable parameter may enter the loss of such a batch
            gradients = torch.autograd.grad(loss.loss, self.leaves, allow_unused=True)
        small = [g.sum() for g in gradients if g is not None and g.numel() <= SMALL]
        witness = torch.stack(small).sum() if small else loss.elbo
        parts = (loss.loss.detach(), loss.elbo, loss.rate, loss.distortion, witness)
        wide = torch.promote_types(loss.loss.dtype, torch.float32)
        return (torch.stack([part.to(wide) for part in parts]), *gradients)

    def _record(self, batch: Batch, beta: float) -> Recording:
        args = tensors_of(batch)
        layout = self.layouts.expected(batch)
        self.objective.of(layout, batch)  # not while recording

        def step(*inputs: Tensor) -> tuple[Any, ...]:
            rows = with_tensors(batch, inputs[: len(args)])
            weight = inputs[-1] if self.scheduled else beta
            metrics, *gradients = self._plain(rows, weight, layout)
            return metrics, *map(_laid_out, gradients, self.leaves)

        made = record(self.pair, step, [*args, *self.weight(beta)])
        self.recordings += 1
        return made

    def _compile(self, kept: _Kept) -> None:
        try:
            kept.recording.compile()
            kept.calls = 0  # the compiled step is compared with Pyro as well
        except CaptureError as error:
            self._compiles = False
            _logger.warning("the captured step is run as it is: %s", error)

    # -- comparing ---------------------------------------------------------------------------------------

    def _compared(self, kept: _Kept, batch: Batch, beta: float) -> Sequence[Any]:
        """Runs one step by Pyro and by the recording, under the same random numbers: what the latter gives.

        Raises:
            CaptureError: The two differ; a `StaleRecordingError` if there were steps since they last agreed.
                Generators and what the programs write are as they were.
        """
        self.comparisons += 1
        inputs = [*tensors_of(batch), *self.weight(beta)]
        put_back = kept.recording.undo(inputs)
        layout = self.layouts.expected(batch)
        with unchanged(self.pair), pyro.validation_enabled(False):
            expected = self._plain(batch, beta, layout)
        put_back()
        device = self.leaves[0].device
        generators = random_state(device, torch_only=True)
        inexact = kept.recording.low_precision or kept.recording.chooses
        rounded = kept.recording.compiled and inexact
        run = kept.recording.uncompiled if rounded else kept.recording
        found: Sequence[Any] = run(*inputs)
        differing = [
            "the loss" if name == "loss" else f"the gradient of '{name}'"
            for name, mine, truth in zip(["loss", *self.names], found, expected, strict=True)
            if not _same(mine, truth)
        ]
        if rounded and not differing:
            put_back()
            set_random_state(generators, device)
            found = kept.recording(*inputs)
            differing = _far(found, expected)
        if differing:
            set_random_state(generators, device)
            put_back()
            reason = DIFFERS.format(f"{differing[0]} of the recorded step differs")
            if kept.unsure > 0:
                raise StaleRecordingError(
                    f"{reason}. Steps that may be wrong, as they were taken since the two last agreed: "
                    f"{kept.unsure}"
                )
            raise CaptureError(reason)
        kept.unsure = -1  # the next run is the one that was compared
        return found

    def _modules(self) -> list[nn.Module]:
        if self._modules_seen is None:
            self._modules_seen = modules_of(self.pair)
        return self._modules_seen

    def _key(self, batch: Batch) -> Any:
        shapes = tuple((t.shape, t.dtype, t.stride(), t.device) for t in tensors_of(batch))
        return shapes, places_of(batch), tuple([module.training for module in self._modules()])


def _laid_out(gradient: Tensor | None, leaf: Tensor) -> Tensor | None:
    """The gradient with the strides of its parameter, as `backward()` leaves it.

    Fused optimizers rely on it: they read the memory of the two side by side.
    """
    if gradient is None or gradient.stride() == leaf.stride():
        return gradient
    return torch.empty_like(leaf).copy_(gradient)


def _far(found: Sequence[Any], expected: Sequence[Any]) -> list[str]:
    """What differs by more than the rounding of bfloat16, which the compiler leaves out between its operations.

    Or by more than a few choices that rounding has decided otherwise, as of a vector between two codes.

    Single parameters have gradients that are differences of large numbers, so the gradient is compared as a
    whole. That the programs still do what was recorded has been seen before, without the compiler.
    """

    def whole(of: Sequence[Any]) -> Tensor:
        return torch.cat([g.flatten().float() for g in of[1:] if g is not None])

    def is_far(mine: Tensor, truth: Tensor, tolerance: float) -> bool:
        finite = bool(torch.isfinite(truth).all())
        return finite and not float((mine - truth).norm()) <= tolerance * float(truth.norm())

    far = {
        "the loss": is_far(found[0][:4], expected[0][:4], LOSS_TOLERANCE),
        "the gradient": is_far(whole(found), whole(expected), GRADIENT_TOLERANCE),
    }
    return [name for name, is_it in far.items() if is_it]


def _same(mine: Any, truth: Any) -> bool:
    """Whether two tensors are equal up to rounding, relative to the largest value."""
    if mine is None or truth is None:
        return mine is truth or not bool((truth if mine is None else mine).any())
    if not bool(torch.isfinite(truth).all()):
        return bool((torch.isfinite(mine) == torch.isfinite(truth)).all())
    eps = torch.finfo(truth.dtype).eps
    scale = float(truth.abs().max()) + eps
    return float((mine - truth).abs().max()) <= 3e3 * eps * scale
