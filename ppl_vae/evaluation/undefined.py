"""Rows for which a pair does not define log p(x), or not even the ELBO, and what to say of them."""

from __future__ import annotations

from ppl_vae.pairs import Layout, Measure, measure_of, remedy_of_improper

_OF_POINTS = ("log_likelihood", "error", "ess", "khat")
"""What is not defined of a row for which the guide gives a point."""


class Undefined:
    """Counts the rows of points, which have no density, and of latents with an improper one.

    Args:
        model: The model, on which depends what to do about it.
    """

    def __init__(self, model: object) -> None:
        self._model = model
        self._points: dict[str, int] = {}  # rows of each latent
        self._improper: dict[str, int] = {}
        self._layouts: dict[Layout, None] = {}
        self._rows = {"points": 0, "alone": 0, "improper": 0, "both": 0}
        self._all = 0

    def add(self, layout: Layout, n: int) -> tuple[str, ...]:
        """Counts n rows of a layout; what is not defined of them."""
        self._all += n
        self._layouts[layout] = None
        self._rows["points"] += n if layout.points else 0
        self._rows["alone"] += n if layout.only_points else 0
        self._rows["improper"] += n if layout.improper else 0
        self._rows["both"] += n if layout.points or layout.improper else 0
        for counts, names in ((self._points, layout.points), (self._improper, layout.improper)):
            for name in names:
                counts[name] = counts.get(name, 0) + n
        if layout.improper:
            return ("rate", *_OF_POINTS)
        return _OF_POINTS if layout.points else ()

    @property
    def measure(self) -> Measure:
        """What stands where the ELBO would, for all rows."""
        return measure_of(self._layouts)

    @property
    def all_points(self) -> bool:
        """Whether the guide gives a point for every latent of every row, and draws nothing."""
        return self._all > 0 and self._rows["alone"] == self._all

    @property
    def missing(self) -> str:
        """What to print in place of log p(x); empty if all rows have one."""
        if not self._rows["both"]:
            return ""
        there = self._there("both")
        if self._improper:
            return f"{there}, because p(z) of {self._named(self._improper)} is improper"
        return f"{there}, because the guide gives a point for {self._named(self._points)}"

    @property
    def missing_bound(self) -> str:
        """What to print in place of ELBO and rate; empty if all rows have them."""
        if not self._improper:
            return ""
        there = self._there("improper")
        return f"{there}, because p(z) of {self._named(self._improper)} is improper"

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the pair does not say."""
        found = []
        if self._improper:
            there = " there" if self._rows["improper"] < self._all else ""
            found.append(
                f"the density of {self._named(self._improper)} in the model is improper (it does not integrate "
                f"to 1): ELBO, rate and log p(x) are not defined{there}, and the distortion is what the pair "
                f"has; p(x) needs a density: {remedy_of_improper(self._model, [*self._improper])}"
            )
        if self._points and not (self._improper and self._rows["improper"] == self._all):
            some = self._rows["points"] < self._all
            in_elbo = "the ELBO leaves it out of log q(z | x)"
            found.append(
                f"the guide gives a point for {self._named(self._points)}, which has no density: log p(x) is "
                f"not defined{' there' if some else ''}, and "
                f"{'log p(x, z) there is no bound on it' if self.all_points else in_elbo}"
                f"{', so that the means of ELBO and rate mix two kinds of rows' if some else ''}; use a guide "
                "that samples, or annealed_importance_sampling from the prior"
            )
        return tuple(found)

    def _there(self, kind: str) -> str:
        left = self._all - self._rows[kind]
        return f"defined for {left} of {self._all} rows only" if left else "not defined"

    def _named(self, rows: dict[str, int]) -> str:
        return ", ".join(
            f"'{name}'" + ("" if n == self._all else f" on {n} of {self._all} rows")
            for name, n in rows.items()
        )
