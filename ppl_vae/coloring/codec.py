"""compress_colors() and decompress_colors(): the colors of a photo for somebody who has its gray picture."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ppl_vae.coding import (
    Reader,
    Writer,
    WrongFileError,
    exact_copy,
    require_constriction,
    sealed,
    unsealed,
)
from ppl_vae.coloring.coded_pictures import code_picture
from ppl_vae.coloring.model import ModelOfColors
from ppl_vae.coloring.pictures import as_bytes, as_chroma
from ppl_vae.data import Photo
from ppl_vae.networks import MOST_PIXELS
from ppl_vae.runtime import described, digest, require_count

_MAGIC, _VERSION = b"pplC", 1

_HEADER = struct.Struct("<4sB3I8s2I")
"""Magic, version, height, width, pixels of a tile, digest of the model, checksums of luma and chroma."""


def compress_colors(
    model: ModelOfColors,
    photo: Photo | tuple[Tensor, Tensor],
    *,
    most_pixels: int = MOST_PIXELS,
) -> bytes:
    """Writes the chroma of a photo for somebody who has its gray picture and the model: without loss.

    A range coder takes each number with the probability that the model gives it after those before: Cg of a
    pixel with P(Cg) = sum_k w_k P(Cg | z_i = k), then Co with the weights times P(Cg | z_i = k). The weights w
    are P(z_i = k | x) where pixels are independent; on scan lines they are P(z_i = k | x, y_1, ..., y_(i - 1)).
    So the length is

        - log2 P(y | x) bits,

    of `log_evidence`, but for a header of 37 bytes, 4 bytes at most at the end, and probabilities that are
    rounded to 24 bits: no color costs more than 48 bits, however rare it is, and a certain one some 0.0001.

    Where colors are latent, their shifts c come first: those that `fit_shifts` finds, rounded to a grid of the
    step 2^-b, with 4^b near the number of pixels of a segment. Of this code in two parts the length is
    - log2 P(c on the grid) - log2 P(y | x, c), which is more than - log2 P(y | x).

    All is computed by the CPU in double precision and one thread, wherever the model is. A large picture goes
    through the networks tile by tile, see `tiles`; its length is the same.

    Args:
        model: A model of colors, such as `IndependentSegments`.
        photo: A photo, or its luma `(h, w)` and chroma (Co, Cg), `(h, w, 2)`: whole numbers, as
            `ppl_vae.colors.split_colors` gives them.
        most_pixels: Most pixels of a tile.

    Returns:
        The file. It is for processors of this kind and this version of torch: others may round sums
        differently. `decompress_colors` then says so.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `photo` is no photo, nor two tensors.
        ValueError: The photo is not what it must be, has a color that does not exist, or nobody knows
            log P(y | x): that of `PottsSegments` for a wide picture.

    Example:
        >>> from ppl_vae.models import IndependentSegments
        >>> from ppl_vae.networks import MOST_PIXELS, UNet
        >>> model = IndependentSegments(segments=3, network=UNet((4, 8)))
        >>> luma, chroma = torch.full((9, 12), 128), torch.zeros(9, 12, 2)
        >>> data = compress_colors(model, (luma, chroma))
        >>> bool((decompress_colors(model, luma, data) == chroma).all())
        True
    """
    require_count("most_pixels", most_pixels, 1)
    luma, chroma = _luma_and_chroma(photo)
    luma = as_bytes(luma)
    chroma = as_chroma(luma, chroma)
    height, width = luma.shape
    most_pixels = min(most_pixels, height * width)
    writer = Writer(require_constriction("compressed colors", "colorize"))
    with _in_double(model) as (exact, name):
        code_picture(exact, luma, chroma.clone(), writer, most_pixels)
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, height, width, most_pixels, name, _sum_of(luma), _sum_of(chroma))
    )
    return sealed(header, writer.data())


def decompress_colors(
    model: ModelOfColors,
    luma: Tensor,
    data: bytes | bytearray | memoryview,
    *,
    most_pixels: int = MOST_PIXELS,
) -> Tensor:
    """Reads what `compress_colors` wrote, and gives exactly the chroma that it was given.

    Args:
        model: The same model.
        luma: The gray picture of the photo, `(h, w)`.
        data: The file.
        most_pixels: Most pixels of a tile that are accepted: the file says of how many it was made.

    Returns:
        (Co, Cg), int16, `(h, w, 2)`.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `data` are no bytes.
        ValueError: The file is damaged, of another version, picture or model; or this machine computes other
            probabilities than that on which it was written.
    """
    require_count("most_pixels", most_pixels, 1)
    luma = as_bytes(luma)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data must be the bytes of a file, got {described(data)}")
    data = bytes(data)
    height, width, of_tiles, name, of_luma, of_chroma, payload = _opened(data)
    if (height, width) != tuple(luma.shape):
        raise ValueError(
            f"this file has the colors of a picture of {height} x {width} pixels, but the luma has "
            f"{luma.shape[0]} x {luma.shape[1]}: give the gray picture of that photo"
        )
    if of_luma != _sum_of(luma):
        raise ValueError(
            "this file has the colors of another gray picture: give the luma from which it was written, "
            "unchanged (as a JPEG file it is not)"
        )
    if min(of_tiles, height * width) > most_pixels:
        raise ValueError(
            f"this file was written with tiles of {of_tiles} pixels, more than most_pixels={most_pixels}: pass "
            f"most_pixels={of_tiles}, if the memory has room for it"
        )
    reader = Reader(
        require_constriction("compressed colors", "colorize"), payload, "file of colors"
    )
    with _in_double(model) as (exact, own):
        if own != name:
            raise ValueError(
                f"this file was written with another model than this {type(model).__name__}: give the one with "
                "the same weights"
            )
        chroma = torch.zeros(height, width, 2, dtype=torch.int16)
        try:
            code_picture(exact, luma, chroma, reader, of_tiles)
            found = _sum_of(chroma)
        except WrongFileError:
            found = None
    if found != of_chroma:
        raise ValueError(
            "this file does not decode to the colors that were written, though it is whole and the weights and "
            "the gray picture are right: probabilities are rounded differently here, or the model was built "
            "with other settings. Decode it with the kind of processor and the version of torch with which it "
            "was written"
        )
    return chroma


def _opened(data: bytes) -> tuple[Any, ...]:
    """What the header says, and what follows it."""
    header, payload = unsealed(
        data, _MAGIC, _VERSION, _HEADER.size, "file of colors", "compress_colors"
    )
    return *_HEADER.unpack(header)[2:], payload


def _luma_and_chroma(photo: Photo | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(photo, Photo):
        return photo.luma, photo.chroma
    pair = photo if isinstance(photo, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(f"photo must be a Photo, or its luma and chroma, got {described(photo)}")
    return pair[0], pair[1]


def _sum_of(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().numpy().astype("<i2").tobytes())


@contextmanager
def _in_double(model: ModelOfColors) -> Iterator[tuple[ModelOfColors, bytes]]:
    """A copy of the model in double precision, and its name."""
    with exact_copy(cast(nn.Module, model)) as exact:
        state = sorted(exact.state_dict().items())
        words = [type(model).__name__, str(model.segments), str(model.radius), str(model.stride)]
        words += [name for name, _ in state] + [digest(tensor for _, tensor in state)]
        yield cast(ModelOfColors, exact), hashlib.sha256("\n".join(words).encode()).digest()[:8]
