"""Effect handlers for the programs of a pair: scale the KL, set the values of latents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to

from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.ours import unbound
from ppl_vae.pairs.traces import Site, is_improper


class ScaleLatents(Messenger):
    """Multiplies the log density of every latent site by `scale`: the KL's weight beta.

    Apply it to model *and* guide, so that log p(z) and log q(z | x), or their analytic KL, are scaled
    alike. Unlike `poutine.scale`, it does not scale observed sites, and it allows a scale of zero.

    Args:
        scale: The factor.
        factors: The `pyro.factor` sites that are part of log q(z | x) (`Layout.factors`), which it scales, too:
            one outside of all plates like the same term in a `log_density`, as in Pyro's `Trace_ELBO` with
            `poutine.scale` around the latents; a factor that is no density keeps its weight.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro.poutine as poutine
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> trace = poutine.trace(ScaleLatents(4.0)(model)).get_trace()
        >>> trace.nodes["z"]["scale"], trace.nodes["x"]["scale"]
        (4.0, 1.0)
    """

    def __init__(self, scale: float | Tensor, factors: Collection[str] = ()) -> None:
        super().__init__()
        self.scale, self.factors = scale, factors

    def _pyro_sample(self, msg: Site) -> None:
        is_latent = not msg["is_observed"] or msg["name"] in self.factors
        if is_latent and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.scale


class ImproperStandIns(Messenger):
    """Gives latents with an improper density, which has no draws, a value of its support, such as 0.

    For a look at the sites of a model that is run without its guide. Nothing that is reported may depend on
    these values: see `require_proper`.

    Args:
        program: The model, whose dtype and device they have.
    """

    def __init__(self, program: object) -> None:
        super().__init__()
        owner = unbound(program)
        numbers = owner.parameters() if isinstance(owner, nn.Module) else ()
        self._like = next((p for p in numbers if p.is_floating_point()), torch.zeros(()))

    def _pyro_sample(self, msg: Site) -> None:
        if msg["value"] is None and not msg["is_observed"] and is_improper(msg):
            transform = biject_to(msg["fn"].support)
            shape = torch.Size((*msg["fn"].batch_shape, *msg["fn"].event_shape))
            msg["value"] = transform(self._like.new_zeros(transform.inverse_shape(shape)))


class Substitute(Messenger):
    """Sets latent sites to the given values; all other sites run as usual."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class LikeliestValues(Messenger):
    """Sets each site that would be drawn to the likeliest value of its distribution.

    That is the distribution's `mode`, or what its method `greedy()` returns: of a sentence the likeliest word,
    one after the other, as its likeliest sentence cannot be found. Where several values are as likely, and
    torch states NaN, it is a draw.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def program():
        ...     return pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))
        >>> LikeliestValues()(program)()
        tensor(1)
    """

    def _pyro_sample(self, msg: Site) -> None:
        if msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"], msg["done"] = likeliest(msg["fn"]), True


_WRAPPERS = (
    dist.torch_distribution.ExpandedDistribution,
    dist.torch_distribution.MaskedDistribution,
    dist.Independent,
)
"""What changes no value of a distribution."""


def likeliest(fn: Any) -> Tensor:
    """The likeliest value of a distribution, or nearly so: see `LikeliestValues`.

    Raises:
        PairError: The distribution states none.
    """
    shape = torch.Size((*fn.batch_shape, *fn.event_shape))
    inner = fn
    while True:
        greedy = getattr(inner, "greedy", None)
        try:
            value: Tensor = greedy() if callable(greedy) else inner.mode
        except (AttributeError, NotImplementedError):
            if not isinstance(inner, _WRAPPERS):
                raise PairError(
                    f"{type(fn).__name__} states no likeliest value: give the distribution a property `mode`, "
                    "or draw its values"
                ) from None
            inner = inner.base_dist  # Pyro's masked and expanded distributions state no mode
        else:
            value = value.expand(torch.broadcast_shapes(value.shape, shape))
            return torch.where(value.isnan(), fn.sample(), value) if value.isnan().any() else value
