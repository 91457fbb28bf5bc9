"""P(y | z, x): the colors of the segments, by what a decoder may see of the gray picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.distributions import ChromaLogistic
from ppl_vae.networks import UNet, full_precision, require_at_least_one, require_object

FEATURES = 5
"""Numbers that describe the colors of a segment: locations and scales of (Co, Cg), and a slope."""

LEVELS = 32.0
"""Levels of chroma in a unit of the features."""

_LEAST = 0.1
"""The least scale, in levels."""


def chroma(luma: Tensor, features: Tensor) -> ChromaLogistic:
    """P(y | z, x) of pixels, for the features of their segments.

    Args:
        luma: `(*batch)`.
        features: Any real numbers, `(*batch, 5)`.
    """
    features = full_precision(features)
    loc = LEVELS * features[..., :2]
    scale = _LEAST + LEVELS / 4 * softplus(features[..., 2:4])
    return ChromaLogistic(luma, loc, scale, features[..., 4], validate_args=False)


def clustered(pixels: Tensor, segments: int, seed: int) -> Tensor:
    """Features of the colors of k-means clusters, `(segments, 5)`.

    Args:
        pixels: Their chroma, `(n, 2)`.
        segments: Number of clusters.
        seed: Seed of k-means.
    """
    from sklearn.cluster import KMeans

    points = pixels.double().cpu()
    found = KMeans(segments, n_init=4, random_state=seed).fit(points.numpy())
    labels = torch.from_numpy(found.labels_)
    features = torch.zeros(segments, FEATURES, dtype=torch.float64)
    for k in range(segments):
        own = points[labels == k]
        loc = own.mean(0) if len(own) else points[k]
        away = own - loc
        variance = away.square().mean(0) if len(own) > 1 else torch.ones(2, dtype=torch.float64)
        slope = (
            (away.prod(-1).mean() / variance[1].clamp_min(1.0)).clamp(-2, 2) if len(own) else 0.0
        )
        spread = variance.clamp_min(1.0).sqrt() / 1.81  # the scale of a logistic of this variance
        features[k, :2] = loc / LEVELS
        features[k, 2:4] = ((spread - _LEAST) / (LEVELS / 4)).clamp_min(1e-3).expm1().log()
        features[k, 4] = slope
    return features


def standardized(luma: Tensor) -> Tensor:
    """Luma for a network: `(*batch, 1, h, w)`, from `(*batch, h, w)` of 0, ..., 255."""
    return (luma.unsqueeze(-3) - 128.0) / 64.0


class Colors(ABC):
    """What a model builds P(y | z, x) of: a description, as those of networks are.

    To write your own, derive from this class, as a frozen dataclass, and write `build`; and `radius` and
    `stride`, if it sees more of the picture than the pixel itself.
    """

    @property
    def radius(self) -> int:
        """How many pixels away a pixel may lie that the features depend on."""
        return 0

    @property
    def stride(self) -> int:
        """Shifts of the picture by as many pixels only shift the features."""
        return 1

    @abstractmethod
    def build(self, segments: int) -> nn.Module:
        """Builds the module.

        Args:
            segments: Number K of segments.

        Returns:
            A module that maps the luma `(n, h, w)` to features `(n or 1, h or 1, w or 1, K, 5)`: see `chroma`.
            Its parameter `features`, `(K, 5)`, is what it adds for each segment.
        """


@dataclass(frozen=True)
class Palette(Colors):
    """The color of a pixel depends on its segment alone, apart from what its luma leaves room for.

    With this weakest decoder, colors that differ must be told apart by z.

    Example:
        >>> Palette().build(segments=3)(torch.zeros(2, 8, 8)).shape
        torch.Size([1, 1, 1, 3, 5])
    """

    def build(self, segments: int) -> nn.Module:
        """See `Colors`."""
        require_at_least_one(self, segments=segments)
        return _Palette(segments)


@dataclass(frozen=True)
class LumaColors(Colors):
    """The color of a pixel depends on its segment and on the luma of the pixels around it.

    Args:
        window: Side of the square of pixels that it sees; odd.
        hidden: Width of the network.

    Raises:
        TypeError: One of them is no whole number.
        ValueError: One of them is not positive, or `window` is even.

    Example:
        >>> LumaColors(window=1).build(segments=3)(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 8, 8, 3, 5])
    """

    window: int = 3
    hidden: int = 32

    def __post_init__(self) -> None:
        require_at_least_one(self, window=self.window, hidden=self.hidden)
        if self.window % 2 == 0:
            raise ValueError(
                f"LumaColors.window must be odd, so that a pixel is in the middle, got {self.window}"
            )

    @property
    def radius(self) -> int:
        """See `Colors`."""
        return self.window // 2

    def build(self, segments: int) -> nn.Module:
        """See `Colors`."""
        require_at_least_one(self, segments=segments)
        first = nn.Conv2d(
            1, self.hidden, self.window, padding=self.window // 2, padding_mode="replicate"
        )
        net = nn.Sequential(
            *(first, nn.SiLU(), nn.Conv2d(self.hidden, self.hidden, 1), nn.SiLU()),
            nn.Conv2d(self.hidden, segments * FEATURES, 1),
        )
        return _FromPicture(net, segments)


@dataclass(frozen=True)
class PictureColors(Colors):
    """The color of a pixel depends on its segment and on the whole gray picture: the decoder can ignore z.

    Args:
        network: What it is built from.

    Raises:
        TypeError: `network` is no description of a network.

    Example:
        >>> PictureColors(UNet((4, 8))).build(segments=3)(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 8, 8, 3, 5])
    """

    network: UNet = UNet()  # frozen

    def __post_init__(self) -> None:
        require_object(self, "network", self.network, "build", "UNet((16, 32, 64))")

    @property
    def radius(self) -> int:
        """See `Colors`."""
        return self.network.radius

    @property
    def stride(self) -> int:
        """See `Colors`."""
        return self.network.stride

    def build(self, segments: int) -> nn.Module:
        """See `Colors`."""
        require_at_least_one(self, segments=segments)
        return _FromPicture(self.network.build(1, segments * FEATURES), segments)


class ShiftedColors(nn.Module, ABC):
    """Colors that are latent in each picture: shifts c of those of the segments, with a prior."""

    @abstractmethod
    def prior(self) -> dist.TorchDistribution:
        """p(c) of one picture, of event shape `(K, 2)`."""

    @abstractmethod
    def shifted(self, features: Tensor, shifts: Tensor) -> Tensor:
        """Features of shifted colors, `(*batch, 1, 1, K, 5)`.

        Args:
            features: What the module itself gives, `(1, 1, 1, K, 5)`.
            shifts: c, `(*batch, K, 2)`.
        """

    @abstractmethod
    def fitted(self, model: Any, y: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The most probable shifts given y, and how sure they are, by EM within each picture.

        Args:
            model: The model of these colors.
            y: Chroma, `(n, h, w, 2)`.
            x: Luma, `(n, h, w)`.
            steps: Number of steps.

        Returns:
            Means and standard deviations of a normal around the maximum, `(n, K, 2)` each.
        """


def apart(segments: int) -> Tensor:
    """Features of segments that differ, so that none is the same as another for good."""
    return torch.randn(segments, FEATURES) * torch.tensor([1.0, 0.5, 0.1, 0.1, 0.1])


class _Palette(nn.Module):
    def __init__(self, segments: int) -> None:
        super().__init__()
        self.features = nn.Parameter(apart(segments))

    def forward(self, luma: Tensor) -> Tensor:
        return self.features.reshape(1, 1, 1, *self.features.shape)


class _FromPicture(nn.Module):
    """Features of each pixel from a network, around those of its segment.

    Args:
        net: Maps `(n, 1, h, w)` to `(n, segments * 5, h, w)`.
        segments: K.
    """

    def __init__(self, net: nn.Module, segments: int) -> None:
        super().__init__()
        self.net = net
        self.features = nn.Parameter(apart(segments))

    def forward(self, luma: Tensor) -> Tensor:
        out: Tensor = self.net(standardized(luma))
        found: Tensor = out.movedim(-3, -1).unflatten(-1, self.features.shape) + self.features
        return found
