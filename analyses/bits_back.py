"""How many bits does a picture cost? MNIST without loss by bits-back coding, beside usual codecs.

The networks are those of "Practical Lossless Compression with Latent Variables using Bits Back Coding"
(arXiv:1901.04866): one hidden layer of 100 units and 40 latents for pixels that are 0 or 1, drawn with the
intensity as probability; 200 units, 50 latents and a beta-binomial likelihood for 8-bit pixels. It reports 0.19
and 1.41 bits per dimension.
"""

from __future__ import annotations

import bz2
import io
import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from progress import Table, start
from torch import Tensor

from ppl_vae import fit, load_data, load_run
from ppl_vae.compression import compress, decompress
from ppl_vae.data import Data
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Bernoulli, BetaBinomial
from ppl_vae.models import VAE
from ppl_vae.networks import MLP

REPORTED = {"binary": 0.19, "raw": 1.41}
"""Bits per dimension of the paper."""

CODECS: dict[str, dict[str, Any]] = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WebP", "lossless": True, "method": 6, "quality": 100},
}


def main(
    pixels: Literal["binary", "raw"] = "binary",
    run: Path | None = None,
    data_dir: Path = Path("data"),
    max_epochs: int = 100,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    latent_bits: int = 16,
    rows_at_once: int = 64,
    seed: int = 0,
) -> None:
    """Compresses the test rows of MNIST, reads them again, and prints what each code costs.

    Args:
        pixels: Pixels that are 0 or 1, or of 8 bits.
        run: Folder of a run on such pixels; None trains the pair of the paper.
        data_dir: Folder that holds MNIST in torchvision's layout; downloaded to it if absent.
        max_epochs: Passes over the training rows.
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        latent_bits: Bits of the grid of each latent.
        rows_at_once: Most rows that are coded at once.
        seed: Seed of all random numbers.
    """
    data = load_data(
        "MNIST",
        data_dir=data_dir,
        binarize="dynamic" if pixels == "binary" else None,
        max_rows=max_rows,
        seed=seed,
    )
    x = data.test[:max_test_rows]
    table = Table(["code", "bits per dimension", "bytes"], steps=2 + len(CODECS))
    model, guide = trained(data, pixels, max_epochs, seed) if run is None else _pair_of(run)
    table.step("the pair")
    began = time.monotonic()
    file = compress(model, guide, x, latent_bits=latent_bits, rows_at_once=rows_at_once)
    wrote = time.monotonic() - began
    if not torch.equal(decompress(model, guide, file.data), x):
        raise RuntimeError("the file gives other rows")
    read = time.monotonic() - began - wrote
    table.step("bits-back")
    sizes = {"bits-back, whole file": len(file.data)}
    for name in CODECS:
        sizes[f"{name}, a file each"] = sum(in_format(row, name) for row in x)
        sizes[f"{name}, one picture of all"] = in_format(side_by_side(x), name)
        table.step(name)
    sizes["bz2, all rows"] = len(bz2.compress(as_bytes(x, pixels)))
    table.head()
    table.row(["-ELBO / (D ln 2)", file.expected_bits_per_dim.numbers(".4f"), ""])
    for name, size in sizes.items():
        table.row([name, f"{8 * size / x.numel():.4f}", str(size)])
    table.row(["arXiv:1901.04866", f"{REPORTED[pixels]:.2f}", ""])
    print(f"\n{file}\n\nWritten in {wrote:.0f} s and read in {read:.0f} s; the rows are the same.")


def trained(data: Data[Tensor], pixels: str, max_epochs: int, seed: int) -> tuple[VAE, MeanField]:
    """The pair of the paper."""
    torch.manual_seed(seed)
    binary = pixels == "binary"
    network, latent_dim = MLP((100 if binary else 200,)), 40 if binary else 50
    likelihood = Bernoulli() if binary else BetaBinomial()
    model = VAE(data.shape, latent_dim, network, likelihood)
    guide = MeanField(data.shape, latent_dim, network)
    fit(
        model,
        guide,
        data.train,
        validation=data.validation,
        transform=data.transform,
        max_epochs=max_epochs,
        seed=seed,
    )
    return model, guide


def _pair_of(folder: Path) -> tuple[Any, Any]:
    run = load_run(folder)
    return run.model, run.guide


def in_format(picture: Tensor, name: str) -> int:
    """Bytes of a picture `(1, h, w)` in a format of `CODECS`, which may take one bit for each 0 or 1."""
    gray = Image.fromarray((255 * picture[0]).round().byte().numpy())
    if name == "PNG" and bool(((picture == 0) | (picture == 1)).all()):
        gray = gray.convert("1")
    file = io.BytesIO()
    gray.save(file, **CODECS[name])
    return len(file.getvalue())


def side_by_side(x: Tensor) -> Tensor:
    """Pictures `(n, 1, h, w)` as one, `(1, rows * h, columns * w)`, with black ones at the end."""
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    whole = torch.cat([x, x.new_zeros(rows * columns - len(x), *x.shape[1:])])
    whole = whole.reshape(rows, columns, *x.shape[2:]).permute(0, 2, 1, 3)
    return whole.reshape(1, rows * x.shape[2], columns * x.shape[3])


def as_bytes(x: Tensor, pixels: str) -> bytes:
    """All pixels, 8 in a byte if they are 0 or 1."""
    if pixels == "binary":
        return np.packbits(x.numpy().astype(bool).reshape(-1)).tobytes()
    return (255 * x).round().byte().numpy().tobytes()


if __name__ == "__main__":
    start(main, quick={"max_epochs": 1, "max_rows": 200, "max_test_rows": 20, "rows_at_once": 8})
