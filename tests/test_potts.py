"""Potts fields against the sum over all segmentations, and measures of how alike two segmentations are."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, kl_divergence
from torch.nn.functional import one_hot

from ppl_vae.distributions import PottsField, PottsGrid, ScanLines, potts_grid
from ppl_vae.models import PottsSegments
from ppl_vae.networks import UNet
from ppl_vae.stats import segmentation_covering, variation_of_information


def lines(height: int, width: int, k: int) -> ScanLines:
    unary = 2 * torch.randn(height, width, k).double()
    return ScanLines(unary, 2 * torch.randn(height, width - 1).double())


def grid(height: int, width: int, k: int) -> PottsGrid:
    unary = 2 * torch.randn(height, width, k).double()
    across, down = torch.randn(height, width - 1), torch.randn(height - 1, width)
    return PottsGrid(unary, 2 * across.double(), 2 * down.double())


def pairs_of(field: PottsField) -> list[tuple[tuple[int, int], tuple[int, int], Tensor]]:
    """Each pair of neighbors, and its coupling."""
    height, width = field.event_shape
    found = []
    for r in range(height):
        for c in range(width):
            if c + 1 < width:
                found.append(((r, c), (r, c + 1), field.same[r, c]))
            if isinstance(field, PottsGrid) and r + 1 < height:
                found.append(((r, c), (r + 1, c), field.down[r, c]))
    return found


def scores(field: PottsField) -> tuple[Tensor, Tensor]:
    """All segmentations, and what the logarithm of their probability is up to a constant."""
    height, width = field.event_shape
    every = torch.tensor(list(itertools.product(range(field.segments), repeat=height * width)))
    every = every.reshape(-1, height, width)
    unary = field.unary.expand(len(every), -1, -1, -1)
    score = unary.gather(-1, every.unsqueeze(-1)).squeeze(-1).sum((1, 2))
    for one, other, coupling in pairs_of(field):
        score = score + coupling * (every[:, one[0], one[1]] == every[:, other[0], other[1]])
    return every, score


FIELDS = [
    *((lines, *size) for size in ((2, 3, 3), (1, 5, 2), (3, 1, 2))),
    *((grid, *size) for size in ((3, 3, 3), (2, 4, 2), (4, 2, 3), (1, 4, 3), (4, 1, 2), (1, 1, 2))),
]


@pytest.mark.parametrize(("make", "height", "width", "k"), FIELDS)
def test_a_field_against_the_sum_over_all_segmentations(
    make: Callable[[int, int, int], PottsField], height: int, width: int, k: int
) -> None:
    torch.manual_seed(0)
    field = make(height, width, k)
    every, score = scores(field)
    p = score.softmax(0)
    assert torch.allclose(field.log_partition, score.logsumexp(0), atol=1e-10)
    assert torch.allclose(field.log_prob(every), score.log_softmax(0), atol=1e-10)
    marginals = (p[:, None, None, None] * one_hot(every, k)).sum(0)
    assert torch.allclose(field.marginals, marginals, atol=1e-10)
    together = (p[:, None, None] * field.agreement(every)).sum(0)
    assert torch.allclose(field.agreement_probs, together, atol=1e-10)
    assert field.entropy().item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-10)
    independent = Independent(Categorical(logits=torch.randn(height, width, k).double()), 2)
    for q in (make(height, width, k), independent):
        of_q = q.log_prob(every)
        exact = (of_q.exp() * (of_q - field.log_prob(every))).sum()
        assert kl_divergence(q, field).item() == pytest.approx(exact.item(), abs=1e-10)
    draws = field.sample(torch.Size([50_000]))
    assert torch.allclose(one_hot(draws, k).double().mean(0), marginals, atol=0.012)
    agreed = field.agreement(draws).double().mean(0)
    assert torch.allclose(agreed, together, atol=0.012)


def test_the_slopes_of_a_field_have_slopes() -> None:
    """Marginals are trained through, too."""
    torch.manual_seed(0)
    unary = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    couplings = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (2, 3))]
    assert torch.autograd.gradcheck(
        lambda *of: PottsGrid(*of).marginals, (unary, *couplings), atol=1e-6
    )
    assert torch.autograd.gradcheck(
        lambda u, s: ScanLines(u, s).marginals, (unary, couplings[0]), atol=1e-6
    )


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures are too wide for exact sums."""
    monkeypatch.setattr(potts_grid, "MOST_STATES", 0)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_the_bound_of_wide_pictures_is_one(scale: float) -> None:
    torch.manual_seed(1)
    for _ in range(5):
        start = grid(3, 3, 3)
        field = PottsGrid(start.unary, scale * start.across, scale * start.down)
        _, score = scores(field)
        excess = (field.log_partition - score.logsumexp(0)).item()
        assert excess >= -1e-10
        assert not field.is_exact
        if scale == 0.0:
            assert excess == pytest.approx(0.0, abs=1e-10)
        with pytest.raises(NotImplementedError, match="use a guide with independent pixels"):
            _ = field.marginals


@pytest.mark.parametrize(("height", "width", "k"), [(3, 3, 3), (4, 2, 2), (1, 4, 3), (4, 1, 2)])
def test_the_mean_field_of_lines_falls_to_a_least_distance(height: int, width: int, k: int) -> None:
    torch.manual_seed(3)
    field = grid(height, width, k)
    every, score = scores(field)
    log_p = score.log_softmax(0)
    before = torch.inf
    for sweeps in (0, 1, 2, 20):
        q = field.mean_field(sweeps)
        log_q = q.log_prob(every)
        exact = (log_q.exp() * (log_q - log_p)).sum().item()
        assert kl_divergence(q, field).item() == pytest.approx(exact, abs=1e-10)
        assert exact <= before + 1e-10
        before = exact
    # At the end each line is what the others make it: the optimum of q(line) given them.
    for row in range(height):
        others = q.marginals
        around = torch.zeros(width, k).double()
        for r, of in ((row - 1, row - 1), (row + 1, row)):
            if 0 <= r < height:
                around += field.down[of].unsqueeze(-1) * others[r]
        line = ScanLines((field.unary[row] + around).unsqueeze(0), field.across[row].unsqueeze(0))
        assert torch.allclose(line.marginals[0], others[row], atol=1e-4)


def test_the_mean_field_without_couplings_down_is_the_field() -> None:
    torch.manual_seed(4)
    start = grid(3, 3, 3)
    field = PottsGrid(start.unary, start.across, torch.zeros_like(start.down))
    assert kl_divergence(field.mean_field(), field).item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.usefixtures("wide")
def test_gibbs_draws_of_wide_pictures() -> None:
    torch.manual_seed(2)
    start = grid(3, 3, 2)
    field = PottsGrid(start.unary, 0.3 * start.across, 0.3 * start.down)
    every, score = scores(field)
    marginals = (score.softmax(0)[:, None, None, None] * one_hot(every, 2)).sum(0)
    draws = field.sample(torch.Size([5000]))
    assert torch.allclose(one_hot(draws, 2).double().mean(0), marginals, atol=0.04)


@pytest.mark.usefixtures("wide")
def test_a_model_of_wide_pictures_says_what_is_not_known() -> None:
    model = PottsSegments(3, network=UNet((4,)))
    y, x = torch.zeros(1, 3, 3, 2), torch.full((1, 3, 3), 128.0)
    for ask in (model.log_evidence, model.posterior):
        with pytest.raises(
            ValueError, match="use StructuredMeanField or SegmentationEncoder as the guide"
        ):
            ask(y, x)


def test_couplings_of_another_shape_are_refused() -> None:
    unary = torch.zeros(2, 3, 2)
    with pytest.raises(ValueError, match=r"\(\*batch, 2, 2\)"):
        ScanLines(unary, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`down` of shape \(\*batch, 1, 3\)"):
        PottsGrid(unary, torch.zeros(2, 2), torch.zeros(2, 3))


def test_variation_of_information_and_covering_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        a = rng.integers(0, 5, (12, 20))
        b = np.where(rng.random((12, 20)) < 0.6, a, rng.integers(0, 3, (12, 20)))
        one, other = torch.from_numpy(a), torch.from_numpy(b)
        information = covering = 0.0
        for i in range(5):
            overlap = [(a == i) & (b == j) for j in range(5)]
            unions = [((a == i) | (b == j)).sum() for j in range(5)]
            covering += (a == i).mean() * max(
                (o.sum() / u for o, u in zip(overlap, unions, strict=True) if u), default=0.0
            )
            for j, o in enumerate(overlap):
                if share := o.mean():
                    information -= share * np.log(share / (a == i).mean())
                    information -= share * np.log(share / (b == j).mean())
        assert variation_of_information(one, other) == pytest.approx(information, abs=1e-12)
        assert segmentation_covering(other, one) == pytest.approx(covering, abs=1e-12)
    same = torch.from_numpy(a)
    assert variation_of_information(same, same + 7) == pytest.approx(0.0, abs=1e-12)
    assert segmentation_covering(same + 7, same) == 1.0
    with pytest.raises(ValueError, match="of one picture"):
        variation_of_information(same, same[:2])


def test_marginals_in_inference_mode() -> None:
    torch.manual_seed(0)
    field = grid(3, 3, 2)
    marginals, entropy = field.marginals, field.entropy()
    with torch.inference_mode():
        again = PottsGrid(field.unary, field.across, field.down)
        assert torch.allclose(again.marginals, marginals, atol=1e-12)
        assert torch.allclose(again.entropy(), entropy, atol=1e-12)


def test_couplings_that_forbid_have_gradients() -> None:
    """Beside pixels that are certain, in single precision."""
    unary = torch.tensor([[[50.0, -50.0], [50.0, -50.0], [-50.0, 50.0]]], requires_grad=True)
    same = torch.full((1, 2), -40.0, requires_grad=True)
    slopes = torch.autograd.grad(ScanLines(unary, same).log_partition, (unary, same))
    assert all(bool(slope.isfinite().all()) for slope in slopes)
