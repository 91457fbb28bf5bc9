"""Shell completion: every command, every option, and the values that an option takes."""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module
from importlib.util import find_spec

from ppl_vae.cli.light import LightParser
from ppl_vae.cli.options import ACTIONS, RUN_OR_SWEEP, actions_of, describe

# Where nothing can be listed, a second TAB says what is expected. The reply to a terminal's status report
# (ESC [5n) then makes readline draw the line again.
_EXPECTS = """
[[ $- == *i* ]] && bind '"\\e[0n": redraw-current-line' 2>/dev/null
_ppl_vae_expects() { [ "$COMP_TYPE" = 63 ] && printf '\\nexpected: %s\\n\\033[5n' "$1" >&2; }
"""


def fill(root: LightParser) -> None:
    """Describes all commands to the parser of the whole command line."""
    for name, parser in commands_of(root).items():
        actions = actions_of(name)
        if not actions:
            _fill(name, parser)
            continue
        below = parser.add_subparsers(metavar="ACTION")
        for action in actions:
            full = f"{name} {action}"
            _fill(full, below.add_parser(action, help=ACTIONS[full]))


def _fill(command: str, parser: LightParser) -> None:
    describe(command, parser)
    parser.spell_out()
    parser.add_options_below()


def commands_of(root: LightParser) -> dict[str, LightParser]:
    """The parsers of the commands."""
    (commands,) = (a for a in root._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def _parsers(root: LightParser) -> list[LightParser]:
    """A parser and all below it."""
    below = [a for a in root._actions if isinstance(a, argparse._SubParsersAction)]
    return [root, *(p for a in below for child in a.choices.values() for p in _parsers(child))]


def script(root: LightParser, shell: str) -> str:
    """The completion script for a shell."""
    import shtab

    fill(root)
    hints: dict[str, str] = {}
    for parser in _parsers(root):
        for action in parser._actions:
            if action.choices or isinstance(action, argparse._SubParsersAction):
                continue
            if action.metavar in ("RUN", RUN_OR_SWEEP) or action.dest.endswith("_dir"):
                vars(action)["complete"] = shtab.DIRECTORY
            elif action.metavar == "FILE" or action.dest in ("config", "data"):
                vars(action)["complete"] = shtab.FILE
            elif shell == "bash" and (expected := getattr(action, "expected", None)):
                words = " or ".join(expected.kinds)
                hint = hints.setdefault(words, f"_ppl_vae_expects_{len(hints)}")
                vars(action)["complete"] = {"bash": hint}
    functions = "".join(
        f"{name}() {{ _ppl_vae_expects {shlex.quote(words)}; }}\n" for words, name in hints.items()
    )
    return str(shtab.complete(root, shell, preamble=_EXPECTS + functions if hints else ""))


def answer_argcomplete(root: LightParser) -> None:
    """Answers a shell that asks through argcomplete, if that is installed."""
    if find_spec("argcomplete"):
        fill(root)
        import_module("argcomplete").autocomplete(root)
