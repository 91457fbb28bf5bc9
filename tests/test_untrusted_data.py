"""Data from others (docs/security.md): archives that lie, arrays that do not fit, pictures, torchvision."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from attacks import Touch, is_untouched, marker as marker, promise, sets as sets
from PIL import Image

from ppl_vae.data import load_data

# -- sizes -----------------------------------------------------------------------------------------------


def bomb(file: Path, method: int, blocks: int) -> bytes:
    """Zeros in an `.npz`; returns the size that its directory states."""
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (blocks << 14, 1024)}
    np.lib.format.write_array_header_1_0(head, shape)
    with (
        zipfile.ZipFile(file, "w", method, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(head.getvalue())
        for _ in range(blocks):
            entry.write(bytes(1 << 24))
    return int(len(head.getvalue()) + (blocks << 24)).to_bytes(4, "little")


@promise(14)
def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**26)
    size = bomb(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, 16)
    with pytest.raises(ValueError, match=r"x\.npz takes 0\.3 GiB.*uncompressed \.npy"):
        load_data(str(tmp_path / "x.npz"))
    liar = (tmp_path / "x.npz").read_bytes().replace(size, (2000).to_bytes(4, "little"))
    (tmp_path / "liar.npz").write_bytes(liar)
    with pytest.raises(ValueError, match=r"liar\.npz cannot be read"):
        load_data(str(tmp_path / "liar.npz"))
    bomb(tmp_path / "other.npz", zipfile.ZIP_BZIP2, 1)
    with pytest.raises(ValueError, match="packed in a way"):
        load_data(str(tmp_path / "other.npz"))
    torch.save(torch.zeros(1).expand(2**15, 2**10), tmp_path / "repeated.pt")
    with pytest.raises(ValueError, match=r"repeated\.pt takes"):
        load_data(str(tmp_path / "repeated.pt"))
    head = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**14, 1)}
    np.lib.format.write_array_header_1_0(head, claim)
    (tmp_path / "claim.npy").write_bytes(head.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"claim\.npy cannot be read"):
        load_data(str(tmp_path / "claim.npy"))
    np.savez_compressed(tmp_path / "good.npz", x=np.zeros((100, 500), dtype=np.uint8))
    assert load_data(str(tmp_path / "good.npz")).shape == (500,)


@promise(14)
def test_arrays_must_fit_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((100, 500)))
    monkeypatch.setattr("ppl_vae.data.sizes.available_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"x\.npz takes .*more than there is"):
        load_data(str(tmp_path / "x.npz"))


@promise(14)
def test_a_sparse_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes.available_memory", lambda: 2**30)
    file = tmp_path / "x.npy"
    with file.open("wb") as stream:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**10)}
        np.lib.format.write_array_header_1_0(stream, shape)
        stream.truncate(stream.tell() + 2**30)
    with pytest.raises(ValueError, match=r"x\.npy takes 4\.0 GiB .*more than there is"):
        load_data(str(file))
    assert len(load_data(str(file), max_rows=10).train) == 10
    with file.open("wb") as stream:
        stream.write(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31))
        stream.truncate(2**32)
    with pytest.raises(ValueError, match="header is too long"):
        load_data(str(file))
    with file.open("wb") as stream:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (-5, 3)}
        np.lib.format.write_array_header_1_0(stream, shape)
    with pytest.raises(ValueError, match=r"x\.npy cannot be read.*its shape is \(-5, 3\)"):
        load_data(str(file))


@promise(14)
def test_an_archive_of_very_many_files_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for i in range(1001):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(ValueError, match="more than 1000 files"):
        load_data(str(tmp_path / "x.npz"))


@promise(14)
@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
def test_a_directory_is_not_read_however_long_it_is(name: str, tmp_path: Path) -> None:
    """Python reads it at once, and a hole in a sparse file is a long one."""
    size = 2**26
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size - 4, 4)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    clamped = (0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with (tmp_path / name).open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(size)
        file.write(end + locator + struct.pack("<4s4H2LH", b"PK\5\6", *clamped))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its directory is too long"):
        load_data(str(tmp_path / name))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**23


@promise(14)
@pytest.mark.parametrize("start", [b"\x80\x04\x8e" + struct.pack("<Q", 2**26), b"c", b"N.N.N.N."])
def test_an_old_pickle_is_not_read_however_long_it_is(start: bytes, tmp_path: Path) -> None:
    with (tmp_path / "x.pt").open("wb") as file:
        file.write(start)
        file.truncate(2**27)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
        load_data(str(tmp_path / "x.pt"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**23


@promise(14)
@pytest.mark.parametrize("old", [True, False])
def test_a_sparse_file_of_tensors_is_not_read(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(2**15, 2**8)}, file, _use_new_zipfile_serialization=not old)
    assert load_data(str(file)).shape == (2**8,)
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**20)
    load_data(str(file))
    content = file.read_bytes()
    place = content.index(bytes(2**20))
    with file.open("wb") as stream:
        stream.write(content[:place])
        stream.seek(2**25 - 2**20, 1)  # a hole in the place of the zeros
        stream.write(content[place + 2**25 - 2**20 :])
    assert file.stat().st_size == len(content)
    monkeypatch.setattr("ppl_vae.data.sizes._MOST_RATIO", 2)
    with pytest.raises(ValueError, match="bytes on the disk"):
        load_data(str(file))


@promise(14)
def test_what_is_built_is_not_copied_again_and_again(tmp_path: Path) -> None:
    """A dictionary of some thousand entries, thousands of times: few bytes in the file, much memory."""
    entries = b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(3000))
    pairs = b"](" + entries + b"e\x85q\x03"
    copies = b"](" + b"h\x01h\x03R" * 3000 + b"e."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        made = b"\x80\x02ccollections\nOrderedDict\nq\x01" + pairs + copies
        archive.writestr("x/data.pkl", made)
        archive.writestr("x/version", "3\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than tensors, or very many"):
        load_data(str(tmp_path / "x.pt"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


# -- archives that torch and Python read differently -----------------------------------------------------


def zipped(content: bytes, name: str = "e/data.pkl", extra: bytes = b"") -> bytes:
    """A `.pt` file of a pickle and what torch asks for beside it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e/version", "3\n")
        archive.writestr("e/byteorder", "little")
        entry = zipfile.ZipInfo(name)
        entry.compress_type, entry.extra = zipfile.ZIP_DEFLATED, extra
        archive.writestr(entry, content)
    return file.getvalue()


def pickled(text: int) -> bytes:
    """A dictionary with a text of some length."""
    return b"\x80\x02}X\1\0\0\0xX" + struct.pack("<I", text) + b"a" * text + b"s."


LARGE, SMALL = pickled(2**26), pickled(10)
END, END_64, LOCATOR = "<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"


def split_end(archive: bytes) -> tuple[bytes, bytes, int]:
    """The entries, the directory, and the place of the directory of an archive."""
    length, start = struct.unpack_from("<2L", archive, len(archive) - 10)
    return archive[:start], archive[start : start + length], start


def end(num: int, length: int, start: int, comment: bytes = b"") -> bytes:
    return struct.pack(END, b"PK\5\6", 0, 0, num, num, length, start, len(comment)) + comment


def end_64(num: int, length: int, start: int) -> bytes:
    return struct.pack(END_64, b"PK\6\6", 44, 45, 45, 0, 0, num, num, length, start)


def directory_ahead_of_the_end() -> bytes:
    """Python reads the directory ahead of the end, torch the one whose place is stated."""
    entries, directory, start = split_end(zipped(LARGE))
    fake = directory.replace(struct.pack("<I", len(LARGE)), struct.pack("<I", 1000))
    return entries + directory + fake + end(3, len(directory), start)


def record_ahead_of_the_locator() -> bytes:
    """Python reads the record ahead of its locator, torch the one whose place the locator states."""
    entries, directory, start = split_end(zipped(LARGE))
    fake = directory.replace(struct.pack("<I", len(LARGE)), struct.pack("<I", 1000))
    length = len(directory)
    other = start + length + 56
    parts = [
        entries + directory + end_64(3, length, start),
        fake + end_64(3, length, other),
        struct.pack(LOCATOR, b"PK\6\7", 0, start + length, 1),
        end(3, length, other),
    ]
    return b"".join(parts)


def refused_before_torch(file: Path, words: str) -> None:
    with (
        patch("torch.load", side_effect=AssertionError("torch has read it")),
        pytest.raises(ValueError, match=words),
    ):
        load_data(str(file))


@promise(14)
@pytest.mark.parametrize("made", [directory_ahead_of_the_end, record_ahead_of_the_locator])
def test_a_file_has_one_directory_only(
    made: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    file = tmp_path / "x.pt"
    file.write_bytes(made())
    assert file.stat().st_size < 2**17
    with zipfile.ZipFile(file) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 2000
    assert len(torch.load(file, weights_only=True)["x"]) == 2**26  # the attack is a real one
    refused_before_torch(file, r"directory is not laid out as torch\.save does it")


@promise(14)
@pytest.mark.parametrize(
    "change",
    [
        lambda file: b"ahead" + file,
        lambda file: file + b"behind",
        lambda file: file[:-2] + struct.pack("<H", 3) + b"abc",
        lambda file: file[:-2] + struct.pack("<H", 22) + file[-22:],
        lambda file: file[:-12] + struct.pack("<H", 7) + file[-10:],
        lambda file: file[:-18] + b"\1\0" + file[-16:],
        lambda file: file[:-42] + bytes(20) + file[-22:],
        lambda file: file[:-98] + b"between" + file[-98:],
    ],
)
def test_an_unusual_layout_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"x": torch.rand(20, 3), "y": torch.arange(20)}, file)
    load_data(str(file))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.pt cannot be read"):
        load_data(str(file))


# -- pickles that make much of little --------------------------------------------------------------------

ENCODED = b"\x80\x02}X\1\0\0\0xc_codecs\nencode\n(X\3\0\0\0abcX\6\0\0\0utf-32tRs."
ZEROS = b"\x80\x02}X\1\0\0\0xc__builtin__\nbytearray\n(J" + struct.pack("<i", 2**26) + b"tRs."


@promise(14)
@pytest.mark.parametrize(
    "content",
    [
        zipped(LARGE),
        zipped(ENCODED),
        zipped(ZEROS),
        zipped(ENCODED, "e/DATA.PKL"),
        zipped(SMALL) + zipped(ENCODED),
        zipped(SMALL).replace(b"e/version", b"e\0version"),
        zipped(SMALL, "\u00e9/data.pkl"),
        zipped(SMALL, extra=b"\x99\x99\0\0"),
        zipped(b"N0" * 60_000 + SMALL),
    ],
)
def test_what_unpacks_or_makes_much_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    file = tmp_path / "x.pt"
    file.write_bytes(content)
    tracemalloc.start()
    refused_before_torch(file, r"GiB of memory|more than tensors|laid out")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@promise(14)
def test_a_file_of_tensors_may_not_make_much_of_little(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    text = b"c_codecs\nencode\n(X\x03\x00\x00\x00abcX\x06\x00\x00\x00utf-32tR."
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + text)
        archive.writestr("x/version", "3\n")
    with pytest.raises(ValueError, match="more than tensors"):
        load_data(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02ctorch\nSize.__new__\n.")
        archive.writestr("x/version", "3\n")
    with pytest.raises(ValueError, match="more than tensors"):
        load_data(str(file))
    torch.save({"x": torch.rand(20, 3)}, file)
    assert load_data(str(file)).shape == (3,)


@promise(14)
@pytest.mark.parametrize("content", [ENCODED, ZEROS])
def test_a_file_of_before_torch_1_6_makes_no_more(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    x = torch.rand(20, 3)
    torch.save({"x": x}, file, _use_new_zipfile_serialization=False)
    assert load_data(str(file)).shape == (3,)
    old = file.read_bytes()
    third = old.index(b".", old.index(b"little_endian")) + 1  # after the pickle of the system
    for attack in (old[:third] + content, content + old, old[:third] + content + zipped(SMALL)):
        file.write_bytes(attack)
        refused_before_torch(file, "more than tensors")


@promise(14)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.uint16]
)
def test_what_torch_saves_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.ones(20, 3).to(dtype)
    for content in (x, {"x": x, "y": torch.arange(20)}, {"x": torch.nn.Parameter(x.float())}):
        torch.save(content, tmp_path / "x.pt")
        assert load_data(str(tmp_path / "x.pt")).shape == (3,)


# -- pictures --------------------------------------------------------------------------------------------


@promise(15)
def test_suspiciously_large_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        Image.new("L", (30, 30)).save(tmp_path / f"{i}.png")
    assert load_data(f"folder:{tmp_path}").shape == (1, 30, 30)
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 600
    )  # PIL warns above it, and raises above twice as much
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as users have it; pytest makes errors of warnings
        with pytest.raises(ValueError, match=r"0\.png cannot be read"):
            load_data(f"folder:{tmp_path}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    monkeypatch.setattr("ppl_vae.data.sizes.available_memory", lambda: 8000)
    with (
        patch("PIL.ImageOps.exif_transpose", side_effect=AssertionError("a picture was unpacked")),
        pytest.raises(ValueError, match=r"GiB of memory \(more than there is\)"),
    ):
        load_data(f"folder:{tmp_path}")


@promise(15)
@pytest.mark.parametrize("name", ["x.webp", "x.png"])
def test_a_huge_file_is_no_picture(name: str, tmp_path: Path) -> None:
    """PIL reads WebP as a whole, and unknown parts of a PNG: a sparse file took all its length of memory."""
    start = b"RIFF\xff\xff\xff\x7fWEBPVP8 " if name == "x.webp" else b"\x89PNG\r\n\x1a\n"
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.truncate(2**29 + 1)
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=rf"{name} cannot be read: its file is larger than 512 MiB"
    ):
        load_data(f"folder:{tmp_path}")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@promise(15)
def test_a_picture_starts_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would give PostScript, whatever its name, to Ghostscript."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = f"#!/bin/sh\ntouch {tmp_path / 'marker'}\nexit 1\n"
    (programs / "gs").write_text(script)
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("L", (30, 30)).save(folder / f"{i}.png", "EPS")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        load_data(f"folder:{folder}")
    assert not (tmp_path / "marker").exists()


# -- torchvision's sets ----------------------------------------------------------------------------------


def write_idx(file: Path, *shape: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    file.write_bytes(head + bytes(int(np.prod(shape))))


def write_mnist(raw: Path) -> None:
    for name in ("train", "t10k"):
        write_idx(raw / f"{name}-images-idx3-ubyte", 20, 4, 4)
        write_idx(raw / f"{name}-labels-idx1-ubyte", 20)


@promise(6)
@pytest.mark.usefixtures("sets")
def test_only_the_published_pickles_of_cifar_are_read(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(FileNotFoundError, match="CIFAR10"):
        load_data("CIFAR10", data_dir=tmp_path, download=False)
    assert is_untouched(marker)


@promise(6, 14)
@pytest.mark.usefixtures("sets")
def test_old_files_of_mnist_are_checked_as_other_files_of_tensors(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.data.sizes._LARGE", 2**24)
    folder = tmp_path / "MNIST" / "processed"
    folder.mkdir(parents=True)
    write_mnist(tmp_path / "MNIST" / "raw")

    def read() -> Any:
        return load_data("MNIST", data_dir=tmp_path, download=False)

    good = (torch.zeros(20, 4, 4, dtype=torch.uint8), torch.arange(20))
    for name in ("training.pt", "test.pt"):
        torch.save(good, folder / name)
    assert read().shape == (1, 4, 4)
    for attack in (zipped(LARGE), directory_ahead_of_the_end(), zipped(ENCODED), ENCODED):
        (folder / "training.pt").write_bytes(attack)
        with (
            patch("torch.load") as torch_load,
            pytest.raises(ValueError, match="MNIST: a file is broken"),
        ):
            read()
        torch_load.assert_not_called()
    x, y = good
    for content, words in (
        ((x[:1, :1, :1].expand(2**20, 2**10, 2**10), y[:1].expand(2**20)), "hold no pictures"),
        ((x, y[:1].expand(2**40)), "20 pictures but"),
        ((x, y[:1].expand(20, 2**40)), "20 pictures but"),
        ((x.float(), y), "hold no pictures"),
        ((x.to_sparse(), y), "hold no pictures|a file is broken"),
        (Touch(marker), "a file is broken"),
    ):
        torch.save(content, folder / "training.pt")
        with pytest.raises(ValueError, match=f"MNIST: .*({words})"):
            read()
    assert is_untouched(marker)


@promise(14)
@pytest.mark.usefixtures("sets")
def test_files_of_mnist_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(raw := tmp_path / "MNIST" / "raw")
    with (raw / "t10k-labels-idx1-ubyte").open("r+b") as file:
        file.truncate(2**43)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte takes .*more than there is"):
        load_data("MNIST", data_dir=tmp_path, download=False)
    write_mnist(raw)
    with (raw / "train-images-idx3-ubyte").open("r+b") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**15, 2**15))
    with pytest.raises(ValueError, match="a file is broken"):
        load_data("MNIST", data_dir=tmp_path, download=False)
