"""What the mixtures whose only latent is the component have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.mixtures.components import require_enough
from ppl_vae.models.rows import RowModel, as_vectors
from ppl_vae.networks import require_at_least_one, require_room


class Mixture(RowModel):
    """z ~ Categorical(pi) and x ~ p(x | z).

    Args:
        data_shape: Shape of one row of the data, of D values.
        components: Number k of components.

    Attributes:
        logits: log pi up to a constant, `(k,)`.

    Raises:
        ValueError: `components` is not positive.
    """

    def __init__(self, data_shape: Sequence[int], components: int) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, components=components)
        require_room(self, "choose fewer components", components, math.prod(self.data_shape))
        self.components = components
        self.logits = nn.Parameter(torch.zeros(components))

    @abstractmethod
    def _component(self, z: Tensor, dtype: torch.dtype) -> dist.TorchDistribution:
        """p(x | z) for components `(*batch)`, for data of a dtype; see `decode`."""

    @abstractmethod
    def _log_joint(self, rows: Tensor) -> Tensor:
        """log p(x, z) of all components, `(k, n)`, for rows `(n, D)`; differentiable."""

    @abstractmethod
    def _start(self, rows: Tensor, seed: int) -> None:
        """Sets the parameters that EM starts from, for rows `(n, D)` in float64; see `initialize`."""

    def _program(self, x: Tensor) -> None:
        x = x.to(self._rows(x).dtype)
        z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
        pyro.sample("x", self._component(z, x.dtype), obs=x)

    def check_start(self, x: Tensor) -> None:
        """Raises an error if EM cannot start from `x`, before any work.

        Raises:
            ValueError: `x` has fewer rows than there are components.
        """
        require_enough(self.components, "components", len(x), "rows")

    @torch.no_grad()
    def initialize(self, x: Tensor, seed: int) -> None:
        """Starts EM from k-means++: each component has the rows nearest to its seed.

        Args:
            x: Data, `(n, *data_shape)`.
            seed: Random seed of k-means++.

        Raises:
            ValueError: `x` has rows of another shape, or fewer rows than there are components.
        """
        self._start(self._rows(x).double(), seed)

    def prior(self) -> dist.Categorical:
        """p(z), of event shape `()`."""
        return dist.Categorical(logits=self.logits)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for components `(*batch)`: batch shape `batch`, event shape `data_shape`."""
        return self._component(z, self.logits.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return self._log_joint(self._rows(x)).logsumexp(0)

    def posterior(self, x: Tensor) -> dist.Categorical:
        """p(z | x), of batch shape `(n,)`. Gradients flow into the parameters.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return dist.Categorical(logits=self._log_joint(self._rows(x)).T)

    def _rows(self, x: Tensor) -> Tensor:
        """Flattens the rows to `(n, D)`, in a floating dtype that loses nothing of data or parameters.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return as_vectors(self, x).to(torch.promote_types(x.dtype, self.logits.dtype))
