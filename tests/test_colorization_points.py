"""The objective of `analyses/colorization.py` for latent colors, against the sum over all segmentations."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from scripts import ROOT
from torch.distributions import kl_divergence

from ppl_vae.colors import split_colors
from ppl_vae.data import Photo, PhotoData, Photos
from ppl_vae.guides import WithinPicture
from ppl_vae.models import IndependentSegments, LatentColors
from ppl_vae.networks import UNet
from ppl_vae.objectives import MeanFieldELBO
from ppl_vae.pairs import Pair, find_layout


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    return importlib.import_module("colorization_points")


@pytest.mark.parametrize("beta", [1.0, 0.3, 3.0])
def test_the_best_segments_at_each_weight(beta: float, points: object) -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(-3, 4, (2, 2, 3, 2), generator=generator).double()
    x = torch.randint(100, 150, (2, 2, 3), generator=generator).double()
    torch.manual_seed(0)
    model = IndependentSegments(3, LatentColors(), UNet((4,))).double()
    guide = WithinPicture(model).double()
    pair = Pair(model, guide)
    objective = points.SummedSegmentsELBO(beta=beta)  # type: ignore[attr-defined]
    with pair.scope():
        layout = find_layout(pair, (y, x))
        torch.manual_seed(5)
        found = objective(pair, layout, (y, x), beta)
        torch.manual_seed(5)
        plain = MeanFieldELBO()(pair, layout, (y, x), 1.0)
    assert torch.equal(found.elbo, plain.elbo)
    site = found.traces[0][1].nodes["shifts"]
    every = torch.tensor(list(itertools.product(range(3), repeat=6))).reshape(-1, 1, 2, 3)
    every = every.expand(-1, 2, 2, 3)
    shifts = site["value"].expand(len(every), *site["value"].shape)
    log_p = model.decode(every, x, shifts).log_prob(y)
    log_prior = model.prior(x).log_prob(every)
    # max over q(z) of E_q log P(y | z) - beta KL(q || P(z)), for these colors.
    best = beta * (log_prior + log_p / beta).logsumexp(0)
    prior = model.shifts_prior()
    assert prior is not None
    exact = beta * kl_divergence(site["fn"], prior) - best
    assert torch.allclose(found.loss, exact.mean(), atol=1e-9)
    q = (log_prior + log_p / beta).softmax(0)
    at_q = (q * (log_p - beta * (q.log() - log_prior))).sum(0)
    assert torch.allclose(at_q, best, atol=1e-9)
    slopes = torch.autograd.grad(found.loss, list(model.parameters()), allow_unused=True)
    assert all(slope is not None and bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("colors", ["palette", "luma", "picture", "mixture"])
def test_gradients_are_those_of_the_sum_over_segments(
    colors: str, beta: float, points: object
) -> None:
    """Draws of segments have the same mean, and gradients tens of times as long; a mixture had them."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(-9, 10, (2, 5, 6, 2), generator=generator).double()
    x = torch.randint(100, 150, (2, 5, 6), generator=generator).double()
    torch.manual_seed(0)
    point = points.Point(colors, segments=3, widths=(4,), beta=beta)  # type: ignore[attr-defined]
    model, guide = point.pair()
    pair = Pair(model.double(), guide.double())
    with pair.scope():
        found = point.objective()(pair, find_layout(pair, (y, x)), (y, x), beta)
    unary = model.unary(x)
    best = beta * (unary + model.log_likelihoods(y, x) / beta).logsumexp(-1).sum((-1, -2))
    assert torch.allclose(found.loss, -best.mean(), atol=1e-9)
    weights = list(model.parameters())
    ours = torch.autograd.grad(found.loss, weights, retain_graph=True)
    for one, exact in zip(ours, torch.autograd.grad(-best.mean(), weights), strict=True):
        assert torch.allclose(one, exact, atol=1e-9)


def test_a_mixture_of_one_network_is_a_density(points: object) -> None:
    """log P(y | x) is that of the mixture, and sums to 1 over a pixel's chroma."""
    torch.manual_seed(0)
    model = points.PixelMixture(3, UNet((4,)))  # type: ignore[attr-defined]
    x = torch.tensor([[[4.0, 3.0], [250.0, 2.0]]])
    room = torch.arange(-40, 41).float()
    table = torch.cartesian_prod(room, room)
    with torch.no_grad():
        p = model.color_components(x)
        y = table[:, None, None, None, None, :].expand(-1, 1, 2, 2, 3, 2)
        possible = p.support.check(y).all(-1)
        log_p = (model.unary(x) + p.log_prob(y)).logsumexp(-1)
        total = log_p.exp().masked_fill(~possible, 0.0).sum(0)
        assert torch.allclose(total, torch.ones(1, 2, 2), atol=1e-4)
        colors = table[possible[:, 0, 0, 0].nonzero()[0]].expand(1, 2, 2, 2) * 0
        exact = (model.unary(x) + p.log_prob(colors.unsqueeze(-2))).logsumexp(-1).sum()
        assert torch.allclose(model.log_evidence(colors, x), exact, atol=1e-4)
    assert len(list(model.parameters())) < len(list(IndependentSegments(3).parameters()))


def test_scores_of_other_photos_are_not_taken(points: object, tmp_path: Path) -> None:
    def photos(seed: int) -> PhotoData:
        generator = torch.Generator().manual_seed(seed)
        rgb = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        luma, chroma = split_colors(rgb)
        one = Photos([Photo("a.png", chroma, luma)])
        return PhotoData(one, one)

    sizes = {"segments": 2, "widths": (3,), "patch": 8, "patches": 8, "epochs": 1}
    point = points.Point("palette", **sizes)  # type: ignore[attr-defined]
    point.train(photos(0), tmp_path / "p")
    kept = (tmp_path / "p" / "scores.json").read_bytes()
    point.train(photos(0), tmp_path / "p")
    assert (tmp_path / "p" / "scores.json").read_bytes() == kept
    with pytest.raises(ValueError, match="was measured on other photos"):
        point.train(photos(1), tmp_path / "p")
    longer = points.Point("palette", **sizes | {"epochs": 2})  # type: ignore[attr-defined]
    for ask in (longer.train, longer.scores):
        with pytest.raises(ValueError, match="was measured with other settings: choose another"):
            ask(photos(0), tmp_path / "p")
    assert point.scores(photos(0), tmp_path / "p")["mean"]["bits"]["mean"] > 0
