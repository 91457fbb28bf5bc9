"""The guide that is the true posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.distributions import MarkovChain, sample_steps


class Exact(nn.Module):
    """q(z | x) = p(z | x), from the model's own `posterior(x)`.

    The ELBO of this guide equals log p(x), and every importance weight is the same. It has no
    parameters: gradients flow into the model's, which belong to the model alone. The site is `z`,
    inside `pyro.plate("data", n, dim=-1)`; for a posterior that is a Markov chain `z_0`, `z_1`, ...

    Args:
        model: a model with `posterior(x)`.

    Raises:
        TypeError: the model has no `posterior`.

    Example:
        >>> import torch
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> guide = Exact(ProbabilisticPCA((3,), latent_dim=1))
        >>> guide.encode(torch.rand(5, 3)).mean.shape
        torch.Size([5, 1])
        >>> guide.state_dict()
        OrderedDict()
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        posterior = getattr(model, "posterior", None)
        if not callable(posterior):
            raise TypeError(
                f"Exact needs a model with a closed-form posterior(x), but {type(model).__name__} "
                f"has none; use MeanField or FullCovariance"
            )
        # The method, not the model: a module would be registered, and its parameters with it.
        self._posterior: Callable[..., dist.TorchDistribution] = posterior

    def forward(self, x: Tensor, *others: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`, and whatever else the model is given."""
        q = self.encode(x, *others)
        with pyro.plate("data", x.shape[0], dim=-1):
            if isinstance(q, MarkovChain):
                sample_steps("z", q, infer={"enumerate": "parallel"})
            else:  # a discrete latent is summed over: the ELBO then has no variance at all
                infer: Any = {"enumerate": "parallel"} if q.has_enumerate_support else {}
                pyro.sample("z", q, infer=infer)

    def encode(self, x: Tensor, *others: Tensor) -> dist.TorchDistribution:
        """Return q(z | x), of batch shape `(n,)`."""
        return self._posterior(x, *others)
