"""A sequence of operations on a GPU as one CUDA graph, which starts hundreds of kernels by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_vae.capture.errors import CaptureError, reason_of
from ppl_vae.runtime import random_state, set_random_state

WARM_UP = 3
"""Runs before the capture: libraries choose their kernels and reserve memory in the first ones."""


class CudaGraph:
    """A function of no arguments, captured; calling the object does its operations again.

    The function reads and writes tensors at fixed places, and must not read a number from the GPU. Random
    numbers are those that the function itself would draw: each replay moves the generator on.

    Args:
        function: What to capture.
        state: The tensors that it changes, which are put back after the runs that the capture needs.
        device: The GPU.

    Raises:
        CaptureError: An operation cannot be captured.
    """

    def __init__(
        self, function: Callable[[], None], state: Sequence[Tensor], device: torch.device
    ) -> None:
        kept = [tensor.detach().clone() for tensor in state]
        generators = random_state(device, torch_only=True)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(device), torch.no_grad():
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    for _ in range(WARM_UP):
                        function()
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(self._graph):
                    function()
        except Exception as error:
            raise CaptureError(f"the step cannot be a CUDA graph: {reason_of(error)}") from error
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, kept, strict=True):
                    tensor.copy_(value)
            set_random_state(generators, device)

    def __call__(self) -> None:
        """Does the operations, after those that have been given to the GPU before."""
        self._graph.replay()
