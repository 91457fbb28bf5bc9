"""What rows are conditioned on: labels or attributes, and encoders that read them beside the rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.networks.arguments import require_at_least, require_at_least_one

if TYPE_CHECKING:
    from ppl_vae.networks.base import Network


class Context(ABC):
    """What a conditional model p(x | z, c) and its guide q(z | x, c) are given for each row.

    To write one of your own, derive from this class: `size`, `support` and `__call__`. A context that says
    something else of each position of a grid, as `CodesAbove` does, also has `on_grid`.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of the vector that the networks read."""

    @property
    @abstractmethod
    def support(self) -> Any:
        """The values that a row's context may have, as a constraint of torch."""

    @abstractmethod
    def __call__(self, c: Tensor) -> Tensor:
        """The vectors that the networks read, `(*batch, size)`, for the context of rows, `(*batch, *event)`."""

    def on_grid(self, channels: int, size: tuple[int, int]) -> nn.Module | None:
        """What makes numbers for each position of a grid from the vectors; None if all positions read them.

        Args:
            channels: Numbers for each position.
            size: Height and width of the grid.

        Returns:
            A module that maps vectors `(n, size)` to numbers `(n, channels, height, width)`, or None.
        """
        return None


@dataclass(frozen=True)
class Labels(Context):
    """A label for each row, a whole number from 0 to `classes - 1`; networks read it as a one-hot vector.

    Args:
        classes: Number of labels.

    Raises:
        ValueError: `classes` is less than 2.

    Example:
        >>> Labels(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    classes: int = 10

    def __post_init__(self) -> None:
        require_at_least(self, 2, classes=self.classes)

    @property
    def size(self) -> int:
        """See `Context.size`."""
        return self.classes

    @property
    def support(self) -> Any:
        """See `Context.support`."""
        return constraints.integer_interval(0, self.classes - 1)

    def __call__(self, c: Tensor) -> Tensor:
        """See `Context.__call__`."""
        one_hot = c.unsqueeze(-1) == torch.arange(self.classes, device=c.device)
        return one_hot.to(torch.get_default_dtype())


@dataclass(frozen=True)
class Attributes(Context):
    """Several real numbers for each row, `(n, count)`: attributes, coordinates, other measurements.

    Args:
        count: How many. Networks read them as they are: bring them to a scale of about 1.

    Raises:
        ValueError: `count` is not positive.

    Example:
        >>> Attributes(2)(torch.tensor([[0.5, 1.0]]))
        tensor([[0.5000, 1.0000]])
    """

    count: int

    def __post_init__(self) -> None:
        require_at_least_one(self, count=self.count)

    @property
    def size(self) -> int:
        """See `Context.size`."""
        return self.count

    @property
    def support(self) -> Any:
        """See `Context.support`."""
        return constraints.real_vector

    def __call__(self, c: Tensor) -> Tensor:
        """See `Context.__call__`.

        Raises:
            ValueError: There are not `count` numbers for each row.
        """
        if c.dim() == 0 or c.shape[-1] != self.count:
            raise ValueError(
                f"the context is {self}, but the attributes have shape {tuple(c.shape)}: expected "
                f"(n, {self.count})"
            )
        return c


def require_one_each(module: nn.Module, context: Context, c: Tensor, n: int) -> None:
    """Raises an error unless there is one label, or one vector of attributes, for each of n rows.

    Raises:
        ValueError: There is not.

    Example:
        >>> require_one_each(nn.Identity(), Labels(3), torch.eye(3)[[0, 2]], 2)
        Traceback (most recent call last):
        ValueError: Identity reads Labels(classes=3) beside the rows, but is given an array of shape (2, 3)...
    """
    event = context.support.event_dim
    if c.shape[: c.dim() - event] == (n,):
        return
    one_hot = isinstance(context, Labels) and c.shape == (n, context.classes)
    single = event == 1 and context.size == 1 and c.shape == (n,)
    raise ValueError(
        f"{type(module).__name__} reads {context} beside the rows, but is given an array of shape "
        f"{tuple(c.shape)}: expected one {'vector' if event else 'number'} for each of {n} rows"
        f"{', such as labels.argmax(-1) of one-hot vectors' if one_hot else ''}"
        f"{', such as c[:, None] of one number for each row' if single else ''}"
    )


class JoinedEncoder(nn.Module):
    """An encoder that reads a row and a vector: maps `(*batch, *data_shape)` and `(*batch, size)` to features.

    A row that is a vector gets the numbers appended. A picture gets one more channel, a learned linear map of
    them. The batch dimensions of the two are broadcast.

    Args:
        network: What the encoder is built from.
        data_shape: Shape of one row of the data.
        size: Length of the vector.
        flat: Whether rows of any shape are read as vectors, as an MLP does.

    Attributes:
        out_features: Number of features.
    """

    def __init__(
        self, network: Network, data_shape: Sequence[int], size: int, *, flat: bool = False
    ) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.flat = flat or len(self.data_shape) < 2
        self.plane: nn.Linear | None = None
        joined: tuple[int, ...]
        if self.flat:
            joined = (math.prod(self.data_shape) + size,)
        else:
            *channels, height, width = self.data_shape
            joined = (math.prod(channels) + 1, height, width)
            self.plane = nn.Linear(size, height * width)
        self.encoder = network.encoder(joined)
        self.out_features = self.encoder.out_features

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """The features, `(*batch, out_features)`."""
        batch = torch.broadcast_shapes(x.shape[: x.dim() - len(self.data_shape)], vector.shape[:-1])
        shape: tuple[int, ...]
        if self.plane is None:
            beside = vector.to(x.dtype)
            shape = (math.prod(self.data_shape),)
        else:
            height, width = self.data_shape[-2:]
            plane = self.plane(vector.to(self.plane.weight.dtype)).to(x.dtype)
            beside = plane.unflatten(-1, (1, height, width))
            shape = (math.prod(self.data_shape[:-2]), height, width)
        rows = x.reshape(*x.shape[: x.dim() - len(self.data_shape)], *shape)
        rows = rows.expand(*batch, *shape)
        beside = beside.expand(*batch, *beside.shape[vector.dim() - 1 :])
        features: Tensor = self.encoder(torch.cat([rows, beside], -len(shape)))
        return features
