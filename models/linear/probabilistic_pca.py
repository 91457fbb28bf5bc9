"""Probabilistic principal component analysis: a VAE of which every quantity is known exactly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ppl_vae.models.linear.linear_model import LinearModel
from ppl_vae.models.rows import as_vectors
from ppl_vae.networks import require_positive

MIN_SCALE = 1e-3
"""The least sigma that EM sets, in units of the data."""


class ProbabilisticPCA(LinearModel):
    """A linear Gaussian model: z ~ N(0, I) and x = W z + mu + sigma eps with eps ~ N(0, I).

    Marginally x ~ N(mu, C), C = W W^T + sigma^2 I. With M = I + W^T W / sigma^2 the posterior is
    N(M^-1 W^T (x - mu) / sigma^2, M^-1) (Tipping & Bishop 1999, "Probabilistic Principal Component
    Analysis"). It is the VAE with a linear decoder and Gaussian noise ("Don't Blame the ELBO!",
    arXiv:1911.02469). Rows of any shape are flattened to D values.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go
    outside, at `dim=-2`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number q of latent dimensions.
        sigma: Standard deviation of the noise, in units of the data; if it is learned, its initial value.
        learn_sigma: Whether sigma is a parameter.

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

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        sigma: float = 1.0,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        require_positive(self, sigma=sigma)
        if not isinstance(learn_sigma, bool):
            raise TypeError(
                f"ProbabilisticPCA.learn_sigma must be True or False, got {learn_sigma!r:.80}"
            )
        log_sigma = torch.tensor(float(sigma)).log()
        if learn_sigma:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)
        # Not saved, so that runs from before it existed load.
        self.register_buffer("centre", torch.zeros(len(self.mean)), persistent=False)

    @torch.no_grad()
    def maximum_likelihood(self, x: Tensor, beta: float = 1.0) -> Self:
        """Sets the parameters to the optimum of the beta-ELBO for `x`; for beta = 1, of log p(x).

        With the best possible guide, q(z | x) proportional to p(z) p(x | z)^(1 / beta), the
        beta-ELBO E_q[log p(x | z)] - beta KL(q || p) of a row is

            beta log N(x; mu, W W^T + beta sigma^2 I) + (beta - 1) D/2 log(2 pi sigma^2)
            + beta D/2 log beta.

        So mu is the sample mean and, with l_1 >= l_2 >= ... the eigenvalues and U the eigenvectors
        of the sample covariance (1/n) sum (x - mu)(x - mu)^T,

            W = U_q (L_q - beta sigma^2 I)_+^(1/2),

        with the columns in this order and not rotated: dimension i collapses if and only if
        l_i <= beta sigma^2. This W is also the optimum for a mean-field guide, because its
        posterior is diagonal.
        A fixed sigma stays as it is. For a learned one, the derivative by log sigma^2 is 0 where

            sum_{i <= q} min(l_i / sigma^2, beta) + sum_{i > q} l_i / sigma^2 = D,

        whose left side decreases in sigma, so the root is unique: with a active dimensions,

            sigma^2 = sum_{i > a} l_i / (D - a beta),

        for beta = 1 the mean of the discarded eigenvalues. (If q = D > 1, too few are discarded:
        then a = D - 1, which is one of many equal optima.)

        Args:
            x: Data, `(n, *data_shape)`.
            beta: Weight of the KL.

        Returns:
            The model itself.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`, `beta` is not positive,
                or sigma is learned and has no optimum, because q dimensions hold all of the variance.
        """
        if not beta > 0:
            raise ValueError(f"beta must be positive, got {beta}")
        rows = as_vectors(self, x).double()
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
        """Starts EM at random directions: mu is the mean, W and sigma^2 have half of the variance each.

        Args:
            x: Data, `(n, *data_shape)`.
            seed: Random seed of the directions.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows = as_vectors(self, x).double()
        self.mean.copy_(rows.mean(0))
        self.centre.copy_(self.mean)
        variance = rows.var(0, correction=0).mean()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.weight.shape, generator=generator, dtype=torch.float64)
        scale = (variance / (2 * self.latent_dim)).sqrt()
        self.weight.copy_(weight.to(rows.device) * scale)
        if isinstance(self.log_sigma, nn.Parameter):
            self.log_sigma.copy_((variance / 2).clamp_min(MIN_SCALE**2).log() / 2)

    def _maximize_noise(self, variance: Tensor) -> None:
        """Sets a learned sigma^2 to the mean squared residual (Tipping & Bishop 1999, appendix B).

        Warns if sigma would fall below 0.001, and raises it to that.
        """
        if not isinstance(self.log_sigma, nn.Parameter):
            return
        mean = variance.mean()
        if float(mean) < MIN_SCALE**2:
            warnings.warn(
                f"sigma would fall below {MIN_SCALE} and was raised to it: use more rows, a "
                f"smaller latent_dim or learn_sigma=False",
                stacklevel=3,
            )
        self.log_sigma.copy_(mean.clamp_min(MIN_SCALE**2).log() / 2)

    def _best_variance(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """The learned sigma^2 of `maximum_likelihood`, for eigenvalues in descending order."""
        size = len(self.mean)
        active = 0
        while active < min(self.latent_dim, len(eigenvalues)):
            left = eigenvalues[active:].sum()
            # Would the next dimension collapse at the sigma that is best for `active` of them?
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


def _principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of (1/n) rows^T rows in descending order, `(k,)`, and their directions, `(k, D)`."""
    n, size = rows.shape
    if n > size:
        values, columns = torch.linalg.eigh(rows.T @ rows / n)
        # All have about the same absolute error, so the smallest must not be too small.
        if values[0] > 1e-8 * values[-1]:
            return values.flip(0), columns.T.flip(0)
    # The triangle has the same singular values and directions, and at most D rows.
    triangle = torch.linalg.qr(rows, mode="r").R
    _, singular, directions = torch.linalg.svd(triangle, full_matrices=False)
    return singular.square() / n, directions
