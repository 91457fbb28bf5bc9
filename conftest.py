"""Fixtures for every test and every doctest.

At the top level rather than in tests/, because the doctests of ppl_vae need them too.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pyro
import pytest
import torch

# Where Python is told to keep no bytecode, each process that a test starts would compile the package again,
# which takes longer than most of what it does; and pytest rewrites the assertions of all files once per worker.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.disable()  # until all tests are collected


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs from all tests but those of `pytest -m gpu`.

    The other tests compare with numbers computed on the CPU, while `fit` moves a pair to the GPU.
    """
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # For a GPU that may come, torch would keep each seed with the text of the whole stack, which takes
        # longer than many a test.
        for backend in (torch.cuda, torch.xpu, torch.mtia):
            vars(backend)["manual_seed_all"] = _no_seed


def _no_seed(seed: int) -> None:
    """There is no device whose random numbers it would be."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets what is slow take its time."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish() -> None:
    """Lets the garbage collector leave alone what stays, modules and tests, and look at the rest less often.

    It took a tenth of the time and more: recorded graphs are many small objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(7000, 10, 10)  # ten times the default
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order: results do not depend on the number of cores.

    If something is recorded before the first gradient, autograd starts threads, and processes that tests fork
    can compute no gradients: so the first one is here.
    """
    torch.set_num_threads(1)
    torch.ones((), requires_grad=True).backward()


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """Every test starts from the same random state and with Pyro's checks on."""
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)


@pytest.fixture(autouse=True)
def no_leaked_parameters() -> Iterator[None]:
    """What a test trains must not stay behind in Pyro's global parameter store."""
    yield
    leaked = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    assert not leaked, f"left behind in Pyro's global parameter store: {leaked}"
