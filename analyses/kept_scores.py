"""Scores that a script has found, kept in a file line by line; those of other settings are left alone."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from ppl_vae.runtime import replacing

Shares = list[float]
"""Shares of the test rows that get their label, of each draw of labels."""


class Scores:
    """The scores that were found, in a file.

    Args:
        file: The table.
        of: What they depend on.
    """

    COLUMNS = ("of", "learns", "labels", "draw", "share")

    def __init__(self, file: Path, of: str) -> None:
        self.file, self.of = file, hashlib.sha256(of.encode()).hexdigest()
        self.lines: list[dict[str, str]] = []
        if file.exists():
            with file.open(newline="") as opened:
                self.lines = [*csv.DictReader(opened)]

    def get(self, name: str, labels: int, draws: int) -> Shares | None:
        """The shares of a line's first draws; None if there are not as many."""
        own = (self.of, name, str(labels))
        found = [line for line in self.lines if (line["of"], line["learns"], line["labels"]) == own]
        by_draw = {int(line["draw"]): float(line["share"]) for line in found}
        return [by_draw[i] for i in range(draws)] if by_draw.keys() >= {*range(draws)} else None

    def add(self, name: str, labels: int, shares: Shares) -> None:
        """Keeps shares, draw by draw."""
        for draw, share in enumerate(shares):
            values = (self.of, name, str(labels), str(draw), repr(share))
            self.lines.append(dict(zip(self.COLUMNS, values, strict=True)))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(self.file, overwrite=True) as temporary,
            Path(temporary).open("w", newline="") as opened,
        ):
            writer = csv.DictWriter(opened, self.COLUMNS)
            writer.writeheader()
            writer.writerows(self.lines)
