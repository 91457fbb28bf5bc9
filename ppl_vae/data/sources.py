"""Readers of data: the embedded digits, torchvision's sets, folders of pictures.

Each reader (`read_arrays` in `arrays.py` is another one) returns a `Source`: the values as they are stored,
and the source's own splits. `load_data` is the public function.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
"""Endings of the file names of pictures, in small or capital letters."""


TORCHVISION = {
    "MNIST": "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "FashionMNIST": "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "KMNIST": "KMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "EMNIST": "EMNIST/raw/emnist-balanced-{train,test}-{images-idx3,labels-idx1}-ubyte",
    "CIFAR10": "cifar-10-batches-py/{data_batch_1,...,data_batch_5,test_batch,batches.meta}",
    "SVHN": "{train,test}_32x32.mat",
}
"""The torchvision sets known by name, and the files they consist of, below the data folder."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one split: `x` is uint8 (8-bit pictures), bool or float32, shape (n, *shape)."""

    x: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader returns.

    Attributes:
        train: All rows, or those of the source's own training split.
        test: The source's own test split, if it has one.
        validation: The source's own validation split, if it has one.
        levels: Number of equally spaced values an entry can take, from 0 to `maximum`; None for
            real values.
        maximum: The largest value in `Data`; 1 for 8-bit pictures, which are divided by 255.
    """

    train: Part
    test: Part | None = None
    validation: Part | None = None
    levels: int | None = None
    maximum: float = 1.0


def read_digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, counts 0..16; embedded, no files needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None]
    return Source(Part(x, torch.from_numpy(bunch.target).long()), levels=17, maximum=16.0)


# --- torchvision -------------------------------------------------------------------------------
def _torchvision_datasets(name: str) -> Any:
    try:
        from torchvision import datasets
    # A torchvision built for another torch fails with a RuntimeError ("operator torchvision::nms
    # does not exist") at its first import, and with an AttributeError at the second.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ImportError(
            f"{name} is read with torchvision, which cannot be loaded with torch "
            f"{torch.__version__}: {error}. Run `pip install torchvision`, and check that torch and "
            "torchvision are matching ordinary builds (`pip install --force-reinstall torch "
            "torchvision`); a CPU-only torch lacks the operators of the ordinary torchvision. "
            "The name 'digits', folders of pictures and array files work without it."
        ) from error
    return datasets


def _torchvision_part(datasets: Any, name: str, train: bool, data_dir: Path, download: bool) -> Any:
    arguments: dict[str, Any] = {"train": train}
    if name == "SVHN":
        arguments = {"split": "train" if train else "test"}
    elif name == "EMNIST":
        arguments["split"] = "balanced"
    expected = f"expected below {data_dir.resolve()}: {TORCHVISION[name]}"
    build = getattr(datasets, name)
    with warnings.catch_warnings():
        # CIFAR-10 was pickled by Python 2; NumPy 2.4.0 to 2.4.4 warn about that.
        warnings.filterwarnings("ignore", r"dtype\(\): align")
        try:
            return build(data_dir, download=False, **arguments)
        except (RuntimeError, FileNotFoundError) as error:
            if "not found" not in str(error).lower() and not isinstance(error, FileNotFoundError):
                raise ValueError(f"{name}: a file is broken ({error}); {expected}") from error
            absent = error
        except Exception as error:  # a truncated pickle, MAT or IDX file may raise anything
            raise ValueError(f"{name}: a file is broken ({error!r}); {expected}") from error
        if not download:
            raise FileNotFoundError(
                f"{name} is not there, and downloading is off; {expected}. Put the files there, "
                "name another folder (data_dir), or allow the download (download)"
            ) from absent
        try:
            return build(data_dir, download=True, **arguments)
        except (RuntimeError, OSError) as error:
            raise ConnectionError(
                f"{name} is not there and could not be downloaded; {expected}. Check the network, and "
                "that this folder can be written to. Without a network, put the files there by hand or "
                f"name the folder that holds them (data_dir). What happened: {error}"
            ) from error


def read_torchvision(name: str, data_dir: Path, download: bool) -> Source:
    """Reads one of torchvision's picture sets from its array of all pictures.

    Args:
        name: A key of `TORCHVISION`.
        data_dir: Torchvision's `root`.
        download: Whether to download missing files.

    Raises:
        ImportError: Torchvision cannot be loaded.
        FileNotFoundError: The files are absent and `download` is off.
        ConnectionError: The files are absent and the download failed.
        ValueError: A file is broken.
    """
    datasets = _torchvision_datasets(name)
    parts = []
    for train in (True, False):
        dataset = _torchvision_part(datasets, name, train, data_dir, download)
        x = torch.as_tensor(dataset.data)
        if x.dim() == 3:
            x = x[:, None]
        if name == "EMNIST":  # stored with rows and columns exchanged
            x = x.mT
        if name == "CIFAR10":  # stored with the channels last
            x = x.permute(0, 3, 1, 2)
        labels = dataset.labels if name == "SVHN" else dataset.targets
        labels = torch.as_tensor(labels, dtype=torch.long)
        if len(labels) != len(x):
            raise ValueError(
                f"{name}: {len(x)} pictures but {len(labels)} labels in the "
                f"{'training' if train else 'test'} files below {data_dir.resolve()}"
            )
        parts.append(Part(x, labels))
    return Source(parts[0], parts[1], levels=256)


# --- folders of pictures -----------------------------------------------------------------------
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
    return ValueError(f"the picture {path} cannot be read: {error}. Repair or remove it")


_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def _picture_mode(files: list[Path]) -> tuple[str, tuple[int, int]]:
    """The mode and size (width, height) that all pictures share, from their headers alone."""
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)
    gray = True
    for path in files:
        try:
            with Image.open(path) as image:
                mode, size = image.mode, image.size
        except _PIL_ERRORS as error:
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
    x = np.empty((len(files), size[1], size[0], channels), dtype=np.uint8)
    for row, path in zip(x, files, strict=True):
        try:
            with Image.open(path) as image:
                # With a transparent palette, PIL asks for an explicit conversion to RGBA.
                opaque = image.convert("RGBA") if "transparency" in image.info else image
                row[:] = np.asarray(opaque.convert(mode)).reshape(row.shape)
        except _PIL_ERRORS as error:
            raise _broken(path, error) from error
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def read_folder(folder: Path) -> Source:
    """Reads the pictures below a folder, in sorted order; RGB, or one channel if all are gray.

    If it holds `train/` and `test/`, they are the split. The sub-folders that hold the pictures
    give the labels 0, 1, ..., in alphabetical order. If any picture is outside of a sub-folder,
    there are no labels.

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
