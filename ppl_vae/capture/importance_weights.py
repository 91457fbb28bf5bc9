"""The importance weights of chunks of rows and samples, by a recording where it pays."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.capture.errors import CaptureError
from ppl_vae.capture.python_state import unchanged
from ppl_vae.capture.recording import Recording, record
from ppl_vae.pairs import Batch, Layout, Pair, as_args, sample_rows
from ppl_vae.runtime import set_tensor_generators, tensor_generators

_logger = logging.getLogger(__name__)


RECORD_FROM = 30
"""Chunks that a recording pays for: it costs as much as some tens of them."""


MOST_RECORDINGS = 4
"""Shapes of chunks that are recorded: full ones, the last rows, the last samples, and both."""


COMPILE_FROM = 1500
"""Chunks of full size that a compilation, which takes about 6 s, pays for: some half a minute's work."""


class Weights(NamedTuple):
    """What K samples a row say.

    Attributes:
        log_weights: log p(x, z) - log q(z | x), ``(K, n)``.
        rate: Sum over the samples of log q(z | x) - log p(z), float64, ``(n,)``.
        distortion: Sum over the samples of - log p(x | z), float64, ``(n,)``.
    """

    log_weights: Tensor
    rate: Tensor
    distortion: Tensor


class ImportanceSampler:
    """Draws and weighs latents of chunk after chunk, inside of ``pair.scope()`` and without gradients.

    Args:
        pair: The pair; its parameters must not change meanwhile.
        layout: Its layout.
        num_chunks: How many chunks are to come.
        capture: Whether to record where it pays; the numbers are the same, bit by bit unless it
            compiles.
    """

    def __init__(self, pair: Pair, layout: Layout, num_chunks: int, capture: bool) -> None:
        self.pair = pair
        self.layout = layout
        self.num_chunks = num_chunks
        self.records = capture
        self._recordings: dict[object, Recording] = {}
        self._seen: dict[object, int] = {}

    def __call__(self, batch: Batch, num_samples: int) -> Weights:
        """Draws ``num_samples`` latents a row."""
        if num_samples > 1 and not self.layout.vectorizes:
            parts = [self(batch, 1) for _ in range(num_samples)]
            return Weights(
                torch.cat([part.log_weights for part in parts]),
                torch.stack([part.rate for part in parts]).sum(0),
                torch.stack([part.distortion for part in parts]).sum(0),
            )
        if self.records:
            try:
                return self._captured(batch, num_samples)
            except CaptureError as error:
                self.records = False
                _logger.warning("capture is off, the evaluation goes on in Pyro: %s", error)
        return self._plain(batch, num_samples)

    def _captured(self, batch: Batch, num_samples: int) -> Weights:
        """The chunk by a recording, if chunks of its shape have come often enough or are going to."""
        key = (num_samples, *((t.shape, t.stride(), t.dtype) for t in as_args(batch)))
        recording = self._recordings.get(key)
        if recording is not None:
            return Weights(*recording(*as_args(batch)))
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
        rows = sample_rows(self.pair, self.layout, batch, num_samples)
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
            CaptureError: It can not be recorded, or the two differ.
        """
        args = as_args(batch)

        def weigh(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._plain(inputs if len(args) > 1 else inputs[0], num_samples))

        recording = record(self.pair, weigh, args)
        if compiled:
            try:
                recording.compile()
            except CaptureError as error:
                _logger.warning("the captured evaluation is run as it is: %s", error)
        with unchanged(self.pair):
            expected = self._plain(batch, num_samples)
        device = expected.log_weights.device
        generators = tensor_generators(device)
        found = Weights(*recording(*args))
        for mine, truth in zip(found, expected, strict=True):
            # A sum of a thousand terms in another order; nearly all of them are of one size.
            if not torch.allclose(mine, truth, rtol=1e-4, atol=1e-3, equal_nan=True):
                set_tensor_generators(generators, device)
                raise CaptureError("the recorded weights differ from Pyro's")
        return recording, found
