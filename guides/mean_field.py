"""The amortized guide with independent latent dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.parts import committed_scale, independent_normal
from ppl_vae.networks import MLP, Context, Network, require_numbers
from ppl_vae.pairs import elementwise, innermost

MOST_COMMITTED = 10.0
"""Nats for each latent: with more, the scale would be close to its least value, 1e-6."""


class MeanField(Amortized[dist.Independent]):
    """q(z | x) = N(loc(x), diag(scale(x)^2)), with loc and scale from one encoder.

    The scale is softplus(s) + 1e-6 for an unbounded output s of the encoder: it grows linearly, so
    it cannot overflow, and never reaches 0 ("Auto-Encoding Variational Bayes", arXiv:1312.6114).

    With a `committed_rate` d, the scale is at most s*, the root below 1 of (s^2 - 1) / 2 - log s = d. Then each
    latent has a rate of at least d nats in each row, whatever the encoder says:

        KL(N(m, s^2) || N(0, 1)) = m^2 / 2 + (s^2 - 1) / 2 - log s >= d,

    with equality at m = 0 and s = s*, which the encoder approaches: the latent cannot be switched off, and the
    ELBO remains what is maximized (a delta-VAE with independent latents, arXiv:1901.03416; there, the mean is
    moved away from 0 to one side). The rate says what is paid, not what is told: a q that is the same for all
    rows pays it, too. It holds for the prior N(0, I) alone: `fit` and `check` refuse others with such a guide.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's.
        network: What the encoder is built from.
        context: See `Amortized`.
        committed_rate: d, nats: each latent's least rate. From 0 to 10; 0 commits to nothing.

    Raises:
        TypeError: `committed_rate` is no number.
        ValueError: `latent_dim` is not positive, or `committed_rate` is out of its range.

    Example:
        >>> import torch
        >>> from ppl_vae.networks import MLP
        >>> guide = MeanField((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> q = guide.encode(torch.rand(5, 1, 8, 8))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        context: Context | None = None,
        committed_rate: float = 0.0,
    ) -> None:
        require_numbers(self, committed_rate=committed_rate)
        if not 0 <= committed_rate <= MOST_COMMITTED:
            raise ValueError(
                f"MeanField.committed_rate is in nats for each latent and must be from 0 to {MOST_COMMITTED}, "
                f"got {committed_rate}"
            )
        super().__init__(data_shape, latent_dim, network, context)
        self.committed_rate = committed_rate
        self._largest = committed_scale(committed_rate) if committed_rate else None

    def family(self, outputs: Tensor) -> dist.Independent:
        """N(loc, diag(scale^2)) for outputs (loc, s)."""
        return independent_normal(outputs, self._largest)

    @property
    def num_outputs(self) -> int:
        """Two per latent dimension: loc and s."""
        return 2 * self.latent_dim

    @property
    def least_rate(self) -> float:
        """The committed rate of all latents together, nats per row."""
        return self.latent_dim * self.committed_rate

    def why_not_committed(self, q: dist.TorchDistribution, p: dist.TorchDistribution) -> str:
        """Why the rate of q may be below the committed one; empty if it cannot, or if none is."""
        if not self.committed_rate:
            return ""
        each = elementwise(p)
        kind = type(innermost(p)).__name__
        if isinstance(each, dist.Normal):
            learned = each.loc.requires_grad or each.scale.requires_grad
            if not learned and bool((each.loc == 0).all() and (each.scale == 1).all()):
                return ""
            kind = "a Normal that is learned, or not N(0, I)"
        return (
            f"MeanField.committed_rate = {self.committed_rate:g} holds for the prior N(0, I) alone, but the "
            f"prior is {kind}: give the model StandardNormal() (--model.prior StandardNormal), or the guide "
            "committed_rate=0"
        )
