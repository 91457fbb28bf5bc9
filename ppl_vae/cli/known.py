"""The classes that --model, --guide and --objective accept by their short names."""

from __future__ import annotations

import ast

from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.source import Definition, derives, find, is_abstract, offered, parameters

DEFAULTS = {
    "model": "ppl_vae.models.VAE",
    "guide": "ppl_vae.guides.MeanField",
    "objective": "ppl_vae.objectives.ELBO",
}
"""The roles, and the default class of each."""

SUITED = {
    "SemiSupervisedVAE": {
        "guide": "ppl_vae.guides.SemiSupervised",
        "objective": "ppl_vae.objectives.SemiSupervisedELBO",
    }
}
"""The default classes of other roles for models that those above do not suit."""

FILLED_IN = ("data_shape", "latent_dim", "network", "likelihood")
"""Arguments of models and guides that `set_up` fills in."""


def face(role: str) -> str:
    """The package of a role's known classes."""
    return DEFAULTS[role].rpartition(".")[0]


def known(role: str) -> list[str]:
    """The classes that have short names: no priors, and no guides that need another guide.

    Example:
        >>> known("objective")[:2]
        ['ELBO', 'EnumELBO']
    """
    return [name for name, found in offered(face(role)).items() if _has_short_name(role, found)]


def find_known(role: str, name: str) -> Definition | None:
    """The class that has this short name; None if there is none. Faster than a search in `known`."""
    found = find(face(role), name)
    return found if found and _has_short_name(role, found) else None


def _has_short_name(role: str, definition: Definition) -> bool:
    if not isinstance(definition.node, ast.ClassDef) or is_abstract(definition):
        return False
    if role == "model":
        return not derives(definition, "Prior")
    if role == "guide":
        return "guide" not in [p.name for p in parameters(definition)]
    return definition.node.name.endswith("ELBO")


def unknown_name(role: str, name: str) -> UsageError:
    """The error for a name that is none of the known ones."""
    names = known(role)
    return UsageError(
        f"--{role} {name}: there is no {role} of this name{did_you_mean(name, names)}; known are "
        f"{', '.join(names)}, and any importable class by its full name, package.module.Class"
    )


def role_help(role: str, default: str) -> str:
    """What a role's option says in the help."""
    return (
        f"{', '.join(known(role))}, or the full name of any importable class; its arguments are "
        f"--{role}.NAME VALUE, and --{role}.help CLASS lists them (default: "
        f"{default.rpartition('.')[2]})"
    )
