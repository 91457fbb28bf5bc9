"""The parameter store of the last fit of a pair, looked up by its two programs."""

from __future__ import annotations

import weakref
from typing import Any

from ppl_vae.pairs.ours import own_attribute
from ppl_vae.pairs.programs import Program

_Fit = tuple[Any, Any, Any, dict[str, Any]]
"""The model's method, a reference to the guide's owner, its method, and the store."""

_learned: weakref.WeakKeyDictionary[Any, list[_Fit]] = weakref.WeakKeyDictionary()


def _identity(program: Program) -> tuple[Any, Any]:
    """An object that lives as long as the program, and the method of it that is the program (None if it is
    the program itself).
    """
    owner = getattr(program, "__self__", None)
    return (program, None) if owner is None else (owner, getattr(program, "__func__", None))


def remember(model: Program, guide: Program, store: dict[str, Any]) -> None:
    """Keeps the parameter store of a fit for as long as both programs live."""
    (owner, method), (guide_owner, guide_method) = _identity(model), _identity(guide)
    try:
        entries = _learned.setdefault(owner, [])
        reference = weakref.ref(guide_owner)
    except TypeError:  # not hashable, or without weak references: only the result has the values
        return
    entries[:] = [
        e
        for e in entries
        if e[1]() is not None
        and not (e[0] is method and e[1]() is guide_owner and e[2] is guide_method)
    ]
    entries.append((method, reference, guide_method, store))


def recall(model: Program, guide: Program) -> dict[str, Any] | None:
    """The parameter store of the last fit of exactly these two programs, or None.

    A guide that is the model's prior (`is_prior`) has no parameters: the last fit of the model says them, with
    whatever guide.
    """
    (owner, method), (guide_owner, guide_method) = _identity(model), _identity(guide)
    of_model = bool(own_attribute(guide, "is_prior"))
    try:
        entries: list[_Fit] = _learned.get(owner, [])
    except TypeError:
        return None
    for known_method, reference, known_guide_method, store in reversed(entries):
        same_guide = reference() is guide_owner and known_guide_method is guide_method
        if known_method is method and (same_guide or of_model):
            return store
    return None


def learned_by(program: Program) -> frozenset[str]:
    """The names of the parameters in the stores of all fits that this program took part in."""
    owner, method = _identity(program)
    names: set[str] = set()
    for of_model, entries in list(_learned.items()):
        for known_method, reference, guide_method, store in entries:
            is_model = of_model is owner and known_method is method
            if is_model or (reference() is owner and guide_method is method):
                names |= store["params"].keys()
    return frozenset(names)
