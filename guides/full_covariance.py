"""The amortised guide whose latent dimensions may depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, register_kl
from torch.nn.functional import softplus

from ppl_vae.distributions import kl_to_independent_normals
from ppl_vae.networks import MLP, Network, full_precision, linear_head


class FullCovariance(nn.Module):
    """q(z | x) = N(loc(x), L(x) L(x)^T), with loc and the Cholesky factor L from one encoder.

    L = diag(scale) (I + U) with scale = softplus(s) + 1e-6 and a strictly lower triangular U, for
    unbounded outputs s and U of the encoder: the scale grows linearly, so it can not overflow, and
    never reaches 0. At the start U = 0, as in `MeanField`. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`. The encoder runs once a row, however many samples are drawn.

    Importing this file teaches `torch.distributions.kl_divergence` the KL from a multivariate
    normal to independent normals, so that the analytic ELBO works with a standard normal prior.

    Args:
        data_shape: shape of one row of the data.
        latent_dim: number d of latent dimensions, the model's. The encoder's head has
            d + d (d + 1) / 2 outputs.
        network: what the encoder is built from.

    Raises:
        ValueError: `latent_dim` is not positive.

    Example:
        >>> guide = FullCovariance((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(5, 1, 8, 8)).covariance_matrix.shape
        torch.Size([5, 2, 2])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"FullCovariance.latent_dim must be at least 1, came {latent_dim}")
        self.latent_dim = latent_dim
        self.encoder = network.encoder(data_shape)
        num_outputs = 2 * latent_dim + latent_dim * (latent_dim - 1) // 2
        self.head = linear_head(self.encoder, num_outputs)
        # A random U on data of large values makes L so ill-conditioned that log q overflows.
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter[2 * latent_dim :].zero_()

    def forward(self, x: Tensor) -> None:
        """Run the guide on `x`, `(n, *data_shape)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> dist.MultivariateNormal:
        """Return q(z | x) for data `(*batch, *data_shape)`: batch shape `batch`."""
        return self.family(self.amortise(x))

    def amortise(self, x: Tensor) -> Tensor:
        """Return the encoder's outputs for data `(*batch, *data_shape)`: `(*batch, num_outputs)`."""
        return full_precision(self.head(self.encoder(x)))

    def family(self, outputs: Tensor) -> dist.MultivariateNormal:
        """Return the q(z | x) that outputs of `amortise` (any real numbers) stand for."""
        d = self.latent_dim
        loc, diagonal, below = outputs.split([d, d, d * (d - 1) // 2], -1)
        rows, columns = torch.tril_indices(d, d, -1, device=outputs.device)
        scale = softplus(diagonal) + 1e-6
        scale_tril = torch.diag_embed(scale)
        # In units of its row's scale: a small scale does not make L ill-conditioned.
        scale_tril[..., rows, columns] = below * scale[..., rows]
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


def _kl_mvn_independent(p: MultivariateNormal, q: Independent[Any]) -> Tensor:
    # Not expanded over the batch: a posterior often has one covariance for all rows.
    factor = p._unbroadcasted_scale_tril
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return kl_to_independent_normals(p, q, factor, half_log_det)


register_kl(MultivariateNormal, Independent)(_kl_mvn_independent)
