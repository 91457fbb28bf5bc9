"""The amortized guide whose latent dimensions may depend on each other."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.distributions import kl_multivariate_normal  # noqa: F401 (importing it registers it)
from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import positive


class FullCovariance(Amortized[dist.MultivariateNormal]):
    """q(z | x) = N(loc(x), L(x) L(x)^T), with loc and the Cholesky factor L from one encoder.

    L = diag(scale) (I + U) with scale = softplus(s) + 1e-6 and a strictly lower triangular U, for
    unbounded outputs s and U of the encoder. At the start U = 0, as in `MeanField`.

    Importing this file teaches `torch.distributions.kl_divergence` the KL from a multivariate
    normal to independent normals, so that the analytic ELBO works with a standard normal prior.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's. The encoder's head has
            d + d (d + 1) / 2 outputs.
        network: What the encoder is built from.
        context: See `Amortized`.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> guide = FullCovariance((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(5, 1, 8, 8)).covariance_matrix.shape
        torch.Size([5, 2, 2])
    """

    def family(self, outputs: Tensor) -> dist.MultivariateNormal:
        """N(loc, L L^T) for outputs (loc, s, U by rows)."""
        d = self.latent_dim
        loc, diagonal, below = outputs.split([d, d, d * (d - 1) // 2], -1)
        rows, columns = torch.tril_indices(d, d, -1, device=outputs.device)
        scale = positive(diagonal)
        scale_tril = torch.diag_embed(scale)
        # In units of its row's scale: a small scale does not make L ill-conditioned.
        scale_tril[..., rows, columns] = below * scale[..., rows]
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    @property
    def num_outputs(self) -> int:
        """Per latent dimension loc and s, and the entries of U below its diagonal."""
        return 2 * self.latent_dim + self.latent_dim * (self.latent_dim - 1) // 2

    def start_head(self) -> None:
        """Starts at U = 0."""
        # A random U on data of large values makes L so ill-conditioned that log q overflows.
        for parameter in self.head.parameters():
            parameter[2 * self.latent_dim :].zero_()
