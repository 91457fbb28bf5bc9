"""The classes that --model, --guide and --objective accept by their short names."""

from __future__ import annotations

from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.source import derives, is_abstract, offered, parameters

DEFAULTS = {
    "model": "ppl_vae.models.VAE",
    "guide": "ppl_vae.guides.MeanField",
    "objective": "ppl_vae.objectives.ELBO",
}
"""The roles, and the default class of each."""

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
    classes = {n: c for n, c in offered(face(role)).items() if not is_abstract(c)}
    if role == "model":
        return [name for name, c in classes.items() if not derives(c, "Prior")]
    if role == "guide":
        return [n for n, c in classes.items() if "guide" not in [p.name for p in parameters(c)]]
    return [name for name in classes if name.endswith("ELBO")]


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
