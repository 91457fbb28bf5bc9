"""How far a training has come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ppl_vae.pairs import ELBO_MEASURE, Measure
from ppl_vae.training.turns import LOSS, ROWS


@dataclass
class Progress:
    """What changes from step to step besides weights and optimizer; a checkpoint holds its fields.

    Attributes:
        epoch: Epochs that are complete.
        step: Optimizer steps taken.
        step_in_epoch: Of these, the steps of the current epoch.
        sums: Metrics of the current epoch, summed over rows, and the number of "rows"; of the loss of a turn,
            which may not be taken in each step, its own number of rows.
        history: The metrics of each complete epoch.
        best_epoch: The epoch with the best held-out ELBO so far, or what a pair has in its place (`Measure`);
            0 if there is none.
        best_elbo: That ELBO, nats per row.
        seconds: Time spent.
        control: The state of the controller of beta, if there is one.
        aggression: The state of aggressive updates of the guide, if they are asked for.
        noise: sigma before and after the last time that the noise was found, if it was.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_elbo: float = -math.inf
    seconds: float = 0.0
    control: list[float] | None = None
    aggression: list[float] | None = None
    noise: list[float] | None = None

    def count_step(self, metrics: Mapping[str, float], rows: float) -> None:
        """Counts a step whose metrics are means over so many rows."""
        self.step += 1
        self.step_in_epoch += 1
        self.sums["rows"] = self.sums.get("rows", 0.0) + rows
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * rows
            if name.startswith(LOSS.format("")):
                own = ROWS.format(name)
                self.sums[own] = self.sums.get(own, 0.0) + rows

    def end_epoch(
        self,
        row: dict[str, float],
        measure: Measure = ELBO_MEASURE,
        held_out: Measure | None = None,
    ) -> None:
        """Keeps the metrics of the epoch that has ended, under the names that they have in this pair.

        Args:
            row: The metrics.
            measure: What stands where the ELBO would. The epochs of a checkpoint of an earlier version, which
                knew of nothing but an ELBO, get these names, too.
            held_out: The same of held-out rows; None if it is no other.
        """
        last = self.history[-1] if self.history else {}
        if measure.of(last, held_out).keys() != last.keys():
            self.history[:] = [measure.of(before, held_out) for before in self.history]
        self.history.append(measure.of(row, held_out))
        self.sums, self.step_in_epoch = {}, 0
