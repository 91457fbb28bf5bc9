"""Random generators: their state, and code that leaves them as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seeds torch's, NumPy's and Python's generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def tensor_generators(device: torch.device) -> list[Tensor]:
    """The state of torch's generators that programs on a device draw from."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_tensor_generators(states: list[Tensor], device: torch.device) -> None:
    """Puts back what :func:`tensor_generators` read."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leaves torch's generators as they were."""
    with torch.random.fork_rng():
        yield


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Whatever is drawn inside leaves every global generator as it was."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator that a program may draw from."""
    numpy_state: Any = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": _as_lists(random.getstate()),
        "numpy": {
            "keys": torch.from_numpy(numpy_state[1].astype(np.int64)),
            "rest": [int(numpy_state[2]), int(numpy_state[3]), float(numpy_state[4])],
        },
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what :func:`random_state` read."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys: Tensor = state["numpy"]["keys"]
    position, has_gauss, gauss = state["numpy"]["rest"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
