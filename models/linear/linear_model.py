"""The base class of the linear Gaussian models: everything except their noise."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.linear.linear_gaussian import LinearGaussian, regress
from ppl_vae.models.rows import RowModel, as_vectors, row_chunks
from ppl_vae.networks import require_at_least_one, require_room


class LinearModel(RowModel):
    """z ~ N(0, I) and x = W z + mu + eps with independent normal noise eps.

    A model derives from this class, creates `log_sigma` and `centre`, and says in `_maximize_noise` how EM
    sets the noise.

    Args:
        data_shape: Shape of one row of the data, of D values.
        latent_dim: Number q of latent dimensions.

    Attributes:
        weight: W, `(D, q)`.
        mean: mu, `(D,)`.
        log_sigma: log of the noise's standard deviation: of all values, `()`, or of each, `(D,)`.
        centre: The point about which EM takes moments, `(D,)`. It keeps them from canceling far from the
            origin, and stays where `initialize` puts it, so that statistics of different steps add up.

    Raises:
        ValueError: `latent_dim` is not positive.
    """

    prior_loc: Tensor
    log_sigma: Tensor
    centre: Tensor

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        size = math.prod(self.data_shape)
        require_room(self, "choose a smaller latent_dim or data_shape", size, latent_dim)
        # W = 0 is a saddle point of the likelihood: start away from it, at unit signal variance.
        self.weight = nn.Parameter(torch.randn(size, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.zeros(size))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    @abstractmethod
    def _maximize_noise(self, variance: Tensor) -> None:
        """Sets `log_sigma` to the maximizer, given each value's mean squared residual, `(D,)`.

        Warns if the noise would be too small.
        """

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self.decode(z), obs=x)

    def prior(self) -> dist.Independent:
        """p(z), of event shape `(latent_dim,)`."""
        return dist.Independent(dist.Normal(self.prior_loc, 1.0), 1)

    def decode(self, z: Tensor) -> dist.Independent:
        """p(x | z) for latents `(*batch, latent_dim)`: batch shape `batch`."""
        mean = z @ self.weight.T + self.mean
        mean = mean.reshape(*z.shape[:-1], *self.data_shape)
        scale = self.log_sigma.exp()
        scale = scale.reshape(self.data_shape) if scale.ndim else scale
        return dist.Independent(dist.Normal(mean, scale), len(self.data_shape))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return self._linear(self.weight.dtype).log_evidence(as_vectors(self, x))

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x), of batch shape `(n,)` and event shape `(latent_dim,)`.

        Gradients flow into the parameters.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        linear = self._linear(self.weight.dtype)
        mean = linear.posterior_mean(as_vectors(self, x))
        return dist.MultivariateNormal(mean, scale_tril=linear.posterior_scale_tril())

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """The E step's sufficient statistics under p(z | x), summed over the rows, in float64.

        Args:
            x: Data, `(n, *data_shape)`.
            hard: Take the posterior's mode for z, without the spread around it.

        Returns:
            "xu", "uu" and "xx" (see `regression_statistics`) of rows about `centre`; "log_evidence", the sum
            of log p(x), or if `hard` of max_z log p(x, z); "num_rows".

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        centre = self.centre.double()
        linear = self._linear(torch.float64, centre)
        chunks = row_chunks(as_vectors(self, x), 2 * len(self.mean))
        return linear.expected_statistics((chunk.double() - centre for chunk in chunks), hard)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M step: sets W, mu and a learned noise to the maximizer of the expected log p(x, z).

        (W, mu) = (sum x E[u]^T) (sum E[u u^T])^-1 with u = (z, 1). Warns of noise that would fall below
        its least value, and was raised to it.

        Args:
            statistics: Those of an E step.
        """
        weight, mean, variance = regress(statistics["xu"], statistics["uu"], statistics["xx"])
        self.weight.copy_(weight)
        self.mean.copy_(mean + self.centre.double())
        self._maximize_noise(variance)

    def _linear(self, dtype: torch.dtype, centre: Tensor | float = 0.0) -> LinearGaussian:
        """The model's parameters in a precision, for data about a center."""
        mean = self.mean.to(dtype) - centre
        return LinearGaussian(self.weight.to(dtype), mean, self.log_sigma.to(dtype).exp())
