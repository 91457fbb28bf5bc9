"""score_photos(): how many bits the colors of photos cost, how good colorings are, and what segments are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.distributions import Categorical, Independent

from ppl_vae.checks import opened
from ppl_vae.coloring.model import ModelOfColors
from ppl_vae.coloring.pictures import (
    applied,
    color_picture,
    fitted_shifts,
    segment_picture,
)
from ppl_vae.colors import possible_chroma, to_rgb
from ppl_vae.data import Photo
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.evaluation import evaluate
from ppl_vae.networks import MOST_PIXELS, tiles
from ppl_vae.pairs import (
    Pair,
    Program,
    is_posterior,
    kl_between,
    move,
    stated_elements,
    states_elements,
    sums_of_elements,
)
from ppl_vae.runtime import progress_bar, require_samples
from ppl_vae.stats import (
    Estimate,
    RowResult,
    segmentation_covering,
    variation_of_information,
)

_CORNER = 8
"""Height and width of the part of a photo on which it is found how a pair is summed over."""

_BOUND = (
    "bits are those of the bound -ELBO, an upper bound of -log2 P(y | x): grids of this width cannot be summed "
    "over, and nothing is drawn"
)

_NO_SEGMENTS = "no photo has a segmentation beside it"


@dataclass(frozen=True)
class PhotoScores(RowResult):
    """Numbers of a model of colors on photos, one for each photo.

    Attributes:
        bits: - log2 P(y | x) per pixel of chroma given luma; if log P(y | x) is not known, of a lower bound: of
            that by importance samples, or of the ELBO, where this is known exactly, as the notes say.
        elbo: The ELBO, in the same unit and with the same sign: - ELBO / (pixels log 2).
        rate: That of the guide, bits per pixel.
        information: KL(P(z | x, y) || P(z | x)), bits per pixel: what the colors say of the segments. Its mean
            is I(z; y | x) if the model is that of the photos. Where colors are latent, it is that given the
            likeliest ones, I(z; y | x, shifts), and the rate is that of these; of a wide grid it is the rate.
        rmse_mean: Root of the mean squared error of the mean coloring, over pixels and red, green and blue, in
            levels of 0, ..., 255.
        rmse_mode: That of the mode.
        psnr_mean: 20 log10(255 / rmse_mean), in decibels. Photos without an error, such as white ones, have
            none (NaN), and do not count.
        psnr_mode: That of the mode.
        rand: The adjusted Rand index of the likeliest segments given the gray picture, and of the segmentation
            beside the photo: 1 for the same, 0 by chance.
        rand_with_colors: That of the likeliest segments given gray picture and colors.
        variation: The variation of information of the segments given gray picture and colors, nats: 0 for the
            same.
        covering: Their covering of the segmentation beside the photo: 1 for the same.
        usage: How often each segment is the likeliest one given gray picture and colors, over all photos,
            `(K,)`.
        photo: Their files.
    """

    hidden: ClassVar[tuple[str, ...]] = ("usage",)

    bits: Estimate
    elbo: Estimate
    rate: Estimate
    information: Estimate
    rmse_mean: Estimate
    rmse_mode: Estimate
    psnr_mean: Estimate
    psnr_mode: Estimate
    rand: Estimate
    rand_with_colors: Estimate
    variation: Estimate
    covering: Estimate
    usage: Tensor
    photo: list[str]

    @property
    def used_segments(self) -> float:
        """exp of the entropy of `usage`: so many segments, if all were used alike."""
        return math.exp(-float(torch.xlogy(self.usage, self.usage).sum()))

    @property
    def is_bound(self) -> bool:
        """Whether the bits of some photos are those of the bound -ELBO, as log P(y | x) is not known."""
        return _BOUND in self.notes

    def lines(self) -> list[tuple[str, str]]:
        """See `Result`."""
        found = [
            ("-log2 P(y | x)", str(self.bits)),
            ("-ELBO", str(self.elbo)),
            ("rate", str(self.rate)),
            ("I(z; y | x)", str(self.information)),
            ("mean coloring", f"{self.psnr_mean}, {self.rmse_mean}"),
            ("mode coloring", f"{self.psnr_mode}, {self.rmse_mode}"),
            ("used segments", f"{self.used_segments:.1f} of {len(self.usage)}"),
        ]
        if self.rand.missing:
            return [*found, ("segments", self.rand.missing)]
        return [
            *found,
            ("adjusted Rand index", self.rand.numbers()),
            ("... with the colors", self.rand_with_colors.numbers()),
            ("variation of information", str(self.variation)),
            ("covering", self.covering.numbers()),
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """See `RowResult`."""
        return {
            **super().summary_numbers(),
            "usage": self.usage.tolist(),
            "used_segments": self.used_segments,
        }

    def doubts(self) -> Iterator[str]:
        """See `Result`."""
        gap = float((self.elbo.values - self.bits.values).mean())
        if gap < -1e-3:
            yield (
                "the ELBO is above log P(y | x), which cannot be: take more samples, or look at the evaluation"
            )


def score_photos(
    model: ModelOfColors,
    guide: Program,
    photos: Sequence[Photo],
    *,
    num_samples: int = 100,
    method: Literal["auto", "guide", "annealed"] = "guide",
    seed: int = 0,
    most_pixels: int = MOST_PIXELS,
    progress: bool | None = None,
) -> PhotoScores:
    """Measures a model of colors on photos: their code length, colorings and segments.

    log P(y | x) and ELBO are those of `ppl_vae.evaluate`: exact where the segments can be summed out. Where
    only the ELBO can be summed, as with `StructuredMeanField` for a wide `PottsSegments`, -ELBO stands for the
    bits, an upper bound, and nothing is drawn: importance samples of so many pixels cost much time, and say
    next to nothing more.

    Colors come from `color_picture`, segments from `segment_picture`. Means and standard errors are over
    photos. With the exact guide, photos whose pixels are independent given x are measured tile by tile, so that
    the memory does not grow with them. Other photos are evaluated as a whole, at some kB per pixel: reduce
    large ones when they are read (`longest`).

    Args:
        model: A model of colors, such as `IndependentSegments`.
        guide: Its guide.
        photos: The photos, of any sizes; those of one size are evaluated together.
        num_samples: Importance samples per photo, where neither log P(y | x) nor the ELBO is known.
        method: How log P(y | x) is found then, as for `evaluate`: "auto" looks for better proposals than the
            guide, which takes long. With "auto" and "annealed" there are samples also where the ELBO is known.
        seed: Seed of all draws.
        most_pixels: Most pixels that are colored at once.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Raises:
        TypeError: `num_samples` is no whole number.
        ValueError: There are no photos, `num_samples` is not positive, or there is no such method.
    """
    require_samples("num_samples", num_samples)
    if method not in ("auto", "guide", "annealed"):
        raise ValueError(f"method must be 'auto', 'guide' or 'annealed', got {method!r}")
    if not len(photos):
        raise ValueError("there are no photos to measure on")
    evaluated = _exactly(model, guide, photos, most_pixels)
    cautions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if evaluated is None and method == "guide":
        evaluated = _by_elements(model, guide, photos, seed)
        if evaluated is not None and not bool(evaluated["is_exact"].all()):
            notes = (_BOUND,)
    if evaluated is None:
        evaluated, cautions = _evaluated(model, guide, photos, num_samples, method, seed, progress)
    columns: dict[str, list[float]] = defaultdict(list)
    usage = torch.zeros(model.segments, dtype=torch.float64)
    for i, photo in enumerate(_watched(photos, progress)):
        coloring = color_picture(model, photo.luma, seed=seed, most_pixels=most_pixels)
        for name in ("mean", "mode"):
            error = color_error(photo, getattr(coloring, name))
            columns[f"rmse_{name}"].append(error)
            columns[f"psnr_{name}"].append(20 * math.log10(255 / error) if error else math.nan)
        found = segment_picture(model, photo.luma, photo.chroma, most_pixels=most_pixels)
        usage += torch.bincount(found.flatten().long(), minlength=model.segments) / found.numel()
        with_colors = compare_segments(photo, found)
        columns["rand"].append(compare_segments(photo, coloring.segments)["rand"])
        columns["rand_with_colors"].append(with_colors["rand"])
        columns["variation"].append(with_colors["variation"])
        columns["covering"].append(with_colors["covering"])
        known = evaluated.get("information")
        columns["information"].append(
            _information(model, photo) if known is None else float(known[i])
        )
    information = torch.tensor(columns["information"], dtype=torch.float64)
    unknown = information.isnan()
    columns["information"] = torch.where(unknown, evaluated["rate"], information).tolist()
    estimates: dict[str, Any] = {
        **{name: Estimate(evaluated[name], "bits per pixel") for name in ("bits", "elbo", "rate")},
        **{name: _estimate(name, values) for name, values in columns.items()},
    }
    return PhotoScores(
        **estimates,
        usage=usage / len(photos),
        photo=[photo.name for photo in photos],
        notes=notes,
        cautions=cautions,
    )


def _exactly(
    model: ModelOfColors, guide: Program, photos: Sequence[Photo], most_pixels: int
) -> dict[str, Tensor] | None:
    """Bits, ELBO, rate and information of each photo under the exact guide; None if they are not known."""
    if not is_posterior(model, guide):
        return None
    bits, rates = [], []
    with applied(model) as device:
        for photo in photos:
            y, x = (of.to(device) for of in photo.rows)
            _require_colors(photo)
            try:
                if _are_independent(model.prior(x[:, :1, :1])):
                    log_p, rate = _of_tiles(model, photo, most_pixels, device)
                else:
                    log_p = float(cast(Any, model).log_evidence(y, x))
                    rate = float(kl_between(model.conditioned(y, x), model.prior(x)))
            except (NotImplementedError, ValueError):  # of grids that are too wide
                return None
            unit = photo.luma.numel() * math.log(2.0)
            bits.append(-log_p / unit)
            rates.append(rate / unit)
    found, rate_of = (torch.tensor(each, dtype=torch.float64) for each in (bits, rates))
    return {"bits": found, "elbo": found, "rate": rate_of, "information": rate_of}


def _by_elements(
    model: ModelOfColors, guide: Program, photos: Sequence[Photo], seed: int
) -> dict[str, Tensor] | None:
    """Bits, ELBO and rate of each photo by sums over the segments of each pixel; None if that cannot be.

    `is_exact` says where log P(y | x) is known; elsewhere the bits are those of the ELBO.
    """
    if not states_elements(Pair.of(cast(Program, model), guide)):
        return None
    y, x = photos[0].rows  # of any photo, the sites are the same
    corner = (y[:, :_CORNER, :_CORNER], x[:, :_CORNER, :_CORNER])
    columns: dict[str, list[float]] = defaultdict(list)
    with opened(cast(Program, model), guide, corner, seed=seed, progress=False) as session:
        elements = stated_elements(session.pair, session.layout, session.first)
        if elements is None:
            return None
        for photo in photos:
            _require_colors(photo)
            rows = move(photo.rows, session.device)
            log_p, rate, distortion = sums_of_elements(session.pair, session.layout, rows, elements)
            unit = photo.luma.numel() * math.log(2.0)
            elbo = float(rate + distortion) / unit
            columns["is_exact"].append(log_p is not None)
            columns["bits"].append(elbo if log_p is None else -float(log_p) / unit)
            columns["elbo"].append(elbo)
            columns["rate"].append(float(rate) / unit)
    return {name: torch.tensor(each, dtype=torch.float64) for name, each in columns.items()}


def _are_independent(field: Any) -> bool:
    """Whether the segments of different pixels are independent under a field."""
    return isinstance(field, Independent) and isinstance(field.base_dist, Categorical)


def _of_tiles(
    model: ModelOfColors, photo: Photo, most_pixels: int, device: torch.device
) -> tuple[float, float]:
    """log P(y | x), and KL(P(z | x, y) || P(z | x)) of independent pixels, in nats."""
    log_p = rate = 0.0
    for tile in tiles(
        *photo.luma.shape, radius=model.radius, stride=model.stride, most_pixels=most_pixels
    ):
        y, x = (of[tile.seen].to(device).float()[None] for of in (photo.chroma, photo.luma))
        log_prior = model.unary(x)[0][tile.inside].double().log_softmax(-1)
        log_colors = model.color_components(x).log_prob(y.unsqueeze(-2))[0][tile.inside].double()
        of_pixels = (log_prior + log_colors).logsumexp(-1)
        posterior = (log_prior + log_colors - of_pixels.unsqueeze(-1)).exp()
        log_p += float(of_pixels.sum())
        rate += float((posterior * (log_colors - of_pixels.unsqueeze(-1))).sum())
    return log_p, rate


def _require_colors(photo: Photo) -> None:
    """Raises an error for chroma that its luma leaves no room for.

    Raises:
        ValueError: There is such a pixel.
    """
    if not bool(ChromaLogistic.room(photo.luma).check(photo.chroma).all()):
        raise ValueError(
            f"{photo.name}: there are no colors with this luma and chroma: take both from the same photo, as "
            "`ppl_vae.colors.split_colors` gives them"
        )


def _information(model: ModelOfColors, photo: Photo) -> float:
    """KL(P(z | x, y) || P(z | x)) in bits per pixel; NaN if it is not known."""
    with applied(model) as device:
        y, x = (of.to(device) for of in photo.rows)
        shifts = fitted_shifts(model, photo.luma, photo.chroma, photo.luma.numel())
        try:
            kl = kl_between(model.conditioned(y, x, shifts=shifts), model.prior(x))
        except NotImplementedError:
            return math.nan
    return float(kl) / (photo.luma.numel() * math.log(2.0))


def _watched(photos: Sequence[Photo], progress: bool | None) -> Iterator[Photo]:
    with progress_bar(len(photos), "colorings", "photo", progress) as bar:
        for photo in photos:
            yield photo
            bar.update()


def color_error(photo: Photo, chroma: Tensor) -> float:
    """Root of the mean squared error of colors, over pixels and red, green and blue, in levels of 0, ..., 255.

    Args:
        photo: The photo.
        chroma: (Co, Cg) of a coloring of its luma, `(h, w, 2)`; rounded.

    Example:
        >>> gray = torch.full((2, 2), 100, dtype=torch.int16)
        >>> photo = Photo("a.png", torch.zeros(2, 2, 2, dtype=torch.int16), gray)
        >>> color_error(photo, torch.zeros(2, 2, 2))
        0.0
    """
    possible = possible_chroma(photo.luma, chroma)
    truth, other = (to_rgb(photo.luma, of).double() for of in (photo.chroma, possible))
    return float((truth - other).square().mean().sqrt())


def compare_segments(photo: Photo, segments: Tensor) -> dict[str, float]:
    """Compares segments with those beside a photo: NaN if there are none.

    Args:
        photo: The photo.
        segments: The segment of each pixel, `(h, w)`.

    Returns:
        The adjusted Rand index `rand`, the variation of information `variation` in nats, and the
        `covering` of the photo's segments.

    Example:
        >>> z = torch.tensor([[0, 0], [1, 1]])
        >>> photo = Photo("a.png", torch.zeros(2, 2, 2).short(), torch.zeros(2, 2).short(), segments=z)
        >>> compare_segments(photo, 1 - z)
        {'rand': 1.0, 'variation': 0.0, 'covering': 1.0}
    """
    truth = photo.segments
    if truth is None:
        return dict.fromkeys(("rand", "variation", "covering"), math.nan)
    found = segments.long()
    return {
        "rand": float(adjusted_rand_score(truth.flatten().numpy(), found.flatten().numpy())),
        "variation": variation_of_information(truth, found),
        "covering": segmentation_covering(found, truth),
    }


_UNITS = {
    "information": "bits per pixel",
    "psnr_mean": "dB",
    "psnr_mode": "dB",
    "rmse_mean": "levels",
    "rmse_mode": "levels",
    "variation": "nats",
}


def _estimate(name: str, values: list[float]) -> Estimate:
    """Of photos that have the number; `missing` if none has."""
    numbers = torch.tensor(values, dtype=torch.float64)
    known = ~numbers.isnan()
    weights = None if bool(known.all()) else known.double()
    without = "no photo has an error" if name.startswith("psnr") else _NO_SEGMENTS
    missing = "" if bool(known.any()) else without
    return Estimate(numbers, _UNITS.get(name, ""), weights, missing)


def _evaluated(
    model: ModelOfColors,
    guide: Program,
    photos: Sequence[Photo],
    num_samples: int,
    method: Literal["auto", "guide", "annealed"],
    seed: int,
    progress: bool | None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Bits, ELBO and rate of each photo, in bits per pixel, and why they should not be trusted."""
    of_shape = defaultdict(list)
    for i, photo in enumerate(photos):
        of_shape[tuple(photo.luma.shape)].append(i)
    names = {"bits": "log_likelihood", "elbo": "elbo", "rate": "rate"}
    found = {name: torch.full((len(photos),), math.nan, dtype=torch.float64) for name in names}
    cautions: dict[str, None] = {}
    for (height, width), own in of_shape.items():
        y = torch.stack([photos[i].chroma for i in own]).float()
        x = torch.stack([photos[i].luma for i in own]).float()
        result = evaluate(
            cast(Program, model),
            guide,
            (y, x),
            num_samples=num_samples,
            method=method,
            seed=seed,
            progress=progress,
        )
        cautions |= dict.fromkeys(result.warnings)
        for name, of in names.items():
            sign = 1.0 if name == "rate" else -1.0
            values = getattr(result, of).values.double()
            found[name][own] = sign * values / (height * width * math.log(2.0))
    return found, tuple(cautions)
