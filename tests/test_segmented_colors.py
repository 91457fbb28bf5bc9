"""Latent segmentations that are summed out, against the sum over all K^9 of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from all_pairs import all_pairs
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.data import simulated_regions
from ppl_vae.guides import Exact, SegmentationEncoder, StructuredMeanField, WithinPicture
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
    TreeSegments,
    chroma,
)
from ppl_vae.networks import UNet
from ppl_vae.objectives import ELBO, ElementwiseELBO, TraceELBO
from ppl_vae.pairs import Pair, PairError, find_layout, marginals_of

K = 3
SMALL = UNet((4, 8))
Rung = Callable[..., SegmentedColors]
RUNGS: list[Rung] = [
    IndependentSegments,
    ScanLineSegments,
    PottsSegments,
    partial(TreeSegments, superpixel_size=1),
]


def name_of(rung: Any) -> str:
    name: str = getattr(rung, "func", rung).__name__
    return name


COLORS: list[Colors] = [Palette(), LumaColors(hidden=4), PictureColors(SMALL)]


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Two of 3 x 3 pixels: chroma and luma."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(-3, 4, (2, 3, 3, 2), generator=generator).double()
    return y, torch.randint(100, 150, (2, 3, 3), generator=generator).double()


@pytest.fixture(scope="module")
def segmentations() -> Tensor:
    """All of them, of both pictures, `(K^9, 2, 3, 3)`."""
    every = torch.tensor(list(itertools.product(range(K), repeat=9))).reshape(-1, 1, 3, 3)
    return every.expand(-1, 2, 3, 3)


def apart(module: nn.Module) -> nn.Module:
    """In float64, with parameters that are no longer those of the start."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def gradients(of: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
    found = torch.autograd.grad(of, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
@pytest.mark.parametrize("colors", COLORS, ids=lambda colors: type(colors).__name__)
def test_the_sum_over_all_segmentations(
    rung: Rung,
    colors: Colors,
    pictures: tuple[Tensor, Tensor],
    segmentations: Tensor,
) -> None:
    y, x = pictures
    model = apart(rung(K, colors, SMALL))
    assert isinstance(model, SegmentedColors)
    log_joint = model.prior(x).log_prob(segmentations) + model.decode(segmentations, x).log_prob(y)
    log_p = model.log_evidence(y, x)
    assert torch.allclose(log_p, log_joint.logsumexp(0), atol=1e-10)
    # Fisher's identity: the gradient of the sum is the expected one of the joint density.
    posterior = model.posterior(y, x).log_prob(segmentations)
    assert torch.allclose(posterior, log_joint - log_p, atol=1e-10)
    expected = (posterior.exp().detach() * log_joint).sum()
    for one, other in zip(gradients(log_p.sum(), model), gradients(expected, model), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_the_names_of_segments_do_not_matter(rung: Rung, pictures: tuple[Tensor, Tensor]) -> None:
    model = apart(rung(K, Palette(), SMALL))
    assert isinstance(model, SegmentedColors)
    before = model.log_evidence(*pictures)
    order = torch.tensor([2, 0, 1])
    segmenter, colors = cast(Any, model.segmenter), cast(Any, model.colors)
    for parameter in (segmenter.head.weight, segmenter.head.bias, colors.features):
        parameter.data = parameter.data[order]
    assert torch.allclose(model.log_evidence(*pictures), before, atol=1e-10)


class Closed(nn.Module):
    """Hides what the model knows of itself: a stranger's program."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor, x: Tensor) -> None:
        self.model(y, x)


@pytest.mark.slow(
    but=(
        "IndependentSegments-exact at beta-True-0.3",
        "IndependentSegments-encoder-False-1.0",
        "ScanLineSegments-exact-True-1.0",
        "ScanLineSegments-encoder-False-0.3",
        "PottsSegments-encoder-True-1.0",
        "TreeSegments-exact-True-0.3",
    )
)
@pytest.mark.parametrize(
    ("rung", "guide", "closed", "beta"),
    all_pairs(RUNGS, ["exact", "exact at beta", "encoder"], [False, True], [1.0, 0.3]),
    ids=lambda value: name_of(value) if callable(value) else str(value),
)
def test_the_elbo_of_segmentations_is_that_of_all_of_them(
    rung: Rung,
    guide: str,
    closed: bool,
    beta: float,
    pictures: tuple[Tensor, Tensor],
    segmentations: Tensor,
) -> None:
    y, x = pictures
    model = apart(rung(K, PictureColors(SMALL), SMALL))
    assert isinstance(model, SegmentedColors)
    of_guide: Any = Exact(model, beta=0.3 if guide == "exact at beta" else 1.0)
    if guide == "encoder":
        of_guide = apart(SegmentationEncoder(K, SMALL))
    pair = Pair(Closed(model) if closed else model, of_guide)
    with pair.scope():
        asked = ElementwiseELBO(beta=beta) if closed else ELBO(beta=beta)
        objective = asked.resolve(pair, pictures)
        assert isinstance(objective, ElementwiseELBO)
        loss = objective(pair, find_layout(pair, pictures), pictures, beta)
    q = of_guide.encode(y, x).log_prob(segmentations)
    log_likelihood = model.decode(segmentations, x).log_prob(y)
    ratio = q - model.prior(x).log_prob(segmentations)
    distortion, rate = (-(q.exp() * t).sum(0).mean() for t in (log_likelihood, -ratio))
    assert torch.allclose(loss.loss, distortion + beta * rate, atol=1e-10)
    for found, exact in (
        (loss.elbo, -distortion - rate),
        (loss.rate, rate),
        (loss.distortion, distortion),
    ):
        assert torch.allclose(found, exact.detach(), atol=1e-10)
    exact_gradients = gradients(distortion + beta * rate, model, of_guide)
    for one, other in zip(gradients(loss.loss, model, of_guide), exact_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_the_exact_guide_at_beta_is_the_best_one(
    rung: Rung, pictures: tuple[Tensor, Tensor], segmentations: Tensor
) -> None:
    """max_q E_q log p(y | z) - beta KL(q || p) = beta log sum_z p(z) p(y | z)^(1 / beta)."""
    y, x = pictures
    model = apart(rung(K, Palette(), SMALL))
    assert isinstance(model, SegmentedColors)
    beta = 0.3
    log_likelihood = model.decode(segmentations, x).log_prob(y)
    best = beta * (model.prior(x).log_prob(segmentations) + log_likelihood / beta).logsumexp(0)
    pair = Pair(model, Exact(model, beta=beta))
    with pair.scope():
        found = ElementwiseELBO()(pair, find_layout(pair, pictures), pictures, beta)
    assert torch.allclose(-found.loss, best.mean(), atol=1e-10)


@pytest.mark.parametrize("beta", [1.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_the_structured_mean_field_is_the_best_guide_with_independent_lines(
    beta: float, pictures: tuple[Tensor, Tensor], segmentations: Tensor
) -> None:
    y, x = pictures
    model = apart(PottsSegments(K, Palette(), SMALL))
    assert isinstance(model, PottsSegments)
    guide = StructuredMeanField(model, sweeps=30, beta=beta)
    pair = Pair(model, guide)
    with pair.scope():
        objective = ELBO(beta=beta).resolve(pair, pictures)
        assert isinstance(objective, ElementwiseELBO)
        loss = objective(pair, find_layout(pair, pictures), pictures, beta)
    log_prior = model.prior(x).log_prob(segmentations)
    log_likelihood = model.decode(segmentations, x).log_prob(y)

    def bound(q: Tensor) -> Tensor:
        found: Tensor = (q.exp() * (log_likelihood - beta * (q - log_prior))).sum(0).mean()
        return found

    found = -loss.loss.detach()
    assert torch.allclose(found, bound(guide.encode(y, x).log_prob(segmentations)), atol=1e-9)
    best = (beta * (log_prior + log_likelihood / beta).logsumexp(0)).mean()
    assert found < best
    # The gradient is that at this q, which moves no more.
    at = guide.encode(y, x).log_prob(segmentations).detach()
    for one, other in zip(gradients(-loss.loss, model), gradients(bound(at), model), strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    log_prior, log_likelihood = log_prior.detach(), log_likelihood.detach()
    # Independent pixels, the family of the amortized guide, reach less.
    logits = torch.zeros(2, 3, 3, K, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def of_pixels() -> Tensor:
        single = torch.distributions.Categorical(logits=logits)
        return bound(torch.distributions.Independent(single, 2).log_prob(segmentations))

    def step() -> Tensor:
        optimizer.zero_grad()
        minus = -of_pixels()
        minus.backward()
        return minus.detach()

    optimizer.step(step)
    assert of_pixels() < found + 1e-9


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
@pytest.mark.parametrize("exact", [True, False])
def test_evaluate_gives_the_exact_evidence_and_what_z_carries(
    rung: Rung,
    exact: bool,
    pictures: tuple[Tensor, Tensor],
    segmentations: Tensor,
) -> None:
    y, x = pictures
    model = apart(rung(K, Palette(), SMALL))
    assert isinstance(model, SegmentedColors)
    guide: Any = Exact(model) if exact else apart(SegmentationEncoder(K, SMALL))
    found = evaluate(model, guide, pictures, num_samples=4, seed=0, progress=False)
    log_p = found.log_likelihood.values
    assert torch.allclose(log_p, model.log_evidence(y, x), atol=1e-8)
    q = guide.encode(y, x).log_prob(segmentations)
    rate = (q.exp() * (q - model.prior(x).log_prob(segmentations))).sum(0)
    assert torch.allclose(found.rate.values, rate, atol=1e-8)
    if exact:
        assert torch.allclose(found.elbo.values, log_p, atol=1e-8)
    assert any("element by element" in note for note in found.notes)
    assert not found.cautions
    assert bool((found.log_likelihood_error == 0).all())


@pytest.mark.parametrize("colors", COLORS, ids=lambda colors: type(colors).__name__)
def test_initialized_segments_have_the_colors_of_clusters(colors: Colors) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[60.0, 0.0], [-40.0, 20.0], [0.0, -30.0]])
    spread = torch.tensor([4.0, 8.0])
    z = torch.randint(3, (5, 16, 16), generator=generator)
    y = (centers[z] + spread * torch.randn(5, 16, 16, 2, generator=generator)).round()
    x = torch.full((5, 16, 16), 128.0)
    model = IndependentSegments(3, colors, SMALL)
    before = model.log_evidence(y, x).mean().item()
    model.initialize(y, x, seed=0)
    assert model.log_evidence(y, x).mean().item() > before
    p = chroma(torch.full((3,), 128.0), cast(Any, model.colors).features.detach())
    order = p.loc[:, 0].argsort(descending=True)
    assert torch.allclose(p.loc[order], centers[[0, 2, 1]], atol=1.0)
    assert torch.allclose(1.81 * p.scale, spread.expand(3, 2), rtol=0.15)
    with pytest.raises(ValueError, match="only 2 pixels"):
        model.initialize(y[:1, :1, :2], x[:1, :1, :2])


@pytest.mark.slow
def test_segments_emerge_in_simulated_pictures() -> None:
    """Colored regions with a texture and a shading: nobody shows the model a segmentation.

    It is compared with a posterior that knows more: that of the true colors, with a P(z | x) that was trained
    on the true segmentations.
    """
    segments = 4
    z, x = simulated_regions(count=200, size=16, segments=segments, seed=0)
    network = UNet((8, 16, 16))
    true = IndependentSegments(segments, Palette(), network)
    angle = 2 * torch.pi * torch.arange(segments) / segments
    ones = torch.ones(segments)
    colors = [1.2 * angle.cos(), 0.6 * angle.sin(), 0.3 * ones, -0.5 * ones, 0.0 * ones]
    with torch.no_grad():
        cast(Any, true.colors).features.copy_(torch.stack(colors, 1))
        torch.manual_seed(0)
        y = true.decode(z, x).sample()
        by_color = true.log_likelihoods(y, x).argmax(-1)  # of the true model, pixel by pixel
    rows, others = (y[:160], x[:160]), (y[160:], x[160:])
    optimizer = torch.optim.Adam(true.segmenter.parameters(), 5e-3)
    for _ in range(24):
        for few in torch.randperm(160).split(20):
            loss = cross_entropy(true.unary(x[few]).movedim(-1, 1), z[few].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model = IndependentSegments(segments, Palette(), network)
    model.initialize(*rows, seed=0)
    fit(
        *(model, Exact(model), rows),
        max_epochs=16,
        batch_size=20,
        learning_rate=5e-3,
        seed=0,
        progress=False,
    )

    def agreement(of: Tensor) -> float:
        pairs = zip(z[160:], of, strict=True)
        scores = [adjusted_rand_score(t.flatten(), s.flatten()) for t, s in pairs]
        return float(sum(scores) / len(scores))

    with torch.no_grad():
        found, from_gray, shown = (
            agreement(marginals_of(of).argmax(-1))
            for of in (model.posterior(*others), model.prior(others[1]), true.posterior(*others))
        )
    assert found > 0.9
    assert shown > agreement(by_color[160:])  # what it is compared with is a strong one
    assert found > shown - 0.02
    assert from_gray > 0.6  # without the colors


@pytest.mark.slow
def test_a_decoder_that_sees_all_of_the_picture_can_do_without_segments() -> None:
    """Colors that the gray picture tells: z collapses under `PictureColors`; the remedy that is named works."""
    _, x = simulated_regions(count=140, size=16, segments=4, seed=0)
    turn = torch.pi * (x - 128) / 64
    torch.manual_seed(0)
    ones = torch.ones_like(turn)
    features = [turn.cos(), 0.6 * turn.sin(), 0.3 * ones, -0.5 * ones, 0.0 * ones]
    y = chroma(x, torch.stack(features, -1)).sample()
    rows, others = (y[:100], x[:100]), (y[100:], x[100:])
    network = UNet((8, 16, 16))
    found = []
    for colors, epochs in ((PictureColors(network), 26), (Palette(), 8)):
        torch.manual_seed(0)
        model = IndependentSegments(4, colors, network)
        if isinstance(colors, Palette):  # the second part of the remedy: values of z that differ
            model.initialize(*rows, seed=0)
        guide = Exact(model)
        options: dict[str, Any] = {"batch_size": 20, "learning_rate": 5e-3, "seed": 0}
        fit(model, guide, rows, max_epochs=epochs, progress=False, **options)
        found.append(diagnose(model, guide, others, seed=0, progress=False))
    assert found[0].causes["z"].name == "strong decoder"
    remedy = found[0].causes["z"].remedy
    assert "Palette" in remedy
    assert "start with values of z that differ" in remedy
    assert not found[1].causes
    collapsed, mended = (cast(Any, each.of_elements) for each in found)
    assert max(collapsed.rate, collapsed.gain) < 0.01
    assert collapsed.used_values < 1.1
    assert mended.rate > 0.1
    assert mended.gain > 1
    assert mended.used_values > 3


@pytest.mark.parametrize("rung", [RUNGS[0], RUNGS[1], RUNGS[3]], ids=name_of)
def test_memory_of_the_exact_sum_grows_with_pixels_and_segments_alone(rung: Rung) -> None:
    """What is kept for the gradient: some numbers for each pixel and segment, none for pairs of segments."""

    def kept(segments: int, height: int) -> float:
        torch.manual_seed(0)
        model = rung(segments, Palette(), SMALL)
        x = torch.randint(100, 150, (1, height, 16)).float()
        sizes: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            _ = model.log_evidence(torch.zeros(1, height, 16, 2), x).sum()
        return sum(sizes.values()) / x.numel()

    few = kept(8, 32)
    assert few < 8 * 100 * 4  # bytes
    assert kept(8, 64) == pytest.approx(few, rel=0.05)
    assert kept(32, 32) < 4.05 * few


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_pictures_of_bytes_have_the_evidence_of_numbers(
    rung: Rung, pictures: tuple[Tensor, Tensor]
) -> None:
    """Differences of bytes would wrap around."""
    y, x = (rows.float() for rows in pictures)
    model = rung(K, Palette(), SMALL)
    found = model.log_evidence(y, x.to(torch.uint8))
    assert torch.allclose(found, model.log_evidence(y, x), atol=1e-4)


def test_what_does_not_fit_is_said(pictures: tuple[Tensor, Tensor]) -> None:
    y, x = (rows.float() for rows in pictures)
    model = IndependentSegments(K, Palette(), SMALL)
    for rows in ((y.movedim(-1, 1), x), (x, y), (y, x.unsqueeze(1))):
        with pytest.raises(ValueError, match=r"pass \(y, x\), as `Photos.patches` gives them"):
            model(*rows)
    with pytest.raises(
        PairError, match=r"has 3 segments, but z goes up to .: build the guide with segments=3"
    ):
        fit(model, SegmentationEncoder(K + 4, SMALL), (y, x), max_epochs=1, progress=False)


@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_a_guide_with_fewer_segments_is_refused(
    rung: Rung, pictures: tuple[Tensor, Tensor]
) -> None:
    rows = tuple(of.float() for of in pictures)
    model, guide = rung(K, Palette(), SMALL), SegmentationEncoder(K - 1, SMALL)
    told = (
        "has 3 segments, but z of SegmentationEncoder has 2 values: build the guide with segments=3"
    )
    for objective in (ELBO(), TraceELBO()):
        with pytest.raises(PairError, match=told):
            fit(model, guide, rows, objective=objective, max_epochs=1, progress=False)
    with pytest.raises(PairError, match=told):
        evaluate(model, guide, rows, num_samples=2, progress=False)


@pytest.mark.parametrize("colors", [Palette(), LatentColors()])
def test_impossible_chroma_is_refused(colors: Colors, pictures: tuple[Tensor, Tensor]) -> None:
    y, x = (rows.float() for rows in pictures)
    y[1, 2, 2, 0] = 250.0
    model = IndependentSegments(K, colors, SMALL)
    guide: Any = Exact(model) if isinstance(colors, Palette) else WithinPicture(model)
    with pytest.raises(PairError, match=r"row 1 .* are outside of the support of"):
        fit(model, guide, (y, x), max_epochs=1, progress=False)


@pytest.mark.slow(but=("IndependentSegments", "TreeSegments"))
@pytest.mark.parametrize("rung", RUNGS, ids=name_of)
def test_after_an_epoch_the_elbo_is_that_of_all_segmentations(
    rung: Rung,
) -> None:
    torch.manual_seed(3)
    y = torch.randint(-3, 4, (70, 2, 3, 2)).float()  # a 27th of the segmentations of 3 x 3 pixels
    x = torch.randint(100, 150, (70, 2, 3)).float()
    every = torch.tensor(list(itertools.product(range(K), repeat=6))).reshape(-1, 1, 2, 3)
    model = rung(K, Palette(), SMALL)
    guide: Any = Exact(model) if rung is RUNGS[1] else SegmentationEncoder(K, SMALL)
    fitted = fit(
        *(model, guide, (y[:8], x[:8])),
        validation=(y, x),
        max_epochs=1,
        batch_size=4,
        seed=0,
    )
    (row,) = fitted.history
    assert not [name for name in row if name.startswith(("kl_", "active"))]
    bound = 0.0
    with torch.no_grad():
        for some in torch.arange(70).split(35):
            segmentations = every.expand(-1, 35, 2, 3)
            prior, q = model.prior(x[some]), guide.encode(y[some], x[some])
            log_q = q.log_prob(segmentations).double()
            log_joint = prior.log_prob(segmentations) + model.decode(
                segmentations, x[some]
            ).log_prob(y[some])
            bound += float((log_q.exp() * (log_joint.double() - log_q)).sum()) / 70
    assert row["validation_elbo"] == pytest.approx(bound, abs=1e-3)


def test_a_look_at_segments_without_held_out_rows_runs_no_networks() -> None:
    torch.manual_seed(0)
    y, x = torch.zeros(600, 4, 4, 2), torch.full((600, 4, 4), 100.0)
    model = IndependentSegments(K, Palette(), SMALL)
    rows: list[int] = []
    model.segmenter.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    fit(model, Exact(model), (y, x), max_epochs=1, batch_size=30, seed=0, compile=False)
    assert max(rows) <= 60  # neither the check of all data nor the look


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y, x: y[555, 2, 3].fill_(600),
        lambda y, x: y[555, 2, 3].fill_(torch.nan),
        lambda y, x: x[555, 1, 1].fill_(300),
        lambda y, x: x[555, 1, 1].fill_(torch.nan),
        lambda y, x: x[555, 1, 1].fill_(100.5),
    ],
    ids=["chroma of no color", "chroma NaN", "luma of no color", "luma NaN", "luma not whole"],
)
def test_a_bad_pixel_is_found_in_its_row(spoil: Callable[[Tensor, Tensor], object]) -> None:
    y, x = torch.zeros(600, 4, 4, 2), torch.full((600, 4, 4), 100.0)
    spoil(y, x)
    model = IndependentSegments(K, Palette(), SMALL)
    with pytest.raises(PairError, match="row 555 of x"):
        fit(model, Exact(model), (y, x), max_epochs=1, batch_size=8, seed=0)
