"""Patches of photos as rows: whole squares at places that are uniform, and no photo in two splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor

from ppl_vae import load_data, load_run
from ppl_vae.cli import main
from ppl_vae.data import Data, read_photo

SIZES = ((9, 7), (7, 11), (6, 6), (12, 8))
"""Height and width of the planted photos, in turn."""


def plant(path: Path, photo: int, size: tuple[int, int], mode: str = "RGB") -> None:
    """A photo each of whose pixels tells which photo it is in, and where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[..., 0] = photo
    pixels[..., 1], pixels[..., 2] = np.indices(size)
    Image.fromarray(pixels if mode == "RGB" else pixels[..., 0]).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 20 photos of four sizes, and segmentations of some."""
    for i in range(20):
        plant(tmp_path / "photos" / f"{i:02d}.png", i, SIZES[i % 4])
        plant(tmp_path / "photos" / f"{i:02d}.seg.png", 99, SIZES[i % 4])
    return tmp_path / "photos"


def whole(x: Tensor) -> Tensor:
    """Rows as they were planted: whole numbers."""
    numbers = (255 * x).round()
    assert torch.equal(numbers / 255, x)
    return numbers.int()


def each_split(data: Data[Tensor]) -> list[Tensor]:
    return [whole(x) for x in (data.train, data.validation, data.test)]


def test_each_row_is_a_square_of_one_photo(photos: Path) -> None:
    data = load_data(f"folder:{photos}", patch_size=5, patches=6)
    assert data.shape == (3, 5, 5)
    assert data.levels == 256
    assert data.train.dtype == torch.float32
    assert data.train_labels is None
    seen: list[set[int]] = []
    for x in each_split(data):
        photo, down, across = x.unbind(1)
        top, left = down[:, :1, :1], across[:, :1, :1]
        assert torch.equal(photo, photo[:, :1, :1].expand_as(photo))
        assert torch.equal(down, (top + torch.arange(5)[:, None]).expand_as(down))
        assert torch.equal(across, (left + torch.arange(5)).expand_as(across))
        which = photo[:, 0, 0]
        counts = which.unique(return_counts=True)
        assert counts[1].tolist() == [6] * len(counts[0])  # so many of each photo
        assert len(which[: len(counts[0])].unique()) == len(counts[0])  # the first ones of each
        seen.append(set(counts[0].tolist()))
    assert [len(part) for part in seen] == [14, 2, 4]  # photos are split, not patches
    assert set.union(*seen) == set(range(20))


def test_places_are_uniform(photos: Path) -> None:
    data = load_data(f"folder:{photos}", patch_size=6, patches=400)
    x = torch.cat(each_split(data))
    for shape in range(4):
        height, width = (side - 5 for side in SIZES[shape])
        of_shape = x[x[:, 0, 0, 0] % 4 == shape]
        places = of_shape[:, 1, 0, 0] * width + of_shape[:, 2, 0, 0]
        counts = torch.bincount(places, minlength=height * width)
        assert len(counts) == height * width
        if len(counts) > 1:
            assert chisquare(counts.numpy()).pvalue > 1e-3


def test_the_test_rows_are_the_same_for_each_seed(photos: Path) -> None:
    one, same, other = (
        load_data(f"folder:{photos}", patch_size=5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.test, other.test)
    assert torch.equal(one.train, same.train)
    assert torch.equal(one.validation, same.validation)
    assert not torch.equal(one.train, other.train)
    assert len(one.train) == 14 * 8


def test_folders_that_split_and_classes(tmp_path: Path) -> None:
    for i in range(10):
        plant(tmp_path / "train" / ("a", "b")[i % 2] / f"{i}.png", i, SIZES[i % 4])
    for i in range(10, 13):
        plant(tmp_path / "val" / "b" / f"{i}.png", i, SIZES[i % 4])

    def photos_of(data: Data[Tensor]) -> list[set[int]]:
        return [set(x[:, 0, 0, 0].tolist()) for x in each_split(data)]

    data = load_data(f"folder:{tmp_path}", patch_size=5, patches=2, validation_fraction=0.3)
    train, validation, test = photos_of(data)
    assert test == {10, 11, 12}
    assert len(validation) == 3
    assert train | validation == set(range(10))
    assert data.train_labels is not None
    assert torch.equal(data.train_labels, whole(data.train)[:, 0, 0, 0].long() % 2)
    plant(tmp_path / "test" / "a" / "x.png", 50, (8, 8))
    data = load_data(f"folder:{tmp_path}", patch_size=5, patches=2)
    assert photos_of(data) == [set(range(10)), {10, 11, 12}, {50}]


def test_gray_photos_have_one_channel_and_one_of_colors_makes_three(tmp_path: Path) -> None:
    for i in range(5):
        plant(tmp_path / f"{i}.png", i, (8, 6 + i), "L")
    assert load_data(f"folder:{tmp_path}", patch_size=4).shape == (1, 4, 4)
    plant(tmp_path / "color.png", 9, (8, 8))
    assert load_data(f"folder:{tmp_path}", patch_size=4).shape == (3, 4, 4)


def test_levels_may_be_spread_and_rows_left_out(photos: Path) -> None:
    data = load_data(f"folder:{photos}", patch_size=4, dequantize=True, max_rows=10)
    assert len(data.train) == len(data.test) == 10
    assert data.levels is None
    assert data.transform is not None
    assert 0 <= float(data.test.min()) <= float(data.test.max()) < 1


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "small": (
        lambda path: load_data(f"folder:{path}", patch_size=7),
        r"the photo .*02\.png has 6 x 6 pixels and is smaller than a patch of 7 x 7, and so are 4 others: "
        r"choose a patch_size of at most 6",
    ),
    "binary": (
        lambda path: load_data(f"folder:{path}", patch_size=4, binarize="dynamic"),
        "binarize='dynamic' is for rows whose values are intensities",
    ),
    "no folder": (
        lambda _: load_data("digits", patch_size=4),
        "and 'digits' is none: leave it out",
    ),
    "no side": (lambda path: load_data(f"folder:{path}", patches=3), "give their side, too"),
    "no size": (lambda path: load_data(f"folder:{path}"), r"differ in size.*\(patch_size\)"),
    "zero": (lambda path: load_data(f"folder:{path}", patch_size=0), "patch_size must be at least"),
    "none": (
        lambda path: load_data(f"folder:{path}", patch_size=4, patches=0),
        "patches must be at least 1",
    ),
    "too much": (
        lambda path: load_data(f"folder:{path}", patch_size=6, patches=10**9),
        "memory",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str, photos: Path) -> None:
    call, told = WRONG[case]
    with pytest.raises(ValueError, match=told):
        call(photos)


def test_photos_that_cannot_be_used_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read"):
        load_data(f"folder:{photos}", patch_size=4)
    for i in range(2):
        plant(tmp_path / "two" / f"{i}.png", i, (8, 8))
    with pytest.raises(ValueError, match="too few photos to be split: 1 of 1 would be held out"):
        load_data(f"folder:{tmp_path / 'two'}", patch_size=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photos in the folder"):
        load_data(f"folder:{tmp_path / 'empty'}", patch_size=4)
    with pytest.raises(TypeError, match="patch_size must be a whole number"):
        load_data(f"folder:{photos}", patch_size=4.5)  # type: ignore[call-overload]


@pytest.mark.slow
def test_from_photos_to_files_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        plant(Path("photos") / f"{i}.png", 40 * i, (20 + i, 30 - i))
    training = [
        *("train", "--data", "folder:photos", "--patch_size", "16", "--patches", "4"),
        *("--model", "VQVAE", "--model.network", "ConvolutionalGrid", "--run_dir", "runs/vq"),
        *("--model.network.channels", "4", "--model.network.blocks", "1", "--max_epochs", "1"),
        *("--model.quantizer", "VectorQuantizer", "--model.quantizer.codes", "4"),
        *("--model.quantizer.dim", "2", "--num_samples", "2", "--report", "false", "--quiet"),
    ]
    assert main([*training, "--binarize", "static"]) == 1
    assert "binarize='static' is for rows whose values are intensities" in capsys.readouterr().err
    assert main([*training[:3], "--patches", "4", *training[7:]]) == 1
    assert "give their side, too" in capsys.readouterr().err
    assert main([*training, "--run_dir", "photos/run"]) != 0
    assert "in the folder of the data" in capsys.readouterr().err
    assert main(training) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert load_run("runs/vq").config["patch_size"] == 16
    assert main(["evaluate", "runs/vq", "--num_samples", "2", "--overwrite", "--quiet"]) == 0
    assert main(["compress", "photos/3.png", "--run", "runs/vq", "--out", "files"]) == 0
    assert main(["decompress", "files/3.vq", "--run", "runs/vq", "--out", "back"]) == 0
    assert read_photo("back/3.png").shape == read_photo("photos/3.png").shape == (23, 27, 3)
