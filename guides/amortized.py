"""The skeleton of an amortized guide: encoder, linear head, and the family that the subclass adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import (
    MLP,
    Context,
    Network,
    Rebuildable,
    full_precision,
    linear_head,
    require_at_least_one,
    require_data_shape,
    require_object,
    require_one_each,
)

Family = TypeVar("Family", bound=dist.TorchDistribution, covariant=True)
"""The class of the distributions that a guide's `family` returns."""


class Amortized(Rebuildable, nn.Module, ABC, Generic[Family]):
    """q(z | x) = family(head(encoder(x))): a network reads each row and names a q of the family.

    A guide of your own derives from this class, says how outputs become a distribution, and
    how many it needs. Every vector of real numbers should be a valid output. A guide with
    more arguments sets those that `num_outputs` needs before it calls this constructor.

    The site is `z`, inside `pyro.plate("data", n, dim=-1)`; if it has finitely many values, it is
    marked for enumeration. The encoder runs once per row, however many samples are drawn.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions, the model's.
        network: What the encoder is built from.
        context: What the rows come with, such as `Labels(10)`, for a model that is given it, too: the guide is
            q(z | x, c) then, and runs on `(x, c)`.

    Raises:
        ValueError: `latent_dim` is not positive.
        TypeError: The encoder does not have the integer attribute `out_features`.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from torch.nn.functional import softplus
        >>> from ppl_vae.guides import Amortized
        >>> class LaplaceGuide(Amortized):
        ...     def family(self, outputs):
        ...         loc, scale = outputs.chunk(2, -1)
        ...         return dist.Laplace(loc, softplus(scale) + 1e-6).to_event(1)
        ...
        ...     @property
        ...     def num_outputs(self):
        ...         return 2 * self.latent_dim
        >>> guide = LaplaceGuide((1, 8, 8), latent_dim=2)
        >>> guide.encode(torch.rand(5, 1, 8, 8)).stddev.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        context: Context | None = None,
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_at_least_one(self, latent_dim=latent_dim)
        require_object(self, "network", network, "encoder", "MLP()")
        if context is not None:
            require_object(self, "context", context, "size", "Labels(10)")
        self.latent_dim = latent_dim
        self.context = context
        self.encoder = (
            network.encoder(data_shape)
            if context is None
            else network.encoder_of_both(data_shape, context.size)
        )
        self.head = linear_head(self.encoder, self.num_outputs)
        with torch.no_grad():
            self.start_head()

    @abstractmethod
    def family(self, outputs: Tensor) -> Family:
        """The distribution q that outputs of `amortize` describe.

        Args:
            outputs: Any real numbers, `(*batch, num_outputs)`.

        Returns:
            A distribution of batch shape `batch`.
        """

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many outputs of the head describe the q of one row."""

    def start_head(self) -> None:
        """Sets weights of the new head, if the family needs a start that differs from a linear layer's."""

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The encoder's features of data `(*batch, *data_shape)` and their context: `(*batch, out_features)`.

        Raises:
            TypeError: The guide was built with a context, and there is none; or without, and there is one.
        """
        name = type(self).__name__
        if self.context is None:
            if c is not None:
                raise TypeError(
                    f"{name} was built to read the data alone, but is given labels or other context beside "
                    f"them: build it with context=Labels(...) or Attributes(...) of ppl_vae.networks"
                )
            features: Tensor = self.encoder(x)
            return features
        if c is None:
            raise TypeError(
                f"{name} was built with context={self.context}, but is given the data alone: pass both, (x, c)"
            )
        features = self.encoder(x, self.context(c))
        return features

    def amortize(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The outputs for data `(*batch, *data_shape)`, and context if any: `(*batch, num_outputs)`."""
        return full_precision(self.head(self.features(x, c)))

    def encode(self, x: Tensor, c: Tensor | None = None) -> Family:
        """q(z | x) for data `(*batch, *data_shape)`, or q(z | x, c): batch shape `batch`."""
        return self.family(self.amortize(x) if c is None else self.amortize(x, c))

    def forward(self, x: Tensor, c: Tensor | None = None) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`, and its context `c` if it was built with one.

        Raises:
            TypeError: As from `features`.
            ValueError: There is not one label, or one vector of attributes, for each row.
        """
        if self.context is not None and c is not None:
            require_one_each(self, self.context, c, x.shape[0])
        sample_z(self.encode(x, c), x.shape[0])
