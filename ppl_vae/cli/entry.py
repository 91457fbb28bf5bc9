"""The command line, ``ppl-vae``.

This file holds no more than what has to be there before torch is: the list of commands, exit codes, and how
errors are told. Exit codes: 0 done, 1 it failed, 2 the command line was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ppl_vae._version import __version__
from ppl_vae.runs import plain

COMMANDS = {
    "train": "train a model/guide pair, evaluate and diagnose it, draw pictures",
    "em": "fit a model with closed forms by EM: a mixture, factor analysis, ...",
    "refit": "train a new guide for the model of a run, which stays as it is",
    "evaluate": "ELBO, rate, distortion and log p(x) of a run's test rows",
    "gaps": "where a run's bound is lost: approximation gap and amortisation gap",
    "diagnose": "which latent dimensions a run uses, and why not the others",
    "sample": "draw from a run's model",
    "compare": "differences between runs, row by row",
    "export": "hand a run to ArviZ, as netCDF",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if os.getcwd() not in sys.path:  # a user's own classes often lie where the command is run
        sys.path.append(os.getcwd())
    try:
        with _plain_warnings(debug):
            return _run(arguments)
    except SystemExit as stop:  # --help and its like
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("ppl-vae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except argparse.ArgumentError as error:
        if debug:
            raise
        return _usage_error(arguments, str(error))
    except Exception as error:
        if debug:
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print(f"ppl-vae: error: {message or type(error).__name__}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from ppl_vae.cli.parser import completion_parser

        completion_parser(COMMANDS).parse_args(arguments)
        return 0
    command = arguments[0] if arguments else ""
    if command not in COMMANDS:
        return _without_command(arguments)
    from ppl_vae.cli.parser import make_parser
    from ppl_vae.cli.roles import UsageError

    try:
        parser = make_parser(command, COMMANDS[command], arguments[1:])
        given = parser.parse_args(arguments[1:], defaults=False)
        module = command if command in ("train", "em", "refit") else "run_commands"
        run = getattr(importlib.import_module(f"ppl_vae.cli.{module}"), command)
        return int(run(parser, given))
    except UsageError as error:
        return _usage_error(arguments, str(error))


def _without_command(arguments: list[str]) -> int:
    """--help, --version, --print_completion, or no command at all."""
    parser = argparse.ArgumentParser(
        prog="ppl-vae",
        description="Train, evaluate and diagnose variational autoencoders written as Pyro "
        "model/guide pairs.",
        epilog="`ppl-vae COMMAND --help` says what a command can be told. The main job, in about a "
        "minute, is `ppl-vae train`.",
    )
    parser.add_argument("--version", action="version", version=f"ppl-vae {__version__}")
    parser.add_argument(
        "--print_completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help='print a completion script: eval "$(ppl-vae --print_completion bash)"',
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what)
    parser.parse_args(arguments)
    return 0


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from ppl_vae.cli.parser import completion_parser

        print(completion_parser(COMMANDS).get_completion_script(f"shtab-{values}"))
        parser.exit()


def _usage_error(arguments: Sequence[str], message: str) -> int:
    where = f"ppl-vae {arguments[0]}" if arguments and arguments[0] in COMMANDS else "ppl-vae"
    print(f"{where}: error: {plain(message)}\nTry `{where} --help`.", file=sys.stderr)
    return 2


@contextmanager
def _plain_warnings(debug: bool) -> Iterator[None]:
    """Warnings as one line on standard error; what only concerns other libraries' authors is left out."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = lambda message, *_: print(
                f"ppl-vae: warning: {message}", file=sys.stderr
            )
        yield


if __name__ == "__main__":
    sys.exit(main())
