"""Files of colors beside those of usual codecs, and the annealed mean, of `analyses/colorization_files.py`."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT
from torch import Tensor, nn

from ppl_vae.coloring import color_picture
from ppl_vae.colors import split_colors
from ppl_vae.data import Photo
from ppl_vae.distributions import ChromaLogistic
from ppl_vae.guides import MeanField
from ppl_vae.models import (
    VAE,
    IndependentSegments,
    LatentColors,
    LumaColors,
    Palette,
    PictureColors,
    PottsSegments,
    ScanLineSegments,
)
from ppl_vae.networks import UNet
from ppl_vae.pairs import marginals_of
from ppl_vae.runs import save_run

SMALL = UNet((3, 5))


@pytest.fixture
def annealing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    return importlib.import_module("colorization_annealing")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    return importlib.import_module("colorization_files")


def moved(model: Any, noise: float = 0.5) -> Any:
    """With weights that are not those of the start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def photo() -> Photo:
    """Smooth areas of all brightnesses."""
    generator = torch.Generator().manual_seed(3)
    coarse = 255 * torch.rand(1, 3, 4, 4, generator=generator)
    rgb = nn.functional.interpolate(coarse, (14, 18), mode="bicubic")[0].movedim(0, -1)
    rgb[:2], rgb[-2:] = 0, 255
    luma, chroma = split_colors(rgb.round().clamp(0, 255).byte())
    return Photo("made.png", chroma, luma)


def all_chroma() -> Tensor:
    """Every (Co, Cg) that some luma has room for, `(511 * 511, 2)`."""
    values = torch.arange(-255.0, 256.0)
    return torch.cartesian_prod(values, values)


@pytest.mark.parametrize("level", [0, 1, 30, 127, 128, 200, 254, 255])
def test_the_masses_of_a_table_are_those_of_the_mixture(annealing: Any, level: int) -> None:
    luma = torch.tensor([[float(level)]])
    weights = torch.tensor([[0.2, 0.5, 0.3]])
    loc = torch.tensor([[[40.0, -30.0], [-3.0, 2.0], [400.0, 10.0]]])
    scale = torch.tensor([[[4.0, 6.0], [0.4, 0.3], [9.0, 20.0]]])
    components = ChromaLogistic(luma, loc, scale, torch.zeros(1, 3))
    log_p, centers = annealing.table(weights, components)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    chroma = all_chroma()
    inside = components.support.check(chroma.unsqueeze(1)).all(-1)
    of_each = components.log_prob(chroma[inside].unsqueeze(1))
    exact = (weights * of_each.exp()).sum(-1)
    assert float(exact.sum()) == pytest.approx(1, abs=1e-4)
    mean = (exact.unsqueeze(-1) * chroma[inside]).sum(0)
    found = (log_p.exp().unsqueeze(-1) * centers).sum((0, 1, 2))
    assert float((mean - found).abs().max()) < annealing.STEP / 2
    # No cell has its center where there is no room, if it has any mass.
    some = centers[log_p > -30].round()
    assert bool(ChromaLogistic(luma[0], loc[0, 0], scale[0, 0]).support.check(some).all())


@pytest.mark.parametrize(
    "model",
    [
        IndependentSegments(3, Palette(), SMALL),
        ScanLineSegments(3, LumaColors(window=3, hidden=4), SMALL),
        IndependentSegments(2, PictureColors(SMALL), SMALL),
        PottsSegments(3, Palette(), SMALL),  # too wide: its marginals are those of a mean field
    ],
)
def test_the_annealed_mean_at_one_is_the_mean(annealing: Any, model: Any, photo: Photo) -> None:
    model = moved(model)
    exact = color_picture(model, photo.luma).mean
    found = annealing.annealed_mean(model, photo.luma, 1.0)
    assert float((found - exact).abs().max()) < annealing.STEP
    assert float((found - exact).abs().mean()) < 2
    in_tiles = annealing.annealed_mean(model, photo.luma, 1.0, most_pixels=10_000)
    assert torch.equal(in_tiles, found)


@pytest.mark.slow
def test_a_cold_annealed_mean_is_the_likeliest_entry(annealing: Any, photo: Photo) -> None:
    model = moved(IndependentSegments(3, Palette(), SMALL))
    found = annealing.annealed_mean(model, photo.luma, 1e-4)
    x = photo.luma[None].float()
    with torch.no_grad():
        weights = marginals_of(model.prior(x))[0].flatten(0, 1)
        p = model.color_components(x).expand((1, *photo.luma.shape, 3))
    chroma = all_chroma()
    cold = ((found + 4) / 8).floor().long().flatten(0, 1) + 40
    for i, luma in enumerate(x.flatten()):
        loc, scale, slope = (
            each[0].flatten(0, 1)[i].detach() for each in (p.loc, p.scale, p.slope.unsqueeze(-1))
        )
        own = ChromaLogistic(luma, loc, scale, slope[..., 0], validate_args=False)
        inside = chroma[own.support.check(chroma.unsqueeze(1)).all(-1)]
        log_p = (weights[i].log() + own.log_prob(inside.unsqueeze(1))).logsumexp(-1)
        # Cells of 8 by 8 levels: the mass of each is the sum over those in it, half of those at its edges.
        mass = torch.zeros(80, 80)
        for side in torch.cartesian_prod(torch.tensor([-0.1, 0.1]), torch.tensor([-0.1, 0.1])):
            cells = ((inside + 4 + side) / 8).floor().long() + 40
            mass.index_put_(tuple(cells.unbind(-1)), log_p.exp() / 4, accumulate=True)
        assert float(mass[tuple(cold[i])]) > 0.95 * float(mass.max())
    # From the mean to the mode, step by step.
    away = [
        float((annealing.annealed_mean(model, photo.luma, t) - found).square().mean())
        for t in (1.0, 0.5, 0.2)
    ]
    assert away == sorted(away, reverse=True)


def test_large_pictures_are_annealed_in_tiles(annealing: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    luma = torch.randint(0, 256, (64, 20), generator=generator)
    model = moved(IndependentSegments(2, Palette(), SMALL))
    whole = annealing.annealed_mean(model, luma, 0.5)
    cut = annealing.annealed_mean(model, luma, 0.5, most_pixels=1000)
    torch.testing.assert_close(cut, whole, atol=1e-2, rtol=0)


def test_latent_colors_are_annealed_at_the_middle_of_their_prior(
    annealing: Any, photo: Photo
) -> None:
    model = moved(IndependentSegments(3, LatentColors(), SMALL))
    x = photo.luma[None].float()
    with torch.no_grad():
        weights = marginals_of(model.prior(x))
        p = model.color_components(x, torch.zeros(1, 3, 2))
        exact = (weights.unsqueeze(-1) * p.mean).sum(-2)[0]
    found = annealing.annealed_mean(model, photo.luma, 1.0)
    assert float((found - exact).abs().max()) < annealing.STEP
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        annealing.annealed_mean(model, photo.luma, 0.0)


def test_usual_codecs_cost_what_their_files_do(files: Any, photo: Photo) -> None:
    found = {name: files.of_codec(photo, name) for name in files.CODECS}
    for name, (lossless, _, _) in files.CODECS.items():
        assert (found[name].rmse == 0) == lossless
    fine, coarse = (found[f"JPEG, quality {name}"] for name in ("95, 4:4:4", "75, 4:2:0"))
    assert fine.rmse < coarse.rmse
    # The same colors, but for the luma, which is not that of the codec.
    gray = Photo("gray.png", torch.zeros_like(photo.chroma), photo.luma)
    assert files.of_codec(gray, "JPEG, quality 95, 4:4:4").rmse < 1
    assert files.of_codec(gray, "WebP, lossless").size == 0


def test_the_file_of_a_model_costs_what_it_says(files: Any, photo: Photo) -> None:
    model: Any = IndependentSegments(3, Palette(), SMALL)
    model.initialize(*photo.rows, seed=0)  # no color is so rare that the file rounds it up
    with torch.no_grad():
        y, x = (each.double() for each in photo.rows)
        bits = -float(model.double().log_evidence(y, x)) / math.log(2)
    size = files.own_file(model, photo).size
    assert bits / 8 < size < bits / 8 + 37 + 5


def test_vividness_is_the_length_of_chroma(files: Any) -> None:
    assert files.vividness(torch.tensor([[[3, 4], [3, 4]]])) == pytest.approx(5)


def test_a_run_of_another_model_is_refused(files: Any, tmp_path: Path) -> None:
    save_run(tmp_path / "other", VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2))
    with pytest.raises(ValueError, match=r"other is a run of VAE, which is no model of colors"):
        files.diversity(run=tmp_path / "other", output=tmp_path / "a.png")
