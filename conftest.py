"""Fixtures for every test and every doctest.

At the top level rather than in tests/, because the doctests of ppl_vae need them too.
"""

from __future__ import annotations

import ast
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch

gc.disable()  # until all tests are collected


def folder_of_bytecode() -> Path:
    """A folder that belongs to this user alone, the same in every session.

    In a folder for all users, somebody else could have made one of that name and put code into it.
    """
    uid = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir()).resolve() / f"ppl_vae-bytecode-{uid}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or (
        os.name == "posix" and (found.st_uid != uid or found.st_mode & 0o022)
    ):
        raise pytest.UsageError(
            f"{folder}, where tests keep bytecode, is not a folder that this user alone can write to: remove "
            "it, set TMPDIR to another folder, or unset PYTHONDONTWRITEBYTECODE"
        )
    return folder


def keep_bytecode_elsewhere() -> None:
    """Where Python is told to keep no bytecode, keeps it outside of the checkout.

    With none at all, each process that a test starts compiles the package again, which takes longer than most
    of what it does, and pytest rewrites the assertions of all files once per worker.
    """
    folder = folder_of_bytecode()
    temporary = folder / Path(*folder.parent.parts[1:])
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for of_sessions in temporary.glob("pytest-of-*"):  # files of earlier tests: they are gone
            shutil.rmtree(of_sessions, ignore_errors=True)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


if sys.dont_write_bytecode:
    keep_bytecode_elsewhere()


def asks_for(marker: str, expression: str) -> bool:
    """Whether the expression of `pytest -m` names a marker other than to leave it out."""

    def found(node: ast.AST, left_out: bool) -> bool:
        if isinstance(node, ast.UnaryOp):  # not
            return found(node.operand, not left_out)
        if isinstance(node, ast.BoolOp):
            return any(found(value, left_out) for value in node.values)
        return isinstance(node, ast.Name) and node.id == marker and not left_out

    try:
        return found(ast.parse(expression.strip(), mode="eval").body, False)
    except SyntaxError:  # nothing, or what pytest refuses
        return False


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs, unless tests are asked for that need one, as with `pytest -m gpu`.

    The other tests compare with numbers computed on the CPU, while `fit` moves a pair to the GPU.
    """
    if not asks_for("gpu", config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # For a GPU that may come, torch would keep each seed with the text of the whole stack, which takes
        # longer than many a test.
        for backend in (torch.cuda, torch.xpu, torch.mtia):
            vars(backend)["manual_seed_all"] = _no_seed


def _no_seed(seed: int) -> None:
    """There is no device whose random numbers it would be."""


def is_meant(mark: pytest.Mark, case: str) -> bool:
    """Whether a mark is for the case of this id: slow(but=ids) is for the others, slow(only=ids) for these."""
    if "but" in mark.kwargs:
        return case not in mark.kwargs["but"]
    return "only" not in mark.kwargs or case in mark.kwargs["only"]


def choose_cases(items: list[pytest.Item]) -> list[str]:
    """Leaves marks to the cases that they are meant for. What it returns are ids that no case has.

    `pytest.param(..., marks=...)` marks one of the values of one argument. This marks cases of products, and of
    values that are computed or shared by tests.
    """
    named: dict[str, set[str]] = {}
    seen: dict[str, set[str]] = {}
    for item in items:
        case = item.callspec.id if hasattr(item, "callspec") else ""
        test = item.nodeid.partition("[")[0]
        own = [m for m in item.own_markers if m.name == "slow" and m.kwargs]
        of_all = [m for m in item.iter_markers("slow") if m.kwargs]
        if len(of_all) > len(own):
            raise pytest.UsageError(
                f"{test}: slow(but=...) and slow(only=...) name cases of one test: mark that test, and no "
                "class or module"
            )
        for mark in own:
            ids = {*mark.kwargs.get("but", ()), *mark.kwargs.get("only", ())}
            named.setdefault(test, set()).update(ids)
            seen.setdefault(test, set()).add(case)
            if not is_meant(mark, case):
                item.own_markers.remove(mark)
    return [f"{test}[{case}]" for test, ids in named.items() for case in sorted(ids - seen[test])]


@pytest.hookimpl(tryfirst=True)  # before any test is left out by its marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets what is slow take its time."""
    absent = choose_cases(items)
    whole = not (any("::" in path for path in config.args) or config.getoption("lf", False))
    if absent and whole:
        raise pytest.UsageError(f"no such case, which a mark `slow` names: {', '.join(absent)}")
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


@pytest.fixture(scope="module", autouse=True)
def no_garbage_is_left() -> Iterator[None]:
    """What is left in cycles is told by the module that left it: an open file is a warning, and so an error.

    What stays, as modules that were imported late, is left alone from then on: it took ten times as long.
    """
    yield
    gc.collect()
    gc.freeze()


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
