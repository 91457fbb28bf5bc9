"""What log p(x) is a number of, where a model is given or observes more than the data."""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
import torch

from ppl_vae.checks import Session
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import Batch, as_args, innermost, num_rows
from ppl_vae.runtime import HIDDEN


class Conditions:
    """Notes on the sites `Given` and `Revealed` of some rows, chunk by chunk.

    A pair without such sites on the first rows is not looked at again. The random state does not change.

    Args:
        session: The opened pair.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows = 0
        self._given: dict[str, None] = {}
        self._revealed: dict[str, int] = {}
        self._look(session.first)
        self._any = bool(self._given or self._revealed)
        self._revealed = dict.fromkeys(self._revealed, 0)

    def add(self, batch: Batch) -> None:
        """Looks at the rows of a chunk."""
        if self._any:
            self._rows += num_rows(batch)
            self._look(batch)

    def _look(self, batch: Batch) -> None:
        with torch.random.fork_rng(), torch.no_grad():
            trace = poutine.trace(self._session.pair.model).get_trace(*as_args(batch))
        for name in self._session.layout.observed:
            site = trace.nodes.get(name)
            fn = None if site is None else innermost(site["fn"])
            if isinstance(fn, Given):
                self._given[name] = None
            elif site is not None and isinstance(fn, Revealed):
                value: Any = site["value"]
                known = int((value != HIDDEN).sum())
                self._revealed[name] = self._revealed.get(name, 0) + known

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read log p(x)."""
        notes = []
        if self._given:
            names = ", ".join(self._given)
            sites = ", ".join(f"'{name}'" for name in self._given)
            notes.append(
                f"the model is given what it observes at {sites}: log p(x) is log p(x | {names})"
            )
        for name, known in self._revealed.items():
            if known:
                some = (
                    ""
                    if known == self._rows
                    else f" on the {known} of {self._rows} rows with a label"
                )
                notes.append(f"the model observes '{name}': log p(x) is log p(x, {name}){some}")
        return tuple(notes)
