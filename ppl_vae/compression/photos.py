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
from ppl_vae.networks import MOST_PIXELS, PictureDecoder, PictureEncoder, tiles
from ppl_vae.pairs import Pair
from ppl_vae.runtime import described, require_count
from ppl_vae.stats import Result

_MAGIC, _VERSION = b"pplP", 3

_HEADER = struct.Struct("<4sB2I2H8sI")
"""Magic, version, height, width, lines and columns that blocks share, name of the model, sum of the codes."""

_MOST_CODES = 2**15
"""Codes in the blocks that are gone over at once; it bounds the memory. Files depend on it."""

_MOST_NUMBERS = 2**29
"""Most numbers of a photo that a file may say it has, unless more are asked for: Pillow opens no larger one."""

_MOST_SHARED = 2**16 - 1
"""The largest number of shared lines that the header can hold."""

OVERLAP = 0.25
"""Share of a block that it has in common with the next one, unless told otherwise."""

_WHAT, _BY = "compressed photo", "compress_photo"


@dataclass(frozen=True)
class CompressedPhoto(Result):
    """A photo in a file, and where its bits come from.

    Attributes:
        height: Lines of the photo.
        width: Its columns.
        num_codes: Number of codes.
        codes: Number K of values of each.
        rate: -log2 p(z): what the prior says that the codes take, bits.
        code_length: What the codes add to the file by their probabilities there, bits: as `rate`, but 24 for a
            code that is less probable than 2^-24.
        payload: Bytes of the file that are codes, and not its header.
        data: The file.
    """

    height: int
    width: int
    num_codes: int
    codes: int
    rate: float
    code_length: float
    payload: int
    data: bytes

    derived: ClassVar[tuple[str, ...]] = ("bits_per_pixel", "file_bits_per_pixel")
    hidden: ClassVar[tuple[str, ...]] = ("data",)

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
        return {
            "height": self.height,
            "width": self.width,
            "num_codes": self.num_codes,
            "codes": self.codes,
            "rate": self.rate,
            "code_length": self.code_length,
            "payload_bytes": self.payload,
            "bits_per_pixel": self.bits_per_pixel,
            "file_bytes": len(self.data),
            "file_bits_per_pixel": self.file_bits_per_pixel,
        }

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        pixels = self.height * self.width
        uniform = self.num_codes * math.log2(self.codes) / pixels
        found = [
            ("photo", f"{self.width} x {self.height} pixels"),
            ("file", f"{len(self.data):,} bytes, {self.file_bits_per_pixel:.4f} bits per pixel"),
            ("-log2 p(z)", f"{self.bits_per_pixel:.4f} bits per pixel"),
        ]
        if self.code_length < self.rate:
            capped = f"{self.code_length / pixels:.4f} bits per pixel"
            found.append(("with at most 24 bits a code", capped))
        return [
            *found,
            ("log2 K for each code", f"{uniform:.4f} bits per pixel"),
            ("codes", f"{self.num_codes:,} of {self.codes:,} values"),
        ]


def compress_photo(
    model: nn.Module,
    guide: nn.Module,
    photo: Tensor,
    *,
    overlap: float = OVERLAP,
    most_pixels: int = MOST_PIXELS,
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

    Probabilities are computed by the CPU in double precision and one thread, in the same way for writing and
    reading.

    Args:
        model: A `VQVAE` of pictures that was trained on values from 0 to 1, by `ConvolutionalGrid`.
        guide: Its `QuantizingEncoder`.
        photo: Bytes, `(h, w, 3)`, as `ppl_vae.data.read_photo` gives them, or `(h, w)` if it is gray.
        overlap: Share of the lines and columns of a block that it has in common with the one above, or left of
            it. With more of it a code is given more codes, and there are 1 / (1 - overlap)^2 times as many
            blocks. But more codes are near the lower and right border of their block then, and these cost
            more if the prior was fitted to patches, where such codes depend on the padding of the encoder. It
            does nothing where codes are independent.
        most_pixels: Most pixels of a tile.

    Returns:
        The file, and its numbers.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: The pair has no such codes, or the photo is no tensor of bytes.
        ValueError: The photo has the wrong shape, or `overlap` is out of its range.

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
    require_count("most_pixels", most_pixels, 1)
    _require_overlap(overlap)
    library = require_constriction("compressed photos", "compress")
    parts = _Parts.of(model)
    encoder = getattr(guide, "encoder", None)
    if not isinstance(encoder, PictureEncoder):
        raise TypeError(
            f"compress_photo needs a guide that encodes pictures of any size, a QuantizingEncoder with "
            f"ConvolutionalGrid, got {described(guide)}"
        )
    pixels = _as_pixels(photo, parts.channels)
    height, width = pixels.shape[-2:]
    with Pair(model, guide).mode(training=False), torch.no_grad():
        z = _encoded(guide, encoder, pixels, most_pixels)
    with exact_copy(model) as exact:
        shared = _shared(exact, parts.block, overlap)
        writer = _Counting(Writer(library))
        _code(exact, z, shared, writer)
        payload = writer.coder.data()
        header = _HEADER.pack(
            _MAGIC, _VERSION, height, width, *shared, name_of_decoder(exact), _sum_of(z)
        )
    data = sealed(header, payload)
    size = (height, width, z.numel(), parts.codes)
    return CompressedPhoto(*size, writer.rate, writer.bits, len(payload), data)


def decompress_photo(
    model: nn.Module,
    data: bytes | bytearray | memoryview,
    *,
    most_pixels: int = MOST_PIXELS,
    most_numbers: int = _MOST_NUMBERS,
) -> Tensor:
    """Reads what `compress_photo` wrote, and decodes it: the mean of p(x | z), rounded.

    The codes are exactly those that were written. The picture may differ by a rounding from machine to machine.

    Args:
        model: The same model: its weights, the vectors of its codes, and its settings.
        data: The file.
        most_pixels: Most pixels of a tile.
        most_numbers: Most numbers of the photo, height x width x channels, that are accepted.

    Returns:
        Bytes, `(h, w, 3)`, or `(h, w)` of a model of gray pictures.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `data` are no bytes, or the model has no such codes.
        ValueError: The file is damaged, of another version or model, or has too many numbers; or this machine
            computes other probabilities than that on which it was written.
    """
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
        raise ValueError(f"this {_WHAT} has a header that nobody writes: get it again")
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
            raise ValueError(f"this {_WHAT} has a header that nobody writes: get it again")
        z = torch.zeros(*grid, *parts.inner, dtype=torch.long)
        try:
            _code(exact, z, (shared[0], shared[1]), reader)
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
class _Parts:
    """What is asked of a model.

    Attributes:
        decoder: Its decoder.
        channels: Channels of a picture.
        codes: K.
        block: Height and width of the grid that the prior knows.
        inner: What else a code has: `(depth,)` of a residual quantizer.
    """

    decoder: PictureDecoder
    channels: int
    codes: int
    block: tuple[int, int]
    inner: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module) -> _Parts:
        decoder, positions = getattr(model, "decoder", None), getattr(model, "positions", None)
        shape, quantizer = getattr(model, "data_shape", ()), getattr(model, "quantizer", None)
        context = getattr(model, "context", None)
        if context is not None:
            raise TypeError(
                f"compressed photos need a VQVAE, whose prior is p(z), but that of {type(model).__name__} is "
                f"p(z | c), with {context}: a photo comes without any"
            )
        if not isinstance(decoder, PictureDecoder) or positions is None or quantizer is None:
            raise TypeError(
                "compressed photos need a VQVAE whose network is ConvolutionalGrid: one grid of codes, for "
                f"pictures of any size; got {described(model)}"
            )
        channels = math.prod(shape[:-2])
        if channels not in (1, 3):
            raise TypeError(
                f"compressed photos need a model of pictures with 1 channel or 3, but {type(model).__name__} "
                f"has rows of shape {tuple(shape)}"
            )
        height, width, *inner = positions
        return cls(decoder, channels, quantizer.codes, (height, width), tuple(inner))


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


def _encoded(guide: Any, encoder: PictureEncoder, pixels: Tensor, most_pixels: int) -> Tensor:
    """The codes of a picture, `(h', w', *inner)`, tile by tile."""
    stride, device = encoder.stride, next(encoder.parameters()).device
    below, right = (-side % stride for side in pixels.shape[-2:])
    pixels = pad(pixels.unsqueeze(0), (0, right, 0, below), mode="replicate")[0]
    height, width = pixels.shape[-2:]
    found: Tensor | None = None
    for tile in tiles(height, width, radius=encoder.radius, stride=stride, most_pixels=most_pixels):
        seen = pixels[(slice(None), *tile.seen)].to(device)
        z = guide.codes(seen.reshape(1, *encoder.data_shape[:-2], *seen.shape[-2:]))[0].cpu()
        if found is None:
            found = z.new_zeros(height // stride, width // stride, *z.shape[2:])
        inside, kept = (
            tuple(slice(s.start // stride, s.stop // stride) for s in part)
            for part in (tile.inside, tile.kept)
        )
        found[kept] = z[inside]
    assert found is not None
    return found


def _decoded(model: Any, parts: _Parts, z: Tensor, most_pixels: int) -> Tensor:
    """The picture of codes, bytes `(channels, h, w)`, tile by tile."""
    stride, device = parts.decoder.stride, next(parts.decoder.parameters()).device
    height, width = z.shape[:2]
    picture = torch.zeros(parts.channels, height * stride, width * stride, dtype=torch.uint8)
    most = max(1, most_pixels // stride**2)
    for tile in tiles(height, width, radius=parts.decoder.radius, most_pixels=most):
        p = model.decode(z[tile.seen].unsqueeze(0).to(device))
        mean = p.mean.reshape(parts.channels, *p.mean.shape[-2:]).cpu()
        inside, kept = (
            tuple(slice(s.start * stride, s.stop * stride) for s in part)
            for part in (tile.inside, tile.kept)
        )
        values = (255 * mean[(slice(None), *inside)]).round().clamp(0, 255)
        picture[(slice(None), *kept)] = values.to(torch.uint8)
    return picture


# -- codes in the file -----------------------------------------------------------------------------------


def _code(model: Any, z: Tensor, shared: tuple[int, int], coder: TableCoder) -> None:
    """Writes the codes of a picture, or reads them: the blocks of a diagonal together.

    Args:
        model: The model, in double precision.
        z: What is written, or filled, `(h, w, *inner)`.
        shared: How many lines a block has in common with the one above it, and columns with that on its left.
        coder: What writes or reads.
    """
    block = _Parts.of(model).block
    sides = [_cuts(*each) for each in zip(z.shape, block, shared, strict=False)]
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
    most = max(1, _MOST_CODES // math.prod([*block, *z.shape[2:]]))
    for front in fronts:
        for first in range(0, len(front), most):
            _code_blocks(model.prior(), z, block, front[first : first + most], coder)


class _Cut(NamedTuple):
    """Where a block is along one side of the grid, and the first of its lines that no block before it has."""

    start: int
    new: int


def _cuts(length: int, block: int, shared: int) -> list[_Cut]:
    """The blocks along one side of the grid, which share so many lines, or some more.

    Where they share any, the last one ends with the grid, and the others are moved evenly: none of what they
    could read is beyond the grid.
    """
    if not shared or length <= block:
        return [_Cut(start, start) for start in range(0, length, block)]
    count = math.ceil((length - block) / (block - shared)) + 1
    starts = [i * (length - block) // (count - 1) for i in range(count)]
    return [_Cut(0, 0), *(_Cut(s, before + block) for before, s in pairwise(starts))]


def _code_blocks(
    prior: Any,
    z: Tensor,
    block: tuple[int, int],
    where: Sequence[tuple[_Cut, _Cut]],
    coder: TableCoder,
) -> None:
    """Writes or reads the codes of some blocks, one position after the other.

    Args:
        prior: The distribution of a block.
        z: The grid. Of each block, what other blocks have before it is known, and the rest is filled.
        block: Height and width of a block.
        where: The blocks.
        coder: What writes or reads.
    """
    places = []
    for side, length in enumerate(block):
        starts, new = torch.tensor([cuts[side] for cuts in where]).unsqueeze(-1).unbind(1)
        line = starts + torch.arange(length)
        places.append((line, line < z.shape[side], line >= new))
    (row, row_in, row_new), (column, column_in, column_new) = places
    inside = row_in[:, :, None] & column_in[:, None]
    new = inside & row_new[:, :, None] & column_new[:, None]
    at = row.clamp(max=z.shape[0] - 1)[:, :, None], column.clamp(max=z.shape[1] - 1)[:, None]
    each = z[at]  # (blocks, *block, *inner)
    inner = each.shape[3:]

    def flat(mask: Tensor) -> Tensor:
        """Of all codes of a block, in their order, `(positions, blocks)`."""
        return mask[(..., *[None] * len(inner))].expand(each.shape).flatten(1).T.contiguous()

    order, written, beyond = each.flatten(1).T.contiguous(), flat(new), flat(~inside)
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
            # Beyond the photo, what is likeliest: the prior reads it, and nobody writes it.
            chosen[outside] = logits[outside].argmax(-1)
        place += 1
        return chosen

    p = prior.expand((len(where),))
    if _reads_codes(p):
        p.by_parts(choose)
    else:
        logits = _logits_of(p).flatten(1, -2).transpose(0, 1)[written]
        order[written] = _coded(coder, order[written], logits)
    z[tuple(index.expand(new.shape)[new] for index in at)] = order.T.reshape(each.shape)[new]


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
    if not _reads_codes(model.prior()):
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


def _sum_of(z: Tensor) -> int:
    return zlib.crc32(z.contiguous().numpy().astype("<i8").tobytes())
