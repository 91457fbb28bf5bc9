"""Files of pictures: their sizes, errors and curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import bjontegaard
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ppl_vae.compression import photo_error
from ppl_vae.runtime import replacing

OURS = "VQ-VAE"
BLOCKS = "k-means of blocks"


LOSSLESS = 60.0
"""What a picture that comes back as it was counts as, decibels: a mean over pictures has to be finite."""


SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM (Wang, Simoncelli and Bovik 2003). Small pictures have room for the first ones only."""


@dataclass(frozen=True)
class Score:
    """A picture in a file.

    Attributes:
        codec: Who wrote it.
        setting: The quality, or the name of the point.
        picture: Which test picture.
        bits: Bits of the file per pixel.
        payload: Those of what is not header.
        psnr: Decibels.
        ms_ssim: From 0 to 1.
    """

    codec: str
    setting: str
    picture: int
    bits: float
    payload: float
    psnr: float
    ms_ssim: float


NUMBERS = ("bits", "payload", "psnr", "ms_ssim")


def score_of(
    codec: str,
    setting: str,
    number: int,
    picture: Tensor,
    decoded: Tensor,
    size: float,
    payload: float,
) -> Score:
    """The score of a file of `size` bytes, of which `payload` are no header."""
    pixels = picture.shape[0] * picture.shape[1]
    error = min(photo_error(picture, decoded), LOSSLESS)
    bits = (8 * size / pixels, 8 * payload / pixels)
    return Score(codec, setting, number, *bits, error, ms_ssim(picture, decoded))


def num_scales(picture: Tensor) -> int:
    """How many scales a picture has room for, by the rule of torchmetrics for windows of 11 pixels."""
    side = min(picture.shape[:2])
    return max((n for n in range(2, 6) if side // (n - 1) ** 2 > 10), default=1)


def ms_ssim(picture: Tensor, decoded: Tensor) -> float:
    """Multi-scale structural similarity of two pictures of bytes."""
    weights = torch.tensor(SCALES[: num_scales(picture)])
    first, second = (
        (p if p.dim() == 3 else p.unsqueeze(-1)).movedim(-1, 0).unsqueeze(0).double()
        for p in (picture, decoded)
    )
    betas = tuple((weights / weights.sum()).tolist())
    return float(
        multiscale_structural_similarity_index_measure(first, second, data_range=255.0, betas=betas)
    )


def grouped(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    """The scores of each codec and setting."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.codec, score.setting), []).append(score)
    return groups


def table_of(scores: Sequence[Score], codec: str, name: str) -> Tensor:
    """A number of a codec, `(settings, pictures)`."""
    groups = [group for (of, _), group in grouped(scores).items() if of == codec]
    return torch.tensor(
        [[getattr(s, name) for s in group] for group in groups], dtype=torch.float64
    )


@dataclass(frozen=True)
class Rate:
    """What our files need more than those of a codec at the same PSNR.

    Attributes:
        percent: So much; below 0 they need less.
        error: Its standard error, NaN of one picture.
        draws: Draws of the bootstrap.
        apart: In how many of them the curves had no PSNR in common: the error is that of the others.
    """

    percent: float
    error: float
    draws: int
    apart: int

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.percent:+.0f} %"
        told = f"{self.percent:+.0f} ± {self.error:.0f} %"
        return told + (
            f" (nothing in common in {self.apart} of {self.draws} draws)" if self.apart else ""
        )


def bd_rate(
    scores: Sequence[Score], codec: str, bits: str, draws: int = 200, seed: int = 0
) -> Rate | None:
    """What our files need more than a codec's at the same PSNR.

    Curves are of means over pictures, by piecewise cubic polynomials (Bjontegaard). The error is that of a
    bootstrap which draws pictures, the same ones for both.

    Args:
        scores: All scores.
        codec: The codec beside ours.
        bits: "bits" or "payload".
        draws: Of the bootstrap.
        seed: Of its draws.

    Returns:
        None if the curves have no PSNR in common.
    """
    curves = [(table_of(scores, of, bits), table_of(scores, of, "psnr")) for of in (codec, OURS)]
    pictures = curves[0][0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    whole = _difference(curves, torch.arange(pictures))
    if whole is None:
        return None
    which = [torch.randint(pictures, (pictures,), generator=generator) for _ in range(draws)]
    found = [_difference(curves, rows) for rows in which]
    known = [percent for percent in found if percent is not None]
    error = float(np.std(known, ddof=1)) if pictures > 1 and len(known) > 1 else math.nan
    return Rate(whole, error, draws, draws - len(known))


def _difference(curves: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> float | None:
    """The BD-rate of these pictures in percent."""
    (rate, quality), (own_rate, own_quality) = (
        [of[:, rows].mean(1) for of in curve] for curve in curves
    )
    anchor, test = rising(rate, quality), rising(own_rate, own_quality)
    if min(len(anchor[0]), len(test[0])) < 2 or not _overlap(anchor[1], test[1]):
        return None
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    return float(bjontegaard.bd_rate(*anchor, *test, **options))


def rising(rate: Tensor, quality: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve that are on it: more bits, and better than all with fewer."""
    order = rate.argsort()
    kept: list[int] = []
    for i in order.tolist():
        if not kept or float(quality[i]) > float(quality[kept[-1]]):
            kept.append(i)
    return rate[kept].numpy(), quality[kept].numpy()


def _overlap(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(max(first.min(), second.min()) < min(first.max(), second.max()))


def common(scores: Sequence[Score], codec: str) -> str:
    """Between which PSNR both have points."""
    ranges = [
        rising(table_of(scores, of, "bits").mean(1), table_of(scores, of, "psnr").mean(1))[1]
        for of in (codec, OURS)
    ]
    low, high = max(float(r.min()) for r in ranges), min(float(r.max()) for r in ranges)
    return f"{low:.1f} to {high:.1f}" if low < high else "none"


def read_scores(file: Path, of: str) -> list[Score] | None:
    """Kept scores, if they are of these pictures and weights."""
    if not file.exists():
        return None
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    if not rows or rows[0].pop("of") != of:
        return None
    return [
        Score(r["codec"], r["setting"], int(r["picture"]), *(float(r[name]) for name in NUMBERS))
        for r in rows
    ]


def write_scores(file: Path, of: str, scores: Sequence[Score]) -> None:
    """Keeps scores, and what they are of."""
    with (
        replacing(file, overwrite=True) as temporary,
        Path(temporary).open("w", newline="") as opened,
    ):
        writer = csv.DictWriter(opened, ["of", *asdict(scores[0])])
        writer.writeheader()
        writer.writerows({"of": of, **asdict(score)} for score in scores)


COLORS = {
    OURS: "#D55E00",
    "JPEG": "#0072B2",
    "WebP": "#009E73",
    "AVIF": "#CC79A7",
    "JPEG XL": "#56B4E9",
    BLOCKS: "#999999",
}


def curves(scores: Sequence[Score]) -> Figure:
    """PSNR and MS-SSIM against bits per pixel of the files."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("psnr", "ms_ssim"), ("PSNR, dB", "MS-SSIM, dB"), strict=True
    ):
        for codec in dict.fromkeys(score.codec for score in scores):
            bits = table_of(scores, codec, "bits").mean(1)
            quality = table_of(scores, codec, name).mean(1)
            quality = -10 * (1 - quality).log10() if name == "ms_ssim" else quality
            if codec == OURS:
                axes.plot(bits, quality, "o", color=COLORS[codec], label=codec)
                axes.plot(*rising(bits, quality), color=COLORS[codec])
            else:
                color = COLORS.get(codec, "#444444")
                axes.plot(bits, quality, ".-", color=color, label=codec, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel("bits per pixel, whole file", fontsize=12)
        axes.set_ylabel(label, fontsize=12)
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11)
    return figure
