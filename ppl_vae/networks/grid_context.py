"""What a grid is conditioned on if it is another grid: the codes of coarser ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.networks.arguments import (
    require_at_least,
    require_object,
    require_room,
    require_widths,
)
from ppl_vae.networks.context import Context
from ppl_vae.networks.grid_layers import doubling


@dataclass(frozen=True)
class CodesAbove(Context):
    """The codes of coarser grids, which tell a finer grid something else at each of its positions.

    A prior of the codes of the finer grid, p(z_1 | z_2, ..., z_L), reads numbers for each position: those above
    are embedded, pass residual blocks, and transposed convolutions bring them to the grid below, level by level
    ("Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446). What the row itself comes with,
    a label or attributes, is the same at all positions: a linear map of it is added to the embedded codes of
    the highest grid, so that the blocks read both, p(z_1 | z_2, ..., z_L, c).

    Args:
        grids: Height and width of each grid above, from the nearest; each is the one below it, halved.
        codes: Number of values of the codes of each.
        blocks: Number of residual blocks for each.
        context: What the row comes with, such as `Labels(10)`; None if it comes alone.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: There is no grid, there is not one number of codes for each, or one is out of its range; the
            context is neither one number nor one vector of a row; or, of `on_grid`, a grid is not the one below
            it, halved.

    Example:
        >>> context = CodesAbove([(2, 2), (1, 1)], [5, 3])
        >>> c = context.joined(torch.zeros(4, 2, 2), torch.ones(4, 1, 1))
        >>> c.shape, context.on_grid(8, (4, 4))(context(c)).shape
        (torch.Size([4, 5]), torch.Size([4, 8, 4, 4]))

        With labels of the rows:

        >>> from ppl_vae.networks import Labels
        >>> of_label = CodesAbove([(1, 1)], [3], context=Labels(2))
        >>> of_label.joined(torch.tensor([[[2]], [[0]]]), c=torch.tensor([1, 0]))
        tensor([[2, 1],
                [0, 0]])
    """

    grids: Sequence[Sequence[int]]
    codes: Sequence[int]
    blocks: int = 2
    context: Context | None = None

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
        if self.context is not None:
            require_object(self, "context", self.context, "on_grid", "Labels(10)")
            if self.context.support.event_dim > 1:
                raise ValueError(
                    f"CodesAbove.context must be one number or one vector of a row, got {self.context}"
                )
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "codes", tuple(self.codes))

    @property
    def size(self) -> int:
        """Number of all codes above, and the length of the context's vector."""
        return self._above + (0 if self.context is None else self.context.size)

    @property
    def _above(self) -> int:
        return sum(math.prod(grid) for grid in self.grids)

    @property
    def support(self) -> Any:
        """See `Context.support`."""
        codes = constraints.integer_interval(0, max(self.codes) - 1)
        if self.context is None:
            return constraints.independent(codes, 1)
        return constraints.real_vector  # the codes, and the numbers of any context

    def joined(self, *z: Tensor, c: Tensor | None = None) -> Tensor:
        """The context of rows, `(*batch, length)`: their codes, and then what they come with.

        Args:
            z: Codes `(*batch, *grid)` of each grid, from the nearest. Batch dimensions are broadcast.
            c: The label, `(*batch,)`, or the vector, `(*batch, count)`, of a row, if there is a context.

        Raises:
            TypeError: There is a context but no c, or the reverse.
        """
        if (c is None) != (self.context is None):
            told = f"the context {self.context}" if c is None else "no context"
            given = "codes alone: pass c, too" if c is None else "labels or attributes: leave out c"
            raise TypeError(f"CodesAbove was built with {told} of the rows, but is given {given}")
        parts = [each.flatten(-2) for each in z]
        if c is not None and self.context is not None:
            own = c if self.context.support.event_dim else c.unsqueeze(-1)
            if own.is_floating_point():  # half precision would round the codes beside it
                own = own.to(torch.promote_types(own.dtype, torch.float32))
            parts.append(own if own.is_floating_point() else own.long())
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)

    def apart(self, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `joined` has joined: the codes, `(*batch, count)`, and what the rows come with; None without it.

        Raises:
            ValueError: There are not so many numbers for each row.
        """
        above, context = self._above, self.context
        vector = context is not None and context.support.event_dim == 1
        beside = 0 if context is None else context.size if vector else 1
        length = c.shape[-1] - above if c.dim() else -1
        if not (length > 0 if vector else length == beside):
            raise ValueError(
                f"the context is {self}, but the codes above have shape {tuple(c.shape)}: expected "
                f"(n, {above + beside}), as joined(z{'' if context is None else ', c=c'}) makes it"
            )
        codes, own = c[..., :above], c[..., above:]
        if context is None:
            return codes, None
        return codes, own if vector else own.squeeze(-1)

    def __call__(self, c: Tensor) -> Tensor:
        """The codes themselves, and the context's vector, `(*batch, size)`.

        Args:
            c: What `joined` gives.

        Raises:
            ValueError: There are not so many numbers for each row.
        """
        codes, own = self.apart(c)
        if own is None or self.context is None:
            return codes
        return torch.cat([codes, self.context(own)], -1)

    def on_grid(self, channels: int, size: tuple[int, int]) -> nn.Module:
        """See `Context.on_grid`."""
        return _FromAbove(self, channels, size)


class _FromAbove(nn.Module):
    """Codes above and the vector of a row, `(n, size)`, to numbers `(n, channels, height, width)` below."""

    def __init__(self, of: CodesAbove, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.grids = [(height, width) for height, width in of.grids]
        halvings = [_halvings(*pair) for pair in zip([size, *self.grids], self.grids, strict=False)]
        require_room(of, "choose fewer channels of the prior", channels, 2 * channels, 4, 4)
        self.embeddings = nn.ModuleList(nn.Embedding(codes, channels) for codes in of.codes)
        beside = 0 if of.context is None else of.context.size
        self.of_row = nn.Linear(beside, channels, bias=False) if beside else None
        # Each reads its codes, and what is above them.
        joined = [2 * channels] * (len(halvings) - 1) + [channels]
        self.down = nn.ModuleList(
            doubling(reads, channels, channels, times, of.blocks)
            for reads, times in zip(joined, halvings, strict=True)
        )

    def forward(self, given: Tensor) -> Tensor:
        sizes = [math.prod(grid) for grid in self.grids]
        codes, beside = given[..., : sum(sizes)], given[..., sum(sizes) :]
        parts = codes.long().split(sizes, -1)
        levels = zip(self.grids, self.embeddings, self.down, parts, strict=True)
        above: Tensor | None = None
        for grid, embedding, down, z in reversed([*levels]):
            read = embedding(z).transpose(-1, -2).unflatten(-1, grid)
            if above is None and self.of_row is not None:
                own = self.of_row(beside.to(self.of_row.weight.dtype))
                read = read + own[..., None, None]
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
