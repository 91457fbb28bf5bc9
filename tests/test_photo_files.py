"""Photos as codes in files: their length is -log2 p(z), the codes come back exactly, and damage is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppl_vae import load_run, save_run
from ppl_vae.cli import main
from ppl_vae.codes import FSQ, Quantizer, RandomStart, ResidualQuantizer, VectorQuantizer
from ppl_vae.coding import SEAL
from ppl_vae.compression import compress_photo, decompress_photo, photo_error, photos
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VQVAE, CodePrior, IndependentCodes, PixelCNNPrior, UniformCodes
from ppl_vae.networks import MLP, ConvolutionalGrid, Slots

HEADER = photos._HEADER.size + SEAL


def pair_of(
    quantizer: Quantizer | None = None,
    prior: CodePrior | None = None,
    channels: int = 3,
    **network: int,
) -> tuple[Any, Any]:
    torch.manual_seed(0)
    grid = ConvolutionalGrid(**{"channels": 8, "halvings": 2, "blocks": 1, **network})
    quantizer = quantizer or VectorQuantizer(16, 4, start=RandomStart())
    model = VQVAE((channels, 16, 16), quantizer, grid, Gaussian(0.1), prior)
    guide = QuantizingEncoder(model, grid)
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.add_(
                0.3 * torch.randn_like(parameter)
            )  # a prior with opinions, codes that vary
        vectors = guide.vectors(torch.rand(8, channels, 16, 16)).reshape(-1, model.quantizer.dim)
        if isinstance(quantizer, VectorQuantizer):
            quantizer.codebook.place(vectors[:16], torch.ones(16, dtype=torch.bool))
    return model, guide


def photo_of(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


PRIORS: dict[str, CodePrior] = {
    "uniform": UniformCodes(),
    "independent": IndependentCodes(),
    "PixelCNN": PixelCNNPrior(channels=8, layers=2),
}
QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "vector": lambda: VectorQuantizer(16, 4, start=RandomStart()),
    "FSQ": lambda: FSQ((4, 4)),
    "residual": lambda: ResidualQuantizer(8, 4, 2, start=RandomStart()),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", [(16, 16), (33, 21)], ids=str)
def test_codes_come_back_and_take_the_bits_that_the_prior_says(
    quantizer: str, prior: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide = pair_of(QUANTIZERS[quantizer](), PRIORS[prior])
    photo = photo_of(*size)
    written: list[Tensor] = []
    code = photos._code

    def kept(model: Any, z: Tensor, coder: Any) -> None:
        code(model, z, coder)
        written.append(z.clone())

    monkeypatch.setattr(photos, "_code", kept)
    found = compress_photo(model, guide, photo)
    decoded = decompress_photo(model, found.data)
    assert torch.equal(*written)
    assert (found.height, found.width) == size
    assert decoded.shape == photo.shape
    payload = 8 * (len(found.data) - HEADER)
    assert found.code_length - 8 <= payload <= found.code_length + 64
    assert (
        found.num_codes
        == written[0].numel()
        == math.prod(-(-side // 4) for side in size) * (model.quantizer.depth)
    )
    if size == (16, 16):  # one block: the rate of evaluate
        x = (photo.movedim(-1, 0).float() / 255).unsqueeze(0)
        z = guide.codes(x)
        assert torch.equal(z[0], written[0])
        with torch.no_grad():
            bits = -float(model.eval().prior().log_prob(z)) / math.log(2)
            mean = (255 * model.decode(z).mean[0]).round().clamp(0, 255).movedim(0, -1)
        assert found.code_length == pytest.approx(bits, rel=1e-5)
        assert int((decoded.float() - mean).abs().max()) <= 1
    if prior == "uniform":
        assert found.code_length == pytest.approx(found.num_codes * math.log2(found.codes))


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_give_what_the_whole_photo_gives(channels: int) -> None:
    model, guide = pair_of(channels=channels)
    photo = photo_of(130, 77, channels)
    whole = compress_photo(model, guide, photo)
    tiled = compress_photo(model, guide, photo, most_pixels=60 * 60)
    assert whole.data == tiled.data
    at_once = decompress_photo(model, whole.data)
    in_parts = decompress_photo(model, whole.data, most_pixels=60 * 60)
    assert int((at_once.int() - in_parts.int()).abs().max()) <= 1  # summed in another order
    assert at_once.shape == photo.shape


@pytest.mark.parametrize(("halvings", "blocks"), [(0, 1), (1, 2), (3, 0)])
def test_margins_of_tiles_are_wide_enough(halvings: int, blocks: int) -> None:
    model, guide = pair_of(halvings=halvings, blocks=blocks)
    photo = photo_of(150, 90)
    most = 80 * 80
    assert compress_photo(model, guide, photo).data == (
        compress_photo(model, guide, photo, most_pixels=most).data
    )
    data = compress_photo(model, guide, photo).data
    pictures = [decompress_photo(model, data, most_pixels=m).int() for m in (10**6, most)]
    assert int((pictures[0] - pictures[1]).abs().max()) <= 1


def test_a_gray_photo_is_taken_as_one_with_equal_colors() -> None:
    model, guide = pair_of()
    gray = photo_of(20, 24, 1)
    found = compress_photo(model, guide, gray)
    same = compress_photo(model, guide, gray.unsqueeze(-1).expand(-1, -1, 3))
    assert found.data == same.data


def test_one_pixel_is_a_photo() -> None:
    model, guide = pair_of(prior=PixelCNNPrior(channels=8, layers=2))
    found = compress_photo(model, guide, photo_of(1, 1))
    assert found.num_codes == 1
    assert decompress_photo(model, found.data).shape == (1, 1, 3)


def test_the_models_mode_and_precision_stay_as_they_were() -> None:
    model, guide = pair_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    guide.eval()
    compress_photo(model, guide, photo_of(16, 16))
    assert model.training
    assert model.decoder.training
    assert not guide.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


def test_the_numbers_print() -> None:
    model, guide = pair_of()
    found = compress_photo(model, guide, photo_of(20, 24))
    text = str(found)
    assert "24 x 20 pixels" in text
    assert f"{len(found.data):,} bytes" in text
    assert found.to_dict()["file_bytes"] == len(found.data)
    assert "data" not in found.to_dict()


# -- what is wrong ---------------------------------------------------------------------------------------


def test_each_damaged_byte_is_found() -> None:
    model, guide = pair_of()
    data = compress_photo(model, guide, photo_of(16, 16)).data
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(ValueError, match=r"compress_photo|damaged|version"):
            decompress_photo(model, bytes(broken))
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"compress_photo|damaged|version"):
            decompress_photo(model, data[:end])


def test_another_model_is_told() -> None:
    model, guide = pair_of()
    data = compress_photo(model, guide, photo_of(16, 16)).data
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    with pytest.raises(ValueError, match="written with another model than this VQVAE"):
        decompress_photo(model, data)


def test_a_machine_that_rounds_differently_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair_of(prior=PixelCNNPrior(channels=8, layers=2))
    data = compress_photo(model, guide, photo_of(33, 40)).data
    code = photos._code

    def off(exact: Any, z: Tensor, coder: Any) -> None:
        with torch.no_grad():
            for parameter in exact.prior.parameters():
                parameter.mul_(1.01)
        code(exact, z, coder)

    monkeypatch.setattr(photos, "_code", off)
    with pytest.raises(ValueError, match="rounded differently here"):
        decompress_photo(model, data)


def test_wrong_arguments_are_told() -> None:
    model, guide = pair_of()
    with pytest.raises(TypeError, match="must be a tensor of bytes"):
        compress_photo(model, guide, torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match=r"shape \(h, w, 3\) for this model, got \(8, 8, 4\)"):
        compress_photo(model, guide, torch.zeros(8, 8, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must have the shape"):
        compress_photo(model, guide, torch.zeros(0, 8, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match="must be the bytes of a file"):
        decompress_photo(model, "photo.vq")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most_pixels"):
        compress_photo(model, guide, photo_of(8, 8), most_pixels=0)
    slots = Slots(4, MLP(hidden=(8,)))
    flat = VQVAE((3, 8, 8), VectorQuantizer(4, 2), slots, Gaussian(0.1))
    with pytest.raises(TypeError, match="whose network is ConvolutionalGrid"):
        compress_photo(flat, QuantizingEncoder(flat, slots), photo_of(8, 8))
    with pytest.raises(TypeError, match="needs a guide that encodes pictures of any size"):
        compress_photo(model, flat, photo_of(8, 8))


# -- the command line ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vq"
    save_run(folder, *pair_of())
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo, a gray one of the same name elsewhere, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo_of(21, 30).numpy()).save(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    Image.fromarray(photo_of(16, 16, 1).numpy()).save(tmp_path / "more" / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_photos_are_written_and_read_on_the_command_line(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "a.png", "more/a.png", "--run", str(run), "--out", "out"]) == 0
    told = capsys.readouterr().out
    assert sorted(file.name for file in (here / "out").iterdir()) == ["a-2.vq", "a.vq"]
    size = (here / "out" / "a.vq").stat().st_size
    assert f"30 x 21  {size:>5,}" in told
    assert "2 photos compressed: out" in told
    files = ["out/a.vq", "out/a-2.vq"]
    assert main(["decompress", *files, "--run", str(run), "--out", "back"]) == 0
    model = load_run(run).model
    for name in ("a", "a-2"):
        expected = decompress_photo(model, (here / "out" / f"{name}.vq").read_bytes())  # type: ignore[arg-type]
        assert torch.equal(torch.from_numpy(np.array(Image.open(f"back/{name}.png"))), expected)
    error = photo_error(photo_of(21, 30), torch.from_numpy(np.array(Image.open("back/a.png"))))
    assert f"{error:.2f} dB" in told


@pytest.mark.usefixtures("here")
def test_what_cannot_be_read_is_named_and_left_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run = ["--run", str(run), "--out", "out"]
    assert main(["compress", "a.png", "broken.png", *with_run]) == 1
    told = capsys.readouterr()
    assert "broken.png cannot be read" in told.err
    assert "1 of 2 photos compressed" in told.out
    assert main(["decompress", "a.png", *with_run]) == 1
    told = capsys.readouterr()
    assert "a.png: these bytes are no file of compress_photo; it is left out" in told.err
    assert "none of the 1 files can be decoded" in told.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compress", "--out", "out"], "PHOTO is missing"),
        (["compress", "a.png", "--out", "out"], "--run is missing"),
        (["decompress", "a.png", "--run", "RUN"], "--out is missing"),
        (["compress", "a.png", "--run", "RUN", "--out", "more"], "more/a.vq is there already"),
    ],
)
def test_wrong_commands_are_told(
    run: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("more/a.vq").touch()
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 2
    assert told in capsys.readouterr().err
