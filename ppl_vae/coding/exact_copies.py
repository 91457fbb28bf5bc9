"""A network whose numbers are the same for who writes and for who reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn


@contextmanager
def exact_copy(module: nn.Module) -> Iterator[nn.Module]:
    """A copy of a module on the CPU, in double precision and evaluation mode; meanwhile torch has one thread.

    With several, where each begins could change the last digit. There are no gradients and no autocast.

    Args:
        module: The module, which stays as it is.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with exact_copy(layer) as exact:
        ...     exact.weight.dtype, torch.get_num_threads()
        (torch.float64, 1)
        >>> layer.weight.dtype
        torch.float32
    """
    threads = torch.get_num_threads()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        exact = deepcopy(module).cpu().double().eval()
        try:
            torch.set_num_threads(1)
            yield exact
        finally:
            torch.set_num_threads(threads)
