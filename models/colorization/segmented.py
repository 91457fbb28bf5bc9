"""What models of colors with a latent segmentation share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.distributions import ChromaLogistic
from ppl_vae.models.colorization.colors import (
    Colors,
    Palette,
    ShiftedColors,
    chroma,
    clustered,
    standardized,
)
from ppl_vae.models.colorization.summed_out import ColorsOfPictures
from ppl_vae.networks import Rebuildable, UNet, full_precision, require_at_least_one, require_object
from ppl_vae.pairs import shared

_MOST_PIXELS = 20_000
"""So many pixels are clustered."""


class SegmentedColors(Rebuildable, nn.Module, ABC):
    """P(y | x) = sum_z P(z | x) P(y | z, x): the colors y of a gray picture x, with a latent segmentation z.

    Each pixel i belongs to one of K segments, z_i. Given these, the colors of the pixels are independent,
    P(y | z, x) = prod_i P(y_i | z_i, x). y is the chroma of an integer color space, x the luma
    (`ppl_vae.colors.split_colors`), so that log P(y | x) is that of a lossless code for the colors of a
    photo whose gray picture is known, in nats per picture. "The colour label does not determine the
    segmentation, and in practice the latent segmentation is likely to collapse because the colorization can be
    done just as well without it" (McAllester, TTIC 31230, Fundamentals of Deep Learning): how far it does is
    the rate of the exact guide, I(z; y | x) = E KL(P(z | x, y) || P(z | x)), which is 0 if and only if y says
    nothing about z.

    The model runs on `(y, x)`. The sites are `z`, `(n, h, w)`, and `y`, `(n, h, w, 2)`, inside
    `pyro.plate("data", n, dim=-1)`; plates over samples go outside.

    Args:
        segments: Number K of segments.
        colors: P(y | z, x): `Palette()`, `LatentColors()`, `LumaColors()` or `PictureColors()`.
        network: What P(z | x) is built from.

    Attributes:
        radius: How many pixels away a pixel may lie that the networks read.
        stride: Shifts of the picture by as many pixels only shift what the networks give.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `segments` is not positive.
    """

    directions: ClassVar[int] = 0
    """In how many directions neighbors are coupled; each has two learned numbers in `coupling`."""

    def __init__(
        self,
        segments: int = 8,
        colors: Colors = Palette(),  # frozen
        network: UNet = UNet(),  # frozen
    ) -> None:
        super().__init__()
        require_at_least_one(self, segments=segments)
        require_object(self, "colors", colors, "build", "Palette()")
        require_object(self, "network", network, "build", "UNet((16, 32, 64))")
        self.segments = segments
        self.radius = max(network.radius, colors.radius)
        self.stride = max(network.stride, colors.stride)  # powers of 2
        self.colors = colors.build(segments)
        self.segmenter = network.build(1, segments)
        if self.directions:
            start = torch.tensor([0.0, 1.0 / self.directions])
            self.coupling = nn.Parameter(start.repeat(self.directions, 1))

    def forward(self, y: Tensor, x: Tensor) -> None:
        """Runs the model on chroma and luma.

        Args:
            y: (Co, Cg) of each pixel, whole numbers, `(n, h, w, 2)`.
            x: The luma, whole numbers from 0 to 255, `(n, h, w)`.

        Raises:
            ValueError: The shapes of y and x do not fit together.
        """
        self._require_pictures(y, x)
        with pyro.plate("data", x.shape[0], dim=-1):
            if isinstance(self.colors, ShiftedColors):
                shifts = pyro.sample("shifts", self.colors.prior())
                pyro.sample("y", ColorsOfPictures(self, x, shifts), obs=y)
                return
            z = pyro.sample("z", self.prior(x))
            pyro.sample("y", self.decode(z, x), obs=y)

    @abstractmethod
    def field(self, unary: Tensor, x: Tensor) -> dist.TorchDistribution:
        """The distribution of segmentations that P(z | x) is of.

        Args:
            unary: A number for each pixel and segment, `(n, h, w, K)`: the larger, the likelier.
            x: The luma, `(n, h, w)`.

        Returns:
            A distribution of batch shape `(n,)` and event shape `(h, w)`, proportional to exp(sum_i
            unary_i(z_i)) times what neighbors say of each other.
        """

    @abstractmethod
    def log_partition(self, unary: Tensor, x: Tensor) -> Tensor:
        """The logarithm of the sum over all segmentations of what `field` is proportional to, `(n,)`."""

    def unary(self, x: Tensor) -> Tensor:
        """What the network says of each pixel and segment: P(z | x) is `field(unary(x), x)`.

        Args:
            x: Luma, `(n, h, w)`.

        Returns:
            Logarithms, `(n, h, w, K)`; their exponentials sum to 1 for each pixel.
        """

        def compute() -> Tensor:
            logits: Tensor = self.segmenter(standardized(x))
            return full_precision(logits).movedim(-3, -1).log_softmax(-1)

        return shared(self, "unary", (x,), compute)

    def prior(self, x: Tensor) -> dist.TorchDistribution:
        """P(z | x), of batch shape `(n,)` and event shape `(h, w)`."""
        return self.field(self.unary(x), x)

    def posterior(
        self, y: Tensor, x: Tensor, weight: float = 1.0, shifts: Tensor | None = None
    ) -> dist.TorchDistribution:
        """P(z | x, y), of batch shape `(n,)` and event shape `(h, w)`.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            weight: w of P(z | x) P(y | z, x)^w; with w = 1 / beta it is the best guide of the ELBO with this
                beta.
            shifts: Given these, where the colors are latent: P(z | x, y, shifts).

        Raises:
            ValueError: The shapes of y and x do not fit together, or shifts are missing.
        """
        return self.conditioned(y, x, weight, shifts)

    def conditioned(
        self, y: Tensor, x: Tensor, weight: float = 1.0, shifts: Tensor | None = None
    ) -> dist.TorchDistribution:
        """The field that P(z | x, y) is: `posterior`, also where it can only be drawn from.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            weight: As for `posterior`.
            shifts: As for `posterior`.

        Raises:
            ValueError: The shapes of y and x do not fit together, or shifts are missing.
        """
        self._require_pictures(y, x)
        likelihoods = self.log_likelihoods(y, x, shifts)
        return self.field(
            self.unary(x) + (likelihoods if weight == 1.0 else weight * likelihoods), x
        )

    def log_evidence(self, y: Tensor, x: Tensor, shifts: Tensor | None = None) -> Tensor:
        """log P(y | x) of every picture, `(n,)`, in nats; differentiable.

        It is log_partition(unary + log P(y_i | z_i, x)) - log_partition(unary): exact, at the cost of two sums.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            shifts: Given these, `(*samples, n, K, 2)`, where the colors are latent: log P(y | x, shifts), of
                shape `(*samples, n)`.

        Raises:
            ValueError: The shapes of y and x do not fit together, or shifts are missing.
        """
        self._require_pictures(y, x)
        unary = self.unary(x)
        with_colors = self.log_partition(unary + self.log_likelihoods(y, x, shifts), x)
        return with_colors - self.log_partition(unary, x)

    def support_of_data(self, y: Tensor, x: Tensor) -> constraints.Constraint:
        """The chroma that there is with luma x, whatever the segments: what `fit` checks data against.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
        """
        return constraints.independent(ChromaLogistic.room(x), 2)

    def shifts_prior(self) -> dist.TorchDistribution | None:
        """p(shifts) of a picture, of event shape `(K, 2)`; None if the colors are not latent."""
        return self.colors.prior() if isinstance(self.colors, ShiftedColors) else None

    def fit_shifts(self, y: Tensor, x: Tensor, steps: int = 5) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the shifts given y, `(n, K, 2)` each, by EM: for `WithinPicture`.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            steps: Number of EM steps.

        Raises:
            TypeError: The colors are not latent.
            ValueError: The shapes of y and x do not fit together.
        """
        self._require_pictures(y, x)
        if not isinstance(self.colors, ShiftedColors):
            raise TypeError(
                f"the colors of this {type(self).__name__} are not latent: build it with colors=LatentColors()"
            )
        return self.colors.fitted(self, y, x, steps)

    @torch.no_grad()
    def initialize(self, y: Tensor, x: Tensor, seed: int = 0) -> None:
        """Starts with the colors of clusters of pixels, by k-means, one for each segment: all are used then.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            seed: Seed of the pixels that are looked at, and of k-means.

        Raises:
            ValueError: The shapes of y and x do not fit together, or there are fewer pixels than segments.
        """
        self._require_pictures(y, x)
        pixels = y.reshape(-1, 2)
        if len(pixels) < self.segments:
            raise ValueError(
                f"{type(self).__name__} has {self.segments} segments, but there are only {len(pixels)} pixels: "
                "give it more pictures"
            )
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(pixels), generator=generator)[:_MOST_PIXELS]
        features: Any = self.colors.features
        features.copy_(clustered(pixels[some.to(y.device)], self.segments, seed))

    def decode(self, z: Tensor, x: Tensor, shifts: Tensor | None = None) -> dist.Independent:
        """P(y | z, x), of batch shape `(*batch, n)` and event shape `(h, w, 2)`.

        Args:
            z: Segments, `(*batch, n, h, w)`.
            x: Luma, `(n, h, w)`.
            shifts: Where the colors are latent, `(*batch, n, K, 2)`.

        Raises:
            ValueError: Shifts are missing.
        """
        features = self._features(x, shifts)
        if not any(z.stride()[-3:]):  # all pixels in the same segment: what sums over segments asks
            chosen = features.index_select(-2, z[..., 0, 0, 0].flatten().long()).movedim(-2, 0)
            return dist.Independent(chroma(x, chosen.reshape(*z.shape[:-3], *chosen.shape[1:])), 2)
        shape = torch.broadcast_shapes(z.shape, features.shape[:-2])
        features = features.expand(*shape, *features.shape[-2:])
        index = z.long().expand(shape)[..., None, None].expand(*shape, 1, features.shape[-1])
        try:
            chosen = features.gather(-2, index).squeeze(-2)
        except (RuntimeError, IndexError):  # a look at all values first could not be captured
            if self.segments <= int(z.max()):
                raise ValueError(
                    f"{type(self).__name__} has {self.segments} segments, but z goes up to {int(z.max())}: "
                    f"build the guide with segments={self.segments}"
                ) from None
            raise
        return dist.Independent(chroma(x, chosen), 2)

    def log_likelihoods(self, y: Tensor, x: Tensor, shifts: Tensor | None = None) -> Tensor:
        """log P(y_i | z_i = k, x) of every pixel and segment, `(n, h, w, K)`, in nats.

        Args:
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            shifts: Where the colors are latent, `(*samples, n, K, 2)`.

        Raises:
            ValueError: Shifts are missing.
        """

        def compute() -> Tensor:
            return self.color_components(x, shifts).log_prob(y.unsqueeze(-2))

        return compute() if shifts is not None else shared(self, "log_likelihoods", (y, x), compute)

    def color_components(self, x: Tensor, shifts: Tensor | None = None) -> ChromaLogistic:
        """P(y_i | z_i = k, x) of every pixel and segment, of batch shape `(*samples, n, h, w, K)`.

        Args:
            x: Luma, `(n, h, w)`.
            shifts: Where the colors are latent, `(*samples, n, K, 2)`.

        Raises:
            ValueError: Shifts are missing.
        """
        return chroma(x.unsqueeze(-1), self._features(x, shifts))

    def _features(self, x: Tensor, shifts: Tensor | None) -> Tensor:
        """The features of the colors, `(*samples, n or 1, h or 1, w or 1, K, 5)`."""
        features: Tensor = shared(self, "features", (x,), lambda: self.colors(x))
        if not isinstance(self.colors, ShiftedColors):
            return features
        if shifts is None:
            raise ValueError(
                f"the colors of the segments of this {type(self).__name__} are latent in each "
                "picture: pass shifts, or use WithinPicture as the guide and evaluate"
            )
        return self.colors.shifted(features, shifts)

    def _require_pictures(self, y: Tensor, x: Tensor) -> None:
        if x.dim() != 3 or y.shape != (*x.shape, 2):
            raise ValueError(
                f"{type(self).__name__} needs chroma y of shape (n, height, width, 2) and luma x of "
                f"shape (n, height, width), got {tuple(y.shape)} and {tuple(x.shape)}: pass (y, x), as "
                "`Photos.patches` gives them"
            )
