"""Files of text with one sentence a line."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from ppl_vae.data.opening import open_to_read
from ppl_vae.data.sizes import MuchLargerError, available_memory
from ppl_vae.runtime import described, require_count

LONGEST_LINE = 2**16
"""Most bytes of a line that are held in memory: a sentence of ten thousand words.

A file without ends of lines, such as one that is no text, would be held as a whole.
"""

_CHECKED_LINES = 2**14
"""After so many lines it is asked again whether the rest will fit into the memory."""


def read_sentences(
    path: str | Path, *, max_lines: int | None = None, too_long: Literal["error", "cut"] = "error"
) -> list[str]:
    """The sentences of a text file in UTF-8, one a line.

    An empty line is an empty sentence, so that line n of one language belongs to line n of the other. A line
    ends with `\\n` or `\\r\\n`, and with nothing else. A mark of the byte order at the beginning is no part of
    the text. Letters with accents are one character each (Unicode's NFC), however the file spells them.

    Args:
        path: The file.
        max_lines: Most lines that are read, from the beginning; None for all.
        too_long: What happens to a line of more than 64 KiB, as no more of a line is held in memory: "error"
            refuses it, "cut" keeps its beginning, and does not look at the rest.

    Raises:
        OSError: The file is not there, is a folder, or may not be read.
        TypeError: `max_lines` is no whole number.
        ValueError: The file is empty, or no text in UTF-8, or has a line that is too long: the message says in
            which line. Or it does not fit into the memory, or an option is unknown.

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
        for text in _sentences(file, path, too_long, max_lines):
            found.append(text)
            taken += sys.getsizeof(text) + 8  # and a place in the list
            if len(found) % _CHECKED_LINES == 0:
                rest = taken * max(0.0, size / file.tell() - 1)
                if max_lines is not None:
                    rest = min(rest, taken * (max_lines / len(found) - 1))
                _require_room(path, taken + rest, rest)
    return found


def each_sentence(
    file: str | Path | BinaryIO, *, too_long: Literal["error", "cut"] = "error"
) -> Iterator[str]:
    """The sentences of a text one after the other, as `read_sentences` has them, also of a very large one.

    Args:
        file: The path of a file; or what is open to read bytes, such as `sys.stdin.buffer`.
        too_long: See `read_sentences`.

    Raises:
        OSError: The file is not there, is a folder, or may not be read.
        ValueError: It is empty or no text, as for `read_sentences`: it is told when the first sentence, or that
            of the bad line, is asked for. Or an option is unknown.

    Example:
        >>> import io
        >>> [*each_sentence(io.BytesIO(b"a dog runs.\\n\\ntwo dogs run."))]
        ['a dog runs.', '', 'two dogs run.']
    """
    if isinstance(file, str | Path):
        path = Path(file).expanduser()
        with open_to_read(path, "a file of text") as opened:
            yield from _sentences(opened, path, too_long)
    elif file is getattr(sys.stdin, "buffer", None):
        yield from _sentences(file, "standard input", too_long)
    else:
        yield from _sentences(file, getattr(file, "name", "the text"), too_long)


def require_too_long(given: str) -> None:
    """Raises an error for an option `too_long` that is none.

    Raises:
        ValueError: It is neither "error" nor "cut".
    """
    if given not in ("error", "cut"):
        raise ValueError(f"too_long must be 'error' or 'cut', got {given!r:.40}")


def checked_texts(sentences: Iterable[str]) -> Iterator[str]:
    """Sentences that a user has given, each checked as it comes, in Unicode's NFC.

    An `é` may be one character, or an `e` and an accent. To a reader they are the same, and so they must have
    the same pieces in a vocabulary.

    Raises:
        TypeError: They are no list of texts.
    """
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
        raise TypeError(f"sentences must be a list of texts, got {described(sentences)}")
    for number, text in enumerate(sentences):
        if not isinstance(text, str):
            raise TypeError(f"sentence {number}, counted from 0, is no text but {described(text)}")
        yield unicodedata.normalize("NFC", text)


def _sentences(
    file: BinaryIO, name: str | Path, too_long: Literal["error", "cut"], most: int | None = None
) -> Iterator[str]:
    """The sentences of an open file, which is called so in messages."""
    require_too_long(too_long)
    number = 0
    for number, line in enumerate(_lines(file, most), 1):
        yield _text(name, number, line, too_long)
    if not number:
        raise ValueError(f"{name} is empty: expected a file of text with one sentence a line")


def _lines(file: BinaryIO, most: int | None) -> Iterator[bytes]:
    """The lines with their ends; no more is held of one than shows that it is too long.

    The rest of such a line is read if another one is asked for.
    """
    number, at_once = 0, LONGEST_LINE + len(codecs.BOM_UTF8) + len(b"\r\n")
    while (most is None or number < most) and (line := file.readline(at_once)):
        number += 1
        yield line
        while len(line) == at_once and not line.endswith(b"\n"):
            line = file.readline(at_once)


def _text(name: str | Path, number: int, line: bytes, too_long: Literal["error", "cut"]) -> str:
    place = f"{name}, line {number}"
    utf16 = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    whole = len(line) <= LONGEST_LINE
    if not whole and too_long == "error":
        raise ValueError(
            f"{place} has more than {LONGEST_LINE:,} bytes: expected a file of text with one sentence a line; "
            "with too_long cut, the rest of it is left out"
        )
    line = line[:LONGEST_LINE]
    if utf16:
        raise ValueError(f"{place} begins as a text in UTF-16 does: save it as UTF-8")
    advice = "expected a file of text in UTF-8 with one sentence a line"
    if b"\0" in line:
        raise ValueError(f"{place} holds a null byte, as no text does: {advice}")
    try:
        # The last letter of what has been cut may be there in part: it is left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(line, final=whole)
        return unicodedata.normalize("NFC", text)
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
