"""What log p(x) is a number of, where a model is given or observes more than the data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.poutine as poutine
import torch

from ppl_vae.checks import Session
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import (
    Batch,
    Pair,
    Trace,
    arguments_by_name,
    as_args,
    innermost,
    name_of_argument,
    num_rows,
    observed_sites,
    places_of,
    sample_sites,
    tensors_of,
    trace_pair,
    with_tensors,
)
from ppl_vae.runtime import HIDDEN, preserve_random_state


class Conditions:
    """Notes on what comes with some rows: the sites `Given` and `Revealed`, and other arguments of the model.

    Sites are looked at chunk by chunk, arguments on the first rows. A pair without such sites on the first rows
    is not looked at again. The random state does not change.

    Args:
        session: The opened pair.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows = 0
        self._given: dict[str, None] = {}
        self._revealed: dict[str, int] = {}
        trace = self._look(session.first)
        self._any = bool(self._given or self._revealed)
        self._given |= dict.fromkeys(_unmodeled(session, trace))
        self._revealed = dict.fromkeys(self._revealed, 0)

    def add(self, batch: Batch) -> None:
        """Looks at the rows of a chunk."""
        if self._any:
            self._rows += num_rows(batch)
            self._look(batch)

    def _look(self, batch: Batch) -> Trace:
        with torch.random.fork_rng(), torch.no_grad():
            # With the latents of the guide: those of the model may have no draws.
            trace, _ = trace_pair(self._session.pair, batch)
        for name in self._session.layout.observed:
            site: Any = trace.nodes.get(name)
            fn = None if site is None else innermost(site["fn"])
            if isinstance(fn, Given):
                argument = name_of_argument(self._session.pair, batch, site["value"])
                self._given[argument or name] = None
            elif site is not None and isinstance(fn, Revealed):
                value: Any = site["value"]
                known = int((value != HIDDEN).sum())
                self._revealed[name] = self._revealed.get(name, 0) + known
        return trace

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read log p(x)."""
        notes = []
        if self._given:
            names = ", ".join(self._given)
            quoted = ", ".join(f"'{name}'" for name in self._given)
            # Where the model's own data are not called x, what it is given may be.
            data = ", ".join(self._session.layout.observed) if "x" in self._given else "x"
            notes.append(
                f"the model is given {quoted} beside the data and does not model it: log p(x) is log "
                f"p({data} | {names})"
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


def _unmodeled(session: Session, trace: Trace) -> list[str]:
    """The names of arguments on which the model's density depends, and which it does not observe.

    An argument is observed if it is the value of a site, or if such a value changes with the order of its rows.
    It does not matter if no density changes with that order. `Given` says the same by itself.

    Args:
        session: The opened pair.
        trace: The model's trace on the first rows.
    """
    pair, batch = session.pair, session.first
    places, tensors = places_of(batch), tensors_of(batch)
    seen = observed_sites(trace)
    found = []
    for number, (name, tensor) in enumerate(arguments_by_name(pair, batch)):
        values = (site["value"] for site in seen.values())
        if places[number] == 0 or any(_same(value, tensor) for value in values):
            continue
        other = with_tensors(
            batch, [t.flip(0) if i == number else t for i, t in enumerate(tensors)]
        )
        if torch.equal(tensor, tensor.flip(0)) or not _is_free_of(pair, trace, other):
            found.append(name)
    return found


def _is_free_of(pair: Pair, trace: Trace, other: Batch) -> bool:
    """Whether a model observes what differs in another batch, or has the same densities on it."""
    try:
        with preserve_random_state(), torch.no_grad(), pyro.validation_enabled(False):
            again = poutine.trace(poutine.replay(pair.model, trace)).get_trace(*as_args(other))
            for name, site in observed_sites(trace).items():
                if name not in again.nodes or not _same(again.nodes[name]["value"], site["value"]):
                    return True
            for one in (trace, again):
                one.compute_log_prob()
            sites = sample_sites(trace)
            return again.nodes.keys() == trace.nodes.keys() and all(
                torch.equal(again.nodes[name]["log_prob"], trace.nodes[name]["log_prob"])
                for name in sites
            )
    except Exception:  # the rows do not go together in another order
        return False


def _same(value: Any, other: Any) -> bool:
    """Whether two values are the same numbers, NaN included."""
    if value.shape != other.shape:
        return False
    return bool(((value == other) | ((value != value) & (other != other))).all())
