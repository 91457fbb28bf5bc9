"""torchvision's sets of pictures as sources of data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

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
