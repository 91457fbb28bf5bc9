"""Amortized guides for two layers of latents, from the data upwards and from the top downwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.guides.parts import independent_normal
from ppl_vae.networks import (
    MLP,
    Network,
    Rebuildable,
    full_precision,
    linear_head,
    require_data_shape,
    require_latent_dims,
    require_object,
)


class _TwoLayers(Rebuildable, nn.Module):
    """An encoder and a head for each of z1 and z2."""

    reads_features: ClassVar[bool]
    """Whether the encoder of z2 reads the features of x, or else z1."""

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (20, 10),
        network: Network = MLP(),  # frozen
        latent_network: Network = MLP(hidden=(64, 64)),  # frozen
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_latent_dims(self, latent_dims)
        for name, given in (("network", network), ("latent_network", latent_network)):
            require_object(self, name, given, "encoder", "MLP()")
        below, top = latent_dims
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, 2 * below)
        top_input = self.head.in_features if self.reads_features else below
        self.top_encoder = latent_network.encoder((top_input,))
        self.top_head = linear_head(self.top_encoder, 2 * top)


class BottomUp(_TwoLayers):
    """q(z1 | x) q(z2 | z1): the model's chain in reverse.

    Both are normal with independent dimensions, as in "Importance Weighted Autoencoders"
    (arXiv:1509.00519); the scales are softplus(s) + 1e-6. z2 is independent of x given z1, as it is
    in the true posterior. Because z1 comes first here and last in the model, the KL of z1 has no
    closed form: `ELBO` uses `TraceELBO` for this guide. The sites are `z1` and `z2`, inside
    `pyro.plate("data", n, dim=-1)`. The encoder of x runs once per row, that of z1 for every sample.

    Args:
        data_shape: Shape of one row of the data.
        latent_dims: Numbers of dimensions of z1 and z2, the model's.
        network: What the encoder of x is built from.
        latent_network: What the encoder of z1 is built from.

    Raises:
        ValueError: `latent_dims` are not two positive numbers.

    Example:
        >>> guide = BottomUp((1, 8, 8), latent_dims=(4, 2), network=MLP(hidden=(32,)))
        >>> z1 = guide.encode(torch.rand(5, 1, 8, 8)).sample()
        >>> guide.encode_top(z1).event_shape
        torch.Size([2])
    """

    reads_features = False

    def forward(self, x: Tensor) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", self.encode(x))
            pyro.sample("z2", self.encode_top(z1))

    def encode(self, x: Tensor) -> dist.Independent:
        """q(z1 | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return _normal(self.head(self.encoder(x)))

    def encode_top(self, z1: Tensor) -> dist.Independent:
        """q(z2 | z1) for z1 of `(*batch, latent_dims[0])`: batch shape `batch`."""
        return _normal(self.top_head(self.top_encoder(z1)))


class TopDown(_TwoLayers):
    """q(z2 | x) q(z1 | z2, x), where q(z1 | z2, x) is p(z1 | z2) times what x says about z1.

    The ladder ("Ladder Variational Autoencoders", arXiv:1602.02282). On the way up the encoder gives
    for each row N(m1, diag(s1^2)) for z1, and from the same features q(z2 | x) = N(m2, diag(s2^2)).
    On the way down the model's p(z1 | z2) = N(mp, diag(sp^2)) is multiplied by the former,

        q(z1 | z2, x) = N(s^2 (m1 / s1^2 + mp / sp^2), diag(s^2)),  1 / s^2 = 1 / s1^2 + 1 / sp^2,

    so that the encoder only learns what the likelihood adds: p(z1 | z2, x) is proportional to
    p(z1 | z2) p(x | z1). The scales are softplus(s) + 1e-6. The sites are `z2` and `z1`, in the
    model's order, inside `pyro.plate("data", n, dim=-1)`. The encoder runs once per row, the model's
    p(z1 | z2) for every sample; gradients flow through it into the model's parameters, which do not
    become the guide's.

    Args:
        model: A model with `conditional(z2)`, p(z1 | z2), such as `HierarchicalVAE`.
        data_shape: Shape of one row of the data.
        latent_dims: Numbers of dimensions of z1 and z2, the model's.
        network: What the encoder of x is built from.
        latent_network: What the encoder from its features to those of z2 is built from.

    Raises:
        TypeError: The model has no `conditional`.
        ValueError: `latent_dims` are not two positive numbers.

    Example:
        >>> from ppl_vae.models import HierarchicalVAE
        >>> model = HierarchicalVAE((1, 8, 8), latent_dims=(4, 2), network=MLP(hidden=(32,)))
        >>> guide = TopDown(model, (1, 8, 8), latent_dims=(4, 2), network=MLP(hidden=(32,)))
        >>> evidence, top = guide.encode(torch.rand(5, 1, 8, 8))
        >>> guide.combine(evidence, top.sample()).event_shape
        torch.Size([4])
    """

    reads_features = True

    def __init__(
        self,
        model: nn.Module,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (20, 10),
        network: Network = MLP(),  # frozen
        latent_network: Network = MLP(hidden=(64, 64)),  # frozen
    ) -> None:
        super().__init__(data_shape, latent_dims, network, latent_network)
        conditional = getattr(model, "conditional", None)
        if not callable(conditional):
            raise TypeError(
                f"TopDown needs a model with a method conditional(z2), the normal p(z1 | z2), but "
                f"{type(model).__name__} has none; use BottomUp, or HierarchicalVAE for the model"
            )
        # The method, not the model: a module would be registered, and so would its parameters.
        self._conditional: Callable[[Tensor], dist.TorchDistribution] = conditional

    def forward(self, x: Tensor) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`."""
        evidence, top = self.encode(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", top)
            pyro.sample("z1", self.combine(evidence, z2))

    def encode(self, x: Tensor) -> tuple[dist.Independent, dist.Independent]:
        """N(m1, diag(s1^2)) and q(z2 | x) for data `(*batch, *data_shape)`."""
        features = self.encoder(x)
        return _normal(self.head(features)), _normal(self.top_head(self.top_encoder(features)))

    def combine(self, evidence: dist.Independent, z2: Tensor) -> dist.Independent:
        """q(z1 | z2, x), the product of `evidence` and p(z1 | z2), for any number of samples of z2."""
        prior = self._conditional(z2)
        total = torch.hypot(evidence.stddev, prior.stddev)
        share = prior.stddev / total  # its square is the weight of the evidence
        loc = prior.mean + share.square() * (evidence.mean - prior.mean)
        return dist.Independent(dist.Normal(loc, share * evidence.stddev), 1)


def _normal(outputs: Tensor) -> dist.Independent:
    return independent_normal(full_precision(outputs))
