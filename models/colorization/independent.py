"""A latent segmentation whose pixels are independent, given the gray picture."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from ppl_vae.models.colorization.segmented import SegmentedColors


class IndependentSegments(SegmentedColors):
    """P(z | x) = prod_i P(z_i | x): each pixel chooses its segment for itself. See `SegmentedColors`.

    log P(y | x) = sum_i log sum_k P(z_i = k | x) P(y_i | z_i = k, x), at a cost of K numbers per pixel.

    Example:
        >>> import torch
        >>> from ppl_vae.networks import UNet
        >>> model = IndependentSegments(segments=3, network=UNet((4, 8)))
        >>> y, x = torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)
        >>> model.log_evidence(y, x).shape, model.posterior(y, x).event_shape
        (torch.Size([2]), torch.Size([8, 8]))
    """

    def field(self, unary: Tensor, x: Tensor) -> dist.Independent:
        """See `SegmentedColors`."""
        return dist.Independent(dist.Categorical(logits=unary, validate_args=False), 2)

    def log_partition(self, unary: Tensor, x: Tensor) -> Tensor:
        """See `SegmentedColors`."""
        return unary.logsumexp(-1).sum((-2, -1))
