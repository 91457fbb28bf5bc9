"""A prior of codes is fitted to those in the middle of larger pictures, which know what is around."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from ppl_vae import refit_prior
from ppl_vae.cli import fitted_prior
from ppl_vae.cli.setup import load_rows
from ppl_vae.codes import RandomStart, ResidualQuantizer, VectorQuantizer
from ppl_vae.guides import HierarchicalQuantizingEncoder, QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VQVAE, VQVAE2, ConditionalVQVAE, IndependentCodes, PixelCNNPrior
from ppl_vae.networks import ConvolutionalGrid, GridPyramid, Labels
from ppl_vae.training import margins

NETWORK = ConvolutionalGrid(channels=6, halvings=2, blocks=1)
PLACES = [(16, 16), (24, 16), (28, 32), (16, 40)]
"""Of patches of 16 x 16 pixels in a photo: more than the 11 pixels that a code sees from its border."""


def patches(photo: Tensor, margin: int) -> Tensor:
    """The patches, with a margin, `(n, 3, 16 + 2 margin, 16 + 2 margin)`."""
    side = 16 + 2 * margin
    return torch.stack(
        [photo[:, r - margin :, c - margin :][:, :side, :side] for r, c in PLACES]
    ).double()


def made(
    conditional: bool = False, depth: int = 1, temperature: float = 0.0
) -> tuple[Any, QuantizingEncoder, Tensor]:
    """A pair of patches, and a photo."""
    torch.manual_seed(0)
    quantizer: Any = (
        VectorQuantizer(5, 3, start=RandomStart())
        if depth == 1
        else ResidualQuantizer(5, 3, depth, start=RandomStart())
    )
    kind: Any = ConditionalVQVAE if conditional else VQVAE
    options: dict[str, Any] = {"context": Labels(2)} if conditional else {}
    model = kind((3, 16, 16), quantizer, NETWORK, Gaussian(), **options).double()
    guide = QuantizingEncoder(model, NETWORK, temperature).double()
    # Vectors of a fresh encoder are near each other: codes among them.
    photo = torch.rand(3, 72, 80, dtype=torch.float64)
    with torch.no_grad():
        vectors = guide.encoder(photo[None]).flatten(0, -2)
        for level in [quantizer] if depth == 1 else quantizer._levels():
            level.codebook.points.copy_(vectors[torch.randperm(len(vectors))[:5]])
            vectors = vectors - level.embed(level.nearest(vectors))
    return model, guide, photo


@pytest.mark.parametrize("depth", [1, 2])
def test_the_codes_of_a_margin_are_those_of_the_photo(depth: int) -> None:
    model, guide, photo = made(depth=depth)
    whole = guide.codes(photo[None])[0]
    shares = torch.zeros(4, 4, *[depth][depth == 1 :], 5, dtype=torch.float64)
    for r, c in PLACES:
        z = whole[r // 4 : r // 4 + 4, c // 4 : c // 4 + 4]
        shares += torch.nn.functional.one_hot(z, 5) / len(PLACES)
    prior = IndependentCodes(pseudocount=1e-9)
    with_margin = refit_prior(model, guide, patches(photo, 12), prior)
    alone = refit_prior(model, guide, patches(photo, 0), prior)
    found = with_margin.prior().base_dist.probs
    torch.testing.assert_close(found, shares, atol=1e-6, rtol=0)
    assert (
        float((alone.prior().base_dist.probs.detach() - shares).abs().max()) > 0.2
    )  # zeros beyond the border
    assert len(with_margin.prior.fitted.rate.values) == len(PLACES)


@pytest.mark.parametrize("halvings", [(1, 1), (1, 1, 1)], ids=str)
def test_the_codes_of_all_levels_are_those_of_the_photo(halvings: tuple[int, ...]) -> None:
    """Of each grid the same part of the photo, at places that differ by a position of the coarsest one."""
    torch.manual_seed(0)
    network = GridPyramid(4, halvings, blocks=0, patch_embedding=True)
    quantizers: list[Any] = [VectorQuantizer(5, 3, start=RandomStart()) for _ in halvings]
    model = VQVAE2((3, 16, 16), quantizers, network, Gaussian()).double()
    guide: Any = HierarchicalQuantizingEncoder(model, network).double()
    stride, margin = guide.encoder.stride, margins(guide)[0]
    assert margin >= guide.encoder.radius > margin - stride == margins(guide)[1]
    side = 2 * margin + 16
    photo = torch.rand(3, side + 16, side + 24, dtype=torch.float64)
    with torch.no_grad():
        for quantizer, (vectors, _) in zip(
            reversed(quantizers), guide._levels(photo[None]), strict=True
        ):
            rows = vectors.flatten(0, -2)
            quantizer.codebook.points.copy_(rows[torch.randperm(len(rows))[:5]])
    corners = [(0, 0), (stride, 0), (16, 16), (8, 24)]
    x = torch.stack([photo[:, r : r + side, c : c + side] for r, c in corners])
    prior = IndependentCodes(pseudocount=1e-9)
    found = refit_prior(model, guide, x, prior).prior
    alone = refit_prior(model, guide, x[..., margin:-margin, margin:-margin], prior).prior
    for i, whole in enumerate(guide.codes(photo[None])):
        own = network.strides[i]
        count = 16 // own
        shares = torch.zeros(count, count, 5, dtype=torch.float64)
        for r, c in corners:
            top, left = (r + margin) // own, (c + margin) // own
            z = whole[0, top : top + count, left : left + count]
            shares += torch.nn.functional.one_hot(z, 5) / len(corners)
        torch.testing.assert_close(found[i].logits.exp(), shares, atol=1e-6, rtol=0)
        assert float((alone[i].logits.detach().exp() - shares).abs().max()) > 0.2


def test_held_out_rows_may_have_another_margin() -> None:
    model, guide, photo = made()
    prior = PixelCNNPrior(channels=4, layers=1)
    options: dict[str, Any] = {"max_epochs": 2, "seed": 0}
    rates = [
        refit_prior(
            *(model, guide, patches(photo, 12), prior),
            validation=patches(photo, margin),
            **options,
        ).prior.fitted.validation_rate.values
        for margin in (12, 16, 0)
    ]
    assert torch.equal(rates[0], rates[1])  # the codes see 11 pixels
    assert not torch.equal(rates[0], rates[2])


def test_labels_stay_with_their_rows() -> None:
    model, guide, photo = made(conditional=True)
    x, c = patches(photo, 12), torch.tensor([0, 1, 1, 0])
    prior = IndependentCodes(pseudocount=1e-9)
    both = refit_prior(model, guide, (x, c), prior).prior
    for label in (0, 1):
        which = c == label
        own = refit_prior(model, guide, (x[which], c[which]), prior).prior
        expected = own(torch.tensor([label])).base_dist.probs
        torch.testing.assert_close(both(torch.tensor([label])).base_dist.probs, expected)


def test_what_has_no_middle_is_told() -> None:
    model, guide, photo = made()
    x = patches(photo, 6)
    with pytest.raises(
        ValueError, match=r"28 x 28 pixels, and those of VQVAE 16 x 16: .* multiple of 8 "
    ):
        refit_prior(model, guide, x, IndependentCodes())
    model, guide, photo = made(temperature=1.0)  # which draws its codes
    assert not margins(guide)
    with pytest.raises(ValueError, match="16"):
        refit_prior(model, guide, patches(photo, 12), IndependentCodes())


def test_a_run_of_patches_has_its_prior_fitted_with_a_margin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As much as the encoder sees, 12 pixels here, or as much as photos have room for, with a warning."""
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            colors = torch.randint(256, (44, 50, 3), dtype=torch.uint8)
            Image.fromarray(colors.numpy()).save(tmp_path / split / f"{i}.png")
    _, guide, _ = made()
    for size, side, words in (
        (16, 40, ""),
        (24, 40, "with a margin of 8 pixels, but the encoder sees 12"),
        (40, 40, "without a margin"),
    ):
        config = {"data": f"folder:{tmp_path}", "patch_size": size, "patches": 2}
        setup: Any = SimpleNamespace(config=config, data=load_rows(config))
        run: Any = SimpleNamespace(guide=guide)
        found, margin = fitted_prior._with_margin(setup, run)
        assert size + 2 * margin == side
        assert found.train.shape[1:] == (3, side, side)
        assert found.validation.shape[1:] == (3, side, side)
        assert len(found.train) == len(setup.data.train)
        told = capsys.readouterr().err
        assert words in told
        assert bool(told) == bool(words)


def test_only_photos_without_room_take_a_smaller_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other error is one: it was taken for a lack of room, and the prior fitted to patches alone."""
    for i in range(4):
        colors = torch.randint(256, (44 + i, 70, 3), dtype=torch.uint8)
        Image.fromarray(colors.numpy()).save(tmp_path / f"{i}.png")
    config = {"data": f"folder:{tmp_path}", "patch_size": 16, "patches": 1}
    data = load_rows(config)
    assert data.smallest_side == 44
    _, guide, _ = made()

    def of_own(config: Any) -> Any:
        raise ValueError("an error of one's own")

    monkeypatch.setattr(fitted_prior, "load_rows", of_own)
    setup: Any = SimpleNamespace(config=config, data=data)
    with pytest.raises(ValueError, match="an error of one's own"):
        fitted_prior._with_margin(setup, cast(Any, SimpleNamespace(guide=guide)))
