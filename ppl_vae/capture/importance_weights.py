"""The importance weights of chunks of rows and samples, by a recording where that is faster."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.capture.errors import DIFFERS, CaptureError, StaleRecordingError
from ppl_vae.capture.python_state import unchanged
from ppl_vae.capture.recording import Recording, record
from ppl_vae.pairs import (
    Batch,
    FiniteLatents,
    Layout,
    Layouts,
    Pair,
    finite_latents,
    places_of,
    sample_rows,
    summed_rows,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import random_state, set_random_state

_logger = logging.getLogger(__name__)


RECORD_FROM = 30
"""Fewest chunks for which a recording pays: it costs as much as a few tens of them."""

FIRST_COMPARISONS = (1, 2, 10, 100)
"""Runs of a recording that are compared with Pyro, besides the one for which it was made."""

COMPARE_EVERY = 1000
"""Runs after which a recording is compared with Pyro again."""

MOST_RECORDINGS = 4
"""Most shapes of chunks that are recorded: full ones, the last rows, the last samples, and both."""

COMPILE_FROM = 1500
"""Fewest chunks of full size for which a compilation of about 6 s pays: half a minute of work."""


class Weights(NamedTuple):
    """The importance weights of K samples per row.

    Attributes:
        log_weights: log p(x, z) - log q(z | x), `(K, n)`, nats.
        rate: Sum over the samples of log q(z | x) - log p(z), float64, `(n,)`.
        distortion: Sum over the samples of - log p(x | z), float64, `(n,)`.
    """

    log_weights: Tensor
    rate: Tensor
    distortion: Tensor


class ImportanceSampler:
    """Draws and weighs the latents of one chunk after the other, inside of `pair.scope()`, without gradients.

    Args:
        pair: The pair; its parameters must not change in the meantime.
        layouts: The layouts of its chunks.
        num_chunks: How many chunks will come.
        capture: Whether to record where it pays. The numbers are the same, bit by bit unless the
            recording is compiled.
        at_once: Samples of a row to run at once, for latents that are summed over.
    """

    def __init__(
        self, pair: Pair, layouts: Layouts, num_chunks: int, capture: bool, at_once: int
    ) -> None:
        self.pair = pair
        self.layouts = layouts
        self.num_chunks = num_chunks
        self.records = capture
        self.at_once = at_once
        self._recordings: dict[object, Recording] = {}
        self._runs: dict[object, int] = {}
        self._seen: dict[object, int] = {}

    def __call__(self, batch: Batch, num_samples: int) -> Weights:
        """Draws `num_samples` latents per row.

        Raises:
            StaleRecordingError: Weights that a recording has given before are not to be trusted.
        """
        if num_samples > 1 and not self.layouts.expected(batch).vectorizes:
            parts = [self(batch, 1) for _ in range(num_samples)]
            return Weights(
                torch.cat([part.log_weights for part in parts]),
                torch.stack([part.rate for part in parts]).sum(0),
                torch.stack([part.distortion for part in parts]).sum(0),
            )
        if self.records:
            try:
                return self._captured(batch, num_samples)
            except StaleRecordingError:
                raise
            except CaptureError as error:
                self.records = False
                _logger.warning("capture is off, the evaluation goes on in Pyro: %s", error)
        return self._plain(batch, num_samples)

    def _captured(self, batch: Batch, num_samples: int) -> Weights:
        """The chunk by a recording, if enough chunks of its shape have come or will come."""
        tensors = tensors_of(batch)
        key = (num_samples, places_of(batch), *((t.shape, t.stride(), t.dtype) for t in tensors))
        recording = self._recordings.get(key)
        if recording is not None:
            runs = self._runs[key] = self._runs.get(key, 0) + 1
            if runs in FIRST_COMPARISONS or runs % COMPARE_EVERY == 0:
                return self._compared(recording, batch, num_samples)
            return Weights(*recording(*tensors))
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        first = len(self._seen) == 1
        if len(self._recordings) >= MOST_RECORDINGS or not (
            seen > RECORD_FROM or (first and self.num_chunks >= RECORD_FROM)
        ):
            return self._plain(batch, num_samples)
        compiled = first and self.num_chunks >= COMPILE_FROM
        self._recordings[key], found = self._recorded(batch, num_samples, compiled)
        return found

    def _plain(self, batch: Batch, num_samples: int) -> Weights:
        return self.layouts.run(batch, lambda layout: self._weighed(layout, batch, num_samples))

    def discrete(self, batch: Batch) -> tuple[Layout, FiniteLatents | None]:
        """The layout of a batch, and its finite latents to sum over; if None, discrete ones are drawn."""
        # Found for each batch: its plates and supports may be larger than those of another.
        return self.layouts.run(
            batch, lambda layout: (layout, finite_latents(self.pair, layout, batch))
        )

    def summed(self, batch: Batch, num_samples: int, finite: FiniteLatents) -> Weights:
        """The weights of a batch with its finite latents summed over; never recorded."""

        def work(layout: Layout) -> Weights:
            rows = summed_rows(self.pair, layout, batch, num_samples, finite, self.at_once)
            totals = (t.double().sum(0) for t in (rows.rate, rows.distortion))
            return Weights(rows.log_weights, *totals)

        return self.layouts.run(batch, work)

    def _weighed(self, layout: Layout, batch: Batch, num_samples: int) -> Weights:
        rows = sample_rows(self.pair, layout, batch, num_samples)
        return Weights(
            rows.log_weights,
            (rows.log_guide - rows.log_prior).double().sum(0),
            -rows.log_likelihood.double().sum(0),
        )

    def _recorded(
        self, batch: Batch, num_samples: int, compiled: bool
    ) -> tuple[Recording, Weights]:
        """Records the chunk and runs it by the recording and by Pyro, under the same random numbers.

        Raises:
            CaptureError: It cannot be recorded, or the two differ.
        """
        args = tensors_of(batch)
        layout = self.layouts.expected(batch)

        def weigh(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._weighed(layout, with_tensors(batch, inputs), num_samples))

        recording = record(self.pair, weigh, args)
        if compiled:
            try:
                recording.compile()
            except CaptureError as error:
                _logger.warning("the captured evaluation is run as it is: %s", error)
        return recording, self._compared(recording, batch, num_samples)

    def _compared(self, recording: Recording, batch: Batch, num_samples: int) -> Weights:
        """Runs a chunk by Pyro and by a recording, under the same random numbers.

        Raises:
            CaptureError: The two differ; a `StaleRecordingError` if the recording has been used before.
        """
        put_back = recording.undo(tensors_of(batch))
        with unchanged(self.pair):
            expected = self._plain(batch, num_samples)
        put_back()
        device = expected.log_weights.device
        generators = random_state(device, torch_only=True)
        found = Weights(*recording(*tensors_of(batch)))
        for mine, truth in zip(found, expected, strict=True):
            # Sums of a thousand terms of about one size, in another order.
            if not torch.allclose(mine, truth, rtol=1e-4, atol=1e-3, equal_nan=True):
                set_random_state(generators, device)
                put_back()
                used = any(kept is recording for kept in self._recordings.values())
                raise (StaleRecordingError if used else CaptureError)(
                    DIFFERS.format("the recorded weights differ")
                )
        return found
