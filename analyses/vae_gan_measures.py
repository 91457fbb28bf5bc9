"""What is measured of one model: nats of its decoder, features, draws. It is kept, as it takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae.runtime import read_tensors, write_tensors

SPREAD, DISTINCT = 0.5, 0.1
"""Below these, draws count as collapsed: the share of the variance of rows, the share of different rows."""

DRAWS = 500
"""Draws whose spread is measured."""


@dataclass(frozen=True)
class Measured:
    """What is measured of a model and an encoder.

    Attributes:
        at: The test rows that ELBO and log p(x) are of.
        elbo: ELBO of each of them, nats.
        log_p: log p(x) of each of them, nats.
        unreliable: Whether that of a row is not to be trusted.
        errors: Squared error of each test row.
        distance: Squared distance of features, over the variance of those of rows.
        spread: Variance of the draws, over that of the test rows.
        distinct: How many different training rows are nearest to a draw, over as many as there could be.
        accuracy: Of classifiers from reconstructions, with its standard error, and from draws; or empty.
        seen: Reconstructions of the first test rows.
        drawn: The first draws.
    """

    at: Tensor
    elbo: Tensor
    log_p: Tensor
    unreliable: Tensor
    errors: Tensor
    distance: Tensor
    spread: Tensor
    distinct: Tensor
    accuracy: Tensor
    seen: Tensor
    drawn: Tensor

    @property
    def collapsed(self) -> bool:
        """Whether draws are of few kinds."""
        return bool(self.spread < SPREAD) or bool(self.distinct < DISTINCT)


def kept(file: Path, made_of: str, measure: Callable[[], Measured]) -> Measured:
    """What was measured, from its file; it is measured anew if that is of other settings.

    Args:
        file: The file.
        made_of: What it depends on.
        measure: Measures.
    """
    if file.exists():
        tensors, metadata = read_tensors(file)
        if metadata["made_of"] == made_of:
            return Measured(**tensors)
    found = measure()
    tensors = {each.name: getattr(found, each.name) for each in fields(Measured)}
    write_tensors(file, tensors, {"made_of": made_of})
    return found


def spread_over(number: int, most: int) -> Tensor:
    """At most so many of some rows, at equal distances from the first to the last one."""
    return torch.linspace(0, number - 1, min(number, most)).round().long()


def distance(judge: Any, x: Tensor, seen: Tensor) -> Tensor:
    """The squared distance of features of rows and reconstructions, over the variance of those of rows."""
    with torch.no_grad():
        real, false = (judge.eval()(part.float())[1].flatten(1) for part in (x, seen))
    share: Tensor = (real - false).square().sum() / (real - real.mean(0)).square().sum()
    return share


def variance(x: Tensor) -> Tensor:
    """The mean squared distance of rows from their mean."""
    flat = x.double().flatten(1)
    return (flat - flat.mean(0)).square().sum(1).mean()


def share_distinct(drawn: Tensor, train: Tensor) -> Tensor:
    """How many different training rows are nearest to a draw, over the smaller number of the two."""
    nearest = torch.cdist(drawn.flatten(1), train.to(drawn.dtype).flatten(1)).argmin(1)
    return torch.tensor(len(nearest.unique()) / min(len(drawn), len(train)))
