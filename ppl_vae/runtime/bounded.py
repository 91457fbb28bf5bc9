"""YAML and JSON that others wrote, read within limits.

A few lines of either can stand for gigabytes (an alias of aliases of aliases) or end Python's stack (brackets
in brackets). Whoever reads a file of another person reads it by these functions.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

MOST_YAML = 2**18
"""Largest size of a YAML text, in bytes: our parser is slow, and a configuration takes a hundredth of it."""

MOST_JSON = 2**25
"""Largest size of a JSON text, in bytes."""

DEEPEST = 100
"""Most brackets inside of each other."""

_MOST_NODES = 100_000
_CHARACTERS = 10
"""So many characters of a text count as a value: an alias may repeat a long one."""

_LONGEST_NUMBER = 1000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_NO_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^\[\]{}"]++', re.DOTALL)
"""What stands between the brackets of a JSON text. A string without an end reaches to that of the text, and no
way back is tried: it would be tried from each quote in it."""


def read_text(file: Path, most: int) -> str:
    """The text of a file.

    Raises:
        ValueError: It is longer than `most` bytes, or is not UTF-8.
    """
    with file.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than the {most // 1024} KiB that are read")
    return data.decode("utf-8")


def load_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        ValueError: It is no YAML of plain values, or is too long, too deep, or too large once its aliases are
            followed.

    Example:
        >>> load_yaml("a: [1, 2]")
        {'a': [1, 2]}
        >>> load_yaml("a: &a [*a]")
        Traceback (most recent call last):
        ValueError: its aliases stand for more than 100000 values
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"it is larger than the {MOST_YAML // 1024} KiB that are read")
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    # What PyYAML raises for a number that overflows, and for a tag that does not fit its value.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _BoundedLoader(yaml.SafeLoader):
    """Counts the values while it reads, an alias as all that it stands for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._nodes = 0, 0.0
        self._sizes: dict[str | None, float] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._nodes
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            self._nodes += self._sizes.get(
                event.anchor, math.inf
            )  # none yet: it is inside of itself
        else:
            text = event.value if isinstance(event, yaml.ScalarEvent) else ""
            self._nodes += 1 + len(text) // _CHARACTERS
        if self._nodes > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES} values")
        if (
            isinstance(event, yaml.ScalarEvent)
            and len(event.value) > _LONGEST_NUMBER
            and (event.implicit[0] or event.tag in _NUMBERS)
        ):
            event.tag = "tag:yaml.org,2002:str"  # text, and no number that takes minutes to convert
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._nodes - before
        return node


def load_json(text: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        ValueError: It is no JSON, holds something else, or is too long or too deep.

    Example:
        >>> load_json('{"a": 1}')
        {'a': 1}
    """
    if len(text) > MOST_JSON:
        raise ValueError(f"it is larger than the {MOST_JSON // 1024} KiB that are read")
    brackets = _NO_BRACKETS.sub("", text)
    levels = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
    if any(level > DEEPEST for level in levels):
        raise ValueError(f"it has more than {DEEPEST} levels")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("expected names and values, `{...}`")
    return content
