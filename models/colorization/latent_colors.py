"""Colors of segments that are latent in each picture: the grass of one photo is not that of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.models.colorization.colors import LEVELS, Colors, ShiftedColors, apart, chroma
from ppl_vae.networks import require_at_least_one
from ppl_vae.pairs import sharing_work


@dataclass(frozen=True)
class LatentColors(Colors):
    """The color of a pixel depends on its segment and on a color that this segment has in this picture.

    A palette, shifted in each picture: c_k ~ N(0, diag(t_k^2)) moves the location of (Co, Cg) of all pixels of
    segment k, with learned t. The model then has the site `shifts`, `(n, K, 2)`, in units of t, and sums out z
    given these:

        P(y, c | x) = N(c) sum_z P(z | x) P(y | z, x, c).

    So its pairs are those of a continuous latent: `WithinPicture` is a guide.

    Example:
        >>> LatentColors().build(segments=3)(torch.zeros(2, 8, 8)).shape
        torch.Size([1, 1, 1, 3, 5])
    """

    def build(self, segments: int) -> nn.Module:
        """See `Colors`."""
        require_at_least_one(self, segments=segments)
        return ShiftedPalette(segments)


class ShiftedPalette(ShiftedColors):
    """The palette of `LatentColors`, and the spread of its shifts.

    Args:
        segments: K.
    """

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.features = nn.Parameter(apart(segments))
        self.raw_spread = nn.Parameter(torch.zeros(segments, 2))

    def forward(self, luma: Tensor) -> Tensor:
        """Features of the segments without a shift, `(1, 1, 1, K, 5)`."""
        return self.features.reshape(1, 1, 1, *self.features.shape)

    @property
    def spread(self) -> Tensor:
        """t, in units of the features, `(K, 2)`."""
        return softplus(self.raw_spread)

    def prior(self) -> dist.Independent:
        """N(0, 1) for each shift, in units of t."""
        return dist.Independent(dist.Normal(torch.zeros_like(self.raw_spread), 1.0), 2)

    def shifted(self, features: Tensor, shifts: Tensor) -> Tensor:
        """See `ShiftedColors`."""
        by = torch.nn.functional.pad(self.spread * shifts, (0, features.shape[-1] - 2))
        return features + by[..., None, None, :, :]

    @torch.no_grad()
    def fitted(self, model: Any, y: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """See `ShiftedColors`.

        Each step is one of Fisher scoring for log p(c) + log P(y | x, c). The E step are the responsibilities
        of the segments, P(z_i = k | x, y, c), the slope of log P(y | x, c) with regard to what pixel i adds to
        it in segment k. With regard to c, its slope is the expected one of log P(y | z, x, c) under these; its
        information is that of their pixels, 1 / (3 s^2) each for a logistic distribution of scale s.
        """
        shifts = self.raw_spread.new_zeros(len(x), *self.raw_spread.shape)
        unit = LEVELS * self.spread
        precision = torch.ones_like(shifts)
        with sharing_work():
            unary = model.unary(x)
            scale = chroma(x.unsqueeze(-1), self(x)).scale
            for _ in range(steps):
                with torch.enable_grad():
                    at = shifts.detach().requires_grad_()
                    of_pixels = model.log_likelihoods(y, x, at)
                    total = model.log_partition(unary + of_pixels, x).sum()
                    slope, weights = torch.autograd.grad(total, (at, of_pixels))
                information = (weights.unsqueeze(-1) / (3 * scale.square())).sum((1, 2))
                precision = 1 + information * unit.square()
                shifts = shifts + (slope - shifts) / precision
        return shifts, precision.rsqrt()
