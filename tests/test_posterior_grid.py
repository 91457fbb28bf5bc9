"""Posteriors on a grid, against closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.diagnosis import guide_on_grid, posterior_grid
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError


@pytest.mark.parametrize("sigma", [1.0, 0.05, 1e-3])
def test_pca_has_its_closed_forms_on_the_grid(sigma: float) -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), 2, sigma=sigma).double()
    with torch.no_grad():
        model.weight[:, 1] = model.weight[:, 0] + 0.5 * torch.randn(4)
        x = model.decode(2 * torch.randn(5, 2, dtype=torch.float64)).sample()
    grid = posterior_grid(model, MeanField((4,), 2, MLP((8,))).double(), x)
    exact = model.posterior(x)
    assert grid.names == ("z[0]", "z[1]")
    assert torch.allclose(grid.log_evidence, model.log_evidence(x).detach(), atol=1e-5)
    assert torch.allclose(grid.mass.sum((1, 2)), torch.ones(5, dtype=torch.float64))
    first, second = grid.points[:, 0, :, None], grid.points[:, 1, None, :]
    z = torch.stack(torch.broadcast_tensors(first, second), -1)
    expected = exact.expand((129, 129, 5)).log_prob(z.movedim(0, 2)).movedim(2, 0)
    heavy = grid.mass > 1e-8
    assert torch.allclose(grid.log_density[heavy], expected[heavy].detach(), atol=1e-4)
    assert torch.allclose(grid.mean, exact.mean.detach(), atol=1e-4 * sigma)
    covariance = exact.covariance_matrix.detach()
    assert torch.allclose(grid.covariance, covariance, rtol=1e-3, atol=1e-4 * sigma**2)
    assert float(grid.border.max()) < 1e-6
    assert float(heavy.double().mean()) > 0.05  # fitted around the mass


def test_two_modes_far_apart_are_both_found_by_a_stranger_with_two_sites() -> None:
    """x = |a| + noise, b free: modes at a = 8 and a = -8, of equal mass."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 5.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a.abs(), 0.5), obs=x[:, 0])
            pyro.sample("y", dist.Normal(b, 1.0), obs=x[:, 1])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("b", dist.Normal(x[:, 1], 1.0))
            pyro.sample("a", dist.Normal(x[:, 0], 0.5))

    x = torch.tensor([[8.0, 1.0]], dtype=torch.float64)
    grid = posterior_grid(model, guide, x)
    assert grid.names == ("a", "b")
    spread = math.sqrt(25.25)
    log_p = math.log(2.0) + float(
        dist.Normal(0.0, spread).log_prob(torch.tensor(8.0))
        + dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0))
    )
    assert float(grid.log_evidence) == pytest.approx(log_p, abs=1e-5)
    negative = grid.mass[0][grid.points[0, 0] < 0].sum()
    assert float(negative) == pytest.approx(0.5, abs=1e-6)
    assert grid.mean[0].tolist() == pytest.approx([0.0, 0.5], abs=1e-5)
    # The guide's own density at the same points, whatever the order of its sites.
    log_q = guide_on_grid(model, guide, x, grid)
    a, b = grid.points[0, 0], grid.points[0, 1]
    expected = dist.Normal(8.0, 0.5).log_prob(a)[:, None] + dist.Normal(1.0, 1.0).log_prob(b)
    assert torch.allclose(log_q[0], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["right", "left", "two sites"])
def test_latents_in_plates_inside_of_the_rows(where: str, dtype: torch.dtype) -> None:
    """Two numbers per row in a plate, to the right or to the left of that of the rows, against closed forms."""
    weight = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]], dtype=dtype)
    rows, inner = {"right": (-2, -1), "left": (-1, -2), "two sites": (-1, -2)}[where]

    def latents(loc: Tensor) -> Tensor:
        """z of shape `(*samples, n, 2)` with means `(n, 2)`, inside of the plate over rows."""
        if where == "two sites":
            with pyro.plate("one", 1, dim=inner):
                a = pyro.sample("a", dist.Normal(loc[:, 0], 1.0))
            b = pyro.sample("b", dist.Normal(loc[:, 1], 1.0))
            return torch.stack([a.reshape(b.shape), b], -1)
        with pyro.plate("pixels", 2, dim=inner):
            z = pyro.sample("z", dist.Normal(loc if inner == -1 else loc.T, 1.0))
        if inner == -1:
            return z
        return z.mT if z.dim() == 2 else z.mT.unsqueeze(-3)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=rows):
            mean = latents(x.new_zeros(len(x), 2)) @ weight
            if rows == -1:
                pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)
            else:
                with pyro.plate("values", 3, dim=-1):
                    pyro.sample("x", dist.Normal(mean, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=rows):
            latents(0.3 * x[:, :2])

    x = torch.randn(4, 3, dtype=dtype)
    grid = posterior_grid(model, guide, x, size=65)
    covariance = (weight.T @ weight + 0.25 * torch.eye(3, dtype=dtype)).double()
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x.double())
    torch.testing.assert_close(grid.log_evidence, exact, atol=1e-5, rtol=0)
    gain = torch.linalg.solve(covariance, weight.T.double())
    torch.testing.assert_close(grid.mean, x.double() @ gain, atol=1e-5, rtol=0)
    log_q = guide_on_grid(model, guide, x, grid)
    first, second = (
        dist.Normal(0.3 * x[:, i, None].double(), 1.0).log_prob(grid.points[:, i]) for i in range(2)
    )
    torch.testing.assert_close(
        log_q, first.unsqueeze(2) + second.unsqueeze(1), atol=1e-4, rtol=1e-5
    )


def test_a_grid_needs_whole_rows() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, 2), 1.0).to_event(1))
            with pyro.plate("pixels", 4, subsample=torch.arange(2), dim=-1) as index:
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, index])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, 2), 1.0).to_event(1))

    with pytest.raises(PairError, match=r"plate 'pixels' .* is subsampled \(2 of 4\): a grid"):
        posterior_grid(model, guide, torch.randn(3, 4))


def test_a_guides_density_on_the_grid() -> None:
    torch.manual_seed(0)
    model = VAE((6,), 2, MLP((8,)))
    guide = FullCovariance((6,), 2, MLP((8,)))
    x = torch.rand(3, 6).round()
    grid = posterior_grid(model, guide, x)
    log_q = guide_on_grid(model, guide, x, grid)
    z = torch.stack([grid.points[1, 0, 40], grid.points[1, 1, 90]]).float()
    assert float(log_q[1, 40, 90]) == pytest.approx(
        float(guide.encode(x).log_prob(z)[1].detach()), abs=1e-3
    )


def test_a_grid_that_is_too_small_or_too_coarse_is_refused() -> None:
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), 2, sigma=0.5)
    guide = MeanField((4,), 2, MLP((8,)))
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"too small.*of the posterior of row \d lie"):
        posterior_grid(model, guide, x, bounds=((0.0, 0.5), (-6.0, 6.0)))
    with pytest.raises(ValueError, match="too coarse"):
        posterior_grid(model, guide, x, bounds=((-60.0, 60.0), (-60.0, 60.0)), size=41)
    wide = posterior_grid(model, guide, x, bounds=((-8.0, 8.0), (-8.0, 8.0)))
    exact = model.log_evidence(x).detach().double()
    assert torch.allclose(wide.log_evidence, exact, atol=1e-4)
    with pytest.raises(ValueError, match="size must be odd"):
        posterior_grid(model, guide, x, size=64)


def test_latents_that_are_not_two_real_numbers_are_refused() -> None:
    model = ProbabilisticPCA((4,), 3)
    with pytest.raises(PairError, match="the latents found are 'z' of 3"):
        posterior_grid(model, MeanField((4,), 3, MLP((8,))), torch.randn(3, 4))

    def positive(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))

    with pytest.raises(PairError, match="'z' is not real"):
        posterior_grid(positive, guide, torch.randn(3))
