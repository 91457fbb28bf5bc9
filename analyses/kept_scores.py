"""Scores that a script has found, kept in a file line by line; those of other settings are left alone."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ppl_vae.runtime import append_text, replacing

_OF = "of"
"""The column that says of which settings a score is."""


class Scores:
    """The scores that were found, in a file.

    Each is added as a line of its own, so that several processes may work on one file.

    Args:
        file: The table.
        made_of: What the scores of each line of the script's table depend on, beside what stands in `columns`.
        columns: What a score is of: the line of the script's table, and whole numbers, such as its column and
            which draw.
        numbers: What the numbers of a score are called.

    Raises:
        ValueError: The file is another table.
    """

    def __init__(
        self,
        file: Path,
        made_of: Mapping[str, str],
        columns: Sequence[str] = ("learns", "labels", "draw"),
        numbers: Sequence[str] = ("share",),
    ) -> None:
        self.file = file
        self.made_of = {
            name: hashlib.sha256(each.encode()).hexdigest() for name, each in made_of.items()
        }
        self.columns, self.numbers = tuple(columns), tuple(numbers)
        # A line that the end of a process has cut off lacks what it is of, and so is none of ours.
        self.header = [*columns, *numbers, _OF]
        self._known = self._read() if file.exists() else {}

    def _read(self) -> dict[tuple[str, ...], list[float]]:
        with self.file.open(newline="", encoding="utf-8") as opened:
            lines = csv.DictReader(opened)
            found = [*(lines.fieldnames or ())]
            if {*found} != {*self.header}:
                raise ValueError(
                    f"{self.file} has the columns {found}, expected {self.header}: choose another --runs"
                )
            self.header, ours = found, {*self.made_of.values()}
            return {
                (line[_OF], *(line[name] for name in self.columns)): [
                    float(line[name]) for name in self.numbers
                ]
                for line in lines
                if line[_OF] in ours
            }

    def find(self, name: str, *of: int) -> list[float] | None:
        """The numbers of a score; None if they are not known."""
        return self._known.get(self._where(name, of))

    def of(self, name: str, column: int) -> list[float]:
        """The first number of a line's first draws, as many as there are."""
        shares: list[float] = []
        while (found := self.find(name, column, len(shares))) is not None:
            shares.append(found[0])
        return shares

    def add(self, name: str, *of: int, numbers: Sequence[float]) -> None:
        """Keeps the numbers of a score."""
        where = self._where(name, of)
        self._known[where] = [*numbers]
        cells = dict(zip((_OF, *self.columns), where, strict=True))
        cells |= dict(zip(self.numbers, map(repr, numbers), strict=True))
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have begun it in this moment.
            with (
                suppress(FileExistsError),
                replacing(self.file, overwrite=False) as temporary,
            ):
                temporary.write_text(_line(self.header), encoding="utf-8", newline="")
        # If another process writes its end in this moment, there will be an empty line, which says nothing.
        cut_off = not self.file.read_bytes().endswith(b"\n")
        line = _line([cells[name] for name in self.header])
        append_text(self.file, "\r\n" * cut_off + line)

    def _where(self, name: str, of: Sequence[int]) -> tuple[str, ...]:
        return (self.made_of[name], name, *map(str, of))


def _line(cells: Sequence[str]) -> str:
    """A line of the table."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()
