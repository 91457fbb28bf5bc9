"""Files of pictures that other codecs write."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from photo_scores import BLOCKS, OURS, Score, read_scores, score_of, write_scores
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn.functional import pad

from ppl_vae.runtime import digest

with contextlib.suppress(ModuleNotFoundError):
    import pillow_jxl  # noqa: F401  # gives Pillow the format

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


def of_codecs(test: Sequence[Tensor], name: str, runs: Path) -> list[Score]:
    """The scores of a codec at all qualities, from the folder if they are there."""
    of = digest(test) + str(CODECS[name]) + PIL.__version__
    file = runs / f"{name.replace(' ', '_')}.csv"
    scores = read_scores(file, of)
    if scores is None:
        qualities = CODECS[name][1]
        scores = [
            of_codec(p, i, name, quality) for quality in qualities for i, p in enumerate(test)
        ]
        write_scores(file, of, scores)
    return scores


def of_codec(picture: Tensor, number: int, name: str, quality: int) -> Score:
    """A picture as a usual codec writes it."""
    written = io.BytesIO()
    Image.fromarray(picture.numpy()).save(written, **CODECS[name][0], quality=quality)
    data = written.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        mode = "L" if picture.dim() == 2 else "RGB"
        decoded = torch.from_numpy(np.array(image.convert(mode)))
    return score_of(name, str(quality), number, picture, decoded, len(data), payload_of(data, name))


def of_folder(test: Sequence[Tensor], folder: Path) -> list[Score]:
    """The scores of what another program has written, a folder for each setting.

    Raises:
        ValueError: The folder is called like a codec that is there already, or has no settings, or lacks a test
            picture.
    """
    if folder.name in (*CODECS, OURS, BLOCKS):
        raise ValueError(
            f"{folder} is called like a codec that is compared anyway: give it another name"
        )
    settings = sorted((p.parent for p in folder.glob("*/sizes.csv")), key=_by_number)
    if not settings:
        raise ValueError(f"{folder} has no folder with a table sizes.csv")
    return [score for setting in settings for score in _of_setting(test, setting)]


def _of_setting(test: Sequence[Tensor], setting: Path) -> list[Score]:
    table = setting / "sizes.csv"
    columns = ("picture", "original", "bytes", "payload")
    with table.open(newline="") as opened:
        reader = csv.DictReader(opened)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(
                f"{table} lacks the column {min(missing)!r}: expected {', '.join(columns)}"
            )
        rows = {row["original"]: row for row in reader}
    scores = []
    for number, picture in enumerate(test):
        row = rows.get(name_of(picture))
        if row is None:
            raise ValueError(
                f"{table} has no row of test picture {number}, whose bytes are {name_of(picture)}"
            )
        with Image.open(setting / row["picture"]) as image:
            decoded = torch.from_numpy(np.array(image))
        if decoded.shape != picture.shape:
            told = f"{tuple(decoded.shape)}, and not {tuple(picture.shape)}"
            raise ValueError(
                f"{setting / row['picture']} has another shape than the original: {told}"
            )
        counts = (float(row["bytes"]), float(row["payload"]))
        scores.append(
            score_of(setting.parent.name, setting.name, number, picture, decoded, *counts)
        )
    return scores


def name_of(picture: Tensor) -> str:
    """What a picture is called in a table: SHA-256 of its bytes, in the order height, width, channels."""
    return hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest()


def of_blocks(
    train: Tensor, test: Sequence[Tensor], side: int, codes: int, setting: str, seed: int
) -> list[Score]:
    """The scores of k-means: each block of side x side pixels becomes the nearest of K, for log2 K bits.

    It is a VQ-VAE without networks, and without a prior.

    Args:
        train: Rows from 0 to 1, `(n, channels, h, w)`.
        test: Bytes, `(h, w, 3)` or `(h, w)` each.
        side: Pixels of a side of a block.
        codes: K.
        setting: What the scores are called.
        seed: Of the start, and of the blocks that are taken from `train`.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = _blocks(train, side).flatten(0, 2)
    some = torch.randperm(len(blocks), generator=generator)[:MOST_BLOCKS]
    means = MiniBatchKMeans(codes, batch_size=4096, n_init=1, random_state=seed)
    means.fit(blocks[some].numpy())
    scores = []
    for number, picture in enumerate(test):
        height, width = picture.shape[:2]
        row = (picture if picture.dim() == 3 else picture.unsqueeze(-1)).movedim(-1, 0) / 255
        row = pad(row.unsqueeze(0), (0, -width % side, 0, -height % side), mode="replicate")
        cut = _blocks(row, side)
        codes_of = means.predict(cut.flatten(0, 2).numpy())
        nearest = torch.from_numpy(means.cluster_centers_[codes_of]).reshape(cut.shape)
        drawn = nearest.unflatten(-1, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)
        whole = drawn.flatten(4, 5).flatten(2, 3)[0, :, :height, :width].movedim(0, -1)
        decoded = (255 * whole.clamp(0, 1)).round().to(torch.uint8).reshape(picture.shape)
        size = len(codes_of) * math.log2(codes) / 8
        scores.append(score_of(BLOCKS, setting, number, picture, decoded, size, size))
    return scores


MOST_BLOCKS = 60_000
"""Blocks that k-means sees."""


def _blocks(rows: Tensor, side: int) -> Tensor:
    """The blocks of rows `(n, channels, h, w)`: `(n, h / side, w / side, channels side^2)`."""
    return rows.unfold(2, side, side).unfold(3, side, side).movedim(1, 3).flatten(3)


def _by_number(folder: Path) -> tuple[float, str]:
    """Settings that are numbers in their order."""
    try:
        return float(folder.name), folder.name
    except ValueError:
        return math.inf, folder.name


def can_write(name: str) -> bool:
    """Whether Pillow has the format here."""
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
