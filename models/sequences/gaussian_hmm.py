"""The hidden Markov model with Gaussian emissions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ppl_vae.models.mixtures.components import positive_counts, require_enough
from ppl_vae.models.mixtures.gaussians import Gaussians
from ppl_vae.models.sequences.hidden_markov import HiddenMarkov
from ppl_vae.models.sequences.hidden_path import Statistics

MOST_STEPS = 20_000
"""The most steps, drawn at random, that k-means uses."""


class GaussianHMM(HiddenMarkov, Gaussians):
    """A hidden Markov model with x_t | z_t ~ N(mu_z, Sigma_z). See `HiddenMarkov`.

    Args:
        data_shape: Shape of one row of the data, `(T, *event)`; T may differ from call to call. Steps of
            any shape are flattened to D values; `(T,)` is a series of single numbers.
        states: Number K of states.
        covariance: "full", "diagonal", "tied" (one full covariance of all states) or "spherical".
        min_scale: Least standard deviation in any direction that the M step sets, in units of the data.
            Without it, a state on a single step has infinite density.

    Attributes:
        means: mu, `(K, D)`.
        covariance: Module with the unconstrained parameters of the covariances.

    Raises:
        ValueError: `states` or `min_scale` is not positive, `covariance` is none of the four, or
            `data_shape` has no steps.

    Example:
        >>> x = 4.0 * (torch.arange(60) // 10 % 2) + torch.randn(8, 60)
        >>> model = GaussianHMM((60, 1), states=2)
        >>> model.initialize(x.unsqueeze(-1), seed=0)
        >>> for _ in range(10):
        ...     model.maximize(model.expected_statistics(x.unsqueeze(-1)))
        >>> model.means.sort(0).values.round().flatten().tolist()
        [0.0, 4.0]
        >>> model.posterior(x.unsqueeze(-1)).mode.shape
        torch.Size([8, 60])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        states: int = 2,
        covariance: Literal["full", "diagonal", "tied", "spherical"] = "diagonal",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(data_shape, states)
        self._create_gaussians(states, self.data_shape[1:], covariance, min_scale)

    def check_start(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Raises an error if EM cannot start from `x`, before any work.

        Raises:
            ValueError: `x` has fewer steps than there are states.
        """
        steps = x.shape[:2].numel() if lengths is None else int(lengths.sum())
        require_enough(self.states, "states", steps, "steps")

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x_t | z_t) for states `(*batch)`: batch shape `batch`, event shape `event`."""
        return self.covariance.normal(self.means[z], z, self.data_shape[1:])

    def observe(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        rows, means = self._centered(steps)
        return self.covariance.density(means, rows.dtype)(rows)

    def emission_statistics(self, features: Tensor, steps: Tensor, weights: Tensor) -> Statistics:
        rows, means = self._centered(steps)
        first = weights @ rows
        second = self.covariance.second(weights, features)
        second = self.covariance.about_center(second, first, weights.sum(1), means)
        return {"first": first, "second": second}

    def maximize_emissions(self, statistics: Statistics) -> None:
        counts, empty = positive_counts(statistics["counts"], statistics["counts"].sum())
        old = (self.means - self.centre).double()
        means = torch.where(empty.unsqueeze(-1), old, statistics["first"] / counts.unsqueeze(-1))
        self._maximize_gaussians(means, statistics["second"], counts, empty, "states")

    def initialize_emissions(self, steps: Tensor, seed: int) -> Tensor:
        """Weights are one-hot: the nearest cluster of k-means (from k-means++) on at most 20,000 steps."""
        rows = steps.reshape(len(steps), -1).double()
        require_enough(self.states, "states", len(rows), "steps")
        self.centre.copy_(rows.mean(0))
        generator = torch.Generator().manual_seed(seed)
        few = torch.randperm(len(rows), generator=generator)[:MOST_STEPS].to(rows.device)
        kmeans = KMeans(self.states, n_init=1, random_state=seed % 2**32).fit(
            rows[few].cpu().numpy()
        )
        found = torch.as_tensor(kmeans.cluster_centers_, device=rows.device)
        labels = torch.cdist(rows, found).argmin(1)
        # Unit covariances about the center: whitened residuals are then the rows themselves.
        for parameter in self.covariance.parameters():
            parameter.zero_()
        self.means.copy_(self.centre.expand_as(self.means))
        return torch.nn.functional.one_hot(labels, self.states).double().T

    def split_emissions(self, source: int, target: int) -> None:
        self.covariance.split(self.means, source, target)

    def _centered(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        rows = steps.reshape(len(steps), -1).double()
        return rows - self.centre.double(), (self.means - self.centre).double()
