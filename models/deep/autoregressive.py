"""An autoregressive model: no latents, and an exact log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.distributions import zuko
from ppl_vae.models.rows import RowModel, require_shape
from ppl_vae.networks import full_precision, require_at_least_one, require_room, require_widths


class Autoregressive(RowModel):
    """p(x) = prod_i p(x_i | x_1, ..., x_{i-1}) over the values of a row, by one masked network.

    The values are categories 0, 1, ..., `categories - 1`, in the order of the flattened row. The
    network sees them as one-hot vectors and is masked so that the logits of x_i depend on earlier
    values only ("MADE: Masked Autoencoder for Distribution Estimation", arXiv:1502.03509). A
    row's log p(x) takes one pass, a draw one pass per value.

    There are no latents: the guide is a function that does nothing, and the ELBO is log p(x). The
    site is `x`, inside `pyro.plate("data", n, dim=-1)`.

    Args:
        data_shape: Shape of one row of the data, of at least two values.
        categories: Number of values that each entry can take.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: There are fewer than two values or two categories, or a width is not positive.

    Example:
        >>> model = Autoregressive((2, 2), hidden=(16,))
        >>> x = model.marginal().sample((5,))
        >>> x.shape, model.log_evidence(x).shape
        (torch.Size([5, 2, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        categories: int = 2,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, categories=categories)
        self.categories = categories
        size = math.prod(self.data_shape)
        if size < 2 or categories < 2:
            raise ValueError(
                f"Autoregressive needs rows of at least two values and at least two categories, got "
                f"data_shape {self.data_shape} and {categories} categories"
            )
        require_widths(self, hidden=hidden, allow_empty=True)
        advice = "choose a smaller data_shape, fewer categories or another model"
        require_room(self, advice, size * categories, size * (categories - 1))
        earlier = torch.ones(size, size, dtype=torch.bool).tril(-1)
        # One number less than categories per value: category 0 is the one where all are 0.
        adjacency = earlier.repeat_interleave(categories, 0).repeat_interleave(categories - 1, 1)
        self.network = zuko.nn.MaskedMLP(adjacency, tuple(hidden))

    def _program(self, x: Tensor) -> None:
        pyro.sample("x", self.marginal(), obs=x)

    def marginal(self) -> AutoregressiveCategorical:
        """p(x), of event shape `data_shape`."""
        parameter = next(self.network.parameters())
        empty = torch.zeros(self.data_shape, dtype=parameter.dtype, device=parameter.device)
        return AutoregressiveCategorical(self.logits, empty, self.categories)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        require_shape(self, x, *self.data_shape)
        return self.marginal().log_prob(x)

    def logits(self, x: Tensor) -> Tensor:
        """The logits of every value given those before it: `(*batch, *data_shape, categories)`."""
        batch = x.shape[: x.ndim - len(self.data_shape)]
        dtype = next(self.network.parameters()).dtype
        others = torch.arange(1, self.categories, device=x.device)
        one_hot = (x.unsqueeze(-1) == others).to(dtype).reshape(*batch, self.network.in_features)
        outputs = full_precision(self.network(one_hot))
        return outputs.reshape(*batch, *self.data_shape, self.categories)


class AutoregressiveCategorical(dist.TorchDistribution):
    """The distribution of rows whose values are categorical given those before them.

    Args:
        logits: Maps rows `(*batch, *data_shape)` to logits `(*batch, *data_shape, categories)`. The logits of
            a value must not depend on it or on later ones, in the order of the flattened row.
        empty: The row that a draw starts from: zeros of the data's shape, dtype and device.
        categories: Number of values that each entry can take.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        empty: Tensor,
        categories: int,
        validate_args: bool | None = None,
    ) -> None:
        self._logits = logits
        self._empty = empty
        self.categories = categories
        super().__init__(event_shape=empty.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """0, 1, ..., `categories - 1`."""
        values = constraints.integer_interval(0, self.categories - 1)
        return constraints.independent(values, len(self.event_shape))

    def conditionals(self, x: Tensor) -> dist.TorchDistribution:
        """p(x_i | x_1, ..., x_{i-1}) of all i, for rows `(*batch, *data_shape)`, as independent values."""
        each = dist.Categorical(logits=self._logits(x))
        found: dist.TorchDistribution = each.to_event(len(self.event_shape))
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) of the rows of `value`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = self._logits(value).log_softmax(-1).gather(-1, value.long().unsqueeze(-1))
        total: Tensor = log_p.flatten(log_p.ndim - len(self.event_shape) - 1).sum(-1)
        return total

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws rows, `(*sample_shape, *data_shape)`, one value after the other."""
        with torch.no_grad():
            rows = self._empty.expand(*sample_shape, *self.event_shape).clone()
            values = rows.view(*sample_shape, -1)
            for i in range(values.shape[-1]):
                logits = self._logits(rows).view(*values.shape, self.categories)
                values[..., i] = dist.Categorical(logits=logits[..., i, :]).sample()
            return rows
