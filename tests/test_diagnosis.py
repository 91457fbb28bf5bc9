"""diagnose() against closed forms, and its causes against pairs whose collapse has a known cause."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.diagnosis import Diagnosis, diagnose
from ppl_vae.guides import Exact, FullCovariance, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError

Program = Callable[..., Any]


def gaussian_data(eigenvalues: list[float], n: int = 3000, seed: int = 0) -> Tensor:
    """Rows whose sample covariance has exactly these eigenvalues, along random directions."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    x = torch.randn(n, size, generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False).T
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    scales = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    rows: Tensor = white * scales @ basis.T + 1.0
    return rows


def fitted_pca(
    x: Tensor, latent_dim: int, sigma: float, beta: float = 1.0, learn_sigma: bool = False
) -> ProbabilisticPCA:
    model = ProbabilisticPCA(
        (x.shape[1],), latent_dim, sigma=sigma, learn_sigma=learn_sigma
    ).double()
    return model.maximum_likelihood(x, beta=beta)


def of_fitted_pca(
    eigenvalues: list[float], latent_dim: int, sigma: float, n: int = 3000
) -> Diagnosis:
    """The diagnosis of the best model of this sigma, with its posterior as the guide."""
    x = gaussian_data(eigenvalues, n)
    model = fitted_pca(x, latent_dim, sigma)
    return diagnose(model, Exact(model), x, seed=0)


class Tempered(nn.Module):
    """The best guide of the beta-ELBO: q(z | x) proportional to p(z) p(x | z)^(1 / beta)."""

    def __init__(self, model: ProbabilisticPCA, beta: float) -> None:
        super().__init__()
        hot = ProbabilisticPCA(model.data_shape, model.latent_dim, sigma=1.0).double()
        hot.load_state_dict(model.state_dict())
        with torch.no_grad():
            hot.log_sigma.add_(0.5 * math.log(beta))
        self.hot = hot

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.hot.posterior(x))


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_at_the_maximum_likelihood_of_probabilistic_pca_every_number_is_known(sigma: float) -> None:
    """KL_i = 1/2 log(l_i / s^2), Var E[z_i | x] = 1 - s^2 / l_i, I = sum KL_i and no marginal KL."""
    eigenvalues = [9.0, 4.0, 1.5, 0.6, 0.1, 0.05]
    x = gaussian_data(eigenvalues)
    model = fitted_pca(x, latent_dim=5, sigma=sigma)
    found = diagnose(model, Exact(model), x, seed=0)
    ratio = torch.tensor(eigenvalues[:5], dtype=torch.float64).clamp(min=sigma**2) / sigma**2
    kl = 0.5 * ratio.log()
    torch.testing.assert_close(found.kl.double(), kl, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(
        found.mean_variance.double(), (1 - 1 / ratio) * 3000 / 2999, atol=2e-3, rtol=0.0
    )
    assert found.collapsed.tolist() == (ratio <= 1.0).tolist()
    assert found.active.tolist() == (ratio > 1.0).tolist()
    assert found.active_units == int((ratio > 1.0).sum())
    information, marginal = found.mutual_information, found.marginal_kl
    assert information.mean == pytest.approx(float(kl.sum()), abs=4 * information.standard_error)
    assert information.standard_error < 0.06
    # The aggregate of 3,000 narrow posteriors is not quite N(0, I): a KL of its own, of some 0.06.
    assert marginal.mean == pytest.approx(0.0, abs=4 * marginal.standard_error + 0.06)
    assert found.names == ("z[0]", "z[1]", "z[2]", "z[3]", "z[4]")
    assert found.num_rows == 3000


def test_mutual_information_and_marginal_kl_add_up_to_the_rate() -> None:
    """A guide that misses the prior: q = N(0.5 x + 1, 0.3^2) with x ~ N(0, 1), all in closed form."""
    x = gaussian_data([1.0])[:, 0] - 1.0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x + 1, 0.3))

    found = diagnose(model, guide, x, seed=0)
    aggregate = 0.25 + 0.09  # its variance; its mean is 1
    information = 0.5 * math.log(aggregate / 0.09)
    marginal = 0.5 * (aggregate + 1 - 1 - math.log(aggregate))
    for got, expected in ((found.mutual_information, information), (found.marginal_kl, marginal)):
        assert got.mean == pytest.approx(expected, abs=4 * got.standard_error)
        assert 0.005 < got.standard_error < 0.05
    assert float(found.kl[0]) == pytest.approx(information + marginal, abs=1e-3)
    assert found.names == ("z",)
    assert float(found.mean_variance[0]) == pytest.approx(0.25, abs=1e-3)


def test_an_active_dimension_has_not_collapsed_however_small_its_kl() -> None:
    """Posterior means of variance 0.015 and a KL of 0.0075 nats: active by Burda et al., and so alive."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([0.015**0.5 * x, 0 * x], -1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = gaussian_data([1.0])[:, 0].float() - 1.0
    found = diagnose(sum_decoder, guide, x, seed=0)
    assert float(found.kl[0]) == pytest.approx(0.0075, abs=1e-4)
    assert found.active.tolist() == [True, False]
    assert found.collapsed.tolist() == [False, True]


def test_the_limit_of_the_mutual_information_is_told() -> None:
    """20 rows that z tells apart perfectly share log 20 nats at most, whatever the truth."""
    found = of_fitted_pca([1000.0, 1000.0], latent_dim=2, sigma=0.01, n=20)
    assert float(found.kl.sum()) > 10
    assert found.mutual_information.mean == pytest.approx(math.log(20), abs=1e-3)
    assert found.saturated
    assert any("biased low" in note for note in found.notes)
    assert any("lower bound" in note for note in found.notes)
    assert "at least 3.0 nats" in found.summary()


def test_a_full_covariance_guide_gets_the_kl_of_its_marginals() -> None:
    x = (torch.randn(40, 4) > 0).float()
    model = VAE((4,), 3, MLP(hidden=(8,)))
    guide = FullCovariance((4,), 3, MLP(hidden=(8,)))
    with torch.no_grad():
        guide.head.weight.mul_(5)
    q = guide.encode(x)
    v = q.covariance_matrix.diagonal(dim1=-2, dim2=-1)
    expected = (0.5 * (v + q.loc**2 - 1 - v.log()).mean(0)).detach()
    found = diagnose(model, guide, x, seed=0)
    torch.testing.assert_close(found.kl.float(), expected, atol=1e-4, rtol=1e-4)
    variance = q.loc.var(0).detach()
    torch.testing.assert_close(found.mean_variance.float(), variance, atol=1e-4, rtol=1e-3)


def sum_decoder(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def test_a_guide_that_states_no_moments_is_sampled_without_bias() -> None:
    """A Gaussian in the guise of a flow: one dimension collapsed exactly, the other N(x, 0.5^2)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([torch.zeros_like(x), x], -1)
            scale_tril = torch.diag(torch.tensor([1.0, 0.5]))
            base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
            transform = dist.transforms.LowerCholeskyAffine(loc, scale_tril)
            pyro.sample("z", dist.TransformedDistribution(base, [transform]))

    x = gaussian_data([1.0], n=2000)[:, 0].float() - 1.0
    found = diagnose(sum_decoder, guide, x, seed=0)
    expected = 0.5 * (0.25 + 1.0 - 1 - math.log(0.25))
    assert float(found.kl[0]) == pytest.approx(0.0, abs=0.003)
    assert float(found.kl[1]) == pytest.approx(expected, abs=0.02)
    assert found.collapsed.tolist() == [True, False]
    assert found.active.tolist() == [False, True]
    assert float(found.mean_variance[0]) == pytest.approx(0.0, abs=0.004)
    assert float(found.mean_variance[1]) == pytest.approx(1.0, abs=0.01)


def test_an_autoguide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(60)
    guide = AutoNormal(model, init_scale=0.7, init_loc_fn=pyro.infer.autoguide.init_to_mean)
    found = diagnose(model, guide, x, seed=0)
    ratio = (0.7 / 2.0) ** 2
    # Its latents are Deltas of auxiliary draws, so that all moments are sampled.
    assert float(found.kl[0]) == pytest.approx(0.5 * (ratio - 1 - math.log(ratio)), abs=0.02)
    assert float(found.mean_variance[0]) == pytest.approx(0.0, abs=0.01)
    assert found.mutual_information.mean == pytest.approx(0.0, abs=1e-3)


def test_a_discrete_latent() -> None:
    """I(x; c) = H(mean q) - mean H(q), by enumeration."""

    x = torch.randn(1500)
    q = torch.sigmoid(2 * x).double()

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log() + (1 - p) * (1 - p).log())

    found = diagnose(programs.coin, programs.coin_guide(2.0), x, seed=0)
    kl = (q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()).mean()
    information = float(entropy(q.mean()) - entropy(q).mean())
    assert float(found.kl[0]) == pytest.approx(float(kl), abs=1e-4)
    assert found.mutual_information.mean == pytest.approx(
        information, abs=4 * found.mutual_information.standard_error
    )
    assert float(found.mean_variance[0]) == pytest.approx(float(q.var()), abs=0.01)
    assert found.names == ("c",)


def unused(first: str, second: str, slope: float, scale: float, observed: bool) -> Program:
    """`first` ~ N(0, 1), `second` ~ N(slope first, scale^2), and x, if observed, ~ N(0, 1)."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parent = pyro.sample(first, dist.Normal(torch.zeros(len(x)), 1.0))
            child = pyro.sample(second, dist.Normal(slope * parent, scale))
            if observed:
                pyro.sample("x", dist.Normal(0 * child, 1.0), obs=x)

    return program


def test_a_latent_that_follows_another_is_not_active_for_that() -> None:
    """Both collapsed; z1 moves with z2's noise, which says nothing about x."""
    model, guide = (unused("z2", "z1", 0.9, 0.5, observed) for observed in (True, False))
    found = diagnose(model, guide, torch.randn(1000), seed=0)
    assert found.active.tolist() == [False, False]
    assert found.collapsed.tolist() == [True, True]
    assert found.names == ("z2", "z1")


def test_a_guide_in_the_opposite_order_gets_shares_of_the_rate() -> None:
    """p(z1) p(z2 | z1) against q(z2) q(z1 | z2): KLs of the sites mean nothing, but shares add up.

    The joint is the same Gaussian in both orders, so that the whole rate is 0: the shares are
    E log q(z1 | z2) - log p(z1) = I(z1; z2) and minus that.
    """

    model = unused("z1", "z2", 0.8, 0.6, observed=True)
    guide = unused("z2", "z1", 0.8, 0.6, observed=False)
    found = diagnose(model, guide, torch.randn(500), seed=0)
    share = -0.5 * math.log(1 - 0.64)
    assert float(found.kl[0]) == pytest.approx(share, abs=0.05)
    assert float(found.kl[1]) == pytest.approx(-share, abs=0.05)
    assert float(found.kl.sum()) == pytest.approx(0.0, abs=1e-4)


def test_latents_in_plates_inside_of_the_rows_have_a_column_each() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    scale = torch.tensor([0.5, 1.0])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            loc = torch.stack([x, torch.zeros_like(x)], -1)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    x = torch.randn(200, 3) * torch.tensor([0.1, 1.0, 3.0])
    found = diagnose(model, guide, x, seed=0)
    assert found.names == ("z[0][0]", "z[0][1]", "z[1][0]", "z[1][1]", "z[2][0]", "z[2][1]")
    expected = 0.5 * (0.25 + x.square().mean(0) - 1 - math.log(0.25))
    torch.testing.assert_close(found.kl[::2].float(), expected, atol=1e-4, rtol=1e-4)
    assert found.collapsed.tolist() == [False, True] * 3
    torch.testing.assert_close(found.mean_variance[::2].float(), x.var(0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n", [200, 300])
@pytest.mark.parametrize("pixels", [1, 3])
def test_plates_inside_of_the_rows_are_worth_as_much_as_event_dimensions(
    n: int, pixels: int
) -> None:
    """The same pair twice, once with its pixels in a plate: the same draws carry the same information."""

    def pair(plates: bool) -> tuple[Program, Program]:
        dim = -2 if plates else -1
        inner = pyro.plate("pixels", pixels, dim=-1) if plates else contextlib.nullcontext()
        events = 1 if plates else 2

        def model(x: Tensor) -> None:
            with pyro.plate("rows", len(x), dim=dim), inner:
                z = pyro.sample("z", dist.Normal(torch.zeros(pixels, 2), 1.0).to_event(events))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0).to_event(events - 1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("rows", len(x), dim=dim), inner:
                loc = torch.stack([x, torch.zeros_like(x)], -1)
                pyro.sample("z", dist.Normal(loc, 0.5).to_event(events))

        return model, guide

    x = torch.randn(n, pixels)
    inside, event = (diagnose(*pair(plates), x, seed=0) for plates in (True, False))
    assert inside.mutual_information.mean == pytest.approx(event.mutual_information.mean, rel=1e-5)
    assert inside.marginal_kl.mean == pytest.approx(event.marginal_kl.mean, rel=1e-5)
    assert inside.mutual_information.mean > 0.5


def test_a_mixture_prior_counts_with_its_own_moments() -> None:
    """Weights 0.9 and 0.1 at -1 and 4: mean -0.5 and variance 1 + 0.9 * 0.25 + 0.1 * 20.25."""
    weights, locs = torch.tensor([0.9, 0.1]), torch.tensor([-1.0, 4.0])
    model = programs.mixture_prior(weights, locs, width=1.0, noise=1.0)
    guide = programs.normal_guide(0.0, 3.25**0.5, shift=-0.5)
    found = diagnose(model, guide, torch.randn(500), seed=0)
    variance = 1 + 0.9 * 0.25 + 0.1 * 20.25
    assert variance == pytest.approx(3.25)
    assert float(found.kl[0]) == pytest.approx(0.0, abs=2e-3)
    assert found.collapsed.tolist() == [True]


def test_a_prior_that_depends_on_another_latent_counts_with_all_of_its_variance() -> None:
    """z1 | z2 ~ N(2 z2, 1) is N(0, 5) on the whole, and so is the guide's z1."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(2 * z2[..., None], torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(0 * z1.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z2", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("z1", dist.MultivariateNormal(torch.zeros(len(x), 2), 5 * torch.eye(2)))

    found = diagnose(model, guide, torch.randn(400), seed=0)
    assert found.names == ("z2", "z1[0]", "z1[1]")
    assert found.kl.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=0.03)


def test_every_kind_of_data_gives_the_same_numbers() -> None:
    """Rows of a shuffled loader against whole data."""
    x = gaussian_data([4.0, 1.5, 0.1], n=600)
    model = fitted_pca(x, latent_dim=2, sigma=0.5)
    whole = diagnose(model, Exact(model), x, seed=0)
    loader = DataLoader(TensorDataset(x, torch.arange(600)), batch_size=64, shuffle=True)
    parts = diagnose(model, Exact(model), loader, seed=1)
    torch.testing.assert_close(whole.kl, parts.kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole.mean_variance, parts.mean_variance, atol=1e-6, rtol=1e-6)
    error = math.hypot(
        whole.mutual_information.standard_error, parts.mutual_information.standard_error
    )
    assert whole.mutual_information.mean == pytest.approx(
        parts.mutual_information.mean, abs=4 * error
    )


def test_latents_of_all_rows_are_held_at_one_draw() -> None:
    """Given mu ~ N(0, 3^2), q = N((mu + x) / 2, 1/2): I = 1/2 log(1 + Var x / 2), whatever mu is."""
    model, guide = programs.shared_mean(3.0), programs.shared_mean_guide(0.0, 3.0)
    x = gaussian_data([2.0], n=2000)[:, 0] - 1.0
    found = diagnose(model, guide, x, seed=0)
    information = found.mutual_information
    assert information.mean == pytest.approx(0.5 * math.log(2), abs=4 * information.standard_error)
    assert float(found.mean_variance[0]) == pytest.approx(0.5, abs=1e-3)
    assert any("'mu' belong to all rows" in note for note in found.notes)


def test_pairs_that_do_not_vectorize() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.reshape(len(x), 2).sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([x, 0 * x], -1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.5, 1.0])).to_event(1))

    x = gaussian_data([1.0], n=300)[:, 0].float() - 1.0
    found = diagnose(model, guide, x, seed=0)
    assert float(found.kl[0]) == pytest.approx(0.5 * (0.25 - math.log(0.25)), abs=1e-3)
    information = 0.5 * math.log(1.25 / 0.25)
    assert found.mutual_information.mean == pytest.approx(
        information, abs=4 * found.mutual_information.standard_error
    )
    assert any("not ruled out" in note for note in found.notes)


def test_a_pair_without_latents_of_rows_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(ValueError, match="samples no latent of a row"):
        diagnose(model, lambda x: None, torch.zeros(4))
    with pytest.raises(PairError, match="not inside a plate"):
        diagnose(
            lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x), lambda x: None, torch.ones(4)
        )


def test_a_seed_leaves_generators_and_weights_alone() -> None:
    x = gaussian_data([4.0, 0.5], n=300)
    model = fitted_pca(x, latent_dim=2, sigma=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = diagnose(model, Exact(model), x, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    second = diagnose(model, Exact(model), x, seed=3)
    assert first.to_dict() == second.to_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# -- causes ------------------------------------------------------------------------------------------------

SPECTRUM = [9.0, 4.0, 0.6, 0.5, 0.4, 0.3]


def cause(found: Diagnosis) -> tuple[str, int]:
    return found.cause, int(found.collapsed.sum())


def test_noise_that_hides_what_is_left_of_the_data() -> None:
    """l_3 and l_4 are below the fixed sigma^2 = 1: a smaller sigma would use two more dimensions."""
    found = of_fitted_pca(SPECTRUM, latent_dim=4, sigma=1.0)
    assert cause(found) == ("decoder noise", 2)
    assert found.summary() == (
        "2 of 4 latent dimensions are active and z carries 1.8 nats about x; 2 have collapsed onto the prior: "
        "the decoder's noise is larger than what they could explain; learn the noise (LearnedGaussian or "
        "OptimalGaussian), for longer if it is learned already, or make it smaller to use them."
    )


def test_noise_that_hides_everything() -> None:
    found = of_fitted_pca(SPECTRUM, latent_dim=4, sigma=4.0)
    assert cause(found) == ("decoder noise", 4)
    assert "all have collapsed" in found.summary()


def test_a_beta_that_hides_what_its_noise_would_show() -> None:
    """sigma^2 = 0.25 shows all four dimensions at beta = 1, and two at beta = 4."""
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=4, sigma=0.5, beta=4.0)
    found = diagnose(model, Tempered(model, 4.0), x, beta=4.0, seed=0)
    assert cause(found) == ("large beta", 2)
    assert "lower beta" in found.summary()
    at_one = fitted_pca(x, latent_dim=4, sigma=0.5)
    assert cause(diagnose(at_one, Exact(at_one), x, seed=0)) == ("none", 0)


def test_with_both_beta_and_noise_too_large_the_noise_is_named() -> None:
    """Lowering beta to 1 would not help: l_3 and l_4 are below sigma^2 itself.

    What beta shrinks in the live dimensions is left in the data too, at up to beta sigma^2: it counts for
    nothing.
    """
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=4, sigma=1.0, beta=3.0)
    found = diagnose(model, Tempered(model, 3.0), x, beta=3.0, seed=0)
    assert cause(found) == ("decoder noise", 2)


def test_dimensions_for_which_the_data_hold_nothing_are_surplus() -> None:
    """Two directions above isotropic noise, sigma^2 learned: the noise is where it should be."""
    x = gaussian_data([9.0, 4.0, 0.25, 0.25, 0.25, 0.25])
    model = fitted_pca(x, latent_dim=4, sigma=1.0, learn_sigma=True)
    assert float(model.log_sigma.detach().exp()) == pytest.approx(0.5, abs=1e-3)
    found = diagnose(model, Exact(model), x, seed=0)
    assert cause(found) == ("surplus dimensions", 2)
    assert "nothing is lost" in found.summary()


def test_more_dimensions_than_the_data_has_are_surplus() -> None:
    found = of_fitted_pca([9.0, 4.0], latent_dim=4, sigma=0.1)
    assert cause(found) == ("surplus dimensions", 2)


class PriorGuide(nn.Module):
    """q(z | x) = p(z), for some or all dimensions."""

    def __init__(self, inner: Exact | MeanField, dead: list[bool]) -> None:
        super().__init__()
        self.inner = inner
        self.dead = torch.tensor(dead)

    def forward(self, x: Tensor) -> None:
        q = self.inner.encode(x)
        loc = torch.where(self.dead, 0.0, q.mean)
        scale = torch.where(self.dead, 1.0, q.variance.sqrt())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize("dead", [[True, True, True], [False, True, False]])
@pytest.mark.parametrize("sigma", [0.3, 0.05])
def test_a_guide_that_lags_behind_a_model_that_uses_its_latents(
    dead: list[bool], sigma: float
) -> None:
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=3, sigma=sigma)
    found = diagnose(model, PriorGuide(Exact(model), dead), x, seed=0)
    assert cause(found) == ("lagging guide", sum(dead))
    assert "the guide lags behind the model" in found.summary()


def test_a_guide_that_is_merely_inaccurate_elsewhere_does_not_lag() -> None:
    """A large amortization gap in live dimensions says nothing about the dead ones, which noise hides."""
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=4, sigma=1.0)

    def guide(x: Tensor) -> None:
        q = model.posterior(x)
        dead = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=x.dtype)
        loc = q.mean + 0.8 * (1 - dead)
        scale = q.variance.sqrt() * (dead + (1 - dead) * 0.4)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    found = diagnose(model, guide, x, seed=0)
    assert found.cause == "decoder noise"


def test_whether_a_guide_lags_is_judged_under_its_own_beta() -> None:
    """w^2 / s^2 = 0.3 in one dimension: worth 0.13 nats of KL at beta = 1, and 0.007 at beta = 20."""
    x = gaussian_data([9.0, 4.0, 0.5])
    model = fitted_pca(x, latent_dim=2, sigma=1.0)
    with torch.no_grad():
        model.weight[:, 1] *= (0.3 / model.weight[:, 1].square().sum()).sqrt()
    guide = Tempered(model, 20.0)
    assert diagnose(model, guide, x, beta=20.0, seed=0).cause != "lagging guide"
    found = diagnose(model, guide, x, beta=1.0, seed=0)
    assert cause(found) == ("lagging guide", 1)


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_a_prior_of_another_scale_is_the_models_own(scale: float) -> None:
    """Dimensions that lie on a prior N(2, scale^2), far from N(0, 1), have collapsed and do not lag."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(2 * x.new_ones(2), scale).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1] * 0.9 + 0 * x, 0.1).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([x[:, 0] / 0.9, 2 + 0 * x[:, 0]], -1)
            pyro.sample("z", dist.Normal(loc, x.new_tensor([0.1, scale])).to_event(1))

    x = gaussian_data([1.0])
    found = diagnose(model, guide, x, seed=0)
    assert found.collapsed.tolist() == [False, True]
    assert found.cause == "surplus dimensions"


def test_a_decoder_that_ignores_z_although_the_data_vary_by_more_than_noise() -> None:
    x = gaussian_data(SPECTRUM)
    scale = x.var().sqrt()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., :1] + 1.0 + 0 * x, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))

    found = diagnose(model, guide, x, seed=0)
    assert cause(found) == ("ignored latent", 3)
    assert found.active_units == 0
    assert "the decoder does not use them" in found.summary()
    assert "warm beta up from 0" in found.summary()


def test_a_decoder_that_ignores_one_dimension_although_more_could_be_explained() -> None:
    """Two of three large directions are modelled: the third is left in the data, ten times the noise."""
    x = gaussian_data([9.0, 4.0, 2.5, 0.1, 0.1])
    model = fitted_pca(x, latent_dim=3, sigma=0.5)
    with torch.no_grad():
        model.weight[:, 2] = 0.0
    found = diagnose(model, Exact(model), x, seed=0)
    assert cause(found) == ("ignored latent", 1)


def test_a_likelihood_without_a_noise_level_makes_no_claim_about_it() -> None:
    """Bernoulli pixels and an unused dimension: neither noise nor surplus can be told."""
    torch.manual_seed(0)
    model = VAE((6,), 2, MLP(hidden=()))
    decoder = next(m for m in model.decoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        decoder.weight.normal_(std=3.0)
        decoder.weight[:, 1] = 0.0
    z = torch.randn(500, 2)
    x = model.decode(z).sample()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.stack([x @ decoder.weight.detach()[:, 0] / 9, 0 * x[:, 0]], -1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.4, 1.0])).to_event(1))

    found = diagnose(model, guide, x, seed=0)
    assert cause(found) == ("ignored latent", 1)


@pytest.mark.parametrize(("weight", "expected"), [(1.5, "large beta"), (0.0, "ignored latent")])
def test_a_large_beta_is_named_where_no_noise_level_tells(weight: float, expected: str) -> None:
    """Binomial counts under beta = 200: z is worth its KL at beta = 1, or has no weight any more."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = weight * z[..., :1].expand(*z.shape[:-1], 4)
            pyro.sample("x", dist.Binomial(8, logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    x = dist.Binomial(8, logits=torch.randn(200, 1).expand(200, 4)).sample()
    found = diagnose(model, guide, x, beta=200.0, seed=0)
    assert cause(found) == (expected, 2)
    assert "lower beta" in found.remedy
    assert ("which is 200" in found.remedy) == (expected == "ignored latent")


def test_noise_of_its_own_for_each_number_is_taken_as_the_unit() -> None:
    """Data of very different scales with noise in proportion: hidden in every column alike."""
    scale = torch.tensor([100.0, 1.0, 0.01, 10.0], dtype=torch.float64)
    x = (gaussian_data([0.8, 0.7, 0.6, 0.5]) - 1.0) * scale

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., :1] + 0 * x, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    assert diagnose(model, guide, x, seed=0).cause == "decoder noise"


def test_sampling_noise_in_few_rows_is_not_taken_for_structure() -> None:
    """Isotropic data and 60 rows of 30 numbers: the largest sample eigenvalue is near (1 + sqrt(1/2))^2."""
    x = 1.0 + torch.randn(60, 30, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(torch.cov(x.T))[-1]) > 2.2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., :1] + 1.0 + 0 * x, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    assert diagnose(model, guide, x, seed=0).cause == "surplus dimensions"


def test_a_healthy_pair_needs_no_cause() -> None:
    found = of_fitted_pca([9.0, 4.0, 0.1], latent_dim=2, sigma=0.3)
    assert cause(found) == ("none", 0)
    assert found.summary() == (
        "Healthy: 2 of 2 latent dimensions are active, z carries 4.2 nats about x, and no dimension has "
        "collapsed."
    )
    plain = found.to_dict()
    assert plain["remedy"] == "nothing to do"
    assert plain["active"] == [True, True]


# -- a guide that ignores x without being the prior --------------------------------------------------------


def pixels_pair(latent_dim: int) -> tuple[VAE, MeanField, Tensor]:
    torch.manual_seed(0)
    model = VAE((6,), latent_dim, MLP(hidden=(8,)))
    guide = MeanField((6,), latent_dim, MLP(hidden=(8,)))
    return model, guide, (torch.randn(300, 6) > 0).float()


def test_a_constant_posterior_is_not_healthy() -> None:
    """A head without weights: N(m, s^2) for every row, with I = 0 exactly, and all KL marginal."""
    model, guide, x = pixels_pair(4)
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.copy_(torch.tensor([0.5, 0.0, -0.4, 0.3, 0.0, 0.0, 0.0, 0.0]))
    scale = guide.encode(x).stddev[0].detach()
    mean = torch.tensor([0.5, 0.0, -0.4, 0.3])
    kl = 0.5 * (scale**2 + mean**2 - 1) - scale.log()
    found = diagnose(model, guide, x, seed=0)
    torch.testing.assert_close(found.kl.float(), kl, atol=1e-5, rtol=1e-5)
    assert found.cause == "constant posterior"
    assert found.collapsed.tolist() == (kl < 0.01).tolist()
    assert found.mutual_information.mean == pytest.approx(0.0, abs=1e-5)
    assert found.marginal_kl.mean == pytest.approx(
        float(kl.sum()), abs=4 * found.marginal_kl.standard_error
    )
    assert found.summary() == (
        "0 of 4 latent dimensions are active and z carries 0.0 nats about x; all are inactive: the guide "
        "ignores x: all rows have the same posterior, which is not the prior; train for longer; if that does "
        "not help, check that the guide's network is given x and gets gradients."
    )


def test_a_barely_trained_pair_is_not_healthy() -> None:
    model, guide, x = pixels_pair(4)
    with torch.no_grad():
        guide.head.weight.mul_(0.05)
        guide.head.bias[:4] = 0.5
    found = diagnose(model, guide, x, seed=0)
    assert not bool(found.active.any() | found.collapsed.any())
    assert float(found.mean_variance.max()) > 0
    assert found.cause == "constant posterior"


def test_rows_that_are_all_the_same_tell_nothing_of_the_pair() -> None:
    x = gaussian_data([9.0, 4.0, 0.1])
    model = fitted_pca(x, latent_dim=2, sigma=0.3)
    found = diagnose(model, Exact(model), x[:1].expand(300, 3), seed=0)
    assert cause(found) == ("identical rows", 0)
    assert found.active_units == 0
    assert "all are inactive: the rows given are all the same" in found.summary()
    # The same in one batch only is not the same.
    mixed = torch.cat([x[:1].expand(700, 3), x[:300]])
    assert diagnose(model, Exact(model), mixed, seed=0).cause == "none"


def test_a_part_that_is_constant_but_not_the_prior_is_not_healthy() -> None:
    """The model uses all three; the guide says N(1, 0.5^2) of two of them, whatever the row."""
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=3, sigma=0.3)

    def guide(x: Tensor) -> None:
        q = model.posterior(x)
        dead = torch.tensor([True, False, True])
        with pyro.plate("data", len(x)):
            loc = torch.where(dead, 1.0, q.mean)
            scale = torch.where(dead, 0.5, q.variance.sqrt())
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    found = diagnose(model, guide, x, seed=0)
    assert found.active.tolist() == [False, True, False]
    assert cause(found) == ("lagging guide", 0)
    assert found.summary().startswith("1 of 3 latent dimensions are active and z carries ")
    assert "; 2 are inactive: the guide lags behind the model" in found.summary()


def test_a_single_collapsed_dimension_reads_well() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    found = diagnose(model, guide, gaussian_data([1.0], n=300)[:, 0].float() - 1.0, seed=0)
    assert found.summary().startswith(
        "0 of 1 latent dimension is active and z carries 0.0 nats about x; it has collapsed onto the prior: "
    )


def test_information_in_a_latent_of_small_scale_is_not_called_a_dead_model() -> None:
    """Prior N(0, 0.05^2) and its exact posterior: no unit is active by Burda's measure, and I is large."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.05))
            pyro.sample("x", dist.Normal(20 * z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01 / 20, 0.05 * (0.01 / 1.01) ** 0.5))

    found = diagnose(model, guide, gaussian_data([1.01])[:, 0].float() - 1.0, seed=0)
    assert found.active_units == 0
    assert found.mutual_information.mean > 2.0
    assert found.cause == "small means"
    assert "Healthy" not in found.summary()


# -- memory ------------------------------------------------------------------------------------------------


def test_a_small_budget_runs_few_rows_at_once_and_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows x draws that meet in the decoder, with room for all and with room for a part."""
    x = gaussian_data(SPECTRUM, n=300)
    fitted = fitted_pca(x, latent_dim=3, sigma=0.3)
    largest = 0

    def model(x: Tensor) -> None:
        nonlocal largest
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            largest = max(largest, z.numel() // 3)
            loc = z @ fitted.weight.detach().T + fitted.mean.detach()
            pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x)

    guide = PriorGuide(Exact(fitted), [False, True, False])
    whole = diagnose(model, guide, x, seed=0)
    assert largest == 256 * 32
    largest = 0
    monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**20)
    parts = diagnose(model, guide, DataLoader(x, batch_size=100), seed=0)  # type: ignore[arg-type]
    assert 32 <= largest <= 64 * 32
    assert parts.cause == whole.cause == "lagging guide"
    assert parts.num_rows == whole.num_rows == 300
    torch.testing.assert_close(whole.kl, parts.kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole.mean_variance, parts.mean_variance, atol=1e-6, rtol=1e-6)


def test_a_collapsed_guide_that_keeps_parameters_for_each_row() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    x = torch.randn(1000)
    guide = AutoNormal(model, init_scale=1.0, init_loc_fn=pyro.infer.autoguide.init_to_mean)
    found = diagnose(model, guide, x, seed=0)
    assert found.collapsed.tolist() == [True]
    assert any("not ruled out" in note for note in found.notes)
