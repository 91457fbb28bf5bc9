"""What the commands print: results to standard output, messages to standard error. Without torch."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress

from ppl_vae.runtime import printable

_KEPT = "\n\t"
"""Characters that are no text, but may be in what is shown."""

_NO_TEXT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters other than tabs, ends of lines and paragraphs, and what turns the order of letters."""


class OutputError(Exception):
    """Standard output cannot be written: it is full or closed."""


def say(line: str) -> None:
    """Prints a message to standard error: standard output is for results.

    Where that is full or closed, nobody can be told, but no result may be lost for it.
    """
    if sys.stderr is not None:  # for None, `print` would take standard output
        with suppress(OSError):
            print(printable(line, _KEPT), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Prints a warning to standard error."""
    say(f"ppl-vae: warning: {line}")


def show(result: object = "", end: str = "\n") -> None:
    """Prints a result to standard output, at once: what cannot be printed is an error here, not at the end.

    Raises:
        OutputError: It cannot be written.
        BrokenPipeError: Its reader has ended.
    """
    _print(printable(str(result), _KEPT), end)


def show_lines(lines: Iterable[str]) -> None:
    """Prints sentences, one a line, as `show` does, but with all their letters: see `as_line`.

    Where that is no terminal, it is in UTF-8, as a command that reads sentences expects it.

    Raises:
        OutputError: It cannot be written.
        BrokenPipeError: Its reader has ended.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    _print("".join(f"{line}\n" for line in lines), end="")


def as_line(text: str) -> str:
    """A sentence without what ends a line or what a terminal obeys; it may have tabs.

    Unlike `printable`, it keeps characters that languages are written with, such as spaces without a break.

    Example:
        >>> as_line("two\\nlines, \\x1b[2J"), as_line("10\\xa0%")
        ('two\\\\nlines, \\\\x1b[2J', '10\\xa0%')
    """
    return _NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], text)


def _print(text: str, end: str) -> None:
    if sys.stdout is None:
        raise OutputError("standard output is closed, so that the result was not shown")
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"standard output cannot be written ({error.strerror}): what was to be shown is incomplete"
        ) from error


def finish_output() -> None:
    """Prints what is still to be printed, such as a help text. Raises as `show` does."""
    if sys.stdout is not None:
        show(end="")


def silence_output() -> None:
    """Lets standard output go nowhere: Python prints what is left at its end, and would fail once more."""
    with suppress(OSError, AttributeError, ValueError):  # closed, or no file of the system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def counted(number: int, what: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "run"), counted(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
