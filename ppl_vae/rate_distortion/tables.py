"""Discrete data as tables: the exact curve of Blahut and Arimoto, and the best model of any encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_vae.rate_distortion.arguments import numbers_of, probabilities, require_positive
from ppl_vae.runtime import require_count
from ppl_vae.stats import Result


@dataclass(frozen=True)
class DiscretePoint(Result):
    """Result of `blahut_arimoto`: a point on the rate-distortion curve of a discrete source.

    Attributes:
        slope: -dR/dD at the point.
        rate: I(y; z) of the channel, nats: it is reached, so the curve is nowhere above it.
        distortion: E d(y, z) of the channel.
        error: How far the curve is below `rate`, at most: the difference to Blahut's lower bound.
        channel: q(z | y), `(m, k)`.
        prior: q(z) = sum_y Pop(y) q(z | y), `(k,)`.
        tolerance: The error that was asked for.
        num_iterations: Iterations that it took.
    """

    slope: float
    rate: float
    distortion: float
    error: float
    channel: Tensor
    prior: Tensor
    tolerance: float
    num_iterations: int

    @property
    def lower_bound(self) -> float:
        """Nothing with this distortion has a lower rate, nats."""
        return self.rate - self.error

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        if not self.error <= self.tolerance:
            yield (
                f"the rate is known to {self.error:.1e} nats, not to {self.tolerance:.1e}, after "
                f"{self.num_iterations} iterations; raise max_iterations, or move the slope away from a kink"
            )

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("rate", f"{self.rate:.6f} nats, at most {self.error:.0e} above the curve"),
            ("distortion", f"{self.distortion:.6f}"),
            ("slope -dR/dD", f"{self.slope:.4g}"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        names = ("slope", "rate", "distortion", "error", "num_iterations")
        return {"unit": "nats", **{name: getattr(self, name) for name in names}}


def blahut_arimoto(
    source: ArrayLike | Tensor,
    distortion: ArrayLike | Tensor,
    slope: float,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 100_000,
) -> DiscretePoint:
    """The exact rate-distortion curve of a discrete source, at the point where its slope is -`slope`.

    min over q of I(y; z) + slope E d(y, z), by turns over the channel and its prior:

        q(z | y) = p(z) exp(-slope d(y, z)) / A(y),   A(y) = sum_z p(z) exp(-slope d(y, z)),
        p(z) <- p(z) c(z),   c(z) = sum_y Pop(y) exp(-slope d(y, z)) / A(y).

    At any p, the minimum is at least -sum_y Pop(y) log A(y) - max_z log c(z), and at most what the channel
    reaches; the difference is the `error` (Blahut, "Computation of Channel Capacity and Rate-Distortion
    Functions", 1972, theorem 6). The iterations end when it is small enough.

    With d(y, z) = -log p(y | z) of a decoder, this is the curve of that decoder under its best prior, and
    `slope` is 1 / beta.

    Args:
        source: Pop(y), `(m,)`.
        distortion: d(y, z), `(m, k)`; +inf where y must not be described by z.
        slope: -dR/dD, nats per unit of distortion, above 0: small for a low rate, large for a low distortion.
        tolerance: The error of the rate to stop at, nats.
        max_iterations: Iterations after which to stop anyway; a warning then says what the error is.

    Raises:
        TypeError: An argument is no number.
        ValueError: The shapes differ, `source` holds no probabilities, some y is described by no z, or
            `slope` is not positive.

    Example:
        >>> hamming = 1 - torch.eye(2)
        >>> found = blahut_arimoto([0.5, 0.5], hamming, slope=2.0)
        >>> round(found.distortion, 4), round(found.rate, 4)  # R = log 2 - h(D)
        (0.1192, 0.3278)
    """
    population = probabilities("source", numbers_of("source", source, 1))
    costs = numbers_of("distortion", distortion, 2)
    if len(costs) != len(population):
        raise ValueError(
            f"distortion must have a row for each of the {len(population)} values of the source, "
            f"got {len(costs)}"
        )
    if bool(costs.isnan().any()) or bool((costs == -torch.inf).any()):
        raise ValueError("distortion must hold numbers or +inf, no NaN and no -inf")
    possible = population > 0
    if not bool((costs < torch.inf).any(1)[possible].all()):
        raise ValueError("distortion is infinite for all z at some y: nothing describes that y")
    slope = require_positive("slope", slope)
    tolerance = require_positive("tolerance", tolerance)
    require_count("max_iterations", max_iterations)

    log_weights = -slope * costs
    log_source, kept = population[possible].log(), log_weights[possible]
    log_prior = torch.full_like(costs[0], -float(torch.tensor(costs.shape[1]).log()))
    for iteration in range(1, max_iterations + 1):
        log_normalizer = (log_prior + kept).logsumexp(1)
        log_ratio = ((log_source - log_normalizer).unsqueeze(1) + kept).logsumexp(0)
        # Of this channel: its upper bound is below that of p by E log c.
        next_prior = log_prior + log_ratio
        gained = float((next_prior.exp() * log_ratio.nan_to_num(neginf=0.0)).sum())
        error = max(0.0, float(log_ratio.max()) - gained)
        if error <= tolerance or iteration == max_iterations:
            break
        log_prior = next_prior
    channel = (log_prior + log_weights).softmax(1)
    # Of a y that never is and that no z describes.
    channel = torch.where(channel.isnan(), next_prior.exp(), channel)
    joint = channel * population.unsqueeze(1)
    reached = float(torch.where(joint > 0, joint * costs, 0.0).sum())
    prior = joint.sum(0)
    return DiscretePoint(
        slope=slope,
        rate=_information(joint, population, prior),
        distortion=reached,
        error=error,
        channel=channel,
        prior=prior,
        tolerance=tolerance,
        num_iterations=iteration,
    )


@dataclass(frozen=True)
class BestModel(Result):
    """Result of `best_model`: the prior and the decoder that are best for an encoder, and what they cost.

    Attributes:
        rate: E KL(q(z | y) || p(z)) = I(y; z), nats.
        distortion: -E log p(y | z) = H(y | z), nats.
        entropy: H(y), nats: the sum of the two.
        prior: p(z), `(k,)`.
        decoder: p(y | z), `(k, m)`.
    """

    rate: float
    distortion: float
    entropy: float
    prior: Tensor
    decoder: Tensor

    @property
    def elbo(self) -> float:
        """-(rate + distortion), nats per row: -H(y), for whatever encoder."""
        return -(self.rate + self.distortion)

    def loss(self, beta: float) -> float:
        """distortion + beta rate = H(y) + (beta - 1) I(y; z), nats."""
        return self.distortion + beta * self.rate

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("ELBO", f"{self.elbo:.6f} nats"),
            ("rate", f"{self.rate:.6f} nats"),
            ("distortion", f"{self.distortion:.6f} nats"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        names = ("elbo", "rate", "distortion", "entropy")
        return {"unit": "nats", **{name: getattr(self, name) for name in names}}


def best_model(population: ArrayLike | Tensor, encoder: ArrayLike | Tensor) -> BestModel:
    """The prior and the decoder with the highest ELBO for any encoder of discrete data.

        p(z) = sum_y Pop(y) Q(z | y),   p(y | z) = Pop(y) Q(z | y) / p(z).

    With them rate + distortion = I(y; z) + H(y | z) = H(y): the ELBO is -H(y), the best that there is, for
    *every* Q. So the ELBO does not determine what z knows of y, which may be anything from 0 to H(y). Beta
    does: distortion + beta rate is H(y) + (beta - 1) I(y; z), lowest at I = H(y) if beta < 1 and at I = 0 if
    beta > 1 (McAllester, lectures on deep learning, TTIC 31230; "Fixing a Broken ELBO", arXiv:1711.00464).

    Args:
        population: Pop(y), `(m,)`.
        encoder: Q(z | y), `(m, k)`.

    Raises:
        TypeError: An argument is no number.
        ValueError: The shapes differ, or they hold no probabilities.

    Example:
        >>> nothing = best_model([0.5, 0.5], [[0.3, 0.7], [0.3, 0.7]])
        >>> all_of_it = best_model([0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]])
        >>> round(nothing.elbo, 6), round(all_of_it.elbo, 6), round(all_of_it.rate, 6)
        (-0.693147, -0.693147, 0.693147)
    """
    source = probabilities("population", numbers_of("population", population, 1))
    channel = probabilities("encoder", numbers_of("encoder", encoder, 2))
    if len(channel) != len(source):
        raise ValueError(
            f"encoder must have a row for each of the {len(source)} values of the population, "
            f"got {len(channel)}"
        )
    joint = channel * source.unsqueeze(1)
    prior = joint.sum(0)
    used = prior > 0
    decoder = torch.where(used, joint / torch.where(used, prior, 1.0), source.unsqueeze(1)).T
    distortion = 0.0 - float(torch.xlogy(joint, decoder.T).sum())  # not -0.0
    entropy = -float(torch.xlogy(source, source).sum())
    return BestModel(_information(joint, source, prior), distortion, entropy, prior, decoder)


def _information(joint: Tensor, rows: Tensor, columns: Tensor) -> float:
    """I of a joint table, nats; never below 0 by rounding."""
    independent = rows.unsqueeze(1) * columns
    ratio = torch.where(joint > 0, joint / torch.where(independent > 0, independent, 1.0), 1.0)
    return max(0.0, float((joint * ratio.log()).sum()))
