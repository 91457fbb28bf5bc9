"""Amortised guides that are normalising flows, from zuko."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform, Independent, Normal
from torch.nn.functional import softplus

from ppl_vae.distributions import FlowDistribution, shrink_to_identity, zuko
from ppl_vae.networks import MLP, Network, full_precision, linear_head


class _ConditionalFlow(nn.Module):
    """z = loc(x) + scale(x) T(noise; x), with loc, scale and T's context from one encoder.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number of latent dimensions.
        network: what the encoder is built from.
        transforms: number of autoregressive layers, in alternating orders.
        hidden: widths of the hidden layers of each.
        univariate: zuko's transform of a single number.
        shapes: the shapes of its parameters.
        fast_sampling: whether a sample (or the density of a given value) takes one pass.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        network: Network,
        transforms: int,
        hidden: Sequence[int],
        univariate: Callable[..., Any],
        shapes: Sequence[Sequence[int]],
        fast_sampling: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for option, value in (("latent_dim", latent_dim), ("transforms", transforms)):
            if value < 1:
                raise ValueError(f"{name}.{option} must be at least 1, came {value}")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"{name}.hidden must hold positive widths, came {tuple(hidden)}")
        self.latent_dim = latent_dim
        self.encoder = network.encoder(data_shape)
        self.head = linear_head(self.encoder, 2 * latent_dim)
        to_noise = zuko.flows.MAF(
            latent_dim,
            context=self.head.in_features,
            transforms=transforms,
            hidden_features=tuple(hidden),
            univariate=univariate,
            shapes=[Size(shape) for shape in shapes],
        ).transform
        shrink_to_identity(to_noise)
        self.to_noise = to_noise.inv if fast_sampling else to_noise

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> FlowDistribution:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))

    def amortise(self, x: Tensor) -> Tensor:
        """Return loc, scale and context of data `(*batch, *data_shape)`: `(*batch, num_outputs)`."""
        context = self.encoder(x)
        return torch.cat([full_precision(self.head(context)), full_precision(context)], -1)

    def family(self, outputs: Tensor) -> FlowDistribution:
        """Return the q(z | x) that outputs of `amortise` (any real numbers) stand for."""
        d = self.latent_dim
        loc, scale, context = outputs.split([d, d, outputs.shape[-1] - 2 * d], -1)
        standardised = AffineTransform(loc, softplus(scale) + 1e-6, event_dim=1).inv
        transform = zuko.transforms.ComposedTransform(standardised, self.to_noise(context))
        noise = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
        return FlowDistribution(zuko.distributions.NormalizingFlow(transform, noise))


class MaskedAutoregressive(_ConditionalFlow):
    """q(z | x): a masked autoregressive flow on top of the mean-field guide.

    z = loc(x) + scale(x) T(noise; h(x)). In each layer of T, number i of the result is an affine
    function of number i of its input, whose coefficients depend on the numbers 1 .. i - 1 of the
    *result* and on the encoder's features h(x) ("Masked Autoregressive Flow for Density
    Estimation", arXiv:1705.07057). So the density of any given z takes one pass through each layer,
    but a sample takes one for each of its dimensions: `InverseAutoregressive` trains faster. T
    starts near the identity: at first q is that of `MeanField`. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however many samples are drawn.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number of latent dimensions, the model's. With one, q is normal.
        network: what the encoder is built from.
        transforms: number of layers of T, in alternating orders of the dimensions.
        hidden: widths of the hidden layers of the network of each.

    Raises:
        ValueError: a number is not positive, or `hidden` is empty.

    Example:
        >>> guide = MaskedAutoregressive((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(
            data_shape, latent_dim, network, transforms, hidden, _affine, ((), ()), False
        )


class InverseAutoregressive(_ConditionalFlow):
    """q(z | x): an inverse autoregressive flow on top of the mean-field guide.

    z = loc(x) + scale(x) T(noise; h(x)). In each layer of T, number i of the result is an affine
    function of number i of its input, whose coefficients depend on the numbers 1 .. i - 1 of the
    *input* and on the encoder's features h(x) ("Improving Variational Inference with Inverse
    Autoregressive Flow", arXiv:1606.04934). So a sample and its density take one pass through each
    layer; the density of a value that was not just drawn takes one for each of its dimensions. T
    starts near the identity: at first q is that of `MeanField`. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however many samples are drawn.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number of latent dimensions, the model's. With one, q is normal.
        network: what the encoder is built from.
        transforms: number of layers of T, in alternating orders of the dimensions.
        hidden: widths of the hidden layers of the network of each.

    Raises:
        ValueError: a number is not positive, or `hidden` is empty.

    Example:
        >>> guide = InverseAutoregressive((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(
            data_shape, latent_dim, network, transforms, hidden, _affine, ((), ()), True
        )


class NeuralSpline(_ConditionalFlow):
    """q(z | x): an autoregressive neural spline flow on top of the mean-field guide.

    z = loc(x) + scale(x) T(noise; h(x)), as in `InverseAutoregressive`, but each number goes through
    a monotonic rational-quadratic spline on [-5, 5], and unchanged outside of it ("Neural Spline
    Flows", arXiv:1906.04032); so q can have several modes even in one dimension. A sample and its
    density take one pass through each layer; the density of a value that was not just drawn takes
    one for each of its dimensions. T starts near the identity: at first q is that of `MeanField`.
    The site is `z`, inside `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however
    many samples are drawn.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number of latent dimensions, the model's.
        network: what the encoder is built from.
        transforms: number of layers of T, in alternating orders of the dimensions.
        hidden: widths of the hidden layers of the network of each.
        bins: number of pieces of each spline.

    Raises:
        ValueError: a number is not positive, `bins` is 1, or `hidden` is empty.

    Example:
        >>> guide = NeuralSpline((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
    ) -> None:
        if bins < 2:
            raise ValueError(f"NeuralSpline.bins must be at least 2, came {bins}")
        shapes = ((bins,), (bins,), (bins - 1,))
        super().__init__(data_shape, latent_dim, network, transforms, hidden, _spline, shapes, True)


# Under autocast the flow's networks return bfloat16, in which scale and log scale disagree.


def _affine(*parameters: Tensor) -> Any:
    return zuko.transforms.MonotonicAffineTransform(*map(full_precision, parameters))


def _spline(*parameters: Tensor) -> Any:
    return zuko.transforms.MonotonicRQSTransform(*map(full_precision, parameters))
