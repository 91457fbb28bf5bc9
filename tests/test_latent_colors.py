"""Colors that are latent in each picture: EM within it, and log P(y | x) against quadrature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.data import simulated_regions
from ppl_vae.guides import Exact, SegmentationEncoder, WithinPicture
from ppl_vae.models import (
    IndependentSegments,
    LatentColors,
    Palette,
    PottsSegments,
    ScanLineSegments,
    TreeSegments,
)
from ppl_vae.models.colorization import SegmentedColors
from ppl_vae.models.colorization.summed_out import ColorsOfPictures
from ppl_vae.networks import UNet
from ppl_vae.pairs import PairError

SMALL = UNet((4, 8))
Rung = Callable[..., SegmentedColors]


def pictures(count: int = 3, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(-20, 20, (count, size, size, 2), generator=generator).double()
    return y, torch.randint(100, 150, (count, size, size), generator=generator).double()


def model_of(rung: Rung, segments: int) -> SegmentedColors:
    torch.manual_seed(1)
    model = rung(segments, LatentColors(), SMALL).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(
    "rung", [IndependentSegments, ScanLineSegments, partial(TreeSegments, superpixel_size=3)]
)
def test_em_within_a_picture_finds_the_most_probable_colors(rung: Rung) -> None:
    y, x = pictures()
    model = model_of(rung, 2)
    mean, scale = model.fit_shifts(y, x, steps=100)
    shifts = mean.clone().requires_grad_()
    log_joint = model.log_evidence(y, x, shifts) - 0.5 * shifts.square().sum((1, 2))
    (slope,) = torch.autograd.grad(log_joint.sum(), shifts)
    assert float((slope * scale).abs().max()) < 1e-6
    assert bool((scale < 1).all())
    log_p = [
        (model.log_evidence(y, x, c) - 0.5 * c.square().sum((1, 2))).detach()
        for steps in (1, 5, 25)
        for c in model.fit_shifts(y, x, steps)[:1]
    ]
    assert bool((log_p[0] < log_p[1]).all() and (log_p[1] < log_p[2]).all())


@pytest.mark.parametrize(
    "rung",
    [
        pytest.param(IndependentSegments, marks=pytest.mark.slow),
        pytest.param(ScanLineSegments, marks=pytest.mark.slow),
        TreeSegments,
    ],
)
def test_log_p_against_quadrature(rung: Rung) -> None:
    """One segment has two shifts: a grid over them gives log P(y | x)."""
    y, x = pictures(size=3)
    model = model_of(rung, 1)
    guide = WithinPicture(model).double()
    mean, scale = model.fit_shifts(y, x, 50)
    steps = torch.linspace(-8, 8, 33, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    shifts = mean + scale * grid.reshape(-1, 1, 1, 2)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(shifts).sum((-2, -1))
    with torch.no_grad():
        log_joint = (
            torch.cat([model.log_evidence(y, x, part) for part in shifts.split(1000)]) + normal
        )
    cell = 2 * (steps[1] - steps[0]).log() + scale.log().sum((1, 2))
    exact = log_joint.logsumexp(0) + cell
    options: dict[str, Any] = {"method": "guide", "capture": False, "progress": False}
    found = evaluate(model, guide, (y, x), num_samples=2000, seed=0, **options)
    assert torch.allclose(found.log_likelihood.values, exact, atol=0.06)
    assert bool((found.elbo.values <= exact + 0.06).all())
    assert bool((found.elbo.values > exact - 0.3).all())  # EM leaves little to gain


@pytest.mark.slow
def test_pictures_with_colors_of_their_own() -> None:
    """Segments whose colors differ from picture to picture: latent colors gain what a palette cannot."""
    segments = 3
    z, x = simulated_regions(count=80, size=16, segments=segments, seed=1)
    torch.manual_seed(0)
    true = IndependentSegments(segments, LatentColors(), SMALL)
    with torch.no_grad():
        colors = cast(Any, true.colors)
        colors.features[:, 2:4] = -1.0
        colors.features[:, 4] = 0.0
        colors.raw_spread.fill_(0.5)
        y = true.decode(z, x, torch.randn(len(x), segments, 2)).sample()
    rows, others = (y[:60], x[:60]), (y[60:], x[60:])
    log_p = {}
    for described in (Palette(), LatentColors()):
        torch.manual_seed(1)
        model = IndependentSegments(segments, described, UNet((8, 16)))
        model.initialize(*rows)
        if isinstance(described, LatentColors):
            guide = WithinPicture(model)
            options: dict[str, Any] = {"max_epochs": 12, "batch_size": 15, "learning_rate": 1e-2}
            fitted = fit(model, guide, rows, seed=0, progress=False, **options)
            found = evaluate(
                model, guide, others, num_samples=50, seed=0, method="guide", progress=False
            )
            log_p["latent"] = found.log_likelihood.mean
            assert found.elbo.mean < log_p["latent"]
            said = diagnose(model, guide, others, fit=fitted, seed=0, progress=False)
            assert said.active_units >= segments
        else:
            options = {"max_epochs": 12, "batch_size": 15, "learning_rate": 1e-2}
            fit(model, Exact(model), rows, seed=0, progress=False, **options)
            log_p["palette"] = model.log_evidence(*others).mean().item()
    assert log_p["latent"] > log_p["palette"] + 100


def test_what_latent_colors_need_is_said() -> None:
    y, x = pictures()
    model = model_of(IndependentSegments, 2)
    with pytest.raises(ValueError, match="latent in each picture: pass shifts"):
        model.log_evidence(y, x)
    with pytest.raises(TypeError, match=r"build it with colors=LatentColors\(\)"):
        IndependentSegments(2, network=SMALL).fit_shifts(y, x)
    with pytest.raises(
        PairError, match=r"does not sample: use WithinPicture\(model\) as the guide"
    ):
        fit(model.float(), SegmentationEncoder(2, SMALL), (y.float(), x.float()), progress=False)
    wide = PottsSegments(3, LatentColors(), SMALL)
    rows = torch.zeros(2, 12, 12, 2), torch.full((2, 12, 12), 100.0)
    with pytest.raises(PairError, match="use ScanLineSegments with LatentColors"):
        fit(wide, WithinPicture(wide), rows, progress=False)
    with pytest.raises(TypeError, match="needs a model with fit_shifts"):
        WithinPicture(SMALL.build(1, 1))


def test_draws_have_the_frequencies_of_their_density() -> None:
    """Of single pixels, whose chroma can be listed."""
    model = model_of(IndependentSegments, 2)
    x = torch.full((1, 1, 1), 3.0).double()
    shifts = torch.tensor([[[0.5, -0.2], [-1.0, 0.3]]]).double()
    p = ColorsOfPictures(model, x, shifts)
    torch.manual_seed(0)
    draws = p.sample((20_000,)).reshape(-1, 2)
    values, counts = draws.unique(dim=0, return_counts=True)
    with torch.no_grad():
        mass = torch.stack([p.log_prob(v.reshape(1, 1, 1, 2)) for v in values]).exp().flatten()
    error = (mass * (1 - mass) / len(draws)).sqrt()
    assert bool(((counts / len(draws) - mass).abs() < 4.5 * error + 1e-4).all())
