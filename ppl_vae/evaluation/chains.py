"""Annealing of the chains of all rows, forward and back, in chunks of a bounded size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.evaluation.conditions import Conditions
from ppl_vae.evaluation.counts import ValueCounts
from ppl_vae.evaluation.hmc import Densities, Point, StepSizes, anneal, sigmoidal, tune
from ppl_vae.evaluation.path import Path, PriorGuide
from ppl_vae.pairs import (
    Batch,
    DataLike,
    Layout,
    Pair,
    Program,
    num_rows,
    tensors_of,
)
from ppl_vae.runtime import require_count

FEWEST_CHAINS = 8
"""Minimum number of chains in the run that tunes the steps; their starts give each dimension's scale."""

MOST_CHAINS = 1_000_000
"""Most chains, temperatures or leapfrog steps that may be asked for: a thousand of each is already much."""

RECORD_FROM = 100
"""Number of gradients from which recording the densities pays off."""


@dataclass(frozen=True)
class AnnealingSchedule:
    """Numbers of chains and steps for each row.

    Attributes:
        num_chains: Number of chains.
        num_steps: Number of temperatures.
        num_leapfrog: Leapfrog steps between two temperatures.
        temperatures: The `num_steps + 1` temperatures, from 0; None: a sigmoidal schedule that ends at 1.

    Raises:
        TypeError: One of them is no whole number.
        ValueError: One of them is not positive, or beyond all reason.
    """

    num_chains: int
    num_steps: int
    num_leapfrog: int
    temperatures: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_steps", "num_leapfrog"):
            require_count(name, getattr(self, name), most=MOST_CHAINS)

    @property
    def betas(self) -> list[float]:
        """The temperatures, increasing from 0."""
        return sigmoidal(self.num_steps) if self.temperatures is None else [*self.temperatures]

    @property
    def tuning_betas(self) -> list[float]:
        """Temperatures of the run that tunes the step sizes: a tenth as many, within bounds."""
        count = min(max(self.num_steps // 10, 30), 200)
        if self.temperatures is None:
            return sigmoidal(count)
        known = sorted(set(self.temperatures))
        places = np.linspace(0, len(known) - 1, count + 1)
        found: list[float] = np.interp(places, np.arange(len(known)), known).tolist()
        return found

    def transitions(self, runs: int, parts: int) -> int:
        """Transitions per row, with its chains run in `parts` parts, forward or (two runs) forward and back."""
        if self.num_steps == 1:
            return 0
        return len(self.tuning_betas) - 2 + runs * parts * (self.num_steps - 1)


class Chunk:
    """A chunk of rows, whose chains run at once or in a few parts.

    Args:
        pair: The pair. Use the chunk inside of its scope, without gradients.
        layout: The pair's layout.
        batch: The rows.
        schedule: Numbers of chains and steps for each row.
        chains: Number of chains in each part.
        tick: Called after each transition of the rows.
    """

    def __init__(
        self,
        pair: Pair,
        layout: Layout,
        batch: Batch,
        schedule: AnnealingSchedule,
        chains: list[int],
        tick: Callable[[], object],
    ) -> None:
        self.pair, self.layout, self.batch = pair, layout, batch
        self.chains = chains
        self.path = Path(pair, layout, batch)
        self._schedule, self._tick = schedule, tick
        self._densities: dict[int, Densities] = {}

    def on(self, batch: Batch) -> Chunk:
        """The same chunk with other rows."""
        return Chunk(self.pair, self.layout, batch, self._schedule, self.chains, self._tick)

    def draw(self, num_chains: int, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Starting points of `num_chains` chains: draws from the guide or the prior, or given values."""
        return self.path.draw(num_chains, values)

    def anneal(
        self,
        start: Tensor,
        back: bool = False,
        watch: Callable[[int, Tensor, Point], object] = lambda *_: None,
    ) -> tuple[Tensor, Tensor]:
        """Log weights of the chains from `start`, `(chains, n)`, and each row's acceptance, `(n,)`.

        Args:
            start: Draws from the guide or the prior; from the posterior if `back`.
            back: Anneal from the posterior to the guide or prior: the weights are 1 / p(x) in expectation.
            watch: See `hmc.anneal`.
        """
        betas = self._schedule.betas
        steps = None if len(betas) == 2 else self._steps
        densities = self._densities_at(start)
        return anneal(
            densities,
            densities(start),
            betas[::-1] if back else betas,
            steps,
            self._schedule.num_leapfrog,
            self._tick,
            watch,
        )

    @cached_property
    def _steps(self) -> StepSizes:
        start = self.path.draw(max(self.chains[0], FEWEST_CHAINS))
        spread = start.std(0)
        scale = torch.where((spread > 0) & spread.isfinite(), spread, torch.ones_like(spread))
        densities = self._densities_at(start)
        betas, num_leapfrog = self._schedule.tuning_betas, self._schedule.num_leapfrog
        return tune(densities, densities(start), betas, scale, num_leapfrog, self._tick)

    def _densities_at(self, start: Tensor) -> Densities:
        """The path's densities for as many chains as `start` has, recorded if they are needed often."""
        if self._schedule.num_steps * self._schedule.num_leapfrog < RECORD_FROM:
            return self.path.densities
        if len(start) not in self._densities:
            with torch.random.fork_rng():
                check = self.path.draw(len(start))
                self._densities[len(start)] = self.path.record(start, check)
        return self._densities[len(start)]


def in_chunks(
    work: Callable[[Chunk], dict[str, Tensor]],
    model: Program,
    guide: Program | None,
    x: DataLike,
    schedule: AnnealingSchedule,
    *,
    runs: int,
    seed: int | None,
    progress: bool | None,
    label: str,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, tuple[str, ...]]]:
    """Runs `work` on all rows, chunk by chunk, with a progress bar that counts transitions.

    Args:
        work: Function from a chunk to per-row results.
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x) to start from; None for the prior.
        x: The rows.
        schedule: Numbers of chains and steps for each row.
        runs: How often `work` anneals each chain.
        seed: Seed for the draws.
        progress: Whether to show the bar.
        label: Text of the bar.

    Returns:
        The results of all rows, on the CPU; `num_values`, the numbers of data per row, and `counted`, what they
        are called: see `ValueCounts`; and the result's `notes` and `cautions`.
    """
    start = PriorGuide(model) if guide is None else guide
    parts: list[dict[str, Tensor]] = []
    with (
        pyro.validation_enabled(False),  # before the layout is found: a flow states no support
        opened(model, start, x, seed=seed, progress=progress) as session,
    ):
        counts, conditions = ValueCounts(session), Conditions(session)
        rows, at_once = _chunk_sizes(session, schedule.num_chains)
        chains = _evenly(schedule.num_chains, at_once)
        each = schedule.transitions(runs, len(chains))
        total = None if session.num_rows is None else session.num_rows * each
        with session.bar(label, "transition", total) as bar:
            for batch in session.chunks(rows):
                tick = partial(bar.update, num_rows(batch))
                chunk = Chunk(
                    session.pair, session.layouts.of(batch), batch, schedule, chains, tick
                )
                parts.append({name: t.cpu() for name, t in work(chunk).items()})
                counts.add(batch)
                conditions.add(batch)
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    texts = {
        "notes": (*conditions.notes, *session.findings.notes),
        "cautions": session.findings.doubts,
    }
    return found, {"num_values": counts.num_values, "counted": counts.counted}, texts


def _chunk_sizes(session: Session, num_chains: int) -> tuple[int, int]:
    """How many rows to run at once, and how many chains of each."""
    rows, samples = session.chunk_sizes(sys.maxsize)
    # A gradient takes about four times the memory of a density, and is fastest within a processor's cache;
    # an accelerator must be kept full.
    on_cpu = tensors_of(session.first)[0].device.type == "cpu"
    points = rows * samples // 4 if on_cpu else rows * samples * 4
    if not session.pair.keeps_rows:
        rows = max(1, points // num_chains)
    return rows, max(1, min(num_chains, points // rows))


def _evenly(total: int, most: int) -> list[int]:
    """Splits `total` into as few parts of at most `most` as possible, of nearly equal sizes."""
    parts = -(-total // most)
    return [total // parts + (i < total % parts) for i in range(parts)]
