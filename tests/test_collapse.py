"""The causes of unused latents, on pairs whose collapse has a known cause."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import fitted_pca
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ppl_vae.diagnosis import Diagnosis, diagnose, refinement
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP

gaussian_data = partial(programs.gaussian_data, n=1500)
of_fitted_pca = partial(programs.of_fitted_pca, n=1500)


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


SPECTRUM = [9.0, 4.0, 0.6, 0.5, 0.4, 0.3]


def cause(found: Diagnosis) -> tuple[str, int]:
    return found.cause, int(found.collapsed.sum())


def test_noise_that_hides_what_is_left_of_the_data() -> None:
    """l_3 and l_4 are below the fixed sigma^2 = 1: a smaller sigma would use two more dimensions."""
    found = of_fitted_pca(SPECTRUM, latent_dim=4, sigma=1.0)
    assert cause(found) == ("decoder noise", 2)
    number = r"0\.\d+"
    told = re.fullmatch(
        r"2 of 4 latent dimensions are active and z carries 1\.\d nats about x; 2 have collapsed onto the "
        r"prior\.\nCause: the decoder's noise is larger than what they could explain \(the noise is 1 and what "
        rf"is left of the data ({number}); with noise of ({number}), 2 more dimensions would pay\)\.\n"
        r"Remedy: learn the noise \(LearnedGaussian or OptimalGaussian; of other likelihoods the scale\), for "
        rf"longer if it is learned already, or make it smaller to use them \(about ({number})\)\."
        r"\n  model\.log_sigma = torch\.nn\.Parameter\(model\.log_sigma\); "
        r"ppl_vae\.fit\(model, guide, x, max_epochs=200\)",
        found.summary(),
    )
    assert told is not None
    left, best, about = map(float, told.groups())
    # Of a third of the rows.
    assert left**2 == pytest.approx(sum(SPECTRUM[2:]) / 4, rel=0.05)
    assert best**2 == pytest.approx(sum(SPECTRUM[4:]) / 2, rel=0.05)
    assert about == best


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("dead", "sigma"),
    [
        ([True, True, True], 0.3),
        pytest.param([False, True, False], 0.05, marks=pytest.mark.slow),
        pytest.param([False, True, False], 0.3, marks=pytest.mark.slow),
        pytest.param([True, True, True], 0.05, marks=pytest.mark.slow),
    ],
)
def test_a_guide_that_lags_behind_a_model_that_uses_its_latents(
    dead: list[bool], sigma: float
) -> None:
    x = gaussian_data(SPECTRUM)
    model = fitted_pca(x, latent_dim=3, sigma=sigma)
    found = diagnose(model, PriorGuide(Exact(model), dead), x, seed=0)
    lags = "lagging guide" if not all(dead) else "dead encoder"  # which uses nothing of x
    assert cause(found) == (lags, sum(dead))
    assert ("the guide lags behind the model" in found.summary()) == (not all(dead))


@pytest.mark.parametrize("dims", [(-2, -1), pytest.param((-1, -2), marks=pytest.mark.slow)])
def test_a_guide_that_lags_in_a_plate_inside_of_the_rows(dims: tuple[int, int]) -> None:
    """The second number of each row is ignored by the guide, and used by the model."""
    right = dims == (-2, -1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=dims[0]), pyro.plate("pixels", 2, dim=dims[1]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x if right else x.T)

    def guide(x: Tensor) -> None:
        used = x.new_tensor([1.0, 0.0])
        loc, scale = used * x / 1.09, 1 - used * (1 - 0.09**0.5 / 1.09**0.5)
        with pyro.plate("data", len(x), dim=dims[0]), pyro.plate("pixels", 2, dim=dims[1]):
            pyro.sample(
                "z", dist.Normal(loc if right else loc.T, scale if right else scale[:, None])
            )

    found = diagnose(model, guide, 1.09**0.5 * gaussian_data([1.0, 1.0]), seed=0)
    assert found.collapsed.tolist() == [False, True]
    assert cause(found) == ("lagging guide", 1)


@pytest.mark.slow
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


@pytest.mark.parametrize("scale", [0.2, pytest.param(3.0, marks=pytest.mark.slow)])
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
    assert cause(found) == ("local optimum", 3)
    assert found.active_units == 0
    assert "the decoder does not use them" in found.summary()
    assert "a beta that warms up from 0" in found.summary()


def test_a_decoder_that_ignores_one_dimension_although_more_could_be_explained() -> None:
    """Two of three large directions are modeled: the third is left in the data, ten times the noise."""
    x = gaussian_data([9.0, 4.0, 2.5, 0.1, 0.1])
    model = fitted_pca(x, latent_dim=3, sigma=0.5)
    with torch.no_grad():
        model.weight[:, 2] = 0.0
    found = diagnose(model, Exact(model), x, seed=0)
    assert cause(found) == ("local optimum", 1)
    top = float(torch.linalg.eigvalsh(torch.cov((x / 0.5).T, correction=0))[-3])
    (evidence,) = {each.evidence for each in found.causes.values()}
    shown = re.search(
        r"up to ([\d.]+) times .*: one more .* pay, the first with ([\d.]+) nats", evidence
    )
    assert shown is not None
    assert float(shown[1]) == pytest.approx(top, rel=0.05)
    assert float(shown[2]) == pytest.approx(0.5 * (top - 1 - math.log(top)), rel=0.1)


def on_grid(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of p(z | x) for bits with the logits weight z + bias."""
    grid = torch.linspace(-6, 6, 801)
    bits = dist.Bernoulli(logits=grid[:, None] * weight + bias).to_event(1)
    log_joint = bits.log_prob(x[:, None]) + dist.Normal(0.0, 1.0).log_prob(grid)
    posterior = log_joint.softmax(-1)
    mean = posterior @ grid
    return mean, (posterior @ grid.square() - mean.square()).sqrt()


@pytest.mark.parametrize(
    ("factors", "named"),
    [pytest.param(1, "surplus dimensions", marks=pytest.mark.slow), (2, "local optimum")],
)
def test_bits_tell_whether_a_further_dimension_would_pay(factors: int, named: str) -> None:
    """One or two factors of Bernoulli pixels, and a decoder that uses one dimension."""
    torch.manual_seed(0)
    model = VAE((6,), 2, MLP(hidden=()))
    decoder = next(m for m in model.decoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        decoder.weight.normal_(std=3.0)
        decoder.weight[:, 1] *= factors - 1
        x = model.decode(torch.randn(2000, 2)).sample()
        decoder.weight[:, 1] = 0.0

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean, scale = on_grid(x, decoder.weight.detach()[:, 0], decoder.bias.detach())
            loc = torch.stack([mean, 0 * mean], -1)
            scales = torch.stack([scale, torch.ones_like(scale)], -1)
            pyro.sample("z", dist.Normal(loc, scales).to_event(1))

    found = diagnose(model, guide, x, seed=0)
    assert cause(found) == (named, 1)


@pytest.mark.parametrize("weight", [1.5, 0.0])
def test_a_large_beta_is_named_where_no_noise_level_tells(weight: float) -> None:
    """Binomial counts under beta = 200: z is worth its KL at beta = 1, or has no weight any more."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = weight * z[..., :1].expand(*z.shape[:-1], 4)
            pyro.sample("x", dist.Binomial(8, logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = 1e-3 * x[:, :2]
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = dist.Binomial(8, logits=torch.randn(200, 1).expand(200, 4)).sample()
    found = diagnose(model, guide, x, beta=200.0, seed=0)
    assert cause(found) == ("large beta", 2)
    assert "lower beta" in found.remedy
    assert "beta is 200" in found.summary()


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
    found = of_fitted_pca([9.0, 4.0, 0.1], latent_dim=2, sigma=0.3, n=3000)
    assert cause(found) == ("none", 0)
    assert found.summary() == (
        "No collapse: 2 of 2 latent dimensions are active and z carries 4.2 nats about x."
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
        "0 of 4 latent dimensions are active and z carries 0.0 nats about x; all are inactive.\n"
        "Cause: the guide ignores x: all rows have the same posterior, which is not the prior (z carries 0 "
        "nats about x).\n"
        "Remedy: train for longer; if that does not help, check that the guide's network is given x and gets "
        "gradients."
        "\n  ppl_vae.fit(model, guide, x, max_epochs=200)"
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
    assert "all are inactive.\nCause: the rows given are all the same" in found.summary()
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
    assert "; 2 are inactive.\nCause: the guide lags behind the model" in found.summary()
    (evidence,) = {each.evidence for each in found.causes.values()}
    carried = re.search(
        r"carry ([\d.]+) and ([\d.]+) nats in z\[0\] and z\[2\], the guide none", evidence
    )
    assert carried is not None
    exact = [0.5 * math.log(SPECTRUM[i] / 0.09) for i in (0, 2)]
    assert [float(nats) for nats in carried.groups()] == pytest.approx(exact, abs=0.3)


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
        "0 of 1 latent dimension is active and z carries 0.0 nats about x; it has collapsed onto the prior.\n"
        "Cause: "
    )


def test_a_latent_of_small_scale_is_active() -> None:
    """Prior N(0, 0.05^2) and its exact posterior: the variance of its means is 0.99 of the prior's."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.05))
            pyro.sample("x", dist.Normal(20 * z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01 / 20, 0.05 * (0.01 / 1.01) ** 0.5))

    found = diagnose(model, guide, gaussian_data([1.01])[:, 0].float() - 1.0, seed=0)
    assert float(found.mean_variance[0]) == pytest.approx(0.05**2 / 1.01, rel=0.05)
    assert found.active_units == 1
    assert found.cause == "none"


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_a_used_dimension_with_a_small_prior_scale_is_not_called_surplus(seed: int) -> None:
    """Prior N(0, diag(1, 0.05)^2) and the exact posterior: both dimensions are used."""
    torch.manual_seed(seed)
    scale = torch.tensor([1.0, 0.05])
    weight = torch.randn(5, 2) * torch.tensor([1.0, 20.0])
    x = (scale * torch.randn(800, 2)) @ weight.T + 0.5 * torch.randn(800, 5)
    covariance = torch.linalg.inv(torch.diag(scale**-2) + weight.T @ weight / 0.25)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.MultivariateNormal(x @ weight @ covariance.T / 0.25, covariance)
            pyro.sample("z", q)

    found = diagnose(model, guide, x, seed=0)
    assert found.active_units == 2
    assert found.cause == "none"


def test_information_in_posteriors_of_equal_means_is_not_called_a_dead_model() -> None:
    """x = z^2: the posterior has a mode at each root, so its mean is 0, and I is large."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            root = x.clamp(min=0.01).sqrt()
            roots = torch.stack([root, -root], -1)
            halves = dist.Categorical(torch.full((len(x), 2), 0.5))
            pyro.sample("z", dist.MixtureSameFamily(halves, dist.Normal(roots, 0.05)))

    x = gaussian_data([1.0], n=500)[:, 0].float().sub(1.0).square()
    found = diagnose(model, guide, x, seed=0)
    assert found.active_units == 0
    assert found.mutual_information.mean > 1.0
    assert found.cause == "small means"
    assert "No collapse" not in found.summary()


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


@pytest.mark.slow(but=("False-False",))
@pytest.mark.parametrize(
    ("few", "lags"),
    [
        *((True, True), (False, False)),
        *(pytest.param(few, not few, marks=pytest.mark.slow) for few in (True, False)),
    ],
)
def test_posteriors_are_fitted_until_it_is_clear_what_they_tell(
    lags: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the draws that a fit to 1e-3 nats takes; of an expensive pair, 16 of 64 rows are enough.

    The model tells log(1 + w^2 / s^2) / 2 nats of each dimension, exactly.
    """
    x = gaussian_data(SPECTRUM, n=200)
    model = fitted_pca(x, latent_dim=3, sigma=0.3)
    if not lags:
        with torch.no_grad():
            model.weight[:, 1] = 0.0
    if few:
        monkeypatch.setattr("ppl_vae.checks.session.MEMORY_BUDGET", 2**15)
    steps, draws = 0, 0
    plain = refinement._step

    def counted(*args: Any) -> Any:
        nonlocal steps, draws
        steps, draws = steps + 1, draws + len(args[2]) * args[-1]
        return plain(*args)

    monkeypatch.setattr(refinement, "_step", counted)
    found = diagnose(model, PriorGuide(Exact(model), [False, True, False]), x, seed=0)
    assert found.cause == ("lagging guide" if lags else "local optimum")
    assert draws <= (16 if few else 64) * 4 * 200
    if lags:
        (evidence,) = {each.evidence for each in found.causes.values()}
        told = re.fullmatch(
            rf"posteriors fitted to {16 if few else 64} rows carry ([\d.]+) nats in .*", evidence
        )
        assert told is not None
        exact = 0.5 * math.log(SPECTRUM[1] / 0.09)
        assert float(told[1]) == pytest.approx(exact, abs=0.6 if few else 0.3)


def test_a_last_batch_of_one_row_changes_nothing() -> None:
    """64 rows at once leave one of 65: it was taken for another kind of rows, of which nothing is fitted."""
    x = gaussian_data(SPECTRUM, n=65)
    model = fitted_pca(x, latent_dim=3, sigma=0.3)
    guide = PriorGuide(Exact(model), [False, True, False])
    found = diagnose(model, guide, DataLoader(x, batch_size=64), seed=0)  # type: ignore[arg-type]
    assert found.cause == "lagging guide"
