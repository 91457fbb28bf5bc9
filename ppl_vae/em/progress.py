"""How far a call of `fit_em` has come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from ppl_vae.em.notes import Notes


class Start(NamedTuple):
    """A start that has ended.

    Attributes:
        history: A dict for each iteration, as in `EMFit`.
        converged: Whether the bound gained less than the tolerance.
        notes: The iterations of each note.
    """

    history: list[dict[str, float]]
    converged: bool
    notes: dict[str, list[int]]

    @property
    def iterations(self) -> int:
        """M steps taken; online: passes over the data."""
        return int(self.history[-1]["iteration"])

    @property
    def bound(self) -> float:
        """The bound at the end, nats per row."""
        return self.history[-1]["bound"]


@dataclass
class EMProgress:
    """What changes from iteration to iteration besides pair and steps; a checkpoint holds its fields.

    Attributes:
        seed: Of starts and minibatches.
        iteration: M steps that the current start has taken; online: passes over the data.
        repaired: Whether the last M step has repaired something, so that the bound may fall.
        history: What has been measured in the current start.
        notes: The iterations of each note on it.
        ended: The starts before.
        seconds: Time spent in all starts.
        began: Of these, the time before the current start.
    """

    seed: int
    iteration: int = 0
    repaired: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    notes: dict[str, list[int]] = field(default_factory=dict)
    ended: list[Start] = field(default_factory=list)
    seconds: float = 0.0
    began: float = 0.0

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """From the fields that a checkpoint held."""
        return cls(**{**saved, "ended": [Start(*start) for start in saved["ended"]]})

    def copy(self) -> Self:
        """A copy that further iterations do not change."""
        notes = {text: list(iterations) for text, iterations in self.notes.items()}
        return replace(self, history=list(self.history), notes=notes, ended=list(self.ended))

    @property
    def iterations(self) -> int:
        """M steps, or passes over the data, in all starts."""
        return sum(start.iterations for start in self.ended) + self.iteration

    @property
    def best(self) -> int:
        """Which of the ended starts has the best bound; the first of equal ones."""
        return max(range(len(self.ended)), key=lambda i: (self.ended[i].bound, -i))

    def end_start(self, converged: bool) -> None:
        """Keeps what was measured in the current start, and makes room for the next."""
        self.ended.append(Start(self.history, converged, self.notes))
        self.history, self.notes = [], {}
        self.iteration, self.repaired, self.began = 0, False, self.seconds

    def written_notes(self) -> tuple[str, ...]:
        """The notes on the best start, and how it was found."""
        notes = Notes(self.ended[self.best].notes).written()
        if len(self.ended) == 1:
            return notes
        bounds = ", ".join(f"{start.bound:.4f}" for start in self.ended)
        chosen = f"start {self.best} was the best of {len(self.ended)}, with bounds {bounds}"
        return (*notes, chosen)
