"""Which draws the values of a program were computed from."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import get_provenance

from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args
from ppl_vae.pairs.traces import Site


class TrackLatents(TrackProvenance):
    """Lets values remember which sites they were computed from: see `sources_of`.

    Unlike Pyro's handler, it leaves parameters alone, so that plates can subsample them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def _pyro_post_param(self, msg: Site) -> None:
        pass


def trace_tracked(pair: Pair, batch: Batch) -> Any:
    """The guide's trace, whose values know their sources; None for code that checks the type of a tensor."""
    try:
        with torch.random.fork_rng(), TrackLatents(), pyro.validation_enabled(False):
            return poutine.trace(pair.guide).get_trace(*as_args(batch))
    except Exception:
        return None


def sources_of(value: Any) -> frozenset[str]:
    """The draws that a value was computed from, through Deltas, too; not those that these depend on in turn.

    Example:
        >>> import pyro.distributions as dist
        >>> with TrackLatents():
        ...     sources_of(2 * pyro.sample("z", dist.Normal(0.0, 1.0)))
        frozenset({'z'})
    """
    found: frozenset[str] = get_provenance(value)
    return found


def sharing_draws(sources: dict[str, frozenset[str]]) -> list[tuple[list[str], frozenset[str]]]:
    """Groups of sites that share sources, each with all its sources.

    Example:
        >>> groups = sharing_draws({"z": frozenset("ab"), "w": frozenset("c"), "y": frozenset("b")})
        >>> [names for names, _ in groups]
        [['w'], ['z', 'y']]
    """
    groups: list[tuple[list[str], frozenset[str]]] = []
    for name, found in sources.items():
        joined = [group for group in groups if group[1] & found]
        groups = [group for group in groups if not group[1] & found]
        names = [other for group in joined for other in group[0]]
        groups.append(([*names, name], found.union(*(group[1] for group in joined))))
    return groups
