"""The turns of a training with several losses in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.objectives import Alternating, Objective, Turn, moved_by
from ppl_vae.pairs import Pair, PairError

LOSS = "loss_{}"
"""The column of metrics.csv that has the mean loss of a turn."""

ROWS = "rows of {}"
"""Of the sums of an epoch: the rows over which the metric of that name was summed."""


@dataclass(frozen=True)
class Turns:
    """What an `Alternating` objective does with each batch.

    Attributes:
        objective: Its name.
        turns: The turns, in their order.
        moved: The names of the parameters that each moves, by its own name.
        leaves: These parameters, likewise.
    """

    objective: str
    turns: tuple[Turn, ...]
    moved: dict[str, tuple[str, ...]]
    leaves: dict[str, list[Tensor]]

    @classmethod
    def of(cls, pair: Pair, parameters: Mapping[str, Tensor], objective: Objective) -> Turns | None:
        """The turns of a training; None if its objective has none.

        Raises:
            PairError: Something is wrong with them, or two have other options for one parameter.
        """
        if not isinstance(objective, Alternating):
            return None
        name, turns = type(objective).__name__, tuple(objective.turns(pair))
        moved = moved_by(pair, parameters, turns, name)
        leaves = {turn: [parameters[each] for each in names] for turn, names in moved.items()}
        found = cls(name, turns, moved, leaves)
        found._require_one_setting_each()
        return found

    def _require_one_setting_each(self) -> None:
        settings: dict[str, Turn] = {}
        for turn in self.turns:
            for name in self.moved[turn.name]:
                other = settings.setdefault(name, turn)
                if dict(other.options) != dict(turn.options):
                    raise PairError(
                        f"{other} and {turn} of {self.objective} both move '{name}', with options "
                        f"{dict(other.options)} and {dict(turn.options)}: the optimizer has one state for a "
                        "parameter, so give both turns the same options, or let one of them move it"
                    )

    def due(self, step: int) -> list[Turn]:
        """Those that are taken after so many steps."""
        return [turn for turn in self.turns if step % turn.every == 0]

    @property
    def sums(self) -> list[str]:
        """What is summed over an epoch, beside the metrics of all trainings."""
        losses = [LOSS.format(turn.name) for turn in self.turns]
        return [*losses, *map(ROWS.format, losses)]

    def facts(self) -> list[dict[str, Any]]:
        """What must be the same when a run is resumed."""
        return [
            {
                "name": turn.name,
                "every": turn.every,
                "options": {name: str(value) for name, value in turn.options.items()},
                "moves": list(self.moved[turn.name]),
            }
            for turn in self.turns
        ]
