"""What does a picture cost as codes? VQ-VAEs of several rates beside JPEG, WebP, AVIF and JPEG XL, as files.

Each operating point is a `VQVAE` with a prior of its codes. Each test picture is written, read again and
compared. Rates are those of the files, and of what is in them without their headers.

It needs `pip install torchmetrics bjontegaard`, and for JPEG XL `pillow-jxl-plugin`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_pairs import has_begun, keep, kept, num_trained
from photo_codecs import CODECS, can_write, of_blocks, of_codecs, of_folder
from photo_scores import (
    NUMBERS,
    OURS,
    Score,
    bd_rate,
    common,
    curves,
    grouped,
    num_scales,
    read_scores,
    score_of,
    write_scores,
)
from progress import Table, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit, load_data, refit_prior
from ppl_vae.codes import Quantizer, ResidualQuantizer, VectorQuantizer
from ppl_vae.colors import to_rgb
from ppl_vae.compression import compress_photo, decompress_photo
from ppl_vae.data import load_photos
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VQVAE, PixelCNNPrior
from ppl_vae.networks import ConvolutionalGrid
from ppl_vae.runtime import digest, replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.training import margins


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
            the decoded pictures, and a table sizes.csv of them: `picture`, its name; `original`, SHA-256 of
            the bytes (height, width, channels) of the picture that it is of; `bytes` of its file, and
            `payload`, those of it without headers.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    runs = Path("compression") / Path(data.removeprefix("folder:")).name if runs is None else runs
    chosen = points or (PHOTOS if patches else SMALL)
    codecs = [name for name in CODECS if can_write(name)]
    table = Table(
        ["codec", "setting", "bits per pixel, file", "without headers", "PSNR, dB", "MS-SSIM"],
        steps=len(chosen) + len(codecs),
    )
    scores: list[Score] = []
    sizes: dict[str, int] = {}
    test = pictures_of(data, data_dir, patches, chosen[0], settings, max_rows).test[:most_pictures]
    of_others = [score for folder in others for score in of_folder(test, folder)]
    for point in chosen:
        of_point = partial(pictures_of, data, data_dir, patches, point, settings, max_rows)
        found, sizes[point.name] = _scored(point, of_point, runs, settings, most_pictures)
        scores += found
        table.step(point.name)
    for point in (p for p in chosen if p.depth == 1):
        rows = pictures_of(data, data_dir, patches, point, settings, max_rows).train
        setting = f"{2**point.halvings} x {2**point.halvings}, K = {point.codes}"
        scores += of_blocks(rows, test, 2**point.halvings, point.codes, setting, settings.seed)
    for name in codecs:
        scores += of_codecs(test, name, runs)
        table.step(name)
    scores += of_others
    table.head()
    for (codec, setting), group in grouped(scores).items():
        columns = [torch.tensor([getattr(s, n) for s in group]) for n in NUMBERS]
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
                *(str(bd_rate(scores, name, of) or "") for of in ("bits", "payload")),
                common(scores, name),
            ]
        )
    print(
        f"\n{len(test)} test pictures. Means and standard errors over pictures; of BD-rates a paired bootstrap "
        f"over pictures: neither other trainings nor the choice of points are in it. MS-SSIM of "
        f"{num_scales(test[0])} scales. Trained numbers: "
        + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        + "."
    )
    with replacing(output, overwrite=overwrite) as file:
        curves(scores).savefig(file)


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
    scores = read_scores(file, of)
    if scores is None:
        scores = [own(model, guide, p, i, point, settings) for i, p in enumerate(test)]
        write_scores(file, of, scores)
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
        resume=has_begun(first),
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
    return score_of(OURS, point.name, number, picture, decoded, len(file.data), file.payload)


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
