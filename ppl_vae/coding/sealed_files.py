"""Files with a header and a checksum: what is damaged is found before it is decoded."""

from __future__ import annotations

import struct
import zlib

_SUM = struct.Struct("<I")
"""The checksum of all but itself, after the header."""

SEAL = _SUM.size
"""How many bytes a file is longer than its header and its content."""


def sealed(header: bytes, content: bytes) -> bytes:
    """A file: the header, a checksum of all the rest, the content.

    Args:
        header: It begins with some bytes that only such files begin with, and one byte for the version.
        content: What follows.
    """
    return header + _SUM.pack(zlib.crc32(content, zlib.crc32(header))) + content


def unsealed(
    data: bytes, magic: bytes, version: int, size: int, what: str, by: str
) -> tuple[bytes, bytes]:
    """Header and content of a file that `sealed` has made.

    Args:
        data: The file.
        magic: What such files begin with.
        version: The one that is known.
        size: Bytes of the header.
        what: What the file is, such as `file of colors`.
        by: The function that writes it.

    Raises:
        ValueError: It is no such file, of another version, damaged or truncated.

    Example:
        >>> unsealed(sealed(b"ab" + bytes([1]), b"..."), b"ab", 1, 3, "file of dots", "write_dots")
        (b'ab\\x01', b'...')
    """
    start = size + _SUM.size
    if data[: len(magic)] != magic:
        raise ValueError(f"these bytes are no file of {by}")
    if len(data) > len(magic) and data[len(magic)] != version:
        raise ValueError(
            f"this {what} has the version {data[len(magic)]} of the format, but only version {version} is "
            "known: read it with the ppl_vae that wrote it"
        )
    if (
        len(data) < start
        or zlib.crc32(data[start:], zlib.crc32(data[:size])) != _SUM.unpack(data[size:start])[0]
    ):
        raise ValueError(f"this {what} is damaged or truncated: get it again")
    return data[:size], data[start:]
