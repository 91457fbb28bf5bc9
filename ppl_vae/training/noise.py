"""The noise of p(x | z), found between the epochs of a training that moves the guide alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.pairs import Layout, Pair, PairError, num_rows, observed_sites, present, trace_pair
from ppl_vae.runtime import described, preserve_random_state, seed_everything
from ppl_vae.training.rows import TrainingRows

PARTS = 5
"""The epochs are cut in so many parts, and the noise is found before each of them but the first."""

DRAWS = 5
"""Draws of z for each row from which it is found."""

_APART = 2**31 - 1
"""Between the seeds of two processes, as of `fit`."""

_WHOSE = "OptimalGaussian() or LearnedGaussian()"


class Noise(nn.Module):
    """The likelihood of a model that is held otherwise, with what finds its noise: the M step of EM.

    It is in evaluation mode also while others are trained, so that no batch changes it.

    Args:
        likelihood: One with `sigma` and `set_sigma`, such as `OptimalGaussian`.
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    @classmethod
    def of(cls, model: Any) -> Noise:
        """That of a model.

        Raises:
            TypeError: The model has no likelihood, or one without a noise that can be found.
        """
        likelihood = getattr(model, "likelihood", None)
        if isinstance(likelihood, nn.Module) and callable(getattr(likelihood, "set_sigma", None)):
            return cls(likelihood)
        has = (
            f"{described(model)} has no `likelihood`"
            if likelihood is None
            else f"that of {described(model)} is {described(likelihood)}"
        )
        raise TypeError(
            f"fit_noise=True finds the variance of a model whose likelihood is {_WHOSE}, and {has}: leave "
            f"fit_noise out, or train a model with likelihood={_WHOSE}"
        )

    def train(self, mode: bool = True) -> Noise:
        """Stays in evaluation mode."""
        return super().train(False)

    def check(self, layout: Layout) -> None:
        """Looks whether the squared errors of a pair can be drawn.

        Raises:
            PairError: The model observes several sites, or sums latents out.
        """
        if len(layout.observed) != 1 or layout.enumerated:
            what = (
                f"sums {', '.join(layout.enumerated)} out"
                if layout.enumerated
                else f"observes {', '.join(layout.observed)}"
            )
            raise PairError(
                "fit_noise=True needs a model with one observed site, whose latents the guide draws, and this "
                f"one {what}: leave fit_noise out"
            )

    def is_due(self, epoch: int, max_epochs: int) -> bool:
        """Whether it is found before the epoch after so many ones."""
        parts = min(PARTS, max_epochs)
        return epoch in {math.ceil(part * max_epochs / parts) for part in range(1, parts)}

    def find(self, pair: Pair, rows: TrainingRows, seed: int, epoch: int) -> None:
        """Sets the variance to the mean squared error of draws from the guide, over all rows.

        The random state stays as it is: a training that is resumed here goes on in the same way.
        """
        sums = {"error": 0.0, "numbers": 0.0}
        with (
            preserve_random_state(),
            torch.no_grad(),
            pair.mode(training=False),
        ):
            seed_everything((seed + epoch + _APART * rows.processes.rank) % 2**63)
            for batch, _ in rows.shuffled(seed, epoch, 0):
                if batch is None or num_rows(batch) == 0:
                    continue
                for _ in range(DRAWS):
                    trace, _ = trace_pair(pair, batch)
                    (site,) = observed_sites(trace).values()
                    there = present(site)
                    error = (site["value"].to(site["fn"].mean.dtype) - site["fn"].mean).square()
                    sums["error"] += _sum(torch.where(there, error, 0.0))
                    sums["numbers"] += float(there.sum())
        sums = rows.processes.summed(sums, tuple(sums), "between two epochs")
        likelihood: Any = self.likelihood
        likelihood.set_sigma(math.sqrt(sums["error"] / sums["numbers"]))

    def epoch_metrics(self) -> dict[str, float]:
        """The noise, a column of `metrics.csv`."""
        likelihood: Any = self.likelihood
        return {"sigma": float(likelihood.sigma)}


def _sum(values: Tensor) -> float:
    """The sum of many numbers: of each row in their type, then in double."""
    return math.fsum(values.flatten(1).sum(1).tolist())
