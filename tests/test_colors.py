"""Luma and chroma without loss, their densities, and photos of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppl_vae.colors import chroma_interval, luma_after_green, split_colors, to_rgb
from ppl_vae.data import BrokenPhotoWarning, load_photos, read_photo
from ppl_vae.distributions import ChromaLogistic

LUMAS = (0, 1, 20, 127, 128, 200, 254, 255)


@pytest.fixture(scope="module")
def all_colors() -> Tensor:
    """All 2^24 of them, `(2^24, 3)`."""
    levels = torch.arange(256, dtype=torch.uint8)
    return torch.cartesian_prod(levels, levels, levels)


def test_all_photos_of_scikit_image_may_be_one_set() -> None:
    data = load_photos(longest=40, split=False)
    assert len(data.test) == len(data.train) == 8
    assert {p.name for p in load_photos(longest=40).train} < {p.name for p in data.test}


def test_every_color_comes_back(all_colors: Tensor) -> None:
    luma, chroma = split_colors(all_colors)
    assert torch.equal(to_rgb(luma, chroma), all_colors)


@pytest.mark.slow
def test_the_chroma_of_a_luma_is_in_its_interval_and_all_of_it_is_some_colors(
    all_colors: Tensor,
) -> None:
    luma, chroma = split_colors(all_colors)
    after = luma_after_green(luma.int(), chroma[:, 1].int())
    for level, value in ((luma, chroma[:, 1]), (after, chroma[:, 0])):
        least, greatest = chroma_interval(level.int())
        assert bool(((least <= value) & (value <= greatest)).all())
    assert sum(len(chroma_of(luma)) for luma in range(256)) == 2**24


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_levels_of_every_kind_leave_the_same_room(dtype: torch.dtype) -> None:
    """Bytes have no room for chroma below 0 or above 255."""
    level = torch.arange(256)
    expected, found = chroma_interval(level), chroma_interval(level.to(dtype))
    assert all(torch.equal(a, b.long()) for a, b in zip(expected, found, strict=True))
    green = expected[0]
    after = luma_after_green(level.to(dtype), green.short())
    assert torch.equal(after.long(), luma_after_green(level, green))
    room = ChromaLogistic.room(level.to(dtype))
    for chroma in (torch.tensor([-3, -4]), torch.tensor([-3.0, -4.0])):
        check = room.check(chroma.expand(256, 2))
        assert torch.equal(check, ChromaLogistic.room(level.double()).check(chroma.expand(256, 2)))
        assert check[128]
    far = torch.tensor([65536.0, 65536.0])  # 0 in int16
    assert not bool(room.check(far.expand(256, 2)).any())


def chroma_of(luma: int) -> Tensor:
    """All chroma that a luma leaves room for, `(count, 2)`."""
    least, greatest = (int(end) for end in chroma_interval(torch.tensor(luma)))
    green = torch.arange(least, greatest + 1)
    first, last = chroma_interval(luma_after_green(torch.tensor(luma), green))
    each = [
        torch.stack([torch.arange(int(a), int(b) + 1), torch.full((int(b - a) + 1,), int(g))], 1)
        for a, b, g in zip(first, last, green, strict=True)
    ]
    return torch.cat(each)


def distributions(luma: int, dtype: torch.dtype, count: int = 6) -> list[ChromaLogistic]:
    """Narrow and wide ones, in and far outside of the room."""
    generator = torch.Generator().manual_seed(luma)
    loc = 80 * torch.randn(count, 2, generator=generator)
    scale = 2 * (4.5 * torch.rand(count, 2, generator=generator) - 1.5).exp()
    slope = torch.randn(count, generator=generator)
    parts = zip(loc.to(dtype), scale.to(dtype), slope.to(dtype), strict=True)
    return [ChromaLogistic(torch.tensor(luma), *each) for each in parts]


@pytest.mark.parametrize("luma", LUMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_masses_of_a_luma_sum_to_one(luma: int, dtype: torch.dtype) -> None:
    table = chroma_of(luma).to(dtype)
    for p in distributions(luma, dtype):
        total = float(p.log_prob(table).double().exp().sum())
        assert total == pytest.approx(1.0, abs=1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("luma", LUMAS)
def test_draws_mean_and_mode_of_chroma_are_those_of_its_table(luma: int) -> None:
    table = chroma_of(luma).double()
    torch.manual_seed(luma)
    for p in distributions(luma, torch.float64):
        mass = p.log_prob(table).exp().unsqueeze(-1)
        mean = (mass * table).sum(0)
        assert bool(((p.mean - mean).abs() < 1).all())
        draws = p.sample((20_000,))
        assert bool(p.support.check(draws).all())
        spread = ((mass * table**2).sum(0) - mean**2).clamp_min(0).sqrt()
        error = (draws.mean(0) - mean).abs()
        assert bool((error <= 4.5 * spread / 20_000**0.5 + 1e-9).all())
        assert bool(p.support.check(p.mode))


def test_the_mode_of_chroma_is_its_most_probable_color_without_a_slope() -> None:
    p = ChromaLogistic(torch.tensor(100), torch.tensor([33.3, -20.2]), torch.tensor([3.0, 4.0]))
    table = chroma_of(100).float()
    assert torch.equal(p.mode, table[p.log_prob(table).argmax()])


def test_other_chroma_is_refused() -> None:
    p = ChromaLogistic(torch.tensor(0), torch.zeros(2), torch.ones(2), validate_args=True)
    for value in ([0.0, 2.0], [0.5, 0.0], [2.0, 0.0]):
        with pytest.raises(ValueError, match="within the support"):
            p.log_prob(torch.tensor(value))


def saved(folder: Path) -> dict[str, list[int]]:
    """Photos of 3 x 2 pixels of many kinds, and the color of their first pixel."""
    Image.fromarray(np.array([[0, 65535, 300]] * 2, np.uint16)).save(folder / "sixteen.png")
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(folder / "transparent.png")
    Image.new("LA", (3, 2), (10, 255)).save(folder / "gray_alpha.png")
    palette = Image.new("P", (3, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(folder / "palette.png")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(folder / "one.png")
    turned = Image.new("RGB", (3, 2), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    return {
        "sixteen.png": [0, 0, 0],
        "cmyk.jpg": [255, 0, 0],
        "transparent.png": [255, 255, 255],
        "gray_alpha.png": [10, 10, 10],
        "palette.png": [255, 0, 0],
        "one.png": [1, 2, 3],
        "turned.png": [0, 0, 255],
    }


def test_photos_of_all_kinds_read_right(tmp_path: Path) -> None:
    for name, first in saved(tmp_path).items():
        assert read_photo(tmp_path / name)[0, 0].tolist() == first, name
    assert read_photo(tmp_path / "turned.png").shape == (3, 2, 3)
    assert read_photo(tmp_path / "sixteen.png")[0].tolist() == [[0] * 3, [255] * 3, [1] * 3]


def test_a_dark_photo_of_sixteen_bits_is_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 200, np.uint16)).save(tmp_path / "dark.png")
    assert int(read_photo(tmp_path / "dark.png").max()) == 1


def test_a_broken_photo_is_named_and_left_out(tmp_path: Path) -> None:
    names = saved(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read"):
        read_photo(tmp_path / "broken.jpg")
    with pytest.warns(BrokenPhotoWarning, match=r"broken\.jpg .* left out"):
        data = load_photos(f"folder:{tmp_path}")
    assert sorted(p.name for p in [*data.train, *data.test]) == sorted(names)


def test_a_segmentation_comes_with_its_photo(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for i in range(2):
            Image.new("RGB", (40, 20), (i, 2, 3)).save(tmp_path / part / f"{i}.png")
    numbers = np.arange(20 * 40, dtype=np.uint8).reshape(20, 40) // 100
    Image.fromarray(numbers).save(tmp_path / "val" / "1.seg.png")
    data = load_photos(f"folder:{tmp_path}")
    assert len(data.train) == len(data.test) == 2
    assert data.test[0].segments is None
    segments = data.test[1].segments
    assert segments is not None
    assert torch.equal(segments, torch.from_numpy(numbers).long())
    small = load_photos(f"folder:{tmp_path}", longest=20).test[1]
    assert small.segments is not None
    assert small.luma.shape == small.segments.shape == (10, 20)


def test_a_segmentation_of_another_shape_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (9, 6), (i, 2, 3)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(tmp_path / "1.seg.png")
    with pytest.warns(BrokenPhotoWarning, match=r"1\.seg\.png .* 6 x 9 pixels, its photo 9 x 6"):
        data = load_photos(f"folder:{tmp_path}")
    assert len(data.train) + len(data.test) == 2
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
        load_photos(f"folder:{tmp_path}", test_fraction=-1.0)


def test_a_folder_of_one_photo_has_none_to_measure_on(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="one photo alone, and at least two are needed"):
        load_photos(f"folder:{tmp_path}")
    assert len(load_photos(f"folder:{tmp_path}", split=False).test) == 1
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"test_fraction=0\.9 leaves none of the 2 photos"):
        load_photos(f"folder:{tmp_path}", test_fraction=0.9)


def test_patches_are_parts_of_their_photos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
    photos = load_photos(f"folder:{tmp_path}").train
    chroma, luma = photos.patches(8, 6, seed=1)
    windows = [
        (photo.chroma.unfold(0, 8, 1).unfold(1, 8, 1), photo.luma.unfold(0, 8, 1).unfold(1, 8, 1))
        for photo in photos
    ]
    for y, x in zip(chroma, luma, strict=True):
        found = [
            (c.movedim(2, -1)[place] == y).all()
            for c, w in windows
            for place in [tuple(i) for i in (w == x).all(-1).all(-1).nonzero().tolist()]
        ]
        assert found == [torch.tensor(True)]
    assert torch.equal(photos.patches(8, 6, seed=1)[1], luma)
    with pytest.raises(ValueError, match="choose a smaller size"):
        photos.patches(25, 1)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("CIFAR", ValueError, "no photos named 'CIFAR'"),
        ("folder:", ValueError, "no photos named 'folder:'"),
        ("folder:nowhere", FileNotFoundError, "there is no folder"),
        ("folder:.", ValueError, "no photos in the folder"),
    ],
)
def test_photos_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=told):
        load_photos(name)


def test_the_photos_of_scikit_image() -> None:
    data = load_photos(longest=100)
    assert {p.name for p in data.train}.isdisjoint({p.name for p in data.test})
    assert len(data.train) == 6
    assert len(data.test) == 2
    for photo in [*data.train, *data.test]:
        assert max(photo.luma.shape) == 100
        assert photo.segments is None
        assert photo.chroma.float().std() > 5, "colors"
    y, x = data.test[0].rows
    assert y.shape == (*x.shape, 2)


def test_photos_of_scikit_image_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.photos.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[colorize\]'"):
        load_photos()
