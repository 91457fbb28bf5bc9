"""What `diagnose` says of latents with many elements, against the exact numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_vae
import ppl_vae.pairs
from ppl_vae import diagnose, fit
from ppl_vae.checks import PairWarning
from ppl_vae.data import simulated_regions
from ppl_vae.guides import Exact, SegmentationEncoder
from ppl_vae.models import (
    IndependentSegments,
    Palette,
    PictureColors,
    PottsSegments,
    ScanLineSegments,
    TreeSegments,
)
from ppl_vae.models.colorization import SegmentedColors
from ppl_vae.networks import UNet

SMALL = UNet((4, 8))


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Of three kinds of regions, each with a color of its own."""
    z, x = simulated_regions(count=20, size=12, segments=3, seed=0)
    centers = torch.tensor([[60.0, 0.0], [-40.0, 20.0], [0.0, -30.0]])
    noise = torch.randn(20, 12, 12, 2, generator=torch.Generator().manual_seed(0))
    return (centers[z] + 4 * noise).round(), x


@pytest.mark.parametrize("rung", [IndependentSegments, ScanLineSegments, TreeSegments])
def test_segments_that_are_used(
    rung: type[SegmentedColors], pictures: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    model = rung(3, Palette(), SMALL)
    model.initialize(*pictures)
    found = diagnose(model, Exact(model), pictures, seed=0, progress=False)
    with torch.no_grad():
        rate = torch.distributions.kl_divergence(
            model.posterior(*pictures), model.prior(pictures[1])
        )
    assert found.rate.values == pytest.approx(rate.double(), rel=1e-4)
    assert found.names == ("z",)
    assert found.cause == "none"
    assert found.of_elements is not None
    assert found.of_elements.count == 144
    assert found.of_elements.values == 3
    assert found.of_elements.used_values == pytest.approx(3.0, abs=0.2)
    assert found.of_elements.rate == pytest.approx(rate.mean().item() / 144, rel=1e-4)
    assert found.of_elements.gain > 1.0
    assert "No collapse: z, of 144 elements, uses" in found.summary()
    assert found.to_dict()["of_elements"]["values"] == 3


def test_a_decoder_that_does_not_need_the_segments(pictures: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = IndependentSegments(3, PictureColors(SMALL), SMALL)
    with torch.no_grad():  # all segments have the same colors, whatever the picture
        colors = cast(Any, model.colors)
        head = colors.net.head
        head.weight.copy_(head.weight[:5].repeat(3, 1, 1, 1))
        head.bias.copy_(head.bias[:5].repeat(3))
        colors.features.copy_(colors.features[:1].expand(3, -1))
    found = diagnose(model, Exact(model), pictures, seed=0, progress=False)
    assert found.cause == "strong decoder"
    assert "rate is" in found.causes["z"].evidence
    assert "Palette" in found.remedy
    assert found.summary().startswith("Collapse: z, of 144 elements")
    assert bool(found.collapsed.all())


def test_a_guide_that_is_far_from_everything_does_not_make_z_used(
    pictures: tuple[Tensor, Tensor],
) -> None:
    """Its rate is large, but the exact posterior is the prior, and the decoder gains nothing."""
    torch.manual_seed(0)
    model = IndependentSegments(3, Palette(), SMALL)
    with torch.no_grad():
        features = cast(Any, model.colors).features
        features.copy_(features[:1].expand(3, -1))

    class Sure(SegmentationEncoder):
        def encode(self, y: Tensor, x: Tensor) -> Any:
            logits = 9.0 * torch.nn.functional.one_hot((x % 3).long(), 3).float()
            return dist.Independent(dist.Categorical(logits=logits, validate_args=False), 2)

    found = diagnose(model, Sure(3, SMALL), pictures, seed=0, progress=False)
    assert found.rate.mean / 144 > 0.5
    assert found.cause == "strong decoder"
    assert "that of the exact posterior is" in found.causes["z"].evidence
    assert found.summary().startswith("Collapse: z, of 144 elements")


def test_a_guide_that_lags(pictures: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = IndependentSegments(3, Palette(), SMALL)
    model.initialize(*pictures)
    with torch.no_grad():
        for parameter in model.segmenter.parameters():
            parameter.zero_()

    class OnThePrior(SegmentationEncoder):
        def encode(self, y: Tensor, x: Tensor) -> Any:
            return model.prior(x)

    guide = OnThePrior(3, SMALL)
    found = diagnose(model, guide, pictures, seed=0, progress=False)
    assert found.cause == "lagging guide"
    exact = diagnose(model, Exact(model), pictures, seed=0, progress=False)
    assert exact.of_elements is not None
    assert f"{exact.of_elements.rate:.2g} nats per element" in found.causes["z"].evidence
    encoder = SegmentationEncoder(3, SMALL)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    cause = diagnose(model, encoder, pictures, seed=0, progress=False).causes["z"]
    assert cause.name == "lagging guide"
    options = "--guide ppl_vae.guides.SegmentationEncoder --guide.segments 3"
    assert cause.command("a") == f"ppl-vae refit a --run_dir a-again {options}"


class FromThePrior(SegmentationEncoder):
    """Starts at P(z | x), and learns what the colors say beyond it."""

    def __init__(self, model: SegmentedColors) -> None:
        super().__init__(3, SMALL)
        self._unary = model.unary
        head = cast(Any, self.net).head
        for parameter in (head.weight, head.bias):
            nn.init.zeros_(parameter)

    def encode(self, y: Tensor, x: Tensor) -> Any:
        told = super().encode(y, x).base_dist.logits
        logits = self._unary(x).detach() + told
        return dist.Independent(dist.Categorical(logits=logits, validate_args=False), 2)


@pytest.mark.slow
@pytest.mark.parametrize("colors", [Palette(), PictureColors(SMALL)])
def test_a_weight_of_the_kl_that_is_too_large_is_named_and_mended(
    colors: Any, pictures: tuple[Tensor, Tensor]
) -> None:
    """Photos did the same at weight 10; the advice was to train again with that weight."""
    torch.manual_seed(0)
    model = IndependentSegments(3, colors, SMALL)
    model.initialize(*pictures)
    beta = 300.0
    guide = Exact(model, beta=beta)
    some = {"batch_size": 5, "learning_rate": 5e-3, "seed": 0, "progress": False}
    objective = ppl_vae.objectives.ELBO(beta=beta)
    fitted = fit(model, guide, pictures, objective=objective, max_epochs=60, **cast(Any, some))
    found = diagnose(model, guide, pictures, fit=fitted, seed=0, progress=False)
    cause = found.causes["z"]
    assert cause.name == "large beta"
    assert "beta is 300" in cause.meaning
    # By hand: the best mixture with the same shares for all, at this weight and at 1.
    with torch.no_grad():
        log_p = model.log_likelihoods(*pictures)
        now = model.log_evidence(*pictures).mean() / 144
        best = max(
            (log_p + torch.tensor(shares).log()).logsumexp(-1).mean() - now
            for a in range(1, 98)
            for b in range(1, 99 - a)
            if (shares := (a / 99, b / 99, (99 - a - b) / 99))
        )
    said = float(cause.evidence.split("would rise by ")[1].split()[0])
    assert said == pytest.approx(best.item(), rel=0.06)
    exec(cause.code, {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": pictures})
    again = diagnose(model, guide, pictures, seed=0, progress=False)
    assert again.cause == "none"
    assert again.of_elements is not None
    assert again.of_elements.gain > 1
    assert again.of_elements.used_values > 2


def with_a_prior_that_sees(
    rung: type[SegmentedColors], pictures: tuple[Tensor, Tensor]
) -> SegmentedColors:
    """P(z | x) depends on x a lot, so that the z of another row does not suit, whatever the colors are."""
    torch.manual_seed(0)
    model = rung(3, Palette(), SMALL)
    model.initialize(*pictures)
    some = {"batch_size": 5, "learning_rate": 5e-3, "seed": 0, "progress": False}
    fit(model, Exact(model), pictures, max_epochs=20, **cast(Any, some))
    return model


@pytest.mark.slow
def test_a_guide_that_lags_behind_a_prior_that_sees_is_named_and_mended(
    pictures: tuple[Tensor, Tensor],
) -> None:
    model = with_a_prior_that_sees(IndependentSegments, pictures)
    guide = FromThePrior(model)
    found = diagnose(model, guide, pictures, seed=0, progress=False)
    assert found.of_elements is not None
    assert found.of_elements.rate == pytest.approx(0.0, abs=1e-6)
    assert found.of_elements.gain > 0.1  # with the z of another row, which is that of another x
    assert found.cause == "lagging guide"
    with torch.no_grad():
        exact = torch.distributions.kl_divergence(
            model.posterior(*pictures), model.prior(pictures[1])
        )
    assert f"{exact.mean().item() / 144:.2g} nats per element" in found.causes["z"].evidence
    assert found.summary().startswith("Collapse: z, of 144 elements")
    assert not found.causes["z"].command("a")  # which has no name for a guide of one's own
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)  # of discrete elements that are drawn
        exec(
            found.causes["z"].code,
            {"ppl_vae": ppl_vae, "model": model, "guide": guide, "x": pictures},
        )
    again = diagnose(model, guide, pictures, seed=0, progress=False)
    assert again.cause == "none"
    assert again.rate.mean > 0.3 * exact.mean()


@pytest.mark.parametrize("rung", [ScanLineSegments, PottsSegments])
def test_a_guide_that_lags_behind_segments_with_neighbors(
    rung: type[SegmentedColors], pictures: tuple[Tensor, Tensor]
) -> None:
    """Of the wide grid, the mean field says what could be known."""
    model = rung(3, Palette(), SMALL)
    model.initialize(*pictures)
    with torch.no_grad():
        cast(Any, model).coupling.zero_()  # then independent pixels hold P(z | x)
    found = diagnose(model, FromThePrior(model), pictures, seed=0, progress=False)
    assert found.cause == "lagging guide"
    other = IndependentSegments(3, Palette(), SMALL)
    other.load_state_dict(model.state_dict(), strict=False)
    exact = diagnose(other, Exact(other), pictures, seed=0, progress=False)
    assert exact.of_elements is not None
    assert f"has {exact.of_elements.rate:.2g} nats per element" in found.causes["z"].evidence


def test_what_x_says_already_is_used_and_no_guide_lags(pictures: tuple[Tensor, Tensor]) -> None:
    """Segments that the gray picture gives: the colors need them, and say nothing more of them."""
    _, x = pictures

    class Given(IndependentSegments):
        def unary(self, x: Tensor) -> Tensor:
            which = (x > x.flatten(1).median(1).values[:, None, None]).long()
            return 60.0 * nn.functional.one_hot(which, 3).float()

    Given.__module__ = IndependentSegments.__module__
    torch.manual_seed(0)
    model = Given(3, Palette(), SMALL)
    z = model.unary(x).argmax(-1)
    y = torch.tensor([[60.0, 0.0], [-40.0, 20.0], [0.0, -30.0]])[z]
    model.initialize(y + torch.randn(y.shape).round(), x)
    with torch.no_grad():  # each segment has the color that it has
        features = cast(Any, model.colors).features
        features[:2] = features[_order(model, y, x, z)]
    found = diagnose(model, Exact(model), (y, x), seed=0, progress=False)
    assert found.cause == "none"
    assert any("x says next to nothing of it that p(z) does not know" in n for n in found.notes)


def _order(model: IndependentSegments, y: Tensor, x: Tensor, z: Tensor) -> list[int]:
    """Which of a model's colors is that of each of the first two segments."""
    best = model.log_likelihoods(y, x).argmax(-1)
    return [int(best[z == k].mode().values) for k in range(2)]


def test_few_elements_are_still_dimensions_of_their_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=2 * x).to_event(1))

    found = diagnose(model, Guide(), x, seed=0, progress=False)
    assert len(found.names) == 5
    assert found.of_elements is None
    assert not math.isnan(float(found.mean_variance.sum()))


@pytest.mark.parametrize(
    "rung",
    [
        pytest.param(IndependentSegments, marks=pytest.mark.slow),
        pytest.param(ScanLineSegments, marks=pytest.mark.slow),
    ],
)
def test_a_prior_that_has_fallen_on_one_value(
    rung: type[SegmentedColors], pictures: tuple[Tensor, Tensor]
) -> None:
    """It was seen in a training on photos, after a step that was too large; the line brings z back."""
    torch.manual_seed(0)
    model = rung(3, Palette(), SMALL)
    model.initialize(*pictures)
    with torch.no_grad():
        cast(Any, model.segmenter).head.bias[1] += 1e4
    guide = Exact(model)
    kwargs: dict[str, Any] = {"batch_size": 5, "seed": 0, "progress": False}
    fitted = fit(model, guide, pictures, max_epochs=20, learning_rate=5e-3, **kwargs)
    found = diagnose(model, guide, pictures, seed=0, progress=False, fit=fitted)
    assert found.cause == "local optimum"
    y, x = pictures
    with (
        torch.no_grad()
    ):  # what a mixture without x would gain, by scikit-learn's kind of EM on all pixels
        log_p = model.log_likelihoods(y, x).double().reshape(-1, 3)
        weights = torch.full((3,), 1 / 3, dtype=torch.double)
        for _ in range(50):
            weights = (log_p + weights.log()).softmax(1).mean(0)
        gain = (log_p + weights.log()).logsumexp(1).mean() - log_p[:, 1].mean()
    assert f"would rise by {gain:.2g} nats" in found.causes["z"].evidence
    assert "learning_rate=0.0015" in found.causes["z"].code
    assert found.causes["z"].command("runs/a").startswith("ppl-vae colorize train --config runs/a/")
    torch.manual_seed(1)
    exec(
        found.causes["z"].code,
        {"ppl_vae": ppl_vae, "torch": torch, "model": model, "guide": guide, "x": pictures},
    )
    again = diagnose(model, guide, pictures, seed=0, progress=False)
    assert again.cause == "none"
    assert again.of_elements is not None
    assert again.of_elements.gain > 1.0
