"""The jobs after training, against closed forms: pPCA, mixtures, labels, several latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ppl_vae import evaluate, fit
from ppl_vae.checks import PairWarning
from ppl_vae.guides import BottomUp, Exact, InverseAutoregressive, MeanField
from ppl_vae.models import VAE, GaussianMixture, HierarchicalVAE, ProbabilisticPCA
from ppl_vae.models.priors import FlowPrior
from ppl_vae.networks import MLP
from ppl_vae.pairs import PairError
from ppl_vae.tasks import (
    Outliers,
    encode,
    interpolate,
    outliers,
    reconstruct,
    sample,
    traverse,
)

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pca() -> ProbabilisticPCA:
    torch.manual_seed(0)
    model = ProbabilisticPCA((5,), latent_dim=2)
    with torch.no_grad():
        model.mean.copy_(torch.arange(5.0))
    return model


def decoded(pca: ProbabilisticPCA, z: Tensor) -> Tensor:
    """E[x | z], by hand."""
    return (z @ pca.weight.T + pca.mean).detach()


def noise_of(pca: ProbabilisticPCA) -> float:
    return float((2 * pca.log_sigma.detach()).exp())


# -- encode -----------------------------------------------------------------------------------------------


def test_means_are_those_of_the_posterior(pca: ProbabilisticPCA) -> None:
    posterior = pca.posterior(X)
    found = encode(pca, Exact(pca), X)
    assert found.keys() == {"z"}
    torch.testing.assert_close(found["z"], posterior.mean.detach())
    draws = encode(pca, Exact(pca), X, num_samples=4000, seed=0)["z"]
    assert draws.shape == (4000, 90, 2)
    off = (draws.mean(0) - posterior.mean) / (posterior.variance / 4000).sqrt()
    assert float(off.detach().abs().max()) < 5


def test_arrays_come_out_as_they_went_in(pca: ProbabilisticPCA) -> None:
    x = X.double().numpy()
    z = encode(pca, Exact(pca), x)["z"]
    assert isinstance(z, np.ndarray)
    assert z.shape == (90, 2)
    assert isinstance(reconstruct(pca, Exact(pca), x), np.ndarray)
    assert isinstance(sample(pca, 3, like=x), np.ndarray)
    assert isinstance(sample(pca, 3), Tensor)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=7)
    torch.testing.assert_close(encode(pca, Exact(pca), loader)["z"], torch.as_tensor(z))


def test_a_flow_is_averaged() -> None:
    torch.manual_seed(0)
    model, guide = VAE((5,), 2, MLP((8,))), InverseAutoregressive((5,), 2, MLP((8,)))
    x = (X > 0).float()
    draws = encode(model, guide, x, num_samples=5000, seed=1)["z"]
    found = encode(model, guide, x, seed=0)["z"]
    error = draws.std(0) / 100**0.5
    assert float(((found - draws.mean(0)).abs() / error).max()) < 5


def test_a_mean_that_depends_on_another_latent_is_averaged_over_it() -> None:
    torch.manual_seed(0)
    sizes: Any = ((5,), (4, 3), MLP((8,)), MLP((8,)))
    model, guide = HierarchicalVAE(*sizes), BottomUp(*sizes)
    x = (X > 0).float()
    found = encode(model, guide, x, seed=0)
    draws = encode(model, guide, x, num_samples=5000, seed=1)
    assert found.keys() == draws.keys()
    assert len(found) == 2
    for name, mean in found.items():
        error = draws[name].std(0) / 100**0.5
        assert float(((mean - draws[name].mean(0)).abs() / error).max()) < 5, name


def test_categories_give_probabilities() -> None:
    torch.manual_seed(0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(torch.tensor([-1.0, 0.0, 2.0])[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(probabilities(x)))

    def probabilities(x: Tensor) -> Tensor:
        normal = dist.Normal(torch.tensor([-1.0, 0.0, 2.0]), 1.0)
        joint = normal.log_prob(x[:, None]) + torch.tensor([0.2, 0.3, 0.5]).log()
        found: Tensor = joint.softmax(-1)
        return found

    x = X[:, 0]
    torch.testing.assert_close(encode(model, guide, x)["k"], probabilities(x))
    draws = encode(model, guide, x, num_samples=50, seed=0)["k"]
    assert draws.shape == (50, 90)
    assert set(draws.unique().tolist()) <= {0, 1, 2}
    with pytest.raises(PairError, match="'k' is discrete: there is no path"):
        interpolate(model, guide, x[:3], x[3:6])


def test_a_guide_without_latents_is_refused() -> None:
    model = GaussianMixture((5,), components=3)
    with pytest.raises(
        PairError, match=r"draws no latents of rows: the model sums .* out\. Give one"
    ):
        encode(model, lambda x: None, X)


# -- reconstruct ------------------------------------------------------------------------------------------


def test_reconstructions_are_the_posterior_predictive_mean(pca: ProbabilisticPCA) -> None:
    found = reconstruct(pca, Exact(pca), X, num_samples=4000, seed=0)
    expected = decoded(pca, pca.posterior(X).mean.detach())
    spread = torch.einsum(
        "ij,njk,ik->ni", pca.weight, pca.posterior(X).covariance_matrix, pca.weight
    )
    assert float(((found - expected).abs() / (spread / 4000).sqrt()).detach().max()) < 5
    one = reconstruct(pca, Exact(pca), X, num_samples=1, seed=0)
    again = decoded(pca, encode(pca, Exact(pca), X, num_samples=1, seed=0)["z"][0])
    torch.testing.assert_close(one, again)


def test_categories_are_reconstructed_as_the_most_probable_ones() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = torch.stack([z, torch.zeros_like(z), -z], -1) * torch.tensor([1.0, 0.0, 1.0])
            pyro.sample("x", dist.Categorical(logits=logits), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(3.0 * (1 - x), 0.01))

    x = torch.tensor([0, 2, 2, 0])
    assert reconstruct(model, guide, x).tolist() == [0, 2, 2, 0]


def test_what_has_no_mean_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            flow = dist.TransformedDistribution(
                dist.Normal(z, 1.0),
                [dist.transforms.AffineTransform(0.0, 2.0), dist.transforms.ExpTransform()],
            )
            pyro.sample("x", flow, obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log(), 1.0))

    x = X[:, 0].exp()
    with pytest.raises(PairError, match="'x', Normal, states no mean: ask for draws"):
        reconstruct(model, guide, x)
    assert sample(model, 5, like=x).shape == (5,)


# -- sample -----------------------------------------------------------------------------------------------


def test_draws_have_the_models_moments(pca: ProbabilisticPCA) -> None:
    drawn = sample(pca, 40_000, seed=0)
    covariance = (pca.weight @ pca.weight.T).detach() + noise_of(pca) * torch.eye(5)
    off = (drawn.mean(0) - pca.mean.detach()) / (covariance.diagonal() / 40_000).sqrt()
    assert float(off.abs().max()) < 4.5
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.05, atol=0.1)
    means = sample(pca, 40_000, means=True, seed=0)
    torch.testing.assert_close(
        means.T.cov(), (pca.weight @ pca.weight.T).detach(), rtol=0.05, atol=0.1
    )


def test_given_latents_are_decoded(pca: ProbabilisticPCA) -> None:
    z = torch.randn(700, 2)  # several parts
    torch.testing.assert_close(sample(pca, 700, given={"z": z}, means=True), decoded(pca, z))
    noise = sample(pca, 700, given={"z": z}, seed=0) - decoded(pca, z)
    assert float(noise.var()) == pytest.approx(noise_of(pca), rel=0.1)
    with pytest.raises(
        PairError, match=r"rows of shape \(3,\), and the model's site 'z' of shape \(2,\)"
    ):
        sample(pca, 4, given={"z": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match=r"one value for each of the 5 draws, \(5, \.\.\.\)"):
        sample(pca, 5, given={"z": torch.zeros(4, 2)})
    with pytest.raises(
        ValueError, match=r"neither a latent of the model \(it has 'z'\) nor an argument of"
    ):
        sample(pca, 4, given={"w": torch.zeros(4, 3)})


class Labelled(nn.Module):
    """x = a[y] + z + noise: everything is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([-10.0, 0.0, 10.0]))

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.a[y] + z, 0.1), obs=x)


def labelled_guide(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x - 10.0 * (y - 1), 0.1))


def test_labels_can_be_given() -> None:
    model, y = Labelled(), torch.arange(30) % 3
    x = model.a.detach()[y] + torch.randn(30, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([2, 2, 0, 1])
    drawn = sample(model, 4, like=(x, y), given={"y": wanted}, seed=0)
    assert ((drawn / 10).round() + 1).tolist() == wanted.tolist()
    turn = sample(model, 7, like=(x, y), given={"z": torch.zeros(7)}, means=True)
    assert turn.tolist() == [
        -10.0,
        0.0,
        10.0,
        -10.0,
        0.0,
        10.0,
        -10.0,
    ]  # the labels of the rows, in turn
    z = encode(model, labelled_guide, (x, y))["z"]
    torch.testing.assert_close(z, x - model.a.detach()[y])
    torch.testing.assert_close(
        reconstruct(model, labelled_guide, (x, y), num_samples=3000, seed=0), x, atol=0.02, rtol=0
    )
    with pytest.raises(TypeError, match=r"sample needs rows to call .* with: pass like=x"):
        sample(model, 4)


def test_labels_that_are_a_site_are_held() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y)
            pyro.sample("x", dist.Normal(10.0 * (y - 1.0), 0.1), obs=x)

    x = torch.zeros(6)
    wanted = torch.tensor([2, 0, 1, 2])
    drawn = sample(model, 4, like=x, given={"y": wanted}, seed=0)
    assert ((drawn / 10).round() + 1).tolist() == wanted.tolist()
    free = sample(model, 300, like=x, seed=0)
    assert set(((free / 10).round() + 1).tolist()) == {0.0, 1.0, 2.0}


def test_a_trained_function_is_sampled_as_it_was_trained() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 0.1))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x + shift, scale))

    x = 7.0 + 0.14 * X[:, 0]
    fit(model, guide, x, max_epochs=300, learning_rate=0.1, seed=0, progress=False)
    for drawn in (sample(model, 500, like=x, seed=0), reconstruct(model, guide, x, seed=0)):
        assert float(drawn.mean()) == pytest.approx(7.0, abs=0.15)
    assert not list(pyro.get_param_store().keys())


class Bounded(nn.Module):
    """Zeros are no rows of it."""

    data_shape = (4,)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Beta(z.exp(), 2.0 * torch.ones(4)).to_event(1), obs=x)


def test_a_model_with_a_bounded_support_needs_no_rows() -> None:
    drawn = sample(Bounded(), 900, seed=0)
    assert drawn.shape == (900, 4)
    assert bool(((drawn > 0) & (drawn < 1)).all())


def test_one_of_several_observed_sites() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("left", dist.Normal(z - 5.0, 0.1), obs=x[:, 0])
            pyro.sample("right", dist.Normal(z + 5.0, 0.1), obs=x[:, 1])

    x = torch.randn(20, 2) + torch.tensor([-5.0, 5.0])
    for name, sign in (("left", -1.0), ("right", 1.0)):
        drawn = sample(model, 200, like=x, site=name, seed=0)
        assert float(drawn.mean()) == pytest.approx(5.0 * sign, abs=0.4)
    with pytest.raises(ValueError, match="the model observes 'left', 'right': say which one"):
        sample(model, 2, like=x)
    with pytest.raises(ValueError, match="'x' is no site that the model observes"):
        sample(model, 2, like=x, site="x")


def test_what_else_the_model_observes_stays() -> None:
    """Labels that are an observed site are those of the rows, not draws; so they are along paths."""

    def model(x: Tensor, labels: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=labels)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 100.0 * y, 0.1), obs=x)

    def guide(x: Tensor, labels: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 100.0 * labels, 0.1))

    labels = torch.arange(12) % 3
    x = 100.0 * labels + 0.5 * X[:12, 0]
    like: Any = (x, labels)
    drawn = sample(model, 12, like=like, site="x", means=True, seed=0)
    assert (drawn / 100).round().tolist() == labels.tolist()
    twos = torch.full((12,), 2)
    drawn = sample(model, 12, like=like, given={"labels": twos}, site="x", seed=0)
    assert (drawn / 100).round().tolist() == [2.0] * 12
    moved = traverse(model, guide, like, 0, steps=3, site="x")  # of latents that are single numbers
    steps = torch.tensor([-3.0, 0.0, 3.0])
    torch.testing.assert_close(moved, 100.0 * labels[:, None] + steps)
    between = interpolate(model, guide, like, like, steps=3, site="x", path="spherical")
    torch.testing.assert_close(between, x[:, None].expand(12, 3), atol=1e-3, rtol=0.0)
    with pytest.raises(
        ValueError, match=r"'y'\] is a site that the model observes: give the argument"
    ):
        sample(model, 12, like=like, given={"y": twos}, site="x")


def test_what_no_path_can_hold_is_refused() -> None:
    x = X[:, :1].expand(-1, 5).contiguous()
    mixture = GaussianMixture((5,), 3)

    def shared(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_shared(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(5.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(PairError, match="'mu' belongs to all rows"):
        traverse(shared, of_shared, x[:, 0], 0)
    drawn = sample(shared, 700, like=x[:, 0], means=True, seed=0)  # one mu for all parts
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(PairError, match="draws no latents of rows"):
        traverse(mixture, lambda x: None, x, 0)

    def bounded(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_bounded(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x, 1.0))

    with pytest.raises(PairError, match=r"latent 'z' is bounded .* given=\{'z': values\}"):
        traverse(bounded, of_bounded, x[:, 0], 0)


def test_parameters_of_rows_make_no_other_rows() -> None:
    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.off = nn.Parameter(100.0 * torch.arange(90.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", 90):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + self.off, 1.0), obs=x)

    model = Off()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 90):
            pyro.sample("z", dist.Normal(x - model.off, 1.0))

    x = model.off.detach() + X[:, 0]
    found = reconstruct(model, guide, x, num_samples=3000, seed=0)
    torch.testing.assert_close(found, x, atol=0.2, rtol=0.0)
    with pytest.raises(PairError, match="keeps parameters for each row"):
        traverse(model, guide, x, 0)
    with pytest.raises(PairError, match="keeps parameters for each row"):
        interpolate(model, guide, x, x)
    with pytest.raises(PairError, match="row"):
        sample(model, 4, like=x)


def test_a_traversal_knows_the_prior_of_each_row() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(100.0 * y, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    y = torch.arange(4.0)
    found = traverse(model, guide, (100 * y, y), 0, steps=3)
    torch.testing.assert_close(found, 100 * y[:, None] + torch.tensor([-6.0, 0.0, 6.0]))


def test_categories_of_a_pair_that_does_not_vectorize() -> None:
    probabilities = torch.tensor([0.2, 0.3, 0.5])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(probabilities))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z.reshape(len(x), 2)[:, 0] + k.reshape(len(x))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(probabilities))
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    found = encode(model, guide, X[:, 0], seed=0)
    assert found["k"].shape == (90, 3)
    torch.testing.assert_close(found["k"].mean(0), probabilities, atol=0.02, rtol=0.0)


def test_what_the_checks_find_is_told() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = X[:, 0]
    fit(model, guide, x, max_epochs=2, seed=0, progress=False)
    for task in (
        lambda: encode(model, other, x),
        lambda: reconstruct(model, other, x),
        lambda: traverse(model, other, x, 0),
    ):
        with pytest.warns(PairWarning, match=r"'loc' \(pyro\.param\) have their initial values"):
            task()


def test_double_precision() -> None:
    model, guide = VAE((5,), 2, MLP((8,))).double(), MeanField((5,), 2, MLP((8,))).double()
    x = (X > 0).double().numpy()
    z = encode(model, guide, x)
    assert z["z"].dtype == np.float64
    decoded = sample(model, 90, like=x, given=z, means=True)
    np.testing.assert_allclose(decoded, model.decode(torch.as_tensor(z["z"])).mean.detach())


# -- paths ------------------------------------------------------------------------------------------------


def test_a_linear_path(pca: ProbabilisticPCA) -> None:
    found = interpolate(pca, Exact(pca), X[:30], X[30:60], steps=5)
    one, other = pca.posterior(X[:30]).mean.detach(), pca.posterior(X[30:60]).mean.detach()
    for i in range(5):
        torch.testing.assert_close(found[:, i], decoded(pca, torch.lerp(one, other, i / 4)))
    with pytest.raises(ValueError, match="a has 3, b has 4"):
        interpolate(pca, Exact(pca), X[:3], X[:4])
    with pytest.raises(ValueError, match="path must be 'linear' or 'spherical', got 'curved'"):
        interpolate(pca, Exact(pca), X[:3], X[:3], path="curved")  # type: ignore[arg-type]


def test_a_spherical_path(pca: ProbabilisticPCA) -> None:
    found = interpolate(pca, Exact(pca), X[:30], X[30:60], steps=7, path="spherical")
    one, other = (pca.posterior(x).mean.detach().double() for x in (X[:30], X[30:60]))
    # In two dimensions the angle turns at one speed, the short way round, and so does the length.
    angles = [torch.atan2(z[:, 1], z[:, 0]) for z in (one, other)]
    turn = torch.remainder(angles[1] - angles[0] + torch.pi, 2 * torch.pi) - torch.pi
    for i in range(7):
        length = torch.lerp(one.norm(dim=1), other.norm(dim=1), i / 6)
        angle = angles[0] + i / 6 * turn
        z = length[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
        torch.testing.assert_close(found[:, i], decoded(pca, z.float()), atol=1e-4, rtol=1e-4)


def test_a_path_to_where_it_starts_stays_there(pca: ProbabilisticPCA) -> None:
    mean = decoded(pca, pca.posterior(X[:4]).mean.detach())
    found = interpolate(pca, Exact(pca), X[:4], X[:4], steps=3, path="spherical")
    torch.testing.assert_close(found, mean[:, None].expand(4, 3, 5), atol=1e-4, rtol=1e-4)


def test_a_traversal_moves_one_number(pca: ProbabilisticPCA) -> None:
    mean = pca.posterior(X[:4]).mean.detach()
    found = traverse(pca, Exact(pca), X[:4], 1, steps=3)
    for i, value in enumerate((-3.0, 0.0, 3.0)):
        z = torch.stack([mean[:, 0], torch.full((4,), value)], -1)
        torch.testing.assert_close(found[:, i], decoded(pca, z))
    with pytest.raises(ValueError, match="dimension must be at most 1, got 2"):
        traverse(pca, Exact(pca), X[:4], 2)
    with pytest.raises(ValueError, match="no latent 'w': pass latent= one of 'z'"):
        traverse(pca, Exact(pca), X[:4], 0, latent="w")


@pytest.mark.slow
def test_a_prior_that_states_no_mean_is_drawn() -> None:
    torch.manual_seed(0)
    model = VAE((5,), 2, MLP((8,)), prior=FlowPrior())
    guide = MeanField((5,), 2, MLP((8,)))
    x = (X[:4] > 0).float()
    found = traverse(model, guide, x, 0, steps=3, seed=0)
    draws = model.prior().sample((20_000,))
    z = encode(model, guide, x)["z"]
    for i, step in enumerate((-3.0, 0.0, 3.0)):
        moved = z.clone()
        moved[:, 0] = draws[:, 0].mean() + step * draws[:, 0].std()
        torch.testing.assert_close(
            found[:, i], model.decode(moved).mean.detach(), atol=0.02, rtol=0.0
        )


# -- outliers ---------------------------------------------------------------------------------------------


def test_outliers_are_the_rows_with_the_lowest_elbo(pca: ProbabilisticPCA) -> None:
    found = outliers(pca, Exact(pca), X, num=7, seed=0)
    log_p = pca.log_evidence(X).detach()
    assert found.index.tolist() == log_p.argsort()[:7].tolist()
    torch.testing.assert_close(found.elbo.values.float(), log_p[found.index], atol=1e-3, rtol=1e-4)
    assert found.table()[1][0] == str(int(found.index[0]))
    worst = outliers(pca, Exact(pca), X, num=1, by="distortion", num_samples=2000, seed=0)
    z = pca.posterior(X)
    spread = torch.einsum("ij,njk,ik->ni", pca.weight, z.covariance_matrix, pca.weight)
    error = (X - decoded(pca, z.mean)).square() + spread
    assert int(worst.index) == int(error.sum(-1).argmax())
    with pytest.raises(
        ValueError, match="by must be 'elbo', 'log_joint', 'distortion' or None, got 'mse'"
    ):
        outliers(pca, Exact(pca), X, by="mse")  # type: ignore[arg-type]


def test_outliers_of_an_evaluation_are_the_same(pca: ProbabilisticPCA) -> None:
    evaluation = evaluate(pca, Exact(pca), X, num_samples=100, method="guide", seed=3)
    for by in ("elbo", "distortion"):
        wanted = outliers(pca, Exact(pca), X, num=4, by=by, seed=3)
        found = Outliers.of(evaluation, num=4, by=by)
        assert torch.equal(found.index, wanted.index)
        assert found.to_dict() == wanted.to_dict()


def test_draws_and_means_with_one_seed_are_of_the_same_latents(pca: ProbabilisticPCA) -> None:
    """Over several chunks, too: 3000 rows are not drawn at once."""
    x, z = sample(pca, 3000, return_latents=True, seed=4)
    means, of_means = sample(pca, 3000, means=True, return_latents=True, seed=4)
    assert torch.equal(z["z"], of_means["z"])
    assert torch.equal(x, sample(pca, 3000, seed=4))
    torch.testing.assert_close(means, decoded(pca, z["z"]))
    off = (x - means).var() / noise_of(pca)
    assert float(off) == pytest.approx(1, abs=0.05)
    numbers, latents = sample(pca, 3, like=X.numpy(), return_latents=True)
    assert isinstance(numbers, np.ndarray)
    assert isinstance(latents["z"], np.ndarray)
    held = torch.ones(3, 2)
    assert torch.equal(sample(pca, 3, given={"z": held}, return_latents=True)[1]["z"], held)


def test_a_traversal_of_several_dimensions_moves_each_alone(pca: ProbabilisticPCA) -> None:
    together = traverse(pca, Exact(pca), X[:4], [1, 0], steps=5)
    assert together.shape == (4, 2, 5, 5)
    for place, dimension in enumerate([1, 0]):
        alone = traverse(pca, Exact(pca), X[:4], dimension, steps=5)
        torch.testing.assert_close(together[:, place], alone)
    assert traverse(pca, Exact(pca), X[:4], range(2), steps=5).shape == (4, 2, 5, 5)
