"""Color photos as luma and chroma, with human segmentations beside them where there are some."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppl_vae.colors import split_colors
from ppl_vae.data.folders import HELD_OUT, PIL_ERRORS, SEGMENTS, opened_picture, picture_files
from ppl_vae.runtime import require_count, require_seed

_EMBEDDED = {
    "train": (
        "astronaut.png",
        "chelsea.png",
        "rocket.jpg",
        "retina.jpg",
        "ihc.png",
        "hubble_deep_field.jpg",
    ),
    "test": ("coffee.png", "motorcycle_left.png"),
}
"""The color photos that scikit-image has in its wheel; others it downloads."""


class BrokenPhotoWarning(UserWarning):
    """A photo cannot be read, and is left out."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo of h x w pixels.

    Attributes:
        name: Its file, without the folder.
        chroma: (Co, Cg), int16, `(h, w, 2)`: see `ppl_vae.colors.split_colors`.
        luma: Y, int16, `(h, w)`.
        segments: Somebody's segmentation, a number for each pixel, `(h, w)`; None if there is none.
    """

    name: str
    chroma: Tensor
    luma: Tensor
    segments: Tensor | None = None

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The photo as a batch of one row, (chroma, luma), float32: what `SegmentedColors` takes."""
        return self.chroma[None].float(), self.luma[None].float()


class Photos(Sequence[Photo]):
    """Some photos, of any sizes.

    Args:
        photos: Them.

    Example:
        >>> gray = Photo("gray.png", torch.zeros(9, 12, 2).short(), torch.arange(108).reshape(9, 12).short())
        >>> y, x = Photos([gray]).patches(size=8, count=5, seed=0)
        >>> y.shape, x.shape
        (torch.Size([5, 8, 8, 2]), torch.Size([5, 8, 8]))
    """

    def __init__(self, photos: Sequence[Photo]) -> None:
        self._photos = tuple(photos)

    def __len__(self) -> int:
        return len(self._photos)

    @overload
    def __getitem__(self, i: int) -> Photo: ...

    @overload
    def __getitem__(self, i: slice) -> Photos: ...

    def __getitem__(self, i: int | slice) -> Photo | Photos:
        return Photos(self._photos[i]) if isinstance(i, slice) else self._photos[i]

    def __iter__(self) -> Iterator[Photo]:
        return iter(self._photos)

    def __repr__(self) -> str:
        pixels = sum(photo.luma.numel() for photo in self)
        return f"<{len(self)} photos, {pixels / 1e6:.2f} million pixels>"

    def patches(self, size: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Squares that are cut out at random, each photo as often as its number of pixels says.

        Args:
            size: Their side in pixels.
            count: How many.
            seed: Seed of the choice.

        Returns:
            Chroma, `(count, size, size, 2)`, and luma, `(count, size, size)`, float32: a batch of
            `SegmentedColors`.

        Raises:
            TypeError: `size`, `count` or `seed` is no whole number.
            ValueError: `size` or `count` is not positive, or every photo is smaller than `size`.
        """
        require_count("size", size, 1)
        require_count("count", count, 1)
        require_seed(seed)
        large = [photo for photo in self if min(photo.luma.shape) >= size]
        if not large:
            raise ValueError(
                f"no photo has {size} x {size} pixels (there are {len(self)}): choose a smaller "
                "size of the patches"
            )
        generator = torch.Generator().manual_seed(seed)
        weights = torch.tensor([float(photo.luma.numel()) for photo in large])
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
        places = torch.rand(count, 2, generator=generator).tolist()
        chroma = torch.empty(count, size, size, 2)
        luma = torch.empty(count, size, size)
        for i, (number, (down, right)) in enumerate(zip(chosen, places, strict=True)):
            photo = large[number]
            top = int(down * (photo.luma.shape[0] - size + 1))
            left = int(right * (photo.luma.shape[1] - size + 1))
            part = slice(top, top + size), slice(left, left + size)
            chroma[i], luma[i] = photo.chroma[part], photo.luma[part]
        return chroma, luma


@dataclass(frozen=True, eq=False)
class PhotoData:
    """Photos to train on, and others to measure on.

    Attributes:
        train: The photos to train on.
        test: Others.
    """

    train: Photos
    test: Photos


def load_photos(
    name: str = "skimage",
    *,
    longest: int | None = None,
    test_fraction: float = 0.2,
    split: bool = True,
    seed: int = 0,
) -> PhotoData:
    """Loads color photos, those to measure on apart from those to train on.

    A photo that cannot be read is named in a `BrokenPhotoWarning`, and left out.

    Args:
        name: "skimage" for the photos that scikit-image contains, or "folder:PATH" for those below a folder. If
            that holds `train/`, and `test/` or `val/` beside it, they are the split. A segmentation of `12.jpg`
            is `12.seg.png`.
        longest: Longest side in pixels: larger photos are reduced to it. None keeps them as they are.
        test_fraction: The share of the photos to measure on, if the folder has no split of its own.
        split: Whether to split them at all; if not, `train` and `test` both have all photos.
        seed: Seed of that split.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: The name is unknown, or there are no photos.
        FileNotFoundError: The folder does not exist.
        ModuleNotFoundError: scikit-image is not installed.
    """
    if longest is not None:
        require_count("longest", longest, 1)
    kind, _, path = name.partition(":")
    if name == "skimage":
        folder = _embedded_folder()
        train, test = (
            _read([folder / file for file in files], longest) for files in _EMBEDDED.values()
        )
        both = train if split else Photos([*train, *test])
        return PhotoData(both, test if split else both)
    if kind != "folder" or not path:
        raise ValueError(
            f"there are no photos named '{name}': give 'skimage', or 'folder:PATH' for a folder of photos"
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder.absolute()}: check the path in '{name}'"
        )
    if not split:
        photos = _read(picture_files(folder, "photos"), longest)
        return PhotoData(photos, photos)
    held_out = [folder / other for other in HELD_OUT if (folder / other).is_dir()]
    if (folder / "train").is_dir() and held_out:
        return PhotoData(
            _read(picture_files(folder / "train", "photos"), longest),
            _read(picture_files(held_out[0], "photos"), longest),
        )
    files = picture_files(folder, "photos")
    if len(files) < 2:
        raise ValueError(
            f"the folder {folder} has one photo alone, and at least two are needed: one to train on, and one "
            "to measure on"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round(test_fraction * len(files)))
    if held >= len(files):
        raise ValueError(
            f"test_fraction={test_fraction} leaves none of the {len(files)} photos in {folder} to train on: "
            "choose a smaller one"
        )
    test_files, train_files = (
        sorted(files[i] for i in part) for part in (order[:held], order[held:])
    )
    return PhotoData(_read(train_files, longest), _read(test_files, longest))


def read_photo(path: Path | str, longest: int | None = None) -> Tensor:
    """The colors of a photo, uint8, `(h, w, 3)`, turned upright as its EXIF orientation says.

    What is transparent is put on white. 16 bits per channel are reduced to 8, CMYK and palettes become red,
    green and blue; gray photos are gray.

    Args:
        path: A file in one of the formats of `ppl_vae.data`: PNG, JPEG, BMP, WebP, GIF (its first picture).
        longest: Longest side in pixels: a larger photo is reduced to it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the photos in it")
    if not path.is_file():
        raise FileNotFoundError(f"there is no photo {path}: check the path")
    try:
        with opened_picture(path) as image:
            picture = _as_rgb(ImageOps.exif_transpose(image))
            if longest is not None and max(picture.size) > longest:
                share = longest / max(picture.size)
                width, height = (max(1, round(side * share)) for side in picture.size)
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(picture))
    except PIL_ERRORS as error:
        raise ValueError(
            f"the photo {path} cannot be read: {error}. Repair it, convert it to PNG, or remove it"
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of gray; PIL's own conversion would cut them at 255
        values = np.asarray(image).astype(np.float64)
        values = (
            values / 257.0
            if image.mode.startswith("I;16") or values.max(initial=0) > 255
            else values
        )
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _read(files: Sequence[Path], longest: int | None) -> Photos:
    found = []
    for path in files:
        try:
            luma, chroma = split_colors(read_photo(path, longest))
            found.append(Photo(path.name, chroma, luma, _segments(path, tuple(luma.shape))))
        except ValueError as error:
            warnings.warn(f"{error}; it is left out", BrokenPhotoWarning, stacklevel=3)
    if not found:
        raise ValueError(f"none of the {len(files)} photos in {files[0].parent} can be read")
    return Photos(found)


def _segments(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The segmentation beside a photo, at its size."""
    beside = path.with_name(path.stem + SEGMENTS)
    if not beside.is_file():
        return None
    try:
        with opened_picture(beside) as image:
            width, height = image.size
            if abs(width * shape[0] - height * shape[1]) > max(width, height, *shape):
                raise ValueError(
                    f"it has {width} x {height} pixels, its photo {shape[1]} x {shape[0]}"
                )
            picture = image.resize((shape[1], shape[0]), Image.Resampling.NEAREST)
            numbers = np.array(picture)
    except PIL_ERRORS as error:
        raise ValueError(
            f"the segmentation {beside} cannot be read: {error}. Repair or remove it"
        ) from error
    if numbers.ndim != 2:
        raise ValueError(f"the segmentation {beside} has colors: it must have one number per pixel")
    return torch.from_numpy(numbers.astype(np.int64))


def _embedded_folder() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the photos 'skimage' are those of scikit-image, which is not installed: "
            "pip install 'ppl_vae[colorize]', or give 'folder:PATH'"
        )
    return Path(spec.origin).parent / "data"
