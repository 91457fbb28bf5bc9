"""The noise of p(x | z), found between the epochs of a training that moves the guide alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ppl_vae.distributions import Ancestral, Given
from ppl_vae.pairs import (
    Layout,
    Pair,
    PairError,
    Site,
    innermost,
    num_rows,
    observed_sites,
    present,
    trace_pair,
)
from ppl_vae.runtime import preserve_random_state, seed_everything
from ppl_vae.training.rows import TrainingRows

PARTS = 5
"""The epochs are cut in so many parts, and the noise is found before each of them but the first."""

DRAWS = 5
"""Draws of z for each row from which it is found."""

LARGEST_CHANGE = 0.05
"""By what share of sigma the last update may change it: with more, the noise has not settled."""

_APART = 2**31 - 1
"""Between the seeds of two processes, as of `fit`."""

_WHOSE = "OptimalGaussian() and LearnedGaussian()"


def require_noise(model: Any, max_epochs: Any = None) -> nn.Module:
    """The likelihood of a model whose noise `refit_guide(..., fit_noise=True)` can find.

    Args:
        model: The model.
        max_epochs: The epochs of the training, if that is known.

    Raises:
        TypeError: The model has no likelihood, or one without a noise that can be found: `sigma` is no number,
            or `set_sigma` changes neither a parameter nor a buffer, so that a run that is resumed would not
            have it.
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
    _require_kept(likelihood)
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

    def check(self, layout: Layout, model_trace: Trace) -> None:
        """Looks whether the squared errors of a pair can be drawn.

        Args:
            layout: That of the pair.
            model_trace: A trace of the model.

        Raises:
            PairError: The model observes several sites beside what it is given, sums latents out, or has a
                decoder that reads the row.
        """
        if layout.enumerated:
            raise _unsuited(f"sums {', '.join(layout.enumerated)} out")
        _site_of_rows(model_trace)

    def is_due(self, epoch: int, max_epochs: int) -> bool:
        """Whether it is found before the epoch after so many ones."""
        return epoch in _times(max_epochs)

    def is_final(self, epoch: int, max_epochs: int) -> bool:
        """Whether the epoch of this number, from 1, comes after the last time that it is found."""
        return epoch > max(_times(max_epochs), default=0)

    def find(self, pair: Pair, rows: TrainingRows, seed: int, epoch: int) -> tuple[float, float]:
        """Sets the variance to the mean squared error of draws from the guide, over all rows.

        The random state stays as it is: a training that is resumed here goes on in the same way.

        Returns:
            sigma before and after.
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
                    site = _site_of_rows(trace)
                    there = present(site)
                    error = (site["value"].to(site["fn"].mean.dtype) - site["fn"].mean).square()
                    sums["error"] += _sum(torch.where(there, error, 0.0))
                    sums["numbers"] += float(there.sum())
        sums = rows.processes.summed(sums, tuple(sums), "between two epochs")
        likelihood: Any = self.likelihood
        before = float(likelihood.sigma)
        likelihood.set_sigma(math.sqrt(sums["error"] / sums["numbers"]))
        return before, float(likelihood.sigma)

    def epoch_metrics(self) -> dict[str, float]:
        """The noise, a column of `metrics.csv`."""
        likelihood: Any = self.likelihood
        return {"sigma": float(likelihood.sigma)}


def unsettled(before: float, after: float) -> str | None:
    """What to say if the last update of sigma changed it by much; None if it did not.

    Example:
        >>> unsettled(0.5, 0.51)
        >>> unsettled(1.0, 0.5)
        'the noise had not settled: the last update changed sigma from 1 to 0.5; give more max_epochs'
    """
    if abs(after - before) <= LARGEST_CHANGE * before:
        return None
    return (
        f"the noise had not settled: the last update changed sigma from {before:.3g} to {after:.3g}; give "
        "more max_epochs"
    )


def _times(max_epochs: int) -> list[int]:
    """The numbers of epochs after which it is found."""
    parts = min(PARTS, max_epochs)
    return [math.ceil(part * max_epochs / parts) for part in range(1, parts)]


def _require_kept(likelihood: Any) -> None:
    """Raises a TypeError if a checkpoint does not hold what `set_sigma` sets; all stays as it is."""
    name = type(likelihood).__name__
    try:
        sigma = float(likelihood.sigma)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"fit_noise needs a likelihood with a number `sigma`, and {name} has none: give it one, the "
            "standard deviation, or leave fit_noise out"
        ) from error
    state = copy.deepcopy(likelihood.state_dict())
    try:
        for factor in (2.0, 0.5):  # one of them may be out of its bounds
            likelihood.set_sigma(factor * sigma)
            now = likelihood.state_dict()
            if any(isinstance(t, Tensor) and not torch.equal(t, now[n]) for n, t in state.items()):
                return
    finally:
        likelihood.set_sigma(sigma)  # also what is in no state
        likelihood.load_state_dict(state)
    raise TypeError(
        f"fit_noise needs a likelihood whose set_sigma changes a parameter or a buffer, and that of {name} "
        "changes none: a run that is resumed would not have the noise that was found. Keep it by "
        "register_buffer, and fill that in set_sigma"
    )


def _site_of_rows(model_trace: Trace) -> Site:
    """The observed site of the model, beside what it is given."""
    observed = {
        name: site
        for name, site in observed_sites(model_trace).items()
        if not isinstance(innermost(site["fn"]), Given)
    }
    if len(observed) != 1:
        raise _unsuited(f"observes {', '.join(observed)}")
    ((name, site),) = observed.items()
    if isinstance(innermost(site["fn"]), Ancestral):
        raise PairError(
            f"fit_noise needs a decoder of z alone, and that of '{name}' reads the row, too (it is "
            "autoregressive): its noise is not around E[x | z]. Leave fit_noise out, and train the noise with "
            "the model, by fit"
        )
    return site


def _unsuited(what: str) -> PairError:
    return PairError(
        "fit_noise needs a model with one observed site, whose latents the guide draws, and this one "
        f"{what}: leave fit_noise out"
    )


def _sum(values: Tensor) -> float:
    """The sum of many numbers: of each row in their type, then in double."""
    return math.fsum(values.reshape(len(values), -1).sum(1).tolist())
