"""A latent segmentation that is a Markov chain along each line of the picture, given the gray picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.distributions import ScanLines
from ppl_vae.models.colorization.segmented import SegmentedColors


class ScanLineSegments(SegmentedColors):
    """P(z | x) is a Markov chain along each line of pixels. See `SegmentedColors` and `ScanLines`.

    With the numbers u of the network, P(z | x) is proportional to

        exp(sum_i u_i(z_i) + sum_i s_i [z_i = z_(i+1)]),    s_i = a + b exp(-|x_i - x_(i+1)| / 10),

    the second sum over pixels and their neighbors to the right: of a similar luma they tend to be of one
    segment. a and b are learned. log P(y | x) is the difference of two sums over all segmentations, each by one
    pass along the lines.

    Attributes:
        coupling: (a, b), `(1, 2)`.

    Example:
        >>> from ppl_vae.networks import UNet
        >>> model = ScanLineSegments(segments=3, network=UNet((4, 8)))
        >>> y, x = torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)
        >>> model.log_evidence(y, x).shape, model.posterior(y, x).event_shape
        (torch.Size([2]), torch.Size([8, 8]))
    """

    directions = 1

    def field(self, unary: Tensor, x: Tensor) -> ScanLines:
        """See `SegmentedColors`."""
        return ScanLines(
            unary, coupled(self.coupling[0], x.to(unary).diff(dim=-1)), validate_args=False
        )

    def log_partition(self, unary: Tensor, x: Tensor) -> Tensor:
        """See `SegmentedColors`."""
        return self.field(unary, x).log_partition


def coupled(coupling: Tensor, difference: Tensor) -> Tensor:
    """s = a + b exp(-|difference of luma| / 10) of pairs of neighbors."""
    return coupling[0] + coupling[1] * torch.exp(difference.abs() / -10.0)
