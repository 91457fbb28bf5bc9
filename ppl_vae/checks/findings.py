"""What the checks say of the rows of a pair, gathered over the kinds of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ppl_vae.checks.report import Problem
from ppl_vae.checks.rows import row_problems
from ppl_vae.pairs import (
    Batch,
    Layout,
    Trace,
    is_weighted,
    observed_sites,
    sample_sites,
    subsampled_plates,
)


class Findings:
    """What the checks say of the rows of a pair, each text once, whichever kind of rows comes first.

    Sites, plates and their sizes may differ from batch to batch, and with them what is to be said. `Layouts`
    tells of each kind of rows: `look` is for its `found`. So read a result's notes after the last batch.

    Args:
        minibatches: Whether a batch of a training holds only some of the rows.

    Attributes:
        doubts: What the checks warn of.

    Example:
        >>> found = Findings()
        >>> found.add([Problem("warning", "z", "'z' has 5 numbers")])[0].site
        'z'
        >>> found.add([Problem("warning", "z", "'z' has 6 numbers")]), found.doubts
        ([], ("'z' has 5 numbers",))
    """

    def __init__(self, minibatches: bool = False) -> None:
        self._minibatches = minibatches
        self._problems: dict[tuple[str, str], Problem] = {}
        self._parts: dict[str, str] = {}
        self._weighted: set[str] = set()
        self._of_no_row: set[str] = set()
        self._of_guide: set[str] = set()

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Adds problems, and returns those that are new: not only the numbers in the text of one before."""
        new = []
        for problem in problems:
            key = problem.site, re.sub(r"\d+", "", problem.message)
            if key not in self._problems:
                self._problems[key] = problem
                new.append(problem)
        return new

    def look(self, batch: Batch, traces: tuple[Trace, Trace], layout: Layout) -> list[Problem]:
        """Looks at a kind of rows.

        Args:
            batch: Rows of it.
            traces: The traces of model and guide on them.
            layout: Their layout.

        Returns:
            The problems that are new.
        """
        model_trace, guide_trace = traces
        self._parts = subsampled_plates(traces, layout) | self._parts
        self._weighted |= {n for t in traces for n, s in sample_sites(t).items() if is_weighted(s)}
        self._of_no_row |= observed_sites(model_trace).keys() - set(layout.observed)
        self._of_guide |= observed_sites(guide_trace).keys() - set(layout.guide_sites)
        return self.add(row_problems(model_trace, layout, self._minibatches))

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(problem.message for problem in self._problems.values())

    @property
    def biases(self) -> tuple[str, ...]:
        """Why log p(x) is biased."""
        return tuple(
            f"plate '{name}' inside of a row is subsampled ({part}): log p(x) is biased, and the ELBO is not; "
            "evaluate with the whole plate"
            for name, part in self._parts.items()
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the densities of rows leave out, although the loss counts it."""
        texts = {
            "sites weighted by poutine.scale ({}) count without their weights, so that log p(x) is that of the "
            "model; the loss of fit counts the weights": self._weighted,
            "what the model observes or adds as a factor outside of the rows ({}) is in no row's log p(x); the "
            "loss of fit counts it": self._of_no_row,
            "what the guide observes or adds as a factor ({}) is no density of latents and does not count; the "
            "loss of fit counts it": self._of_guide,
        }
        return tuple(
            text.format(", ".join(f"'{name}'" for name in sorted(names)))
            for text, names in texts.items()
            if names
        )
