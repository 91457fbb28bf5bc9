"""Pictures of any size, colored and segmented tile by tile, and what is measured on photos."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from ppl_vae import evaluate
from ppl_vae.coloring import (
    color_error,
    color_picture,
    mixtures,
    score_photos,
    scores,
    segment_picture,
)
from ppl_vae.colors import split_colors, to_rgb
from ppl_vae.data import Photo, Photos
from ppl_vae.distributions import ChromaLogistic, potts_grid
from ppl_vae.guides import Exact, SegmentationEncoder, StructuredMeanField, WithinPicture
from ppl_vae.models import (
    IndependentSegments,
    LatentColors,
    LumaColors,
    Palette,
    PictureColors,
    PottsSegments,
    ScanLineSegments,
    TreeSegments,
    colorization,
)
from ppl_vae.models.colorization import SegmentedColors
from ppl_vae.networks import UNet, tiles

SMALL = UNet((3, 5))


def trained(model: Any) -> Any:
    """With weights that are no longer those of the start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def photo() -> Photo:
    """A photo of 45 x 38 pixels, with segments."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 6, 5, generator=generator)
    rgb = nn.functional.interpolate(coarse, (45, 38), mode="bicubic")[0].movedim(0, -1)
    luma, chroma = split_colors((255 * rgb.clamp(0, 1)).byte())
    return Photo("made.png", chroma, luma, (rgb[..., 0] > 0.5).long())


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    radius=st.integers(0, 7),
    stride=st.sampled_from([1, 2, 4]),
    most=st.integers(1, 3000),
)
def test_tiles_hold_each_pixel_once_with_margins(
    height: int, width: int, radius: int, stride: int, most: int
) -> None:
    margin = math.ceil(radius / stride) * stride
    most = max(most, (2 * margin + stride) ** 2)
    count = torch.zeros(height, width, dtype=torch.int)
    for tile in tiles(height, width, radius=radius, stride=stride, most_pixels=most):
        count[tile.kept] += 1
        place = torch.arange(height * width).reshape(height, width)
        assert torch.equal(place[tile.kept], place[tile.seen][tile.inside])
        assert place[tile.seen].numel() <= most
        for side, seen, kept in zip((height, width), tile.seen, tile.kept, strict=True):
            assert seen.start % stride == 0
            assert seen.start == 0 or kept.start - seen.start >= radius
            assert seen.stop == side or seen.stop - kept.stop >= radius
    assert bool((count == 1).all())


def test_tiles_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="margins of 8 pixels: choose at least 400"):
        list(tiles(100, 100, radius=7, stride=4, most_pixels=300))


@pytest.mark.parametrize(("radius", "stride"), [(9, 1), (311, 32), (599, 64)])
def test_tiles_have_room_between_wide_margins_unless_told_otherwise(
    radius: int, stride: int
) -> None:
    """At least a quarter of what is looked at is kept, and all of it is looked at in the end."""
    height, width = 4000, 3000
    cut = list(tiles(height, width, radius=radius, stride=stride))
    kept, seen = (
        [math.prod(side.stop - side.start for side in part) for part in parts]
        for parts in ([tile.kept for tile in cut], [tile.seen for tile in cut])
    )
    assert sum(kept) == height * width
    assert sum(seen) <= 4 * sum(kept)
    assert max(seen) <= max(2**18, (4 * (radius + stride) + stride) ** 2)
    assert len(cut) > 1


@pytest.mark.parametrize(
    "colors", [Palette(), LumaColors(window=5, hidden=4), PictureColors(SMALL)]
)
@pytest.mark.parametrize("most_pixels", [1300, 900])
def test_a_picture_in_tiles_gets_the_same_colors(
    colors: colorization.Colors, most_pixels: int, photo: Photo
) -> None:
    model = trained(IndependentSegments(3, colors, SMALL))
    whole = color_picture(model, photo.luma)
    cut = color_picture(model, photo.luma, most_pixels=most_pixels)
    assert len(list(tiles(45, 38, radius=model.radius, stride=2, most_pixels=most_pixels))) > 1
    assert torch.allclose(whole.mean, cut.mean, atol=1e-2)
    assert float((whole.mode != cut.mode).double().mean()) < 0.01  # ties of rounding
    assert float((whole.segments != cut.segments).double().mean()) < 0.01
    one = segment_picture(model, photo.luma, photo.chroma)
    other = segment_picture(model, photo.luma, photo.chroma, most_pixels=most_pixels)
    assert float((one != other).double().mean()) < 0.01


def test_lines_in_bands_are_those_of_the_whole_picture(photo: Photo) -> None:
    model = trained(ScanLineSegments(3, Palette(), SMALL))
    bands = list(tiles(45, 38, radius=model.radius, stride=2, most_pixels=1500))
    assert len(bands) > 1
    assert all(band.seen[1] == slice(0, 38) for band in bands)
    whole = color_picture(model, photo.luma)
    cut = color_picture(model, photo.luma, most_pixels=1500)
    assert torch.allclose(whole.mean, cut.mean, atol=1e-2)


@pytest.mark.slow
def test_colors_against_the_table_of_all_colors() -> None:
    """Mean and mode of a pixel, by a sum over all chroma that its luma leaves room for."""
    model = trained(IndependentSegments(2, LumaColors(window=1, hidden=4), SMALL))
    luma = torch.tensor([[2, 3, 250], [254, 4, 251]])
    found = color_picture(model, luma, draws=4000, seed=5)
    x = luma.float()[None]
    room = torch.arange(-40, 41).float()
    table = torch.cartesian_prod(room, room)  # (Co, Cg)
    y = table[:, None, None, None, :].expand(-1, 1, 2, 3, 2)
    with torch.no_grad():
        support = model.color_components(x).support
        possible = support.check(y.unsqueeze(-2)).all(-1)
        log_p = model.prior(x).base_dist.logits + model.color_components(x).log_prob(
            y.unsqueeze(-2)
        )
        p = log_p.logsumexp(-1).exp().masked_fill(~possible, 0.0)[:, 0]
    assert torch.allclose(p.sum(0), torch.ones(2, 3), atol=1e-4)
    mean = (p.unsqueeze(-1) * table[:, None, None, :]).sum(0)
    assert float((found.mean - mean).abs().max()) < 1.0
    error = (found.draws.float().mean(0) - mean).abs()
    assert float(error.max()) < 5 * float(found.draws.float().std(0).max()) / 4000**0.5
    # The mode is a color that is as likely as the likeliest one, or nearly.
    index = [
        [int((table == found.mode[i, j]).all(-1).nonzero()) for j in range(3)] for i in range(2)
    ]
    at_mode = torch.tensor([[float(p[index[i][j], i, j]) for j in range(3)] for i in range(2)])
    assert bool((at_mode >= 0.7 * p.amax(0)).all())


@pytest.mark.parametrize(
    "model",
    [
        ScanLineSegments(3, Palette(), UNet((3,))),
        pytest.param(PottsSegments(3, Palette(), UNet((3,))), marks=pytest.mark.slow),
        IndependentSegments(3, LatentColors(), UNet((3,))),
    ],
    ids=["lines", "wide grid", "latent colors"],
)
def test_other_models_color_too(model: Any, photo: Photo) -> None:
    model = trained(model)
    luma = photo.luma[:30, :22]
    first = color_picture(model, luma, draws=2, seed=1, most_pixels=500)
    again = color_picture(model, luma, draws=2, seed=1, most_pixels=500)
    other = color_picture(model, luma, draws=2, seed=2, most_pixels=500)
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.draws, other.draws)
    assert not torch.equal(first.draws[0], first.draws[1])
    for colors in (first.mean, first.mode, first.draws):
        rgb = first.rgb(colors)
        assert rgb.shape[-3:] == (30, 22, 3)
        assert rgb.dtype == torch.uint8
    # Drawn colors and the mode leave the luma as it is.
    for colors in (first.mode, *first.draws):
        assert torch.equal(split_colors(first.rgb(colors))[0], luma)
    assert int(segment_picture(model, luma, photo.chroma[:30, :22]).max()) < 3


def test_draws_and_mode_of_the_model_are_left_alone(photo: Photo) -> None:
    model = trained(IndependentSegments(3, Palette(), SMALL)).train()
    state = torch.random.get_rng_state()
    color_picture(model, photo.luma, draws=1)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_scores_are_those_of_evaluate_and_of_scikit_learn(photo: Photo) -> None:
    model = trained(IndependentSegments(3, Palette(), SMALL))
    turned = Photo("turned.png", photo.chroma.transpose(0, 1), photo.luma.T.contiguous())
    found = score_photos(model, Exact(model), Photos([photo, turned]), progress=False)
    pixels = photo.luma.numel()
    for i, each in enumerate((photo, turned)):
        exact = model.log_evidence(*each.rows).item()
        assert found.bits.values[i].item() == pytest.approx(-exact / pixels / math.log(2), rel=1e-5)
    rate = evaluate(model, Exact(model), photo.rows, num_samples=2, progress=False).rate.mean
    assert found.information.values[0].item() == pytest.approx(
        rate / pixels / math.log(2), rel=1e-5
    )
    coloring = color_picture(model, photo.luma)
    error = (to_rgb(photo.luma, coloring.mean).double() - to_rgb(photo.luma, photo.chroma)).square()
    assert found.rmse_mean.values[0].item() == pytest.approx(float(error.mean().sqrt()))
    assert found.psnr_mean.values[0].item() == pytest.approx(
        10 * math.log10(255**2 / float(error.mean()))
    )
    z = segment_picture(model, photo.luma, photo.chroma)
    assert photo.segments is not None
    index = adjusted_rand_score(photo.segments.flatten(), z.flatten())
    assert found.rand_with_colors.values[0].item() == pytest.approx(index)
    # A photo without segments does not count.
    assert found.rand_with_colors.values[1].isnan()
    assert found.rand_with_colors.mean == pytest.approx(index)
    assert float(found.usage.sum()) == pytest.approx(1.0)
    assert 1.0 <= found.used_segments <= 3.0
    assert "adjusted Rand index" in str(found)
    assert found.to_dict()["photo"] == {"made.png": 1, "turned.png": 1}
    assert not found.warnings


@pytest.mark.slow(only=("ScanLineSegments",))
@pytest.mark.parametrize(
    "rung",
    [IndependentSegments, ScanLineSegments, pytest.param(TreeSegments, marks=pytest.mark.slow)],
)
def test_exact_scores_in_tiles_are_those_of_evaluate(
    rung: type[SegmentedColors], photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(rung(3, Palette(), SMALL))
    guide = Exact(model)
    found = score_photos(model, guide, Photos([photo]), most_pixels=600, progress=False)
    monkeypatch.setattr(scores, "_exactly", lambda *_: None)
    whole = score_photos(model, guide, Photos([photo]), progress=False)
    for name in ("bits", "elbo", "rate", "information"):
        one, other = getattr(found, name).mean, getattr(whole, name).mean
        assert one == pytest.approx(other, rel=1e-5)
    assert found.information.mean > 0.01


@pytest.mark.parametrize("independent", [True, False])
def test_the_bits_of_wide_grids_are_those_of_the_elbo(
    independent: bool, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sums over all segmentations, of pictures of 3 x 3 pixels; nothing is drawn."""
    model = trained(PottsSegments(2, Palette(), SMALL))
    guide: Any = SegmentationEncoder(2, SMALL) if independent else StructuredMeanField(model)
    parts = [
        Photo("a.png", photo.chroma[i : i + 3, 5:8], photo.luma[i : i + 3, 5:8]) for i in (0, 20)
    ]
    narrow = score_photos(model, guide, parts, progress=False)  # sums over all of them
    assert not narrow.is_bound
    assert not narrow.notes
    every = torch.cartesian_prod(*[torch.arange(2)] * 9).reshape(-1, 1, 3, 3)
    with torch.no_grad():
        known = torch.cat([model.log_evidence(*part.rows) for part in parts]).double()
    unit = 9 * math.log(2.0)
    assert torch.allclose(-known / unit, narrow.bits.values, atol=1e-5)
    monkeypatch.setattr(potts_grid, "MOST_STATES", 0)

    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(scores, "evaluate", drawn)
    found = score_photos(model, guide, parts, progress=False)
    bounds = []
    with torch.no_grad():
        for part in parts:
            y, x = part.rows
            of_q = guide.encode(y, x).log_prob(every)
            log_p = model.decode(every, x).log_prob(y) + model.prior(x).log_prob(every)
            bounds.append(float((of_q.exp() * (log_p - of_q)).sum()))
    assert found.bits.values.tolist() == pytest.approx([-b / unit for b in bounds], rel=1e-4)
    assert torch.equal(found.bits.values, found.elbo.values)
    assert bool((found.bits.values > narrow.bits.values).all())
    assert found.is_bound
    assert "bits are those of the bound -ELBO, an upper bound of -log2 P(y | x)" in str(found)
    with pytest.raises(AssertionError, match="samples were drawn"):
        score_photos(model, guide, parts, method="auto", progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_kind_of_the_luma_does_not_matter(dtype: torch.dtype, photo: Photo) -> None:
    model = trained(IndependentSegments(3, Palette(), SMALL))
    other = Photo("other.png", photo.chroma, photo.luma.to(dtype), photo.segments)
    one, two = (score_photos(model, Exact(model), [p], progress=False) for p in (photo, other))
    assert one.bits.mean == two.bits.mean
    assert one.rmse_mean.mean == two.rmse_mean.mean


def test_photos_of_colors_that_do_not_exist_are_refused(photo: Photo) -> None:
    model = trained(IndependentSegments(3, Palette(), SMALL))
    wrong = Photo("wrong.png", photo.chroma, 255 - photo.luma)
    with pytest.raises(ValueError, match=r"wrong\.png: there are no colors"):
        score_photos(model, Exact(model), Photos([wrong]), progress=False)


def test_scores_without_segments_and_with_latent_colors(photo: Photo) -> None:
    model = trained(IndependentSegments(2, LatentColors(), SMALL))
    bare = Photo("bare.png", photo.chroma, photo.luma)
    found = score_photos(model, WithinPicture(model), Photos([bare]), num_samples=5, progress=False)
    assert "no photo has a segmentation beside it" in str(found)
    assert found.elbo.mean >= found.bits.mean - 1e-6  # bits: the other way round
    with pytest.raises(ValueError, match="no photos"):
        score_photos(model, WithinPicture(model), Photos([]), progress=False)


def test_the_error_of_the_true_colors_is_zero(photo: Photo) -> None:
    assert color_error(photo, photo.chroma) == 0.0
    gray = color_error(photo, torch.zeros_like(photo.chroma))
    truth = to_rgb(photo.luma, photo.chroma).double()
    by_hand = (truth - photo.luma[..., None].double()).square().mean().sqrt()
    assert gray == pytest.approx(float(by_hand))


@pytest.mark.parametrize(
    ("luma", "message"),
    [
        (torch.zeros(2, 2, 2), r"the shape \(h, w\), with pixels, got \(2, 2, 2\)"),
        (torch.zeros(0, 2), r"got \(0, 2\)"),
        (torch.full((2, 2), 0.5), "whole numbers from 0 to 255"),
        (torch.full((2, 2), 256), "got numbers from 256 to 256"),
    ],
)
def test_what_is_no_gray_picture_is_refused(luma: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        color_picture(IndependentSegments(2, Palette(), SMALL), luma)


def test_chroma_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chroma must have the shape \(3, 4, 2\)"):
        segment_picture(
            IndependentSegments(2, Palette(), SMALL), torch.zeros(3, 4), torch.zeros(4, 3, 2)
        )


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"longest": 0}, ValueError, "longest must be at least 1, got 0"),
        ({"longest": -3}, ValueError, "longest must be at least 1, got -3"),
        ({"longest": 2.5}, TypeError, "longest must be a whole number, got 2.5"),
        ({"longest": "a"}, TypeError, "longest must be a whole number, got the string 'a'"),
        ({"luma": None}, TypeError, r"the luma must be a tensor of shape \(h, w\), got None"),
        (
            {"chroma": [0]},
            TypeError,
            r"chroma must be a tensor of shape \(h, w, 2\), got an object",
        ),
        ({"chroma": torch.full((3, 4, 2), math.nan)}, ValueError, "12 pixels have chroma that"),
        (
            {"chroma": torch.full((3, 4, 2), 999)},
            ValueError,
            r"Y = 100 and \(Co, Cg\) = \(999, 999",
        ),
    ],
)
def test_what_cannot_be_segmented_is_said(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = IndependentSegments(2, Palette(), SMALL)
    given = {"luma": torch.full((3, 4), 100), "chroma": torch.zeros(3, 4, 2), **wrong}
    with pytest.raises(error, match=message):
        segment_picture(model, **given)
    if "chroma" not in wrong:
        del given["chroma"]
        with pytest.raises(error, match=message):
            color_picture(model, **given)


@pytest.mark.parametrize(
    ("wrong", "error"), [({"method": "foo"}, ValueError), ({"num_samples": 0}, ValueError)]
)
def test_arguments_that_are_not_needed_are_checked_too(
    wrong: dict[str, Any], error: type[Exception], photo: Photo
) -> None:
    model = IndependentSegments(2, Palette(), SMALL)
    with pytest.raises(error, match=next(iter(wrong))):
        score_photos(model, Exact(model), [photo], progress=False, **wrong)


@pytest.mark.parametrize("colors", [Palette(), LatentColors()])
def test_colors_of_a_palette_are_those_of_256_levels(
    colors: colorization.Colors, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(IndependentSegments(3, colors, SMALL))
    evaluated: list[int] = []
    log_prob = ChromaLogistic.log_prob

    def counted(self: ChromaLogistic, value: Tensor) -> Tensor:
        found = log_prob(self, value)
        evaluated.append(found.numel())
        return found

    monkeypatch.setattr(ChromaLogistic, "log_prob", counted)
    found = color_picture(model, photo.luma)
    assert set(evaluated) == {256 * 3}
    # The same with all pixels of their own.
    monkeypatch.setattr(mixtures, "of_levels", lambda _: None)
    evaluated.clear()
    whole = color_picture(model, photo.luma)
    assert set(evaluated) == {photo.luma.numel() * 3}
    assert torch.allclose(found.mean, whole.mean, atol=1e-3)
    assert float((found.mode != whole.mode).double().mean()) < 0.001  # ties


def test_colors_that_see_more_than_the_luma_have_no_table(photo: Photo) -> None:
    x = photo.luma[None].float()
    models = {
        colors: IndependentSegments(3, colors, SMALL)
        for colors in (Palette(), LumaColors(), PictureColors(SMALL))
    }
    tables = [mixtures.of_levels(model.color_components(x)) for model in models.values()]
    assert [table is None for table in tables] == [False, True, True]


@pytest.mark.parametrize("longest", [None, 20])
def test_the_luma_of_colors_is_that_of_the_picture(longest: int | None) -> None:
    """Chroma that is enlarged, or a mean, may be one that a luma leaves no room for."""
    model = trained(IndependentSegments(3, PictureColors(SMALL), SMALL))
    luma = torch.randint(0, 256, (40, 50), generator=torch.Generator().manual_seed(0))
    found = color_picture(model, luma, longest=longest, draws=1)
    for chroma in (found.mean, found.mode, found.draws[0]):
        assert torch.equal(split_colors(found.rgb(chroma))[0], luma.short())


def test_latent_colors_are_fitted_once_to_a_picture(
    photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment has one color in all tiles."""
    model: Any = trained(IndependentSegments(3, LatentColors(), UNet((3,))))
    sizes = []
    fit_shifts = model.fit_shifts

    def counted(y: Tensor, x: Tensor) -> Any:
        sizes.append(x.shape)
        return fit_shifts(y, x)

    monkeypatch.setattr(model, "fit_shifts", counted)
    cut = segment_picture(model, photo.luma, photo.chroma, most_pixels=400)
    assert sizes == [(1, 15, 13)]  # every third pixel
    assert cut.shape == (45, 38)


def test_more_segments_than_a_byte_holds_are_refused(photo: Photo) -> None:
    model = IndependentSegments(257, Palette(), UNet((3,)))
    with pytest.raises(ValueError, match="numbers up to 255, and this IndependentSegments has 257"):
        color_picture(model, photo.luma)


def test_a_photo_without_an_error_does_not_count(photo: Photo) -> None:
    """White has no other colors, so that no coloring is wrong."""
    model = trained(IndependentSegments(2, Palette(), SMALL))
    white = Photo("white.png", torch.zeros(9, 8, 2).short(), torch.full((9, 8), 255).short())
    found = score_photos(model, Exact(model), Photos([white, photo]), progress=False)
    assert found.psnr_mean.values[0].isnan()
    assert found.psnr_mean.mean == pytest.approx(float(found.psnr_mean.values[1]))
    alone = score_photos(model, Exact(model), Photos([white]), progress=False)
    assert "no photo has an error" in str(alone)
