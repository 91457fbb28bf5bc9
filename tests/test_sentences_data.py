"""Sentences are the lines of a text, and what is no text is told with its file and line."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from ppl_vae.data import each_sentence, read_sentences, sentences as module
from ppl_vae.data.sizes import MuchLargerError

LONGEST = module.LONGEST_LINE


def written(folder: Path, content: bytes) -> Path:
    file = folder / "text.de"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a dog.\ntwo dogs.\n", ["a dog.", "two dogs."]),
        (b"a dog.\ntwo dogs.", ["a dog.", "two dogs."]),
        (b"\n\na\n\n", ["", "", "a", ""]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"a\rb\nc\r", ["a\rb", "c\r"]),  # an end of a line only before \n
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),  # a mark only at the beginning
        ("cafe\u0301\n\u00e9\n".encode(), ["caf\u00e9", "\u00e9"]),  # one character for one letter
        (b"\xef\xbb\xbf\n", [""]),
        (b"\xef\xbb\xbf", [""]),
        (
            "grüße 日本 🙂 \u2028\x85\x0b\x0cb\n c \n".encode(),
            ["grüße 日本 🙂 \u2028\x85\x0b\x0cb", " c "],
        ),
    ],
)
def test_a_line_is_a_sentence(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    file = written(tmp_path, content)
    assert read_sentences(file) == expected
    assert read_sentences(str(file)) == expected
    for most in range(1, len(expected) + 2):
        assert read_sentences(file, max_lines=most) == expected[:most]


def test_lines_of_two_languages_stay_together(tmp_path: Path) -> None:
    """As many as Python's own reader finds, where lines end with \\n alone."""
    text = "one\u2028still one\n\nthree\x1cstill three\nvier\n"
    assert read_sentences(written(tmp_path, text.encode())) == text.split("\n")[:-1]


BAD = {
    "Latin-1": (b"good\ngr\xfc\xdfe\n", r"line 2 is not UTF-8 \(its byte 3 is 0xfc\)"),
    "half a letter": (b"gr\xc3\n", r"line 1 is not UTF-8 \(its byte 3 is 0xc3\)"),
    "surrogates": (b"a\nb\nc\xed\xa0\x80\n", r"line 3 is not UTF-8 \(its byte 2 is 0xed\)"),
    "UTF-16": (
        "a dog\n".encode("utf-16"),
        "line 1 begins as a text in UTF-16 does: save it as UTF-8",
    ),
    "UTF-16 without a mark": ("a dog\n".encode("utf-16-le"), "line 1 holds a null byte"),
    "null": (b"a\nb\0c\n", "line 2 holds a null byte, as no text does"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "line 1 holds a null byte"),
    "gzip": (b"\x1f\x8b\x08\x08", r"line 1 is not UTF-8 \(its byte 2 is 0x8b\)"),
    "a long line": (b"a\n" + b"b" * (LONGEST + 1) + b"\nc\n", "line 2 has more than 65,536 bytes"),
    "no line": (b"b" * (4 * LONGEST), "line 1 has more than 65,536 bytes"),
    "empty": (b"", "is empty: expected a file of text with one sentence a line"),
}


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_what_is_no_text_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ValueError, match=told) as found:
        read_sentences(file)
    assert str(found.value).startswith(str(file))


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_what_is_no_text_is_told_where_it_comes(tmp_path: Path, content: bytes, told: str) -> None:
    for source, name in (
        (written(tmp_path, content), "text.de"),
        (io.BytesIO(content), "the text"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            _ = [*each_sentence(source)]
        assert name in str(error.value)


def test_standard_input_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a dog\r\nb\n\xff")))
    found = each_sentence(sys.stdin.buffer)
    assert [next(found), next(found)] == ["a dog", "b"]
    with pytest.raises(ValueError, match=r"^standard input, line 3 is not UTF-8"):
        next(found)


def test_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    file = written(tmp_path, b"good\n")
    with file.open("r+b") as stream:
        stream.truncate(2**40)  # a hole of zeros
    found = each_sentence(file)
    assert next(found) == "good"
    with pytest.raises(ValueError, match="line 2 has more than 65,536 bytes"):
        next(found)


def test_the_longest_line_is_read(tmp_path: Path) -> None:
    line = b"b" * LONGEST
    for end in (b"\r\n", b"\n", b""):
        assert read_sentences(written(tmp_path, line + end)) == [line.decode()]


CUT = {
    "a long line": (b"a\n" + b"b" * (LONGEST + 1) + b"\nc\n", ["a", "b" * LONGEST, "c"]),
    "two of them": (
        b"b" * 9 * LONGEST + b"\r\n" + b"c" * LONGEST + b"d",
        ["b" * LONGEST, "c" * LONGEST],
    ),
    "no end": (b"b" * (4 * LONGEST), ["b" * LONGEST]),
    "an empty line behind": (b"b" * (2 * LONGEST) + b"\n\n", ["b" * LONGEST, ""]),
    "a mark": (b"\xef\xbb\xbf" + b"b" * (LONGEST + 3) + b"\nc", ["b" * LONGEST, "c"]),
    "half a letter": (b"a" + "é".encode() * LONGEST, ["a" + "é" * (LONGEST // 2 - 1)]),
    "no text behind": (b"b" * LONGEST + b"\xff\0\nc", ["b" * LONGEST, "c"]),
}


@pytest.mark.parametrize(("content", "expected"), CUT.values(), ids=CUT)
@pytest.mark.parametrize("more", range(6))
def test_long_lines_are_cut(tmp_path: Path, content: bytes, expected: list[str], more: int) -> None:
    """Of any length: the rest is read in pieces, which are no lines."""
    content = content.replace(b"b" * LONGEST, b"b" * (LONGEST + more))
    file = written(tmp_path, content)
    assert read_sentences(file, too_long="cut") == expected
    assert [*each_sentence(io.BytesIO(content), too_long="cut")] == expected
    with pytest.raises(
        ValueError, match=r"bytes: .*; with too_long cut, the rest of it is left out"
    ):
        read_sentences(file)


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    """Zeros are no text, which is told before the rest is read; letters are read in pieces."""
    file = written(tmp_path, b"good\n")
    with file.open("r+b") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match="line 2 holds a null byte"):
        read_sentences(file, too_long="cut")

    class Pieces(io.BytesIO):
        largest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            found = super().readline(size)
            self.largest = max(self.largest, len(found))
            return found

    pieces = Pieces(b"b" * (20 * LONGEST) + b"\nc")
    assert [len(text) for text in each_sentence(pieces, too_long="cut")] == [LONGEST, 1]
    assert pieces.largest < 2 * LONGEST


def test_what_too_long_may_be(tmp_path: Path) -> None:
    file = written(tmp_path, b"good\n")
    with pytest.raises(ValueError, match="too_long must be 'error' or 'cut', got 'drop'"):
        read_sentences(file, too_long="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too_long must be 'error' or 'cut', got 'drop'"):
        next(each_sentence(file, too_long="drop"))  # type: ignore[arg-type]


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    """What stands behind is not looked at."""
    file = written(tmp_path, b"good\n\xff\n")
    assert read_sentences(file, max_lines=1) == ["good"]
    with file.open("r+b") as stream:
        stream.truncate(2**40)  # a hole of zeros
    assert read_sentences(file, max_lines=1) == ["good"]
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8 \(its byte 1 is 0xff\)"):
        read_sentences(file)


def test_files_that_do_not_fit_into_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 lines, each 8 characters: by the size of what is in memory after the first 4."""
    monkeypatch.setattr(module, "_CHECKED_LINES", 4)
    file = written(tmp_path, b"12345678\n" * 64)
    each = "12345678".__sizeof__() + 8
    asked = []

    def available() -> int:
        asked.append(1)
        return 60 * each - 1

    monkeypatch.setattr(module, "available_memory", available)
    with pytest.raises(MuchLargerError, match=r"text\.de would take 0\.0 GiB .* give max_lines"):
        read_sentences(file)
    assert len(asked) == 1
    assert len(read_sentences(file, max_lines=60)) == 60
    monkeypatch.setattr(module, "available_memory", lambda: 60 * each)
    assert len(read_sentences(file)) == 64


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.en does not exist"):
        read_sentences(tmp_path / "none.en")
    with pytest.raises(IsADirectoryError, match="is a folder; expected a file of text"):
        read_sentences(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device; expected a file of text"):
        read_sentences(tmp_path / "pipe")
    with pytest.raises(ValueError, match="null"):
        read_sentences("a\0b")


def test_max_lines(tmp_path: Path) -> None:
    file = written(tmp_path, b"a\n")
    with pytest.raises(ValueError, match="max_lines must be at least 1, got 0"):
        read_sentences(file, max_lines=0)
    with pytest.raises(TypeError, match="max_lines must be a whole number"):
        read_sentences(file, max_lines=1.5)  # type: ignore[arg-type]
