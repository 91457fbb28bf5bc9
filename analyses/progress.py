"""What the scripts share: a table that appears row by row, checks of options, and `--quick`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import auto_cli

QUICK = "--quick"


class Table:
    """A Markdown table on standard output; on standard error, what is done and about how long the rest takes.

    Args:
        columns: The header.
        steps: The rows, and other work that takes as long as one.
    """

    def __init__(self, columns: Sequence[str], steps: int) -> None:
        self.columns, self.steps = columns, steps
        self.started = time.monotonic()
        self.done = 0

    def head(self) -> None:
        """Prints the header."""
        for cells in (self.columns, ["---"] * len(self.columns)):
            print("|", " | ".join(cells), "|", flush=True)

    def row(self, cells: Sequence[str]) -> None:
        """Prints a row."""
        print("|", " | ".join(cells), "|", flush=True)

    def step(self, what: str) -> None:
        """Says that a step is done, and the time left if the others take as long as those so far."""
        self.done += 1
        passed = time.monotonic() - self.started
        left = passed / self.done * (self.steps - self.done)
        rest = f"about {_time(left)} left" if self.done < self.steps else "that was the last"
        print(
            f"{what}: {self.done} of {self.steps} after {_time(passed)}, {rest}",
            file=sys.stderr,
            flush=True,
        )


def require_list(
    option: str, given: Sequence[Any], least: float | None = None, *, may_be_empty: bool = False
) -> None:
    """Raises an error for a list that would be a line of the table twice, or none.

    Args:
        option: As it is typed, for the message.
        given: What was given for it.
        least: The smallest number that it may hold; None: any, or they are no numbers.
        may_be_empty: Whether no line is meant by an empty one.

    Raises:
        ValueError: It is empty, has something twice, or a number that is too small.
    """
    if not given and not may_be_empty:
        raise ValueError(f"{option} is empty: give at least one, or leave the option out")
    for i, each in enumerate(given):
        if least is not None and each < least:
            raise ValueError(f"{option} has {each}, and each must be at least {least}")
        if each in given[:i]:
            raise ValueError(f"{option} has {each} twice: give each once")


def chosen_rows(
    rows: Sequence[str] | None, known: Iterable[str], option: str = "--rows"
) -> list[str]:
    """The lines of a table that were asked for by their names; all if the option was left out.

    Args:
        rows: The names, or None.
        known: Those of all lines.
        option: As it is typed, for the message.

    Raises:
        ValueError: A name is that of no line, or comes twice, or there is none.
    """
    names = [*known]
    chosen = names if rows is None else [*rows]
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"{option}: no line is called {unknown[0]!r}: expected some of {names}")
    require_list(option, chosen)
    return chosen


def start(
    main: Callable[..., None] | Mapping[str, Callable[..., None]],
    quick: Mapping[str, Any],
) -> None:
    """Runs a script on the options of the command line, with `--quick` on tiny settings.

    Args:
        main: Its function, or one for each subcommand.
        quick: The options of `--quick`, which those that are typed replace; with subcommands, for each of them.
    """
    typed = sys.argv[1:]
    if QUICK in typed:
        typed.remove(QUICK)
        command = typed[:1] if isinstance(main, Mapping) and typed[:1] != ["--help"] else []
        options = quick if not isinstance(main, Mapping) else quick.get("".join(command), {})
        tiny = [f"--{name}={_typed(value)}" for name, value in options.items()]
        if tiny and not {"--help", "-h"} & {*typed}:
            print(
                f"QUICK TRIAL, {' '.join(tiny)}: the script runs, but its numbers and pictures mean nothing.\n",
                flush=True,
            )
        typed = [*command, *tiny, *typed[len(command) :]]
    components: Any = dict(main) if isinstance(main, Mapping) else main
    auto_cli(
        components,
        args=typed,
        epilog=f"{QUICK}: tiny settings, to end within a minute; what is typed beside it replaces them",
    )


def _typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
