"""How many numbers of data each row has, for bits per dimension."""

from __future__ import annotations

from collections.abc import Iterator

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.distributions import Given, Revealed, Sentences
from ppl_vae.pairs import (
    Batch,
    Layout,
    Site,
    Trace,
    inner_scale,
    innermost,
    num_rows,
    present,
    rows_first,
    shapes_of_rows,
    trace_pair,
)
from ppl_vae.runtime import lengths_of


class ValueCounts:
    """Counts the observed numbers of each row that masks leave in, chunk by chunk.

    Labels and what a model is given (`Given`, `Revealed`) are beside the data, and do not count. Of a sentence
    (`Sentences`), each word and the end count, and not what fills up the row: rows of other largest lengths are
    the same data.

    A number in a subsampled plate inside of a row stands for N / n of them, and a number that plates or the
    distribution broadcast counts as often as it is scored. A `pyro.factor` does not say how many numbers it
    scores, so that rows with one have no count. Chunks without masks are counted once for each kind of rows
    (shapes and sites); with masks or sentences, each chunk takes one more run of the programs. The random state
    does not change.

    Args:
        session: The opened pair.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._of_kind: dict[object, int] = {}
        self._counts: list[Tensor] = []
        self._known = True
        self._sentences: set[bool] = set()  # whether sites are

    def add(self, batch: Batch) -> None:
        """Counts the rows of a chunk. Call it after the work on the chunk, which finds its layout."""
        layout, n = self._session.layouts.expected(batch), num_rows(batch)
        kind = (layout.signature, shapes_of_rows(batch))
        if kind in self._of_kind:
            self._counts.append(torch.full((n,), self._of_kind[kind]))
            return
        with torch.random.fork_rng():
            trace, _ = trace_pair(self._session.pair, batch)
        if any(isinstance(trace.nodes[name]["fn"], dist.Unit) for name in layout.observed):
            self._known = False
        counts = values_per_row(trace, layout, n)
        sites = [*_of_data(trace, layout)]
        self._sentences |= set(map(_is_sentence, sites))
        if not any(_is_masked(site) or _is_sentence(site) for site in sites):
            self._of_kind[kind] = int(counts[0])
        self._counts.append(counts.cpu())

    @property
    def counted(self) -> str:
        """What one is called: a "token", if the data are sentences and nothing else; or a "dimension"."""
        return "token" if self._sentences == {True} else "dimension"

    @property
    def num_values(self) -> int | Tensor:
        """The count of every row if all have the same, at least 1; else that of each row, `(n,)`.

        0 if it is not known, because a `pyro.factor` is a part of the likelihood.
        """
        if not self._known:
            return 0
        counts = torch.cat(self._counts)
        first = int(counts[0])
        return max(1, first) if bool((counts == first).all()) else counts


def values_per_row(trace: Trace, layout: Layout, n: int) -> Tensor:
    """The observed numbers of each of n rows, `(n,)`, from a trace of the model of a single sample."""
    total = torch.zeros(n, dtype=torch.long)
    for site in _of_data(trace, layout):
        scale, shape = inner_scale(site, layout), _scored(site)
        if _is_sentence(site) or _is_masked(site):
            value = present(site)
            if _is_sentence(site):
                value = lengths_of(site["value"]).unsqueeze(-1) * value[..., :1]
                shape = torch.Size((*shape[:-1], 1))
            value = value.expand(torch.broadcast_shapes(value.shape, shape))
            rows = rows_first({**site, "value": value}, layout, 1, n)[0].reshape(n, -1)
            total = total + (rows.sum(1).cpu() * scale).round().long()
        else:
            total = total + round(shape.numel() // n * scale)
    return total


def _of_data(trace: Trace, layout: Layout) -> Iterator[Site]:
    """The observed sites but those that are beside the data."""
    sites = (trace.nodes[name] for name in layout.observed)
    return (site for site in sites if not isinstance(innermost(site["fn"]), (Given, Revealed)))


def _is_sentence(site: Site) -> bool:
    return isinstance(innermost(site["fn"]), Sentences)


def _scored(site: Site) -> torch.Size:
    """The shape of a site's value with all repetitions that its density counts."""
    fn, shape = site["fn"], torch.Size(site["value"].shape)
    if not shape.numel():  # pyro.factor
        return shape
    event_dim = len(fn.event_shape)
    batch = shape[: max(0, len(shape) - event_dim)]
    event = (1,) * (event_dim - len(shape)) + shape[len(batch) :]
    # The event shape of a hidden Markov model has 1 where its data have a length.
    sizes = torch.Size(max(a, b) for a, b in zip(event, fn.event_shape, strict=True))
    return torch.Size(torch.broadcast_shapes(batch, fn.batch_shape)) + sizes


def _is_masked(site: Site) -> bool:
    fn, masked = site["fn"], site["mask"] is not None
    while hasattr(fn, "base_dist"):
        masked = masked or isinstance(fn, dist.MaskedDistribution)
        fn = fn.base_dist
    return masked
