"""Folders of pictures as sources of data."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Generator, Tensor

from ppl_vae.data.sizes import require_room
from ppl_vae.data.sources import TEST_FRACTION, Part, Source, held_out

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
"""Endings of the file names of pictures, in small or capital letters."""

SEGMENTS = ".seg.png"
"""What the name of a segmentation ends in, which is no photo: that of `12.jpg` is `12.seg.png`."""

HELD_OUT = ("test", "val", "validation")
"""Folders of pictures that are kept apart, beside `train`."""

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


def picture_folders(folder: Path) -> list[Path]:
    """The folders whose pictures are the data, those to train on first; the folder itself if nothing splits it.

    If it holds `train/`, and any of `test/`, `val/` and `validation/` beside it, these are the split: the first
    of them is the test, and another one the validation. What else is in the folder is not read then.

    Args:
        folder: The folder.

    Raises:
        ValueError: It holds `train/` or `test/` alone.
    """
    others = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
    if (folder / "train").is_dir():
        if not others:
            raise ValueError(
                f"the folder {folder} holds train/ but not test/ or val/: a split needs both; to use one of "
                f"them alone, give folder:{folder / 'train'}"
            )
        return [folder / "train", *others[:2]]
    if (folder / "test").is_dir():
        raise ValueError(
            f"the folder {folder} holds test/ but not train/: a split needs both; to use one of them alone, "
            f"give folder:{folder / 'test'}"
        )
    return [folder]


def picture_files(folder: Path, what: str = "pictures") -> list[Path]:
    """The pictures below a folder, sorted, without segmentations of them.

    Args:
        folder: The folder.
        what: What they are, for the error.

    Raises:
        ValueError: There are none.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()
        if not path.name.endswith(SEGMENTS)
    )
    if not files:
        raise ValueError(f"no {what} in the folder {folder}: looked for {', '.join(PICTURES)}")
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


def _headers(files: Sequence[Path]) -> tuple[str, dict[tuple[int, int], list[Path]]]:
    """The mode that all pictures can be read in, and those of each size (width, height), from their headers."""
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
    return ("L" if gray else "RGB"), sizes


def _one_size(sizes: dict[tuple[int, int], list[Path]]) -> tuple[int, int]:
    """The size (width, height) that all pictures share."""
    if len(sizes) > 1:
        counts = sorted(sizes.items(), key=lambda item: -len(item[1]))
        listed = ", ".join(f"{w} x {h} ({len(p)} files, as {p[0]})" for (w, h), p in counts[:3])
        raise ValueError(
            f"pictures differ in size (width x height): {listed}"
            f"{', ...' if len(counts) > 3 else ''}. Resize or crop them to one size, or take patches of them "
            "(patch_size)"
        )
    return next(iter(sizes))


def _require_large(sizes: dict[tuple[int, int], list[Path]], size: int) -> None:
    """Raises an error for photos that are smaller than a patch."""
    small = [(path, w, h) for (w, h), files in sizes.items() if min(w, h) < size for path in files]
    if small:
        path, w, h = small[0]
        more = f", and so are {len(small) - 1} others" if len(small) > 1 else ""
        least = min(min(w, h) for _, w, h in small)
        raise ValueError(
            f"the photo {path} has {w} x {h} pixels and is smaller than a patch of {size} x {size}{more}: "
            f"choose a patch_size of at most {least}, or remove small photos"
        )


def _read_picture(path: Path, mode: str) -> NDArray[np.uint8]:
    """The pixels of a picture, `(height, width, channels)`, turned upright."""
    try:
        with opened_picture(path) as image:
            upright = ImageOps.exif_transpose(image)  # a camera that was turned says so
            # With a transparent palette, PIL asks for an explicit conversion to RGBA.
            opaque = upright.convert("RGBA") if "transparency" in upright.info else upright
            pixels = np.asarray(opaque.convert(mode))
            return pixels.reshape(*pixels.shape[:2], -1)
    except PIL_ERRORS as error:
        raise _broken(path, error) from error


def _read_pictures(files: Sequence[Path], mode: str, size: tuple[int, int]) -> Tensor:
    channels = len(mode)
    require_room(files[0].parent, len(files) * size[0] * size[1] * channels)
    x = np.empty((len(files), size[1], size[0], channels), dtype=np.uint8)
    for row, path in zip(x, files, strict=True):
        pixels = _read_picture(path, mode)
        if pixels.shape != row.shape:  # the file has changed, or its header is wrong
            raise _broken(path, ValueError("its size is not that in its header"))
        row[:] = pixels
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def _cut_patches(
    files: Sequence[Path], mode: str, size: int, count: int, generator: Generator
) -> Tensor:
    """Patches at random places, uniformly: first one of each photo, then another one of each, and so on."""
    require_room(files[0].parent, len(files) * count * size**2 * len(mode))
    x = torch.empty(count, len(files), len(mode), size, size, dtype=torch.uint8)
    for i, path in enumerate(files):
        photo = torch.tensor(_read_picture(path, mode)).movedim(-1, 0)
        places = [
            torch.randint(side - size + 1, (count,), generator=generator).tolist()
            for side in photo.shape[1:]
        ]
        for patch, top, left in zip(x[:, i], *places, strict=True):
            patch[:] = photo[:, top : top + size, left : left + size]
    return x.flatten(0, 1)


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise FileNotFoundError(f"the folder {folder.absolute()} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; folder:PATH expects a folder of pictures")


def _classes_of(roots: Sequence[Path], listings: Sequence[Sequence[Path]]) -> dict[Path, int]:
    """The number of the sub-folder that each picture is in; empty if any is in none."""
    inner = {
        path: path.relative_to(root).parts
        for root, files in zip(roots, listings, strict=True)
        for path in files
    }
    if any(len(parts) == 1 for parts in inner.values()):
        return {}
    classes = sorted({parts[0] for parts in inner.values()})
    return {path: classes.index(parts[0]) for path, parts in inner.items()}


def _labels_of(files: Sequence[Path], classes: dict[Path, int]) -> Tensor | None:
    return torch.tensor([classes[path] for path in files]) if classes else None


def read_folder(folder: Path) -> Source:
    """Reads the pictures below a folder, in sorted order; RGB, or one channel if all are gray.

    `picture_folders` says what their split is. The sub-folders that hold the pictures
    give the labels 0, 1, ..., in alphabetical order. If any picture is outside of a sub-folder,
    there are no labels. Pictures are turned upright, as their EXIF orientation says.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: It does not exist.
        NotADirectoryError: It is a file.
        ValueError: It holds no pictures, a broken picture, or pictures that differ in size.
    """
    _require_folder(folder)
    roots = picture_folders(folder)
    listings = [picture_files(root) for root in roots]
    mode, sizes = _headers([path for files in listings for path in files])
    size = _one_size(sizes)
    classes = _classes_of(roots, listings)
    train, test, validation, *_ = (
        *(
            Part(_read_pictures(files, mode, size), _labels_of(files, classes))
            for files in listings
        ),
        None,
        None,
    )
    assert train is not None
    return Source(train, test, validation, levels=256)


def read_patches(
    folder: Path,
    size: int,
    count: int,
    validation_fraction: float,
    fixed: Generator,
    seeded: Generator,
) -> Source:
    """Cuts patches out of the photos below a folder, which may have different sizes.

    It splits photos, not patches: parts of one photo that overlap, or are alike, are in one split. Labels and
    channels are those of `read_folder`. One photo is in memory at a time.

    Args:
        folder: The folder.
        size: Side of a patch.
        count: Patches of each photo.
        validation_fraction: Share of the training photos to hold out, if the folder has no validation.
        fixed: For the choice of the test photos, if the folder has no split, and the places of their patches.
        seeded: For all other choices.

    Raises:
        FileNotFoundError: It does not exist.
        NotADirectoryError: It is a file.
        ValueError: It holds no photos, too few, a broken one, or one that is smaller than a patch.
    """
    _require_folder(folder)
    roots = picture_folders(folder)
    listings = [picture_files(root, "photos") for root in roots]
    mode, sizes = _headers([path for files in listings for path in files])
    _require_large(sizes, size)
    classes = _classes_of(roots, listings)
    name = f"folder:{folder}"

    def split(files: list[Path], fraction: float, generator: Generator) -> list[list[Path]]:
        numbers = held_out(name, len(files), fraction, generator, "photo")
        return [[files[i] for i in part.tolist()] for part in numbers]

    if len(listings) == 1:
        listings = split(listings[0], TEST_FRACTION, fixed)
    if len(listings) == 2:
        train, validation = split(listings[0], validation_fraction, seeded)
        listings = [train, listings[1], validation]

    def part(files: Sequence[Path], generator: Generator) -> Part:
        labels = _labels_of(files, classes)
        patches = _cut_patches(files, mode, size, count, generator)
        return Part(patches, None if labels is None else labels.repeat(count))

    train, test, validation = listings
    parts = part(train, seeded), part(test, fixed), part(validation, seeded)
    return Source(*parts, levels=256, smallest_side=min(min(shape) for shape in sizes))
