"""Scores that a script has found, kept in a file line by line; those of other settings are left alone."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

from ppl_vae.runtime import replacing


class Scores:
    """The scores that were found, in a file.

    Args:
        file: The table.
        made_of: What those of each line depend on.
    """

    COLUMNS = ("of", "learns", "labels", "draw", "share")

    def __init__(self, file: Path, made_of: Mapping[str, str]) -> None:
        self.file = file
        self.made_of = {
            name: hashlib.sha256(each.encode()).hexdigest() for name, each in made_of.items()
        }
        self.lines = self._read()

    def _read(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as opened:
            return [*csv.DictReader(opened)]

    def of(self, name: str, labels: int) -> list[float]:
        """The shares of a line's first draws, as many as there are."""
        own = (self.made_of[name], name, str(labels))
        found = [line for line in self.lines if (line["of"], line["learns"], line["labels"]) == own]
        by_draw = {int(line["draw"]): float(line["share"]) for line in found}
        known = itertools.takewhile(by_draw.__contains__, itertools.count())
        return [by_draw[draw] for draw in known]

    def add(self, name: str, labels: int, share: float) -> None:
        """Keeps the share of the test rows that get their label, of a line's next draw of labels."""
        self.lines = self._read()  # another process may have added some
        draw = len(self.of(name, labels))
        values = (self.made_of[name], name, str(labels), str(draw), repr(share))
        self.lines.append(dict(zip(self.COLUMNS, values, strict=True)))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(self.file, overwrite=True) as temporary,
            Path(temporary).open("w", newline="") as opened,
        ):
            writer = csv.DictWriter(opened, self.COLUMNS)
            writer.writeheader()
            writer.writerows(self.lines)
