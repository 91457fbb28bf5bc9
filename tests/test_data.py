from __future__ import annotations

import pickle
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppl_vae.data import Binarization, Data, Dequantization, load_data

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def splits(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    return data.train, data.validation, data.test


def numbered(n: int, *shape: int) -> np.ndarray:
    """Rows that can be told apart: row i is filled with i."""
    return np.broadcast_to(
        np.arange(n, dtype=np.float64).reshape(-1, *[1] * len(shape)), (n, *shape)
    )


def numbers(*parts: Tensor) -> list[int]:
    return [int(row[0]) for part in parts for row in part.flatten(1)]


# --- digits and what all sources share ---------------------------------------------------------


def test_digits_are_scikit_learns_counts() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.name == "digits"
    assert data.shape == (1, 8, 8)
    assert data.levels == 17
    assert data.transform is None
    assert len(data.test) == 359
    assert len(data.validation) == 144
    rows = torch.cat(splits(data))
    assert rows.dtype == torch.float32
    assert rows.is_contiguous()
    bunch = load_digits()
    assert data.train_labels is not None
    assert data.validation_labels is not None
    assert data.test_labels is not None
    labels = torch.cat((data.train_labels, data.validation_labels, data.test_labels))
    ours = sorted((y, *x) for x, y in zip(rows.flatten(1).tolist(), labels.tolist(), strict=True))
    theirs = sorted(
        (y, *x) for x, y in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True)
    )
    assert ours == theirs


def test_splits_are_disjoint_complete_and_deterministic(tmp_path: Path) -> None:
    np.save(path := tmp_path / "rows.npy", numbered(100, 3))
    data = load_data(str(path))
    assert [len(part) for part in splits(data)] == [72, 8, 20]
    assert sorted(numbers(*splits(data))) == list(range(100))
    for part, again in zip(splits(data), splits(load_data(str(path))), strict=True):
        assert torch.equal(part, again)
        assert numbers(part) == sorted(numbers(part))


def test_the_seed_moves_the_validation_rows_and_never_the_test_rows() -> None:
    for options in ({}, {"binarize": "static"}, {"dequantize": True}, {"max_rows": 50}):
        a, b = (load_data("digits", seed=seed, **options) for seed in (0, 1))
        assert torch.equal(a.test, b.test), options
        assert not torch.equal(a.validation, b.validation), options


def test_preprocessing_does_not_move_the_split() -> None:
    plain = load_data("digits", seed=3)
    binary = load_data("digits", seed=3, binarize="threshold")
    for a, b in zip(splits(plain), splits(binary), strict=True):
        assert torch.equal((a > 8).float(), b)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_data("digits", binarize="static", max_rows=10)
    load_data("digits", dequantize=True)
    assert torch.equal(before, torch.get_rng_state())


def test_max_rows_caps_each_split_with_rows_of_that_split() -> None:
    whole, few = load_data("digits"), load_data("digits", max_rows=7)
    for a, b in zip(splits(whole), splits(few), strict=True):
        assert len(b) == 7
        members = {tuple(row) for row in a.flatten(1).tolist()}
        assert all(tuple(row) in members for row in b.flatten(1).tolist())
    assert few.train_labels is not None
    assert len(few.train_labels) == 7


def test_data_are_frozen_and_describe_themselves_in_a_line() -> None:
    data = load_data("digits")
    with pytest.raises(FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
    assert "\n" not in repr(data)
    assert "1294 training" in repr(data)


# --- binarization and dequantization -----------------------------------------------------------


def test_threshold_is_half_of_the_largest_value(tmp_path: Path) -> None:
    x = np.tile(np.array([0, 127, 128, 255], dtype=np.uint8), (30, 1))
    np.save(path := tmp_path / "x.npy", x)
    data = load_data(str(path), binarize="threshold")
    assert data.levels == 2
    assert data.transform is None
    for part in splits(data):
        assert torch.equal(part, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand_as(part))


def test_static_binarization_draws_once_with_the_intensities() -> None:
    plain, data = load_data("digits"), load_data("digits", binarize="static")
    assert data.levels == 2
    assert data.transform is None
    for counts, bits in zip(splits(plain), splits(data), strict=True):
        p = counts / 16
        assert set(bits.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(bits[p == 0], torch.zeros_like(bits[p == 0]))
        assert torch.equal(bits[p == 1], torch.ones_like(bits[p == 1]))
        deviation = (p * (1 - p)).sum().sqrt()
        assert abs((bits - p).sum()) < 4 * deviation
    assert torch.equal(data.train, load_data("digits", binarize="static").train)


def test_dynamic_binarization_draws_anew_for_each_training_batch() -> None:
    plain, data = load_data("digits"), load_data("digits", binarize="dynamic")
    assert data.levels == 2
    assert torch.equal(data.train, plain.train / 16)
    assert data.transform == Binarization()
    torch.manual_seed(0)
    first, second = data.transform(data.train), data.transform(data.train)
    torch.manual_seed(0)
    assert torch.equal(first, data.transform(data.train))
    assert not torch.equal(first, second)
    mean = torch.stack([data.transform(data.train) for _ in range(60)]).mean(0)
    assert (mean - data.train).square().mean() < 0.25 / 60
    static = load_data("digits", binarize="static")
    assert torch.equal(data.test, static.test)
    assert torch.equal(data.validation, static.validation)


def test_dequantized_values_lie_within_their_level() -> None:
    plain, data = load_data("digits"), load_data("digits", dequantize=True)
    assert data.levels is None
    assert data.transform == Dequantization(17)
    torch.manual_seed(0)
    for counts, noisy in zip(
        splits(plain), (data.transform(data.train), data.validation, data.test), strict=True
    ):
        noise = noisy * 17 - counts
        assert noise.min() >= 0
        assert noise.max() < 1 + 1e-5
        assert noisy.max() < 1
        # Uniform noise: mean 1/2 and variance 1/12, within 4 standard errors.
        n = noise.numel()
        assert abs(noise.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
        assert abs(noise.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5


def test_dequantization_of_the_largest_level_stays_below_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    almost_one = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, almost_one))
    assert 0.999 < Dequantization(256)(torch.ones(2)).max() < 1


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
    with pytest.raises(ValueError, match=r"holds train/ but not test/.*folder:.*train"):
        load_data(f"folder:{tmp_path}")


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    for i in range(5):
        draw(tmp_path / f"{i}.png", i, size=(60, 60))
    noise = RNG(0).integers(0, 256, (60, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "truncated.png")
    whole = (tmp_path / "truncated.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"truncated.png cannot be read.*Repair or remove"):
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


# --- array files -------------------------------------------------------------------------------


def save_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def save_pt(path: Path, **arrays: Any) -> str:
    torch.save({key: torch.as_tensor(value) for key, value in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("dtype", ["f8", ">f4", "f2", "i4", "u2"])
def test_npy_rows_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    np.save(path := tmp_path / "rows.npy", numbered(50, 2, 3).astype(dtype))
    data = load_data(str(path))
    assert data.levels is None
    assert data.shape == (2, 3)
    assert torch.cat(splits(data)).dtype == torch.float32
    assert sorted(numbers(*splits(data))) == list(range(50))


def test_uint8_are_pictures_and_booleans_are_binary(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.full((20, 2), 51, dtype=np.uint8))
    np.save(tmp_path / "b.npy", np.ones((20, 2), dtype=bool))
    pictures, binary = load_data(str(tmp_path / "u.npy")), load_data(str(tmp_path / "b.npy"))
    assert (pictures.levels, binary.levels) == (256, 2)
    assert pictures.train.unique().tolist() == [pytest.approx(0.2)]
    assert binary.train.unique().tolist() == [1.0]


@pytest.mark.parametrize("save", [save_npz, save_pt])
def test_keyed_arrays(tmp_path: Path, save: Callable[..., str]) -> None:
    suffix = {save_npz: "npz", save_pt: "pt"}[save]
    x = numbered(50, 2).copy()
    data = load_data(save(tmp_path / f"x.{suffix}", x=x, y=np.arange(50) * 2))
    assert data.validation_labels is not None
    assert data.validation_labels.tolist() == [2 * i for i in numbers(data.validation)]
    data = load_data(
        save(tmp_path / f"s.{suffix}", train=x, test=x[:7], test_labels=np.linspace(0, 1, 7))
    )
    assert [len(part) for part in splits(data)] == [45, 5, 7]
    assert data.train_labels is None
    assert data.test_labels is not None
    assert data.test_labels[-1] == 1.0
    data = load_data(save(tmp_path / f"v.{suffix}", train=x, validation=x[:9], test=x[:7]))
    assert numbers(data.train) == list(range(50))
    assert numbers(data.validation) == list(range(9))
    data = load_data(save(tmp_path / f"t.{suffix}", train=x))
    assert [len(part) for part in splits(data)] == [36, 4, 10]


def test_pt_with_a_bare_tensor(tmp_path: Path) -> None:
    torch.save(torch.arange(20.0)[:, None].bfloat16().requires_grad_(), tmp_path / "x.pt")
    data = load_data(str(tmp_path / "x.pt"))
    assert len(data.train) == 14
    assert not data.train.requires_grad


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"x": Harmful()}, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([[Harmful()]], dtype=object))
    np.savez(tmp_path / "x.npz", x=np.array([[Harmful()]], dtype=object))
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Harmful()))
    for name in ("x.pt", "x.npy", "x.npz", "y.npy"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as tensors alone") as error:
            load_data(str(tmp_path / name))
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_absent_and_truncated_arrays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(FileNotFoundError, match=rf"x\.{suffix} does not exist"):
        load_data(str(path))
    if suffix == "npy":
        np.save(path, numbered(1000, 3))
    else:
        {"npz": save_npz, "pt": save_pt}[suffix](path, x=numbered(1000, 3).copy())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=rf"x\.{suffix} cannot be read"):
        load_data(str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"x\.{suffix} cannot be read"):
        load_data(str(path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    x = np.zeros((30, 2, 2))
    x[[4, 11], 1, 0] = value
    x[11, 0, 0] = value
    match = r"x\.npz: 2 of the 30 rows of 'x' hold NaN or infinite.*the first in row 4"
    with pytest.raises(ValueError, match=match):
        load_data(save_npz(tmp_path / "x.npz", x=x))


ROWS = np.zeros((30, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": ROWS}, r"holds the arrays \['images'\]; expected either 'x'"),
        ({"x": ROWS, "labels": ROWS}, r"\['labels', 'x'\]; expected"),
        ({"x": ROWS, "train": ROWS}, "expected either"),
        ({"x": ROWS, "test": ROWS}, "expected either"),
        ({"test": ROWS}, "expected either"),
        ({"train": ROWS, "test": ROWS, "y": ROWS}, "expected either"),
        ({"train": ROWS, "test_labels": ROWS}, "expected either"),
        ({"x": ROWS[:, 0]}, r"'x' has the shape \(30,\); expected \(rows, ...\)"),
        ({"x": ROWS[:0]}, r"'x' has the shape \(0, 2\)"),
        ({"x": ROWS[:, :0]}, r"'x' has the shape \(30, 0\)"),
        ({"x": ROWS.astype(complex)}, "'x' must be an array of real numbers.*complex128"),
        ({"x": ROWS.astype(str)}, "'x' must be an array of real numbers.*<U"),
        ({"x": ROWS, "y": np.zeros(29)}, r"'y' has the shape \(29,\), but 'x' has 30 rows"),
        ({"x": ROWS, "y": np.array(["a"] * 30)}, "'y' must be an array of real numbers"),
        (
            {"train": ROWS, "test": np.zeros((5, 3))},
            r"'train' have .*\(2,\).*'test' \(3,\)",
        ),
        ({"train": ROWS, "test": ROWS.astype(bool)}, "float32.*bool"),
        ({"x": ROWS[:1]}, "too few rows to be split"),
        ({"x": ROWS[:2]}, "too few rows to be split"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_data(save_npz(tmp_path / "some.npz", **arrays))
    assert "some.npz" in str(error.value)


def test_pt_with_something_else_in_it(tmp_path: Path) -> None:
    torch.save({"x": [1.0, 2.0]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"'x' must be an array of real numbers.*type list"):
        load_data(str(tmp_path / "x.pt"))


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("mnits", "'MNIST'"), ("Digit", "'digits'"), ("cifar-10", "'CIFAR10'"), ("qqq", "Known are")],
)
def test_unknown_names_list_what_is_known(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=f"unknown data '{name}'.*{suggestion}") as error:
        load_data(name)
    for known in ("digits", "FashionMNIST", "SVHN", "folder:PATH", "PATH.npz"):
        assert known in str(error.value)


def test_a_bare_folder_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"write 'folder:{tmp_path}'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarize": "always"}, "'threshold', 'static', 'dynamic' or None, got 'always'"),
        ({"binarize": "static", "dequantize": True}, "exclude each other"),
        ({"validation_fraction": 0.0}, r"must lie in \(0, 1\), got 0.0"),
        ({"validation_fraction": 1.0}, r"must lie in \(0, 1\), got 1.0"),
        ({"max_rows": 0}, "at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data("digits", **options)


def test_real_values_cannot_be_dequantized_nor_drawn_from(tmp_path: Path) -> None:
    np.save(path := tmp_path / "x.npy", numbered(50, 2) - 7)
    with pytest.raises(ValueError, match=r"x\.npy holds real values"):
        load_data(str(path), dequantize=True)
    with pytest.raises(ValueError, match=r"intensities in \[0, 1\], but those of .* from -7 to 42"):
        load_data(str(path), binarize="dynamic")
    np.save(path, numbered(50, 2) / 49)
    data = load_data(str(path), binarize="threshold")
    assert sum(part[:, 0].sum().item() for part in splits(data)) == 25
