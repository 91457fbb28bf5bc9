"""The posterior of rows, as proposals are fitted to it: functions of draws `(S, n, d)`, and where to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The posterior of n rows, known up to a factor each.

    Attributes:
        log_density: log p(x, T(u)) |dT/du| at draws `(S, n, d)`: `(S, n)`.
        gradient: The same with its gradient.
        starts: Where to look for modes, `(S, n, d)`.
        scale: A size for each coordinate, `(n, d)`: about the posterior's, and rather too small.
        reach: How far modes may be away, `(n, d)`.
        bulk: The deviation of each coordinate where the data say nothing, `(n, d)`.
        widest: The largest deviation of a component, `(n, d)`: that of a direction, in these units, is at most
            one. Without it, a component that has become too wide where a network bends sees slopes of places
            that do not matter, and grows from round to round.
    """

    log_density: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], tuple[Tensor, ...]]
    starts: Tensor
    scale: Tensor
    reach: Tensor
    bulk: Tensor
    widest: Tensor


def in_parts(
    of_size: Callable[[int], Callable[[Tensor], tuple[Tensor, ...]]], *sizes: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of draws `(S, n, d)`, made of functions of so many draws; parts are filled up to a size.

    Args:
        of_size: Gives the function for so many draws, which takes a while.
        sizes: The sizes. As few parts as possible are made, of the smallest size that suffices for that.
    """
    functions: dict[int, Callable[[Tensor], tuple[Tensor, ...]]] = {}

    def parts(u: Tensor) -> Iterator[tuple[Tensor, ...]]:
        size = min((each for each in sizes if each >= len(u)), default=max(sizes))
        if size not in functions:
            functions[size] = of_size(size)
        for part in u.split(size):
            missing = size - len(part)
            filled = (
                torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            )
            yield tuple(result[: len(part)] for result in functions[size](filled.contiguous()))

    return lambda u: tuple(torch.cat(results) for results in zip(*parts(u), strict=True))
