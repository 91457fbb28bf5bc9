"""Online EM: an M step after each minibatch, by a running average of the sufficient statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ppl_vae.em.data import EMData
from ppl_vae.em.notes import Notes
from ppl_vae.em.steps import ClosedFormModel, Statistics, Steps
from ppl_vae.pairs import Batch, as_args
from ppl_vae.runtime import require_number


@dataclass(frozen=True)
class StepSize:
    """gamma_t = (t + delay)^-exponent: the weight of minibatch t = 0, 1, ... in online EM.

    The sum of gamma_t must diverge and that of gamma_t^2 converge: 0.5 < exponent <= 1 (Cappé & Moulines,
    "Online EM Algorithm for Latent Data Models", arXiv:0712.4273, who advise about 0.6).

    Example:
        >>> StepSize(exponent=1.0)(2)
        0.25
    """

    exponent: float = 0.6
    delay: float = 2.0

    def __post_init__(self) -> None:
        require_number("StepSize.exponent", self.exponent)
        require_number("StepSize.delay", self.delay)
        if not 0.5 < self.exponent <= 1:
            raise ValueError(
                f"StepSize.exponent must be above 0.5 and at most 1, got {self.exponent}"
            )
        if not self.delay >= 1:
            raise ValueError(f"StepSize.delay must be at least 1, got {self.delay}")

    def __call__(self, step: int) -> float:
        return float((step + self.delay) ** -self.exponent)


class Online(Steps):
    """`maximize` is a pass over the data, with an M step after each minibatch.

    Args:
        model: The model.
        hard: Whether the E step takes the mode.
        data: The rows.
        step_size: The weights of minibatches.
        seed: Of the order of the minibatches.
        notes: Take what the M steps warn of.
    """

    def __init__(
        self,
        model: ClosedFormModel,
        hard: bool,
        data: EMData,
        step_size: StepSize,
        seed: int,
        notes: Notes,
    ) -> None:
        super().__init__()
        self.model, self.hard, self.data = model, hard, data
        self.step_size, self.seed, self.notes = step_size, seed, notes
        self.average: Statistics = {}
        self.step = 0
        self.bound = 0.0

    def expect(self, batches: Iterable[Batch]) -> float:
        """The average of log p(x) over the last pass, each minibatch at the parameters before its M step."""
        return self.bound

    def maximize(self) -> None:
        total, rows = 0.0, 0.0
        average, epoch = self.average, int(self.passes) + 1
        for batch in self.data.shuffled(self.seed, epoch):
            found = self.model.expected_statistics(*as_args(batch), hard=self.hard)
            n = found["num_rows"]
            total, rows = total + float(found["log_evidence"]), rows + float(n)
            weight = self.step_size(self.step) if average else 1.0
            average = {
                k: (1 - weight) * average[k] + weight * v / n if average else v / n
                for k, v in found.items()
            }
            with self.notes.of_warnings(epoch):
                self.model.maximize(average)
            self.step += 1
        self.average = average
        self.bound = total / rows
        self.passes += 1

    def state(self) -> dict[str, Any]:
        more = {"average": self.average, "step": self.step, "bound": self.bound}
        return {**super().state(), **more}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.average = {k: v.to(self.data.device) for k, v in state["average"].items()}
        self.step, self.bound = state["step"], state["bound"]
