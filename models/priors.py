"""Priors p(z) for a `VAE`: what a prior is, and those with closed forms.

A prior is described by a small frozen object that knows no sizes, and built by the model, as a
network is. What is built is an `nn.Module` whose `forward()` returns p(z), so that `model.prior()`
is p(z) whatever the prior:

>>> from ppl_vae.models import VAE
>>> model = VAE((1, 8, 8), latent_dim=3, prior=MixturePrior(components=5))
>>> p = model.prior()
>>> p.sample((7,)).shape, p.log_prob(torch.zeros(7, 3)).shape
(torch.Size([7, 3]), torch.Size([7]))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Prior(ABC):
    """What a model needs to build its p(z).

    To write one of your own, derive from this class and give it `build`.
    """

    @abstractmethod
    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """Build p(z).

        Args:
            data_shape: shape of one row of the data.
            latent_dim: number of latent dimensions.

        Returns:
            A module whose `forward()` returns a distribution of batch shape `()` and event shape
            `(latent_dim,)`. For `ppl_vae.refit_prior` it has a method `fit_to(mean, variance, draws)`
            that maximises E_q log p(z), given the moments of each row's q(z | x), `(n, latent_dim)`,
            and draws from it, `(num_draws, n, latent_dim)`. If a part of it has a method
            `attach_guide(guide)`, `load_run` and the command line call that; it then also has
            `keep_guide()`, which makes a copy of the guide a part of the model.
        """


@dataclass(frozen=True)
class StandardNormal(Prior):
    """p(z) = N(0, I), without parameters; what a `VAE` has if it is given no prior.

    Example:
        >>> StandardNormal().build((3,), latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Standard(latent_dim)


@dataclass(frozen=True)
class DiagonalNormal(Prior):
    """p(z) = N(mu, diag(sigma^2)), with mu and sigma learned; it starts at N(0, I).

    The least that makes an autoencoder's code a thing to sample from, once it is fitted to the
    aggregate posterior: see `ppl_vae.refit_prior`.

    Example:
        >>> DiagonalNormal().build((3,), latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379, grad_fn=<SumBackward1>)
    """

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Diagonal(latent_dim)


@dataclass(frozen=True)
class MixturePrior(Prior):
    """p(z) = sum_k pi_k N(z; mu_k, diag(sigma_k^2)), with weights, means and scales learned.

    At the start the weights are equal and the means are draws from N(0, I / 2), with scales of
    sqrt(1/2): apart, and together of a standard normal's scale.

    Args:
        components: number K of components.

    Raises:
        ValueError: `components` is not positive.

    Example:
        >>> prior = MixturePrior(components=5).build((3,), latent_dim=2)
        >>> {name: tuple(p.shape) for name, p in prior.named_parameters()}
        {'logits': (5,), 'loc': (5, 2), 'raw_scale': (5, 2)}
    """

    components: int = 10

    def __post_init__(self) -> None:
        require_components("MixturePrior", self.components)

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        return _Mixture(latent_dim, self.components)


def require_components(name: str, components: int) -> None:
    """Raise a ValueError unless there is a component."""
    if components < 1:
        raise ValueError(f"{name}.components must be at least 1, came {components}")


class _Standard(nn.Module):
    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        return dist.Independent(dist.Normal(self.loc, 1.0), 1)


class _Diagonal(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(_raw(torch.ones(latent_dim)))

    def forward(self) -> dist.Independent:
        return dist.Independent(dist.Normal(self.loc, _scale(self.raw_scale)), 1)

    @torch.no_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Set the moments to those of (1/n) sum_i q(z | x_i), which maximise E_q log p(z)."""
        self.loc.copy_(mean.mean(0))
        total = variance.mean(0) + mean.var(0, unbiased=False)
        self.raw_scale.copy_(_raw(total.sqrt()))


class _Mixture(nn.Module):
    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(components, latent_dim))
        half = torch.full((components, latent_dim), math.sqrt(0.5))
        self.raw_scale = nn.Parameter(_raw(half))

    def forward(self) -> dist.MixtureSameFamily:
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits),
            dist.Independent(dist.Normal(self.loc, _scale(self.raw_scale)), 1),
        )

    @torch.no_grad()
    def fit_to(self, mean: Tensor, variance: Tensor, draws: Tensor) -> None:
        """Set weights, means and scales by EM on the draws, from a k-means start."""
        from sklearn.mixture import GaussianMixture  # a second to import, and seldom needed

        z = draws.flatten(0, 1).double().cpu()
        z = z[torch.randperm(len(z))[:_EM_DRAWS]]
        seed = int(torch.randint(2**31, ()))
        components = len(self.logits)
        em = GaussianMixture(components, covariance_type="diag", max_iter=500, random_state=seed)
        em.fit(z.numpy())
        self.logits.copy_(torch.as_tensor(em.weights_).log())
        self.loc.copy_(torch.as_tensor(em.means_))
        self.raw_scale.copy_(_raw(torch.as_tensor(em.covariances_).sqrt()))


_EM_DRAWS = 100_000
"""Draws that EM looks at, of however many there are."""

_LEAST = 1e-6
"""The scale never reaches 0, where a density would become infinite."""


def _scale(raw: Tensor) -> Tensor:
    """A positive scale from any real number; it grows linearly, so it can not overflow."""
    return softplus(raw) + _LEAST


def _raw(scale: Tensor) -> Tensor:
    """The inverse of `_scale`: log(exp(s) - 1) = s + log(1 - exp(-s))."""
    s = (scale - _LEAST).clamp_min(_LEAST)
    return s + (-torch.expm1(-s)).log()
