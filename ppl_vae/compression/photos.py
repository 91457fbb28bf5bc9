"""compress_photo() and decompress_photo(): a photo as codes, at the bits that their prior says."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ppl_vae.coding import (
    LEAST,
    Reader,
    TableCoder,
    Writer,
    WrongFileError,
    exact_copy,
    require_constriction,
    sealed,
    unsealed,
)
from ppl_vae.compression.names_of_models import name_of_decoder
from ppl_vae.networks import (
    PictureDecoder,
    PictureEncoder,
    PyramidDecoder,
    PyramidEncoder,
    tiles,
)
from ppl_vae.pairs import Pair
from ppl_vae.runtime import described, require_count
from ppl_vae.stats import Result

_MAGIC, _VERSION = b"pplP", 3

_HEADER = struct.Struct("<4sB2I2H8sI")
"""Magic, version, height, width, lines and columns that blocks share, name of the model, sum of the codes.

The lines are those of the coarsest grid.
"""

_MOST_CODES = 2**15
"""Codes in the blocks that are gone over at once; it bounds the memory. Files depend on it."""

_MOST_NUMBERS = 2**29
"""Most numbers of a photo that a file may say it has, unless more are asked for: Pillow opens no larger one."""

_MOST_SHARED = 2**16 - 1
"""The largest number of shared lines that the header can hold."""

OVERLAP = 0.25
"""Share of a block that it has in common with the next one, unless told otherwise."""

_WHAT, _BY = "compressed photo", "compress_photo"


class LevelOfPhoto(NamedTuple):
    """The codes of a photo on one grid, and the bits that they take.

    Attributes:
        num_codes: Number of codes.
        codes: Number K of values of each.
        rate: -log2 p(z), or -log2 p(z_l | z_{l+1}, ...) given the codes of the grids above, bits.
        code_length: What the codes add to the file by their probabilities there, bits: as `rate`, but 24 for a
            code that is less probable than 2^-24.
    """

    num_codes: int
    codes: int
    rate: float
    code_length: float


@dataclass(frozen=True)
class CompressedPhoto(Result):
    """A photo in a file, and where its bits come from.

    Attributes:
        height: Lines of the photo.
        width: Its columns.
        levels: The codes of each grid, from the lowest; those of a `VQVAE` are on one.
        payload: Bytes of the file that are codes, and not its header.
        data: The file.
    """

    height: int
    width: int
    levels: tuple[LevelOfPhoto, ...]
    payload: int
    data: bytes

    derived: ClassVar[tuple[str, ...]] = ("bits_per_pixel", "file_bits_per_pixel")
    hidden: ClassVar[tuple[str, ...]] = ("data",)

    @property
    def num_codes(self) -> int:
        """Number of codes, of all levels."""
        return sum(level.num_codes for level in self.levels)

    @property
    def codes(self) -> int:
        """Number K of values of each code, where all are on one grid.

        Raises:
            AttributeError: There are several, each with its own number: see `levels`.
        """
        if len(self.levels) > 1:
            raise AttributeError(
                f"codes of {len(self.levels)} levels have a number of values each: read levels[0].codes "
                "and so on"
            )
        return self.levels[0].codes

    @property
    def rate(self) -> float:
        """-log2 p(z): what the prior says that the codes take, bits."""
        return sum(level.rate for level in self.levels)

    @property
    def code_length(self) -> float:
        """What the codes add to the file by their probabilities there, bits."""
        return sum(level.code_length for level in self.levels)

    @property
    def bits_per_pixel(self) -> float:
        """-log2 p(z) per pixel."""
        return self.rate / (self.height * self.width)

    @property
    def file_bits_per_pixel(self) -> float:
        """Bits of the file per pixel."""
        return 8 * len(self.data) / (self.height * self.width)

    def summary_numbers(self) -> dict[str, Any]:
        """All numbers; the file is not among them."""
        several = len(self.levels) > 1
        return {
            "height": self.height,
            "width": self.width,
            "num_codes": self.num_codes,
            **({} if several else {"codes": self.codes}),
            "rate": self.rate,
            "code_length": self.code_length,
            "payload_bytes": self.payload,
            "bits_per_pixel": self.bits_per_pixel,
            "file_bytes": len(self.data),
            "file_bits_per_pixel": self.file_bits_per_pixel,
            **({"levels": [level._asdict() for level in self.levels]} if several else {}),
        }

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        pixels = self.height * self.width
        uniform = sum(level.num_codes * math.log2(level.codes) for level in self.levels) / pixels
        found = [
            ("photo", f"{self.width} x {self.height} pixels"),
            ("file", f"{len(self.data):,} bytes, {self.file_bits_per_pixel:.4f} bits per pixel"),
            ("-log2 p(z)", f"{self.bits_per_pixel:.4f} bits per pixel"),
        ]
        if self.code_length < self.rate:
            capped = f"{self.code_length / pixels:.4f} bits per pixel"
            found.append(("with at most 24 bits a code", capped))
        if len(self.levels) > 1:
            names = [f"z{i + 1}" for i in range(len(self.levels))]
            for i, (name, level) in enumerate(zip(names, self.levels, strict=True)):
                given = f" given {', '.join(names[i + 1 :])}" if names[i + 1 :] else ""
                found.append((f"of {name}{given}", f"{level.rate / pixels:.4f} bits per pixel"))
        numbers = [f"{level.num_codes:,} of {level.codes:,} values" for level in self.levels]
        return [
            *found,
            ("log2 K for each code", f"{uniform:.4f} bits per pixel"),
            ("codes", ", ".join(numbers)),
        ]


def compress_photo(
    model: nn.Module,
    guide: nn.Module,
    photo: Tensor,
    *,
    overlap: float = OVERLAP,
    most_pixels: int | None = None,
) -> CompressedPhoto:
    """Writes the codes of a photo: what `decompress_photo` makes of them is near the photo, not the same.

    The encoder goes over the photo in tiles that overlap, and gives the codes that it would give for the photo
    at once. The grid of codes is cut into blocks of the size that the prior knows. If the prior reads the codes
    before a code, blocks overlap, so that a code near the border of a block is given codes beyond it, too: a
    range coder takes each code once, in the first block b(i) that it is in, from above and from the left, with
    the probability that the prior gives it after the codes before it in this block, of which those that are in
    other blocks are known. So the length is

        - sum_i log2 p(z_i | z_j, j < i in b(i)) bits,

    but for a header of 33 bytes, 4 bytes at most at the end, and probabilities that are rounded to 24 bits. Of
    a block that reaches beyond the photo, only what is inside is written. Blocks on a diagonal do not depend on
    each other, and are gone over at once.

    Codes of a `VQVAE2` are on several grids: the coarsest is written first, then each finer one given those
    above it. A block is the same part of the photo on all grids, so that the prior of its codes is given all
    codes above this part, and no others, as in its training. Sizes and overlaps of blocks are whole numbers of
    lines of the coarsest grid.

    Probabilities are computed by the CPU in double precision and one thread, in the same way for writing and
    reading.

    Args:
        model: A `VQVAE` of pictures with `ConvolutionalGrid`, or a `VQVAE2`, that was trained on values from 0
            to 1.
        guide: Its `QuantizingEncoder`, or `HierarchicalQuantizingEncoder`.
        photo: Bytes, `(h, w, 3)`, as `ppl_vae.data.read_photo` gives them, or `(h, w)` if it is gray.
        overlap: Share of the lines and columns of a block that it has in common with the one above, or left of
            it. With more of it a code is given more codes, and there are 1 / (1 - overlap)^2 times as many
            blocks. But more codes are near the lower and right border of their block then, and these cost
            more if the prior was fitted to patches, where such codes depend on the padding of the encoder. It
            does nothing where codes are independent. It is rounded down to whole lines of the coarsest grid:
            0.25 of a block of 2 or 3 lines is none, so that no code is given any beyond its block, which costs
            bits; 0.5 is one line.
        most_pixels: Most pixels of a tile. None: 2^18, or more where the network reads wide surroundings of
            each position.

    Returns:
        The file, and its numbers.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: The pair has no such codes, or the photo is no tensor of bytes.
        ValueError: The photo has the wrong shape, `overlap` is out of its range, or `most_pixels` leaves no
            room beside what the network reads around a tile.

    Example:
        >>> from ppl_vae.codes import VectorQuantizer
        >>> from ppl_vae.guides import QuantizingEncoder
        >>> from ppl_vae.likelihoods import DiscretizedLogistic
        >>> from ppl_vae.models import VQVAE
        >>> from ppl_vae.networks import ConvolutionalGrid
        >>> network = ConvolutionalGrid(channels=8, halvings=2, blocks=1)
        >>> model = VQVAE((3, 16, 16), VectorQuantizer(16, 4), network, DiscretizedLogistic())
        >>> photo = torch.randint(256, (21, 30, 3), dtype=torch.uint8)
        >>> found = compress_photo(model, QuantizingEncoder(model, network), photo)
        >>> decompress_photo(model, found.data).shape
        torch.Size([21, 30, 3])
    """
    if most_pixels is not None:
        require_count("most_pixels", most_pixels, 1)
    _require_overlap(overlap)
    library = require_constriction("compressed photos", "compress")
    parts = _Parts.of(model)
    encoder = getattr(guide, "encoder", None)
    if not isinstance(encoder, parts.encoder):
        needed = (
            "a QuantizingEncoder with ConvolutionalGrid"
            if parts.encoder is PictureEncoder
            else "a HierarchicalQuantizingEncoder for its grids"
        )
        raise TypeError(
            f"compress_photo needs a guide that encodes pictures of any size, {needed}, got {described(guide)}"
        )
    pixels = _as_pixels(photo, parts.channels)
    height, width = pixels.shape[-2:]
    with Pair(model, guide).mode(training=False), torch.no_grad():
        z = _encoded(guide, encoder, pixels, most_pixels)
    with exact_copy(model) as exact:
        shared = _shared(exact, parts.block, overlap)
        writer = Writer(library)
        counting = [_Counting(writer) for _ in z]
        _code(exact, z, shared, counting)
        payload = writer.data()
        header = _HEADER.pack(
            _MAGIC, _VERSION, height, width, *shared, name_of_decoder(exact), _sum_of(z)
        )
    data = sealed(header, payload)
    levels = tuple(
        LevelOfPhoto(each.numel(), level.codes, coder.rate, coder.bits)
        for each, level, coder in zip(z, parts.levels, counting, strict=True)
    )
    return CompressedPhoto(height, width, levels, len(payload), data)


def decompress_photo(
    model: nn.Module,
    data: bytes | bytearray | memoryview,
    *,
    most_pixels: int | None = None,
    most_numbers: int = _MOST_NUMBERS,
) -> Tensor:
    """Reads what `compress_photo` wrote, and decodes it: the mean of p(x | z), rounded.

    The codes are exactly those that were written. The picture may differ by a rounding from machine to machine.

    Args:
        model: The same model: its weights, the vectors of its codes, and its settings.
        data: The file.
        most_pixels: Most pixels of a tile; None: as for `compress_photo`.
        most_numbers: Most numbers of the photo, height x width x channels, that are accepted.

    Returns:
        Bytes, `(h, w, 3)`, or `(h, w)` of a model of gray pictures.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `data` are no bytes, or the model has no such codes.
        ValueError: The file is damaged, of another version or model, or has too many numbers; or this machine
            computes other probabilities than that on which it was written; or `most_pixels` is too small.
    """
    if most_pixels is not None:
        require_count("most_pixels", most_pixels, 1)
    require_count("most_numbers", most_numbers, 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data must be the bytes of a file, got {described(data)}")
    parts = _Parts.of(model)
    header, payload = unsealed(bytes(data), _MAGIC, _VERSION, _HEADER.size, _WHAT, _BY)
    height, width, *shared, name, of_codes = _HEADER.unpack(header)[2:]
    reader = Reader(require_constriction("compressed photos", "compress"), payload, _WHAT)
    stride = parts.decoder.stride
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    if not height * width:
        raise ValueError(f"the header of this {_WHAT} is damaged: get it again")
    if (numbers := height * width * parts.channels) > most_numbers:
        raise ValueError(
            f"this {_WHAT} says that it has {numbers:,} numbers, more than most_numbers={most_numbers:,}: "
            "raise most_numbers, if the memory has room for them"
        )
    with exact_copy(model) as exact:
        if name_of_decoder(exact) != name:
            raise ValueError(
                f"this {_WHAT} was written with another model than this {type(model).__name__}: give the one "
                "with the same weights and the same settings"
            )
        if not all(some < side for some, side in zip(shared, parts.block, strict=True)):
            raise ValueError(f"the header of this {_WHAT} is damaged: get it again")
        z = [
            torch.zeros(*(level.ratio * side for side in grid), *level.inner, dtype=torch.long)
            for level in parts.levels
        ]
        try:
            _code(exact, z, (shared[0], shared[1]), [reader] * len(z))
            found: int | None = _sum_of(z)
        except WrongFileError:
            found = None
    if found != of_codes:
        raise ValueError(
            f"this {_WHAT} does not decode to the codes that were written, though it is whole and the model is "
            "right: probabilities are rounded differently here. Decode it with the kind of processor and the "
            "version of torch with which it was written"
        )
    with Pair(model, model).mode(training=False), torch.no_grad():
        pixels = _decoded(model, parts, z, most_pixels)
    pixels = pixels[:, :height, :width].movedim(0, -1)
    return pixels[..., 0] if parts.channels == 1 else pixels


def photo_error(photo: Tensor, decoded: Tensor) -> float:
    """Peak signal-to-noise ratio of a decoded photo, 10 log10(255^2 / mean squared error), in decibels.

    Args:
        photo: Bytes, `(h, w, 3)` or `(h, w)`.
        decoded: Bytes of the same shape; a gray one counts for each of three colors.

    Returns:
        The ratio; infinite if both are the same.

    Example:
        >>> photo = torch.zeros(2, 2, dtype=torch.uint8)
        >>> round(photo_error(photo, photo + 1), 2)
        48.13
    """
    if decoded.dim() < photo.dim():
        decoded = decoded.unsqueeze(-1)
    squared = float((photo.double() - decoded.double()).square().mean())
    return math.inf if squared == 0 else 10 * math.log10(255**2 / squared)


@dataclass(frozen=True)
class _Level:
    """The codes of a model on one grid.

    Attributes:
        block: Height and width of the grid that the prior knows.
        codes: K.
        inner: What else a code has: `(depth,)` of a residual quantizer.
        ratio: How many of its lines are one of the coarsest grid.
    """

    block: tuple[int, int]
    codes: int
    inner: tuple[int, ...] = ()
    ratio: int = 1


@dataclass(frozen=True)
class _Parts:
    """What is asked of a model.

    Attributes:
        decoder: Its decoder.
        encoder: What the encoder of its guide must be.
        channels: Channels of a picture.
        levels: The codes of each grid, from the lowest.
    """

    decoder: PictureDecoder | PyramidDecoder
    encoder: type[PictureEncoder | PyramidEncoder]
    channels: int
    levels: tuple[_Level, ...]

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block, in lines and columns of the coarsest grid."""
        return self.levels[-1].block

    @classmethod
    def of(cls, model: nn.Module) -> _Parts:
        context, decoder = getattr(model, "context", None), getattr(model, "decoder", None)
        if context is not None:
            raise TypeError(
                f"compressed photos need a VQVAE or a VQVAE2, whose prior is p(z), but that of "
                f"{type(model).__name__} is p(z | c), with {context}: a photo comes without any"
            )
        levels = cls._levels(model, decoder)
        if not levels:
            raise TypeError(
                "compressed photos need a VQVAE whose network is ConvolutionalGrid, or a VQVAE2: grids of "
                f"codes, for pictures of any size; got {described(model)}"
            )
        shape: tuple[int, ...] = getattr(model, "data_shape", ())
        channels = math.prod(shape[:-2])
        if channels not in (1, 3):
            raise TypeError(
                f"compressed photos need a model of pictures with 1 channel or 3, but {type(model).__name__} "
                f"has rows of shape {tuple(shape)}"
            )
        assert isinstance(decoder, PictureDecoder | PyramidDecoder)
        encoder = PictureEncoder if isinstance(decoder, PictureDecoder) else PyramidEncoder
        return cls(decoder, encoder, channels, levels)

    @staticmethod
    def _levels(model: Any, decoder: Any) -> tuple[_Level, ...]:
        """The codes of each grid of a model; empty if it has no such codes."""
        quantizer, positions = getattr(model, "quantizer", None), getattr(model, "positions", None)
        if isinstance(decoder, PictureDecoder) and quantizer is not None and positions is not None:
            height, width, *inner = positions
            return (_Level((height, width), quantizer.codes, tuple(inner)),)
        quantizers, grids = getattr(model, "quantizers", None), getattr(model, "grids", None)
        if isinstance(decoder, PyramidDecoder) and quantizers is not None and grids is not None:
            return tuple(
                _Level(grid, each.codes, ratio=grid[0] // grids[-1][0])
                for grid, each in zip(grids, quantizers, strict=True)
            )
        return ()


def _as_pixels(photo: Any, channels: int) -> Tensor:
    """A photo as numbers from 0 to 1, `(channels, h, w)`."""
    if not isinstance(photo, Tensor) or photo.dtype != torch.uint8:
        raise TypeError(
            f"photo must be a tensor of bytes, as ppl_vae.data.read_photo gives it, got {described(photo)}"
        )
    if photo.dim() == 2:
        photo = photo.unsqueeze(-1).expand(-1, -1, channels)
    if photo.dim() != 3 or photo.shape[-1] != channels or not photo.numel():
        raise ValueError(
            f"photo must have the shape (h, w, {channels}) for this model, got {tuple(photo.shape)}"
        )
    pixels: Tensor = photo.movedim(-1, 0).to(torch.get_default_dtype()) / 255
    return pixels


def _encoded(
    guide: Any, encoder: PictureEncoder | PyramidEncoder, pixels: Tensor, most_pixels: int | None
) -> list[Tensor]:
    """The codes of a picture on each grid from the lowest, `(h', w', *inner)`, tile by tile."""
    stride, device = encoder.stride, next(encoder.parameters()).device
    below, right = (-side % stride for side in pixels.shape[-2:])
    pixels = pad(pixels.unsqueeze(0), (0, right, 0, below), mode="replicate")[0]
    height, width = pixels.shape[-2:]
    found: list[Tensor] = []
    for tile in tiles(height, width, radius=encoder.radius, stride=stride, most_pixels=most_pixels):
        seen = pixels[(slice(None), *tile.seen)].to(device)
        of_tile = guide.codes(seen.reshape(1, *encoder.data_shape[:-2], *seen.shape[-2:]))
        for i, codes in enumerate([of_tile] if isinstance(of_tile, Tensor) else of_tile):
            z = codes[0].cpu()
            own = seen.shape[-1] // z.shape[1]  # pixels per position of this grid
            if i == len(found):
                found.append(z.new_zeros(height // own, width // own, *z.shape[2:]))
            found[i][_scaled(tile.kept, 1, own)] = z[_scaled(tile.inside, 1, own)]
    return found


def _decoded(model: Any, parts: _Parts, z: Sequence[Tensor], most_pixels: int | None) -> Tensor:
    """The picture of the codes on each grid, bytes `(channels, h, w)`, tile by tile."""
    stride, device = parts.decoder.stride, next(parts.decoder.parameters()).device
    height, width = (side * stride for side in z[-1].shape[:2])
    picture = torch.zeros(parts.channels, height, width, dtype=torch.uint8)
    radius = parts.decoder.radius * stride  # in pixels, as those of a tile
    for tile in tiles(height, width, radius=radius, stride=stride, most_pixels=most_pixels):
        seen = [
            each[_scaled(tile.seen, level.ratio, stride)].unsqueeze(0).to(device)
            for each, level in zip(z, parts.levels, strict=True)
        ]
        mean = model.decode(*seen).mean
        mean = mean.reshape(parts.channels, *mean.shape[-2:]).cpu()
        values = (255 * mean[(slice(None), *tile.inside)]).round().clamp(0, 255)
        picture[(slice(None), *tile.kept)] = values.to(torch.uint8)
    return picture


def _scaled(part: Sequence[slice], times: int, per: int = 1) -> tuple[slice, ...]:
    """The same lines and columns, counted on another grid."""
    return tuple(slice(s.start * times // per, s.stop * times // per) for s in part)


# -- codes in the file -----------------------------------------------------------------------------------


def _code(
    model: Any, z: Sequence[Tensor], shared: tuple[int, int], coders: Sequence[TableCoder]
) -> None:
    """Writes the codes of a picture, or reads them: the coarsest grid first, and blocks of a diagonal together.

    Args:
        model: The model, in double precision.
        z: What is written, or filled, `(h, w, *inner)` for each grid from the lowest.
        shared: How many lines a block has in common with the one above it, and columns with that on its left,
            on the coarsest grid.
        coders: What writes or reads each grid.
    """
    parts = _Parts.of(model)
    sides = [_cuts(*each) for each in zip(z[-1].shape, parts.block, shared, strict=False)]
    if any(shared):
        down, across = (len(side) for side in sides)
        fronts = [
            [
                (sides[0][i], sides[1][n - i])
                for i in range(max(0, n - across + 1), min(down, n + 1))
            ]
            for n in range(down + across - 1)
        ]
    else:
        fronts = [[(rows, columns) for rows in sides[0] for columns in sides[1]]]
    reached = [side[-1].start + length for side, length in zip(sides, parts.block, strict=True)]
    above: list[_Grid] = []
    for each, level, coder in reversed([*zip(z, parts.levels, coders, strict=True)]):
        grid = _Grid.of(each, level, reached)
        most = max(1, _MOST_CODES // math.prod([*level.block, *level.inner]))
        for front in fronts:
            for first in range(0, len(front), most):
                where = front[first : first + most]
                given = [other.blocks(where).codes for other in above]
                p = _prior_of(model, given).expand((len(where),))
                _code_blocks(p, grid, where, coder)
        each.copy_(grid.z[: each.shape[0], : each.shape[1]])
        above.insert(0, grid)


def _prior_of(model: Any, above: Sequence[Tensor]) -> Any:
    """The distribution of a block, given the codes of the grids above it, from the nearest one."""
    return model.prior.given(*above) if hasattr(model.prior, "sites") else model.prior()


class _Blocks(NamedTuple):
    """Some blocks of a grid.

    Attributes:
        at: The lines and the columns of their codes, `(blocks, height, 1)` and `(blocks, 1, width)`.
        codes: The codes, `(blocks, height, width, *inner)`.
        new: Those that no block before has, `(blocks, height, width)`.
    """

    at: tuple[Tensor, Tensor]
    codes: Tensor
    new: Tensor


class _Grid(NamedTuple):
    """A grid of codes, as far as its blocks reach.

    Attributes:
        z: The codes: beyond the photo what is likeliest, which is not written, but which a prior reads.
        size: Height and width of what is in the photo.
        level: What they are.
    """

    z: Tensor
    size: tuple[int, int]
    level: _Level

    @classmethod
    def of(cls, z: Tensor, level: _Level, reached: Sequence[int]) -> _Grid:
        """The grid of codes, where blocks reach so many lines and columns of the coarsest grid."""
        height, width = z.shape[:2]
        whole = z.new_zeros(*(level.ratio * side for side in reached), *level.inner)
        whole[:height, :width] = z
        return cls(whole, (height, width), level)

    def blocks(self, where: Sequence[tuple[_Cut, _Cut]]) -> _Blocks:
        """What is in some blocks."""
        lines, news = [], []
        for side, length in enumerate(self.level.block):
            cuts = self.level.ratio * torch.tensor([each[side] for each in where])
            line = cuts[:, :1] + torch.arange(length)
            lines.append(line)
            news.append(line >= cuts[:, 1:])
        at = lines[0][:, :, None], lines[1][:, None]
        return _Blocks(at, self.z[at], news[0][:, :, None] & news[1][:, None])


class _Cut(NamedTuple):
    """Where a block is along one side of the coarsest grid, and its first line that no block before it has."""

    start: int
    new: int


def _cuts(length: int, block: int, shared: int) -> list[_Cut]:
    """The blocks along one side of the coarsest grid, which share so many lines, or some more.

    Where they share any, the last one ends with the grid, and the others are moved evenly: none of what they
    could read is beyond the grid.
    """
    if not shared or length <= block:
        return [_Cut(start, start) for start in range(0, length, block)]
    count = math.ceil((length - block) / (block - shared)) + 1
    starts = [i * (length - block) // (count - 1) for i in range(count)]
    return [_Cut(0, 0), *(_Cut(s, before + block) for before, s in pairwise(starts))]


def _code_blocks(
    p: Any, grid: _Grid, where: Sequence[tuple[_Cut, _Cut]], coder: TableCoder
) -> None:
    """Writes or reads the codes of some blocks, one position after the other.

    Args:
        p: The distribution of each block.
        grid: The grid. Of each block, what other blocks have before it is known, and the rest is filled.
        where: The blocks.
        coder: What writes or reads.
    """
    at, each, new = grid.blocks(where)
    inside = (at[0] < grid.size[0]) & (at[1] < grid.size[1])
    inner = grid.level.inner

    def flat(mask: Tensor) -> Tensor:
        """Of all codes of a block, in their order, `(positions, blocks)`."""
        return mask[(..., *[None] * len(inner))].expand(each.shape).flatten(1).T.contiguous()

    order, written, beyond = each.flatten(1).T.contiguous(), flat(new & inside), flat(~inside)
    open_ = (written | beyond).any(1).tolist()
    place = 0

    def choose(p: Any) -> Tensor:
        """The codes of all blocks at the next position, from their distribution given those before."""
        nonlocal place
        chosen = order[place]
        if open_[place]:
            here, outside = written[place], beyond[place]
            logits = _logits_of(p)
            if bool(here.any()):
                chosen[here] = _coded(coder, chosen[here], logits[here])
            # Beyond the photo, what is likeliest: the prior reads it, and it is not written.
            chosen[outside] = logits[outside].argmax(-1)
        place += 1
        return chosen

    if _reads_codes(p):
        p.by_parts(choose)
    else:
        logits = _logits_of(p).flatten(1, -2).transpose(0, 1)
        order[written] = _coded(coder, order[written], logits[written])
        order[beyond] = logits[beyond].argmax(-1)
    grid.z[tuple(index.expand(new.shape)[new] for index in at)] = order.T.reshape(each.shape)[new]


def _coded(coder: TableCoder, numbers: Tensor, logits: Tensor) -> Tensor:
    """Writes or reads codes `(n,)` with the probabilities of logits `(n, K)`."""
    if isinstance(coder, _Counting):
        coder.count(numbers, logits.double())
    return coder.categorical(numbers, logits.double().softmax(-1)).long()


def _reads_codes(p: Any) -> bool:
    """Whether a prior is one of codes that each depend on those before."""
    return hasattr(p, "by_parts")


def _require_overlap(overlap: float) -> None:
    if isinstance(overlap, bool) or not isinstance(overlap, Real):
        raise TypeError(f"overlap must be a number, got {described(overlap)}")
    if not 0 <= overlap < 1:
        raise ValueError(
            f"overlap must be at least 0 and less than 1, the share of a block that others have, got {overlap}"
        )


def _shared(model: Any, block: tuple[int, int], overlap: float) -> tuple[int, int]:
    """How many lines and columns blocks share; none where nothing is read from them."""
    above: list[Tensor] = []
    for level in reversed(_Parts.of(model).levels):
        if _reads_codes(_prior_of(model, above)):
            break
        above.insert(0, torch.zeros(1, *level.block, dtype=torch.long))
    else:
        return 0, 0
    down, across = (min(math.floor(overlap * side), side - 1, _MOST_SHARED) for side in block)
    return down, across


def _logits_of(p: Any) -> Tensor:
    """The log probabilities of independent codes, `(*positions, K)`."""
    while isinstance(p, torch.distributions.Independent):
        p = p.base_dist
    if not isinstance(p, torch.distributions.Categorical):
        raise TypeError(
            "compressed photos need a prior whose codes are independent, or come one after the other "
            f"(by_parts), such as UniformCodes or PixelCNNPrior, got {described(p)}"
        )
    found: Tensor = p.logits
    return found


class _Counting:
    """A coder that adds up what the probabilities say.

    Args:
        coder: What writes.

    Attributes:
        rate: -log2 of the probabilities of all numbers so far.
        bits: The same, but for 24 bits at most of each.
    """

    def __init__(self, coder: Writer) -> None:
        self.coder = coder
        self.rate = self.bits = 0.0

    def count(self, numbers: Tensor, logits: Tensor) -> None:
        """Adds numbers `(n,)` with logits `(n, K)`: probabilities that are 0 when rounded are counted, too."""
        log_p = logits.log_softmax(-1).gather(1, numbers.long().unsqueeze(1)) / math.log(2)
        self.rate -= float(log_p.sum())
        self.bits -= float(log_p.clamp_min(math.log2(LEAST)).sum())

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """See `TableCoder.categorical`."""
        return self.coder.categorical(numbers, tables)


def _sum_of(z: Sequence[Tensor]) -> int:
    """A sum of the codes of all grids, from the lowest."""
    found = 0
    for each in z:
        found = zlib.crc32(each.contiguous().numpy().astype("<i8").tobytes(), found)
    return found
