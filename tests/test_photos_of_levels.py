"""Photos as the codes of several grids: each level costs -log2 p given those above, and comes back exactly."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_photo_files import HEADER, MOST_LOST, kept_codes, one_copy, pair_of, photo_of, starts
from torch import Tensor

from ppl_vae import load_run, save_run
from ppl_vae.cli import main
from ppl_vae.codes import FSQ, Quantizer, RandomStart, VectorQuantizer
from ppl_vae.coding import SEAL, Writer, exact_copy, require_constriction, sealed
from ppl_vae.compression import compress_photo, decompress_photo, photos
from ppl_vae.compression.names_of_models import name_of_decoder
from ppl_vae.guides import HierarchicalQuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import (
    VQVAE2,
    CodePrior,
    IndependentCodes,
    PixelCNNPrior,
    TransformerPrior,
    UniformCodes,
)
from ppl_vae.networks import GridPyramid, Labels

PIXELS = PixelCNNPrior(channels=6, layers=2)


def levels_of(
    prior: CodePrior | Sequence[CodePrior] | None = None,
    halvings: Sequence[int] = (1, 1),
    channels: int = 3,
    side: int = 16,
    codes: Sequence[int] = (12, 8, 6),
    quantizers: Sequence[Quantizer] | None = None,
    **network: Any,
) -> tuple[Any, Any]:
    """A pair whose codes vary, with a prior that has opinions."""
    torch.manual_seed(0)
    pyramid = GridPyramid(**{"channels": 6, "halvings": halvings, "blocks": 0, **network})
    given = quantizers or [
        VectorQuantizer(k, 4, start=RandomStart()) for k in codes[: len(halvings)]
    ]
    model = VQVAE2((channels, side, side), given, pyramid, Gaussian(0.1), prior)
    guide = HierarchicalQuantizingEncoder(model, pyramid)
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
        found = guide._levels(torch.rand(8, channels, side, side))
        for quantizer, (vectors, _) in zip(reversed(given), found, strict=True):
            if isinstance(quantizer, VectorQuantizer):
                rows = vectors.flatten(0, -2)
                chosen = rows[torch.randperm(len(rows))[: quantizer.codes]]
                quantizer.codebook.place(chosen, torch.ones(len(chosen), dtype=torch.bool))
    return model, guide


def codes_of_whole(guide: Any, photo: Tensor) -> list[Tensor]:
    """What the guide says of the photo at once, with its last line and column repeated."""
    stride = guide.encoder.stride
    pixels = photo.reshape(*photo.shape[:2], -1).movedim(-1, 0).float() / 255
    below, right = (-side % stride for side in pixels.shape[1:])
    pixels = torch.cat([pixels, *[pixels[:, -1:]] * below], 1)
    pixels = torch.cat([pixels, *[pixels[:, :, -1:]] * right], 2)
    return [z[0] for z in guide.codes(pixels[None])]


PRIORS: dict[str, CodePrior | list[CodePrior]] = {
    "uniform": UniformCodes(),
    "PixelCNN": PIXELS,
    "mixed": [TransformerPrior(width=8, layers=1, heads=2), IndependentCodes(), PIXELS],
}


@pytest.mark.slow(only=("halvings0-3-mixed", "halvings2-3-PixelCNN"))
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("halvings", "channels"), [((1, 1), 3), ((2, 1), 1), ((1, 1, 1), 3)])
def test_codes_come_back_and_take_the_bits_that_the_priors_say(
    halvings: tuple[int, ...], channels: int, prior: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PRIORS[prior]
    given = given[: len(halvings)] if isinstance(given, list) else given
    model, guide = levels_of(given, halvings, channels, patch_embedding=halvings == (2, 1))
    codes = kept_codes(monkeypatch)
    count = len(halvings)
    with one_copy(model, monkeypatch):
        # Smaller than a block of 16 x 16, one block, odd, several blocks.
        for size in ((3, 5), (16, 16), (21, 30), (50, 37)):
            photo = photo_of(*size, channels)
            found = compress_photo(model, guide, photo)
            decoded = decompress_photo(model, found.data)
            whole = codes_of_whole(guide, photo)
            for expected, written, read in zip(whole, codes[:count], codes[count:], strict=True):
                assert torch.equal(expected, written)
                assert torch.equal(expected, read)
            codes.clear()
            assert found.num_codes == sum(z.numel() for z in whole)
            payload = 8 * (len(found.data) - HEADER)
            assert found.code_length - 1 <= payload <= found.code_length + MOST_LOST
            with torch.no_grad():
                mean = model.eval().decode(*(z[None] for z in whole)).mean[0]
            mean = (255 * mean[:, : size[0], : size[1]]).round().clamp(0, 255).movedim(0, -1)
            assert decoded.shape == photo.shape
            assert int((decoded.reshape(mean.shape).float() - mean).abs().max()) <= 1
            if size == (16, 16):
                bits = bits_of_a_block(model, whole)
                assert [level.rate for level in found.levels] == pytest.approx(bits, rel=1e-9)
                assert 8 * len(found.data) <= sum(bits) + 8 * HEADER + 64
    assert all(len(z.unique()) > 2 for z in whole)  # they do not all say the same
    if prior == "uniform":
        sizes = [level.num_codes * math.log2(level.codes) for level in found.levels]
        assert [level.rate for level in found.levels] == pytest.approx(sizes)


def bits_of_a_block(model: Any, z: Sequence[Tensor]) -> list[float]:
    """-log2 p(z_l | z_{l+1}, ...) of each level, from the lowest, of a picture as the model knows them."""
    prior = copy.deepcopy(model.prior).double().eval()
    rows = [each[None] for each in z]
    with torch.no_grad():
        nats = [-float(prior.given(*rows[i + 1 :]).log_prob(rows[i])) for i in range(len(z))]
    return [each / math.log(2) for each in nats]


def bits_one_by_one(
    model: Any, z: Sequence[Tensor], sides: Sequence[int], overlap: float
) -> list[float]:
    """-log2 of the probability of each code in the first block that it is in, from passes over blocks.

    Of what is above a block, all is read: beyond the photo what is likeliest there, in the first block.
    """
    prior = copy.deepcopy(model.prior).double().eval()
    top = sides[-1]
    corners = [
        (r, c)
        for r in starts(len(z[-1]), top, overlap)
        for c in starts(z[-1].shape[1], top, overlap)
    ]
    bits: list[float] = []
    above: list[Tensor] = []
    for each, side in zip(reversed(z), reversed(sides), strict=True):
        ratio, (height, width) = side // top, each.shape
        known = torch.full((height + side, width + side), -1)
        bits.insert(0, 0.0)
        for first, left in corners:
            context = [
                grid[first * n : (first + top) * n, left * n : (left + top) * n][None]
                for grid, n in zip(above, [s // top for s in sides[-len(above) :]], strict=False)
            ]
            block = torch.zeros(side, side, dtype=torch.long)
            for r, c in np.ndindex(side, side):
                at = (first * ratio + r, left * ratio + c)
                inside = at[0] < height and at[1] < width
                if inside and known[at] >= 0:
                    block[r, c] = known[at]
                    continue
                with torch.no_grad():
                    p = prior.given(*context)
                    p = (p.conditionals(block[None]) if hasattr(p, "conditionals") else p).base_dist
                    probs = p.expand((1, side, side)).probs[0, r, c]
                block[r, c] = each[at] if inside else probs.argmax()
                if known[at] < 0:
                    known[at] = block[r, c]
                if inside:
                    bits[0] -= math.log2(float(probs[each[at]]))
        above.insert(0, known)
    return bits


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize(
    ("prior", "size"),
    [("PixelCNN", (11, 26)), ("PixelCNN", (3, 26)), ("PixelCNN", (18, 9)), ("mixed", (11, 18))],
)
def test_each_code_takes_the_bits_of_a_pass_over_its_block_given_what_is_above(
    prior: str, size: tuple[int, int], overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PIXELS if prior == "PixelCNN" else [PIXELS, IndependentCodes()]
    model, guide = levels_of(given, side=8)
    codes = kept_codes(monkeypatch)
    found = compress_photo(model, guide, photo_of(*size), overlap=overlap)
    decompress_photo(model, found.data)
    assert torch.equal(codes[0], codes[2])
    assert torch.equal(codes[1], codes[3])
    expected = bits_one_by_one(model, codes[:2], (4, 2), overlap)
    assert [level.rate for level in found.levels] == pytest.approx(expected, rel=1e-9)


def test_three_levels_take_the_bits_of_passes_given_both_grids_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, guide = levels_of(PIXELS, (1, 1, 1), channels=1)
    codes = kept_codes(monkeypatch)
    found = compress_photo(model, guide, photo_of(22, 17, 1), overlap=0.5)
    expected = bits_one_by_one(model, codes, (8, 4, 2), 0.5)
    assert [level.rate for level in found.levels] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_files_are_no_longer_than_what_the_priors_say_and_a_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of photos smaller than a block of 16 x 16, of one, and of several; and with sides that are odd."""
    model, guide = levels_of([PIXELS, TransformerPrior(width=8, layers=1, heads=2)])
    with one_copy(model, monkeypatch):
        for height, width in (
            *((1, 1), (3, 2), (15, 4), (7, 41)),
            *((16, 16), (17, 16), (16, 31)),
            *((32, 48), (33, 47), (61, 64)),
        ):
            found = compress_photo(model, guide, photo_of(height, width))
            assert 8 * len(found.data) <= found.rate + 64 + 8 * HEADER, (height, width)
            assert found.rate > found.num_codes  # bits: codes vary


@pytest.mark.parametrize("several", [False, True])
def test_a_file_is_a_header_and_the_levels_from_the_highest(several: bool) -> None:
    """It is put together by hand, byte for byte: that of one grid is as it was before there were several."""
    model, guide = levels_of(PIXELS) if several else pair_of(prior=PIXELS)
    photo = photo_of(16, 14)
    writer = Writer(require_constriction("compressed photos", "compress"))
    if several:
        z = codes_of_whole(guide, photo)
    else:
        pixels = torch.cat([photo, photo[:, -1:], photo[:, -1:]], 1).movedim(-1, 0) / 255
        z = [guide.codes(pixels[None])[0]]
    with exact_copy(model) as exact, torch.no_grad():
        prior: Any = exact.prior
        for i in reversed(range(len(z))):
            p = prior.given(*(each[None] for each in z[i + 1 :])) if several else prior()
            tables = p.conditionals(z[i][None]).base_dist.probs[0].flatten(0, 1)
            for code, table in zip(z[i].flatten(), tables, strict=True):
                writer.categorical(code[None], table[None])
        name = name_of_decoder(exact)
    shared = len(z[-1]) // 4
    header = photos._HEADER.pack(b"pplP", 3, 16, 14, shared, shared, name, photos._sum_of(z))
    assert compress_photo(model, guide, photo).data == sealed(header, writer.data())


@pytest.mark.parametrize(
    ("halvings", "blocks", "patches"),
    [
        pytest.param((1, 1), 1, False, marks=pytest.mark.slow),
        ((2, 1), 0, True),
        pytest.param((1, 1, 1), 0, True, marks=pytest.mark.slow),
    ],
)
def test_tiles_give_what_the_whole_photo_gives(
    halvings: tuple[int, ...], blocks: int, patches: bool
) -> None:
    model, guide = levels_of(None, halvings, blocks=blocks, patch_embedding=patches)
    least = (2 * guide.encoder.radius + 3 * guide.encoder.stride) ** 2
    photo = photo_of(190, 170)
    assert least < photo.shape[0] * photo.shape[1] / 2
    whole, tiled = (
        compress_photo(model, guide, photo, most_pixels=most) for most in (10**6, least)
    )
    assert whole.data == tiled.data
    pictures = [decompress_photo(model, whole.data, most_pixels=m).int() for m in (10**6, 60**2)]
    assert int((pictures[0] - pictures[1]).abs().max()) <= 1  # summed in another order


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_too_few_pixels_are_told_in_pixels_and_those_advised_are_enough(several: bool) -> None:
    model, guide = levels_of() if several else pair_of()
    photo = photo_of(110, 70)
    whole = compress_photo(model, guide, photo)
    picture = decompress_photo(model, whole.data).int()
    stride = model.decoder.stride
    encoder, decoder = (
        stride * math.ceil(guide.encoder.radius / stride),
        stride * model.decoder.radius,
    )
    for margin, call in (
        (encoder, lambda most: compress_photo(model, guide, photo, most_pixels=most)),
        (decoder, lambda most: decompress_photo(model, whole.data, most_pixels=most)),
    ):
        least = (2 * margin + stride) ** 2
        assert least < 110 * 70
        told = f"most_pixels=90 leaves no room in a tile between margins of {margin} pixels"
        with pytest.raises(ValueError, match=f"{told}: choose at least {least}$"):
            call(90)
        found = call(least)
        if isinstance(found, Tensor):
            assert int((found.int() - picture).abs().max()) <= 1
        else:
            assert found.data == whole.data


@pytest.mark.slow
def test_blocks_in_several_batches_take_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = levels_of(PIXELS)
    photo = photo_of(60, 50)
    at_once = compress_photo(model, guide, photo)
    monkeypatch.setattr(photos, "_MOST_CODES", 2 * 64)
    codes = kept_codes(monkeypatch)
    found = compress_photo(model, guide, photo)
    assert found.code_length == pytest.approx(at_once.code_length, rel=1e-12)
    decompress_photo(model, found.data)
    assert all(torch.equal(*each) for each in zip(codes[:2], codes[2:], strict=True))


# -- what is above saves bits ----------------------------------------------------------------------------

SURE = 0.9


@dataclass(frozen=True)
class Copied(CodePrior):
    """Each code is the one above it with probability 0.9, or any."""

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Any = None
    ) -> torch.nn.Module:
        return _Copied(tuple(positions), codes, context)


class _Copied(torch.nn.Module):
    def __init__(self, positions: tuple[int, ...], codes: int, context: Any) -> None:
        super().__init__()
        self.positions, self.codes, self.context = positions, codes, context

    def forward(self, c: Tensor | None = None) -> Any:
        if c is None:
            logits = torch.zeros(*self.positions, self.codes, dtype=torch.double)
        else:
            above = c.long().unflatten(-1, self.context.grids[0])
            times = self.positions[0] // above.shape[-1]
            above = above.repeat_interleave(times, -1).repeat_interleave(times, -2)
            one = torch.nn.functional.one_hot(above, self.codes).double()
            logits = (SURE * one + (1 - SURE) / self.codes).log()
        return torch.distributions.Independent(torch.distributions.Categorical(logits=logits), 2)


@pytest.mark.parametrize("top", [Copied(), PIXELS], ids=["no overlap", "overlap"])
@pytest.mark.parametrize("size", [(11, 9), (2, 9), (5, 14)], ids=str)
def test_what_the_codes_above_say_is_not_paid_twice(
    size: tuple[int, int], top: CodePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that are copies of what is above, but for some: the bits of the planted probabilities."""
    torch.manual_seed(1)
    high = torch.randint(8, size)
    spread = high.repeat_interleave(2, 0).repeat_interleave(2, 1)
    others = torch.rand(spread.shape) < 0.1
    low = torch.where(others, torch.randint(8, spread.shape), spread)
    monkeypatch.setattr(photos, "_encoded", lambda *_: [low.clone(), high.clone()])
    codes = kept_codes(monkeypatch)
    photo = photo_of(4 * size[0], 4 * size[1])
    rates = []
    for lower in (Copied(), UniformCodes()):
        model, guide = levels_of([lower, top], codes=(8, 8))
        found = compress_photo(model, guide, photo)
        decompress_photo(model, found.data)
        assert torch.equal(codes[-2], low)
        assert torch.equal(codes[-1], high)
        rates.append(found.levels[0].rate)
        payload = 8 * (len(found.data) - HEADER)
        assert found.code_length - 1 <= payload <= found.code_length + MOST_LOST
    same = int((low == spread).sum())
    sure, other = SURE + (1 - SURE) / 8, (1 - SURE) / 8
    expected = -same * math.log2(sure) - (low.numel() - same) * math.log2(other)
    assert rates[0] == pytest.approx(expected, rel=1e-9)
    assert rates[1] == pytest.approx(3 * low.numel())
    assert rates[0] < 0.4 * rates[1]


# -- what is wrong, and what is told ---------------------------------------------------------------------


def test_each_damaged_byte_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = levels_of()
    data = compress_photo(model, guide, photo_of(16, 16)).data
    with one_copy(model, monkeypatch):
        for place in range(len(data)):
            broken = bytearray(data)
            broken[place] ^= 0x81
            with pytest.raises(ValueError, match=r"compress_photo|damaged|version"):
                decompress_photo(model, bytes(broken))
            with pytest.raises(ValueError, match=r"compress_photo|damaged|version"):
                decompress_photo(model, data[:place])


def test_fields_of_strangers_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = levels_of(PIXELS)
    data = compress_photo(model, guide, photo_of(20, 18)).data
    header, content = data[: HEADER - SEAL], data[HEADER:]
    magic, version, height, width, *shared, name, of_codes = photos._HEADER.unpack(header)
    assert shared == [1, 1]  # lines of the coarsest grid, a quarter of four

    def forged(*fields: Any) -> bytes:
        return sealed(photos._HEADER.pack(magic, version, *fields), content)

    with one_copy(model, monkeypatch):
        for fields, told in {
            (height, width, 4, 1, name, of_codes): "the header of this compressed photo is damaged",
            (0, width, 1, 1, name, of_codes): "the header of this compressed photo is damaged",
            (height, width, 1, 1, bytes(8), of_codes): "with another model than this VQVAE2",
            (height, width, 0, 0, name, of_codes): "rounded differently here",
            (height + 4, width, 1, 1, name, of_codes): "rounded differently here",
            (height, width, 1, 1, name, of_codes ^ 1): "rounded differently here",
            (2**31, 2**31, 1, 1, name, of_codes): "more than most_numbers=536,870,912: raise",
        }.items():
            with pytest.raises(ValueError, match=told):
                decompress_photo(model, forged(*fields))
        assert decompress_photo(model, forged(*[height, width, *shared, name, of_codes])).numel()


def test_another_model_is_told() -> None:
    quantizers = [
        [FSQ((4, 5)), FSQ((2, 3))],
        [FSQ((5, 4)), FSQ((2, 3))],
        [FSQ((4, 5)), FSQ((3, 2))],
    ]
    model, *others = (levels_of(quantizers=each)[0] for each in quantizers)
    _, guide = levels_of(quantizers=quantizers[0])
    guide._quantizers = tuple(model.quantizers)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.decoder.stages[1][0].weight.add_(1e-6)
    data = compress_photo(model, guide, photo_of(16, 16)).data
    for other in (*others, moved):
        if other is not moved:
            other.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match="written with another model than this VQVAE2"):
            decompress_photo(other, data)
    assert torch.equal(decompress_photo(copy.deepcopy(model), data), decompress_photo(model, data))


def test_a_prior_that_is_given_labels_is_refused() -> None:
    model, guide = levels_of()
    model.context = Labels(2)
    with pytest.raises(
        TypeError, match=r"whose prior is p\(z\), but that of VQVAE2 is p\(z \| c\)"
    ):
        compress_photo(model, guide, photo_of(16, 16))


def test_the_numbers_of_each_level_print() -> None:
    model, guide = levels_of(PIXELS)
    found = compress_photo(model, guide, photo_of(20, 24))
    text = str(found)
    low, high = found.levels
    assert re.search(f"of z1 given z2 +{low.rate / 480:.4f} bits per pixel", text)
    assert re.search(f"of z2 +{high.rate / 480:.4f} bits per pixel", text)
    assert "120 of 12 values, 30 of 8 values" in text
    assert found.num_codes == 150
    assert "codes" not in found.to_dict()
    with pytest.raises(AttributeError, match=r"codes of 2 levels .* read levels\[0\].codes"):
        _ = found.codes
    assert found.rate == low.rate + high.rate
    assert found.to_dict()["levels"][1] == high._asdict()
    one = compress_photo(*pair_of(), photo_of(20, 24))
    assert "levels" not in one.to_dict()
    assert one.codes == one.levels[0].codes == one.to_dict()["codes"] == 16
    assert "z1" not in str(one)


@pytest.mark.parametrize(
    "halvings",
    [
        (5,),
        pytest.param((3, 2), marks=pytest.mark.slow),
        (2, 2, 1),
        pytest.param((3, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_photos_of_more_than_512_by_512_need_no_option(
    halvings: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of usual depth read more around a position than there was room for."""
    monkeypatch.chdir(tmp_path)
    side = 2 ** sum(halvings)
    if len(halvings) > 1:
        model, guide = levels_of(None, halvings, 1, side, blocks=2)
    else:
        model, guide = pair_of(None, None, 1, side, halvings=halvings[0], blocks=8)
    assert 2 * guide.encoder.radius > 512
    save_run("run", model, guide)
    photo = photo_of(520, 600, 1)
    Image.fromarray(photo.numpy()).save("a.png")
    assert main(["compress", "a.png", "--run", "run", "--out", "out"]) == 0
    assert main(["decompress", "out/a.vq", "--run", "run", "--out", "back"]) == 0
    padded = torch.nn.functional.pad(
        photo[None] / 255, (0, -600 % side, 0, -520 % side), "replicate"
    )
    whole = guide.codes(padded[None])
    with torch.no_grad():
        mean = (
            model.eval()
            .decode(*([whole] if isinstance(whole, Tensor) else whole))
            .mean[0, 0, :520, :600]
        )
    back = torch.from_numpy(np.array(Image.open("back/a.png")))
    assert int(((255 * mean).round().clamp(0, 255) - back).abs().max()) <= 1


def test_photos_are_written_and_read_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, guide = levels_of(patch_embedding=True)
    save_run("run", model, guide)
    Image.fromarray(photo_of(21, 30).numpy()).save("a.png")
    Image.fromarray(photo_of(16, 16, 1).numpy()).save("b.png")
    assert main(["compress", "a.png", "b.png", "--run", "run", "--out", "out"]) == 0
    assert "2 photos compressed: out" in capsys.readouterr().out
    assert main(["decompress", "out/a.vq", "out/b.vq", "--run", "run", "--out", "back"]) == 0
    loaded: Any = load_run("run").model
    for name in ("a", "b"):
        expected = decompress_photo(loaded, Path(f"out/{name}.vq").read_bytes())
        assert torch.equal(torch.from_numpy(np.array(Image.open(f"back/{name}.png"))), expected)
