"""Which rows have the same prior: p(z) may depend on what rows come with, and z is counted beyond that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.pairs import (
    Batch,
    Layout,
    RowDensities,
    Substitute,
    as_args,
    in_plates,
    inner_sizes,
    num_rows,
    sum_to_rows,
)
from ppl_vae.runtime import preserve_random_state

FEWEST = 10
"""Rows with the same prior, on average, from which I(x; z | y) can be estimated."""

SAME = 1e-3
"""Nats within which one draw has the same density under two priors."""


class PriorConditions:
    """Tells rows of one prior p(z | y) from those of another: the same draw has another density there.

    Args:
        session: The opened pair.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kinds: dict[tuple[object, ...], int] = {}  # the numbers of priors
        self._of_rows: list[Tensor] = []
        self._draws: dict[object, Mapping[str, Tensor]] = {}  # of rows with the same sites

    def update(self, rows: RowDensities, batch: Batch) -> None:
        """Adds the rows of a batch, of which there are draws."""
        self._of_rows.append(self._look(rows, batch))

    def __bool__(self) -> bool:
        """Whether there are several priors among the rows that have the same latents."""
        return len(self._kinds) > len({key for key, *_ in self._kinds})

    @property
    def are_few(self) -> bool:
        """Whether enough rows have the same prior, so that those can be compared with each other."""
        return sum(map(len, self._of_rows)) >= FEWEST * len(self._kinds)

    def same(self, rows: Tensor, first: int, n: int) -> Tensor:
        """Which of n rows from a first one on have the same prior as some others, `(len(rows), n)`."""
        every = torch.cat(self._of_rows)
        return every[rows][:, None] == every[first : first + n]

    @property
    def note(self) -> str:
        """How to read the numbers."""
        beyond = (
            "p(z) is not the same for all rows, but depends on what they come with, y: posterior means are "
            "counted from those of the prior"
        )
        if not self.are_few:
            return (
                f"{beyond}; what z tells beyond y is not known, as too few rows have the same prior"
            )
        return f"{beyond}, and the mutual information is I(x; z | y), what z tells beyond y"

    def _key(self, rows: RowDensities) -> object:
        shapes = tuple((name, rows.latents[name].shape[2:]) for name in rows.layout.latents)
        return rows.layout.signature, shapes

    def _look(self, rows: RowDensities, batch: Batch) -> Tensor:
        """The number of each row's prior."""
        key, n = self._key(rows), num_rows(batch)
        if key not in self._draws:
            self._draws[key] = _draw_of_one_row(rows)
        found = self._densities(batch, rows.layout, self._draws[key])
        known = [[None]] * n if found is None else (found / SAME).round().nan_to_num(0.5).tolist()
        return torch.tensor(
            [self._kinds.setdefault((key, *row), len(self._kinds)) for row in known]
        )

    def _densities(self, batch: Batch, layout: Layout, draw: Mapping[str, Tensor]) -> Tensor | None:
        """log p of one draw of each latent under each row's prior, `(n, latents)`; None if it has none."""
        n = num_rows(batch)
        if layout.enumerated or not layout.latents:  # a latent may depend on one that is summed out
            return None
        values = {
            name: value
            if name in layout.shared
            else in_plates(value.expand(1, n, *value.shape[2:]), layout)[0]
            for name, value in draw.items()
        }
        model = Substitute(values)(self._session.pair.model)
        try:
            with preserve_random_state(), torch.no_grad(), pyro.validation_enabled(False):
                trace = poutine.trace(model).get_trace(*as_args(batch))
                sites: list[Any] = [trace.nodes[name] for name in layout.latents]
                each: list[Tensor] = [site["fn"].log_prob(site["value"]) for site in sites]
                rows = [sum_to_rows(term, layout, 1, n)[0] for term in each]
        except Exception:  # the draw of one row is none that another one may have
            return None
        return torch.stack(rows, 1).double().cpu()


def _draw_of_one_row(rows: RowDensities) -> dict[str, Tensor]:
    """Each latent of the first row, `(1, 1, *inner_sizes, *event)`, and what all rows share."""
    found = {name: rows.model_trace.nodes[name]["value"] for name in rows.layout.shared}
    for name in rows.layout.latents:
        site = rows.model_trace.nodes[name]
        shape = (1, 1, *inner_sizes(site, rows.layout), *site["fn"].event_shape)
        found[name] = rows.latents[name][-1, 0].reshape(shape).to(site["value"].dtype)
    return found
