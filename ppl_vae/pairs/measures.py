"""What a pair's training maximizes at beta = 1, and what it is called: the one place that decides it.

It is the ELBO, but for two kinds of pairs. Where the guide gives points, which have no density, it is
log p(x, z) at the point, and no bound on log p(x). Where p(z) is improper, there is no such number: what is
there is the distortion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ppl_vae.pairs.layout import Layout

T = TypeVar("T")

HELD_OUT = "validation_"
"""What stands before the name of a column of held-out rows."""


@dataclass(frozen=True)
class Measure:
    """What is maximized, and its two parts: minus its value is the rate and the distortion.

    Attributes:
        name: Its column in a history and in metrics.csv.
        text: What it is called.
        at: Where it is taken, to stand behind the text.
        rate: The column of what the latents cost; empty if that is not defined.
        rate_text: What that is called.
        sign: 1 if more of it is better, -1 if less is.
    """

    name: str
    text: str
    rate: str
    rate_text: str
    at: str = ""
    sign: int = 1

    @property
    def noun(self) -> str:
        """What it is called in a sentence."""
        return self.text if "(" in self.text else f"the {self.text}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a history that hold it and its parts, without those of held-out rows."""
        return tuple(dict.fromkeys(name for name in (self.name, self.rate, "distortion") if name))

    def of(self, row: Mapping[str, T]) -> dict[str, T]:
        """The numbers of an epoch under the names of this measure; without those that are not defined.

        Args:
            row: The numbers under any names.

        Example:
            >>> AT_POINT.of({"epoch": 1, "elbo": -3.0, "rate": 1.0, "distortion": 2.0})
            {'epoch': 1, 'log_joint': -3.0, 'neg_log_prior': 1.0, 'distortion': 2.0}
            >>> DISTORTION.of({"epoch": 1, "elbo": -3.0, "rate": 1.0, "distortion": 2.0})
            {'epoch': 1, 'distortion': 2.0}
        """
        if self is ELBO_MEASURE:
            return dict(row)
        defined = self.name if self.sign > 0 else ""
        names = {ELBO_MEASURE.name: defined, ELBO_MEASURE.rate: self.rate}
        names |= {HELD_OUT + old: new and HELD_OUT + new for old, new in names.items()}
        return {
            names.get(name, name): value for name, value in row.items() if names.get(name, name)
        }


ELBO_MEASURE = Measure("elbo", "ELBO", "rate", "rate")
AT_POINT = Measure("log_joint", "log p(x, z)", "neg_log_prior", "-log p(z)", ", at the point")
DISTORTION = Measure("distortion", "distortion", "", "", sign=-1)

MEASURES = (ELBO_MEASURE, AT_POINT, DISTORTION)


def measure_of(layouts: Iterable[Layout]) -> Measure:
    """What is maximized of a pair, by the layouts of all of its batches."""
    known = list(layouts)
    if any(layout.improper for layout in known):
        return DISTORTION
    return AT_POINT if known and all(layout.only_points for layout in known) else ELBO_MEASURE


def measure_in(history: Sequence[Mapping[str, Any]]) -> Measure:
    """What a history has: the first of `MEASURES` with a column; the last one if none has.

    Example:
        >>> measure_in([{"epoch": 1, "log_joint": -3.0, "distortion": 2.0}]).text
        'log p(x, z)'
    """
    names = {name for row in history for name in row}
    return next((each for each in MEASURES if each.name in names), DISTORTION)


def measure_of_result(found: Mapping[str, Any] | None) -> Measure:
    """What an evaluation has, by the content of its file; `ELBO_MEASURE` if it does not say.

    Files of earlier versions do not name it: then it is guessed by what they hold.

    Example:
        >>> measure_of_result({"measure": "log_joint"}).text
        'log p(x, z)'
        >>> measure_of_result({"at_points": True, "elbo": {"mean": -3.0}}).text
        'log p(x, z)'
        >>> measure_of_result({"at_points": True, "elbo": {"mean": None}}).text
        'distortion'
    """
    if not found:
        return ELBO_MEASURE
    for each in MEASURES:
        if found.get("measure") == each.name:
            return each
    if found.get("at_points") is not True:
        return ELBO_MEASURE
    given = found.get("elbo")
    mean = given.get("mean") if isinstance(given, Mapping) else None
    return AT_POINT if isinstance(mean, int | float) and math.isfinite(mean) else DISTORTION
