"""The guide that is the true posterior."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.guides.parts import sample_z
from ppl_vae.networks import Rebuildable, require_positive
from ppl_vae.pairs import is_ours


class Exact(Rebuildable, nn.Module):
    """q(z | x) = p(z | x), from the model's own `posterior(x)`.

    The ELBO of this guide equals log p(x), and every importance weight is the same. It has no
    parameters of its own: gradients flow into the model's. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`; if the posterior is a Markov chain, the sites are `z_0`, `z_1`,
    ..., unless the chain says that it is `whole`. A discrete latent is marked for enumeration: the ELBO
    then has no variance at all.

    Args:
        model: A model with `posterior(x)`.
        beta: Another weight of the KL: then q is proportional to p(z) p(x | z)^(1 / beta), the best guide of
            the ELBO with this beta. For models of which `posterior(x, weight=1 / beta)` is that.

    Raises:
        TypeError: The model has no `posterior`, or its posterior takes no `weight`, where beta is not 1.
        ValueError: beta is not positive.

    Example:
        >>> import torch
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> guide = Exact(ProbabilisticPCA((3,), latent_dim=1))
        >>> guide.encode(torch.rand(5, 3)).mean.shape
        torch.Size([5, 1])
        >>> guide.state_dict()
        OrderedDict()
    """

    def __init__(self, model: nn.Module, beta: float = 1.0) -> None:
        super().__init__()
        require_positive(self, beta=beta)
        posterior = getattr(model, "posterior", None)
        if not callable(posterior):
            raise TypeError(
                f"Exact needs a model with a closed-form posterior(x), but {type(model).__name__} "
                f"has none; use MeanField or FullCovariance"
            )
        # The method, not the model: a module would be registered, and so would its parameters.
        self._posterior: Callable[..., dist.TorchDistribution] = posterior
        self.beta = float(beta)
        if self.beta != 1.0 and "weight" not in inspect.signature(posterior).parameters:
            raise TypeError(
                f"Exact: {type(model).__name__} knows its posterior at beta = 1 alone, not at {beta}: "
                "leave out beta"
            )

    def forward(self, x: Tensor, *others: Tensor) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`, and whatever else the model is given."""
        sample_z(self.encode(x, *others), x.shape[0])

    def is_posterior_of(self, model: object) -> bool:
        """Whether this is the posterior of a model of the library, each of which is tested.

        Then it leaves out no values of discrete latents, and `evaluate` can trust equal importance weights.

        Args:
            model: Any program.
        """
        own = is_ours(model, "models")
        same = getattr(self._posterior, "__self__", None) is model
        return own and same and self.beta == 1.0

    def encode(self, x: Tensor, *others: Tensor) -> dist.TorchDistribution:
        """q(z | x), of batch shape `(n,)`."""
        if self.beta == 1.0:
            return self._posterior(x, *others)
        return self._posterior(x, *others, weight=1 / self.beta)
