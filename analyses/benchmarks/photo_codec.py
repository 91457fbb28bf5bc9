"""A learned codec of CompressAI, trained on the photos of a folder: its files, for `compression.py` to compare.

It runs in an environment of its own, which has CompressAI, and needs nothing of this library:

    python -m venv codec && codec/bin/pip install compressai
    codec/bin/python analyses/benchmarks/photo_codec.py --data photos --out CompressAI
    python analyses/compression.py --data folder:photos --others [CompressAI]

Its published weights saw hundreds of thousands of pictures; here it sees the same photos as the VQ-VAEs. What
is written is kept: a run that was stopped goes on with the next weight.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import mse_loss, pad
from torch.optim.lr_scheduler import CosineAnnealingLR

STRIDE = 64
"""The pixels of a side are filled up to a multiple of that: so much do the networks halve."""


def main() -> None:
    """Trains a mean-scale hyperprior for each weight of the error, and writes the photos as files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/, and test/ or val/"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for files and pictures")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0018, 0.0067, 0.025])
    parser.add_argument("--channels", type=int, nargs=2, default=[48, 72], metavar=("N", "M"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--patch", type=int, default=128, help="pixels of a side, a multiple of 64")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--most_pictures", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.patch % STRIDE:
        parser.error(f"--patch must be a multiple of {STRIDE}, got {asked.patch}")
    train, test = photos(asked.data / "train"), photos(held_out(asked.data))
    small = [photo for photo in train if min(photo.shape[1:]) >= asked.patch]
    if not small or not test:
        sys.exit(f"{asked.data}: no photos of {asked.patch} pixels in train/, or none held out")
    for weight in asked.weights:
        folder = asked.out / f"{weight:g}"
        settings = {**vars(asked), "weights": weight}
        told = json.dumps({k: str(v) for k, v in settings.items() if k != "out"}, indent=1)
        if (folder / "sizes.csv").exists():
            if (folder / "settings.json").read_text() != told:
                sys.exit(
                    f"{folder} was written with other settings: choose another --out, or delete it"
                )
            continue
        model = trained(small, weight, asked)
        written(model, test[: asked.most_pictures], folder)
        (folder / "settings.json").write_text(told)


def held_out(data: Path) -> Path:
    """The folder of the photos that are compressed: test/, or val/ without one, as for `load_photos`."""
    return next((data / part for part in ("test", "val") if (data / part).is_dir()), data / "val")


def photos(folder: Path) -> list[Tensor]:
    """The photos of a folder in the order of their names, `(3, h, w)` bytes each, turned upright."""
    if not folder.is_dir():
        sys.exit(f"there is no folder {folder}: --data needs train/, and test/ or val/")
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in {".jpg", ".jpeg", ".png"} and ".seg" not in file.suffixes:
            with Image.open(file) as opened:
                picture = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
            found.append(torch.from_numpy(picture).movedim(-1, 0))
    return found


def trained(train: Sequence[Tensor], weight: float, asked: argparse.Namespace) -> Any:
    """The codec: bits per pixel + weight 255^2 mean squared error is what its steps lower."""
    from compressai.models import MeanScaleHyperprior

    torch.manual_seed(asked.seed)
    model = MeanScaleHyperprior(*asked.channels)
    quantiles = [p for name, p in model.named_parameters() if name.endswith(".quantiles")]
    others = [p for name, p in model.named_parameters() if not name.endswith(".quantiles")]
    optimizer = torch.optim.Adam(others, asked.learning_rate)
    tables = torch.optim.Adam(quantiles, 1e-3)
    schedule = CosineAnnealingLR(optimizer, asked.steps)
    start, shown = time.monotonic(), torch.zeros(2)
    for step in range(1, asked.steps + 1):
        x = batch(train, asked.patch, asked.batch_size)
        found = model(x)
        bits = sum(-p.log2().sum() for p in found["likelihoods"].values()) / x[:, 0].numel()
        error = mse_loss(found["x_hat"], x)
        optimizer.zero_grad()
        (bits + weight * 255**2 * error).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        schedule.step()
        tables.zero_grad()
        model.aux_loss().backward()
        tables.step()
        shown += torch.tensor([float(bits), float(error)])
        if step % 500 == 0:
            bits, error = (shown / 500).tolist()
            shown.zero_()
            minutes = (time.monotonic() - start) / 60
            told = f"{bits:.3f} bits per pixel, {-10 * np.log10(error):.2f} dB, {minutes:.0f} min"
            print(f"weight {weight:g}, step {step} of {asked.steps}: {told}", flush=True)
    model.eval().update(force=True)
    print(f"weight {weight:g}: {sum(p.numel() for p in others):,} trained numbers", flush=True)
    return model


def batch(train: Sequence[Tensor], side: int, size: int) -> Tensor:
    """Random patches of random photos, half of them mirrored, from 0 to 1."""
    rows = []
    for which in torch.randint(len(train), (size,)).tolist():
        photo = train[which]
        top, left = (int(torch.randint(length - side + 1, ())) for length in photo.shape[1:])
        row = photo[:, top : top + side, left : left + side]
        rows.append(row.flip(-1) if torch.rand(()) < 0.5 else row)
    return torch.stack(rows).float() / 255


@torch.no_grad()
def written(model: Any, test: Sequence[Tensor], folder: Path) -> None:
    """Writes each picture as a file, reads it again, and keeps both, and the sizes of all."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    for number, picture in enumerate(test):
        file = folder / f"{number:03d}.bin"
        payload = save(model, picture, file)
        decoded, name = load(model, file), f"{number:03d}.png"
        Image.fromarray(decoded.movedim(0, -1).contiguous().numpy()).save(folder / name)
        original = hashlib.sha256(picture.movedim(0, -1).contiguous().numpy().tobytes())
        sizes.append([name, original.hexdigest(), file.stat().st_size, payload])
    with (folder / "sizes.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["picture", "original", "bytes", "payload"])
        writer.writerows(sizes)


def save(model: Any, picture: Tensor, file: Path) -> int:
    """A picture as a file: its size, the lengths of both streams, and these; returns their bytes."""
    height, width = picture.shape[1:]
    margin = (0, -width % STRIDE, 0, -height % STRIDE)
    x = pad(picture.unsqueeze(0).float() / 255, margin, mode="replicate")
    streams = [stream[0] for stream in model.compress(x)["strings"]]
    head = struct.pack("<HHII", height, width, *map(len, streams))
    file.write_bytes(head + b"".join(streams))
    return sum(map(len, streams))


def load(model: Any, file: Path) -> Tensor:
    """The picture of a file, `(3, h, w)` bytes."""
    data = file.read_bytes()
    start = struct.calcsize("<HHII")
    height, width, first, second = struct.unpack("<HHII", data[:start])
    streams = [[data[start : start + first]], [data[start + first : start + first + second]]]
    shape = ((height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
    found: Tensor = model.decompress(streams, shape)["x_hat"][0, :, :height, :width]
    return (255 * found.clamp(0, 1)).round().to(torch.uint8)


if __name__ == "__main__":
    main()
