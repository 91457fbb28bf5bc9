"""What does a picture cost as codes? VQ-VAEs of several rates beside JPEG, WebP, AVIF and JPEG XL, as files.

Each operating point is a `VQVAE` with a prior of its codes. Each test picture is written, read again and
compared. Rates are those of the files, and of what is in them without their headers.

It needs `pip install torchmetrics bjontegaard`, and for JPEG XL `pillow-jxl-plugin`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np
import PIL
import torch
from kept_pairs import keep, kept, num_trained
from matplotlib.figure import Figure
from PIL import Image
from progress import Table, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ppl_vae import fit, load_data, refit_prior
from ppl_vae.codes import Quantizer, ResidualQuantizer, VectorQuantizer
from ppl_vae.colors import to_rgb
from ppl_vae.compression import compress_photo, decompress_photo, photo_error
from ppl_vae.data import load_photos
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VQVAE, PixelCNNPrior
from ppl_vae.networks import ConvolutionalGrid
from ppl_vae.runtime import digest, replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.training import margins

with contextlib.suppress(ModuleNotFoundError):
    import pillow_jxl  # noqa: F401  # gives Pillow the format

OURS = "VQ-VAE"
BLOCKS = "k-means of blocks"

CODECS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "JPEG": (
        {"format": "JPEG", "optimize": True, "progressive": True},
        (5, 10, 20, 30, 50, 75, 90),
    ),
    "WebP": ({"format": "WebP", "method": 6}, (1, 5, 10, 20, 40, 60, 80, 90)),
    "AVIF": ({"format": "AVIF", "speed": 4}, (5, 10, 20, 30, 40, 50, 65, 80)),
    "JPEG XL": ({"format": "JXL", "effort": 7}, (5, 15, 30, 45, 60, 75, 90)),
}
"""Settings of a codec, and the qualities that give its curve."""

LOSSLESS = 60.0
"""What a picture that comes back as it was counts as, decibels: a mean over pictures has to be finite."""

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM (Wang, Simoncelli and Bovik 2003). Small pictures have room for the first ones only."""


@dataclass(frozen=True)
class Point:
    """An operating point: what is trained for one rate.

    Attributes:
        halvings: How often the picture is halved: there is a position of codes for 4^halvings pixels.
        codes: Number K of codes.
        depth: How many codes a position has, each of what those before leave.
    """

    halvings: int
    codes: int
    depth: int = 1

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"halvings={self.halvings}-codes={self.codes}-depth={self.depth}"

    def quantizer(self) -> Quantizer:
        """Its codes."""
        if self.depth == 1:
            return VectorQuantizer(self.codes, dim=16)
        return ResidualQuantizer(self.codes, dim=16, depth=self.depth)


PHOTOS = (Point(3, 256), Point(2, 64), Point(2, 512), Point(2, 256, 2), Point(1, 64))
SMALL = (Point(2, 16), Point(2, 256), Point(2, 256, 2), Point(1, 64))


@dataclass(frozen=True)
class Settings:
    """How a point is trained.

    Attributes:
        channels: Channels of the networks.
        patch_embedding: Whether they cut pictures into patches at once, or halve them by convolutions.
        max_epochs: Passes over the training rows.
        patch: Positions of codes on a side of a patch of a photo: the prior sees as many.
        batch_pixels: Pixels of a batch.
        sigma: Noise of p(x | z): the mean squared error counts 1 / (2 sigma^2) beside the commitment.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        prior: What p(z) is built from.
        prior_epochs: Most passes of the prior over the codes.
        overlap: Share of a block of codes that it has in common with the next one.
        seed: Seed of weights, patches and batches.
    """

    channels: int = 64
    patch_embedding: bool = True
    max_epochs: int = 8
    patch: int = 16
    batch_pixels: int = 2**14
    sigma: float = 0.3
    learning_rate: float = 2e-3
    prior: PixelCNNPrior = PixelCNNPrior(channels=32, layers=4, window=8)  # noqa: RUF009 (frozen)
    prior_epochs: int = 12
    overlap: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Pictures to train on, and to measure on.

    Attributes:
        train: Rows from 0 to 1, `(n, channels, h, w)`.
        validation: Rows like them.
        around: Both for the prior of codes: patches have a margin there, so that all codes know what is around.
        test: Bytes, `(h, w, 3)` or `(h, w)` each.
    """

    train: Tensor
    validation: Tensor
    around: tuple[Tensor, Tensor]
    test: list[Tensor]


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


def main(
    data: str = "folder:photos",
    patches: int = 32,
    data_dir: Path = Path("data"),
    runs: Path | None = None,
    settings: Settings = Settings(),
    points: tuple[Point, ...] | None = None,
    max_rows: int | None = None,
    most_pictures: int | None = None,
    others: tuple[Path, ...] = (),
    output: Path = Path("compression.png"),
    overwrite: bool = False,
) -> None:
    """Trains VQ-VAEs of several rates, and compares their files with those of usual codecs.

    What is trained and measured is kept: a run that was stopped goes on.

    Args:
        data: "folder:PATH" with photos in `train` and `val` or `test`, or pictures of one size that `load_data`
            knows, such as MNIST.
        patches: How many patches of 64 x 64 pixels are cut out of each training photo, or as many pixels in
            larger ones; 0: the pictures have one size, and are taken as they are.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs and the scores; None: compression/ and the name of the data.
        settings: How points are trained.
        points: The operating points; None takes those that suit the size of the pictures.
        max_rows: Maximum number of rows per split, for a quick trial.
        most_pictures: Number of test pictures to use, the first ones.
        others: Folders of further codecs, which are called like them. A folder has one for each setting, with
            the decoded pictures 000.png, 001.png and so on, and a table sizes.csv of them: `picture`, `bytes`
            of its file, and `payload`, those of it without headers.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    runs = Path("compression") / Path(data.removeprefix("folder:")).name if runs is None else runs
    chosen = points or (PHOTOS if patches else SMALL)
    codecs = [name for name in CODECS if _can_write(name)]
    table = Table(
        ["codec", "setting", "bits per pixel, file", "without headers", "PSNR, dB", "MS-SSIM"],
        steps=len(chosen) + len(codecs) + len(others),
    )
    scores: list[Score] = []
    sizes: dict[str, int] = {}
    for point in chosen:
        of_point = partial(pictures_of, data, data_dir, patches, point, settings, max_rows)
        found, sizes[point.name] = _scored(point, of_point, runs, settings, most_pictures)
        scores += found
        if point.depth == 1:
            scores += of_blocks(of_point(), point, settings.seed)
        table.step(point.name)
    test = pictures_of(data, data_dir, patches, chosen[0], settings, max_rows).test[:most_pictures]
    for name in codecs:
        scores += _of_all(test, name, runs)
        table.step(name)
    for folder in others:
        scores += of_folder(test, folder)
        table.step(folder.name)
    table.head()
    for (codec, setting), group in _grouped(scores).items():
        columns = [torch.tensor([getattr(s, n) for s in group]) for n in _NUMBERS]
        digits = (".4f", ".4f", ".2f", ".4f")
        table.row(
            [codec, setting]
            + [Estimate(c, unit="").numbers(d) for c, d in zip(columns, digits, strict=True)]
        )
    print(f"\nBits that {OURS} needs more (+) or less (-) at the same PSNR (BD-rate):\n")
    savings = Table(["beside", "file", "without headers", "PSNR in common, dB"], steps=1)
    savings.head()
    for name in [*codecs, *(folder.name for folder in others)]:
        savings.row(
            [
                name,
                *(_told(bd_rate(scores, name, of)) for of in ("bits", "payload")),
                _common(scores, name),
            ]
        )
    print(
        f"\n{len(test)} test pictures. Means and standard errors over pictures; of BD-rates a paired bootstrap "
        f"over pictures: neither other trainings nor the choice of points are in it. MS-SSIM of "
        f"{_num_scales(test[0])} scales. Trained numbers: "
        + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        + "."
    )
    with replacing(output, overwrite=overwrite) as file:
        curves(scores).savefig(file)


# -- pictures ----------------------------------------------------------------------------------------------


def pictures_of(
    data: str,
    data_dir: Path,
    patches: int,
    point: Point,
    settings: Settings,
    max_rows: int | None,
) -> Pictures:
    """The pictures to train a point on, and the test pictures."""
    if patches:
        side = settings.patch * 2**point.halvings
        count = max(1, patches * 64**2 // side**2)
        photos = load_photos(data)
        room = min(min(p.luma.shape) for part in (photos.train, photos.test) for p in part)
        fitting = [
            m
            for m in margins(untrained(point, (3, side, side), settings)[1])
            if side + 2 * m <= room
        ]
        rows, around = (
            load_data(data, patch_size=s, patches=count, max_rows=max_rows, seed=settings.seed)
            for s in (side, side + 2 * max(fitting, default=0))
        )
        test = [to_rgb(photo.luma, photo.chroma) for photo in photos.test]
        return Pictures(rows.train, rows.validation, (around.train, around.validation), test)
    rows = load_data(data, data_dir=data_dir, max_rows=max_rows, seed=settings.seed)
    plain = rows.train, rows.validation
    return Pictures(*plain, plain, [_as_bytes(row) for row in rows.test])


def _as_bytes(row: Tensor) -> Tensor:
    """Bytes `(h, w, 3)` or `(h, w)` of a row from 0 to 1."""
    found = (255 * row).round().to(torch.uint8).movedim(0, -1)
    return found[..., 0] if found.shape[-1] == 1 else found


# -- a point -----------------------------------------------------------------------------------------------


def _scored(
    point: Point,
    pictures: Callable[[], Pictures],
    runs: Path,
    settings: Settings,
    most_pictures: int | None,
) -> tuple[list[Score], int]:
    """The scores of a point, from its folder if they are there, and how many numbers were trained."""
    folder = runs / point.name
    found = pictures()
    model, guide = trained(point, found, folder, settings)
    test = found.test[:most_pictures]
    file = folder / "scores.csv"
    of = digest([*test, *model.state_dict().values()]) + str(settings.overlap)
    scores = _read(file, of)
    if scores is None:
        scores = [own(model, guide, p, i, point, settings) for i, p in enumerate(test)]
        _write(file, of, scores)
    return scores, num_trained(model, guide)


def untrained(
    point: Point, shape: tuple[int, ...], settings: Settings
) -> tuple[VQVAE, QuantizingEncoder]:
    """A pair of a point."""
    network = ConvolutionalGrid(
        settings.channels, point.halvings, patch_embedding=settings.patch_embedding
    )
    model = VQVAE(shape, point.quantizer(), network, Gaussian(settings.sigma))
    return model, QuantizingEncoder(model, network)


def trained(
    point: Point, pictures: Pictures, folder: Path, settings: Settings
) -> tuple[VQVAE, QuantizingEncoder]:
    """A pair and the prior of its codes, from its folder if it is there."""
    whole = folder / "phase_2"
    rows = digest([pictures.train, pictures.validation, *pictures.around])
    made_of = f"{point}, {settings}, rows {rows}"
    if (found := kept(whole, made_of)) is not None:
        return found
    shape = tuple(pictures.train.shape[1:])
    torch.manual_seed(settings.seed)
    model, guide = untrained(point, shape, settings)
    batch_size = max(1, settings.batch_pixels // math.prod(shape[-2:]))
    first = folder / "phase_1"
    fit(
        *(model, guide, pictures.train),
        validation=pictures.validation,
        batch_size=batch_size,
        max_epochs=settings.max_epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler=partial(CosineAnnealingLR, T_max=settings.max_epochs),
        seed=settings.seed,
        run_dir=first,
        resume=first.exists(),
    )
    refitted = refit_prior(
        *(model, guide, pictures.around[0], settings.prior),
        validation=pictures.around[1],
        max_epochs=settings.prior_epochs,
        batch_size=8 * batch_size,
        seed=settings.seed,
    )
    print(f"{point.name}:\n{refitted.prior.fitted}", flush=True)
    keep(whole, refitted, guide, made_of)
    return refitted, guide


def own(
    model: Any, guide: Any, picture: Tensor, number: int, point: Point, settings: Settings
) -> Score:
    """A picture as codes, in a file that is read again."""
    file = compress_photo(model, guide, picture, overlap=settings.overlap)
    decoded = decompress_photo(model, file.data)
    return _score(OURS, point.name, number, picture, decoded, len(file.data), file.payload)


# -- usual codecs --------------------------------------------------------------------------------------------


def _of_all(test: Sequence[Tensor], name: str, runs: Path) -> list[Score]:
    """The scores of a codec at all qualities, from the folder if they are there."""
    of = digest(test) + str(CODECS[name]) + PIL.__version__
    file = runs / f"{name.replace(' ', '_')}.csv"
    scores = _read(file, of)
    if scores is None:
        qualities = CODECS[name][1]
        scores = [
            of_codec(p, i, name, quality) for quality in qualities for i, p in enumerate(test)
        ]
        _write(file, of, scores)
    return scores


def of_codec(picture: Tensor, number: int, name: str, quality: int) -> Score:
    """A picture as a usual codec writes it."""
    written = io.BytesIO()
    Image.fromarray(picture.numpy()).save(written, **CODECS[name][0], quality=quality)
    data = written.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        mode = "L" if picture.dim() == 2 else "RGB"
        decoded = torch.from_numpy(np.array(image.convert(mode)))
    return _score(name, str(quality), number, picture, decoded, len(data), payload_of(data, name))


def of_folder(test: Sequence[Tensor], folder: Path) -> list[Score]:
    """The scores of what another program has written, a folder for each setting.

    Raises:
        ValueError: A folder is not of these pictures.
    """
    settings = sorted((p.parent for p in folder.glob("*/sizes.csv")), key=_by_number)
    if not settings:
        raise ValueError(f"{folder} has no folder with a table sizes.csv")
    scores = []
    for setting in settings:
        with (setting / "sizes.csv").open(newline="") as opened:
            sizes = {int(row["picture"]): row for row in csv.DictReader(opened)}
        for number, picture in enumerate(test):
            file = setting / f"{number:03d}.png"
            if number not in sizes or not file.exists():
                raise ValueError(f"{setting} lacks picture {number} of {len(test)}")
            with Image.open(file) as image:
                decoded = torch.from_numpy(np.array(image))
            if decoded.shape != picture.shape:
                told = f"{tuple(decoded.shape)}, the test picture {tuple(picture.shape)}"
                raise ValueError(f"{file} is another picture: its shape is {told}")
            counts = (float(sizes[number][name]) for name in ("bytes", "payload"))
            scores.append(_score(folder.name, setting.name, number, picture, decoded, *counts))
    return scores


def _by_number(folder: Path) -> tuple[float, str]:
    """Settings that are numbers in their order."""
    try:
        return float(folder.name), folder.name
    except ValueError:
        return math.inf, folder.name


def _can_write(name: str) -> bool:
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), **CODECS[name][0])
    except (KeyError, OSError, ValueError):  # Pillow was built without it
        return False
    return True


def payload_of(data: bytes, name: str) -> int:
    """Bytes of a file that are coded numbers, and neither header nor table.

    The scans of a JPEG, the chunk of pixels of a WebP, the media of an AVIF; JPEG XL is taken as a whole: its
    tables are coded, too.
    """
    if name == "JPEG":
        return _of_scans(data)
    if name == "WebP":
        return _of_chunks(data)
    return _of_media(data) if name == "AVIF" else len(data)


def _of_scans(data: bytes) -> int:
    """Bytes between the start of each scan of a JPEG and the marker after it."""
    total, place = 0, 2
    while place < len(data):
        kind = data[place + 1]
        if kind == 0xD9:  # end of the picture
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == 0xDA:
            begin = place
            # In a scan, 0xFF is followed by 0 or a restart marker.
            while data[place] != 0xFF or data[place + 1] == 0 or 0xD0 <= data[place + 1] <= 0xD7:
                place += 1
            total += place - begin
    return total


def _of_chunks(data: bytes) -> int:
    place = 12
    while place < len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return size
        place += 8 + size + size % 2
    raise ValueError("the WebP file has no pixels")


def _of_media(data: bytes) -> int:
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] == b"mdat":
            return (size or len(data) - place) - 8
        place += size
    raise ValueError("the AVIF file has no pixels")


# -- scores ------------------------------------------------------------------------------------------------

_NUMBERS = ("bits", "payload", "psnr", "ms_ssim")


def _score(
    codec: str,
    setting: str,
    number: int,
    picture: Tensor,
    decoded: Tensor,
    size: float,
    payload: float,
) -> Score:
    pixels = picture.shape[0] * picture.shape[1]
    error = min(photo_error(picture, decoded), LOSSLESS)
    bits = (8 * size / pixels, 8 * payload / pixels)
    return Score(codec, setting, number, *bits, error, ms_ssim(picture, decoded))


def _num_scales(picture: Tensor) -> int:
    """How many scales a picture has room for, by the rule of torchmetrics for windows of 11 pixels."""
    side = min(picture.shape[:2])
    return max((n for n in range(2, 6) if side // (n - 1) ** 2 > 10), default=1)


def ms_ssim(picture: Tensor, decoded: Tensor) -> float:
    """Multi-scale structural similarity of two pictures of bytes."""
    weights = torch.tensor(SCALES[: _num_scales(picture)])
    first, second = (
        (p if p.dim() == 3 else p.unsqueeze(-1)).movedim(-1, 0).unsqueeze(0).double()
        for p in (picture, decoded)
    )
    betas = tuple((weights / weights.sum()).tolist())
    return float(
        multiscale_structural_similarity_index_measure(first, second, data_range=255.0, betas=betas)
    )


def _grouped(scores: Sequence[Score]) -> dict[tuple[str, str], list[Score]]:
    """The scores of each codec and setting."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.codec, score.setting), []).append(score)
    return groups


def _table_of(scores: Sequence[Score], codec: str, name: str) -> Tensor:
    """A number of a codec, `(settings, pictures)`."""
    groups = [group for (of, _), group in _grouped(scores).items() if of == codec]
    return torch.tensor(
        [[getattr(s, name) for s in group] for group in groups], dtype=torch.float64
    )


def bd_rate(
    scores: Sequence[Score], codec: str, bits: str, draws: int = 200, seed: int = 0
) -> tuple[float, float] | None:
    """What our files need more than a codec's at the same PSNR, in percent, and its standard error.

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
    curves = [(_table_of(scores, of, bits), _table_of(scores, of, "psnr")) for of in (codec, OURS)]
    pictures = curves[0][0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    which = [torch.arange(pictures)]
    which += [torch.randint(pictures, (pictures,), generator=generator) for _ in range(draws)]
    found = []
    for rows in which:
        (rate, quality), (own_rate, own_quality) = (
            [of[:, rows].mean(1) for of in curve] for curve in curves
        )
        anchor, test = _rising(rate, quality), _rising(own_rate, own_quality)
        if min(len(anchor[0]), len(test[0])) < 2 or not _overlap(anchor[1], test[1]):
            found.append(math.nan)
            continue
        options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
        found.append(bjontegaard.bd_rate(*anchor, *test, **options))
    if math.isnan(found[0]):
        return None
    return found[0], float(np.std(found[1:], ddof=1)) if pictures > 1 else math.nan


def _rising(rate: Tensor, quality: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve that are on it: more bits, and better than all with fewer."""
    order = rate.argsort()
    kept: list[int] = []
    for i in order.tolist():
        if not kept or float(quality[i]) > float(quality[kept[-1]]):
            kept.append(i)
    return rate[kept].numpy(), quality[kept].numpy()


def _overlap(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(max(first.min(), second.min()) < min(first.max(), second.max()))


def _common(scores: Sequence[Score], codec: str) -> str:
    """Between which PSNR both have points."""
    ranges = [
        _rising(_table_of(scores, of, "bits").mean(1), _table_of(scores, of, "psnr").mean(1))[1]
        for of in (codec, OURS)
    ]
    low, high = max(float(r.min()) for r in ranges), min(float(r.max()) for r in ranges)
    return f"{low:.1f} to {high:.1f}" if low < high else "none"


def _told(found: tuple[float, float] | None) -> str:
    if found is None:
        return ""
    return f"{found[0]:+.0f} %" if math.isnan(found[1]) else f"{found[0]:+.0f} ± {found[1]:.0f} %"


def _read(file: Path, of: str) -> list[Score] | None:
    """Kept scores, if they are of these pictures and weights."""
    if not file.exists():
        return None
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    if not rows or rows[0].pop("of") != of:
        return None
    return [
        Score(r["codec"], r["setting"], int(r["picture"]), *(float(r[name]) for name in _NUMBERS))
        for r in rows
    ]


def _write(file: Path, of: str, scores: Sequence[Score]) -> None:
    with (
        replacing(file, overwrite=True) as temporary,
        Path(temporary).open("w", newline="") as opened,
    ):
        writer = csv.DictWriter(opened, ["of", *asdict(scores[0])])
        writer.writeheader()
        writer.writerows({"of": of, **asdict(score)} for score in scores)


# -- the picture -------------------------------------------------------------------------------------------

COLORS = {
    OURS: "#D55E00",
    "JPEG": "#0072B2",
    "WebP": "#009E73",
    "AVIF": "#CC79A7",
    "JPEG XL": "#56B4E9",
}


def curves(scores: Sequence[Score]) -> Figure:
    """PSNR and MS-SSIM against bits per pixel of the files."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("psnr", "ms_ssim"), ("PSNR, dB", "MS-SSIM, dB"), strict=True
    ):
        for codec in dict.fromkeys(score.codec for score in scores):
            bits = _table_of(scores, codec, "bits").mean(1)
            quality = _table_of(scores, codec, name).mean(1)
            quality = -10 * (1 - quality).log10() if name == "ms_ssim" else quality
            if codec == OURS:
                axes.plot(bits, quality, "o", color=COLORS[codec], label=codec)
                axes.plot(*_rising(bits, quality), color=COLORS[codec])
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


# -- photos ------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    start(
        main,
        quick={
            "settings.channels": 8,
            "settings.max_epochs": 1,
            "settings.prior.channels": 8,
            "settings.prior_epochs": 1,
            "patches": 1,
            "settings.patch": 4,
            "max_rows": 40,
            "most_pictures": 2,
            "runs": "compression_quick",
            "output": "compression_quick.png",
        },
    )
