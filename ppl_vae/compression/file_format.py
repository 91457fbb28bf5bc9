"""The file of compress(): its header, and the grids of latents."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vae.coding import SEAL, sealed, unsealed

_MAGIC, _VERSION = b"pplB", 1

_HEADER = struct.Struct("<4s4BH5I8s")
"""Magic, version, double precision, bits of a latent, arguments, rows at once, rows, initial words, sums of
rows and context, bytes of shapes and grids, name of the pair."""

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@dataclass(frozen=True)
class Argument:
    """An argument of the programs.

    Attributes:
        is_context: Whether the receiver has it.
        dtype: Its dtype.
        shape: The shape of a row.
    """

    is_context: bool
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What is in a file beside the numbers.

    Attributes:
        double: Whether the programs ran in double precision.
        latent_bits: b of the grids.
        rows_at_once: Most rows that were coded at once; 0 for all.
        num_rows: Number of rows.
        initial_words: Random words that were put at the bottom of the stack.
        sum_of_rows: Checksum of the rows.
        sum_of_context: Checksum of what the receiver has.
        name: A digest of the pair.
        arguments: What the programs are called with.
        moments: Loc and scale `(2, E)` of the grids of latents that are not standard normal.
    """

    double: bool
    latent_bits: int
    rows_at_once: int
    num_rows: int
    initial_words: int
    sum_of_rows: int
    sum_of_context: int
    name: bytes
    arguments: Sequence[Argument]
    moments: Mapping[str, Tensor]


def written(contents: Contents, payload: bytes) -> tuple[bytes, int]:
    """A file, and how many of its bytes are no payload."""
    more = b""
    for argument in contents.arguments:
        kind = _DTYPES.index(argument.dtype)
        more += struct.pack("<3B", argument.is_context, kind, len(argument.shape))
        more += struct.pack(f"<{len(argument.shape)}I", *argument.shape)
    for name, moments in contents.moments.items():
        text = name.encode()
        more += struct.pack("<HI", len(text), moments.shape[1]) + text
        more += moments.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        contents.double,
        contents.latent_bits,
        len(contents.arguments),
        contents.rows_at_once,
        contents.num_rows,
        contents.initial_words,
        contents.sum_of_rows,
        contents.sum_of_context,
        len(more),
        contents.name,
    )
    return sealed(header, more + payload), len(header) + SEAL + len(more)


def read(data: bytes) -> tuple[Contents, bytes]:
    """What is in a file, and its payload.

    Raises:
        ValueError: It is no file of `compress`, of another version, damaged or truncated.
    """
    header, rest = unsealed(data, _MAGIC, _VERSION, _HEADER.size, "file of rows", "compress")
    double, bits, count, at_once, rows, words, of_rows, of_context, size, name = _HEADER.unpack(
        header
    )[2:]
    more = rest[:size]
    arguments, moments, place = [], {}, 0
    try:
        for _ in range(count):
            is_context, kind, dims = struct.unpack_from("<3B", more, place)
            shape = struct.unpack_from(f"<{dims}I", more, place + 3)
            place += 3 + 4 * dims
            arguments.append(Argument(bool(is_context), _DTYPES[kind], tuple(shape)))
        while place < len(more):
            length, numbers = struct.unpack_from("<HI", more, place)
            text = more[place + 6 : place + 6 + length].decode()
            place += 6 + length
            found = np.frombuffer(more, "<i2", 2 * numbers, place).astype(np.int16)
            place += 4 * numbers
            moments[text] = torch.from_numpy(found).view(torch.bfloat16).double().reshape(2, -1)
    except (struct.error, ValueError, IndexError) as error:  # though the checksum is right
        raise ValueError("the header of this file of rows is damaged: get it again") from error
    sound = all(bool(each.isfinite().all() and (each[1] > 0).all()) for each in moments.values())
    if not sound or not 1 <= bits <= MOST_BITS or not arguments:
        raise ValueError("the header of this file of rows is damaged: get it again")
    contents = Contents(
        bool(double), bits, at_once, rows, words, of_rows, of_context, name, arguments, moments
    )
    return contents, rest[size:]


MOST_BITS = 20
"""Most bits of a latent's index: its quantiles are kept."""


def numbers_in(contents: Contents) -> int:
    """How many numbers the rows have that are in a file."""
    return sum(
        contents.num_rows * math.prod(each.shape)
        for each in contents.arguments
        if not each.is_context
    )
