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


def asked(part: object, name: str) -> Any:
    """What an object of a class of this library, or of one that derives from it, has as an attribute.

    Returns:
        None of a stranger's, where the same name may mean something else.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> class Wider(MLP): ...
        >>> asked(Wider((8,)), "hidden"), asked(3 + 4j, "real")
        ((8,), None)
    """
    is_known = any(f"{each.__module__}.".startswith("ppl_vae.") for each in type(part).__mro__)
    return getattr(part, name, None) if is_known else None


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
    guide, model = (getattr(program, "program", program) for program in (guide, model))
    says = getattr(guide, name, None)
    return callable(says) and bool(says(model))
