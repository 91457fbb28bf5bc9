"""What is known of the codes of a quantizer: how many are used, and how far they are from the vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DEAD = 0.1
"""Share of dead codes from which on a cause is looked for."""

ENOUGH = 5.0
"""Average use of a code by the rows given from which on a code without any is called dead."""


@dataclass(frozen=True)
class UseOfCodes:
    """What some rows say of one codebook.

    With L the vectors of an encoder, C their codes' vectors, and M_k the mean of the L that have chosen code k,

        E|L - E L|^2 = spread,    E|L - M_z|^2 = within,    E|M_z - C_z|^2 = lag

    so that the quantization error E|L - C_z|^2 is `within` + `lag`. The three are estimated without bias: few
    members of a code do not make it lag.

    Attributes:
        name: The site; of several codebooks, with the number of this one: `z, level 2`.
        count: Codes of this codebook per row.
        values: How many codes there are, K.
        uses: Codes of all rows together.
        used: How many of the K are used by these rows.
        dead: How many are not, less those that the rows are too few to show: f1 (f1 - 1) / (2 (f2 + 1)) with f1
            codes that are used once and f2 that are used twice (Chao, "Nonparametric Estimation of the Number
            of Classes in a Population", 1984). 0 if the average use is below 5.
        perplexity: exp(entropy) of their shares: K if all are used alike.
        entropy: That entropy, nats.
        rate: What a code costs, E[log q(z | x) - log p(z)], nats.
        gain: By how much log p(x | z) falls with the codes of another row, nats per code; NaN of one row.
        varies: Whether the codes differ from row to row. Of codes that are drawn, whether the most probable
            ones do, or q(z | x) tells 0.01 nats of x: draws differ by chance.
        spread: See above; NaN, as those that follow, if the vectors are not known.
        within: See above.
        lag: See above; 0 if the codes are fixed.
        away: Distance from a code that is not used to the nearest vector, the median over such codes, in units
            of the square root of `spread`; NaN if there are none.
        noise: The entropy of a code given x, nats: 0 if the guide is certain of it. Codes that are drawn near
            their vectors are those of one draw for each row.
        information: What a code that is drawn tells of x, H(E q(z_i | x)) - E H(q(z_i | x)) over these rows,
            the mean over positions i, nats; NaN, as those that follow, of codes that are certain.
        rounded: What it would tell if the most probable code were taken, nats.
    """

    name: str
    count: int
    values: int
    uses: int
    used: int
    dead: int
    perplexity: float
    entropy: float
    rate: float
    gain: float
    varies: bool
    spread: float = math.nan
    within: float = math.nan
    lag: float = math.nan
    away: float = math.nan
    noise: float = 0.0
    information: float = math.nan
    rounded: float = math.nan

    @property
    def error(self) -> float:
        """The quantization error as a share of the variance of the vectors; NaN if that is not known, or 0."""
        return (self.within + self.lag) / self.spread if self.spread > 0 else math.nan

    @property
    def are_enough(self) -> bool:
        """Whether the rows are enough to tell which codes are dead."""
        return self.uses >= ENOUGH * self.values

    @property
    def are_dead(self) -> bool:
        """Whether so many codes are dead that a cause is looked for."""
        return self.dead >= DEAD * self.values and self.dead > 0

    @property
    def most(self) -> float:
        """The most that a code says of x: its entropy less its noise, nats.

        Without the bias of an estimate from so many uses (Miller, 1955).
        """
        return self.entropy + (self.used - 1) / (2 * self.uses) - self.noise

    def left(self, codes: str) -> str:
        """What the codes leave of the vectors, in words; draws, and codes that are far away, leave no share.

        Args:
            codes: What they are called, in the plural.
        """
        if self.noise or self.error > 1:
            return f"{codes} are off by {self.error:.0%} of the vectors' variance"
        return f"{codes} leave {self.error:.0%} of the vectors' variance"

    def told(self) -> str:
        """Its numbers in a sentence, without a full stop.

        Example:
            >>> use = UseOfCodes("z", 4, 16, 400, 12, 4, 10.2, 2.322, 2.773, 3.0, True)
            >>> use.told()
            'z uses 12 of 16 codes (perplexity 10.2; 4 are dead); each of 4 per row costs 2.77 nats, and their \
use has an entropy of 2.32'
        """
        if self.dead:
            dead = f"; {self.dead} {'is' if self.dead == 1 else 'are'} dead"
        elif self.used < self.values and not self.are_enough:
            dead = "; the rows are too few to tell which are dead"
        else:
            dead = ""
        left = "" if math.isnan(self.error) or not self.varies else f", and {self.left('they')}"
        which = f"each of {self.count} per row" if self.count > 1 else "the one of a row"
        entropy = f"their use has an entropy of {self.entropy:.2f}"
        if self.noise:
            entropy += f", {self.noise:.2f} of it given x"
        return (
            f"{self.name} uses {self.used:,} of {self.values:,} codes "
            f"(perplexity {self.perplexity:.1f}{dead}); {which} costs {self.rate:.2f} nats"
            f"{',' if left else ', and'} {entropy}{left}"
        )


def told_of_codes(uses: Sequence[UseOfCodes], all_used: bool, causes: bool) -> str:
    """A sentence for each codebook.

    Args:
        uses: The codebooks.
        all_used: Whether the codes of all of them tell something of x.
        causes: Whether something is wrong with one of them.
    """
    if not all_used:
        state = "Collapse"
    elif any(use.are_dead for use in uses):
        state = "Dead codes"
    else:
        state = "No dead codes" if causes else "No collapse"
    return f"{state}: {'; '.join(use.told() for use in uses)}."


def lines_of_codes(
    uses: Sequence[UseOfCodes], information: tuple[float, float]
) -> list[tuple[str, str]]:
    """Name and value of each quantity, as a result prints them.

    Args:
        uses: The codebooks.
        information: Between which nats what z says of a row is.
    """
    found = []
    for use in uses:
        of = f", {use.name}" if len(uses) > 1 else ""
        noise = f", of which {use.noise:.3f} given x" if use.noise else ""
        found += [
            (f"codes used{of}", f"{use.used:,} of {use.values:,}, perplexity {use.perplexity:.1f}"),
            (
                f"nats per code{of}",
                f"{use.rate:.3f}, entropy of their use {use.entropy:.3f}{noise}",
            ),
        ]
    low, high = information
    return [*found, ("mutual information", f"between {low:.2f} and {high:.2f} nats")]


def table_of_codes(uses: Sequence[UseOfCodes]) -> list[list[str]]:
    """The codebooks, with a head."""
    rows = [["codebook", "codes per row", "K", "used", "dead", "perplexity", "error"]]
    for use in uses:
        numbers = (f"{n:,}" for n in (use.count, use.values, use.used, use.dead))
        error = "-" if math.isnan(use.error) else f"{use.error:.1%}"
        rows.append([use.name, *numbers, f"{use.perplexity:.1f}", error])
    return rows
