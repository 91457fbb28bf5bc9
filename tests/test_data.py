"""load_data(): splits, seeds, binarization and dequantization, and its arguments."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import numbered, numbers, splits

from ppl_vae.data import Binarization, Dequantization, load_data
from ppl_vae.networks import Convolutional
from ppl_vae.runtime import channels_last


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
    choices: list[dict[str, Any]] = [
        {},
        {"binarize": "static"},
        {"dequantize": True},
        {"max_rows": 50},
    ]
    for options in choices:
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


def test_dynamic_binarization_draws_again_for_each_training_batch() -> None:
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


def test_channels_that_come_last(tmp_path: Path) -> None:
    """The shape is taken as it is, and what to type is said; so do networks that convolve."""
    np.save(tmp_path / "x.npy", np.zeros((40, 12, 10, 3), np.uint8))
    with pytest.warns(
        UserWarning, match=r"move the 3 channels of \(12, 10, 3\) to the front, x.permute"
    ):
        data = load_data(tmp_path / "x.npy")
    assert data.shape == (12, 10, 3)
    with pytest.warns(UserWarning, match="Convolutional: pictures are"):
        Convolutional().encoder(data.shape)
    for right in ((3, 12, 10), (12, 3), (12, 10, 8), (2, 4, 4, 3)):
        assert channels_last(right) == ""
