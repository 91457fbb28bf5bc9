"""Models that are made of their guide: a part of the model that has the methods `attach_guide` and
`keep_guide`, such as a VampPrior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Module

from ppl_vae.pairs.programs import Program


def attach_guide(model: Program, guide: Program) -> None:
    """Tells the guide to those parts of the model that are made of it."""
    for attach in _methods(model, "attach_guide"):
        attach(guide)


def keep_guide(model: Program) -> bool:
    """Makes the guide that is attached a part of the model, so that another one leaves p(x) as it is.

    Returns:
        Whether any part of the model is made of a guide.
    """
    found = False
    for keep in _methods(model, "keep_guide"):
        keep()
        found = True
    return found


def _methods(model: Program, name: str) -> Iterator[Callable[..., Any]]:
    for part in list(model.modules()) if isinstance(model, Module) else ():
        method = getattr(part, name, None)
        if callable(method):
            yield method
