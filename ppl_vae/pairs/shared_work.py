"""What model and guide both compute from the same rows is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

_KNOWN: ContextVar[dict[Any, tuple[tuple[Tensor, ...], Any, bool]] | None] = ContextVar(
    "known", default=None
)


@contextmanager
def sharing_work() -> Iterator[None]:
    """Inside of it, `shared` computes each thing once: one run of a guide and a model on the same rows.

    No longer than that: what is kept belongs to the parameters of this moment, and to one gradient.
    """
    if _KNOWN.get() is not None:
        yield
        return
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def shared(owner: object, name: str, of: tuple[Tensor, ...], compute: Callable[[], _T]) -> _T:
    """The result of `compute`, or that of an earlier call for the same owner, name and tensors.

    A model whose posterior, in the guide, needs the same large network as the model itself calls it. Outside of
    `sharing_work` everything is computed.

    Args:
        owner: The object whose parameters are used.
        name: What is computed.
        of: What it is computed from: these very tensors, not others of the same values.
        compute: Computes it, without random numbers and without a change of the owner.

    Example:
        >>> x, calls = torch.zeros(2), []
        >>> def compute():
        ...     calls.append(1)
        ...     return x + 1
        >>> with sharing_work():
        ...     _ = [shared(calls, "one more", (x,), compute) for _ in range(3)]
        >>> len(calls)
        1
    """
    known = _KNOWN.get()
    if known is None:
        return compute()
    # A tensor of inference mode has no version.
    versions = tuple((id(x), 0 if x.is_inference() else x._version) for x in of)
    key = (id(owner), name, versions)
    found = known.get(key)
    if found is None or (torch.is_grad_enabled() and not found[2]):
        # The tensors live as long, so that no other one gets the id of one.
        found = known[key] = (of, compute(), torch.is_grad_enabled())
    result: _T = found[1]
    return result
