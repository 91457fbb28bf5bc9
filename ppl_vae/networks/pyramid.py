"""Grids of several levels, one above the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.networks.arguments import (
    require_at_least,
    require_at_least_one,
    require_room,
    require_widths,
)
from ppl_vae.networks.convolutional import as_picture
from ppl_vae.networks.grid_layers import (
    doubling,
    drawing_patches,
    embedding_patches,
    halving,
    reach,
    residual_head,
)
from ppl_vae.runtime import require_flags


@dataclass(frozen=True)
class GridPyramid:
    """Grids of several levels, each coarser than the one below: the network of the VQ-VAE-2.

    The encoder halves the picture `halvings[0]` times for the lowest grid, and so on upwards. A level is then
    encoded from the picture and from the codes of those above; the decoder goes from the highest level down,
    and joins each with what it has ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446).
    Layers are those of `ConvolutionalGrid`, and the built networks take pictures of other sizes, too.

    With `patch_embedding=True`, the picture comes to the lowest grid, and back, as in a `ConvolutionalGrid`
    with it: by one linear map of each patch of 2^halvings[0] x 2^halvings[0] pixels. The vectors of the codes
    are then a linear map of what a residual block gives, so that there is a way without a ReLU from a patch to
    its code.

    Args:
        channels: Channels inside.
        halvings: How often each level is halved, from the lowest, for which it is the picture.
        blocks: Number of residual blocks at each level, of encoder and decoder.
        patch_embedding: Whether the halvings of the picture, `halvings[0]`, are one linear step.

    Raises:
        TypeError: A number is no whole number, or `patch_embedding` is neither True nor False.
        ValueError: One is out of its range, or there is one level only; or, of the methods, the picture cannot
            be halved so often.

    Example:
        >>> network = GridPyramid(channels=8, halvings=(2, 1))
        >>> network.grids((3, 32, 48))
        ((8, 12), (4, 6))
    """

    channels: int = 64
    halvings: Sequence[int] = (2, 1)
    blocks: int = 2
    patch_embedding: bool = False

    def __post_init__(self) -> None:
        require_at_least_one(self, channels=self.channels)
        require_at_least(self, 0, blocks=self.blocks)
        require_widths(self, halvings=self.halvings)
        require_flags(**{"GridPyramid.patch_embedding": self.patch_embedding})
        object.__setattr__(self, "halvings", tuple(self.halvings))
        if len(self.halvings) < 2:
            raise ValueError(
                "GridPyramid.halvings must have a number for each of two or more levels, got "
                f"{self.halvings}: for one level take ConvolutionalGrid"
            )

    def grids(self, data_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The shape of each grid, from the lowest.

        Raises:
            ValueError: The picture cannot be halved so often.
        """
        _, height, width = as_picture(data_shape, "GridPyramid")
        all_of_them = 2 ** sum(self.halvings)
        if height % all_of_them or width % all_of_them:
            raise ValueError(
                f"GridPyramid(halvings={tuple(self.halvings)}) needs pictures whose height and width are "
                f"multiples of {all_of_them}, got {height} x {width}: choose fewer halvings, or pad them"
            )
        return tuple((height // s, width // s) for s in self.strides)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per position of each grid, in height and in width, from the lowest."""
        return tuple(2 ** sum(self.halvings[: i + 1]) for i in range(len(self.halvings)))

    def encoder(self, data_shape: Sequence[int], dims: Sequence[int]) -> PyramidEncoder:
        """What encodes rows of a shape to vectors of these sizes, one for each level from the lowest."""
        self.grids(data_shape)
        self._require_room(as_picture(data_shape, "GridPyramid")[0], dims)
        return PyramidEncoder(self, tuple(data_shape), tuple(dims))

    def decoder(self, dims: Sequence[int], out_shape: Sequence[int]) -> PyramidDecoder:
        """What decodes vectors of these sizes to numbers of the shape `(num_params, *data_shape)`."""
        self.grids(out_shape[1:])
        self._require_room(out_shape[0] * as_picture(out_shape[1:], "GridPyramid")[0], dims)
        return PyramidDecoder(self, tuple(dims), tuple(out_shape))

    def _require_room(self, channels: int, dims: Sequence[int]) -> None:
        advice = "choose fewer GridPyramid.channels, or smaller dims"
        width = self.channels
        require_room(self, advice, width, 2 * width, 4, 4)
        require_room(self, advice, width, width + max(dims), 3, 3)
        patch = self.strides[0] ** 2 if self.patch_embedding else 4**2
        require_room(self, advice, width, channels * patch)


class PyramidEncoder(nn.Module):
    """The encoder of a `GridPyramid`, for pictures of any size.

    Args:
        network: The pyramid.
        data_shape: Shape of the rows that it is built for.
        dims: Sizes of the vectors of each level, from the lowest.

    Attributes:
        strides: Pixels per position of each grid, from the lowest.
        stride: Those of the coarsest grid.
        radius: How many pixels beside those of a position of the coarsest grid the codes depend on that are
            there, on all grids.
    """

    def __init__(
        self, network: GridPyramid, data_shape: tuple[int, ...], dims: tuple[int, ...]
    ) -> None:
        super().__init__()
        channels = as_picture(data_shape, "GridPyramid")[0]
        width, blocks = network.channels, network.blocks
        self.data_shape, self.channels = data_shape, channels
        self.strides, self.stride = network.strides, network.strides[-1]
        patches = network.patch_embedding
        self.up = nn.ModuleList(
            embedding_patches(channels, width, self.strides[0], blocks)
            if patches and not i
            else halving(width if i else channels, width, halvings, blocks)
            for i, halvings in enumerate(network.halvings)
        )
        # What is above a level, brought to its resolution: its vectors, and what is above them.
        self.down = nn.ModuleList(
            doubling(dim + (width if i + 2 < len(dims) else 0), width, width, halvings, blocks)
            for i, (dim, halvings) in enumerate(zip(dims[1:], network.halvings[1:], strict=True))
        )
        self.heads = nn.ModuleList(
            (residual_head if patches else _head)(width * (1 + (i + 1 < len(dims))), width, dim)
            for i, dim in enumerate(dims)
        )
        first, last = self._seen()
        self.radius = max(-first, last - self.stride + 1)

    def _seen(self) -> tuple[int, int]:
        """The first and the last pixel that the codes depend on at position 0 of the coarsest grid."""
        found: list[tuple[int, int]] = []
        read = (0, 0)
        for i, stride in enumerate(self.strides):
            own = (0, self.stride // stride - 1)
            # Of the codes of a level, those that are asked for, and those that the level below reads.
            if i:
                below = reach(self.down[i - 1], *read)
                own = (min(own[0], below[0]), max(own[1], below[1]))
            read = reach(self.heads[i], *own)
            pixels = read
            for stage in reversed(self.up[: i + 1]):
                pixels = reach(stage, *pixels)
            found.append(pixels)
        return min(first for first, _ in found), max(last for _, last in found)

    def features(self, x: Tensor) -> list[Tensor]:
        """The features of each level, from the lowest, `(n, channels, h, w)`.

        Args:
            x: Pictures, `(n, *channels, height, width)`.

        Raises:
            ValueError: They have other channels than the rows that it is built for.
        """
        found: list[Tensor] = []
        if x.dim() != 1 + len(self.data_shape) or math.prod(x.shape[1:-2]) != self.channels:
            raise ValueError(
                f"the network was built for pictures of shape {self.data_shape}, but the input has shape "
                f"{tuple(x.shape)}"
            )
        x = x.reshape(-1, self.channels, *x.shape[-2:])
        for stage in self.up:
            x = stage(x)
            found.append(x)
        return found

    def vectors(self, level: int, features: Sequence[Tensor], above: Tensor | None) -> Tensor:
        """The vectors of a level, `(n, h, w, dim)`.

        Args:
            level: 0 is the lowest.
            features: From `features`.
            above: From `context` of the level above; None for the highest.
        """
        read = features[level] if above is None else torch.cat([features[level], above], 1)
        found: Tensor = self.heads[level](read)
        return found.movedim(1, -1)

    def context(self, level: int, vectors: Tensor, above: Tensor | None) -> Tensor:
        """What the codes of a level say to the one below, from their vectors and what is above them."""
        read = vectors.movedim(-1, 1)
        read = read if above is None else torch.cat([read, above], 1)
        found: Tensor = self.down[level - 1](read)
        return found


def _head(reads: int, width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(reads, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, dim, 1))


class PyramidDecoder(nn.Module):
    """The decoder of a `GridPyramid`: from vectors `(*batch, h, w, dim)` of each level to numbers of pictures.

    The grids may have any size, if each is as much larger than the one above as those that it is built for.

    Args:
        network: The pyramid.
        dims: Sizes of the vectors of each level, from the lowest.
        out_shape: `(num_params, *data_shape)` of the rows that it is built for.

    Attributes:
        stride: Pixels per position of the coarsest grid.
        radius: How many positions of the coarsest grid beside its own a pixel depends on; of the others what is
            there.
    """

    def __init__(
        self, network: GridPyramid, dims: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        width = network.channels
        channels = out_shape[0] * as_picture(out_shape[1:], "GridPyramid")[0]
        self.out_shape = out_shape
        self.stride = network.strides[-1]
        patches, blocks = network.patch_embedding, network.blocks
        reads = [dim + (width if i + 1 < len(dims) else 0) for i, dim in enumerate(dims)]
        self.stages = nn.ModuleList(
            drawing_patches(reads[i], width, channels, network.strides[0], blocks)
            if patches and not i
            else doubling(reads[i], width, width if i else channels, halvings, blocks)
            for i, halvings in enumerate(network.halvings)
        )
        first, last = 0, self.stride - 1
        for stage in self.stages:
            first, last = reach(stage, first, last)
        self.radius = max(-first, last)

    def forward(self, *vectors: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(*(each.shape[:-3] for each in vectors))
        above: Tensor | None = None
        for stage, each in reversed(list(zip(self.stages, vectors, strict=True))):
            read = (
                each.expand(*batch, *each.shape[-3:]).reshape(-1, *each.shape[-3:]).movedim(-1, 1)
            )
            above = stage(read if above is None else torch.cat([read, above], 1))
        assert above is not None
        return above.reshape(*batch, *self.out_shape[:-2], *above.shape[-2:])
