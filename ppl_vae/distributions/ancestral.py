"""Rows whose values each depend on those before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class Ancestral(dist.TorchDistribution):
    """p(x) = prod_i p(x_i | x_1, ..., x_{i-1}), where one pass over a row x gives all factors.

    The density of a row takes one pass. A draw is ancestral: one value after the other, each given those
    before it. Mean and variance are sums over all rows, and are not stated: average draws.

    Args:
        conditionals: Maps rows `(*batch, *event_shape)` to a distribution of batch shape `batch` whose
            values are independent: that of value i is p(x_i | x_1, ..., x_{i-1}), and depends on no other
            value.
        draw: Maps a batch shape, and a function that gives values for a distribution of some of them, to
            rows, `(*batch, *event_shape)`: it asks that function for one part of a row after the other.
        support: Gives the support of a row.
        batch_shape: The shape of what the distribution was built from, as of any distribution.
        event_shape: The shape of a row.

    Example:
        >>> def conditionals(x):  # each value is likely to be the one before
        ...     before = torch.nn.functional.pad(x, (1, -1), value=0.5)
        ...     return dist.Bernoulli(0.1 + 0.8 * before).to_event(1)
        >>> p = Ancestral(conditionals, None, lambda: constraints.boolean, torch.Size(), torch.Size([2]))
        >>> p.log_prob(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])).exp()
        tensor([0.4500, 0.0500, 0.0500, 0.4500])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        conditionals: Callable[[Tensor], dist.TorchDistribution],
        draw: Callable[[torch.Size, Callable[[Any], Tensor]], Tensor],
        support: Callable[[], constraints.Constraint],
        batch_shape: torch.Size,
        event_shape: torch.Size,
        validate_args: bool | None = None,
    ) -> None:
        self._conditionals = conditionals
        self._draw = draw
        self._support = support
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of a row."""
        return self._support()

    def conditionals(self, x: Tensor) -> dist.TorchDistribution:
        """p(x_i | x_1, ..., x_{i-1}) of all i, for rows `(*batch, *event_shape)`, as independent values."""
        return self._conditionals(x)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) of the rows of `value`, in nats."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        log_p: Tensor = self._conditionals(value).log_prob(value)
        return log_p.expand(torch.broadcast_shapes(batch, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws rows, `(*sample_shape, *batch_shape, *event_shape)`, one value after the other."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape, lambda p: p.sample())

    def by_parts(self, values: Callable[[dist.TorchDistribution], Tensor]) -> Tensor:
        """Rows whose values come from somewhere, one part of a row after the other.

        Args:
            values: Maps the distribution of a part, given those before it, to the part's values.

        Returns:
            The rows, `(*batch_shape, *event_shape)`.
        """
        with torch.no_grad():
            return self._draw(self.batch_shape, values)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Ancestral:
        """The same distribution for a larger batch shape."""
        shape = torch.Size(batch_shape)
        new = Ancestral(
            self._conditionals,
            self._draw,
            self._support,
            shape,
            self.event_shape,
            validate_args=False,
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Not stated.

        Raises:
            NotImplementedError: Always.
        """
        self._refuse("mean")

    @property
    def variance(self) -> Tensor:
        """Not stated.

        Raises:
            NotImplementedError: Always.
        """
        self._refuse("variance")

    def _refuse(self, moment: str) -> NoReturn:
        raise NotImplementedError(
            f"each value depends on those before it, so the {moment} is a sum over all rows: average draws"
        )
