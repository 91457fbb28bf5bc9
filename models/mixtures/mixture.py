"""What the mixtures whose only latent is the component have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.arguments import require_at_least_one
from ppl_vae.models.rows import as_vectors


class Mixture(nn.Module, ABC):
    """z ~ Categorical(pi) and x ~ p(x | z).

    Args:
        data_shape: shape of one row of the data, of D values.
        components: number k of components.

    Attributes:
        logits: log pi up to a constant, `(k,)`.

    Raises:
        ValueError: `components` is not positive.
    """

    def __init__(self, data_shape: Sequence[int], components: int) -> None:
        super().__init__()
        require_at_least_one(self, components=components)
        self.data_shape = tuple(data_shape)
        self.components = components
        self.logits = nn.Parameter(torch.zeros(components))

    @abstractmethod
    def _component(self, z: Tensor, dtype: torch.dtype) -> dist.TorchDistribution:
        """Return p(x | z) for components `(*batch)`, for data of a dtype; see `decode`."""

    @abstractmethod
    def _log_joint(self, rows: Tensor) -> Tensor:
        """Return log p(x, z) of all components, `(k, n)`, for rows `(n, D)`; differentiable."""

    def forward(self, x: Tensor) -> None:
        """Run the model on `x`, `(n, *data_shape)`.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        x = x.to(self._rows(x).dtype)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            pyro.sample("x", self._component(z, x.dtype), obs=x)

    def prior(self) -> dist.Categorical:
        """Return p(z), of event shape `()`."""
        return dist.Categorical(logits=self.logits)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x | z) for components `(*batch)`: batch shape `batch`, event shape `data_shape`."""
        return self._component(z, self.logits.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        return self._log_joint(self._rows(x)).logsumexp(0)

    def posterior(self, x: Tensor) -> dist.Categorical:
        """Return p(z | x), of batch shape `(n,)`. Gradients flow into the parameters.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        return dist.Categorical(logits=self._log_joint(self._rows(x)).T)

    def _rows(self, x: Tensor) -> Tensor:
        """Flatten the rows to `(n, D)`, in a floating dtype that loses nothing of data or parameters.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        return as_vectors(self, x).to(torch.promote_types(x.dtype, self.logits.dtype))
