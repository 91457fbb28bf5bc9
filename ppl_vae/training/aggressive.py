"""Aggressive updates of the guide: it keeps up with the model until the latents carry what they can."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ppl_vae.pairs import Pair

WINDOW = 10
"""Steps of the guide whose mean loss is compared with that of those before."""

MOST = 100
"""Most steps of the guide for one of the model."""

GROWS = 0.01
"""Nats by which the mutual information has to grow in an epoch for the phase to go on."""


@dataclass(frozen=True)
class Aggression:
    """Where a training with aggressive updates stands; a checkpoint holds it.

    Each step moves the guide alone, until the mean loss of 10 steps is no better than that of the 10 before, or
    after 100 steps; then one step moves the model alone. The phase ends after the first epoch in which the
    mutual information of x and z has not grown by 0.01 nats; from then on, each step moves both ("Lagging
    Inference Networks and Posterior Collapse in Variational Autoencoders", He et al., arXiv:1901.05534).

    Attributes:
        steps: Steps of the guide since the model's last one.
        loss: Their losses since the last comparison, summed.
        before: The mean loss of the ten steps before that.
        models_turn: Whether the next step is the model's.
        information: The largest mutual information after an epoch so far, nats.
        ended: Whether the phase has ended.
    """

    steps: float = 0.0
    loss: float = 0.0
    before: float = math.inf
    models_turn: float = 0.0
    information: float = -math.inf
    ended: float = 0.0

    @property
    def moves(self) -> Literal["guide", "model", "both"]:
        """What the next step moves."""
        if self.ended:
            return "both"
        return "model" if self.models_turn else "guide"

    def after_step(self, loss: float) -> Aggression:
        """The state after a step with this loss."""
        if self.ended:
            return self
        if self.models_turn:
            return replace(self, steps=0.0, loss=0.0, before=math.inf, models_turn=0.0)
        steps, total = self.steps + 1, self.loss + loss
        if steps % WINDOW:
            return replace(self, steps=steps, loss=total)
        mean = total / WINDOW
        turn = float(not mean < self.before or steps >= MOST)
        return replace(self, steps=steps, loss=0.0, before=mean, models_turn=turn)

    def after_epoch(self, information: float) -> Aggression:
        """The state after an epoch with this mutual information; if that is not known, the phase ends."""
        if self.ended:
            return self
        if not information > self.information + GROWS:
            return replace(self, ended=1.0)
        return replace(self, information=information)


def parameters_of_guide(pair: Pair, names: Iterable[str]) -> frozenset[str]:
    """The names of the parameters that the guide alone has, of those that `Pair.parameters` gives.

    Raises:
        ValueError: It has none, or the model has none.
    """
    names = frozenset(names)
    of_model = frozenset(name for name in names if pair.is_of_model(name))
    for role, own in (("guide", names - of_model), ("model", of_model)):
        if not own:
            raise ValueError(
                f"aggressive=True moves the guide and the model in turn, and the {role} has no parameters of "
                "its own: leave it out"
            )
    return names - of_model
