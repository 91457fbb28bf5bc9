"""The classes that --model, --guide and --objective accept by their short names."""

from __future__ import annotations

import ast

from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.source import (
    Definition,
    derives,
    find,
    is_abstract,
    methods,
    offered,
    parameters,
)

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
    },
    "HierarchicalVAE": {"guide": "ppl_vae.guides.TopDown"},
}
"""The default classes of other roles for models that those above do not suit."""

FILLED_IN = ("data_shape", "latent_dim", "network", "likelihood", "context", "classes")
"""Arguments of models and guides that `set_up` fills in."""


def face(role: str) -> str:
    """The package of a role's known classes."""
    return DEFAULTS[role].rpartition(".")[0]


_BY_EM = {"posterior", "log_evidence", "expected_statistics", "maximize"}
"""The methods of a model that `ppl-vae em` can fit: its steps have closed forms."""


def known(role: str, by_em: bool = False) -> list[str]:
    """The classes that have short names: no priors, and no guides that need another guide.

    Args:
        role: The role.
        by_em: Only those that EM can fit.

    Example:
        >>> known("objective")[:2]
        ['ELBO', 'EnumELBO']
        >>> "VAE" in known("model"), "VAE" in known("model", by_em=True)
        (True, False)
    """
    return [n for n, found in offered(face(role)).items() if _has_short_name(role, found, by_em)]


def find_known(role: str, name: str, by_em: bool = False) -> Definition | None:
    """The class that has this short name; None if there is none. Faster than a search in `known`."""
    found = find(face(role), name)
    return found if found and _has_short_name(role, found, by_em) else None


def _has_short_name(role: str, definition: Definition, by_em: bool = False) -> bool:
    if not isinstance(definition.node, ast.ClassDef) or is_abstract(definition):
        return False
    if by_em and not methods(definition) >= _BY_EM:
        return False
    if role == "model":
        return not derives(definition, "Prior")
    if role == "guide":
        return "guide" not in [p.name for p in parameters(definition)]
    return definition.node.name.endswith("ELBO")


def unknown_name(role: str, name: str, by_em: bool = False) -> UsageError:
    """The error for a name that is none of the known ones."""
    names = known(role, by_em)
    if by_em and find_known(role, name):
        return not_by_em(name)
    return UsageError(
        f"--{role} {name}: there is no {role} of this name{did_you_mean(name, names)}; known are "
        f"{', '.join(names)}, and any importable class by its full name, package.module.Class"
    )


def not_by_em(name: str) -> UsageError:
    """The error for a model that EM cannot fit."""
    return UsageError(
        f"--model {name}: EM cannot fit it, because its steps have no closed form; those that EM fits are "
        f"{', '.join(known('model', by_em=True))}. To train {name}: ppl-vae train --model {name}"
    )


def role_help(role: str, default: str, by_em: bool = False) -> str:
    """What a role's option says in the help."""
    return (
        f"{', '.join(known(role, by_em))}, or the full name of any importable class; its arguments are "
        f"--{role}.NAME VALUE, and --{role}.help CLASS lists them (default: "
        f"{default.rpartition('.')[2]})"
    )
