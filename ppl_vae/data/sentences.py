"""Files of text with one sentence a line."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ppl_vae.data.opening import open_to_read
from ppl_vae.data.sizes import MuchLargerError, available_memory
from ppl_vae.runtime import described, require_count

LONGEST_LINE = 2**16
"""Most bytes of a line: a sentence of ten thousand words."""

_CHECKED_LINES = 2**14
"""After so many lines it is asked again whether the rest will fit into the memory."""


def read_sentences(path: str | Path, *, max_lines: int | None = None) -> list[str]:
    """The sentences of a text file in UTF-8, one a line.

    An empty line is an empty sentence, so that line n of one language belongs to line n of the other. A line
    ends with `\\n` or `\\r\\n`, and with nothing else. A mark of the byte order at the beginning is no part of
    the text.

    Args:
        path: The file.
        max_lines: Most lines that are read, from the beginning; None for all.

    Raises:
        OSError: The file is not there, is a folder, or may not be read.
        TypeError: `max_lines` is no whole number.
        ValueError: The file is empty, or no text in UTF-8, or has a line of more than 64 KiB: the message
            says in which line. Or it does not fit into the memory.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "text.en"
        >>> _ = file.write_text("a dog runs.\\n\\ntwo dogs run.\\n")
        >>> read_sentences(file)
        ['a dog runs.', '', 'two dogs run.']
    """
    if max_lines is not None:
        require_count("max_lines", max_lines, 1)
    path = Path(path).expanduser()
    with open_to_read(path, "a file of text") as file:
        size = os.fstat(file.fileno()).st_size
        found: list[str] = []
        taken = 0
        for text in _sentences(file, path, max_lines):
            found.append(text)
            taken += sys.getsizeof(text) + 8  # and a place in the list
            if len(found) % _CHECKED_LINES == 0:
                rest = taken * max(0.0, size / file.tell() - 1)
                if max_lines is not None:
                    rest = min(rest, taken * (max_lines / len(found) - 1))
                _require_room(path, taken + rest, rest)
    return found


def each_sentence(file: str | Path | BinaryIO) -> Iterator[str]:
    """The sentences of a text one after the other, as `read_sentences` has them, also of a very large one.

    Args:
        file: The path of a file; or what is open to read bytes, such as `sys.stdin.buffer`.

    Raises:
        OSError: The file is not there, is a folder, or may not be read.
        ValueError: It is empty or no text, as for `read_sentences`: it is told when the first sentence, or that
            of the bad line, is asked for.

    Example:
        >>> import io
        >>> [*each_sentence(io.BytesIO(b"a dog runs.\\n\\ntwo dogs run."))]
        ['a dog runs.', '', 'two dogs run.']
    """
    if isinstance(file, str | Path):
        path = Path(file).expanduser()
        with open_to_read(path, "a file of text") as opened:
            yield from _sentences(opened, path)
    elif file is getattr(sys.stdin, "buffer", None):
        yield from _sentences(file, "standard input")
    else:
        yield from _sentences(file, getattr(file, "name", "the text"))


def checked_texts(sentences: Iterable[str]) -> Iterator[str]:
    """Sentences that a user has given, each checked as it comes.

    Raises:
        TypeError: They are no list of texts.
    """
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
        raise TypeError(f"sentences must be a list of texts, got {described(sentences)}")
    for number, text in enumerate(sentences):
        if not isinstance(text, str):
            raise TypeError(f"sentence {number}, counted from 0, is no text but {described(text)}")
        yield text


def _sentences(file: BinaryIO, name: str | Path, most: int | None = None) -> Iterator[str]:
    """The sentences of an open file, which is called so in messages."""
    number = 0
    for number, line in enumerate(_lines(file, most), 1):
        yield _text(name, number, line)
    if not number:
        raise ValueError(f"{name} is empty: expected a file of text with one sentence a line")


def _lines(file: BinaryIO, most: int | None) -> Iterator[bytes]:
    """The lines with their ends; no more is read of one than shows that it is too long."""
    number = 0
    while (most is None or number < most) and (line := file.readline(LONGEST_LINE + 2)):
        number += 1
        yield line


def _text(name: str | Path, number: int, line: bytes) -> str:
    place = f"{name}, line {number}"
    utf16 = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    if len(line) > LONGEST_LINE:
        raise ValueError(
            f"{place} has more than {LONGEST_LINE:,} bytes: expected a file of text with one sentence a line"
        )
    if utf16:
        raise ValueError(f"{place} begins as a text in UTF-16 does: save it as UTF-8")
    advice = "expected a file of text in UTF-8 with one sentence a line"
    if b"\0" in line:
        raise ValueError(f"{place} holds a null byte, as no text does: {advice}")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 (its byte {error.start + 1} is {line[error.start]:#04x}): {advice}"
        ) from error


def _require_room(path: Path, whole: float, rest: float) -> None:
    if rest > available_memory():
        raise MuchLargerError(
            f"the sentences of {path} would take {whole / 2**30:.1f} GiB of memory, more than there is: give "
            "max_lines to read the first of them"
        )
