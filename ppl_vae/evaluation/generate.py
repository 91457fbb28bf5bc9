"""Data drawn from any pair: reconstructions, samples from the prior, decoded latents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.evaluation.sandwich import warn_if_draws_follow_data
from ppl_vae.pairs import (
    Batches,
    DataLike,
    Pair,
    PairError,
    Program,
    Substitute,
    sample_rows,
    tensors_of,
)
from ppl_vae.runtime import described, preserve_random_state, require_count, require_seed

_AT_ONCE = 64  # rows that the model generates at once, which bounds the memory


@dataclass(frozen=True)
class Generator:
    """Draws data from any pair. Latents are flat: `(m, dimensions of all latent sites)`.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Some rows of data, an array `(n, *event)`. The programs are called with data of this event shape.
        seed: Seed of all draws.

    Raises:
        TypeError: A program, the rows or the seed are none.
        ValueError: There are no rows.
    """

    model: Program
    guide: Program
    x: DataLike
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed(self.seed)
        with preserve_random_state():  # data sets may draw
            Batches(self.x, Pair.of(self.model, self.guide))

    def reconstruct(self) -> tuple[Tensor, Tensor]:
        """Draws z ~ q(z | x). Returns z, `(n, d)`, and the means of p(x | z), `(n, *event)`."""
        with self._opened() as (session, x):
            pair, layout = session.pair, session.layouts.of(x)
            rows = sample_rows(pair, layout, x, 1)
            parts = [rows.latents[name][0].reshape(len(x), -1) for name in layout.latents]
            z = torch.cat(parts, 1)
            return z, _mean(_site(rows.model_trace, layout.observed, x))

    def from_prior(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws z ~ p(z). Returns z, `(num, d)`, the means of p(x | z) and draws of x, `(num, *event)`.

        Of a model whose distribution of x depends on x itself, they are not from p(x): a `PairWarning`.
        """
        require_count("num", num)
        with self._opened() as (session, given):
            pair, layout = session.pair, session.layouts.of(given)
            warn_if_draws_follow_data(pair, given)
            parts = []
            for some in _repeated(given, num).split(_AT_ONCE):
                # The data only give the shape: the unconditioned model draws all of its sites.
                trace = poutine.trace(poutine.uncondition(pair.model)).get_trace(some)
                values: list[Any] = [trace.nodes[name]["value"] for name in layout.latents]
                if not values or any(v.shape[:1] != some.shape[:1] for v in values):
                    raise PairError("the rows are not the first dimension of the model's latents")
                z = torch.cat([value.reshape(len(some), -1) for value in values], 1)
                site = _site(trace, layout.observed, given)
                parts.append((z, _mean(site), site["value"]))
            z, means, x = (torch.cat(part) for part in zip(*parts, strict=True))
            return z, means, x

    def decode(self, z: Tensor) -> Tensor:
        """The means of p(x | z) for latents `(m, d)`: `(m, *event)`.

        Raises:
            TypeError: `z` is no tensor.
            ValueError: It has another shape.
        """
        if not isinstance(z, Tensor):
            raise TypeError(
                f"z must be a tensor of latents, (m, d), got {described(z)}: write "
                "torch.as_tensor(z, dtype=torch.float32)"
            )
        with self._opened() as (session, x):
            pair, layout = session.pair, session.layouts.of(x)
            probe: Any = poutine.trace(pair.model).get_trace(x)
            parts: dict[str, tuple[slice, Any]] = {}
            start = 0
            for name in layout.latents:
                shape = probe.nodes[name]["value"].shape[1:]
                size = math.prod(shape)
                parts[name] = (slice(start, start + size), shape)
                start += size
            if z.dim() != 2 or z.shape[1] != start:
                raise ValueError(
                    f"z has shape {tuple(z.shape)}, but the latents {', '.join(map(repr, parts))} of a row are "
                    f"{start} numbers together: expected (m, {start})"
                )
            z = z.to(session.device)
            values = {n: z[:, part].reshape(len(z), *shape) for n, (part, shape) in parts.items()}
            model = Substitute(values)(pair.model)
            trace = poutine.trace(model).get_trace(_repeated(x, len(z)))
            return _mean(_site(trace, layout.observed, x))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Session, Tensor]]:
        """The opened pair and its rows, which are a single tensor."""
        given = (self.model, self.guide, self.x)
        with opened(*given, seed=self.seed, progress=False, draws_start_at_seed=True) as session:
            (rows,) = tensors_of(session.batches.rows)
            yield session, rows.to(session.device)


def _repeated(x: Tensor, num: int) -> Tensor:
    """So many rows of `x`, from the start again after the last one."""
    return x[torch.arange(num) % len(x)]


def _site(trace: Any, observed: Sequence[str], x: Tensor) -> Any:
    """The observed site that holds the data."""
    for name in observed:
        if trace.nodes[name]["value"].shape[1:] == x.shape[1:]:
            return trace.nodes[name]
    names = ", ".join(f"'{name}'" for name in observed)
    raise PairError(f"none of the observed sites {names} has the shape of the data")


def _mean(site: Mapping[str, Any]) -> Tensor:
    """The mean of a site's distribution; a draw from it if it has none (for example a categorical)."""
    try:
        mean: Tensor = site["fn"].mean
    except NotImplementedError:
        mean = torch.tensor(torch.nan)
    return mean if torch.isfinite(mean).all() else torch.as_tensor(site["value"])
