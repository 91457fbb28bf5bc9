"""Simple colors and segments, of `analyses/colorization_baselines.py`, against what is known."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from scripts import ROOT

from ppl_vae.coloring import compare_segments
from ppl_vae.colors import split_colors
from ppl_vae.data import Photo, Photos
from ppl_vae.distributions import ChromaLogistic


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    return importlib.import_module("colorization_baselines")


def noisy(seed: int, height: int = 20, width: int = 24) -> Photo:
    """Any colors."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    luma, chroma = split_colors(rgb)
    return Photo(f"{seed}.png", chroma, luma)


@pytest.fixture
def halves() -> Photo:
    """A dark red half and a light blue one, with their segments."""
    rgb = torch.empty(40, 48, 3, dtype=torch.uint8)
    rgb[:, :24] = torch.tensor([120, 10, 20], dtype=torch.uint8)
    rgb[:, 24:] = torch.tensor([180, 200, 255], dtype=torch.uint8)
    luma, chroma = split_colors(rgb)
    segments = torch.zeros(40, 48, dtype=torch.long)
    segments[:, 24:] = 1
    return Photo("halves.png", chroma, luma, segments)


@pytest.mark.parametrize("luma", [0, 1, 60, 127, 128, 254, 255])
def test_the_probabilities_of_a_histogram_sum_to_one(baselines: Any, luma: int) -> None:
    histogram = baselines.Histogram(Photos([noisy(0), noisy(1)]))
    room = baselines.possible(luma)
    green, orange = (each - 256 for each in room.nonzero().unbind(-1))
    chroma = torch.stack([orange, green], -1)
    whatever = torch.ones(2)
    support = ChromaLogistic(torch.tensor(luma), whatever, whatever).support
    assert bool(support.check(chroma).all())
    colors = Photo("all.png", chroma[None].short(), torch.full((1, len(chroma)), luma).short())
    p = histogram.log_prob(colors).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    # These are all colors of this luma.
    assert len(chroma) == int(support.check(every_chroma()).sum())


def every_chroma() -> torch.Tensor:
    values = torch.arange(-256, 256)
    return torch.cartesian_prod(values, values)


def test_a_histogram_knows_what_it_has_counted(baselines: Any) -> None:
    flat = Photo(
        "flat.png", torch.full((200, 200, 2), 16).short(), torch.full((200, 200), 100).short()
    )
    found = baselines.Histogram(Photos([flat]))(flat)
    assert found.rmse == 0
    # 64 colors of a bin with 40,000 counts are as likely; the other bins have half a count each.
    assert math.log2(64) < found.bits < math.log2(64) + 0.1


def test_the_mean_chroma_is_that_of_draws(baselines: Any) -> None:
    torch.manual_seed(0)
    luma = torch.randint(100, 156, (100, 200)).float()
    loc, scale = torch.tensor([20.0, -10.0]), torch.tensor([6.0, 3.0])
    p = ChromaLogistic(luma, loc.expand(100, 200, 2), scale.expand(100, 200, 2))
    photo = Photo("drawn.png", p.sample().short(), luma.short())
    found = baselines.MeanChroma(Photos([photo]))
    torch.testing.assert_close(found.mean, loc, atol=0.3, rtol=0)
    torch.testing.assert_close(found.scale, scale, atol=0, rtol=0.06)  # a step of its grid is 10 %
    own = -float(p.log_prob(photo.chroma.float()).mean()) / math.log(2)
    assert found(photo).bits == pytest.approx(own, abs=0.01)


def test_the_nearest_patch_finds_what_it_has_seen(baselines: Any) -> None:
    photos = Photos([noisy(0), noisy(1)])
    nearest = baselines.NearestPatch(photos, count=10_000, radius=2)
    for photo in photos:
        assert nearest(photo).rmse == 0
    assert nearest(noisy(2)).rmse > 10


def test_segmenters_find_two_halves(baselines: Any, halves: Photo) -> None:
    for way in (baselines.by_luma, baselines.by_lab):
        found = way(halves, 2)
        assert found.shape == (40, 48)
        assert found.dtype == np.int64
        assert len(np.unique(found)) == 2
        assert compare_segments(halves, torch.from_numpy(found))["rand"] == 1
    found = baselines.by_felzenszwalb(halves)
    assert len(np.unique(found)) == 2
    assert compare_segments(halves, torch.from_numpy(found))["rand"] == 1
    found = baselines.by_slic(halves, 2)
    assert found.shape == (40, 48)
    assert len(np.unique(found)) == 2
    assert compare_segments(halves, torch.from_numpy(found))["rand"] == 1


def test_one_segment_says_nothing(baselines: Any, halves: Photo) -> None:
    found = baselines.compared(baselines.one_segment, Photos([halves, halves]))
    assert found["rand"].mean == 0
    assert found["variation"].mean == pytest.approx(math.log(2))
    assert found["covering"].mean == 0.5


@pytest.mark.parametrize(
    "name", ["k-means on luma and texture", "k-means on Lab (sees the colors)"]
)
def test_the_best_value_is_that_of_the_best_index(baselines: Any, halves: Photo, name: str) -> None:
    value, way = baselines.best_of(name, Photos([halves]))
    assert value == 2
    assert baselines.compared(way, Photos([halves]))["rand"].mean == 1


def test_colors_without_an_error_have_an_infinite_psnr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = importlib.import_module("colorization")
    assert script._decibels(0.0) == math.inf
    assert script._decibels(25.5) == pytest.approx(20)
