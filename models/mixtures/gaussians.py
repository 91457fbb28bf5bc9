"""What the models whose components, or states, are Gaussian have in common."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_vae.models.mixtures.covariances import covariance_of_kind
from ppl_vae.networks import require_positive, require_room


class Gaussians(nn.Module):
    """k Gaussians of D dimensions, a part of a model: their parameters, and how the M step sets them.

    A model derives from this class too, and calls `_create_gaussians` in its constructor.

    Attributes:
        means: mu, `(k, D)`.
        covariance: Module with the unconstrained parameters of the covariances.
        centre: The point about which EM takes moments, `(D,)`. It keeps them from canceling far from the
            origin, and stays where `initialize` puts it, so that statistics of different steps add up.
        min_scale: Least standard deviation in any direction that the M step sets.
    """

    centre: Tensor

    def _create_gaussians(
        self, k: int, shape: Sequence[int], covariance: str, min_scale: float
    ) -> None:
        """Creates the parameters of k Gaussians for values of a shape.

        Raises:
            ValueError: `min_scale` is not positive, or `covariance` is no kind of covariance.
        """
        require_positive(self, min_scale=min_scale)
        self.min_scale = min_scale
        size = math.prod(shape)
        most = size * size if covariance in ("full", "tied") else size
        few = 'choose fewer components or states, smaller rows, or covariance="diagonal"'
        require_room(self, few, 1 if covariance == "tied" else k, most)
        # Equal means would stay equal: start apart.
        self.means = nn.Parameter(torch.randn(k, size))
        self.covariance = covariance_of_kind(self, covariance, k, size)
        self.register_buffer("centre", torch.zeros(size))

    def _maximize_gaussians(
        self, means: Tensor, second: Tensor, counts: Tensor, empty: Tensor, name: str
    ) -> None:
        """Sets the means, and the covariances to their maximizer; warns of those raised to `min_scale`^2.

        Args:
            means: The new means, about `centre`, `(k, D)`.
            second: Second moments about `centre`, as the kind of covariance takes them.
            counts: Expected rows of each Gaussian, positive, `(k,)`.
            empty: Which of them have no rows, `(k,)`; the warning leaves them out.
            name: What the warning calls them, such as "components".
        """
        floored = self.covariance.maximize(second, counts, means, self.min_scale**2)
        self.means.copy_(means + self.centre)
        narrow = [k for k in floored if not empty[k]]
        if narrow:
            warnings.warn(
                f"variances of {name} {narrow} would fall below min_scale^2 and were raised to it",
                stacklevel=3,
            )
