"""The full parsers of the commands: they know the classes and convert the options to values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ppl_vae.cli.known import FILLED_IN, OF_ROWS
from ppl_vae.cli.options import ACTIONS, COMMANDS, Function, describe
from ppl_vae.cli.own_modules import reach_typed
from ppl_vae.cli.roles import add_role
from ppl_vae.runs import import_by_name


class _HelpFormatter(DefaultHelpFormatter):  # type: ignore[misc, unused-ignore]
    """The help for a class, `--model.help VAE`, without markup; the rest of the help is in `light.py`."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(super()._get_help_string(action))
        if "(default: " in (action.help or ""):  # the option's own text is better
            text = action.help or ""
        known = re.search(r", known subclasses: .*\)$", text)
        if known and known[0].count(",") > 12:
            text = text.replace(known[0], ")")
        role, _, name = action.dest.rpartition(".")
        if role in ("model", "guide") and name in FILLED_IN:
            filled = "(default: what fits the data and the model, type"
            text = text.replace("(required, type", filled)
        return re.sub(r":\w+:`(.*?)`", r"\1", text).replace("`", "")


class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
    """A parser that requires nothing: what a constructor needs may come from the data or from the model.

    Args:
        arguments: The arguments that will be parsed: classes named in them become choices.
    """

    def __init__(self, *args: Any, arguments: Sequence[str] = (), **kwargs: Any) -> None:
        self.arguments = arguments
        defaults = {
            "formatter_class": _HelpFormatter,
            "allow_abbrev": False,
            "exit_on_error": False,
        }
        super().__init__(*args, **{**defaults, **kwargs})
        self.register("action", "help_all", argparse._HelpAction)  # answered by `light.py`

    def add_argument(self, *args: Any, group: str | None = None, **kwargs: Any) -> Any:
        """Adds one option; the titles of groups are for the help, which `light.py` prints."""
        return super().add_argument(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Checks types and names, but not that all that is required is there."""
        super().validate(*args, **{**kwargs, "skip_required": True})

    def add_function(self, function: Function) -> None:
        """Adds the parameters of a function."""
        self.add_function_arguments(import_by_name(function.path), skip=set(function.skip))

    def add_role(self, role: str, default: str, kind: str = OF_ROWS) -> None:
        """Adds an object that is given by the name of its class; `kind`: what it is for."""
        add_role(self, role, default, self.arguments, kind)


def make_parser(command: str, arguments: Sequence[str] = ()) -> Parser:
    """The parser of a command.

    Args:
        command: Its name.
        arguments: The arguments that will be parsed: classes named in them become choices.
    """
    reach_typed(arguments)
    parser = Parser(
        prog=f"ppl-vae {command}",
        description={**COMMANDS, **ACTIONS}[command],
        print_config=None,
        arguments=arguments,
    )
    describe(command, parser)
    return parser
