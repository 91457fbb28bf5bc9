"""Factor analysis: probabilistic PCA whose noise differs from value to value."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl_vae.models.linear.linear_model import LinearModel
from ppl_vae.models.rows import as_vectors
from ppl_vae.networks import require_positive


class FactorAnalysis(LinearModel):
    """A linear Gaussian model: z ~ N(0, I) and x = W z + mu + eps with eps ~ N(0, Psi), Psi diagonal.

    Marginally x ~ N(mu, W W^T + Psi); with M = I + W^T Psi^-1 W the posterior is
    N(M^-1 W^T Psi^-1 (x - mu), M^-1). EM has closed forms (Rubin & Thayer 1982, "EM algorithms for ML
    factor analysis"): with u = (z, 1), (W, mu) = (sum x E[u]^T) (sum E[u u^T])^-1 and Psi the diagonal of
    the mean squared residual. Rows of any shape are flattened to D values.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at
    `dim=-2`.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number q of latent dimensions.
        min_scale: The least standard deviation of the noise that the M step sets, in units of the data.
            Without it, a value that never varies (a pixel at the border) has infinite density.

    Attributes:
        weight: W, `(D, q)`.
        mean: mu, `(D,)`.
        log_sigma: Half the logarithm of Psi's diagonal, `(D,)`.

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

    def __init__(
        self, data_shape: Sequence[int], latent_dim: int = 2, min_scale: float = 1e-3
    ) -> None:
        super().__init__(data_shape, latent_dim)
        require_positive(self, min_scale=min_scale)
        self.min_scale = min_scale
        size = len(self.mean)
        self.log_sigma = nn.Parameter(torch.zeros(size))
        self.register_buffer("centre", torch.zeros(size))

    @torch.no_grad()
    def initialize(self, x: Tensor, seed: int = 0) -> None:
        """Starts EM at the principal components of the standardized data; nothing is random.

        Each value is divided by its standard deviation. W is set to the first q principal components of the
        result, in the data's units, minus the noise of probabilistic PCA, and Psi to the rest of the
        variance.

        Args:
            x: Data, `(n, *data_shape)`.
            seed: Not used.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows = as_vectors(self, x).double()
        mean, scale = rows.mean(0), rows.std(0, correction=0).clamp_min(self.min_scale)
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

    def _maximize_noise(self, variance: Tensor) -> None:
        """See `LinearModel._maximize_noise`."""
        narrow = int((variance < self.min_scale**2).sum())
        if narrow:
            warnings.warn(
                f"the noise of {narrow} of {len(variance)} values would fall below min_scale and was raised "
                f"to it",
                stacklevel=3,
            )
        self._set_sigma(variance)

    def _set_sigma(self, variance: Tensor) -> None:
        self.log_sigma.copy_(variance.sqrt().clamp_min(self.min_scale).log())
