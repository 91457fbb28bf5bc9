"""Models with a part that is defined by the guide, such as a VampPrior.

Such a part has the methods `attach_guide` and `keep_guide`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Module

from ppl_vae.pairs.ours import hook_of
from ppl_vae.pairs.programs import Program


def attach_guide(model: Program, guide: Program) -> None:
    """Passes the guide to the parts of the model that are defined by it."""
    for attach in _methods(model, "attach_guide"):
        attach(guide)


def keep_guide(model: Program) -> bool:
    """Makes the attached guide a part of the model, so that another guide does not change p(x).

    Returns:
        Whether any part of the model is defined by a guide.
    """
    found = False
    for keep in _methods(model, "keep_guide"):
        keep()
        found = True
    return found


def kept_guides(model: Program) -> Iterator[Module]:
    """The copies of guides that parts of the model have kept."""
    for part in list(model.modules()) if isinstance(model, Module) else ():
        kept = getattr(part, "kept", None)
        if hook_of(part, "keep_guide") and isinstance(kept, Module):
            yield kept


def _methods(model: Program, name: str) -> Iterator[Callable[..., Any]]:
    for part in list(model.modules()) if isinstance(model, Module) else ():
        method = hook_of(part, name)
        if method is not None:
            yield method
