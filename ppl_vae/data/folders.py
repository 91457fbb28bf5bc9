"""Folders of pictures as sources of data."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ppl_vae.data.sizes import require_room
from ppl_vae.data.sources import Part, Source

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
"""Endings of the file names of pictures, in small or capital letters."""

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF")
"""What PIL may read, whatever the name says: for some other formats it starts another program."""

_LARGEST = 2**29
"""Most bytes of a picture's file: PIL reads some parts, and some files as a whole, before it knows what is in
them. One without compression that is not too large for PIL has fewer."""

PIL_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What PIL raises for a broken picture."""

_ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations of pictures whose width and height are exchanged when they are upright."""


def _picture_files(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise ValueError(f"no pictures in the folder {folder}: looked for {', '.join(PICTURES)}")
    return files


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the picture {path} cannot be read: {error}. Repair it, convert it to PNG, or remove it"
    )


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """A picture that is not suspiciously large: PIL only warns of the smaller ones of those."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"its file is larger than {_LARGEST >> 20} MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            yield image


def _picture_mode(files: list[Path]) -> tuple[str, tuple[int, int]]:
    """The mode and size (width, height) that all pictures share, from their headers alone."""
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)
    gray = True
    for path in files:
        try:
            with opened_picture(path) as image:
                mode, size = image.mode, image.size
                if image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE:
                    size = size[::-1]
        except PIL_ERRORS as error:
            raise _broken(path, error) from error
        if mode.startswith(("I", "F")):
            raise ValueError(
                f"the picture {path} has more than 8 bits per channel (mode {mode}); "
                "convert it to 8 bits, or save the values as an .npy array"
            )
        gray = gray and mode in ("1", "L", "LA")
        sizes[size].append(path)
    if len(sizes) > 1:
        counts = sorted(sizes.items(), key=lambda item: -len(item[1]))
        listed = ", ".join(f"{w} x {h} ({len(p)} files, as {p[0]})" for (w, h), p in counts[:3])
        raise ValueError(
            f"pictures differ in size (width x height): {listed}"
            f"{', ...' if len(counts) > 3 else ''}. Resize or crop them to one size"
        )
    return ("L" if gray else "RGB"), next(iter(sizes))


def _read_pictures(files: list[Path], mode: str, size: tuple[int, int]) -> Tensor:
    channels = 1 if mode == "L" else 3
    require_room(files[0].parent, len(files) * size[0] * size[1] * channels)
    x = np.empty((len(files), size[1], size[0], channels), dtype=np.uint8)
    for row, path in zip(x, files, strict=True):
        try:
            with opened_picture(path) as image:
                upright = ImageOps.exif_transpose(image)  # a camera that was turned says so
                # With a transparent palette, PIL asks for an explicit conversion to RGBA.
                opaque = upright.convert("RGBA") if "transparency" in upright.info else upright
                row[:] = np.asarray(opaque.convert(mode)).reshape(row.shape)
        except PIL_ERRORS as error:
            raise _broken(path, error) from error
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def read_folder(folder: Path) -> Source:
    """Reads the pictures below a folder, in sorted order; RGB, or one channel if all are gray.

    If it holds `train/` and `test/`, they are the split. The sub-folders that hold the pictures
    give the labels 0, 1, ..., in alphabetical order. If any picture is outside of a sub-folder,
    there are no labels. Pictures are turned upright, as their EXIF orientation says.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: It does not exist.
        NotADirectoryError: It is a file.
        ValueError: It holds no pictures, a broken picture, or pictures that differ in size.
    """
    if not folder.exists():
        raise FileNotFoundError(f"the folder {folder.absolute()} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; folder:PATH expects a folder of pictures")
    found = [name for name in ("train", "test") if (folder / name).is_dir()]
    if len(found) == 1:
        missing = "test" if found == ["train"] else "train"
        raise ValueError(
            f"the folder {folder} holds {found[0]}/ but not {missing}/: a split needs "
            f"both; to use one of them alone, give folder:{folder / found[0]}"
        )
    roots = [folder / name for name in found] or [folder]
    listings = [_picture_files(root) for root in roots]
    mode, size = _picture_mode([path for files in listings for path in files])

    inner = [
        [p.relative_to(r).parts for p in files] for r, files in zip(roots, listings, strict=True)
    ]
    labeled = all(len(path) > 1 for paths in inner for path in paths)
    classes = sorted({path[0] for paths in inner for path in paths})
    parts = []
    for files, paths in zip(listings, inner, strict=True):
        labels = torch.tensor([classes.index(p[0]) for p in paths]) if labeled else None
        parts.append(Part(_read_pictures(files, mode, size), labels))
    return Source(parts[0], parts[1] if len(parts) > 1 else None, levels=256)
