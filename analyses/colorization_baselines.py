"""What models of colors have to beat in `colorization.py`: simple colors, and simple segments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ppl_vae.coloring import color_error, compare_segments
from ppl_vae.colors import chroma_interval, luma_after_green, to_rgb
from ppl_vae.data import Photo, Photos
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.stats import Estimate

Segmenter = Callable[[Photo], NDArray[np.int64]]


# -- colors ----------------------------------------------------------------------------------------------


class ColorsFound(NamedTuple):
    """What a baseline says of the colors of a photo.

    Attributes:
        bits: - log2 P(y | x) per pixel.
        rmse: Of its coloring, in levels.
    """

    bits: float
    rmse: float


class MeanChroma:
    """One color for all pixels: a `ChromaLogistic` around the mean of the training photos.

    Args:
        photos: They.
    """

    def __init__(self, photos: Photos) -> None:
        y, x = _pixels(photos, 100_000)
        self.mean = y.mean(0)
        self.scale = _best_scale(y - self.mean, x, self.mean.expand_as(y))

    def __call__(self, photo: Photo) -> ColorsFound:
        """Measures it on a photo."""
        center = self.mean.expand(*photo.luma.shape, 2)
        return _around(photo, center, self.scale)


class NearestPatch:
    """The color of the pixel of the training photos whose gray surroundings are most alike.

    P(y | x) is a `ChromaLogistic` around that color, with the scale that suits the training photos.

    Args:
        photos: The training photos.
        count: Pixels to choose from.
        radius: Pixels to each side that count.
    """

    def __init__(self, photos: Photos, count: int = 20_000, radius: int = 3) -> None:
        self.radius = radius
        generator = np.random.default_rng(0)
        patches, colors = [], []
        each = max(1, count // len(photos))
        for photo in photos:
            windows = self._windows(photo).reshape(-1, (2 * radius + 1) ** 2)
            some = generator.choice(len(windows), min(each, len(windows)), replace=False)
            patches.append(windows[some])
            colors.append(photo.chroma.reshape(-1, 2)[torch.from_numpy(some)])
        self.colors = torch.cat(colors).float()
        every = np.concatenate(patches)
        half = len(every) // 2
        # How wrong the colors of strangers are is measured between two halves.
        self.nearest = NearestNeighbors(n_neighbors=1).fit(every[:half])
        found = torch.from_numpy(self.nearest.kneighbors(every[half:], return_distance=False)[:, 0])
        center, truth = self.colors[:half][found], self.colors[half:]
        luma = torch.from_numpy(every[half:, every.shape[1] // 2]).float()
        self.scale = _best_scale(truth - center, luma, center)
        self.nearest = NearestNeighbors(n_neighbors=1).fit(every)

    def __call__(self, photo: Photo) -> ColorsFound:
        """Measures it on a photo."""
        windows = self._windows(photo).reshape(-1, (2 * self.radius + 1) ** 2)
        found = torch.from_numpy(self.nearest.kneighbors(windows, return_distance=False)[:, 0])
        center = self.colors[found].reshape(*photo.luma.shape, 2)
        return _around(photo, center, self.scale)

    def _windows(self, photo: Photo) -> NDArray[np.float32]:
        padded = np.pad(photo.luma.numpy().astype(np.float32), self.radius, mode="edge")
        side = 2 * self.radius + 1
        found: NDArray[np.float32] = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
        return found


class Histogram:
    """P(chroma | luma) by counts: luma in 32 bins, Co and Cg in bins of 8 levels.

    Within a bin all chroma that the luma leaves room for are as likely, and each bin has half a count to begin
    with.
    """

    BINS = 64
    """Bins of Co, and of Cg, of 8 levels each, from -256 on."""

    def __init__(self, photos: Photos) -> None:
        counts = torch.full((32, self.BINS, self.BINS), 0.5, dtype=torch.float64)
        sums = torch.zeros(32, 2, dtype=torch.float64)
        of_luma = torch.zeros(32, dtype=torch.float64)
        for photo in photos:
            x, y = photo.luma.flatten().long() // 8, photo.chroma.reshape(-1, 2).long()
            place = (x * self.BINS + (y[:, 1] + 256) // 8) * self.BINS + (y[:, 0] + 256) // 8
            counts += torch.bincount(place, minlength=counts.numel()).reshape(counts.shape)
            sums.index_add_(0, x, y.double())
            of_luma += torch.bincount(x, minlength=32)
        self.mean = sums / of_luma.clamp_min(1).unsqueeze(-1)
        self.table = torch.stack([self._spread(counts[x // 8], x) for x in range(256)])

    def _spread(self, counts: Tensor, luma: int) -> Tensor:
        """log P of a single chroma in each bin, `(Cg, Co)`, for one luma."""
        room = possible(luma)
        inside = room.reshape(self.BINS, 8, self.BINS, 8).sum((1, 3)).double()
        p = torch.where(inside > 0, counts, 0.0)
        return (p / p.sum() / inside.clamp_min(1)).log()

    def log_prob(self, photo: Photo) -> Tensor:
        """log P(y_i | x_i) of each pixel, nats."""
        y = photo.chroma.long()
        return self.table[photo.luma.long(), (y[..., 1] + 256) // 8, (y[..., 0] + 256) // 8]

    def __call__(self, photo: Photo) -> ColorsFound:
        """Measures it on a photo."""
        bits = float(-self.log_prob(photo).mean()) / math.log(2)
        center = self.mean[photo.luma.long() // 8]
        return ColorsFound(bits, color_error(photo, center))


def possible(luma: int) -> Tensor:
    """Which chroma a luma leaves room for, `(512, 512)`: Cg and Co from -256 on."""
    green, orange = torch.arange(-256, 256)[:, None], torch.arange(-256, 256)[None]
    least, greatest = chroma_interval(torch.tensor(luma))
    inside = (green >= least) & (green <= greatest)
    level = luma_after_green(torch.tensor(luma), green.clamp(int(least), int(greatest)))
    low, high = chroma_interval(level)
    return inside & (orange >= low) & (orange <= high)


def _pixels(photos: Photos, most: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([photo.chroma.reshape(-1, 2) for photo in photos]).float()
    x = torch.cat([photo.luma.flatten() for photo in photos]).float()
    some = torch.randperm(len(x), generator=generator)[:most]
    return y[some], x[some]


def _best_scale(away: Tensor, luma: Tensor, center: Tensor) -> Tensor:
    """The scale of (Co, Cg) with the highest likelihood on a grid, one after the other."""
    scale = away.abs().mean(0).clamp_min(0.5)
    for channel in (1, 0):
        tried = []
        for factor in np.geomspace(0.1, 4, 40):
            trial = scale.clone()
            trial[channel] *= float(factor)
            p = ChromaLogistic(luma, center, trial.expand_as(center), validate_args=False)
            tried.append((float(p.log_prob((center + away).round()).mean()), trial))
        scale = max(tried, key=lambda each: each[0])[1]
    return scale


def _around(photo: Photo, center: Tensor, scale: Tensor) -> ColorsFound:
    p = ChromaLogistic(
        photo.luma.float(), center.float(), scale.expand_as(center), validate_args=False
    )
    bits = float(-p.log_prob(photo.chroma.float()).mean()) / math.log(2)
    return ColorsFound(bits, color_error(photo, center))


# -- segments --------------------------------------------------------------------------------------------


def one_segment(photo: Photo) -> NDArray[np.int64]:
    """All pixels together."""
    return np.zeros(tuple(photo.luma.shape), dtype=np.int64)


def by_luma(photo: Photo, segments: int = 8) -> NDArray[np.int64]:
    """k-means on luma and texture, within the photo: what can be seen without colors."""
    luma = photo.luma.numpy().astype(np.float64)
    features = [gaussian_filter(luma, scale) for scale in (1, 3)]
    for scale in (1.5, 4):
        away = (luma - gaussian_filter(luma, scale)) ** 2
        features.append(2 * np.sqrt(gaussian_filter(away, scale)))
    return _clusters(np.stack(features, -1), segments)


def by_lab(photo: Photo, segments: int = 8) -> NDArray[np.int64]:
    """k-means on smoothed CIELAB, within the photo: it sees the colors."""
    lab = _lab(photo)
    return _clusters(
        np.stack([gaussian_filter(c, 1) for c in np.moveaxis(lab, -1, 0)], -1), segments
    )


def by_slic(photo: Photo, segments: int = 8) -> NDArray[np.int64]:
    """SLIC superpixels; it sees the colors."""
    from skimage.segmentation import slic

    found: NDArray[np.int64] = slic(_rgb(photo), n_segments=segments, compactness=20, sigma=1)
    return found


def by_felzenszwalb(photo: Photo, scale: float = 300) -> NDArray[np.int64]:
    """Felzenszwalb and Huttenlocher's graph-based segments; it sees the colors."""
    from skimage.segmentation import felzenszwalb

    found: NDArray[np.int64] = felzenszwalb(_rgb(photo), scale=scale, sigma=0.8, min_size=100)
    return found


def _clusters(features: NDArray[np.float64], segments: int) -> NDArray[np.int64]:
    flat = features.reshape(-1, features.shape[-1])
    labels = KMeans(segments, n_init=2, random_state=0).fit(flat).labels_
    found: NDArray[np.int64] = labels.reshape(features.shape[:-1]).astype(np.int64)
    return found


def _rgb(photo: Photo) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = to_rgb(photo.luma, photo.chroma).numpy()
    return found


def _lab(photo: Photo) -> NDArray[np.float64]:
    from skimage.color import rgb2lab

    # Numbers from 0 to 1: it would take integers for those of their dtype's range.
    found: NDArray[np.float64] = rgb2lab(_rgb(photo) / 255.0)
    return found


SEGMENTERS: dict[str, tuple[Callable[..., NDArray[np.int64]], tuple[int, ...]]] = {
    "k-means on luma and texture": (by_luma, (2, 3, 4, 8)),
    "k-means on Lab (sees the colors)": (by_lab, (2, 3, 4, 8)),
    "SLIC (sees the colors)": (by_slic, (4, 6, 12, 25)),
    "Felzenszwalb (sees the colors)": (by_felzenszwalb, (200, 400, 800)),
}
"""Ways to segment a photo, and the values of their parameter that are tried on training photos."""


def compared(
    segmented: Callable[[Photo], NDArray[np.int64]], photos: Photos
) -> dict[str, Estimate]:
    """The adjusted Rand index and the others of `compare_segments`, over photos."""
    rows = [compare_segments(photo, torch.from_numpy(segmented(photo))) for photo in photos]
    return {name: Estimate(torch.tensor([row[name] for row in rows]), "") for name in rows[0]}


def best_of(name: str, photos: Photos) -> tuple[int, Segmenter]:
    """A way of segmenting with the value that suits some photos best, by the Rand index; and that value."""
    way, values = SEGMENTERS[name]
    best = max(values, key=lambda value: compared(partial(_with, way, value), photos)["rand"].mean)
    return best, partial(_with, way, best)


def _with(way: Callable[..., NDArray[np.int64]], value: int, photo: Photo) -> NDArray[np.int64]:
    return way(photo, value)
