"""`inference_gaps` and `evaluate` of latent segmentations: exact numbers, wide grids and latent colors."""

from __future__ import annotations

import math
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluate
from ppl_vae.data import simulated_regions
from ppl_vae.diagnosis import inference_gaps
from ppl_vae.guides import Exact, SegmentationEncoder, StructuredMeanField, WithinPicture
from ppl_vae.models import (
    IndependentSegments,
    LatentColors,
    Palette,
    PottsSegments,
    ScanLineSegments,
)
from ppl_vae.networks import UNet

SMALL = UNet((4,))
QUICK: dict[str, Any] = {"num_samples": 20, "max_steps": 2, "seed": 0, "progress": False}
DRAWN = "are discrete and are drawn"


def pictures(count: int, size: int) -> tuple[Tensor, Tensor]:
    z, x = simulated_regions(count=count, size=size, segments=3, seed=0)
    centers = torch.tensor([[60.0, 0.0], [-40.0, 20.0], [0.0, -30.0]])
    noise = torch.randn(count, size, size, 2, generator=torch.Generator().manual_seed(0))
    return (centers[z] + 30 * noise).round().clamp(-100, 100), x


def wide() -> tuple[PottsSegments, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = PottsSegments(3, Palette(), SMALL)
    rows = pictures(3, 10)
    model.initialize(*rows)
    with pytest.raises(ValueError, match="too wide"):
        model.log_evidence(*rows)
    return model, rows


def test_the_posterior_has_no_gaps_and_nothing_is_doubted() -> None:
    torch.manual_seed(0)
    model = ScanLineSegments(3, Palette(), SMALL)
    rows = pictures(3, 10)
    model.initialize(*rows)
    gaps = inference_gaps(model, Exact(model), rows, **QUICK)
    exact = model.log_evidence(*rows).detach()
    assert torch.equal(gaps.log_likelihood.values, exact)
    assert not bool(gaps.approximation_gap.values.any() or gaps.amortization_gap.values.any())
    assert gaps.source == "log_evidence"
    assert not gaps.warnings


def test_no_caution_of_draws_where_log_evidence_is_exact() -> None:
    torch.manual_seed(0)
    model = IndependentSegments(3, Palette(), SMALL)
    rows = pictures(3, 10)
    model.initialize(*rows)
    gaps = inference_gaps(model, SegmentationEncoder(3, SMALL), rows, **QUICK)
    torch.testing.assert_close(gaps.log_likelihood.values, model.log_evidence(*rows).detach())
    assert not any(DRAWN in text for text in gaps.warnings)


@pytest.mark.slow
def test_gaps_of_latent_colors() -> None:
    torch.manual_seed(0)
    model = IndependentSegments(3, LatentColors(), SMALL)
    rows = pictures(2, 10)
    model.initialize(*rows)
    guide = WithinPicture(model)
    gaps = inference_gaps(model, guide, rows, **QUICK | {"num_samples": 50})
    assert gaps.source == "importance sampling"
    found = evaluate(model, guide, rows, num_samples=50, seed=1, method="guide", progress=False)
    error = torch.hypot(gaps.log_likelihood_error, found.log_likelihood_error)
    off = (gaps.log_likelihood.values - found.log_likelihood.values).abs()
    assert bool((off < 6 * error + 0.5).all())


@pytest.mark.slow
def test_gaps_of_wide_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = wide()
    asked: list[str] = []
    evidence, mean_field = model.log_evidence, model.mean_field

    def asks(*batch: Tensor) -> Tensor:
        asked.append("log_evidence")
        return evidence(*batch)

    def works(*args: Any, **kwargs: Any) -> Any:
        asked.append("mean_field")
        return mean_field(*args, **kwargs)

    guide = StructuredMeanField(model)
    monkeypatch.setattr(model, "log_evidence", asks)
    monkeypatch.setattr(guide, "_mean_field", works)
    gaps = inference_gaps(model, guide, rows, **QUICK)
    assert gaps.source == "importance sampling"
    assert asked.count("log_evidence") == 1
    before = asked.index("log_evidence")
    assert before < len(asked) / 2  # the programs are looked at before; nothing is refined yet
    assert bool(gaps.log_likelihood.values.isfinite().all())


@pytest.mark.slow
def test_narrow_and_wide_grids_in_one_call() -> None:
    model, rows = wide()
    narrow = (rows[0][:, :, :4].contiguous(), rows[1][:, :, :4].contiguous())
    gaps = inference_gaps(model, StructuredMeanField(model), [narrow, rows], **QUICK)
    assert gaps.source == "log_evidence where it is known, else importance sampling"
    exact = model.log_evidence(*narrow).detach()
    torch.testing.assert_close(gaps.log_likelihood.values[:3], exact)
    assert gaps.log_likelihood_error[:3].tolist() == [0.0] * 3
    assert bool((gaps.log_likelihood_error[3:] > 0).all())


def test_a_method_that_does_not_know_log_p_says_why() -> None:
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def log_evidence(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    gaps = inference_gaps(Mine(), guide, torch.zeros(3), **QUICK)
    exact = dist.Normal(0.0, 2**0.5).log_prob(torch.zeros(3))
    off = (gaps.log_likelihood.values - exact).abs()
    assert bool((off < 5 * gaps.log_likelihood_error + 1e-3).all())
    assert any("not today" in note for note in gaps.notes)


@pytest.mark.slow
def test_a_mean_field_of_the_model_is_judged_by_its_weights() -> None:
    model, rows = wide()
    guide = StructuredMeanField(model)
    found = evaluate(model, guide, rows, num_samples=200, seed=0, progress=False)
    assert found.drawn is None
    assert torch.equal(
        found.unreliable, found.khat.isnan() | (found.khat > found.khat_limit) & (found.ess < 180)
    )
    (caution,) = (text for text in found.warnings if DRAWN in text)
    assert "from a guide that can draw all of their values" in caution
    assert "count as unreliable" not in caution
    encoder = evaluate(
        model, SegmentationEncoder(3, SMALL), rows, num_samples=200, seed=0, progress=False
    )
    assert bool(encoder.unreliable.all())  # it may be sure of what is wrong
    other = evaluate(
        model, StructuredMeanField(wide()[0]), rows, num_samples=200, seed=0, progress=False
    )
    assert bool(other.unreliable.all())  # the posterior of another model
    sharper = StructuredMeanField(model, beta=0.5)
    assert not sharper.covers_posterior_of(model)


@pytest.mark.slow
def test_a_caution_stays_as_a_mean_field_misses_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixels are of one segment, of two with the same color: half of p(y | x) is not drawn."""
    torch.manual_seed(0)
    model = PottsSegments(2, Palette(), SMALL)
    with torch.no_grad():
        for parameter in model.segmenter.parameters():
            parameter.zero_()
        features = cast(Any, model.colors).features
        features.copy_(features[:1].expand(2, -1))
        cast(Any, model).segmenter.head.bias[0] += 0.02  # so that the lines begin on one side
        model.coupling[:, 0], model.coupling[:, 1] = 4.0, 0.0
    rows = torch.zeros(2, 6, 6, 2), torch.full((2, 6, 6), 128.0)
    exact = model.log_evidence(*rows).detach()

    def unknown(*batch: Tensor) -> Tensor:
        raise ValueError("as of wide pictures")

    monkeypatch.setattr(model, "log_evidence", unknown)
    kwargs: dict[str, Any] = {"num_samples": 500, "seed": 0, "progress": False}
    found = evaluate(model, StructuredMeanField(model, sweeps=20), rows, **kwargs)
    low = exact - found.log_likelihood.values
    odds = math.exp(-0.02 * 36)  # of the segment that is not drawn
    torch.testing.assert_close(low, torch.full((2,), math.log1p(odds)), atol=0.1, rtol=0)
    assert any("k-hat does not see them" in text for text in found.warnings)
