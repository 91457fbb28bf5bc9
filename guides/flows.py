"""Amortized guides that are normalizing flows, from zuko."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import AffineTransform, Independent, Normal

from ppl_vae.distributions import (
    FlowDistribution,
    MonotonicSpline,
    shrink_to_identity,
    zuko,
)
from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import positive
from ppl_vae.networks import (
    MLP,
    Context,
    Network,
    full_precision,
    require_at_least,
    require_at_least_one,
    require_widths,
)


class AutoregressiveFlow(Amortized[FlowDistribution]):
    """z = loc(x) + scale(x) T(noise; h(x)): an autoregressive flow T on top of the mean-field guide.

    loc, scale and the features h come from one encoder. T starts near the identity:
    at first q is that of `MeanField`. A subclass says which transform of a single number the layers
    of T are made of, the shapes of its parameters, and which direction is fast.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions, the model's.
        network: What the encoder is built from.
        transforms: Number of layers of T, in alternating orders of the dimensions.
        hidden: Widths of the hidden layers of the network of each.
        context: See `Amortized`.

    Attributes:
        univariate: zuko's transform of a single number.
        shapes: The shapes of its parameters.
        fast_sampling: Whether a sample takes one pass through each layer, or else the density of a
            given value; the other takes one for each of the dimensions.

    Raises:
        ValueError: A number is not positive, or `hidden` is empty.
    """

    univariate: ClassVar[Callable[..., Any]]
    shapes: Sequence[Sequence[int]]
    fast_sampling: ClassVar[bool]

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        context: Context | None = None,
    ) -> None:
        require_at_least_one(self, transforms=transforms)
        require_widths(self, hidden=hidden)
        super().__init__(data_shape, latent_dim, network, context)
        to_noise = zuko.flows.MAF(
            latent_dim,
            context=self.head.in_features,
            transforms=transforms,
            hidden_features=tuple(hidden),
            univariate=partial(_in_full_precision, self.univariate),
            shapes=[Size(shape) for shape in self.shapes],
        ).transform
        shrink_to_identity(to_noise)
        self.to_noise = to_noise.inv if self.fast_sampling else to_noise

    def amortize(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """(loc, s, features) for data `(*batch, *data_shape)`: `(*batch, num_outputs + out_features)`."""
        features = self.features(x, c)
        return torch.cat([full_precision(self.head(features)), full_precision(features)], -1)

    def family(self, outputs: Tensor) -> FlowDistribution:
        """The flow for outputs (loc, s, features)."""
        d = self.latent_dim
        loc, scale, features = outputs.split([d, d, outputs.shape[-1] - 2 * d], -1)
        standardized = AffineTransform(loc, positive(scale), event_dim=1).inv
        transform = zuko.transforms.ComposedTransform(standardized, self.to_noise(features))
        noise = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
        return FlowDistribution(zuko.distributions.NormalizingFlow(transform, noise))

    @property
    def num_outputs(self) -> int:
        """Two per latent dimension, loc and s; the features are not of the head but of the encoder."""
        return 2 * self.latent_dim


def _in_full_precision(univariate: Callable[..., Any], *parameters: Tensor) -> Any:
    """Under autocast the flow's networks return bfloat16, in which scale and log scale disagree."""
    return univariate(*map(full_precision, parameters))


class MaskedAutoregressive(AutoregressiveFlow):
    """q(z | x): a masked autoregressive flow on top of the mean-field guide.

    See `AutoregressiveFlow` for the arguments. In each layer, number i of the result
    is an affine function of number i of its input, whose coefficients depend on the numbers
    1 .. i - 1 of the *result* and on the encoder's features h(x) ("Masked Autoregressive Flow for
    Density Estimation", arXiv:1705.07057). So the density of any given z takes one pass through
    each layer, but a sample takes one for each of its dimensions: `InverseAutoregressive` trains
    faster. With one latent dimension q is normal.

    Example:
        >>> guide = MaskedAutoregressive((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    univariate = zuko.transforms.MonotonicAffineTransform
    shapes = ((), ())
    fast_sampling = False


class InverseAutoregressive(AutoregressiveFlow):
    """q(z | x): an inverse autoregressive flow on top of the mean-field guide.

    See `AutoregressiveFlow` for the arguments. In each layer, number i of the result
    is an affine function of number i of its input, whose coefficients depend on the numbers
    1 .. i - 1 of the *input* and on the encoder's features h(x) ("Improving Variational Inference
    with Inverse Autoregressive Flow", arXiv:1606.04934). So a sample and its density take one pass
    through each layer; the density of a value that was not just drawn takes one for each of its
    dimensions. With one latent dimension q is normal.

    Example:
        >>> guide = InverseAutoregressive((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(5, 1, 8, 8)).rsample((3,)).shape
        torch.Size([3, 5, 2])
    """

    univariate = zuko.transforms.MonotonicAffineTransform
    shapes = ((), ())
    fast_sampling = True


class NeuralSpline(AutoregressiveFlow):
    """q(z | x): an autoregressive neural spline flow on top of the mean-field guide.

    See `AutoregressiveFlow` for the other arguments. It is like
    `InverseAutoregressive`, and as fast, but each number goes through a monotonic
    rational-quadratic spline on [-5, 5], and is unchanged outside ("Neural Spline Flows",
    arXiv:1906.04032); so q can have several modes even in one dimension.

    Args:
        bins: Number of pieces of each spline.

    Raises:
        ValueError: A number is not positive, `bins` is 1, or `hidden` is empty.

    Example:
        >>> guide = NeuralSpline((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    univariate = MonotonicSpline
    fast_sampling = True

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        context: Context | None = None,
    ) -> None:
        require_at_least(self, 2, bins=bins)
        # Of widths, heights and slopes; set first, because the flow is built from it.
        self.shapes = ((bins,), (bins,), (bins - 1,))
        super().__init__(data_shape, latent_dim, network, transforms, hidden, context)
