"""Encoders to a grid of vectors, and decoders from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ppl_vae.networks.arguments import (
    require_at_least,
    require_at_least_one,
    require_object,
    require_room,
)
from ppl_vae.networks.base import Network, linear_head
from ppl_vae.networks.convolutional import as_picture
from ppl_vae.networks.grid_layers import (
    doubling,
    drawing_patches,
    embedding_patches,
    halving,
)
from ppl_vae.networks.mlp import MLP
from ppl_vae.runtime import require_flags


class GridNetwork(ABC):
    """What a model of codes and its guide need: several vectors for each row, on a grid.

    To write one of your own, derive from this class.
    """

    @abstractmethod
    def positions(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the grid for rows of a shape.

        Raises:
            ValueError: It has none for such rows.
        """

    @abstractmethod
    def grid_encoder(self, data_shape: Sequence[int], dim: int) -> nn.Module:
        """A module that maps rows `(*batch, *data_shape)` to vectors `(*batch, *positions, dim)`."""

    @abstractmethod
    def grid_decoder(self, dim: int, out_shape: Sequence[int]) -> nn.Module:
        """A module that maps vectors `(*batch, *positions, dim)` to `(*batch, *out_shape)`.

        `out_shape` is `(num_params, *data_shape)`: the positions are those of rows of that shape.
        """


@dataclass(frozen=True)
class Slots(GridNetwork):
    """So many vectors from a network that knows no grid, such as an MLP: all of them read the whole row.

    Args:
        count: Number of vectors.
        network: What builds encoder and decoder.

    Raises:
        TypeError: `count` is no whole number, or `network` no network.
        ValueError: `count` is not positive.

    Example:
        >>> import torch
        >>> network = Slots(4, MLP(hidden=(32,)))
        >>> network.grid_encoder((1, 8, 8), dim=3)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 4, 3])
    """

    count: int = 4
    network: Network = MLP()  # frozen

    def __post_init__(self) -> None:
        require_at_least_one(self, count=self.count)
        require_object(self, "network", self.network, "encoder", "MLP()")

    def positions(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """See `GridNetwork.positions`."""
        return (self.count,)

    def grid_encoder(self, data_shape: Sequence[int], dim: int) -> nn.Module:
        """See `GridNetwork.grid_encoder`."""
        encoder = self.network.encoder(data_shape)
        head = linear_head(encoder, self.count * dim)
        return nn.Sequential(encoder, head, nn.Unflatten(-1, (self.count, dim)))

    def grid_decoder(self, dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `GridNetwork.grid_decoder`."""
        return nn.Sequential(nn.Flatten(-2), self.network.decoder(self.count * dim, out_shape))


@dataclass(frozen=True)
class ConvolutionalGrid(GridNetwork):
    """The network of the VQ-VAE: strided convolutions, then residual blocks ("Neural Discrete Representation
    Learning", arXiv:1711.00937).

    Each of `halvings` convolutions (4x4, stride 2) halves the picture; `blocks` residual blocks (ReLU, 3x3,
    ReLU, 1x1) follow. The decoder goes the way back. There is no normalization over rows, and nothing knows the
    size of the picture, so that the built networks take pictures of other sizes, too: the vector at a position
    depends on the pixels up to `radius` away.

    With `patch_embedding=True`, as in a vision transformer (arXiv:2010.11929), one linear map makes a vector of
    each patch of 2^halvings x 2^halvings pixels, and residual blocks follow, whose 3x3 convolutions have all
    channels. The decoder ends with a linear map to such patches, which may leave edges between them. No layer
    works at the resolution of the picture, and there is a way through without a ReLU, on which the encoder can
    be a PCA of patches. Photos are learned in fewer steps (docs/codes.md has numbers).

    Args:
        channels: Channels inside.
        halvings: How often the picture is halved; height and width must be multiples of 2^halvings.
        blocks: Number of residual blocks, in the encoder and in the decoder.
        patch_embedding: Whether all halvings are one linear step.

    Raises:
        TypeError: A number is no whole number, or `patch_embedding` is neither True nor False.
        ValueError: One is out of its range; or, of the methods, the picture cannot be halved so often.

    Example:
        >>> import torch
        >>> network = ConvolutionalGrid(channels=8, halvings=2)
        >>> network.positions((3, 32, 48))
        (8, 12)
        >>> network.grid_encoder((3, 32, 48), dim=5)(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 8, 12, 5])
        >>> network.grid_decoder(5, (2, 3, 32, 48))(torch.rand(2, 8, 12, 5)).shape
        torch.Size([2, 2, 3, 32, 48])
    """

    channels: int = 64
    halvings: int = 2
    blocks: int = 2
    patch_embedding: bool = False

    def __post_init__(self) -> None:
        require_at_least_one(self, channels=self.channels)
        require_at_least(self, 0, halvings=self.halvings, blocks=self.blocks)
        require_flags(**{"ConvolutionalGrid.patch_embedding": self.patch_embedding})

    @property
    def stride(self) -> int:
        """Pixels per position, in height and in width."""
        return int(2**self.halvings)

    @property
    def radius(self) -> int:
        """How many pixels beside those of a position its vector depends on."""
        if self.patch_embedding:
            return self.stride * self.blocks
        return self.stride * (self.blocks + 1) + self.stride - 1

    def positions(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """See `GridNetwork.positions`."""
        _, height, width = as_picture(data_shape, "ConvolutionalGrid")
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"ConvolutionalGrid(halvings={self.halvings}) needs pictures whose height and width are "
                f"multiples of {self.stride}, got {height} x {width}: choose fewer halvings, or pad them"
            )
        return height // self.stride, width // self.stride

    def grid_encoder(self, data_shape: Sequence[int], dim: int) -> nn.Module:
        """See `GridNetwork.grid_encoder`."""
        self.positions(data_shape)
        channels = as_picture(data_shape, "ConvolutionalGrid")[0]
        self._require_room(channels, dim)
        if self.patch_embedding:
            net = embedding_patches(channels, self.channels, self.stride, self.blocks)
        else:
            net = halving(channels, self.channels, self.halvings, self.blocks)
        net.append(nn.Conv2d(self.channels, dim, 1))
        return PictureEncoder(net, tuple(data_shape), channels, self.stride, self.radius)

    def grid_decoder(self, dim: int, out_shape: Sequence[int]) -> nn.Module:
        """See `GridNetwork.grid_decoder`."""
        num_params, *data_shape = out_shape
        self.positions(data_shape)
        channels = num_params * as_picture(data_shape, "ConvolutionalGrid")[0]
        self._require_room(channels, dim)
        if self.patch_embedding:
            net = drawing_patches(dim, self.channels, channels, self.stride, self.blocks)
            radius = self.blocks + 1
        else:
            net = doubling(dim, self.channels, channels, self.halvings, self.blocks)
            # Each doubling reads the neighbors, of positions that become half as large.
            radius = self.blocks + 1 + 2 * bool(self.halvings)
        return PictureDecoder(net, tuple(out_shape), self.stride, radius)

    def _require_room(self, channels: int, dim: int) -> None:
        advice = "choose fewer ConvolutionalGrid.channels, or a smaller dim"
        if self.patch_embedding:
            require_room(self, advice, self.channels, max(channels * self.stride**2, dim))
            require_room(self, advice, self.channels, self.channels, 3, 3)
        else:
            require_room(self, advice, self.channels, max(self.channels, channels, dim), 4, 4)


class PictureEncoder(nn.Module):
    """Pictures `(*batch, *channels, h, w)`, of any size, to vectors `(*batch, h / stride, w / stride, dim)`.

    Args:
        net: Maps `(n, channels, h, w)` to `(n, dim, h / stride, w / stride)`.
        data_shape: Shape of the rows that it is built for.
        channels: Their channels.
        stride: Pixels per position.
        radius: How many pixels beside those of a position its vector depends on.
    """

    def __init__(
        self, net: nn.Module, data_shape: tuple[int, ...], channels: int, stride: int, radius: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.radius = radius
        self.net = net
        self.event_dim = len(data_shape)
        self.data_shape = data_shape
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - self.event_dim]
        if x.dim() < self.event_dim or math.prod(x.shape[len(batch) : -2]) != self.channels:
            raise ValueError(
                f"the network was built for pictures of shape {self.data_shape}, but the input has shape "
                f"{tuple(x.shape)}"
            )
        vectors: Tensor = self.net(x.reshape(-1, self.channels, *x.shape[-2:]))
        return vectors.movedim(-3, -1).reshape(*batch, *vectors.shape[-2:], vectors.shape[-3])


class PictureDecoder(nn.Module):
    """Vectors on a grid of any size to numbers of pictures, `(*batch, num_params, *channels, h, w)`.

    Args:
        net: Maps `(n, dim, h', w')` to `(n, num_params * channels, stride h', stride w')`.
        out_shape: `(num_params, *data_shape)` of the rows that it is built for.
        stride: Pixels per position.
        radius: How many positions beside its own a pixel depends on.
    """

    def __init__(
        self, net: nn.Module, out_shape: tuple[int, ...], stride: int, radius: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.radius = radius
        self.net = net
        self.leading = out_shape[:-2]

    def forward(self, vectors: Tensor) -> Tensor:
        batch = vectors.shape[:-3]
        out: Tensor = self.net(vectors.reshape(-1, *vectors.shape[-3:]).movedim(-1, -3))
        return out.reshape(*batch, *self.leading, *out.shape[-2:])
