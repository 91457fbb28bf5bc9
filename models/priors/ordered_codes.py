"""What priors share in which each code depends on those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.distributions import Ancestral
from ppl_vae.models.priors.codes import require_context
from ppl_vae.networks import Context, full_precision, require_numbers


class OrderedCodes(nn.Module, ABC):
    """p(z) = prod_i p(z_i | z_1, ..., z_{i-1}), or p(z | c), with codes in the order of the flattened row.

    A network derives from this class and gives the logits, of all codes at once (`logits`) and one code after
    the other (`draw`).

    Args:
        name: The prior, for messages.
        positions: Shape of z of a row.
        codes: Number K of values of a code.
        context: What rows come with; None if they come alone.
        channels: How many numbers the network reads at each position.

    Attributes:
        depth: Number of codes at one position.
        size: Height and width of the grid; codes in a line are one row.
        above: What makes numbers for each position from the vectors of the context; None if all positions read
            these vectors, or there are none.
        length_given: Length of the vectors that all positions read; 0 if there are none.
    """

    def __init__(
        self,
        name: str,
        positions: Sequence[int],
        codes: int,
        context: Context | None,
        channels: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.positions = tuple(positions)
        self.depth = depth_of(name, positions)
        self.size = (1, positions[0]) if len(positions) == 1 else (positions[0], positions[1])
        self.codes = codes
        self.context = context
        self.above = None if context is None else context.on_grid(channels, self.size)
        self.length_given = 0 if context is None or self.above is not None else context.size

    def forward(self, c: Tensor | None = None) -> Ancestral:
        """p(z), of batch shape `()`; with a context p(z | c), of the batch shape of c."""
        require_context(self.name, self.context, c)
        given = None
        if c is not None and self.context is not None:
            given = self.context(c)
            if self.above is None:  # which reads whole numbers
                given = given.to(next(self.parameters()).dtype)
        batch = torch.Size() if given is None else given.shape[:-1]
        event_dim = len(self.positions)

        def conditionals(z: Tensor) -> dist.TorchDistribution:
            within = z.shape[: z.dim() - event_dim]
            shape = torch.broadcast_shapes(within, batch)
            rows = z.long().expand(*shape, *self.positions).reshape(-1, *self.positions)
            logits = full_precision(self.logits(rows, _rows(given, shape)))
            each = logits.reshape(*shape, *self.positions, self.codes)
            p: dist.TorchDistribution = dist.Categorical(logits=each).to_event(event_dim)
            return p

        def draw(shape: torch.Size, values: Callable[[Any], Tensor]) -> Tensor:
            def choose(logits: Tensor) -> Tensor:
                of_each = full_precision(logits).reshape(*shape, self.codes)
                return values(dist.Categorical(logits=of_each)).reshape(-1)

            drawn = self.draw(shape.numel(), _rows(given, shape), choose)
            return drawn.reshape(*shape, *self.positions)

        def support() -> constraints.Constraint:
            values = constraints.integer_interval(0, self.codes - 1)
            found: constraints.Constraint = constraints.independent(values, event_dim)
            return found

        return Ancestral(conditionals, draw, support, batch, torch.Size(self.positions))

    def told(self, given: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What a context tells: numbers of positions, `(n, channels, height, width)`, or vectors `(n, size)`.

        The other one is None, and both are without a context.

        Args:
            given: As for `logits`.
        """
        return (None, given) if self.above is None or given is None else (self.above(given), None)

    @abstractmethod
    def logits(self, z: Tensor, given: Tensor | None) -> Tensor:
        """The logits of each code given those before it.

        Args:
            z: Codes, `(n, *positions)`.
            given: The vectors of the context, `(n, size)`; None without a context.

        Returns:
            `(n, *positions, K)`; those of a code do not depend on it, nor on later ones.
        """

    @abstractmethod
    def draw(self, n: int, given: Tensor | None, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Codes drawn one after the other, where each step computes what one code adds alone.

        Without gradients, and without dropout.

        Args:
            n: How many rows.
            given: As for `logits`.
            choose: Maps the logits of one code, `(n, K)`, to its values, `(n,)`.

        Returns:
            `(n, *positions)`.
        """


def _rows(given: Tensor | None, batch: torch.Size) -> Tensor | None:
    """Vectors of a batch that is broadcast, as `(n, size)`."""
    if given is None:
        return None
    return given.expand(*batch, given.shape[-1]).reshape(batch.numel(), given.shape[-1])


def depth_of(name: str, positions: Sequence[int]) -> int:
    """The number of codes of a vector: the last of three dimensions of z, otherwise 1.

    Raises:
        ValueError: z has more than three dimensions.
    """
    if len(positions) > 3 or not positions:
        raise ValueError(
            f"{name} is a prior of codes in a line (m,), on a grid (height, width), or several on a grid "
            f"(height, width, depth), got positions of shape {tuple(positions)}"
        )
    return positions[2] if len(positions) == 3 else 1


def require_share(owner: object, dropout: float) -> None:
    """Raises an error for a share of numbers that dropout cannot hide.

    Raises:
        TypeError: It is no number.
        ValueError: It is not from 0 to below 1.
    """
    require_numbers(owner, dropout=dropout)
    if not 0 <= dropout < 1:
        raise ValueError(
            f"{type(owner).__name__}.dropout must be at least 0 and less than 1, got {dropout}"
        )
