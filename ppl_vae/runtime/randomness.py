"""Random generators: read their state, put it back, and leave them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.runtime.descriptions import require_count

SEEDS = (-(2**63), 2**63 - 1)
"""Smallest and largest seed: what torch takes and a checkpoint can hold."""


_OWN = 7_046_029_254_386_353_131

_WORDS = 624
"""Numbers in the state of NumPy's global generator, a Mersenne twister."""


def require_seed(seed: object) -> None:
    """Raises an error for what is no seed.

    Raises:
        TypeError: It is no whole number.
        ValueError: It does not fit into 64 bits.

    Example:
        >>> require_seed("a")
        Traceback (most recent call last):
        TypeError: seed must be a whole number, got the string 'a'
    """
    require_count("seed", seed, *SEEDS)


def seed_everything(seed: int) -> None:
    """Seeds torch's, NumPy's and Python's generators.

    Raises:
        TypeError: The seed is no whole number.
        ValueError: It does not fit into 64 bits.
    """
    require_seed(seed)
    seed = int(seed)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def own_generator() -> torch.Generator:
    """A generator whose numbers no data have: those of a small seed are often the data's own.

    Rows that were drawn after `torch.manual_seed(0)` would be put in order, not shuffled, by a generator with
    that seed.

    Example:
        >>> data = torch.rand(3, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(torch.rand(3, generator=own_generator()), data)
        False
    """
    return torch.Generator().manual_seed(_OWN)


def apart_from_data(seed: int) -> int:
    """A seed of its own for each seed, from which nobody draws data: see `own_generator`.

    Rows that are generated after `torch.manual_seed(0)` would be the data that were made after it.

    Example:
        >>> data = torch.rand(3, generator=torch.Generator().manual_seed(0))
        >>> again = torch.rand(3, generator=torch.Generator().manual_seed(apart_from_data(0)))
        >>> torch.equal(again, data)
        False
    """
    return int(seed) ^ _OWN


def random_state(device: torch.device, torch_only: bool = False) -> dict[str, Any]:
    """The state of the random generators that a program may draw from.

    Args:
        device: Where the program runs: its generator is read as well if it is a GPU.
        torch_only: Leave out NumPy's and Python's generators. This takes microseconds, so that a training
            can do it in every step.

    Returns:
        Nested dicts and lists of tensors and numbers, which a checkpoint can hold.

    Example:
        >>> cpu = torch.device("cpu")
        >>> state = random_state(cpu)
        >>> first = torch.rand(3)
        >>> set_random_state(state, cpu)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if not torch_only:
        numpy_state: Any = np.random.get_state()
        state["python"] = _as_lists(random.getstate())
        state["numpy"] = {
            "keys": torch.from_numpy(numpy_state[1].astype(np.int64)),
            "rest": [int(numpy_state[2]), int(numpy_state[3]), float(numpy_state[4])],
        }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what `random_state` read."""
    torch.set_rng_state(state["torch"])
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        keys: Tensor = state["numpy"]["keys"]
        position, has_gauss, gauss = state["numpy"]["rest"]
        if not 0 <= position <= len(keys) == _WORDS:  # NumPy would read beyond its memory
            raise ValueError(f"the state of NumPy's generator has the position {position}")
        words = keys.numpy().astype(np.uint32)
        np.random.set_state(("MT19937", words, position, has_gauss, gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restores the state of every global generator afterwards, whatever is drawn inside."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
