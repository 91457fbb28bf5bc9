"""Files that are whole or absent: every damage is found and named, and every state comes back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from ppl_vae import runtime

TENSORS = {
    "float": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([1.0, float("nan"), float("-inf")], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}
METADATA = {"epoch": 3, "loss": 0.1, "best": float("-inf"), "name": "Größe ≤ 3", "none": None}


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


# -- one file --------------------------------------------------------------------------------------------


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    runtime.write_tensors(tmp_path / "a.safetensors", TENSORS, METADATA)
    tensors, metadata = runtime.read_tensors(tmp_path / "a.safetensors")
    assert metadata == METADATA
    assert_same(dict(sorted(tensors.items())), dict(sorted(TENSORS.items())))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    runtime.write_tensors(tmp_path / "a", {"x": x, "tail": x[2:], "same": x})
    tensors, _ = runtime.read_tensors(tmp_path / "a")
    assert tensors["tail"].tolist() == [2.0, 3.0]
    assert torch.equal(tensors["same"], x)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_between_write_and_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    path = tmp_path / "state"
    runtime.write_bytes(path, b"old")

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, fail)
        with pytest.raises(type(error)):
            runtime.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]
    runtime.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"


def test_the_content_is_on_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"content"
        assert source.parent == target.parent  # a rename across file systems would not be atomic
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    runtime.write_bytes(tmp_path / "state", b"content")
    assert events == ["fsync", "replace", "fsync"]  # the file, then the folder


# -- a file that grows -----------------------------------------------------------------------------------


def grow(path: Path, *data: bytes, error: BaseException | None = None) -> None:
    """Adds data to a growing file; with an error, its block fails after that."""
    with runtime.growing(path) as add:
        for each in data:
            add(each)
        if error is not None:
            raise error


def test_a_growing_file_is_beside_its_place_until_it_is_whole(tmp_path: Path) -> None:
    file, part = tmp_path / "a.txt", tmp_path / "a.txt.part"
    file.write_bytes(b"old")
    with runtime.growing(file, overwrite=True) as add:
        add(b"one\n")
        assert part.read_bytes() == b"one\n"  # at once, for whoever looks
        add(b"two\n")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"one\ntwo\n"
    assert os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(FileExistsError, match=r"a\.txt has come meanwhile"):
        grow(file, b"three")
    assert (file.read_bytes(), part.read_bytes()) == (b"one\ntwo\n", b"three")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()])
def test_what_a_growing_file_has_stays(error: BaseException, tmp_path: Path) -> None:
    file, part = tmp_path / "a.txt", tmp_path / "a.txt.part"
    for added in ((), (b"one", b"two")):
        with pytest.raises(type(error)):
            grow(file, *added, error=error)
        assert not file.exists()
        assert part.exists() == bool(added)
    assert part.read_bytes() == b"onetwo"
    with pytest.raises(FileExistsError, match=r"a\.txt\.part is there already: a command writes a"):
        grow(file)
    assert part.read_bytes() == b"onetwo"


def test_what_is_added_is_added_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a write that ends in the middle nothing stays, and others may come in its place."""
    file, part = tmp_path / "a.txt", tmp_path / "a.txt.part"

    class Failing(io.FileIO):
        def write(self, data: Any) -> int:
            if bytes(data) == b"wo":
                raise OSError(28, "No space left on device")
            return super().write(bytes(data)[:1] if bytes(data) == b"two" else data)

    def opened(descriptor: int, *_: Any, **__: Any) -> Failing:
        return Failing(descriptor, "w")

    monkeypatch.setattr(runtime.files, "open", opened, raising=False)
    with pytest.raises(runtime.DiskFullError, match=r"a\.txt was not written: no room on the disk"):
        grow(file, b"one", b"two")
    assert part.read_bytes() == b"one"
    part.unlink()
    with runtime.growing(file) as add:
        add(b"one")
        with pytest.raises(OSError, match="No space"):
            add(b"two")
        add(b"three")
    assert file.read_bytes() == b"onethree"


def test_growing_files_are_files_alone(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="a file is to be written there"):
            runtime.growing(path, overwrite=True).__enter__()
    with pytest.raises(FileNotFoundError):
        runtime.growing(tmp_path / "nowhere" / "a.txt").__enter__()


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    runtime.write_tensors(path, {"w": torch.arange(6.0), "b": torch.tensor(1)}, {"epoch": 3})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(runtime.CorruptFileError, match=r"a\.safetensors") as caught:
            runtime.read_tensors(path)
        assert caught.value.path == path


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    runtime.write_tensors(path, {"w": torch.arange(6.0), "b": torch.tensor(1)}, {"epoch": 3})
    data = path.read_bytes()
    for place in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            with pytest.raises(runtime.CorruptFileError, match=r"a\.safetensors"):
                runtime.read_tensors(path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00" * 100, b"\xff" * 100, b"not a checkpoint" * 10]
)
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(content)
    with pytest.raises(runtime.CorruptFileError, match=r"wrong\.safetensors"):
        runtime.read_tensors(path)


def test_safetensors_of_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(
        runtime.CorruptFileError, match=r"theirs\.safetensors.*not written by ppl_vae"
    ):
        runtime.read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        runtime.read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(runtime.CorruptFileError, match="a folder, not a file"):
        runtime.read_tensors(tmp_path)


# -- trees -----------------------------------------------------------------------------------------------

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.integers(0, 3).map(lambda n: torch.arange(float(n))),
)
keys = st.one_of(st.integers(0, 99), st.text("abc", min_size=1, max_size=3))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(tree=trees)
def test_any_tree_comes_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    flat, tensors = runtime.flatten({"tree": tree})
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    runtime.write_tensors(path, tensors, {"flat": flat})
    read, metadata = runtime.read_tensors(path)
    assert_same(runtime.unflatten(metadata["flat"], read), {"tree": tree})


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.b"):
        runtime.flatten({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\.1\.hook.*function"):
        runtime.flatten({"state": [1, {"hook": lambda: None}]})
    with pytest.raises(TypeError, match="key"):
        runtime.flatten({(1, 2): torch.zeros(1)})


# -- what a killed process leaves ------------------------------------------------------------------------

KILLED = """
import os, sys
from ppl_vae.runtime import replacing
with replacing(sys.argv[1]) as file:
    file.write_text("half")
    os._exit(1)
"""


def test_the_next_file_removes_what_a_killed_process_has_left(tmp_path: Path) -> None:
    file = tmp_path / f"{'a' * 200} [1].nc"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, file], check=False)
        assert len(os.listdir(tmp_path)) == 1  # that of the first is gone
    with runtime.replacing(file) as mine:
        assert os.listdir(tmp_path) == [mine.name]
        with runtime.replacing(file) as another:  # of a process that lives: it stays
            assert sorted(os.listdir(tmp_path)) == sorted([mine.name, another.name])
        mine.write_text("whole")
    assert os.listdir(tmp_path) == [file.name]
    assert file.read_text() == "whole"


def test_long_names_of_many_bytes(tmp_path: Path) -> None:
    file = tmp_path / f"{'画' * 40}.{'画' * 40}"
    runtime.write_bytes(file, b"x")
    assert file.read_bytes() == b"x"


def test_temporary_names() -> None:
    with runtime.replacing(Path(tempfile.gettempdir()) / "a.b.nc") as file:
        assert runtime.is_temporary(file.name)
        assert file.suffix == ".nc"
    file.with_name("a.b.nc").unlink()
    assert not any(
        runtime.is_temporary(name) for name in ("my.writing.txt", ".ppl_vae-lock", ".ppl_vae-new")
    )


@pytest.mark.parametrize(
    ("number", "lives"),
    [("own", True), (2**22 + 1, False), (2**80, False), ("x", False), (0, False), (-1, False)],
)
def test_a_process_lives(number: int | str, lives: bool) -> None:
    assert runtime.process_lives(os.getpid() if number == "own" else number) == lives
