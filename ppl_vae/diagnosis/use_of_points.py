"""What is known of the numbers of a code that a guide gives as a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class UseOfPoint:
    """What some rows say of one number of a code, such as that of an autoencoder.

    Attributes:
        name: The number: `z[3]`.
        variance: Of it over the rows.
        share: In how many of the rows it is not 0, as a share of them.
        worth: By how much the distortion rises if it is its mean over the rows in all of them, nats per row.
        dead: Whether it is the same in all rows, up to rounding.
    """

    name: str
    variance: float
    share: float
    worth: float
    dead: bool


def told_of_points(uses: Sequence[UseOfPoint], used: int) -> str:
    """How many numbers are used, in a sentence.

    Args:
        uses: All numbers of the code.
        used: How many of them are worth something to the decoder.

    Example:
        >>> told_of_points([UseOfPoint("z[0]", 1.0, 1.0, 3.0, False), UseOfPoint("z[1]", 0, 0, 0, True)], 1)
        'Dead units: 1 of 2 numbers of the code are used, and 1 is the same in all rows.'
    """
    d, dead = len(uses), sum(use.dead for use in uses)
    state = "Dead units" if dead else "Unused units" if used < d else "No collapse"
    same = f", and {dead} {'is' if dead == 1 else 'are'} the same in all rows" if dead else ""
    sparse = sum(use.share for use in uses)
    kept = f"; {sparse:.1f} of them are not 0 in a row" if sparse < 0.995 * (d - dead) else ""
    return f"{state}: {used} of {d} numbers of the code are used{same}{kept}."


def table_of_points(uses: Sequence[UseOfPoint]) -> list[list[str]]:
    """The numbers of the code, those that are worth most first, with a head."""
    rows = [["latent", "worth (nats)", "variance", "rows with it not 0", ""]]
    for use in sorted(uses, key=lambda use: -use.worth):
        state = "dead" if use.dead else ""
        rows.append(
            [use.name, f"{use.worth:.3f}", f"{use.variance:.4g}", f"{use.share:.1%}", state]
        )
    return rows
