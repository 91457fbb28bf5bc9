"""diagnose() against closed forms: KL, activity, mutual information and marginal KL."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import fitted_pca, gaussian_data, of_fitted_pca
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.diagnosis import diagnose
from ppl_vae.guides import Exact, FullCovariance
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError, Program


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
    assert any("lower bound" in warning for warning in found.warnings)
    assert "at least 3.0 nats" in found.summary()
    printed = dict(found.lines())
    assert printed["mutual information"] == "≥ 3.00 nats"
    assert printed["marginal KL"] == f"≤ {found.marginal_kl.mean:.2f} nats"
    rest = float(found.kl.sum()) - math.log(20)
    assert found.marginal_kl.mean == pytest.approx(rest, abs=4 * found.marginal_kl.standard_error)


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


def test_many_rows_get_fewer_draws_each() -> None:
    """Against the closed forms of pPCA; each draw is decoded."""
    torch.manual_seed(0)
    model = ProbabilisticPCA((4,), latent_dim=2)
    x = model.mean.detach() + torch.randn(3000, 2) @ model.weight.detach().T + torch.randn(3000, 4)
    draws = 0

    def counted(rows: Tensor) -> None:
        nonlocal draws
        z: Any = poutine.trace(model).get_trace(rows).nodes["z"]["value"]
        draws += z.numel() // 2

    found = diagnose(counted, Exact(model), x, seed=0)
    q = model.posterior(x)
    assert draws < 1.2 * (1000 * 32 + 2000 * 8) + 10_000
    variance = q.mean.var(0).detach()
    torch.testing.assert_close(found.mean_variance.float(), variance, atol=1e-3, rtol=1e-2)
    p = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    rate = float(torch.distributions.kl_divergence(q, p).mean().detach())
    information = found.mutual_information.mean + found.marginal_kl.mean
    assert information == pytest.approx(rate, abs=0.1)


def unused(first: str, second: str, slope: float, scale: float, observed: bool) -> Program:
    """`first` ~ N(0, 1), `second` ~ N(slope first, scale^2), and x, if observed, ~ N(0, 1)."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parent = pyro.sample(first, dist.Normal(torch.zeros(len(x)), 1.0))
            child = pyro.sample(second, dist.Normal(slope * parent, scale))
            if observed:
                pyro.sample("x", dist.Normal(0 * child, 1.0), obs=x)

    return program


@pytest.mark.slow
def test_a_latent_that_follows_another_is_not_active_for_that() -> None:
    """Both collapsed; z1 moves with z2's noise, which says nothing about x."""
    model, guide = (unused("z2", "z1", 0.9, 0.5, observed) for observed in (True, False))
    found = diagnose(model, guide, torch.randn(1000), seed=0)
    assert found.active.tolist() == [False, False]
    assert found.collapsed.tolist() == [True, True]
    assert found.names == ("z2", "z1")


@pytest.mark.parametrize("n", [2, 3, 40])
def test_few_rows_do_not_tell_whether_the_data_would_pay(n: int) -> None:
    def ignored(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    def on_the_prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    found = diagnose(ignored, on_the_prior, torch.randn(n, 3), seed=0)
    notes = [text for text in found.notes if "whether the data would pay" in text]
    if n == 40:
        assert found.cause == "surplus dimensions"
        assert notes == []
    else:
        assert found.cause == "ignored latent"
        assert f"is not known: {n} rows are too few" in notes[0]


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
                loc = torch.stack([x, -0.5 * x], -1)
                pyro.sample("z", dist.Normal(loc, 0.5).to_event(events))

        return model, guide

    x = torch.randn(n, pixels)
    inside, event = (diagnose(*pair(plates), x, seed=0) for plates in (True, False))
    assert inside.mutual_information.mean == pytest.approx(event.mutual_information.mean, rel=1e-5)
    assert inside.marginal_kl.mean == pytest.approx(event.marginal_kl.mean, rel=1e-5)
    assert inside.mutual_information.mean > 0.5


@pytest.mark.parametrize("pixels", [1, 3])
def test_plates_to_the_left_of_the_rows(pixels: int) -> None:
    """Means that are the same for all draws, so that the information is that of one number per pixel."""

    def model(x: Tensor) -> None:
        with pyro.plate("pixels", pixels, dim=-2), pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("pixels", pixels, dim=-2), pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T / 2, 0.5**0.5))

    def columns(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(pixels), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def columns_guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = 2**0.5 * torch.randn(300, pixels)
    left, event = diagnose(model, guide, x, seed=0), diagnose(columns, columns_guide, x, seed=0)
    assert left.names == (event.names if pixels > 1 else ("z",))
    torch.testing.assert_close(left.kl, event.kl)
    for name in ("mutual_information", "marginal_kl"):
        mine, theirs = getattr(left, name), getattr(event, name)
        noise = math.hypot(mine.standard_error, theirs.standard_error)
        assert mine.mean == pytest.approx(theirs.mean, abs=4 * noise)
    assert left.mutual_information.mean > 0.2 * pixels


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


def test_latents_that_the_guide_computes_by_row() -> None:
    """z = 0.8 u + x / 2 with u ~ N(0, 1): u is independent of x, z is not. What is not known is not 0."""

    model = programs.normal

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0 * x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(0.8 * u + x / 2, log_density=-math.log(0.8)))

    found = diagnose(model, guide, 1.5 * torch.randn(200), seed=0)
    assert math.isnan(found.mutual_information.mean)
    assert ("mutual information", "not known") in found.lines()
    why = "not known, because the guide computes 'z' from a draw in a way of its own for each row"
    assert str(found.mutual_information) == str(found.marginal_kl) == why
    assert repr(found.mutual_information) == f"Estimate({why}, 200 rows)"
    assert found.summary() == (
        f"No collapse: 1 of 1 latent dimension is active. How much z carries about x is {why}."
    )
    assert any("in a way of its own for each row" in text for text in found.notes)
    assert found.active_units == 1


@pytest.mark.parametrize(
    ("scale", "state"),
    [
        (1.0, "it has collapsed onto the prior. "),
        (0.6, "it is inactive. "),
    ],
)
def test_what_is_not_known_is_not_in_the_verdict(scale: float, state: str) -> None:
    """z = s u + x / 1000: prior and posterior are nearly the same for all x, if s = 1."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0 * x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(scale * u + x / 1000, log_density=-math.log(scale)))

    found = diagnose(model, guide, torch.randn(200), seed=0)
    assert found.active_units == 0
    first, *others = found.summary().splitlines()
    assert first.startswith(
        f"0 of 1 latent dimension is active; {state}How much z carries about x is not known"
    )
    assert first.endswith("in a way of its own for each row.")
    if scale < 1:
        assert others == [
            "Cause: their posterior means vary little, yet the posterior depends on x.",
            "Remedy: compare posteriors of different rows, as the mutual information is not known.",
        ]
    assert "nan" not in str(found)


def test_supports_that_differ_by_row() -> None:
    """q = U(x - 1, x + 1), x ~ U(0, 4): I = log 4 - log 2 of the ends, by quadrature over z."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x - 1, x + 1))

    x = torch.linspace(0, 4, 400)
    found = diagnose(model, guide, x, seed=0)
    z = torch.linspace(-1, 5, 6001).double()
    q = ((z.unsqueeze(-1) - x).abs() <= 1).double().mean(-1) / 2
    entropy = -(q * q.clamp(min=1e-300).log()).sum() * 6 / 6000
    truth = float(entropy) - math.log(2)
    assert abs(found.mutual_information.mean - truth) < 0.1


SLOPE, NOISE = 0.5, 0.3
MARGINAL = (SLOPE**2 + NOISE**2) ** 0.5


def spike_and_slab(x: Tensor, seen: Tensor | None = None) -> None:
    """s is 0 or 1; a ~ N(0, 1) exists if s = 1 (and the row has it at all); x ~ N(6 s + a s / 2, 0.3^2)."""
    there = torch.ones(len(x)) if seen is None else seen
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(0.5))
        a = pyro.sample("a", dist.Normal(0.0, 1.0).mask(s * there > 0))
        pyro.sample("x", dist.Normal(6 * s + SLOPE * s * there * a, NOISE), obs=x)


def its_posterior(x: Tensor, seen: Tensor | None = None) -> None:
    there = torch.ones(len(x)) if seen is None else seen
    with pyro.plate("data", len(x)):
        one, zero = dist.Normal(6.0, MARGINAL).log_prob(x), dist.Normal(0.0, NOISE).log_prob(x)
        s = pyro.sample("s", dist.Bernoulli(logits=one - zero))
        a = dist.Normal(SLOPE * (x - 6) / MARGINAL**2, NOISE / MARGINAL)
        pyro.sample("a", a.mask(s * there > 0))


def spikes(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, generator=generator)
    return torch.where(torch.arange(n) % 2 > 0, 6 + MARGINAL * noise, NOISE * noise)


def test_the_information_of_a_drawn_presence() -> None:
    """s is known from x: I(x; s) = log 2; half of the rows have a, whose I(x; a) is that of Gaussians."""
    found = diagnose(spike_and_slab, its_posterior, spikes(400), seed=0)
    exact = math.log(2) + 0.5 * math.log(MARGINAL / NOISE)
    assert abs(found.mutual_information.mean - exact) < 0.1  # without the presence, 0.63 less
    assert abs(found.marginal_kl.mean) < 0.1
    assert "of the 400 rows given" in found.notes[0]


def test_a_presence_that_depends_on_draws_and_rows_is_not_known() -> None:
    x = spikes(40)
    found = diagnose(spike_and_slab, its_posterior, (x, (torch.arange(40) % 3 > 0).float()), seed=0)
    assert math.isnan(found.mutual_information.mean)
    assert math.isnan(found.marginal_kl.mean)
    assert "not known" in found.summary()
    assert any("masks of latents depend on the row and on what is drawn" in t for t in found.notes)


@pytest.mark.parametrize("loop", [False, True])
def test_a_presence_that_a_continuous_draw_decides(loop: bool) -> None:
    """u tells nothing about x, and whether a is there depends on u alone: x tells a only of these rows."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            if loop and u.dim() > 1:
                raise ValueError("no samples to the left of the rows")
            there: Any = u > 0
            with poutine.mask(mask=there):
                pyro.sample("a", dist.Normal(0.0 * u, 1.0))
            pyro.sample("x", dist.Normal(0.0 * u, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0 * x, 1.0))
            there: Any = u > 0
            with poutine.mask(mask=there):
                pyro.sample("a", dist.Normal(0.0 * u, 0.5))

    found = diagnose(model, guide, torch.linspace(-1, 1, 60), seed=0)
    assert abs(found.mutual_information.mean) < 1e-4  # all rows have the same posterior
    kl = kl_divergence(dist.Normal(0.0, 0.5), dist.Normal(0.0, 1.0)) / 2
    values = found.marginal_kl.values
    assert abs(float(values.mean() - kl)) < 4 * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize(("inside", "drawn"), [(True, False), (False, True)])
def test_posteriors_are_not_fitted_to_latents_of_such_masks(inside: bool, drawn: bool) -> None:
    """What a row has is not known beforehand. The latent a is not used, u has its exact posterior."""

    def masked(u: Tensor) -> None:
        there: Any = u > 0 if drawn else torch.arange(u.shape[-1]) % 2 > 0
        a = dist.Normal(0.0 * u, 1.0)
        with poutine.mask(mask=True if inside else there):
            pyro.sample("a", a.mask(there) if inside else a)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0))
            masked(u)
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            masked(pyro.sample("u", dist.Normal(x / 2, 0.5**0.5)))

    x = 2**0.5 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    found = diagnose(model, guide, x, seed=0)
    assert dict(zip(found.names, found.collapsed.tolist(), strict=True)) == {"u": False, "a": True}
    assert any("per-row posteriors cannot be fitted" in text for text in found.notes)
