"""A latent segmentation that is a tree of superpixels, given the gray picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_vae.distributions import PottsTree, RegionTrees
from ppl_vae.models.colorization.colors import Colors, Palette
from ppl_vae.models.colorization.scan_lines import coupled
from ppl_vae.models.colorization.segmented import SegmentedColors
from ppl_vae.models.colorization.superpixels import remembered
from ppl_vae.networks import UNet, require_at_least_one
from ppl_vae.pairs import shared


class TreeSegments(SegmentedColors):
    """P(z | x) is a Potts field on a tree of superpixels. See `SegmentedColors` and `PottsTree`.

    The superpixels r of the gray picture are those of SLIC ("SLIC Superpixels Compared to State-of-the-art
    Superpixel Methods", Achanta et al. 2012). All pixels of one have the same segment. Adjacent ones are joined
    by the tree that keeps the most alike together: the spanning tree with the least sum of |difference of mean
    luma|. With the numbers u of the network, P(z | x) is proportional to

        exp(sum_r mean_(i in r) u_i(z_r) + sum_(r, t) s_rt [z_r = z_t]),    s_rt = a + b exp(-|m_r - m_t| / 10),

    the second sum over the edges of the tree, with the mean luma m of a superpixel. a and b are learned. The
    mean of u, not the sum, is what the network says of a superpixel: its pixels have one segment, so they are
    one choice. The sum would count the same evidence as often as there are pixels, and P(z | x) would be far
    too sure of itself. log P(y | x) is the difference of two sums over all segmentations, each by one pass
    along the tree.

    Superpixels are found on the CPU, and remembered for the last 2^25 pixels of pictures: the first epoch takes
    longer. As they depend on the picture, training steps are not captured. A guide with independent pixels,
    such as `SegmentationEncoder`, has an infinite KL to P(z | x), except with `superpixel_size=1`: use `Exact`.

    Args:
        segments: Number K of segments.
        colors: P(y | z, x): `Palette()`, `LatentColors()`, `LumaColors()` or `PictureColors()`.
        network: What P(z | x) is built from.
        superpixel_size: About how many pixels a superpixel has. With 1 each pixel is one.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `segments` or `superpixel_size` is not positive.

    Attributes:
        coupling: (a, b), `(1, 2)`.

    Example:
        >>> model = TreeSegments(segments=3, network=UNet((4, 8)))
        >>> y, x = torch.zeros(2, 16, 16, 2), torch.full((2, 16, 16), 128.0)
        >>> model.log_evidence(y, x).shape, model.posterior(y, x).event_shape
        (torch.Size([2]), torch.Size([16, 16]))
    """

    directions = 1

    def __init__(
        self,
        segments: int = 8,
        colors: Colors = Palette(),  # frozen
        network: UNet = UNet(),  # frozen
        superpixel_size: int = 36,
    ) -> None:
        require_at_least_one(self, superpixel_size=superpixel_size)
        super().__init__(segments, colors, network)
        self.superpixel_size = superpixel_size

    def field(self, unary: Tensor, x: Tensor) -> PottsTree:
        """See `SegmentedColors`; what differs within a superpixel is summed over its pixels."""
        trees, differences, _ = self._superpixels(x)
        couplings = coupled(self.coupling[0], differences.to(unary))
        return PottsTree(unary, couplings, trees, validate_args=False)

    def log_partition(self, unary: Tensor, x: Tensor) -> Tensor:
        """See `SegmentedColors`."""
        return self.field(unary, x).log_partition

    def superpixels(self, x: Tensor) -> Tensor:
        """The superpixel of each pixel, whole numbers from 0, `(n, h, w)`.

        Args:
            x: The luma, `(n, h, w)`.
        """
        return self._superpixels(x)[0].regions

    def unary(self, x: Tensor) -> Tensor:
        """What the network says of each pixel, divided by the pixels of its superpixel, `(n, h, w, K)`."""

        def compute() -> Tensor:
            of_pixels = super(TreeSegments, self).unary(x)
            sizes = self._superpixels(x)[2]
            return of_pixels / sizes.to(of_pixels).unsqueeze(-1)

        return shared(self, "unary of superpixels", (x,), compute)

    def _superpixels(self, x: Tensor) -> tuple[RegionTrees, Tensor, Tensor]:
        """The trees, |difference of mean luma| to the parent, and the size of each pixel's superpixel."""
        return shared(self, "superpixels", (x,), lambda: self._found(x))

    def _found(self, x: Tensor) -> tuple[RegionTrees, Tensor, Tensor]:
        pictures = x.detach().cpu().numpy()
        found = [remembered(each, self.superpixel_size) for each in pictures.astype(np.float32)]
        most = max((len(each.sizes) for each in found), default=0)
        parents = np.full((len(found), most), -1)
        differences = np.zeros((len(found), most))
        regions, sizes = np.zeros(pictures.shape, np.int64), np.zeros(pictures.shape, np.int64)
        for i, each in enumerate(found):
            count = len(each.sizes)
            parents[i, :count], differences[i, :count] = each.parents, each.differences
            regions[i], sizes[i] = each.regions, each.sizes[each.regions]
        tensors = (
            torch.from_numpy(of).to(x.device) for of in (regions, parents, differences, sizes)
        )
        of_pixels, above, apart, counts = tensors
        return RegionTrees(of_pixels, above), apart, counts
