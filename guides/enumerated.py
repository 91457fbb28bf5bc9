"""The exact posterior of a model whose latents have few values, found by running the model at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.guides.log_joint import Model, hidden_trace, log_joint, repeat_rows, rows_plate
from ppl_vae.networks import Rebuildable
from ppl_vae.pairs import innermost, latent_sites

MOST_COMBINATIONS = 4096
"""Combinations of a row's latent values above which the model is not enumerated."""


class Enumerated(Rebuildable, nn.Module):
    """q(z | x) = p(z | x) = p(x, z) / sum_z' p(x, z'), the sum by running the model at every z'.

    For a model that is given a context, `model(x, c)`, it is p(z | x, c) = p(x, z | c) / sum_z' p(x, z' | c),
    and runs on `(x, c)`.

    For a Pyro model whose latents all have a finite support and are inside its plate over rows, one
    or a few per row. Several form one z, of all combinations of their values, and are sampled one
    after the other, q(z_1 | x) q(z_2 | z_1, x) ... The names of sites and plate and the plate's
    dimension are the model's. The sites are marked for enumeration, so that `ELBO` takes the exact
    gradient.

    The ELBO of this guide equals log p(x), for every sample. It has no parameters of its own:
    gradients flow into the model's. The guide runs the model, hidden from all handlers, on the rows
    repeated for every combination.

    Args:
        model: A Pyro program `model(x)`, or one that takes more for each row, such as `model(x, c)`.

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> Enumerated(model).log_posterior(torch.tensor([1.0, 3.0])).exp()
        tensor([[0.5000, 0.5000],
                [0.0180, 0.9820]])
        >>> def conditional(x, c):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(c * z, 1.0), obs=x)
        >>> x, c = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])
        >>> Enumerated(conditional).log_posterior(x, c).exp()
        tensor([[0.5000, 0.5000],
                [0.9820, 0.0180]])
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        # In a tuple: as an attribute it would be registered, and so would its parameters.
        self._model = (model,)

    def forward(self, x: Tensor, *others: Tensor | None) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`, and whatever else the model is given, `(n, ...)` each.

        Raises:
            ValueError: A latent of the model is not finite, or not in the plate over rows alone,
                or there are more than 4096 combinations, or there is no latent.
        """
        sites, frame = self._latents(x, others)
        table = self._log_posterior(x, others, sites, frame)
        with pyro.plate(frame.name, x.shape[0], dim=frame.dim):
            for left in range(len(sites), 0, -1):
                site = sites[-left]
                logits = table.logsumexp(tuple(range(1 - left, 0))) if left > 1 else table
                value = pyro.sample(site.name, site.q(logits), infer={"enumerate": "parallel"})
                if left > 1:
                    table = _at(table, site.index(value), left)

    def log_posterior(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """log p(z | x) at all values of z, in nats, differentiable; if the model is given c, log p(z | x, c).

        Args:
            x: Data, `(n, *data_shape)`.
            *others: Whatever else the model is given, `(n, ...)` each.

        Returns:
            `(n, k_1, ..., k_m)` for m latent sites of k_1, ..., k_m values, in the model's order.

        Raises:
            ValueError: As for `forward`.
        """
        sites, frame = self._latents(x, others)
        table = self._log_posterior(x, others, sites, frame)
        return table.reshape(x.shape[0], *(len(site.values) for site in sites))

    def _latents(self, x: Tensor, others: Sequence[Tensor | None]) -> tuple[list[_Site], Any]:
        """The model's latents and its plate over rows."""
        n = x.shape[0]
        (model,) = self._model
        latents = latent_sites(hidden_trace(model, x, {}, others))
        if not latents:
            raise ValueError("Enumerated: the model has no latent site")
        for name, node in latents.items():
            frame = rows_plate(name, node, n)
            if not node["fn"].has_enumerate_support:
                raise ValueError(
                    f"Enumerated: the model's latent site '{name}' is a {type(node['fn']).__name__}"
                    f", whose values cannot be counted; use a guide that samples it, such as "
                    f"MeanField"
                )
            if node["fn"].batch_shape.numel() != n:
                raise ValueError(
                    f"Enumerated: the model's latent site '{name}' has batch shape "
                    f"{tuple(node['fn'].batch_shape)}, more than one value per row: give each value "
                    f"of a row a site of its own in plate '{frame.name}'"
                )
        sites = [_Site(name, node["fn"]) for name, node in latents.items()]
        combinations = math.prod(len(site.values) for site in sites)
        if combinations > MOST_COMBINATIONS:
            raise ValueError(
                f"Enumerated: the latents of a row have {combinations} combinations of values, more "
                f"than {MOST_COMBINATIONS}; use an amortized guide"
            )
        return sites, frame

    def _log_posterior(
        self, x: Tensor, others: Sequence[Tensor | None], sites: list[_Site], frame: Any
    ) -> Tensor:
        """As `log_posterior`, `(n, 1, ..., k_1, ..., k_m)`, with a 1 per dim to the right of the rows."""
        n, sizes = x.shape[0], [len(site.values) for site in sites]
        inner = (1,) * (-frame.dim - 1)
        numbers = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in sizes))
        numbers = numbers.reshape(-1, len(sites))
        values = {
            site.name: site.values[i].repeat_interleave(n, 0).reshape(-1, *inner, *site.event_shape)
            for site, i in zip(sites, numbers.unbind(1), strict=True)
        }
        (model,) = self._model
        beside = [None if other is None else repeat_rows(other, len(numbers)) for other in others]
        joint = log_joint(model, repeat_rows(x, len(numbers)), values, beside)
        return joint.reshape(len(numbers), n).T.log_softmax(-1).reshape(n, *inner, *sizes)


def _at(table: Tensor, index: Tensor, left: int) -> Tensor:
    """`table[..., index, :, ...]`: each row's `index` into the first of the last `left` dimensions."""
    sizes = table.shape[table.dim() - left :]
    batch = torch.broadcast_shapes(index.shape, table.shape[: table.dim() - left])
    index = index.expand(batch).reshape(*batch, *(1,) * left).expand(*batch, 1, *sizes[1:])
    return table.expand(*batch, *sizes).gather(len(batch), index).squeeze(len(batch))


class _Site:
    """A finite latent of the model.

    Attributes:
        values: Its support, `(k, *event_shape)`.
    """

    def __init__(self, name: str, fn: Any) -> None:
        self.name = name
        self.fn = fn
        self.event_shape = fn.event_shape
        self.values: Tensor = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)

    def q(self, logits: Tensor) -> dist.TorchDistribution:
        """The distribution over the values with these logits, `(*batch, k)`."""
        fn = innermost(self.fn)
        if isinstance(fn, torch.distributions.Categorical):  # torch knows its KL
            return dist.Categorical(logits=logits)
        return _Finite(self.values, logits, fn.support)

    def index(self, value: Tensor) -> Tensor:
        """Which of `values` a value `(*batch, *event_shape)` is, `(*batch)`."""
        return _matches(self.values, value).to(torch.uint8).argmax(-1)


class _Finite(dist.TorchDistribution):
    """A distribution over a list of values with given log probabilities.

    Args:
        values: `(k, *event)`.
        logits: `(*batch, k)`.
        support: The constraint that the values satisfy.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, values: Tensor, logits: Tensor, support: Any) -> None:
        self.values = values
        self.choice = dist.Categorical(logits=logits)
        self._support = support
        super().__init__(self.choice.batch_shape, values.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        """The constraint of the model's own distribution."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Finite:
        """The same distribution with a larger batch shape."""
        logits = self.choice.logits
        return _Finite(self.values, logits.expand(*batch_shape, len(self.values)), self._support)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws values, `(*sample_shape, *batch, *event)`."""
        return self.values[self.choice.sample(sample_shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of a value; -inf if it is none of the values."""
        matches = _matches(self.values, value)
        log_prob: Tensor = self.choice.log_prob(matches.to(torch.uint8).argmax(-1))
        return torch.where(matches.any(-1), log_prob, -torch.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, `(k, 1 ... or *batch, *event)`."""
        batch, event = self.batch_shape, self.event_shape
        values = self.values.reshape(-1, *(1,) * len(batch), *event)
        return values.expand(-1, *batch, *event) if expand else values


def _matches(values: Tensor, value: Tensor) -> Tensor:
    """Whether each `(*batch, *event)` equals each of the `(k, *event)` values: booleans, `(*batch, k)`."""
    event_dim = values.dim() - 1
    same = value.unsqueeze(value.dim() - event_dim) == values
    return same.flatten(same.dim() - event_dim).all(-1) if event_dim else same
