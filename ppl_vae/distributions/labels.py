"""Distributions of what a program is given, and of labels of which some are hidden."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.runtime import HIDDEN as HIDDEN


class Given(dist.TorchDistribution):
    """What a program is given and does not model: of density 1, wherever it is.

    As an observed site it adds nothing to log p(x | y). It says which values y may have, so that others are
    refused, and a draw from it is y itself.

    Args:
        value: What is given, `(*batch, *event)`.
        support: The values that it may have.

    Example:
        >>> y = Given(torch.tensor([0, 2]), constraints.integer_interval(0, 2))
        >>> y.log_prob(torch.tensor([0, 2])), y.sample()
        (tensor([0., 0.]), tensor([0, 2]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, value: Tensor, support: Any) -> None:
        self.value = value
        self._support = support
        event = support.event_dim
        shape = value.shape[: value.dim() - event]
        super().__init__(shape, value.shape[value.dim() - event :], validate_args=False)

    @property
    def support(self) -> Any:
        """The values that it may have."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """What is given."""
        return self.value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Given:
        """The same with a larger batch shape."""
        return Given(self.value.expand(*batch_shape, *self.event_shape), self._support)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """What is given, `(*sample_shape, *batch, *event)`."""
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 for each, in nats."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        return torch.zeros(torch.broadcast_shapes(batch, self.batch_shape), device=value.device)


class _Labels(constraints.integer_interval):
    """An interval of whole numbers that may begin below 0, also for labels of a dtype without a sign."""

    def check(self, value: Tensor) -> Any:
        return super().check(_signed(value))  # type: ignore[no-untyped-call]  # of torch


def _signed(labels: Tensor) -> Tensor:
    """Labels in a dtype that can be compared with -1, as which 255 would count in uint8."""
    return labels.long() if labels.dtype in (torch.bool, torch.uint8) else labels


class Revealed(dist.TorchDistribution):
    """The label of a row of class y: y where it is known, -1 where it is hidden.

    Which labels are hidden is not modeled: log p(label | y) is 0 if label = y or label = -1, and -inf
    otherwise. So p(x, label) is p(x, y) of a row with a label, and p(x) of a row without one ("Semi-Supervised
    Learning with Deep Generative Models", arXiv:1406.5298). A draw is y.

    Args:
        y: The classes, `(*batch)`, from 0 to `classes - 1`.
        classes: Number of classes.

    Example:
        >>> Revealed(torch.tensor([0, 1, 2]), classes=3).log_prob(torch.tensor([0, -1, 1]))
        tensor([0., 0., -inf])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, y: Tensor, classes: int) -> None:
        self.y = y
        self.classes = classes
        super().__init__(y.shape, torch.Size(), validate_args=False)

    @property
    def support(self) -> Any:
        """Integers from -1 to `classes - 1`."""
        return _Labels(HIDDEN, self.classes - 1)  # type: ignore[no-untyped-call]  # of torch

    def expand(self, batch_shape: Any, _instance: Any = None) -> Revealed:
        """The same with a larger batch shape."""
        return Revealed(self.y.expand(batch_shape), self.classes)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The classes, `(*sample_shape, *batch)`."""
        return self.y.expand(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 where the label is the class or hidden, otherwise -inf; in nats."""
        value = _signed(value)
        return torch.zeros((), device=value.device).where(
            (value == HIDDEN) | (value == self.y), -torch.inf
        )
