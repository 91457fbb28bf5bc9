"""The command line, `ppl-vae`.

Exit codes: 0 done, 1 it failed, 2 the command line was wrong, 130 interrupted. Torch, which takes seconds to
import, is imported only when a command runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_vae._version import __version__
from ppl_vae.cli.light import LightParser
from ppl_vae.cli.mistakes import UsageError, did_you_mean, shortened
from ppl_vae.cli.options import ACTIONS, COMMANDS, actions_of
from ppl_vae.cli.output import OutputError, finish_output, say, show, silence_output, warn
from ppl_vae.cli.parsing import parsed
from ppl_vae.cli.rc_files import ignored_here
from ppl_vae.runs import plain
from ppl_vae.runtime import progress_in_lines, safe_children

_MODULES = ("train", "em", "refit", "sweep", "report", "colorize", "probe", "translate")
"""The commands that have a module of their own."""

_ELSEWHERE = {
    "compress": "compressed",
    "decompress": "compressed",
    "refit-prior": "fitted_prior",
}
"""The modules of other commands, where it is not `run_commands`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Meanwhile each Python that is started has a safe path, as with -P: a script that gives a command several
    processes is started again without its own folder on the path.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal, say, has no ± and no ümlaut
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _plain_warnings(debug), safe_children(), ignored_here():
            code = _code(arguments)
            finish_output()
            return code
    except KeyboardInterrupt:
        say("ppl-vae: interrupted")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        silence_output()
        return 141
    except OutputError as error:
        silence_output()
        if debug:
            raise
        say(f"ppl-vae: error: {error}")
        return 1
    except (UsageError, argparse.ArgumentError) as error:
        if debug:
            raise
        return _usage_error(arguments, _plain_usage(str(error)))
    except Exception as error:
        if debug:
            raise
        say(f"ppl-vae: error: {_message(error, arguments)}")
        return 1


def _code(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except SystemExit as stop:  # --help and its like
        return int(stop.code or 0)


def _plain_usage(said: str) -> str:
    """What argparse says of a flag that is given a value, in plain words."""
    flag = re.fullmatch(r"argument (?:-\w/)?(--\w+): ignored explicit argument (.*)", said)
    return f"{flag[1]} takes no value, got {flag[2]}" if flag else said


def _message(error: Exception, arguments: Sequence[str] = ()) -> str:
    """What an error says, in words for those who do not read Python."""
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        name = str(error.filename)
        said = f"{shortened(name)}: {os.strerror(error.errno)}"
        if error.errno == errno.ENAMETOOLONG:
            return f"{_option_of(name, arguments)}{said}: choose a shorter one"
        return said
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if memory := re.search(r"tried to allocate ([\d.]+ ?\w+)", said, re.IGNORECASE):
        return (
            f"not enough memory, {memory[1]} were asked for: choose smaller sizes (layers, "
            "batches) or fewer samples"
        )
    if said.startswith("Key backend:"):  # of matplotlib, when it is imported
        return f"MPLBACKEND={os.environ.get('MPLBACKEND')} is no backend of matplotlib: unset it, or take agg"
    return plain(said) or type(error).__name__


def _option_of(file: str, arguments: Sequence[str]) -> str:
    """The option whose value names a file, with a blank; empty if it is none, as for a RUN."""
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        option, value = (option, value) if equals else (before, argument)
        before = argument
        if value and Path(value.removeprefix("folder:")).name in file:
            named = {"-o": "--output"}.get(option, option)
            return f"{named} " if named.startswith("-") else "RUN "
    return ""


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from ppl_vae.cli.completion import answer_argcomplete

        answer_argcomplete(_root_parser())
        return 0
    _require_typed(arguments)
    command = arguments[0] if arguments else ""
    if not command:
        raise UsageError("the following arguments are required: COMMAND")
    if command.startswith("-") and (later := next((a for a in arguments if a in COMMANDS), "")):
        raise UsageError(
            f"{command} stands before the command: write ppl-vae {later} {command} ..."
        )
    if command not in COMMANDS:
        _root_parser().check(arguments)
        return 0
    command, rest = _with_action(command, arguments[1:])
    parser, given = parsed(command, rest)
    group, _, action = command.rpartition(" ")
    own = group or action
    module = own if own in _MODULES else _ELSEWHERE.get(own, "run_commands")
    run = getattr(importlib.import_module(f"ppl_vae.cli.{module}"), action.replace("-", "_"))
    with progress_in_lines(say):
        return int(run(parser, given))


def _with_action(command: str, rest: list[str]) -> tuple[str, list[str]]:
    """The name of a command and what stands behind it; some consist of two words, `colorize train`.

    Raises:
        UsageError: The second word is missing, or is none that there is.
    """
    actions = actions_of(command)
    if not actions or (rest[:1] and rest[0].startswith("-")):  # whose parser says what is wrong
        if {*rest} & {*actions}:
            raise UsageError(
                f"write the action first, and options behind it: ppl-vae {command} {actions[0]} --quiet"
            )
        return command, rest
    if not rest or rest[0] not in actions:
        said = f"invalid ACTION {shortened(rest[0])!r}" if rest else "ACTION is missing"
        hint = did_you_mean(rest[0], actions) if rest else ""
        raise UsageError(f"{said}: choose from {', '.join(actions)}{hint}")
    return f"{command} {rest[0]}", rest[1:]


def _require_typed(arguments: Sequence[str]) -> None:
    """Refuses an option that is the name of a file here: a shell may have put it in the place of a `*`.

    Raises:
        UsageError: There is such a file.
    """
    for argument in arguments:
        if re.match("--?[a-zA-Z]", argument) and os.path.lexists(argument):
            name = shortened(argument)
            raise UsageError(
                f"{name} would be an option, but a file of this name is in the current folder, so that it may "
                "not be you who typed it: rename the file, or write ./* instead of *"
            )


def _root_parser() -> LightParser:
    """The parser of the options before a command: --help, --version, --print_completion."""
    parser = LightParser(
        prog="ppl-vae",
        description="Train, evaluate and diagnose variational autoencoders written as Pyro "
        "model/guide pairs.",
        epilog="`ppl-vae COMMAND --help` lists the options of a command, --help-all also the rare ones. "
        "The main job, in about a minute, is `ppl-vae train`.",
    )
    parser.add_argument("--version", action="version", version=f"ppl-vae {__version__}")
    parser.add_argument(
        "--print_completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help='print a completion script: eval "$(ppl-vae --print_completion bash)"',
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what)
    return parser


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from ppl_vae.cli.completion import script

        show(script(_root_parser(), values))
        parser.exit()


def _usage_error(arguments: Sequence[str], message: str) -> int:
    where = f"ppl-vae {arguments[0]}" if arguments and arguments[0] in COMMANDS else "ppl-vae"
    if " ".join(arguments[:2]) in ACTIONS:
        where = f"{where} {arguments[1]}"
    say(f"{where}: error: {plain(message)}\nTry `{where} --help`.")
    return 2


@contextmanager
def _plain_warnings(debug: bool) -> Iterator[None]:
    """Shows warnings as one line on standard error, without those meant for authors of other libraries."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = lambda message, *_: warn(str(message))
        yield


if __name__ == "__main__":
    sys.exit(main())
