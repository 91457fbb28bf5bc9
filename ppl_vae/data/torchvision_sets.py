"""torchvision's sets of pictures as sources of data."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import torch

from ppl_vae.data.sizes import require_plain, require_room, written
from ppl_vae.data.sources import Part, Source

TORCHVISION = {
    "MNIST": "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "FashionMNIST": "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "KMNIST": "KMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    "EMNIST": "EMNIST/raw/emnist-balanced-{train,test}-{images-idx3,labels-idx1}-ubyte",
    "CIFAR10": "cifar-10-batches-py/{data_batch_1,...,data_batch_5,test_batch,batches.meta}",
    "SVHN": "{train,test}_32x32.mat",
}
"""The torchvision sets known by name, and the files they consist of, below the data folder."""

_WRITTEN = {
    "CIFAR10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}
"""What a download writes below the data folder; for the other sets, a folder of their name."""


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
            _require_files_that_fit(data_dir / name)
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
        _require_no_links(name, data_dir)
        try:
            return build(data_dir, download=True, **arguments)
        except (RuntimeError, OSError) as error:
            raise ConnectionError(
                f"{name} is not there and could not be downloaded; {expected}. Check the network, and "
                "that this folder can be written to. Without a network, put the files there by hand or "
                f"name the folder that holds them (data_dir). What happened: {error}"
            ) from error


def _require_files_that_fit(folder: Path) -> None:
    """Raises an error for files that would take much memory, among those that torchvision reads unseen.

    These are the ones of MNIST and its relatives. Torchvision compares the others with the MD5 sums of the
    published files before it reads them, which matters for CIFAR-10, as it unpickles it.
    """
    for file in folder.glob("processed/*.pt"):  # of torchvision before 0.9; it still prefers them
        if file.is_file():
            with file.open("rb") as opened:
                require_plain(file, opened)
    for file in folder.glob("raw/*-ubyte"):
        if file.is_file():
            found = file.stat()
            require_room(
                file, 2 * found.st_size, on_disk=written(found)
            )  # torchvision makes a copy


def _require_no_links(name: str, data_dir: Path) -> None:
    """Raises an error where a download would be written over a file that lies elsewhere."""
    for place in _WRITTEN.get(name, (name,)):
        for path in itertools.chain([data_dir / place], (data_dir / place).rglob("*")):
            lone = path.is_dir() or (path.is_file() and path.stat().st_nlink == 1)
            if path.is_symlink() or (path.exists() and not lone):
                raise ValueError(
                    f"{name} is not downloaded, because {path} is a link, or no file; remove it, or name "
                    "another folder (data_dir)"
                )


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
        plain = x.dtype == torch.uint8 and x.layout == torch.strided
        if not plain or x.numel() > x.untyped_storage().nbytes():  # one that repeats itself
            raise ValueError(f"{name}: the files below {data_dir.resolve()} hold no pictures")
        if x.dim() == 3:
            x = x[:, None]
        if name == "EMNIST":  # stored with rows and columns exchanged
            x = x.mT
        if name == "CIFAR10":  # stored with the channels last
            x = x.permute(0, 3, 1, 2)
        labels = dataset.labels if name == "SVHN" else dataset.targets
        labels = torch.as_tensor(labels)
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: {len(x)} pictures but {len(labels)} labels in the "
                f"{'training' if train else 'test'} files below {data_dir.resolve()}"
            )
        parts.append(Part(x, labels.long()))
    return Source(parts[0], parts[1], levels=256)
