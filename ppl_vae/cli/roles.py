"""Options of the full parser that take the name of a class: --model, --guide, --objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ppl_vae.cli.known import OF_ROWS, face, known, named, role_help, unknown_name
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.objectives import Objective
from ppl_vae.runs import import_alternatives, import_by_name, public_name


def add_role(
    parser: Any, role: str, default: str, arguments: Sequence[str], kind: str = OF_ROWS
) -> None:
    """Adds an option that takes the name of a class; `kind`: what it is for."""
    names, classes = known(role, kind), []
    for name in named(role, arguments) or [default]:
        if "." not in name and name not in names:
            raise unknown_name(role, name, kind)
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
        help=role_help(role, default, kind),
    )
