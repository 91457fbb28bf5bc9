"""A command with its arguments, parsed twice: quickly for mistakes, then with torch for values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppl_vae.cli.known import with_suited
from ppl_vae.cli.light import command_parser

if TYPE_CHECKING:
    from ppl_vae.cli.parser import Parser


def parsed(command: str, arguments: Sequence[str]) -> tuple[Parser, Any]:
    """The full parser of a command, and the options that are given.

    Args:
        command: The command.
        arguments: What stands behind it.

    Raises:
        UsageError: An option is wrong.
        argparse.ArgumentError: Likewise.
    """
    light = command_parser(command)
    own = light.with_whole_numbers(arguments)
    own = with_suited(command, own) if command in ("train", "refit", "colorize train") else own
    own = light.with_documented(own)
    light.check(own)
    from ppl_vae.cli.parser import make_parser  # from here on with torch

    parser = make_parser(command, own)
    try:
        given = parser.parse_args(own, defaults=False)
    except argparse.ArgumentError as error:
        if not re.search(r"<class 'int'>\. Got value: \d+\.0\b", str(error)):
            raise
        given = parser.parse_args(light.with_whole_numbers(own, below=True), defaults=False)
    return parser, given
