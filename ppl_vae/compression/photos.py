"""compress_photo() and decompress_photo(): a photo as codes, at the bits that their prior says."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ppl_vae.coding import (
    Reader,
    TableCoder,
    Writer,
    WrongFileError,
    exact_copy,
    require_constriction,
    sealed,
    unsealed,
)
from ppl_vae.networks import MOST_PIXELS, PictureDecoder, PictureEncoder, tiles
from ppl_vae.pairs import Pair
from ppl_vae.runtime import described, digest, require_count
from ppl_vae.stats import Result

_MAGIC, _VERSION = b"pplP", 1

_HEADER = struct.Struct("<4sB2I8sI")
"""Magic, version, height, width, name of the model, checksum of the codes."""

_WHAT, _BY = "compressed photo", "compress_photo"


@dataclass(frozen=True)
class CompressedPhoto(Result):
    """A photo in a file, and where its bits come from.

    Attributes:
        height: Lines of the photo.
        width: Its columns.
        num_codes: Number of codes.
        codes: Number K of values of each.
        code_length: -log2 p(z): what the prior says that the codes take, bits.
        data: The file.
    """

    height: int
    width: int
    num_codes: int
    codes: int
    code_length: float
    data: bytes

    derived: ClassVar[tuple[str, ...]] = ("bits_per_pixel", "file_bits_per_pixel")
    hidden: ClassVar[tuple[str, ...]] = ("data",)

    @property
    def bits_per_pixel(self) -> float:
        """-log2 p(z) per pixel."""
        return self.code_length / (self.height * self.width)

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
            "code_length": self.code_length,
            "bits_per_pixel": self.bits_per_pixel,
            "file_bytes": len(self.data),
            "file_bits_per_pixel": self.file_bits_per_pixel,
        }

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        uniform = self.num_codes * math.log2(self.codes) / (self.height * self.width)
        return [
            ("photo", f"{self.width} x {self.height} pixels"),
            ("file", f"{len(self.data):,} bytes, {self.file_bits_per_pixel:.4f} bits per pixel"),
            ("-log2 p(z)", f"{self.bits_per_pixel:.4f} bits per pixel"),
            ("log2 K for each code", f"{uniform:.4f} bits per pixel"),
            ("codes", f"{self.num_codes:,} of {self.codes:,} values"),
        ]


def compress_photo(
    model: nn.Module, guide: nn.Module, photo: Tensor, *, most_pixels: int = MOST_PIXELS
) -> CompressedPhoto:
    """Writes the codes of a photo: what `decompress_photo` makes of them is near the photo, not the same.

    The encoder goes over the photo in tiles that overlap, and gives the codes that it would give for the photo
    at once. The grid of codes is cut into blocks of the size that the prior knows, z_b, and a range coder takes
    each code with the probability that the prior gives it after those before in its block. So the length is

        - sum_b log2 p(z_b) bits,

    but for a header of 29 bytes, 4 bytes at most at the end, and probabilities that are rounded to 24 bits. Of
    a block that reaches beyond the photo, only what is inside is written.

    Probabilities are computed by the CPU in double precision and one thread, in the same way for writing and
    reading.

    Args:
        model: A `VQVAE` of pictures that was trained on values from 0 to 1, by `ConvolutionalGrid`.
        guide: Its `QuantizingEncoder`.
        photo: Bytes, `(h, w, 3)`, as `ppl_vae.data.read_photo` gives them, or `(h, w)` if it is gray.
        most_pixels: Most pixels of a tile.

    Returns:
        The file, and its numbers.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: The pair has no such codes, or the photo is no tensor of bytes.
        ValueError: The photo has the wrong shape.

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
        writer = _Counting(Writer(library))
        _code(exact, z, writer)
        payload = writer.coder.data()
        header = _HEADER.pack(_MAGIC, _VERSION, height, width, _name_of(exact), _sum_of(z))
    data = sealed(header, payload)
    return CompressedPhoto(height, width, z.numel(), parts.codes, writer.bits, data)


def decompress_photo(
    model: nn.Module, data: bytes | bytearray | memoryview, *, most_pixels: int = MOST_PIXELS
) -> Tensor:
    """Reads what `compress_photo` wrote, and decodes it: the mean of p(x | z), rounded.

    The codes are exactly those that were written. The picture may differ by a rounding from machine to machine.

    Args:
        model: The same model.
        data: The file.
        most_pixels: Most pixels of a tile.

    Returns:
        Bytes, `(h, w, 3)`, or `(h, w)` of a model of gray pictures.

    Raises:
        ModuleNotFoundError: `constriction` is not installed.
        TypeError: `data` are no bytes, or the model has no such codes.
        ValueError: The file is damaged, of another version or model; or this machine computes other
            probabilities than that on which it was written.
    """
    require_count("most_pixels", most_pixels, 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data must be the bytes of a file, got {described(data)}")
    parts = _Parts.of(model)
    header, payload = unsealed(bytes(data), _MAGIC, _VERSION, _HEADER.size, _WHAT, _BY)
    height, width, name, of_codes = _HEADER.unpack(header)[2:]
    reader = Reader(require_constriction("compressed photos", "compress"), payload, _WHAT)
    stride = parts.decoder.stride
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    if not height * width:
        raise ValueError(f"this {_WHAT} has a header that nobody writes: get it again")
    z = torch.zeros(*grid, *parts.inner, dtype=torch.long)
    with exact_copy(model) as exact:
        if _name_of(exact) != name:
            raise ValueError(
                f"this {_WHAT} was written with another model than this {type(model).__name__}: give the one "
                "with the same weights"
            )
        try:
            _code(exact, z, reader)
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
        if not isinstance(decoder, PictureDecoder) or positions is None or quantizer is None:
            raise TypeError(
                "compressed photos need a VQVAE whose network is ConvolutionalGrid, which takes pictures of "
                f"any size, got {described(model)}"
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


def _code(model: Any, z: Tensor, coder: TableCoder) -> None:
    """Writes the codes of a picture, or reads them: all blocks together, one position after the other.

    Args:
        model: The model, in double precision.
        z: What is written, or filled, `(h, w, *inner)`.
        coder: What writes or reads.
    """
    blocks, inside, back = _blocks(z, _Parts.of(model).block)
    prior = model.prior
    order = blocks.flatten(1)
    place = 0

    def choose(p: Any) -> Tensor:
        """The codes of all blocks at the next position, from their distribution given those before."""
        nonlocal place
        tables = _logits_of(p).double().softmax(-1)
        # Beyond the photo, what is likeliest: the prior reads it, and nobody writes it.
        chosen = tables.argmax(-1)
        there = inside[:, place]
        if bool(there.any()):
            chosen[there] = coder.categorical(order[there, place], tables[there]).long()
        order[:, place] = chosen
        place += 1
        return chosen

    p = prior().expand((len(blocks),))
    if hasattr(p, "by_parts"):
        p.by_parts(choose)
    else:
        logits = _logits_of(p).flatten(1, -2)
        for each in logits.unbind(1):
            choose(torch.distributions.Categorical(logits=each))
    back(order.reshape(blocks.shape))


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


def _blocks(z: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Any]:
    """A grid in blocks, `(n, *block, *inner)`, which codes of them are there, `(n, m)`, and the way back."""
    (height, width), inner = z.shape[:2], z.shape[2:]
    down, across = math.ceil(height / block[0]), math.ceil(width / block[1])
    whole = z.new_zeros(down * block[0], across * block[1], *inner)
    there = torch.zeros(whole.shape, dtype=torch.bool)
    whole[:height, :width] = z
    there[:height, :width] = True

    def cut(grid: Tensor) -> Tensor:
        parts = grid.reshape(down, block[0], across, block[1], *inner).movedim(2, 1)
        return parts.reshape(down * across, *block, *inner)

    def back(blocks: Tensor) -> None:
        parts = blocks.reshape(down, across, *block, *inner).movedim(1, 2)
        z.copy_(parts.reshape(whole.shape)[:height, :width])

    return cut(whole).clone(), cut(there).flatten(1), back


class _Counting:
    """A coder that adds up what the probabilities say.

    Args:
        coder: What writes.

    Attributes:
        bits: -log2 of the probabilities of all numbers so far.
    """

    def __init__(self, coder: Writer) -> None:
        self.coder = coder
        self.bits = 0.0

    def categorical(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """See `TableCoder.categorical`."""
        p = tables.gather(1, numbers.long().unsqueeze(1))
        self.bits -= float(p.log2().sum())
        return self.coder.categorical(numbers, tables)


def _sum_of(z: Tensor) -> int:
    return zlib.crc32(z.contiguous().numpy().astype("<i8").tobytes())


def _name_of(model: Any) -> bytes:
    """A digest of all that the meaning of a file depends on."""
    words = [type(module).__name__ for module in model.modules()]
    state = sorted(model.state_dict().items())
    words += [name for name, _ in state] + [str(model.positions), str(model.decoder.stride)]
    words.append(digest([tensor for _, tensor in state]))
    return hashlib.sha256("\n".join(words).encode()).digest()[:8]
