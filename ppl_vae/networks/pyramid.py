"""Grids of several levels, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.networks.arguments import require_at_least, require_at_least_one, require_widths
from ppl_vae.networks.convolutional import as_picture
from ppl_vae.networks.grid_layers import doubling, halving


@dataclass(frozen=True)
class GridPyramid:
    """Grids of several levels, each coarser than the one below: the network of the VQ-VAE-2.

    The encoder halves the picture `halvings[0]` times for the lowest grid, and so on upwards. A level is then
    encoded from the picture and from the codes of those above; the decoder goes from the highest level down,
    and joins each with what it has ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446).
    Layers are those of `ConvolutionalGrid`.

    Args:
        channels: Channels inside.
        halvings: How often each level is halved, from the lowest, for which it is the picture.
        blocks: Number of residual blocks at each level, of encoder and decoder.

    Raises:
        TypeError: An argument is no whole number.
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

    def __post_init__(self) -> None:
        require_at_least_one(self, channels=self.channels)
        require_at_least(self, 0, blocks=self.blocks)
        require_widths(self, halvings=self.halvings)
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
        strides = [2 ** sum(self.halvings[: i + 1]) for i in range(len(self.halvings))]
        return tuple((height // s, width // s) for s in strides)

    def encoder(self, data_shape: Sequence[int], dims: Sequence[int]) -> PyramidEncoder:
        """What encodes rows of a shape to vectors of these sizes, one for each level from the lowest."""
        self.grids(data_shape)
        return PyramidEncoder(self, tuple(data_shape), tuple(dims))

    def decoder(self, dims: Sequence[int], out_shape: Sequence[int]) -> PyramidDecoder:
        """What decodes vectors of these sizes to numbers of the shape `(num_params, *data_shape)`."""
        self.grids(out_shape[1:])
        return PyramidDecoder(self, tuple(dims), tuple(out_shape))


class PyramidEncoder(nn.Module):
    """The encoder of a `GridPyramid`.

    Args:
        network: The pyramid.
        data_shape: Shape of a row.
        dims: Sizes of the vectors of each level, from the lowest.
    """

    def __init__(
        self, network: GridPyramid, data_shape: tuple[int, ...], dims: tuple[int, ...]
    ) -> None:
        super().__init__()
        channels = as_picture(data_shape, "GridPyramid")[0]
        width, blocks = network.channels, network.blocks
        self.data_shape, self.channels = data_shape, channels
        self.up = nn.ModuleList(
            halving(width if i else channels, width, halvings, blocks)
            for i, halvings in enumerate(network.halvings)
        )
        # What is above a level, brought to its resolution: its vectors, and what is above them.
        self.down = nn.ModuleList(
            doubling(dim + (width if i + 2 < len(dims) else 0), width, width, halvings, blocks)
            for i, (dim, halvings) in enumerate(zip(dims[1:], network.halvings[1:], strict=True))
        )
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width * (1 + (i + 1 < len(dims))), width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, dim, 1),
            )
            for i, dim in enumerate(dims)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The features of each level, from the lowest, `(n, channels, h, w)`, of rows `(n, *data_shape)`."""
        found: list[Tensor] = []
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


class PyramidDecoder(nn.Module):
    """The decoder of a `GridPyramid`: from vectors `(*batch, h, w, dim)` of each level to numbers of a row.

    Args:
        network: The pyramid.
        dims: Sizes of the vectors of each level, from the lowest.
        out_shape: `(num_params, *data_shape)`.
    """

    def __init__(
        self, network: GridPyramid, dims: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        width = network.channels
        channels = out_shape[0] * as_picture(out_shape[1:], "GridPyramid")[0]
        self.out_shape = out_shape
        self.stages = nn.ModuleList(
            doubling(
                dim + (width if i + 1 < len(dims) else 0),
                width,
                width if i else channels,
                halvings,
                network.blocks,
            )
            for i, (dim, halvings) in enumerate(zip(dims, network.halvings, strict=True))
        )

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
