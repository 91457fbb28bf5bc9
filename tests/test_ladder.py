"""`evaluate(method="auto")`: log p(x) is right where the guide is not, and rows say how they were estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from random_targets import tallies, total
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.evaluation import Evaluation, ladder, slopes
from ppl_vae.evaluation.proposals import StudentMixture
from ppl_vae.evaluation.refined import EFFORTS, Refinement, numbers_of_row
from ppl_vae.evaluation.result import not_reached
from ppl_vae.evaluation.slopes import not_too_wide, walked
from ppl_vae.evaluation.subspace import SubspaceMixture
from ppl_vae.evaluation.target import Target
from ppl_vae.guides import Exact, MeanField, PerRow
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.pairs import tensors_of


@pytest.fixture(scope="module")
def pca() -> ProbabilisticPCA:
    torch.manual_seed(0)
    return ProbabilisticPCA((12,), latent_dim=6)


X = 2 * torch.randn(40, 12, generator=torch.Generator().manual_seed(1))


def off_by(model: ProbabilisticPCA, shift: float, factor: float) -> Callable[[Tensor], None]:
    """A mean-field guide: the posterior moved by so many deviations, which are so many times as large."""

    def guide(x: Tensor) -> None:
        q = model.posterior(x)
        deviations = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        with pyro.plate("data", len(x)):
            normal = dist.Normal(q.mean + shift * deviations, factor * deviations)
            pyro.sample("z", normal.to_event(1))

    return guide


def require_right(found: Evaluation, truth: Tensor) -> None:
    off = (found.log_likelihood.values - truth).abs() / found.log_likelihood_error
    assert float(off.max()) < 4.5, off
    assert not bool(found.unreliable.any())
    assert float(found.log_likelihood_error.max()) < 0.1


def estimates(
    model: ProbabilisticPCA, off: float, error: float, ess: float, khat: float
) -> Callable[..., dict[str, Tensor]]:
    """What `Refinement.estimate` might give: off by so many nats, with samples that look so good."""

    def estimate(self: Refinement, num_samples: int) -> dict[str, Tensor]:
        del num_samples
        log_p = model.log_evidence(tensors_of(self.batch)[0]).detach() + off
        ones = torch.ones_like(log_p)
        return {
            "log_likelihood": log_p,
            "error": error * ones,
            "ess": ess * ones,
            "khat": khat * ones,
        }

    return estimate


@pytest.mark.parametrize(
    ("shift", "factor"),
    [
        (3.0, 1.0),
        pytest.param(0.0, 0.1, marks=pytest.mark.slow),
        pytest.param(0.0, 10.0, marks=pytest.mark.slow),
        pytest.param(2.0, 0.1, marks=pytest.mark.slow),
        pytest.param(0.0, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_guides_that_are_far_off(pca: ProbabilisticPCA, shift: float, factor: float) -> None:
    guide = off_by(pca, shift, factor)
    poor = evaluate(pca, guide, X, num_samples=500, method="guide", seed=0)
    assert bool(poor.unreliable.all())
    found = evaluate(pca, guide, X, num_samples=500, seed=0)
    require_right(found, pca.log_evidence(X).detach())
    assert found.method == ["refined"] * len(X)
    for name in ("elbo", "rate", "distortion"):
        assert torch.equal(getattr(found, name).values, getattr(poor, name).values)
    assert "proposals, rows" in str(found)
    assert "refined 40" in str(found)


def test_a_good_guide_keeps_its_samples(pca: ProbabilisticPCA) -> None:
    options: dict[str, Any] = {"num_samples": 200, "seed": 0}
    found = evaluate(pca, Exact(pca), X, **options)
    plain = evaluate(pca, Exact(pca), X, method="guide", **options)
    assert torch.equal(found.log_likelihood.values, plain.log_likelihood.values)
    assert found.method == ["guide"] * len(X)
    assert str(found) == str(plain)


def test_few_samples_say_nothing_about_the_guide(pca: ProbabilisticPCA) -> None:
    found = evaluate(pca, off_by(pca, 3.0, 1.0), X, num_samples=99, seed=0)
    assert found.method == ["guide"] * len(X)


# -- modes -----------------------------------------------------------------------------------------------


def two_modes(
    separation: float, weight: float, dims: int
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], Callable[[Tensor], Tensor]]:
    """A prior of two normals, a guide that is the first of them, and log p(x)."""
    center = torch.zeros(dims)
    center[0] = separation

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.stack([center, -center]), 1.0).to_event(1)
            weights = dist.Categorical(torch.tensor([weight, 1 - weight]))
            z = pyro.sample("z", dist.MixtureSameFamily(weights, parts))
            pyro.sample("x", dist.Normal(0.3 * z.sum(-1), 5.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(center, 1.0).expand([len(x), dims]).to_event(1))

    def log_p(x: Tensor) -> Tensor:
        scale = math.sqrt(25 + 0.09 * dims)
        parts = [
            math.log(share) + dist.Normal(0.3 * side * separation, scale).log_prob(x)
            for share, side in ((weight, 1), (1 - weight, -1))
        ]
        return torch.stack(parts).logsumexp(0)

    return model, guide, log_p


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "dims"),
    [
        (0.5, 2),
        pytest.param(0.9, 10, marks=pytest.mark.slow),
        pytest.param(0.5, 10, marks=pytest.mark.slow),
        pytest.param(0.9, 2, marks=pytest.mark.slow),
    ],
)
def test_a_mode_that_the_guide_never_draws(weight: float, dims: int) -> None:
    """The guide's own samples look as good as can be, and are wrong by log 2."""
    model, guide, log_p = two_modes(6.0, weight, dims)
    x = 5 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    plain = evaluate(model, guide, x, num_samples=1000, method="guide", seed=0)
    assert not bool(plain.unreliable.any())
    assert float((log_p(x) - plain.log_likelihood.values).mean()) > 0.05
    found = evaluate(model, guide, x, num_samples=1000, seed=0)
    off = (found.log_likelihood.values - log_p(x)).abs() / found.log_likelihood_error
    assert int((off > 4.5).sum()) <= 1
    assert abs(float((found.log_likelihood.values - log_p(x)).mean())) < 0.02
    assert any("hardly draws" in note for note in found.notes)


# -- random pairs ----------------------------------------------------------------------------------------


def test_random_pairs() -> None:
    found = total(tallies(range(2)))["all"]
    assert found.wrong == 0, found
    assert found.reliable >= 0.99 * found.rows, found


@pytest.mark.slow
def test_a_thousand_random_pairs() -> None:
    found = total(tallies(range(1000)))["all"]
    assert found.wrong <= 1e-3 * found.reliable, found
    assert found.reliable >= 0.99 * found.rows, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [pytest.param(599, marks=pytest.mark.slow), 767, pytest.param(951, marks=pytest.mark.slow)],
)
def test_pairs_that_once_were_wrong(seed: int) -> None:
    """A guide ten times too wide among 256 latents; a tenth of the mass unseen; a mode that was left alone."""
    found = total(tallies(range(seed, seed + 1)))["all"]
    assert found.wrong == 0, found
    assert found.reliable >= 0.9 * found.rows, found


@pytest.mark.slow
def test_the_guide_alone_is_wrong_there() -> None:
    """The pairs are hard ones: what is counted as wrong does happen."""
    found = total(tallies(range(6), method="guide"))["all"]
    assert found.reliable < 0.7 * found.rows
    assert found.wrong > 1e-2 * found.reliable


# -- all kinds of pairs ----------------------------------------------------------------------------------


def test_bounds_several_latents_and_loaders() -> None:
    """Latents with bounds and of several sites; rows that come in batches of several sizes."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("share", dist.Beta(2.0, 3.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Beta(20.0, 30.0).expand([len(x)]))
            pyro.sample("rate", dist.Gamma(40.0 * (x + 1), 60.0))

    x = torch.arange(23.0) % 7
    truth = dist.GammaPoisson(2.0, 1.0).log_prob(x)
    for rows in (x, [x[:9], x[9:10], x[10:]]):
        found = evaluate(model, guide, rows, num_samples=1000, seed=0)
        assert found.method.count("guide") < 12
        require_right(found, truth)


def test_parameters_for_each_row(pca: ProbabilisticPCA) -> None:
    guide = PerRow(MeanField((12,), latent_dim=6), X)
    found = evaluate(pca, guide, X, num_samples=500, seed=0)
    require_right(found, pca.log_evidence(X).detach())
    assert found.method == ["refined"] * len(X)


def test_a_guide_that_cannot_score_other_draws(pca: ProbabilisticPCA) -> None:
    """A flow without inverse knows the density of its own draws alone: the prior stands in for it."""
    torch.manual_seed(0)
    flow = pyro.distributions.transforms.Planar(6)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), 6), 0.3).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    poor = evaluate(pca, guide, X, num_samples=500, method="guide", seed=0)
    assert bool(poor.unreliable.any())
    found = evaluate(pca, guide, X, num_samples=500, seed=0)
    require_right(found, pca.log_evidence(X).detach())
    assert found.method.count("refined") > 30


def test_discrete_latents_stay_with_the_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(1.0).expand([len(x)]))

    found = evaluate(model, guide, torch.full((5,), 6.0), num_samples=200, seed=0)
    assert found.method == ["guide"] * 5
    assert any("'z' is discrete" in note for note in found.notes)


def test_generators_are_as_after_the_guides_samples(pca: ProbabilisticPCA) -> None:
    states = []
    for method in ("guide", "auto"):
        torch.manual_seed(3)
        evaluate(pca, off_by(pca, 3.0, 1.0), X, num_samples=200, method=method)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_another_method_is_refused(pca: ProbabilisticPCA) -> None:
    with pytest.raises(ValueError, match="method must be 'auto', 'guide' or 'annealed', got 'ais'"):
        evaluate(pca, Exact(pca), X, method="ais")  # type: ignore[arg-type]


def test_the_mixture_is_a_density() -> None:
    """Its integral over a grid is 1, and its draws have the share of a region that the density gives it."""
    torch.manual_seed(0)
    mixture = StudentMixture(
        torch.tensor([[0.3, 0.7]]).log(),
        torch.tensor([[[0.0, 0.0], [3.0, 1.0]]]),
        torch.tensor([[[[1.0, 0.0], [0.5, 0.8]], [[0.6, 0.0], [-0.2, 1.2]]]]),
    )
    side = torch.arange(-40.0, 40.0, 0.05)
    grid = torch.cartesian_prod(side, side)[:, None]
    density = mixture.log_prob(grid)[:, 0].exp() * 0.05**2
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-3)
    inside = (grid[:, 0, 0] > 1.0) & (grid[:, 0, 1] > 0.0)
    drawn = mixture.sample(40_000)[:, 0]
    share = float(((drawn[:, 0] > 1.0) & (drawn[:, 1] > 0.0)).double().mean())
    assert share == pytest.approx(float(density[inside].sum()), abs=0.01)


# -- many latents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "latents",
    [30, pytest.param(90, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.slow)],
    ids=["curvature", "slopes", "subspace"],
)
def test_many_latents(latents: int) -> None:
    """A linear model whose data inform ten directions; the guide is too narrow and off in all of them."""
    torch.manual_seed(0)
    weights, noise = 3 * torch.randn(10, latents) / latents**0.5, 0.7
    x = torch.randn(20, latents) @ weights.T + noise * torch.randn(20, 10)
    precision = torch.eye(latents) + weights.T @ weights / noise**2
    covariance = torch.linalg.inv(precision)
    deviation = covariance.diagonal().sqrt()
    mean = x @ weights @ covariance / noise**2
    mean = mean + deviation * torch.randn_like(mean)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.T, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean[: len(x)], 0.3 * deviation).to_event(1))

    of_x = (weights @ weights.T + noise**2 * torch.eye(10)).double()
    truth = dist.MultivariateNormal(torch.zeros(10).double(), of_x).log_prob(x.double())
    found = evaluate(model, guide, x, num_samples=2000, seed=0)
    require_right(found, truth)
    assert found.method == ["refined"] * 20
    assert float(found.ess.min()) > 100


def test_a_mixture_in_some_directions_is_a_density() -> None:
    """Importance sampling of its integral from a wider normal, and its draws under its own density."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(2, 5, 2))[0]
    active = StudentMixture(
        torch.tensor([0.4, 0.6]).log().expand(2, 2),
        torch.tensor([[0.0, 0.0], [2.0, 1.0]]).expand(2, 2, 2),
        torch.tensor([[1.0, 0.0], [0.3, 0.7]]).expand(2, 2, 2, 2),
    )
    q = SubspaceMixture(torch.randn(2, 5), torch.rand(2, 5) + 0.5, directions, active)
    wide = dist.Normal(q.center, 3.0 * q.scale).to_event(1)
    u = wide.sample((200_000,))
    weights = (q.log_prob(u) - wide.log_prob(u)).exp()
    error = weights.std(0) / len(u) ** 0.5
    assert bool(((weights.mean(0) - 1).abs() < 4 * error).all())
    assert float(error.max()) < 0.02
    drawn = q.sample(200_000)
    for power in (1, 2):
        expected = (weights[..., None] * u**power).mean(0)
        spread = (weights[..., None] * u**power).std(0) / len(u) ** 0.5
        assert bool(((drawn**power).mean(0) - expected).abs().lt(5 * spread + 0.02).all())


@pytest.mark.parametrize(("off", "method"), [(0.2, "guide"), (3.0, "refined")])
def test_a_proposal_that_fails_takes_no_reliable_estimate_away(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch, off: float, method: str
) -> None:
    """Unless it shows that there is more than the guide had seen."""
    guide = off_by(pca, 0.4, 1.1)
    options: dict[str, Any] = {"num_samples": 500, "seed": 0, "method": "guide"}
    plain = evaluate(pca, guide, X, **options)
    reliable = ~plain.unreliable & (plain.ess < 250)
    assert int(reliable.sum()) > 10

    failing = estimates(pca, off=off, error=0.1, ess=2.0, khat=0.9)
    monkeypatch.setattr(Refinement, "estimate", failing)
    found = evaluate(pca, guide, X, **(options | {"method": "auto"}))
    assert {found.method[i] for i in reliable.nonzero()[:, 0].tolist()} == {method}
    if method == "guide":
        assert torch.equal(
            found.log_likelihood.values[reliable], plain.log_likelihood.values[reliable]
        )


@pytest.mark.slow
def test_rows_that_are_left_are_annealed_from_their_proposals(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = estimates(pca, off=-0.3, error=1.0, ess=2.0, khat=1.2)
    monkeypatch.setattr(Refinement, "estimate", failing)
    guide = off_by(pca, 3.0, 0.3)
    found = evaluate(pca, guide, X[:4], num_samples=500, seed=0)
    assert found.method == ["annealed"] * 4
    require_right(found, pca.log_evidence(X[:4]).detach())
    more = evaluate(pca, guide, X, num_samples=500, seed=0)  # too many
    assert more.method == ["refined"] * len(X)
    assert bool(more.unreliable.all())
    assert any("k-hat exceeds" in doubt and "method='annealed'" in doubt for doubt in more.warnings)


@pytest.mark.slow
def test_all_rows_that_are_left_are_annealed_if_asked(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait for the end, so that memory stays bounded however many they are."""

    failing = estimates(pca, off=-0.3, error=1.0, ess=2.0, khat=0.9)
    annealed = Refinement.anneal
    sizes = []

    def watched(self: Refinement, schedule: Any) -> dict[str, Tensor]:
        sizes.append(len(tensors_of(self.batch)[0]))
        return annealed(self, schedule)

    monkeypatch.setattr(Refinement, "estimate", failing)
    monkeypatch.setattr(Refinement, "anneal", watched)
    monkeypatch.setattr(ladder, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(ladder, "MOST_ANNEALED", (0, 0.0, 5))
    guide = off_by(pca, 3.0, 0.3)
    x = X[:5]
    found = evaluate(pca, guide, x, num_samples=500, method="annealed", seed=0)
    assert found.method == ["annealed"] * len(x)
    assert sizes == [3, 2]
    require_right(found, pca.log_evidence(x).detach())


@pytest.mark.parametrize("fit", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_rows_with_many_latents_are_refined_in_smaller_parts(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch, fit: int
) -> None:
    """What is kept of a row grows with the square of its latents; the parts do not."""

    estimate = Refinement.estimate
    sizes = []

    def watched(self: Refinement, num_samples: int) -> dict[str, Tensor]:
        sizes.append(len(tensors_of(self.batch)[0]))
        return estimate(self, num_samples)

    monkeypatch.setattr(Refinement, "estimate", watched)
    monkeypatch.setattr(ladder, "NUMBERS_AT_ONCE", (fit + 0.5) * numbers_of_row(6))
    x = X[: {7: 9, 1: 2}[fit]]
    found = evaluate(pca, off_by(pca, 3.0, 0.3), x, num_samples=500, seed=0)
    assert sizes == {7: [7, 2], 1: [1] * 2}[fit]
    require_right(found, pca.log_evidence(x).detach())


def normal_target(mean: Tensor, precision: Tensor) -> Target:
    """N(mean, precision^-1), up to a factor."""

    def log_density(u: Tensor) -> Tensor:
        off = u - mean
        return -0.5 * torch.einsum("sni,nij,snj->sn", off, precision, off)

    def gradient(u: Tensor) -> tuple[Tensor, ...]:
        return log_density(u), -torch.einsum("nij,snj->sni", precision, u - mean)

    one = torch.ones_like(mean)
    return Target(log_density, gradient, mean[None], one, one, one, math.inf * one)


def test_walkers_find_a_normal_from_few_draws() -> None:
    """Each slope says d numbers: 160 draws give 20 x 20 covariances to a thousandth."""
    torch.manual_seed(0)
    n, d = 3, 20
    root = 0.5 * torch.randn(n, d, d) / d**0.5 + torch.eye(d)
    mean, precision = torch.randn(n, d), torch.linalg.inv(root @ root.mT)
    off = torch.randn(n, d)
    start = StudentMixture(
        torch.zeros(n, 1), (mean + 0.5 * off)[:, None], torch.eye(d).expand(n, 1, d, d), 20.0
    )
    found = walked(normal_target(mean, precision), start, 2)
    covariance = (found.scale @ found.scale.mT)[:, 0]
    assert torch.allclose(covariance, root @ root.mT, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.mean[:, 0], mean, atol=1e-3)


def test_walking_keeps_a_better_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """If slopes mislead, the first mixture stays: the draws themselves are likelier under it."""
    torch.manual_seed(0)
    n, d = 2, 20
    target = normal_target(torch.zeros(n, d), torch.eye(d).expand(n, d, d))
    start = StudentMixture(
        torch.zeros(n, 1), torch.zeros(n, 1, d), torch.eye(d).expand(n, 1, d, d), 40.0
    )

    def misled(*given: Any) -> tuple[Tensor, ...]:
        mean, scale = given[:2]
        return mean + 3.0, 0.3 * scale, torch.zeros(n, dtype=torch.bool)

    monkeypatch.setattr(slopes, "_matched_component", misled)
    found = walked(target, start, 2)
    assert torch.equal(found.mean, start.mean)
    assert torch.equal(found.scale, start.scale)


@pytest.mark.slow
def test_bent_posteriors_of_many_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve independent pairs z, w with x = z, y = w + 0.8 (z^2 - 1), and noise; log p(x) by quadrature."""
    pairs, strength, noise, rows = 12, 0.8, 1.0, 24
    generator = torch.Generator().manual_seed(0)

    def center(z: Tensor) -> Tensor:
        a, b = z[..., 0::2], z[..., 1::2]
        return torch.cat([a, b + strength * (a**2 - 1)], -1)

    z = torch.randn(rows, 2 * pairs, generator=generator)
    x = center(z) + noise * torch.randn(rows, 2 * pairs, generator=generator)
    side = torch.linspace(-7.0, 7.0, 281, dtype=torch.double)
    grid = torch.cartesian_prod(side, side)
    at = center(grid).T[..., None, None]  # (2, points, 1, 1)
    seen = torch.stack([x[:, :pairs], x[:, pairs:]]).double()[:, None]  # (2, 1, rows, pairs)
    density = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)[:, None, None]
    density = density + dist.Normal(at, noise).log_prob(seen).sum(0)
    truth = (density.logsumexp(0) + 2 * math.log(float(side[1] - side[0]))).sum(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2 * pairs), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(center(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2 * pairs), 1.0).to_event(1))

    monkeypatch.setattr(ladder, "MOST_ANNEALED", (0, 0.0, 0))
    left = []
    for walks in (0, 3):
        efforts = (EFFORTS[0], replace(EFFORTS[1], walks=walks))
        monkeypatch.setattr(ladder, "EFFORTS", efforts)
        found = evaluate(model, guide, x, num_samples=1000, seed=0)
        off = (found.log_likelihood.values - truth).abs() / found.log_likelihood_error
        # Without walks, which the ladder has, a row may look better than it is: on one kind of processor one of
        # 24 is off by 4.2 errors, with other seeds by up to 5.2.
        assert bool((off[~found.unreliable] < (4.0 if walks else 4.5)).all())
        left.append(int(found.unreliable.sum()))
    assert left[0] >= 9
    assert left[1] <= 6


def test_rows_that_were_only_compared_stay_with_the_guide(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposals that see less than a good guide take nothing from it, on whatever rung they fail."""

    worse = estimates(pca, off=-47.0, error=1.0, ess=2.0, khat=0.9)
    monkeypatch.setattr(Refinement, "estimate", worse)
    monkeypatch.setattr(ladder, "ROWS_AT_ONCE", 5)  # so that some are refined again at once
    for method in ("auto", "annealed"):
        found = evaluate(pca, off_by(pca, 0.1, 1.0), X, num_samples=2000, method=method, seed=0)
        assert found.method == ["guide"] * len(X)
        require_right(found, pca.log_evidence(X).detach())


def test_exact_rows_are_no_rows_with_few_samples() -> None:
    khat, ess, rung = torch.tensor([-math.inf]), torch.tensor([1.0]), torch.tensor([0])
    assert not_reached(khat, ess, rung, 1000).tolist() == [False]


def test_few_effective_samples_of_the_guide_are_not_trusted() -> None:
    """The error of so few is too small; once a row was off by four of them."""
    khat, ess = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([99.0, 101.0, 99.0])
    rung = torch.tensor([0, 0, 2])
    assert not_reached(khat, ess, rung, 5000).tolist() == [True, False, False]
    assert not_reached(khat, ess, None, 5000).tolist() == [False, False, False]


def test_what_annealing_would_lower_stays(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = pca.log_evidence(X[:3]).detach()

    bad = estimates(pca, off=0.0, error=0.1, ess=9.0, khat=0.9)

    def worse(self: Refinement, schedule: Any) -> dict[str, Tensor]:
        del schedule
        found = bad(self, 0)
        return found | {"log_likelihood": found["log_likelihood"] - 2, "ess": 60 + 0 * found["ess"]}

    monkeypatch.setattr(Refinement, "estimate", bad)
    monkeypatch.setattr(Refinement, "anneal", worse)
    found = evaluate(pca, off_by(pca, 3.0, 0.3), X[:3], num_samples=500, seed=0)
    assert found.method == ["refined"] * 3
    assert torch.allclose(found.log_likelihood.values, truth.to(found.log_likelihood.values))
    assert bool(found.unreliable.all())


def test_few_effective_samples_are_not_trusted(
    pca: ProbabilisticPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = estimates(pca, off=0.0, error=1.0, ess=49.0, khat=0.1)
    monkeypatch.setattr(Refinement, "estimate", few)
    found = evaluate(pca, off_by(pca, 3.0, 0.3), X, num_samples=500, seed=0)
    assert bool(found.unreliable.all())
    assert any("few effective samples" in doubt for doubt in found.warnings)


def test_no_component_is_wider_than_it_may_be() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 4, 4, generator=generator) * torch.logspace(-1, 1, 50)[:, None, None]
    scale = torch.linalg.cholesky(root @ root.mT + 1e-3 * torch.eye(4))
    widest = torch.rand(50, 4, generator=generator) + 0.5
    found = not_too_wide(scale, widest)
    before = torch.linalg.eigvalsh((scale / widest[..., None]) @ (scale / widest[..., None]).mT)
    after = torch.linalg.eigvalsh((found / widest[..., None]) @ (found / widest[..., None]).mT)
    assert torch.allclose(after, before.clamp(max=1.0), rtol=1e-2, atol=1e-3)
    assert 5 < int((before[:, -1] > 1).sum()) < 45
    assert torch.equal(found.triu(1), torch.zeros_like(found))
    assert torch.equal(not_too_wide(scale, math.inf * widest), scale)


def test_what_is_said_of_annealed_rows(pca: ProbabilisticPCA) -> None:
    found = evaluate(pca, off_by(pca, 3.0, 0.3), X[:3], num_samples=500, seed=0)
    annealed = replace(
        found, rung=torch.full((3,), 2), ess=torch.full((3,), 9.0), khat=torch.full((3,), math.nan)
    )
    assert bool(annealed.unreliable.all())
    (doubt,) = annealed.doubts()
    assert "chains count on 3 of 3 rows that were annealed" in doubt
    fine = replace(annealed, ess=torch.full((3,), 60.0))
    assert not fine.warnings
