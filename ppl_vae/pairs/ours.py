"""Whether an object is of a class of this library, which may be asked what a stranger's may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def is_ours(value: object, package: str) -> bool:
    """Whether an object is of a class that this library defines in one of its packages.

    Example:
        >>> from ppl_vae.objectives import ELBO
        >>> is_ours(ELBO(), "objectives"), is_ours(ELBO(), "models"), is_ours(None, "models")
        (True, False, False)
    """
    return f"{type(value).__module__}.".startswith(f"ppl_vae.{package}.")


def stated_by(model: object, name: str) -> Callable[..., Any] | None:
    """What a model of this library states by a method, such as `log_evidence`; None if it does not.

    A method of a stranger's model is not asked: one of the same name may mean something else.

    Example:
        >>> stated_by("a stranger's", "upper") is None
        True
    """
    found = getattr(model, name, None) if is_ours(model, "models") else None
    return found if callable(found) else None
