"""A latent segmentation in which each pixel has neighbors on all four sides, given the gray picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vae.distributions import PottsGrid, ScanLines
from ppl_vae.models.colorization.scan_lines import coupled
from ppl_vae.models.colorization.segmented import SegmentedColors


class PottsSegments(SegmentedColors):
    """P(z | x) is a Potts field on the grid of pixels. See `SegmentedColors` and `PottsGrid`.

    With the numbers u of the network, P(z | x) is proportional to

        exp(sum_i u_i(z_i) + sum_(i, j) s_ij [z_i = z_j]),    s_ij = a + b exp(-|x_i - x_j| / 10),

    the second sum over all neighbors across and down. a and b are learned, one pair for each direction.

    Pictures with K^w up to 8192, where w is the shorter side, are summed over exactly. For others neither P(z |
    x) nor the posterior is known. A guide with independent pixels, such as `SegmentationEncoder`, then gives a
    lower bound of log P(y | x), with an upper bound of the normalizer of P(z | x), and one with independent
    lines, `StructuredMeanField`, a higher one; `Exact`, `posterior`, `log_evidence` and latent colors are for
    narrow pictures alone.

    Attributes:
        coupling: (a, b) across, and (a, b) down, `(2, 2)`.

    Example:
        >>> import torch
        >>> from ppl_vae.networks import UNet
        >>> model = PottsSegments(segments=3, network=UNet((4, 8)))
        >>> y, x = torch.zeros(2, 8, 8, 2), torch.full((2, 8, 8), 128.0)
        >>> model.log_evidence(y, x).shape, model.posterior(y, x).event_shape
        (torch.Size([2]), torch.Size([8, 8]))
    """

    directions = 2

    def forward(self, y: Tensor, x: Tensor) -> None:
        """See `SegmentedColors`.

        Raises:
            ValueError: The colors are latent and the pictures too wide, or the shapes of y and x do not fit
                together.
        """
        self._require_pictures(y, x)
        if self.shifts_prior() is not None:  # given the shifts, z is summed out
            self._require_exact(self.field(self.unary(x), x))
        super().forward(y, x)

    def field(self, unary: Tensor, x: Tensor) -> PottsGrid:
        """See `SegmentedColors`."""
        across = coupled(self.coupling[0], x.to(unary).diff(dim=-1))
        down = coupled(self.coupling[1], x.to(unary).diff(dim=-2))
        return PottsGrid(unary, across, down, validate_args=False)

    def log_partition(self, unary: Tensor, x: Tensor) -> Tensor:
        """See `SegmentedColors`; above it for wide pictures."""
        return self.field(unary, x).log_partition

    def posterior(
        self, y: Tensor, x: Tensor, weight: float = 1.0, shifts: Tensor | None = None
    ) -> PottsGrid:
        """P(z | x, y), of batch shape `(n,)` and event shape `(h, w)`; see `SegmentedColors`.

        Raises:
            ValueError: The pictures are too wide, or the shapes of y and x do not fit together.
        """
        found = super().posterior(y, x, weight, shifts)
        assert isinstance(found, PottsGrid)
        self._require_exact(found)
        return found

    def mean_field(self, y: Tensor, x: Tensor, sweeps: int = 5, weight: float = 1.0) -> ScanLines:
        """Lines that are independent of each other, as near to P(z | x, y) as such can be.

        See `PottsGrid.mean_field`.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            sweeps: Passes over the lines.
            weight: w of P(z | x) P(y | z, x)^w.

        Raises:
            ValueError: The shapes of y and x do not fit together, or the colors are latent.
        """
        with torch.no_grad():
            found = self.conditioned(y, x, weight)
        assert isinstance(found, PottsGrid)
        return found.mean_field(sweeps)

    def log_evidence(self, y: Tensor, x: Tensor, shifts: Tensor | None = None) -> Tensor:
        """log P(y | x) of every picture, `(n,)`, in nats; differentiable.

        Raises:
            ValueError: The pictures are too wide, or the shapes of y and x do not fit together.
        """
        self._require_pictures(y, x)
        self._require_exact(self.field(self.unary(x), x))
        return super().log_evidence(y, x, shifts)

    def _require_exact(self, field: PottsGrid) -> None:
        if not field.is_exact:
            height, width = field.event_shape
            if self.shifts_prior() is not None:
                raise ValueError(
                    "PottsSegments with latent colors needs the sum over all segmentations, and pictures of "
                    f"{height} x {width} pixels with {self.segments} segments are too wide for it: use "
                    "ScanLineSegments with LatentColors and the guide WithinPicture, or PottsSegments with "
                    "Palette and the guide StructuredMeanField"
                )
            raise ValueError(
                f"PottsSegments: the posterior of pictures of {height} x {width} pixels with "
                f"{self.segments} segments is not known, as they are too wide: use "
                "StructuredMeanField or SegmentationEncoder as the guide, whose ELBO is a lower bound"
            )
