"""Probabilistic principal component analysis: the VAE whose every quantity is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.models.linear.linear_gaussian import LinearGaussian, regress
from ppl_vae.models.mixtures.components import row_chunks

MIN_SCALE = 1e-3
"""The least sigma that EM sets, in units of the data."""


class ProbabilisticPCA(nn.Module):
    """A linear Gaussian model: z ~ N(0, I) and x = W z + mu + sigma eps with eps ~ N(0, I).

    Marginally x ~ N(mu, C), C = W W^T + sigma^2 I. With M = I + W^T W / sigma^2 the posterior is
    N(M^-1 W^T (x - mu) / sigma^2, M^-1) (Tipping & Bishop 1999, "Probabilistic Principal Component
    Analysis"). It is the VAE with a linear decoder and Gaussian noise ("Don't Blame the ELBO!",
    arXiv:1911.02469). Rows of any shape are flattened, to D values.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go
    outside, at `dim=-2`.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number q of latent dimensions.
        sigma: standard deviation of the noise, in units of the data; where it starts if learned.
        learn_sigma: whether sigma is a parameter.

    Attributes:
        weight: W, `(D, q)`.
        mean: mu, `(D,)`.
        log_sigma: log sigma, `()`.

    Raises:
        ValueError: `latent_dim` or `sigma` is not positive.

    Example:
        >>> x = torch.randn(500, 3) * torch.tensor([3.0, 1.0, 0.1])
        >>> model = ProbabilisticPCA((3,), latent_dim=1).maximum_likelihood(x)
        >>> model.posterior(x).event_shape, model.log_evidence(x).shape
        (torch.Size([1]), torch.Size([500]))
    """

    prior_loc: Tensor
    log_sigma: Tensor
    centre: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        sigma: float = 1.0,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"ProbabilisticPCA.latent_dim must be at least 1, came {latent_dim}")
        if not sigma > 0:
            raise ValueError(f"ProbabilisticPCA.sigma must be positive, came {sigma}")
        self.data_shape = tuple(data_shape)
        self.latent_dim = latent_dim
        size = math.prod(self.data_shape)
        # W = 0 is a saddle point of the likelihood; start away from it, at unit signal variance.
        self.weight = nn.Parameter(torch.randn(size, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.zeros(size))
        log_sigma = torch.tensor(float(sigma)).log()
        if learn_sigma:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        # What EM takes moments about, so that they do not cancel far from the origin.
        self.register_buffer("centre", torch.zeros(size), persistent=False)

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
        return dist.Independent(dist.Normal(mean, self.log_sigma.exp()), len(self.data_shape))

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
    def maximum_likelihood(self, x: Tensor, beta: float = 1.0) -> Self:
        """Set the parameters to the optimum of the beta-ELBO for `x`; beta = 1: of log p(x).

        With the best possible guide, q(z | x) proportional to p(z) p(x | z)^(1 / beta), the
        beta-ELBO E_q[log p(x | z)] - beta KL(q || p) of a row is

            beta log N(x; mu, W W^T + beta sigma^2 I) + (beta - 1) D/2 log(2 pi sigma^2)
            + beta D/2 log beta.

        So mu is the sample mean and, with l_1 >= l_2 >= ... the eigenvalues and U the eigenvectors
        of the sample covariance (1/n) sum (x - mu)(x - mu)^T,

            W = U_q (L_q - beta sigma^2 I)_+^(1/2),

        with the columns in this order, unrotated: dimension i collapses iff l_i <= beta sigma^2.
        That W is also the optimum for a mean-field guide, because its posterior is diagonal.
        A fixed sigma stays. The derivative by log sigma^2 vanishes for a learned one where

            sum_{i <= q} min(l_i / sigma^2, beta) + sum_{i > q} l_i / sigma^2 = D,

        whose left side falls in sigma, so the root is unique: with a active dimensions,

            sigma^2 = sum_{i > a} l_i / (D - a beta),

        for beta = 1 the mean of the discarded eigenvalues (where q = D > 1 too few are discarded:
        then a = D - 1, one of many equal optima).

        Args:
            x: data, `(n, *data_shape)`.
            beta: weight of the KL.

        Returns:
            The model itself.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`, `beta` is not positive,
                or sigma is learned and has no optimum, because q dimensions hold all the variance.
        """
        if not beta > 0:
            raise ValueError(f"beta must be positive, came {beta}")
        rows = self._flatten(x).double()
        mean = rows.mean(0)
        eigenvalues, directions = _principal_components(rows - mean)
        if isinstance(self.log_sigma, nn.Parameter):
            variance = self._best_variance(eigenvalues, beta)
            self.log_sigma.copy_(variance.log() / 2)
        else:
            variance = (2 * self.log_sigma.double()).exp()
        kept = min(self.latent_dim, len(eigenvalues))
        scales = (eigenvalues[:kept] - beta * variance).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.weight.zero_()
        self.weight[:, :kept] = (directions[:kept].T * scales).to(self.weight.dtype)
        return self

    @torch.no_grad()
    def initialize(self, x: Tensor, seed: int) -> None:
        """Start EM at random directions: mu the mean, W and sigma^2 half of the variance each.

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        rows = self._flatten(x).double()
        self.mean.copy_(rows.mean(0))
        self.centre.copy_(self.mean)
        variance = rows.var(0, correction=0).mean()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.weight.shape, generator=generator, dtype=torch.float64)
        scale = (variance / (2 * self.latent_dim)).sqrt()
        self.weight.copy_(weight.to(rows.device) * scale)
        if isinstance(self.log_sigma, nn.Parameter):
            self.log_sigma.copy_((variance / 2).clamp_min(MIN_SCALE**2).log() / 2)

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """Return the E step's statistics of `x`, `(n, *data_shape)`: sums over its rows, in float64.

        Args:
            x: data.
            hard: take the posterior's mode for z, without the spread around it.

        Returns:
            "xu", "uu" and "xx" (see `regression_statistics`), of rows about
            `centre`; "log_evidence", the sum of log p(x), hard: of max_z log p(x, z); "num_rows".

        Raises:
            ValueError: the rows of `x` do not have the shape `data_shape`.
        """
        linear = self._linear(torch.float64, self.centre.double())
        chunks = row_chunks(self._flatten(x), 2 * len(self.mean))
        return linear.expected_statistics(
            (chunk.double() - self.centre.double() for chunk in chunks), hard
        )

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Set W, mu and a learned sigma to the maximiser of the expected log p(x, z).

        (W, mu) = (sum x E[u]^T) (sum E[u u^T])^-1 with u = (z, 1), and sigma^2 is the mean squared
        residual (Tipping & Bishop 1999, appendix B, who hold mu at the mean). Warns of a sigma that
        would fall below 0.001, which is the least it is set to.
        """
        weight, mean, variances = regress(statistics["xu"], statistics["uu"], statistics["xx"])
        self.weight.copy_(weight)
        self.mean.copy_(mean + self.centre)
        if isinstance(self.log_sigma, nn.Parameter):
            variance = variances.mean()
            if float(variance) < MIN_SCALE**2:
                warnings.warn(
                    f"sigma would fall below {MIN_SCALE} and was raised to it: use more rows, a "
                    f"smaller latent_dim or learn_sigma=False",
                    stacklevel=2,
                )
            self.log_sigma.copy_(variance.clamp_min(MIN_SCALE**2).log() / 2)

    def _best_variance(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """The learned sigma^2 of `maximum_likelihood`, for eigenvalues in falling order."""
        size = len(self.mean)
        active = 0
        while active < min(self.latent_dim, len(eigenvalues)):
            left = eigenvalues[active:].sum()
            # Would the next dimension be collapsed at the sigma that suits `active` of them?
            if beta * left >= eigenvalues[active] * (size - active * beta):
                break
            active += 1
        left = eigenvalues[active:].sum()
        if left <= 1e-12 * eigenvalues.sum():
            raise ValueError(
                f"sigma has no optimum: {active} latent dimensions hold all the variance of the "
                f"data; use more rows, a smaller latent_dim or learn_sigma=False"
            )
        return left / (size - active * beta)

    def _linear(self, dtype: torch.dtype, centre: Tensor | float = 0.0) -> LinearGaussian:
        """The model's parameters in a precision, for data about a centre."""
        mean = self.mean.to(dtype) - centre
        return LinearGaussian(self.weight.to(dtype), mean, self.log_sigma.to(dtype).exp())

    def _flatten(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(
                f"ProbabilisticPCA was built for data of shape (n, "
                f"{', '.join(map(str, self.data_shape))}), but x has shape {tuple(x.shape)}: pass "
                f"the data's shape as data_shape"
            )
        return x.reshape(x.shape[0], -1)


def _principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of (1/n) rows^T rows in falling order, `(k,)`, and their directions, `(k, D)`."""
    n, size = rows.shape
    if n > size:
        values, columns = torch.linalg.eigh(rows.T @ rows / n)
        # Their absolute errors are alike, so that the small ones are only exact if they are not too small.
        if values[0] > 1e-8 * values[-1]:
            return values.flip(0), columns.T.flip(0)
    # The triangle has the same singular values and directions, and at most D rows.
    triangle = torch.linalg.qr(rows, mode="r").R
    _, singular, directions = torch.linalg.svd(triangle, full_matrices=False)
    return singular.square() / n, directions
