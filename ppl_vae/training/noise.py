"""The noise of p(x | z), found between the epochs of a training that moves the guide alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.pairs import Layout, Pair, PairError, num_rows, observed_sites, present, trace_pair
from ppl_vae.runtime import preserve_random_state, seed_everything
from ppl_vae.training.rows import TrainingRows

PARTS = 5
"""The epochs are cut in so many parts, and the noise is found before each of them but the first."""

DRAWS = 5
"""Draws of z for each row from which it is found."""

_APART = 2**31 - 1
"""Between the seeds of two processes, as of `fit`."""

_WHOSE = "OptimalGaussian() and LearnedGaussian()"


def require_noise(model: Any, max_epochs: Any = None) -> nn.Module:
    """The likelihood of a model whose noise `refit_guide(..., fit_noise=True)` can find.

    Args:
        model: The model.
        max_epochs: The epochs of the training, if that is known.

    Raises:
        TypeError: The model has no likelihood, or one without a noise that can be found.
        ValueError: There is one epoch: the noise is found between epochs.

    Example:
        >>> from ppl_vae.models import VAE
        >>> require_noise(VAE((3,), 2))
        Traceback (most recent call last):
        TypeError: fit_noise finds the noise of ..., and VAE has Bernoulli: ...
    """
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(likelihood, nn.Module) or not callable(
        getattr(likelihood, "set_sigma", None)
    ):
        has = "no `likelihood`" if likelihood is None else type(likelihood).__name__
        raise TypeError(
            f"fit_noise finds the noise of {_WHOSE}, and {type(model).__name__} has {has}: leave fit_noise "
            "out, or train the model with one of these (--model.likelihood OptimalGaussian)"
        )
    if max_epochs == 1:
        raise ValueError(
            "fit_noise finds the noise between epochs: give max_epochs of at least 2, got 1"
        )
    return likelihood


class Noise(nn.Module):
    """The likelihood of a model that is held otherwise, with what finds its noise: the M step of EM.

    It is in evaluation mode also while others are trained, so that no batch changes it.

    Args:
        likelihood: One with `sigma` and `set_sigma`, such as `OptimalGaussian`.
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

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
                "fit_noise needs a model with one observed site, whose latents the guide draws, and this "
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
