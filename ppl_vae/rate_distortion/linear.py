"""The exact curve of normal data by reverse water-filling, and what a linear VAE reaches on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ppl_vae.rate_distortion.arguments import numbers_of, require_positive
from ppl_vae.runtime import require_count
from ppl_vae.stats import Result

ROUNDING = 1e-6
"""Share of the largest eigenvalue by which others may be below 0: those of single precision are so inexact."""


@dataclass(frozen=True)
class WaterFilling(Result):
    """Result of `reverse_water_filling`: a point on the curve of normal data under squared error.

    Attributes:
        water_level: Squared error of every active dimension.
        eigenvalues: Variances l_i of the data along their principal directions, `(d,)`.
        active: Which dimensions are described at all, `(d,)`.
        squared_errors: Squared error of each dimension, `(d,)`.
        rates: Rate of each dimension, nats, `(d,)`.
    """

    water_level: float
    eigenvalues: Tensor
    active: Tensor
    squared_errors: Tensor
    rates: Tensor

    @property
    def rate(self) -> float:
        """R, nats per row."""
        return float(self.rates.sum())

    @property
    def distortion(self) -> float:
        """D, the expected squared error of a row."""
        return float(self.squared_errors.sum())

    @property
    def slope(self) -> float:
        """-dR/dD = 1 / (2 water level), nats per unit of squared error; 0 where nothing is active."""
        return 0.5 / self.water_level if bool(self.active.any()) else 0.0

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("rate", f"{self.rate:.3f} nats"),
            ("squared error", f"{self.distortion:.4g}"),
            ("active", f"{int(self.active.sum())} of {len(self.active)} dimensions"),
            ("water level", f"{self.water_level:.4g}"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        return {
            "unit": "nats",
            "rate": self.rate,
            "distortion": self.distortion,
            "slope": self.slope,
            "water_level": self.water_level,
            "active": int(self.active.sum()),
        }


def reverse_water_filling(
    eigenvalues: ArrayLike | Tensor,
    water_level: float | None = None,
    *,
    distortion: float | None = None,
    latent_dim: int | None = None,
) -> WaterFilling:
    """The least rate at which normal data can be described with a given squared error.

    Each principal direction is described up to the water level w, or not at all:

        D_i = min(w, l_i),   R_i = 1/2 log(l_i / D_i),   dR/dD = -1 / (2 w).

    (Cover and Thomas, "Elements of Information Theory", section 10.3.3.)

    Args:
        eigenvalues: Variances l_i of the data along their principal directions, `(d,)`: the eigenvalues of the
            covariance, all of them, in any order.
        water_level: The squared error w of each active dimension.
        distortion: The squared error D of a row, sum_i D_i, instead of the water level.
        latent_dim: How many dimensions can be described at most: those with the largest variances. None: all.

    Raises:
        TypeError: An argument is no number.
        ValueError: A variance is negative or not finite, the water level is not positive, or the distortion is
            none that the curve has.

    Example:
        >>> print(reverse_water_filling([4.0, 2.0, 0.5], water_level=1.0))
        rate           1.040 nats
        squared error  2.5
        active         2 of 3 dimensions
        water level    1
        >>> reverse_water_filling([4.0, 2.0, 0.5], distortion=2.5).water_level
        1.0
    """
    variances = numbers_of("eigenvalues", eigenvalues, 1)
    # Those of a singular covariance are 0 but for rounding, which goes to both sides.
    rounded = (variances < 0) & (variances > -ROUNDING * variances.max())
    variances = variances.masked_fill(rounded, 0.0)
    if not (bool(variances.isfinite().all()) and bool((variances >= 0).all())):
        raise ValueError("eigenvalues must be finite and not negative: they are variances")
    if latent_dim is not None:
        require_count("latent_dim", latent_dim)
    order = variances.argsort(descending=True, stable=True)
    described = torch.zeros(len(variances), dtype=torch.bool)
    described[order[:latent_dim]] = True
    if (water_level is None) == (distortion is None):
        raise ValueError("give either water_level or distortion")
    if distortion is not None:
        water_level = _level(variances, described, distortion)
    level = require_positive("water_level", water_level)
    active = described & (variances > level)
    errors = torch.where(active, level, variances)
    ratio = torch.where(active, variances / level, 1.0)
    return WaterFilling(level, variances, active, errors, ratio.log() / 2)


def _level(variances: Tensor, described: Tensor, distortion: float) -> float:
    """The water level at which the squared errors have a given sum, which is linear between the variances."""
    total = require_positive("distortion", distortion)
    left = total - float(variances[~described].sum())
    levels = variances[described].sort().values
    most = float(levels.sum())
    if left <= 0 or left > most * (1 + 1e-12):
        raise ValueError(
            f"distortion must be above {total - left:.6g} and at most {total - left + most:.6g}, the variance "
            f"of the data, got {distortion}"
        )
    below = torch.cat([levels.new_zeros(1), levels.cumsum(0)[:-1]])
    # The level if the k smallest variances are below it, for each k.
    found = (left - below) / torch.arange(len(levels), 0, -1)
    return float(found[(found <= levels * (1 + 1e-12)).int().argmax()])


@dataclass(frozen=True)
class LinearOptimum(Result):
    """Result of `linear_optimum`: what beta-VAE reaches with a linear decoder.

    Attributes:
        noise_variance: s^2 of the decoder.
        beta: Weight of the rate.
        water: The point by reverse water-filling, at the water level beta s^2, in squared error.
        weight_eigenvalues: Eigenvalues of W W^T along the data's principal directions, `(d,)`.
    """

    noise_variance: float
    beta: float
    water: WaterFilling
    weight_eigenvalues: Tensor

    @property
    def rate(self) -> float:
        """E KL(q(z | x) || p(z)), nats per row."""
        return self.water.rate

    @property
    def squared_error(self) -> float:
        """E |x - W z - mu|^2 of a row."""
        return self.water.distortion

    @property
    def distortion(self) -> float:
        """-E log p(x | z) = d/2 log(2 pi s^2) + squared error / (2 s^2), nats per row."""
        size = len(self.weight_eigenvalues)
        normalizer = size / 2 * math.log(2 * math.pi * self.noise_variance)
        return normalizer + self.squared_error / (2 * self.noise_variance)

    @property
    def elbo(self) -> float:
        """-(rate + distortion), nats per row."""
        return -(self.rate + self.distortion)

    @property
    def active(self) -> Tensor:
        """Which of the data's dimensions a latent describes: those with l_i > beta s^2, `(d,)`."""
        return self.water.active

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        return [
            ("rate", f"{self.rate:.3f} nats"),
            ("distortion", f"{self.distortion:.3f} nats"),
            ("squared error", f"{self.squared_error:.4g}"),
            ("active", f"{int(self.active.sum())} of {len(self.active)} dimensions"),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """The numbers of `to_dict`."""
        return {
            "unit": "nats",
            "noise_variance": self.noise_variance,
            "beta": self.beta,
            "rate": self.rate,
            "distortion": self.distortion,
            "squared_error": self.squared_error,
            "elbo": self.elbo,
            "active": int(self.active.sum()),
        }


def linear_optimum(
    eigenvalues: ArrayLike | Tensor,
    noise_variance: float,
    beta: float = 1.0,
    *,
    latent_dim: int | None = None,
) -> LinearOptimum:
    """Rate and distortion of beta-VAE with a linear decoder, at its optimum.

    The model is z ~ N(0, I), x = W z + mu + s eps. The best guide is q(z | x) proportional to
    p(z) p(x | z)^(1 / beta): the posterior of the same W with the noise beta s^2. With it, distortion +
    beta rate is -beta log N(x; mu, W W^T + beta s^2 I) and a constant, so that the best W is that of
    probabilistic PCA with the noise beta s^2: W W^T has the eigenvalues l_i - beta s^2 where l_i > beta s^2,
    and 0 elsewhere. The posterior variance of such a dimension is beta s^2 / l_i, so

        R_i = 1/2 log(l_i / (beta s^2)),   D_i = min(beta s^2, l_i),

    which is reverse water-filling at the level beta s^2; D is the squared error. The decoder itself keeps its
    noise s^2: under the model, x has the variance l_i - (beta - 1) s^2 there, not l_i. In nats the distortion
    is d/2 log(2 pi s^2) + D / (2 s^2), so the slope dR/dD is -1 / beta.

    Args:
        eigenvalues: Eigenvalues l_i of the data's covariance (1/n) sum (x - mu)(x - mu)^T, all d of them.
        noise_variance: s^2 of the decoder, which is not trained. Where it is trained, see
            `ProbabilisticPCA.maximum_likelihood` for the best s^2 at a given beta.
        beta: Weight of the rate.
        latent_dim: Dimensions of z; None: at least as many as x has.

    Raises:
        TypeError: An argument is no number.
        ValueError: A variance is negative or not finite, or `noise_variance` or `beta` is not positive.

    Example:
        >>> found = linear_optimum([4.0, 2.0, 0.5], noise_variance=0.5, beta=2.0)
        >>> found.active.tolist(), found.weight_eigenvalues.tolist(), found.squared_error
        ([True, True, False], [3.0, 1.0, 0.0], 2.5)
    """
    variance = require_positive("noise_variance", noise_variance)
    level = require_positive("beta", beta) * variance
    water = reverse_water_filling(eigenvalues, level, latent_dim=latent_dim)
    weights = torch.where(water.active, water.eigenvalues - level, 0.0)
    return LinearOptimum(variance, float(beta), water, weights)
