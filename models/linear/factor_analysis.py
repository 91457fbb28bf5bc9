"""Factor analysis: probabilistic PCA whose noise differs from value to value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.linear.linear_gaussian import LinearGaussian, regress
from ppl_vae.models.mixtures.components import row_chunks


class FactorAnalysis(nn.Module):
    """A linear Gaussian model: z ~ N(0, I) and x = W z + mu + eps with eps ~ N(0, Psi), Psi diagonal.

    Marginally x ~ N(mu, W W^T + Psi); with M = I + W^T Psi^-1 W the posterior is
    N(M^-1 W^T Psi^-1 (x - mu), M^-1). EM has closed forms (Rubin & Thayer 1982, "EM algorithms for ML
    factor analysis"): with u = (z, 1), (W, mu) = (sum x E[u]^T) (sum E[u u^T])^-1 and Psi the diagonal of
    the mean squared residual. Rows of any shape are flattened, to D values.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at
    `dim=-2`.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number q of latent dimensions.
        min_scale: the least standard deviation of the noise that the M step sets, in units of the data:
            without one, a value that never varies (a pixel at the border) has infinite density.

    Attributes:
        weight: W, `(D, q)`.
        mean: mu, `(D,)`.
        log_sigma: half the logarithm of Psi's diagonal, `(D,)`.

    Raises:
        ValueError: `latent_dim` or `min_scale` is not positive.

    Example:
        >>> x = torch.randn(500, 4) @ torch.randn(4, 4)
        >>> model = FactorAnalysis((4,), latent_dim=1)
        >>> model.initialize(x, seed=0)
        >>> before = model.log_evidence(x).sum()
        >>> model.maximize(model.expected_statistics(x))
        >>> bool(model.log_evidence(x).sum() > before)
        True
    """

    prior_loc: Tensor
    centre: Tensor

    def __init__(
        self, data_shape: Sequence[int], latent_dim: int = 2, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"FactorAnalysis.latent_dim must be at least 1, came {latent_dim}")
        if not min_scale > 0:
            raise ValueError(f"FactorAnalysis.min_scale must be positive, came {min_scale}")
        self.data_shape = tuple(data_shape)
        self.latent_dim = latent_dim
        self.min_scale = min_scale
        size = math.prod(self.data_shape)
        # W = 0 is a saddle point of the likelihood; start away from it, at unit signal variance.
        self.weight = nn.Parameter(torch.randn(size, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.zeros(size))
        self.log_sigma = nn.Parameter(torch.zeros(size))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        # The point about which EM takes moments: fixed, so that statistics of any time add up.
        self.register_buffer("centre", torch.zeros(size))

    def forward(self, x: Tensor) -> None:
        """Run the model on `x`, `(n, *data_shape)`.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        self._flatten(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def prior(self) -> dist.Independent:
        """Return p(z), of event shape `(latent_dim,)`."""
        return dist.Independent(dist.Normal(self.prior_loc, 1.0), 1)

    def decode(self, z: Tensor) -> dist.Independent:
        """Return p(x | z) for latents `(*batch, latent_dim)`: batch shape `batch`."""
        mean = z @ self.weight.T + self.mean
        mean = mean.reshape(*z.shape[:-1], *self.data_shape)
        scale = self.log_sigma.exp().reshape(self.data_shape)
        return dist.Independent(dist.Normal(mean, scale), len(self.data_shape))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        return self._linear(self.weight.dtype).log_evidence(self._flatten(x))

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Return p(z | x), of batch shape `(n,)` and event shape `(latent_dim,)`.

        Gradients flow into the parameters.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        linear = self._linear(self.weight.dtype)
        mean = linear.posterior_mean(self._flatten(x))
        return dist.MultivariateNormal(mean, scale_tril=linear.posterior_scale_tril())

    @torch.no_grad()
    def initialize(self, x: Tensor, seed: int = 0) -> None:
        """Start at the principal components of the standardised data; a start without chance.

        Each value is divided by its standard deviation; W are the first q principal components of the
        outcome, in the data's units, less the noise of probabilistic PCA, and Psi is what they leave of
        the variance.

        Args:
            x: data, `(n, *data_shape)`.
            seed: not used.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        rows = self._flatten(x).double()
        mean, scale = rows.mean(0), rows.std(0, correction=0).clamp_min(self.min_scale)
        # Rows about their mean one at a time cost memory; the correlations are D x D.
        scaled = (rows - mean) / scale
        values, directions = torch.linalg.eigh(scaled.T @ scaled / len(rows))
        kept = min(self.latent_dim, len(values))
        noise = values[:-kept].mean() if kept < len(values) else values.new_zeros(())
        lengths = (values[-kept:] - noise).clamp_min(0).sqrt()
        weight = scale.unsqueeze(1) * directions[:, -kept:] * lengths
        self.weight.zero_()
        self.weight[:, :kept] = weight.flip(1).to(self.weight.dtype)
        self.mean.copy_(mean)
        self.centre.copy_(mean)
        left = scale.square() - weight.square().sum(1)
        # At least a tenth: EM leaves a Psi near 0 only slowly.
        self._set_sigma(torch.maximum(left, 0.1 * scale.square()))

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """The E step: sufficient statistics under p(z | x), summed over the rows, in float64.

        Args:
            x: data, `(n, *data_shape)`.
            hard: whether z is its posterior's mode and not spread around it.

        Returns:
            `xu`, `uu` and `xx` (see `regression_statistics`; x about `centre`),
            `num_rows`, and `log_evidence`: the sum of log p(x), if hard of log p(x, z).

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        linear = self._linear(torch.float64, self.centre)
        chunks = row_chunks(self._flatten(x), 2 * len(self.mean))
        return linear.expected_statistics(
            (chunk.double() - self.centre.double() for chunk in chunks), hard
        )

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """The M step: set W, mu and Psi to the maximiser for the statistics of an E step.

        Warns of values whose noise was raised to `min_scale`.
        """
        weight, mean, variance = regress(statistics["xu"], statistics["uu"], statistics["xx"])
        self.weight.copy_(weight)
        self.mean.copy_(mean + self.centre.double())
        narrow = int((variance < self.min_scale**2).sum())
        if narrow:
            warnings.warn(
                f"the noise of {narrow} of {len(variance)} values would fall below min_scale and was raised "
                f"to it",
                stacklevel=2,
            )
        self._set_sigma(variance)

    def _set_sigma(self, variance: Tensor) -> None:
        self.log_sigma.copy_(variance.sqrt().clamp_min(self.min_scale).log())

    def _linear(self, dtype: torch.dtype, centre: Tensor | None = None) -> LinearGaussian:
        """The model's parameters in a precision, for data about a centre."""
        mean = self.mean.to(dtype)
        mean = mean if centre is None else mean - centre.to(dtype)
        return LinearGaussian(self.weight.to(dtype), mean, self.log_sigma.to(dtype).exp())

    def _flatten(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"FactorAnalysis was built for data of shape (n, "
                f"{', '.join(map(str, self.data_shape))}), but x has shape {tuple(x.shape)}: pass "
                f"the data's shape as data_shape"
            )
        return x.reshape(x.shape[0], -1)
