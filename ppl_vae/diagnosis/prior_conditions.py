"""Arguments beside the data on which p(z) depends: what latents tell is counted beyond them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.pairs import (
    Batch,
    arguments_by_name,
    as_args,
    num_rows,
    places_of,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import preserve_random_state

FEWEST = 10
"""Rows with the same values, on average, from which I(x; z | y) can be estimated."""


@dataclass
class PriorConditions:
    """The arguments y of p(z | y), and their values in the rows so far.

    Attributes:
        names: The arguments by their place.
    """

    names: dict[int, str]
    _values: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, session: Session) -> PriorConditions:
        """Finds the arguments: in another order of their rows, the same latents have another log p(z)."""
        batch = session.first
        places, tensors = places_of(batch), tensors_of(batch)
        found = {}
        for number, (name, tensor) in enumerate(arguments_by_name(session.pair, batch)):
            other = [t.flip(0) if i == number else t for i, t in enumerate(tensors)]
            differs = bool(places[number]) and not torch.equal(tensor, tensor.flip(0))
            if differs and not _same_prior(session, batch, with_tensors(batch, other)):
                found[places[number]] = name
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self.names)

    def update(self, batch: Batch) -> None:
        """Adds the rows of a batch."""
        if self:
            self._values.append(self.of_rows(batch))

    def of_rows(self, batch: Batch) -> Tensor:
        """The values of each row, `(n, numbers)`."""
        tensors = dict(zip(places_of(batch), tensors_of(batch), strict=True))
        rows = [tensors[place].reshape(num_rows(batch), -1).double().cpu() for place in self.names]
        return torch.cat(rows, 1) if rows else torch.zeros(num_rows(batch), 0)

    @property
    def are_few(self) -> bool:
        """Whether enough rows have the same values, so that those can be compared with each other."""
        values = torch.cat(self._values) if self._values else torch.zeros(0, 0)
        return len(values) >= FEWEST * len(values.unique(dim=0))

    def same(self, rows: Tensor, batch: Batch) -> Tensor:
        """Which rows of a batch have the same values as some of those that were added: `(len(rows), n)`."""
        values = torch.cat(self._values)[rows]
        return (values[:, None] == self.of_rows(batch)).all(-1)

    @property
    def note(self) -> str:
        """How to read the numbers; empty without conditions."""
        if not self.names:
            return ""
        quoted = ", ".join(f"'{name}'" for name in self.names.values())
        beyond = f"p(z) depends on {quoted}: posterior means are counted from those of the prior"
        if self.are_few:
            names = ", ".join(self.names.values())
            return f"{beyond}, and the mutual information is I(x; z | {names}), what z tells beyond {quoted}"
        return (
            f"{beyond}; too few rows have the same {quoted} to tell what z says beyond it: the mutual "
            f"information and marginal KL count what {quoted} says of z, and only the rate does not"
        )


def _same_prior(session: Session, batch: Batch, other: Batch) -> bool:
    """Whether latents have the same density in two batches, as far as the model runs on both."""
    model, latents = session.pair.model, session.layout.latents
    try:
        with preserve_random_state(), torch.no_grad(), pyro.validation_enabled(False):
            trace = poutine.trace(model).get_trace(*as_args(batch))
            again = poutine.trace(poutine.replay(model, trace)).get_trace(*as_args(other))
            for one in (trace, again):
                one.compute_log_prob(lambda name, site: name in latents)
            return all(
                torch.equal(trace.nodes[name]["log_prob"], again.nodes[name]["log_prob"])
                for name in latents
            )
    except Exception:  # the rows do not go together in another order
        return True
