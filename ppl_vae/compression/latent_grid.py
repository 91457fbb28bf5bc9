"""Continuous latents on a grid: each number is one of 2^b values, the medians of equally probable intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.special import ndtri

from ppl_vae.pairs import Site, is_discrete

_DIGIT = 8
"""Bits of an index that are coded at once: tables of so many columns that their number stays small."""


@lru_cache(maxsize=4)
def _quantiles(bits: int, half: bool) -> Tensor:
    """Standard normal quantiles of k / 2^bits, or of (k + 1/2) / 2^bits."""
    count = 2**bits
    k = torch.arange(count if half else count + 1, dtype=torch.float64)
    upper = ndtri((k[: len(k) // 2] + (0.5 if half else 0.0)) / count)
    middle = [] if half else [torch.zeros(1, dtype=torch.float64)]
    return torch.cat([upper, *middle, -upper.flip(0)])


@dataclass(frozen=True)
class Grid:
    """The values that each number of a latent may have.

    They are the medians of the 2^b intervals of equal mass under N(loc, scale^2) in coordinates that move
    freely: those of `transform`, such as exp for a latent that is positive. With the moments of a normal
    prior, all are equally probable under the prior.

    Attributes:
        bits: b.
        loc: `(E,)`, one for each number of an event.
        scale: `(E,)`.
        transform: From free coordinates to values; None for real numbers.
        is_standard: Whether it is that of N(0, 1).

    Example:
        >>> grid = Grid(2, torch.zeros(1), torch.ones(1))
        >>> grid.values(torch.tensor([[0], [1], [2], [3]]), slice(None)).T
        tensor([[-1.1503, -0.3186,  0.3186,  1.1503]], dtype=torch.float64)
    """

    bits: int
    loc: Tensor
    scale: Tensor
    transform: Any = None
    is_standard: bool = field(default=False)

    @property
    def digits(self) -> list[int]:
        """Of how many bits each digit of an index is, the first one first."""
        found, left = [], self.bits
        while left:
            found.append(min(_DIGIT, left))
            left -= found[-1]
        return found

    def values(self, index: Tensor, which: slice) -> Tensor:
        """The values of indices.

        Args:
            index: `(B, e)`.
            which: The e numbers of the event that they are of.
        """
        return self._moved(_quantiles(self.bits, True)[index], which)

    def edges(self, before: Tensor, known: int, width: int, which: slice) -> Tensor:
        """Where intervals begin and end that share the first digits of their index.

        Args:
            before: What the first digits are, `(B, e)`.
            known: How many bits those are.
            width: Bits of the next digit.
            which: The e numbers of the event.

        Returns:
            `(B, e, 2^width + 1)`: the intervals of the next digit, one after the other.
        """
        left = self.bits - known - width
        digits = torch.arange(2**width + 1)
        index = ((before.unsqueeze(-1) << width) + digits) << left
        return self._moved(_quantiles(self.bits, False)[index], which, 1)

    def nearest(self, value: Tensor) -> Tensor:
        """The indices of the intervals that hold values, `(B, E)`."""
        free = value if self.transform is None else self.transform.inv(value)
        u = ((free - self.loc) / self.scale).contiguous()
        return torch.searchsorted(_quantiles(self.bits, False)[1:-1].contiguous(), u)

    def _moved(self, u: Tensor, which: slice, more: int = 0) -> Tensor:
        loc, scale = (t[which].reshape(-1, *[1] * more) for t in (self.loc, self.scale))
        free = u if self.is_standard else loc + scale * u
        if self.transform is None:
            return free
        ends = u.isinf()
        found: Tensor = self.transform(free.masked_fill(ends, 0.0))
        return found.where(~ends, u)


class Grids:
    """The grids of latents, by name; None for those that are discrete.

    Each is made of the prior when the model is first run, and the guide has the same.

    Args:
        bits: b.
        dtype: That of the values that programs get.
        moments: Loc and scale `(2, E)`, for latents that are not on the grid of N(0, 1).
    """

    def __init__(self, bits: int, dtype: torch.dtype, moments: Mapping[str, Tensor]) -> None:
        self.bits, self.dtype, self.moments = bits, dtype, dict(moments)
        self._made: dict[str, Grid | None] = {}

    def of(self, site: Site) -> Grid | None:
        """The grid of a latent.

        Args:
            site: The site in the model; or in the guide, once it has been asked for with that in the model.
        """
        name, fn = site["name"], site["fn"]
        if name not in self._made:
            self._made[name] = None if is_discrete(site) else self._new(name, fn)
        return self._made[name]

    def _new(self, name: str, fn: Any) -> Grid:
        if name in self.moments:
            loc, scale = self.moments[name]
            return Grid(self.bits, loc, scale, free_coordinates(fn))
        zeros = torch.zeros(fn.event_shape.numel(), dtype=torch.float64)
        return Grid(self.bits, zeros, zeros + 1, is_standard=True)


def free_coordinates(fn: Any) -> Any:
    """From free coordinates of each number to its values; None for real numbers."""
    while isinstance(fn, torch.distributions.Independent | torch.distributions.MixtureSameFamily):
        fn = fn.base_dist if hasattr(fn, "base_dist") else fn.component_distribution
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return None if support in (constraints.real, constraints.real_vector) else biject_to(support)


def digits_of(index: Tensor, grid: Grid) -> Iterator[tuple[int, int, Tensor]]:
    """Of each digit, how many bits come before it and its own number of bits; and the digits of indices."""
    known = 0
    for width in grid.digits:
        left = grid.bits - known - width
        yield known, width, (index >> left) & (2**width - 1)
        known += width
