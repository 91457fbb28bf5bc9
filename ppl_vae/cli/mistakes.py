"""Mistakes in a command line that can be found without torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from ppl_vae.cli.source import Type

_VALUES = {"null", "none", "true", "false", "inf", "infinity", "nan"}
"""Words that YAML or Python read as values: the full parser judges them."""

_YES_OR_NO = {"yes", "no", "on", "off", "y", "n"}
"""Other words of YAML for true and false."""


class UsageError(ValueError):
    """Options that are wrong, or that exclude each other."""


def shortened(name: str) -> str:
    """A name of a file, without its middle if it is long."""
    return name if len(name) < 100 else f"{name[:40]}...{name[-20:]}"


def did_you_mean(word: str, words: Iterable[str], above: str = "") -> str:
    """A hint at the most similar of the right words; empty if none is similar.

    Args:
        word: The wrong word.
        words: The right words.
        above: What to show before a right word.

    Example:
        >>> did_you_mean("--max_epoch", ["--max_epochs", "--seed"])
        ' (did you mean --max_epochs?)'
    """
    bare = {right.lstrip("-"): right for right in words}  # dashes would make all options alike
    nearest = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return f" (did you mean {above}{bare[nearest[0]]}?)" if nearest else ""


def wrong_value(expected: Type, value: str) -> str:
    """What is wrong with a value; empty if only the full parser can judge it.

    YAML has many spellings of a number, so only plain words are rejected here.

    Example:
        >>> wrong_value(Type(kinds=("int",)), "many"), wrong_value(Type(kinds=("int",)), "1e3")
        ('expected int, got many', '')
        >>> wrong_value(Type(values=("true", "false")), "maybe")
        'expected true or false, got maybe'
    """
    if not value and expected.kinds in (("int",), ("float",), ("str",)):
        return f"expected {expected.kinds[0]}, got an empty text"
    if expected.kinds == ("float",) and re.fullmatch(r"[+-]?\.?(inf|infinity|nan)", value.lower()):
        return f"expected a finite number, got {value}"
    if expected.kinds in (("int",), ("float",)):
        plain_word = value.isalpha() and value.lower() not in _VALUES
        wrong = plain_word or value[:1] in ("{", "[", "'", '"')
        flag = ", true or false" if "true" in expected.values else ""
        return f"expected {expected.kinds[0]}{flag}, got {value:.60}" if wrong else ""
    closed = expected.values and not (expected.kinds or expected.bases or "true" in expected.values)
    spelled = re.fullmatch(r"[\w-]+", value) and value.lower() not in _VALUES
    flag_only = set(expected.values) == {"true", "false"} and not expected.kinds
    if flag_only and spelled and value.lower() not in _YES_OR_NO:
        return f"expected true or false, got {value}"
    if closed and spelled and value not in expected.values:
        listed = ", ".join(repr(v) for v in expected.values if v != "null")
        return f"expected one of {listed}, got {value}"
    return ""
