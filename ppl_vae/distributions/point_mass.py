"""All mass on one of finitely many values: the posterior of a quantizer."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import one_hot


class PointMass(dist.TorchDistribution):
    """The distribution of a category that is certain: q(z = k) is 1 for one k and 0 for all others.

    It is what `Categorical` is with such probabilities, without K numbers for each of them. Unlike `Delta` it
    has probabilities, not a density: its entropy is 0, and

        KL(PointMass(k) || p) = -log p(k)

    exactly. It has no gradient.

    Args:
        value: The categories, `(*batch)`, whole numbers from 0 to `categories - 1`.
        categories: Number of categories.

    Example:
        >>> q = PointMass(torch.tensor([2, 0]), categories=3)
        >>> q.sample(), q.log_prob(torch.tensor([2, 2]))
        (tensor([2, 0]), tensor([0., -inf]))
        >>> torch.distributions.kl_divergence(q, dist.Categorical(torch.tensor([0.5, 0.25, 0.25])))
        tensor([1.3863, 0.6931])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True
    is_certain = True
    """That there is one value only, for rooms that do not know this class."""

    def __init__(self, value: Tensor, categories: int, validate_args: bool | None = None) -> None:
        self.value = value
        self.categories = categories
        super().__init__(value.shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Whole numbers from 0 to `categories - 1`."""
        return constraints.integer_interval(0, self.categories - 1)

    @property
    def marginals(self) -> Tensor:
        """The probability of each category, `(*batch, categories)`: 1 for one of them."""
        return one_hot(self.value, self.categories).to(torch.get_default_dtype())

    def expand(self, batch_shape: Any, _instance: Any = None) -> PointMass:
        """The same with a larger batch shape."""
        return PointMass(self.value.expand(batch_shape), self.categories, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The categories, `(*sample_shape, *batch)`."""
        return self.value.expand(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 where the value is that category, otherwise -inf."""
        if self._validate_args:
            self._validate_sample(value)
        zero = torch.zeros((), device=self.value.device)
        return torch.where(value == self.value, zero, -torch.inf)

    def entropy(self) -> Tensor:
        """0 for each."""
        return torch.zeros(self.batch_shape, device=self.value.device)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All categories, `(categories, *batch)`, or `(categories, 1, ...)`."""
        values = torch.arange(self.categories, device=self.value.device)
        values = values.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


@register_kl(PointMass, torch.distributions.Categorical)  # type: ignore[untyped-decorator]
def _kl(q: PointMass, p: torch.distributions.Categorical) -> Tensor:
    log_p: Tensor = p.log_prob(q.value)
    return -log_p


@register_kl(PointMass, PointMass)  # type: ignore[untyped-decorator]
def _kl_of_two(q: PointMass, p: PointMass) -> Tensor:
    return -p.log_prob(q.value)
