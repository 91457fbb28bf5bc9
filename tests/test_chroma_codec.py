"""Colors written and read again, against log P(y | x)."""

from __future__ import annotations

import builtins
import math
import struct
import zlib
from typing import Any, cast

import pytest
import torch
from all_pairs import all_pairs
from torch import Tensor

from ppl_vae.coloring import compress_colors, decompress_colors
from ppl_vae.colors import chroma_interval, luma_after_green, split_colors
from ppl_vae.data import Photo
from ppl_vae.distributions import ChromaLogistic, PottsGrid, ScanLines
from ppl_vae.models.colorization import (
    Colors,
    IndependentSegments,
    LatentColors,
    LumaColors,
    Palette,
    PictureColors,
    PottsSegments,
    ScanLineSegments,
    SegmentedColors,
)
from ppl_vae.networks import UNet

SMALL = UNet((4, 8))
HEADER = 37
COLORS: list[Colors] = [Palette(), LumaColors(hidden=4), PictureColors(SMALL), LatentColors()]


def built(kind: type[SegmentedColors], colors: Colors, noise: float = 0.3) -> SegmentedColors:
    """With parameters that are not those of the start."""
    torch.manual_seed(0)
    model = kind(3, colors, SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    return model


def photo(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Luma and chroma of colored areas with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = 6 * torch.randn(1, 3, height, width, generator=generator)
    rgb = (smooth + noise).round().clamp(0, 255).byte()[0]
    return split_colors(rgb.movedim(0, -1))


def as_rows(luma: Tensor, chroma: Tensor) -> tuple[Tensor, Tensor]:
    return chroma[None].double(), luma[None].double()


def bits(model: SegmentedColors, luma: Tensor, chroma: Tensor) -> float:
    with torch.no_grad():
        return -float(model.log_evidence(*as_rows(luma, chroma))) / math.log(2.0)


def rewritten(data: bytes, at: int, new: bytes) -> bytes:
    """With other bytes in the header, and the checksum of those: as a stranger may write it."""
    head = data[: HEADER - 4]
    head = head[:at] + new + head[at + len(new) :]
    return head + struct.pack("<I", zlib.crc32(data[HEADER:], zlib.crc32(head))) + data[HEADER:]


def name_of(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return (value if isinstance(value, type) else type(value)).__name__


@pytest.mark.parametrize(
    ("kind", "colors", "shape"),
    all_pairs(
        [IndependentSegments, ScanLineSegments, PottsSegments],
        COLORS,
        [(1, 1), (1, 9), (9, 1), (5, 7)],
    ),
    ids=name_of,
)
def test_what_is_read_is_what_was_written(
    kind: type[SegmentedColors], colors: Colors, shape: tuple[int, int]
) -> None:
    if kind is PottsSegments:
        shape = min(shape[0], 3), min(shape[1], 4)
    model = built(kind, colors)
    luma, chroma = photo(*shape)
    data = compress_colors(model, (luma, chroma))
    found = decompress_colors(model, luma, data)
    assert found.dtype == torch.int16
    assert torch.equal(found, chroma)
    if not isinstance(colors, LatentColors):
        exact = bits(model.double(), luma, chroma)
        assert len(data) - HEADER <= exact / 8 * 1.01 + 5


@pytest.mark.slow(
    only=(
        "Palette-IndependentSegments",
        "PictureColors-IndependentSegments",
        "PictureColors-ScanLineSegments",
    )
)
@pytest.mark.parametrize("kind", [IndependentSegments, ScanLineSegments])
@pytest.mark.parametrize("colors", COLORS[:3], ids=lambda colors: type(colors).__name__)
def test_the_length_is_that_of_the_evidence(kind: type[SegmentedColors], colors: Colors) -> None:
    model = built(kind, colors, noise=0.03)  # no color costs 24 bits, where the code is shorter
    luma, chroma = photo(50, 41)
    y, x = (rows.float() for rows in as_rows(luma, chroma))
    model.initialize(y, x)
    data = compress_colors(model, Photo("a.png", chroma, luma))
    exact = bits(model.double(), luma, chroma) / 8
    assert exact - 1 <= len(data) - HEADER <= 1.01 * exact + 4
    assert torch.equal(decompress_colors(model, luma, data), chroma)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_kind_of_the_luma_does_not_matter(dtype: torch.dtype) -> None:
    model = built(IndependentSegments, COLORS[0])
    luma, chroma = photo(9, 12)
    data = compress_colors(model, Photo("a.png", chroma, luma))
    assert compress_colors(model, Photo("a.png", chroma, luma.to(dtype))) == data
    assert torch.equal(decompress_colors(model, luma.to(dtype), data), chroma)


def test_latent_colors_cost_their_shifts_and_the_evidence_given_them() -> None:
    model = built(IndependentSegments, LatentColors())
    luma, chroma = photo(50, 41)
    y, x = (rows.float() for rows in as_rows(luma, chroma))
    model.initialize(y, x)
    model = model.double()
    data = compress_colors(model, (luma, chroma))
    assert torch.equal(decompress_colors(model, luma, data), chroma)
    y, x = as_rows(luma, chroma)
    shifts, _ = model.fit_shifts(y, x)
    fine = 2 ** round(math.log2(1 + 50 * 41 / 3) / 2)
    shifts = (shifts * fine).round() / fine
    with torch.no_grad():
        log_p = model.log_evidence(y, x, shifts)
        cells = torch.distributions.Normal(0.0, 1.0)
        of_shifts = (cells.cdf(shifts + 0.5 / fine) - cells.cdf(shifts - 0.5 / fine)).log().sum()
    exact = -float(log_p + of_shifts) / math.log(2.0) / 8
    assert exact - 1 <= len(data) - HEADER <= 1.01 * exact + 4


# Margins are wider for decoders that see more, and lines are as long as a tile: each with one of the other.
@pytest.mark.slow(but=("IndependentSegments-Palette", "ScanLineSegments-LumaColors"))
@pytest.mark.parametrize(
    ("kind", "colors"),
    [
        pytest.param(kind, colors, marks=() if i == j % 2 else pytest.mark.slow)
        for i, kind in enumerate([IndependentSegments, ScanLineSegments])
        for j, colors in enumerate(COLORS)
    ],
    ids=name_of,
)
def test_tiles_cost_no_bits(kind: type[SegmentedColors], colors: Colors) -> None:
    model = built(kind, colors)
    luma, chroma = photo(61, 47)
    margin = math.ceil(model.radius / model.stride) * model.stride
    small = max((2 * margin + 4 * model.stride) ** 2, 400)
    assert small < 61 * 47
    whole = compress_colors(model, (luma, chroma))
    in_tiles = compress_colors(model, (luma, chroma), most_pixels=small)
    assert torch.equal(decompress_colors(model, luma, in_tiles), chroma)
    # Shifts are fitted to fewer pixels.
    most = 0.01 * len(whole) if isinstance(colors, LatentColors) else 4
    assert abs(len(whole) - len(in_tiles)) <= most
    with pytest.raises(ValueError, match=rf"tiles of {small} pixels, more than most_pixels=300"):
        decompress_colors(model, luma, in_tiles, most_pixels=300)


@pytest.mark.parametrize("kind", [IndependentSegments, ScanLineSegments])
def test_dark_and_bright_pixels_and_rare_colors(kind: type[SegmentedColors]) -> None:
    """Where one chroma alone is possible, and where the model finds a color nearly impossible."""
    model = built(kind, Palette())
    with torch.no_grad():
        cast(Any, model.colors).features[:, 2:4] = -30.0  # scales of 0.1 levels
    luma = torch.tensor([[0, 255, 128], [255, 255, 1], [127, 127, 64]])
    least, greatest = (room.short() for room in chroma_interval(luma))
    for green in (least, greatest):
        t = luma_after_green(luma, green)
        for orange in chroma_interval(t):
            chroma = torch.stack([orange.short(), green], -1)
            data = compress_colors(model, (luma, chroma))
            assert torch.equal(decompress_colors(model, luma, data), chroma)
            assert len(data) - HEADER <= 9 * 6 + 4
    white = torch.full((30, 30), 255)
    data = compress_colors(model, (white, torch.zeros(30, 30, 2)))
    assert len(data) <= HEADER + 4
    assert not decompress_colors(model, white, data).any()


def test_masses_are_those_of_the_density() -> None:
    torch.manual_seed(0)
    luma = torch.tensor([0.0, 1.0, 40.0, 127.0, 128.0, 254.0, 255.0]).double().unsqueeze(-1)
    loc = (150 * torch.randn(7, 50, 2)).double()
    scale = torch.logspace(-1, 6, 50).double()[:, None].expand(7, 50, 2)
    p = ChromaLogistic(luma, loc, scale, torch.randn(7, 50).double())
    green = chroma_interval(luma)[0].expand(7, 50)
    for cut in (p.of_green(), p.of_orange(green)):
        table = cut.masses(512)
        values = cut.least.unsqueeze(-1) + torch.arange(512.0).double()
        inside = (values <= cut.greatest.unsqueeze(-1)).expand(table.shape)
        cut.loc, cut.scale = cut.loc.unsqueeze(-1), cut.scale.unsqueeze(-1)
        cut.least, cut.greatest = cut.least.unsqueeze(-1), cut.greatest.unsqueeze(-1)
        exact = cut.log_prob(values).exp().expand(table.shape)
        assert torch.allclose(table[inside], exact[inside], atol=1e-12, rtol=1e-9)
        assert torch.allclose(table.sum(-1), torch.ones(7, 50).double(), atol=1e-9)
        assert not table[~inside].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (2, 4), (4, 3)])
@pytest.mark.parametrize("kind", [ScanLines, PottsGrid])
def test_predictions_multiply_to_the_sum_over_all_segmentations(
    kind: type[Any], shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    (h, w), k = shape, 3
    unary, seen = torch.randn(2, h, w, k).double(), -20 * torch.rand(2, h, w, k).double()
    same = [3 * torch.randn(2, h, w - 1).double()]
    if kind is PottsGrid:
        same.append(torch.randn(2, h - 1, w).double())
    field = kind(unary, *same)
    log_p, likelihoods, count = torch.zeros(2).double(), None, 0
    predictions = field.predictions()
    while True:
        try:
            where, log_weights = predictions.send(likelihoods)
        except StopIteration:
            break
        likelihoods = seen[:, where[0], where[1]]
        assert torch.allclose(log_weights.exp().sum(-1), torch.ones(1).double())
        log_p = log_p + (log_weights + likelihoods).logsumexp(-1).sum((-2, -1))
        count += log_weights[0, ..., 0].numel()
    assert count == h * w
    exact = kind(unary + seen, *same).log_partition - field.log_partition
    assert torch.allclose(log_p, exact, atol=1e-9)


@pytest.fixture(scope="module")
def file() -> tuple[SegmentedColors, Tensor, Tensor, bytes]:
    model = built(IndependentSegments, Palette())
    luma, chroma = photo(11, 13)
    return model, luma, chroma, compress_colors(model, (luma, chroma))


def test_every_damage_is_found(file: tuple[SegmentedColors, Tensor, Tensor, bytes]) -> None:
    model, luma, _, data = file
    for place in (*range(5, HEADER + 4), len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(ValueError, match="damaged or truncated"):
            decompress_colors(model, luma, damaged)
    for length in (5, HEADER - 1, HEADER, len(data) - 1):
        with pytest.raises(ValueError, match="damaged or truncated"):
            decompress_colors(model, luma, data[:length])
    with pytest.raises(ValueError, match="damaged or truncated"):
        decompress_colors(model, luma, data + b"\0\0\0\0")
    for other in (b"", b"ppl", b"PK\3\4" + data):
        with pytest.raises(ValueError, match="no file of compress_colors"):
            decompress_colors(model, luma, other)
    with pytest.raises(ValueError, match="version 2 of the format"):
        decompress_colors(model, luma, data[:4] + b"\2" + data[5:])
    with pytest.raises(TypeError, match="data must be the bytes of a file"):
        decompress_colors(model, luma, cast(bytes, "text"))


def test_another_picture_or_model_is_found(
    file: tuple[SegmentedColors, Tensor, Tensor, bytes],
) -> None:
    model, luma, chroma, data = file
    other = luma.clone()
    other[3, 4] += 1
    with pytest.raises(ValueError, match="another gray picture"):
        decompress_colors(model, other, data)
    with pytest.raises(ValueError, match="11 x 13 pixels, but the luma has 13 x 11"):
        decompress_colors(model, luma.T, data)
    changed = built(IndependentSegments, Palette())
    with torch.no_grad():
        cast(Any, changed.colors).features[0, 0] += 1e-6
    for wrong in (changed, built(ScanLineSegments, Palette())):
        with pytest.raises(ValueError, match="written with another model"):
            decompress_colors(wrong, luma, data)
    assert torch.equal(decompress_colors(model.double(), luma, data), chroma)
    model.float()


def test_sizes_of_strangers_are_not_believed(
    file: tuple[SegmentedColors, Tensor, Tensor, bytes],
) -> None:
    """Even if the checksum is right."""
    model, luma, chroma, data = file
    huge = struct.pack("<I", 2**32 - 1)
    for at in (5, 9):
        with pytest.raises(ValueError, match=r"but the luma has 11 x 13: give the gray picture"):
            decompress_colors(model, luma, rewritten(data, at, huge))
    # A tile of more pixels than there are is the whole picture.
    assert torch.equal(decompress_colors(model, luma, rewritten(data, 13, huge)), chroma)
    for of_tiles in (0, 1):
        with pytest.raises(ValueError, match="most_pixels"):
            decompress_colors(model, luma, rewritten(data, 13, struct.pack("<I", of_tiles)))


@pytest.mark.parametrize("seed", range(5))
def test_numbers_that_nobody_wrote_are_found(
    file: tuple[SegmentedColors, Tensor, Tensor, bytes], seed: int
) -> None:
    """As if this machine rounded otherwise: the colors are wrong, which their checksum tells."""
    model, luma, _, data = file
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (len(data) - HEADER,), generator=generator).byte().numpy().tobytes()
    with pytest.raises(ValueError, match="probabilities are rounded differently here"):
        decompress_colors(model, luma, rewritten(data[:HEADER] + noise, 0, b"pplC"))


def test_what_cannot_be_written_is_said() -> None:
    luma, chroma = photo(20, 30)
    model = built(PottsSegments, Palette())
    with pytest.raises(ValueError, match="20 x 30 pixels with 3 segments cannot be written"):
        compress_colors(model, (luma, chroma))
    model = built(IndependentSegments, Palette())
    impossible = chroma.clone()
    impossible[7, 9, 0] = 400
    with pytest.raises(ValueError, match=r"1 pixels have chroma .* row 7, column 9"):
        compress_colors(model, (luma, impossible))
    with pytest.raises(ValueError, match=r"row 0, column 0"):
        compress_colors(model, (luma, chroma + 0.5))
    with pytest.raises(ValueError, match=r"chroma must have the shape \(20, 30, 2\)"):
        compress_colors(model, (luma, chroma[1:]))
    with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
        compress_colors(model, (luma + 300, chroma))
    for wrong in ("a.png", chroma, (luma, chroma, luma), (luma.numpy(), chroma)):
        with pytest.raises(TypeError, match="photo must be a Photo, or its luma and chroma, got"):
            compress_colors(model, cast(Any, wrong))
    with torch.no_grad():
        cast(Any, model.colors).features[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        compress_colors(model, (luma, chroma))


def test_threads_and_modes_do_not_change_a_file(
    file: tuple[SegmentedColors, Tensor, Tensor, bytes],
) -> None:
    model, luma, chroma, data = file
    threads = torch.get_num_threads()
    latent = built(ScanLineSegments, LatentColors())
    before = compress_colors(latent, (luma, chroma))
    try:
        torch.set_num_threads(2)
        with torch.inference_mode(), torch.autocast("cpu"):
            assert compress_colors(model, (luma, chroma)) == data
            assert compress_colors(latent, (luma, chroma)) == before
            assert torch.equal(decompress_colors(latent, luma, before), chroma)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert model.training


def test_without_constriction_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, file: tuple[SegmentedColors, Tensor, Tensor, bytes]
) -> None:
    model, luma, chroma, data = file
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "constriction":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[colorize\]'"):
        compress_colors(model, (luma, chroma))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[colorize\]'"):
        decompress_colors(model, luma, data)
