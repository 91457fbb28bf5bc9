"""Arrays from files: which are taken, as what, and what is said of those that do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import numbered, numbers, splits

from ppl_vae.data import load_data


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
