"""The subcommands `compress` and `decompress`: photos as the codes of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch import Tensor, nn

from ppl_vae.cli.common import distinct_names
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import show, warn
from ppl_vae.cli.output_files import require_not_read
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.compression import compress_photo, decompress_photo, photo_error
from ppl_vae.data import read_photo
from ppl_vae.pairs import Pair
from ppl_vae.runs import load_run
from ppl_vae.runtime import (
    as_folder,
    own_folder,
    progress_bar,
    replacing,
    require_file,
    resolve_device,
)

ENDING = ".vq"
"""The ending of the name of a compressed photo."""


def compress(parser: ArgumentParser, given: Namespace) -> int:
    """Writes each photo as codes.

    Returns:
        0; 1 if a photo could not be read: it is named in a warning, and the others are written.

    Raises:
        UsageError: An option is missing, or a file is there already.
        ValueError: None of the photos can be read.
    """
    options, files, out = _options(parser, given, "photos", "PHOTO", "compress")
    if not 0 <= options.overlap < 1:
        raise UsageError(f"--overlap must be at least 0 and less than 1, got {options.overlap}")
    model, guide = _pair(options, given)
    written = {stem: out / f"{stem}{ENDING}" for stem in files}
    _make_room(out, written, files, options.overwrite)
    table = [("photo", "pixels", "bytes", "bits per pixel", "PSNR")]

    def one(stem: str, path: Path) -> None:
        photo = read_photo(path)
        if _is_gray(model):
            photo = _as_gray(photo)
        found = compress_photo(model, guide, photo, overlap=options.overlap)
        with replacing(written[stem], overwrite=options.overwrite) as temporary:
            Path(temporary).write_bytes(found.data)
        error = photo_error(photo, decompress_photo(model, found.data))
        size = f"{found.width} x {found.height}"
        bits = f"{found.file_bits_per_pixel:.4f}"
        table.append((path.name, size, f"{len(found.data):,}", bits, f"{error:.2f} dB"))

    return _each(files, one, table, "compressing", "compressed", out, options)


def decompress(parser: ArgumentParser, given: Namespace) -> int:
    """Writes a picture for each compressed photo.

    Returns:
        0; 1 if a file could not be decoded: it is named in a warning, and the others are written.

    Raises:
        UsageError: An option is missing, or a file is there already.
        ValueError: None of the files can be decoded.
    """
    options, files, out = _options(parser, given, "files", "FILE", "decompress")
    if options.most_numbers < 1:
        raise UsageError(f"--most_numbers must be at least 1, got {options.most_numbers}")
    model, _ = _pair(options, given)
    written = {stem: out / f"{stem}.png" for stem in files}
    _make_room(out, written, files, options.overwrite)

    def one(stem: str, path: Path) -> None:
        try:
            picture = decompress_photo(model, path.read_bytes(), most_numbers=options.most_numbers)
        except ValueError as error:
            told = str(error).replace("most_numbers", "--most_numbers")
            raise ValueError(f"{path}: {told}") from error
        with replacing(written[stem], overwrite=options.overwrite) as temporary:
            Image.fromarray(picture.numpy()).save(temporary, format="PNG")

    return _each(files, one, [], "decoding", "decoded", out, options)


def _options(
    parser: ArgumentParser, given: Namespace, name: str, what: str, command: str
) -> tuple[Namespace, dict[str, Path], Path]:
    """The options, the files by the stem of what is written of each, and the folder."""
    if not given.get(name):
        raise UsageError(f"{what} is missing: give one or more files to {command}")
    for option, needed in (
        ("run", "folder of a run of VQVAE or VQVAE2"),
        ("out", "folder to write into"),
    ):
        if given.get(option) is None:
            raise UsageError(f"--{option} is missing: give the {needed}")
    options = parser.get_defaults()
    options.update(given)
    files = distinct_names([Path(file) for file in options[name]])
    return options, files, as_folder(options.out, "out")


def _pair(options: Namespace, given: Namespace) -> tuple[nn.Module, nn.Module]:
    """Model and guide of the run, on its device."""
    run = load_run(options.run, trust=trust_of(given, options.run), results=False)
    Pair.of(run.model, run.guide).to(resolve_device(options.device))
    return cast(nn.Module, run.model), cast(nn.Module, run.guide)


def _make_room(
    out: Path, written: Mapping[str, Path], files: Mapping[str, Path], overwrite: bool
) -> None:
    require_not_read("--out", written.values(), {str(file): file for file in files.values()})
    out.parent.mkdir(parents=True, exist_ok=True)
    own_folder(out)
    for file in written.values():
        require_file(file)
        if file.exists() and not overwrite:
            raise UsageError(f"{file} is there already: choose another --out, or pass --overwrite")


def _each(
    files: dict[str, Path],
    one: Callable[[str, Path], None],
    table: Sequence[tuple[str, ...]],
    doing: str,
    done_with: str,
    out: Path,
    options: Namespace,
) -> int:
    """Does the work on each file, names those that fail, and tells the rest."""
    done, began = 0, time.monotonic()
    with progress_bar(len(files), doing, "photo", False if options.quiet else None) as bar:
        for stem, path in files.items():
            try:
                one(stem, path)
            except (OSError, ValueError) as error:
                warn(f"{error}; it is left out")
            else:
                done += 1
            bar.update()
    if not done:
        raise ValueError(f"none of the {len(files)} files can be {done_with}")
    columns: Any = zip(*table, strict=True)
    widths = [max(map(len, column)) for column in columns]
    for row in table:
        cells = [
            c.ljust(w) if not i else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        show("  ".join(cells).rstrip())
    of = "" if done == len(files) else f" of {len(files)}"
    show(f"{done}{of} photo{'' if len(files) == 1 else 's'} {done_with}: {out}")
    if not options.quiet:
        show(f"took {time.monotonic() - began:.1f} s")
    return 0 if done == len(files) else 1


def _is_gray(model: Any) -> bool:
    shape: tuple[int, ...] = getattr(model, "data_shape", ())
    return math.prod(shape[:-2]) == 1


def _as_gray(photo: Tensor) -> Tensor:
    """The gray values of a photo, as PIL computes them, `(h, w)`."""
    return torch.from_numpy(np.array(Image.fromarray(photo.numpy()).convert("L")))
