"""What stands where the ELBO would, and what it is called: the one place that decides it.

It is the ELBO, but for two kinds of pairs. Where the guide gives points, which have no density, it is
log p(x, z) at the point, and no bound on log p(x). Where p(z) is improper, there is no such number: what is
there is the distortion. Whether the training maximizes it is another question, which the objective answers.
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
    """What stands where the ELBO would, and its two parts: minus its value is the rate and the distortion.

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

    @property
    def _names(self) -> dict[str, str]:
        """Its names of an ELBO and a rate; empty for what is not defined."""
        return {"elbo": self.name if self.sign > 0 else "", "rate": self.rate}

    def of(self, row: Mapping[str, T], held_out: Measure | None = None) -> dict[str, T]:
        """Numbers under the names of this measure; without those that are not defined.

        Args:
            row: The numbers, of which `elbo` and `rate` are renamed, and those of held-out rows.
            held_out: The measure of held-out rows, if it is another.

        Example:
            >>> AT_POINT.of({"epoch": 1, "elbo": -3.0, "rate": 1.0, "distortion": 2.0})
            {'epoch': 1, 'log_joint': -3.0, 'neg_log_prior': 1.0, 'distortion': 2.0}
            >>> DISTORTION.of({"epoch": 1, "elbo": -3.0, "rate": 1.0, "distortion": 2.0})
            {'epoch': 1, 'distortion': 2.0}
            >>> AT_POINT.of({"elbo": -3.0, "validation_elbo": -4.0}, held_out=ELBO_MEASURE)
            {'log_joint': -3.0, 'validation_elbo': -4.0}
        """
        names = self._names
        of_held_out = (held_out or self)._names
        names |= {HELD_OUT + old: new and HELD_OUT + new for old, new in of_held_out.items()}
        return {
            names.get(name, name): value for name, value in row.items() if names.get(name, name)
        }


ELBO_MEASURE = Measure("elbo", "ELBO", "rate", "rate")
AT_POINT = Measure("log_joint", "log p(x, z)", "neg_log_prior", "-log p(z)", ", at the point")
DISTORTION = Measure("distortion", "distortion", "", "", sign=-1)

MEASURES = (ELBO_MEASURE, AT_POINT, DISTORTION)


def measure_of(layouts: Iterable[Layout]) -> Measure:
    """What stands where the ELBO of a pair would, by the layouts of all of its batches.

    Of some batches with points and others with draws it is the ELBO; see `mixture_in`.
    """
    known = list(layouts)
    if any(layout.improper for layout in known):
        return DISTORTION
    return AT_POINT if known and all(layout.only_points for layout in known) else ELBO_MEASURE


def measure_in(history: Sequence[Mapping[str, Any]], prefix: str = "") -> Measure:
    """What a history has: the first of `MEASURES` with a column; the last one if none has.

    Args:
        history: The numbers of each epoch.
        prefix: `HELD_OUT` asks for that of held-out rows: it is that of the training rows if there are none.

    Example:
        >>> history = [{"epoch": 1, "log_joint": -3.0, "distortion": 2.0, "validation_elbo": -4.0}]
        >>> measure_in(history).text, measure_in(history, HELD_OUT).text
        ('log p(x, z)', 'ELBO')
    """
    names = {name for row in history for name in row}
    found = next((each for each in MEASURES if prefix + each.name in names), None)
    return found or (measure_in(history) if prefix else DISTORTION)


def mixture_in(layouts: Iterable[Layout]) -> str:
    """That means over all rows mix points and densities, and what to do; empty if they do not.

    Args:
        layouts: The layouts of all rows.
    """
    known = list(layouts)
    kinds = {(bool(layout.points), layout.only_points) for layout in known}
    if len(kinds) < 2 or measure_of(known) is not ELBO_MEASURE:
        return ""
    names = ", ".join(dict.fromkeys(f"'{name}'" for layout in known for name in layout.points))
    return (
        f"the guide gives a point for {names} in some batches only: it has no density, and the ELBO leaves it "
        "out of log q(z | x), so that ELBO and rate mix two kinds of rows; use a guide that samples"
    )


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
