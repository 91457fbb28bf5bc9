"""The amortized guide with independent latent dimensions."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import independent_normal


class MeanField(Amortized[dist.Independent]):
    """q(z | x) = N(loc(x), diag(scale(x)^2)), with loc and scale from one encoder.

    The scale is softplus(s) + 1e-6 for an unbounded output s of the encoder: it grows linearly, so
    it cannot overflow, and never reaches 0 ("Auto-Encoding Variational Bayes", arXiv:1312.6114).

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's.
        network: What the encoder is built from.
        context: See `Amortized`.

    Example:
        >>> import torch
        >>> from ppl_vae.networks import MLP
        >>> guide = MeanField((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def family(self, outputs: Tensor) -> dist.Independent:
        """N(loc, diag(scale^2)) for outputs (loc, s)."""
        return independent_normal(outputs)

    @property
    def num_outputs(self) -> int:
        """Two per latent dimension: loc and s."""
        return 2 * self.latent_dim
