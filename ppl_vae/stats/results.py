"""The base classes of results: per-row values, their summary as plain numbers, and one way to print it.

>>> import torch
>>> @dataclass(frozen=True)
... class Reconstruction(RowResult):
...     error: Estimate
...     worst_pixel: Tensor
...     num_samples: int
...
...     def lines(self) -> list[tuple[str, str]]:
...         return [("squared error", str(self.error)), ("samples", str(self.num_samples))]
>>> worst = torch.tensor([0.5, 2.0])
>>> error = Estimate(torch.tensor([1.0, 3.0]))
>>> result = Reconstruction(error, worst, 4, notes=("of standardized pixels",))
>>> print(result)
squared error  2.000 ± 1.000 nats
samples        4
note: of standardized pixels
>>> result.to_dict()["error"], result.to_dict()["worst_pixel"]["median"]
({'mean': 2.0, 'standard_error': 1.0}, 0.5)
>>> list(result.rows())
['error', 'worst_pixel']
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_vae.runtime import html_table, html_texts
from ppl_vae.stats.estimate import Estimate


@dataclass(frozen=True)
class Result(ABC):
    """The result of a function: one way to print it, one place for its notes and warnings.

    It prints, as far as it has them: a table, names and values, a caption, notes, warnings. *Warnings* are
    reasons not to trust the numbers: a subclass derives them from the numbers in `doubts`.

    Attributes:
        notes: How to read the numbers, one sentence each.
        cautions: Reasons not to trust the numbers that were known before they were, one sentence each.
    """

    notes: tuple[str, ...] = field(default=(), kw_only=True)
    cautions: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def lines(self) -> list[tuple[str, str]]:
        """The lines to print, one quantity each: its name, and its value with error and unit."""

    def table(self) -> list[list[str]]:
        """A table to print above the lines, with its header first; empty if there is none."""
        return []

    def caption(self) -> list[str]:
        """Sentences to print below the lines; none by default."""
        return []

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        yield from ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the numbers, one sentence each; empty if there are none."""
        return (*self.cautions, *self.doubts())

    def footnotes(self) -> list[str]:
        """The notes and the warnings as they are printed."""
        notes = [f"note: {text}" for text in self.notes]
        return notes + [f"warning: {text}" for text in self.warnings]

    @abstractmethod
    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain numbers and texts, for JSON; the last two entries are `notes` and `warnings`."""
        texts = {"notes": list(self.notes), "warnings": list(self.warnings)}
        return self.summary_numbers() | texts

    def __str__(self) -> str:
        table = [as_columns(self.table())] if self.table() else []
        numbers = [as_lines(self.lines())] if self.lines() else []
        if caption := self.caption():
            paragraphs = [table, numbers, [*caption, *self.footnotes()]]
        else:
            paragraphs = [table, [*numbers, *self.footnotes()]]
        return "\n\n".join("\n".join(part) for part in paragraphs if part)

    def _repr_html_(self) -> str:
        above = html_table(self.table(), header=True)
        below = html_texts([*self.caption(), *self.footnotes()])
        return above + html_table(self.lines()) + below

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):  # that of a dataclass would be pages of tensors
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        facts = [f"{name}: {value}" for name, value in self.lines()[:4]]
        rows = getattr(self, "num_rows", max(0, len(self.table()) - 1))
        facts += [f"{rows} row{'' if rows == 1 else 's'}"] if rows else []
        count = len(self.warnings)
        facts += [f"{count} warning{'' if count == 1 else 's'}"] if count else []
        return f"{type(self).__name__}({'; '.join(facts)})"


@dataclass(frozen=True)
class RowResult(Result):
    """A result with values for each row.

    A subclass is a frozen dataclass whose first own field is a per-row value. Fields that are an `Estimate`, a
    tensor `(n,)` or a list of names are per-row values; other fields are settings. `derived` lists properties
    that are also per-row values. `hidden` lists fields that are neither per-row values nor settings.
    """

    derived: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()

    @property
    def num_rows(self) -> int:
        """The number of rows n."""
        name = next(each.name for each in fields(self) if not each.kw_only)
        first: Any = getattr(self, name)
        return len(first.values if isinstance(first, Estimate) else first)

    def rows(self) -> dict[str, Tensor]:
        """All per-row numbers by name, each `(n,)`: the columns of a table of rows."""
        found = {}
        for name, value in self._values():
            if isinstance(value, Estimate):
                found[name] = value.values
            elif isinstance(value, Tensor) and value.dim() == 1:
                found[name] = value
        return found

    def names(self) -> dict[str, list[str]]:
        """What a name says of each row, such as the method: more columns of that table, n names each."""
        return {name: value for name, value in self._values() if isinstance(value, list)}

    def summary_numbers(self) -> dict[str, Any]:
        """Settings, then means with errors and counts. The per-row values are in `rows()`."""
        settings: dict[str, Any] = {"num_rows": self.num_rows, "unit": "nats"}
        summary: dict[str, Any] = {}
        for name, value in self._values():
            if isinstance(value, Estimate):
                summary[name] = value.to_dict()
            elif isinstance(value, Tensor) and value.dim() == 1:
                summary[name] = _summary(value)
            elif isinstance(value, list):
                summary[name] = dict(Counter(value))
            elif isinstance(value, bool | int | float | str):
                settings[name] = value
        return settings | summary

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name in (*(each.name for each in fields(self)), *self.derived):
            if name not in self.hidden:
                yield name, getattr(self, name)


def _summary(values: Tensor) -> dict[str, float | int]:
    """For a flag, how often it is set. For numbers, the median, least and largest of the finite ones."""
    if values.dtype == torch.bool:
        return {"count": int(values.sum())}
    values = values.double()
    finite = values[torch.isfinite(values)]
    found: dict[str, float | int] = {}
    if len(finite):
        found = {
            "median": float(finite.median()),
            "least": float(finite.min()),
            "largest": float(finite.max()),
        }
    if len(finite) < len(values):
        found["not_finite"] = len(values) - len(finite)
    return found


def not_finite(what: str, estimate: Estimate) -> Iterator[str]:
    """A warning, if a quantity is not finite on some rows."""
    bad = int((~torch.isfinite(estimate.values)).sum())
    if bad:
        yield f"{what} is not finite on {bad} of {len(estimate.values)} rows"


def as_lines(lines: Sequence[tuple[str, str]]) -> str:
    """Text with names and values in two columns.

    Example:
        >>> print(as_lines([("ELBO", "-3.0 nats"), ("rate", "1.0 nats")]))
        ELBO  -3.0 nats
        rate  1.0 nats
    """
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def as_columns(rows: Sequence[Sequence[str]]) -> str:
    """Text with columns side by side, the first left-aligned, the others right-aligned.

    Example:
        >>> print(as_columns([["run", "ELBO"], ["a", "-3.5"]]))
        run  ELBO
        a    -3.5
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )
