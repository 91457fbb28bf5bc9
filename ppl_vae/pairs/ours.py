"""Whether an object is of a class of this library, which may be asked what a stranger's may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Module


def is_ours(value: object, package: str) -> bool:
    """Whether an object is of a class that this library defines in one of its packages.

    Example:
        >>> from ppl_vae.objectives import ELBO
        >>> is_ours(ELBO(), "objectives"), is_ours(ELBO(), "models"), is_ours(None, "models")
        (True, False, False)
    """
    return f"{type(value).__module__}.".startswith(f"ppl_vae.{package}.")


def own_attribute(value: object, name: str) -> Any:
    """An attribute of an object whose class is ours, or derives from one of ours; None of a stranger's.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> class Wider(MLP): ...
        >>> own_attribute(Wider((8,)), "hidden"), own_attribute(3 + 4j, "real")
        ((8,), None)
    """
    known = any(f"{each.__module__}.".startswith("ppl_vae.") for each in type(value).__mro__)
    return getattr(value, name, None) if known else None


def hook_of(part: object, name: str) -> Callable[..., Any] | None:
    """A method that any part of a pair may have, also a stranger's (docs/architecture.md, "Contracts").

    Returns:
        None if there is none: an attribute that is no function, such as a list or a module, is something else
        of the same name.

    Example:
        >>> class Scheduled:
        ...     learning_rates = [0.1, 0.01]
        >>> hook_of(Scheduled(), "learning_rates") is None
        True
    """
    found = getattr(part, name, None)
    return found if callable(found) and not isinstance(found, type | Module) else None


def unbound(program: Any) -> Any:
    """The program that `fit(...).model` and `fit(...).guide` run, if this is one of these."""
    return program.program if is_ours(program, "pairs") else program


def stated_by(model: object, name: str) -> Callable[..., Any] | None:
    """What a model of this library states by a method, such as `log_evidence`; None if it does not.

    A method of a stranger's model is not asked: one of the same name may mean something else. Of a model that
    `refit_guide` holds as it is, the model itself is asked.

    Example:
        >>> stated_by("a stranger's", "upper") is None
        True
    """
    model = getattr(model, "held", model) if is_ours(model, "training") else model
    found = getattr(model, name, None) if is_ours(model, "models") else None
    return found if callable(found) else None


def is_posterior(model: object, guide: object) -> bool:
    """Whether a guide is known to be the posterior of a model, as an `Exact` one of ours is.

    Example:
        >>> is_posterior("a stranger's", "a stranger's")
        False
    """
    return _guide_says("is_posterior_of", model, guide)


def covers_posterior(model: object, guide: object) -> bool:
    """Whether a guide is known to leave out no value of a latent that the posterior of a model has.

    Example:
        >>> covers_posterior("a stranger's", "a stranger's")
        False
    """
    return is_posterior(model, guide) or _guide_says("covers_posterior_of", model, guide)


def _guide_says(name: str, model: object, guide: object) -> bool:
    guide, model = unbound(guide), unbound(model)
    says = own_attribute(guide, name)
    return callable(says) and bool(says(model))
