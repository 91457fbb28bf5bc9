"""The pictures of inference show the numbers that they were given."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.diagnosis import Gaps, PosteriorGrid, guide_on_grid, inference_gaps, posterior_grid
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.plots import gaps_plot, guides_over_posterior, posterior_contours
from ppl_vae.stats import Estimate

Case = tuple[ProbabilisticPCA, MeanField, Tensor, PosteriorGrid]


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), 2, sigma=1.0)
    guide = MeanField((4,), 2, MLP((8,)))
    x = torch.randn(3, 4)
    return model, guide, x, posterior_grid(model, guide, x, bounds=((-8.0, 8.0), (-8.0, 8.0)))


def test_contours_hold_their_mass_and_the_kl_is_that_of_the_closed_form(case: Case) -> None:
    model, guide, x, grid = case
    log_q = guide_on_grid(model, guide, x, grid)
    figure = posterior_contours(grid, {"mean-field": log_q}, rows=[2, 0])
    titles = [axes.get_title() for axes in figure.axes]
    with torch.no_grad():
        posterior = model.posterior(x)
        q = guide.encode(x)
        covariance = torch.diag_embed(q.variance)
        full = torch.distributions.MultivariateNormal(q.mean, covariance)
        kl = kl_divergence(full, posterior)
    expected = [f"KL {float(kl[row]):.2f}" for row in (2, 0)]
    assert titles == ["exact posterior\nrow 2", f"mean-field\n{expected[0]}", "row 0", expected[1]]
    # A Gaussian's 95 % region ends where its density is 1/20 of the largest, the 50 % region at 1/2.
    filled = figure.axes[0].collections[0]
    low, high, _ = filled.levels  # type: ignore[attr-defined]
    largest = float(posterior.log_prob(posterior.mean)[2].exp())
    assert low == pytest.approx(largest / 20, rel=0.1)
    assert high == pytest.approx(largest / 2, rel=0.1)
    assert figure.axes[2].get_xlabel() == "z[0]"
    assert figure.axes[2].get_ylabel() == "z[1]"
    figure.savefig(io.BytesIO())


def test_contours_of_another_grid_or_of_too_many_rows_are_refused(case: Case) -> None:
    _, _, _, grid = case
    with pytest.raises(ValueError, match=r"guide 'q' has shape \(3, 5, 5\)"):
        posterior_contours(grid, {"q": np.zeros((3, 5, 5))})
    with pytest.raises(ValueError, match="one to four rows, got 5"):
        posterior_contours(grid, {}, rows=[0, 1, 2, 0, 1])


def test_a_guide_beyond_the_grid_states_no_kl(case: Case) -> None:
    _, _, _, grid = case
    far = grid.log_density - 50.0
    figure = posterior_contours(grid, {"far": far}, rows=[0])
    assert figure.axes[1].get_title() == "far\n"


def test_guides_stand_side_by_side_over_one_posterior(case: Case) -> None:
    model, guide, x, grid = case
    log_q = guide_on_grid(model, guide, x, grid)
    figure = guides_over_posterior(grid, {"one": log_q, "exact": grid.log_density}, row=1)
    figure.savefig(io.BytesIO())
    assert [axes.get_title() for axes in figure.axes] == ["one", "exact"]
    with torch.no_grad():
        q = guide.encode(x)
        full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        kl = float(kl_divergence(full, model.posterior(x))[1])
    assert [axes.get_xlabel() for axes in figure.axes] == [f"KL {kl:.2f} nats", "KL 0.00 nats"]
    for axes, density in zip(figure.axes, (log_q, grid.log_density), strict=True):
        shaded, lines = axes.collections
        largest = float(grid.log_density[1].exp().max())
        assert max(shaded.levels) == pytest.approx(largest)  # type: ignore[attr-defined]
        low, high = lines.levels  # type: ignore[attr-defined]
        # A Gaussian's 95 % region ends where its density is 1/20 of the largest, the 50 % region at 1/2.
        top = float(density[1].exp().max())
        assert (low, high) == pytest.approx((top / 20, top / 2), rel=0.1)
    with pytest.raises(ValueError, match="row must be at most 2, got 3"):
        guides_over_posterior(grid, {"q": log_q}, row=3)
    with pytest.raises(ValueError, match="at least one guide"):
        guides_over_posterior(grid, {})


@pytest.fixture(scope="module")
def gaps() -> dict[str, Gaps]:
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), 2, sigma=0.5)
    x = torch.randn(6, 4)
    grid = posterior_grid(model, MeanField((4,), 2, MLP((8,))), x)
    return {
        name: inference_gaps(model, guide, x, truth=grid, num_samples=100, max_steps=60, seed=0)
        for name, guide in {
            "mean-field": MeanField((4,), 2, MLP((8,))),
            "full": FullCovariance((4,), 2, MLP((8,))),
        }.items()
    }


def test_bars_go_from_the_elbo_over_the_best_to_log_p(gaps: dict[str, Gaps]) -> None:
    figure = gaps_plot(gaps)
    axes = figure.axes[0]
    bars = [bar for group in axes.containers if isinstance(group, BarContainer) for bar in group]
    for i, found in enumerate(gaps.values()):
        assert found.source == "PosteriorGrid"
        right, left = bars[2 * i], bars[2 * i + 1]
        ends = [left.get_x(), right.get_x(), right.get_x() + right.get_width()]
        wanted = [found.elbo.mean, found.best_elbo.mean, found.log_likelihood.mean]
        assert ends == pytest.approx(wanted)
        assert left.get_x() + left.get_width() == pytest.approx(found.best_elbo.mean)
        assert bars[2 * i].get_y() + 0.3 == pytest.approx(i)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean-field", "full"]
    words = axes.texts[0].get_text().split(" + ")
    first = gaps["mean-field"]
    assert float(words[0]) == pytest.approx(first.amortization_gap.mean, abs=0.006)
    assert float(words[1]) == pytest.approx(first.approximation_gap.mean, abs=0.006)
    figure.savefig(io.BytesIO())


def test_a_gap_of_the_wrong_sign_is_written_beyond_its_bar(gaps: dict[str, Gaps]) -> None:
    first = gaps["mean-field"]
    values = first.best_elbo.values - 0.3
    low = Gaps(**{**first.__dict__, "log_likelihood": Estimate(values)})
    (words,) = gaps_plot({"low": low}).axes[0].texts
    assert words.get_text().endswith(" − 0.30")
    assert words.get_position()[0] > low.best_elbo.mean


def test_an_unreliable_log_p_is_hatched(gaps: dict[str, Gaps]) -> None:
    doubtful = {
        n: Gaps(**{**g.__dict__, "unreliable": g.converged | True}) for n, g in gaps.items()
    }
    legend = gaps_plot(doubtful).legends[0]
    assert [t.get_text() for t in legend.get_texts()][-1] == "at least"
    assert len(gaps_plot(gaps).legends[0].get_texts()) == 2


def test_gaps_that_cannot_be_compared_are_refused(gaps: dict[str, Gaps]) -> None:
    with pytest.raises(ValueError, match="at least one guide"):
        gaps_plot({})
    one = ProbabilisticPCA((4,), 2)
    few = inference_gaps(
        one, MeanField((4,), 2, MLP((8,))), torch.randn(1, 4), num_samples=10, max_steps=1
    )
    with pytest.raises(ValueError, match="different numbers of rows"):
        gaps_plot({**gaps, "few": few})
    assert math.isnan(few.inference_gap.standard_error)
    gaps_plot({"few": few})
