"""Pictures from torchvision and from folders; no test reaches the network."""

from __future__ import annotations

import pickle
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from programs import numbers, splits

from ppl_vae.data import load_data

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# --- torchvision -------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path: Path) -> Any:
    """torchvision.datasets; where it cannot be loaded, the error that must come instead."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, AttributeError):
        with pytest.raises(ImportError, match="pip install torchvision"):
            load_data("MNIST", data_dir=tmp_path)
        pytest.skip("no working torchvision here; load_data explains what to install")
    return datasets


def trust_any_file(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Lets fabricated files pass for the published ones, whose MD5 sums torchvision knows."""
    monkeypatch.setattr(module, "check_integrity", lambda path, *_: Path(path).exists())


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(folder: Path, names: tuple[str, str] = ("train", "t10k")) -> dict[str, np.ndarray]:
    """40 training and 10 test pictures of 6 x 5 pixels in MNIST's files."""
    arrays = {}
    for name, n in zip(names, (40, 10), strict=True):
        arrays[name] = RNG(n).integers(0, 256, (n, 6, 5), dtype=np.uint8)
        arrays[name][0] = np.arange(30).reshape(6, 5) * 8
        write_idx(folder / f"{name}-images-idx3-ubyte", arrays[name])
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(n) % 10)
    return arrays


@pytest.mark.parametrize("asked", ["MNIST", "mnist", "FashionMNIST", "fashionmnist", "KMNIST"])
@pytest.mark.usefixtures("datasets")
def test_mnist_and_its_relatives(tmp_path: Path, asked: str) -> None:
    proper = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}.get(asked, asked)
    arrays = write_mnist(tmp_path / proper / "raw")
    data = load_data(asked, data_dir=tmp_path)
    assert data.name == proper
    assert data.shape == (1, 6, 5)
    assert data.levels == 256
    assert [len(part) for part in splits(data)] == [36, 4, 10]
    assert torch.equal(data.test[:, 0], torch.tensor(arrays["t10k"]).float() / 255)
    assert data.test_labels is not None
    assert data.test_labels.tolist() == list(range(10))
    train = torch.cat((data.train, data.validation)).mul(255).round()[:, 0].int().tolist()
    assert sorted(train) == sorted(arrays["train"].astype(int).tolist())
    assert load_data(asked, data_dir=tmp_path, download=False, max_rows=3).train.shape[0] == 3


@pytest.mark.usefixtures("datasets")
def test_emnist_is_the_balanced_split_and_stands_upright(tmp_path: Path) -> None:
    names = ("emnist-balanced-train", "emnist-balanced-test")
    arrays = write_mnist(tmp_path / "EMNIST" / "raw", names)
    data = load_data("emnist", data_dir=tmp_path)
    assert data.shape == (1, 5, 6)
    upright = torch.tensor(arrays["emnist-balanced-test"]).float().mT / 255
    assert torch.equal(data.test[:, 0], upright)
    assert data.test.is_contiguous()


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR-10 batch as its makers wrote it: Python 2 strings, and an integer for `align`."""
    shape = b"".join(b"I%d\n" % size for size in data.shape)
    return (
        b"(dS'data'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        + shape
        + b"tcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + repr(data.tobytes())[1:].encode()
        + b"\ntbsS'labels'\n(l"
        + b"".join(b"I%d\na" % label for label in labels)
        + b"s."
    )


def test_cifar10_has_channels_first(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = {}
    for i, name in enumerate([*(f"data_batch_{j}" for j in range(1, 6)), "test_batch"]):
        batches[name] = RNG(i).integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / name).write_bytes(python2_pickle(batches[name], [i] * 4))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    trust_any_file(monkeypatch, datasets.cifar)
    data = load_data("cifar10", data_dir=tmp_path)
    assert data.name == "CIFAR10"
    assert [len(part) for part in splits(data)] == [18, 2, 4]
    expected = torch.tensor(batches["test_batch"].reshape(4, 3, 32, 32)).float() / 255
    assert torch.equal(data.test, expected)
    assert data.test_labels is not None
    assert data.test_labels.tolist() == [5] * 4
    assert data.test.is_contiguous()


def test_svhn_has_channels_first_and_labels_from_zero(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat

    pictures = RNG(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for name in ("train", "test"):
        labels = np.arange(1, 21).clip(max=10)[:, None]
        savemat(tmp_path / f"{name}_32x32.mat", {"X": pictures, "y": labels.astype(np.uint8)})
    trust_any_file(monkeypatch, datasets.svhn)
    data = load_data("svhn", data_dir=tmp_path)
    assert torch.equal(data.test, torch.tensor(pictures).permute(3, 2, 0, 1).float() / 255)
    assert data.test_labels is not None
    assert data.test_labels.tolist() == [*range(1, 10), *[0] * 11]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("MNIST", r"MNIST/raw/\{train,t10k\}-\{images-idx3"),
        ("EMNIST", "emnist-balanced"),
        ("CIFAR10", "cifar-10-batches-py"),
        ("SVHN", "_32x32.mat"),
    ],
)
def test_absent_files_without_download_or_network(
    datasets: Any, tmp_path: Path, name: str, files: str
) -> None:
    with pytest.raises(FileNotFoundError, match=f"downloading is off.*{files}.*data_dir") as error:
        load_data(name, data_dir=tmp_path, download=False)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(
        ConnectionError, match=f"could not be downloaded.*{files}.*a network"
    ) as gone:
        load_data(name, data_dir=tmp_path)
    assert str(tmp_path) in str(gone.value)
    assert "Name or service not known" in str(gone.value)


@pytest.mark.usefixtures("datasets")
def test_truncated_mnist(tmp_path: Path) -> None:
    write_mnist(folder := tmp_path / "MNIST" / "raw")
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"MNIST: a file is broken.*MNIST/raw"):
        load_data("MNIST", data_dir=tmp_path)
    write_mnist(folder)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(9))
    with pytest.raises(ValueError, match="10 pictures but 9 labels in the test files"):
        load_data("MNIST", data_dir=tmp_path)


def forget_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)


def test_a_torchvision_that_does_not_fit_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    forget_torchvision(monkeypatch)
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(ImportError, match=r"nms does not exist.*pip install torchvision.*ordinary"):
        load_data("MNIST", data_dir=tmp_path)
    assert len(load_data("digits").test) == 359


def test_no_torchvision_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"MNIST is read with torchvision.*pip install"):
        load_data("MNIST", data_dir=tmp_path)


def test_torchvision_is_not_imported_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for i in range(5):
        draw(tmp_path / f"{i}.png", i)
    assert load_data("digits").shape == (1, 8, 8)
    assert load_data(f"folder:{tmp_path}").shape == (1, 3, 4)


# --- folders of pictures -----------------------------------------------------------------------


def draw(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if len(mode) == 1 else (value, 0, 255)).save(path)


def test_folder_of_gray_pictures(tmp_path: Path) -> None:
    for i in range(20):
        draw(tmp_path / f"{i:02d}.png", i)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    data = load_data(f"folder:{tmp_path}")
    assert data.shape == (1, 3, 4)
    assert data.levels == 256
    assert data.train_labels is None
    assert [len(part) for part in splits(data)] == [14, 2, 4]
    assert sorted(numbers(*(x.mul(255).round() for x in splits(data)))) == list(range(20))


@pytest.mark.parametrize("suffix", ["png", "BMP", "webp", "gif", "jpg", "jpeg"])
def test_folder_reads_the_formats(tmp_path: Path, suffix: str) -> None:
    for i in range(5):
        draw(tmp_path / f"{i}.{suffix}", 200, "RGB", size=(8, 8))
    data = load_data(f"folder:{tmp_path}")
    assert data.shape == (3, 8, 8)
    color = data.train.mean((0, 2, 3)) * 255
    torch.testing.assert_close(color, torch.tensor([200.0, 0.0, 255.0]), rtol=0, atol=4.0)


def test_one_colored_picture_makes_all_of_them_colored(tmp_path: Path) -> None:
    for i in range(8):
        draw(tmp_path / f"{i}.png", 50 + i)
    draw(tmp_path / "9.png", 90, "RGB")
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=b"\x40\x80")
    data = load_data(f"folder:{tmp_path}")
    assert data.shape == (3, 3, 4)
    colors = (torch.cat(splits(data))[:, :, 0, 0] * 255).round().int().tolist()
    assert sorted(colors) == [[10, 20, 30], *([50 + i] * 3 for i in range(8)), [90, 0, 255]]


def test_sub_folders_are_classes_and_splits(tmp_path: Path) -> None:
    for split, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                draw(tmp_path / split / name / "deep" / f"{i}.png", 100 * label + i)
    data = load_data(f"folder:{tmp_path}")
    assert [len(part) for part in splits(data)] == [18, 2, 6]
    assert numbers(data.test.mul(255).round()) == [0, 1, 2, 100, 101, 102]
    assert data.test_labels is not None
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_labels is not None
    assert torch.equal(data.train_labels, (data.train[:, 0, 0, 0] * 255 >= 99).long())
    one = load_data(f"folder:{tmp_path / 'train'}")
    assert sum(len(part) for part in splits(one)) == 20
    (tmp_path / "test").rename(tmp_path / "val")
    for mine, expected in zip(splits(load_data(f"folder:{tmp_path}")), splits(data), strict=True):
        assert torch.equal(mine, expected)
    draw(tmp_path / "test" / "cat" / "0.png", 7)  # now val/ is the validation
    (tmp_path / "runs").mkdir()
    draw(
        tmp_path / "runs" / "picture.png", 0, size=(9, 9)
    )  # and what is beside the split is not read
    data = load_data(f"folder:{tmp_path}")
    assert [len(part) for part in splits(data)] == [20, 6, 1]
    for name in ("val", "test"):
        (tmp_path / name).rename(tmp_path / f"no_{name}")
    with pytest.raises(ValueError, match=r"holds train/ but not test/ or val/.*folder:.*train"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(ValueError, match=r"holds test/ but not train/.*folder:.*test"):
        load_data(f"folder:{tmp_path}")


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / f"{i}.png", i, size=(60, 60))
    noise = RNG(0).integers(0, 256, (60, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "truncated.png")
    whole = (tmp_path / "truncated.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"truncated.png cannot be read.*Repair it, convert"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "nonsense.jpg").write_bytes(b"this is no picture")
    with pytest.raises(ValueError, match=r"nonsense.jpg cannot be read"):
        load_data(f"folder:{tmp_path}")


def test_pictures_of_different_size_are_named(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / f"{i}.png", i)
    draw(tmp_path / "wide.png", 0, size=(9, 3))
    with pytest.raises(ValueError, match=r"4 x 3 \(5 files.*9 x 3 \(1 files, as .*wide.png\)"):
        load_data(f"folder:{tmp_path}")


def test_deep_pictures_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png has more than 8 bits"):
        load_data(f"folder:{tmp_path}")


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pictures in the folder .*\.png"):
        load_data(f"folder:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist"):
        load_data(f"folder:{tmp_path / 'missing'}")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(NotADirectoryError, match=r"a\.txt is a file"):
        load_data(f"folder:{tmp_path / 'a.txt'}")
    draw(tmp_path / "only.png", 1)
    with pytest.raises(ValueError, match="too few rows"):
        load_data(f"folder:{tmp_path}")
