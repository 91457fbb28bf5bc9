"""The density of a latent of which nothing is assumed."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class Flat(dist.ImproperUniform):
    """The improper density 1 on all of R^d: log p(z) = 0, and no draws.

    It is no distribution, as it does not integrate to 1. A model with it has no p(x) and no ELBO, and
    `evaluate` says so; what is left of the ELBO is the distortion, -E log p(x | z). That is what an autoencoder
    minimizes.

    Args:
        size: d, the number of dimensions.

    Raises:
        NotImplementedError: Something is to be drawn from it.

    Example:
        >>> p = Flat(2)
        >>> p.log_prob(torch.ones(5, 2))
        tensor([0., 0., 0., 0., 0.])
        >>> p.sample()
        Traceback (most recent call last):
        NotImplementedError: the density of this latent is flat: it has no draws...
    """

    def __init__(self, size: int) -> None:
        super().__init__(constraints.real_vector, (), (size,))  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Flat:
        """The same density for a batch."""
        new = Flat(self.event_shape[0])
        new._batch_shape = torch.Size(batch_shape)
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Raises an error, as there is nothing to draw from."""
        raise NotImplementedError(
            "the density of this latent is flat: it has no draws. Give the model a density of its codes first: "
            "refit_prior(model, guide, x, MixturePrior()) of ppl_vae, or where the model has no part `prior`, "
            "sample another density in its place"
        )
