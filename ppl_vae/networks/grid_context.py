"""What a grid is conditioned on if it is another grid: the codes of coarser ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.networks.arguments import require_at_least, require_room, require_widths
from ppl_vae.networks.context import Context
from ppl_vae.networks.grid_layers import doubling


@dataclass(frozen=True)
class CodesAbove(Context):
    """The codes of coarser grids, which tell a finer grid something else at each of its positions.

    A prior of the codes of the finer grid, p(z_1 | z_2, ..., z_L), reads numbers for each position: those above
    are embedded, pass residual blocks, and transposed convolutions bring them to the grid below, level by level
    ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446).

    Args:
        grids: Height and width of each grid above, from the nearest; each is the one below it, halved.
        codes: Number of values of the codes of each.
        blocks: Number of residual blocks for each.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: There is no grid, there is not one number of codes for each, or one is out of its range; or,
            of `on_grid`, a grid is not the one below it, halved.

    Example:
        >>> context = CodesAbove([(2, 2), (1, 1)], [5, 3])
        >>> c = context.joined(torch.zeros(4, 2, 2), torch.ones(4, 1, 1))
        >>> c.shape, context.on_grid(8, (4, 4))(context(c)).shape
        (torch.Size([4, 5]), torch.Size([4, 8, 4, 4]))
    """

    grids: Sequence[Sequence[int]]
    codes: Sequence[int]
    blocks: int = 2

    def __post_init__(self) -> None:
        listed = isinstance(self.grids, list | tuple) and bool(self.grids)
        if not (listed and all(isinstance(g, list | tuple) and len(g) == 2 for g in self.grids)):
            raise ValueError(
                f"CodesAbove.grids must be the height and width of each grid above, got {self.grids!r:.80}: "
                "write [(8, 8)]"
            )
        grids = tuple(tuple(grid) for grid in self.grids)
        for grid in grids:
            require_widths(self, grids=grid)
        require_widths(self, codes=self.codes)
        require_at_least(self, 0, blocks=self.blocks)
        if len(self.codes) != len(grids):
            raise ValueError(
                f"CodesAbove.codes must be one number for each of the {len(grids)} grids, got "
                f"{tuple(self.codes)}"
            )
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "codes", tuple(self.codes))

    @property
    def size(self) -> int:
        """Number of all codes above."""
        return sum(math.prod(grid) for grid in self.grids)

    @property
    def support(self) -> Any:
        """See `Context.support`."""
        return constraints.independent(constraints.integer_interval(0, max(self.codes) - 1), 1)

    def joined(self, *z: Tensor) -> Tensor:
        """The context of rows, `(*batch, size)`: their codes `(*batch, *grid)`, from the nearest grid."""
        return torch.cat([each.flatten(-2) for each in z], -1)

    def __call__(self, c: Tensor) -> Tensor:
        """The codes themselves, `(*batch, size)`.

        Raises:
            ValueError: There are not `size` codes for each row.
        """
        if c.dim() == 0 or c.shape[-1] != self.size:
            raise ValueError(
                f"the context is {self}, but the codes above have shape {tuple(c.shape)}: expected "
                f"(n, {self.size}), as joined(z) makes it"
            )
        return c

    def on_grid(self, channels: int, size: tuple[int, int]) -> nn.Module:
        """See `Context.on_grid`."""
        return _FromAbove(self, channels, size)


class _FromAbove(nn.Module):
    """Codes above, `(n, size)`, to numbers `(n, channels, height, width)` of the grid below."""

    def __init__(self, of: CodesAbove, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.grids = [(height, width) for height, width in of.grids]
        halvings = [_halvings(*pair) for pair in zip([size, *self.grids], self.grids, strict=False)]
        require_room(of, "choose fewer channels of the prior", channels, 2 * channels, 4, 4)
        self.embeddings = nn.ModuleList(nn.Embedding(codes, channels) for codes in of.codes)
        # Each reads its codes, and what is above them.
        joined = [2 * channels] * (len(halvings) - 1) + [channels]
        self.down = nn.ModuleList(
            doubling(reads, channels, channels, times, of.blocks)
            for reads, times in zip(joined, halvings, strict=True)
        )

    def forward(self, codes: Tensor) -> Tensor:
        parts = codes.long().split([math.prod(grid) for grid in self.grids], -1)
        levels = zip(self.grids, self.embeddings, self.down, parts, strict=True)
        above: Tensor | None = None
        for grid, embedding, down, z in reversed([*levels]):
            read = embedding(z).transpose(-1, -2).unflatten(-1, grid)
            above = down(read if above is None else torch.cat([read, above], 1))
        assert above is not None
        return above


def _halvings(below: Sequence[int], above: Sequence[int]) -> int:
    """How often a grid is halved to get the one above it.

    Raises:
        ValueError: It is not halved.
    """
    times = (below[0] // above[0]).bit_length() - 1
    if times < 0 or any(low != high << times for low, high in zip(below, above, strict=True)):
        raise ValueError(
            f"codes on a grid of {tuple(above)} cannot tell the positions of a grid of {tuple(below)}: "
            "expected the height and width of the grid below, halved as often as one likes"
        )
    return times
