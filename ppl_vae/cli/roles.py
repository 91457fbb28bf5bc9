"""Options for objects that are given by the name of their class: model, guide, objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppl_vae import guides, models, objectives
from ppl_vae.models.priors import Prior
from ppl_vae.objectives import Objective
from ppl_vae.runs import import_by_name, public_name

# The classes that go by their short names.
KNOWN: dict[str, dict[str, type]] = {
    "model": {
        name: getattr(models, name)
        for name in dir(models)
        if not issubclass(getattr(models, name), Prior)
    },
    "guide": {
        name: getattr(guides, name)
        for name in dir(guides)
        if "guide" not in inspect.signature(getattr(guides, name)).parameters
        and not inspect.isabstract(getattr(guides, name))
    },
    "objective": {
        name: getattr(objectives, name) for name in dir(objectives) if name.endswith("ELBO")
    },
}


FILLED_IN = ("data_shape", "latent_dim", "network", "likelihood")  # see set_up()


DEFAULTS = {
    "model": "ppl_vae.models.VAE",
    "guide": "ppl_vae.guides.MeanField",
    "objective": "ppl_vae.objectives.ELBO",
}


class UsageError(ValueError):
    """Options that can not be understood, or not together."""


def add_role(parser: Any, role: str, arguments: Sequence[str], default: str | None = None) -> None:
    """Adds an argument for an object that is given by the name of its class."""
    known = KNOWN[role]
    default = default or DEFAULTS[role]
    classes = []
    for name in _named(role, arguments) or [default]:
        if "." not in name and name not in known:
            raise UsageError(
                f"--{role} {name}: there is no {role} of this name; known are {', '.join(known)}, "
                "and any importable class by its full name, package.module.Class"
            )
        try:
            found = known[name] if name in known else import_by_name(name)
        except ValueError as error:
            raise UsageError(f"--{role} {name}: {error}") from error
        if role == "objective" and not (inspect.isclass(found) and issubclass(found, Objective)):
            raise UsageError(f"--objective {name}: this is no subclass of {public_name(Objective)}")
        if not inspect.isclass(found):
            parser.add_argument(f"--{role}", type=Callable, help="a Pyro program")
            return
        classes.append(found)
    parser.add_subclass_arguments(
        tuple(dict.fromkeys(classes)),
        role,
        as_group=False,
        skip={"model"},  # a guide that asks for the model is given it
        default={"class_path": public_name(classes[-1])},
        instantiate=False,
        fail_untyped=False,
        metavar="CLASS",
        help=f"{', '.join(known)}, or the full name of any importable class; its arguments are "
        f"--{role}.NAME VALUE, and --{role}.help CLASS lists them (default: "
        f"{default.rpartition('.')[2]})",
    )


def _named(role: str, arguments: Sequence[str]) -> list[str]:
    """The classes that the arguments, and the configuration files among them, name for a role."""
    named: list[str | None] = []
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        if option in (f"--{role}", f"--{role}.class_path", f"--{role}.help"):
            named.append(_class_path(value))
        elif option == "--config":
            named.append(_class_path(_load_yaml(value).get(role)))
    return [name for name in named if name and not name.startswith("-")]


def _class_path(value: Any) -> str | None:
    if isinstance(value, str) and value.startswith("{"):
        value = yaml.safe_load(value)
    if isinstance(value, Mapping):
        value = value.get("class_path")
    return value if isinstance(value, str) and not Path(value).is_file() else None


def _load_yaml(file: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser will complain of it
        return {}
    return content if isinstance(content, Mapping) else {}
