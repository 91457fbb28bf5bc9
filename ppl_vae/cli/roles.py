"""Options of the full parser that take the name of a class: --model, --guide, --objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppl_vae.cli.known import face, known, role_help, unknown_name
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.objectives import Objective
from ppl_vae.runs import import_alternatives, import_by_name, public_name


def add_role(
    parser: Any, role: str, default: str, arguments: Sequence[str], by_em: bool = False
) -> None:
    """Adds an option that takes the name of a class; `by_em`: of a model that EM can fit."""
    names, classes = known(role, by_em), []
    for name in _named(role, arguments) or [default]:
        if "." not in name and name not in names:
            raise unknown_name(role, name, by_em)
        try:
            found = import_by_name(f"{face(role)}.{name}" if name in names else name)
        except ValueError as error:
            raise UsageError(f"--{role} {name}: {error}") from error
        if role == "objective" and not (inspect.isclass(found) and issubclass(found, Objective)):
            raise UsageError(f"--objective {name}: this is no subclass of {public_name(Objective)}")
        if not inspect.isclass(found):
            parser.add_argument(f"--{role}", type=Callable, help="a Pyro program")
            return
        import_alternatives(found)
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
        help=role_help(role, default, by_em),
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
            named.append(_class_path(load_file(value).get(role)))
    return [name for name in named if name and not name.startswith("-")]


def _class_path(value: Any) -> str | None:
    if isinstance(value, str) and value.startswith("{"):
        value = yaml.safe_load(value)
    if isinstance(value, Mapping):
        value = value.get("class_path")
    return value if isinstance(value, str) and not Path(value).is_file() else None


def load_file(file: str) -> Mapping[str, Any]:
    """The content of a configuration file; nothing if it cannot be read, which the parser will report."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}
