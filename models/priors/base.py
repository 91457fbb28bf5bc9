"""The description of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn


class Prior(ABC):
    """What a model needs to build its p(z).

    To write one of your own, derive from this class and give it `build`.
    """

    @abstractmethod
    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """Builds p(z).

        Args:
            data_shape: Shape of one row of the data.
            latent_dim: Number of latent dimensions.

        Returns:
            A module whose `forward()` returns a distribution of batch shape `()` and event shape
            `(latent_dim,)`. For `ppl_vae.refit_prior` it has a method `fit_to(mean, variance, draws)`
            that maximizes E_q log p(z), given the moments of each row's q(z | x), `(n, latent_dim)`,
            and draws from it, `(num_draws, n, latent_dim)`. If a part of it has a method
            `attach_guide(guide)`, `load_run` and the command line call it. It then also has
            `keep_guide()`, which makes a copy of the guide a part of the model.
        """
